/**
 * Pure: refuses, by the field's name, what OpenAI's Responses API has and is not offered here, and lists that are too long to be judged. What is
 * merely wrong is left to the contract.
 */
import { badRequest } from "../errors.ts";

type Fields = Readonly<Record<string, unknown>>;

/** Fields that are refused whatever they hold, and why. */
const never: Readonly<Record<string, string>> = {
  conversation: "conversations are not kept apart from responses: go on with previous_response_id, or send the items in `input`",
  prompt: "prompts are not stored here: send `instructions` and `input`",
  context_management: "conversations are not compacted: send fewer items",
  moderation: "no model here judges texts",
  image: "there are text models only",
  access_programs: "there are no access programs",
  prompt_cache_options: "an engine's prefix cache has no options",
};

/** Fields that may hold what changes nothing. */
const unless: Readonly<Record<string, { holds: (value: unknown) => boolean; why: string }>> = {
  background: { holds: (value) => value === false, why: "responses are answered while the client waits" },
  include: { holds: (value) => Array.isArray(value) && value.length === 0, why: "there is nothing to be included" },
  truncation: { holds: (value) => value === "disabled", why: "nothing is left out of a conversation: send fewer items" },
  top_logprobs: { holds: (value) => value === 0, why: "ask /v1/chat/completions for logprobs" },
  reasoning: {
    holds: (value) => Object.entries(fieldsOf(value)).every(([key, given]) => given === null || (key === "effort" && given === "none")),
    why: "how a base reasons is not set here; chat_template_kwargs may say it to its chat template",
  },
};

const itemTypes = ["message", "function_call", "function_call_output", "reasoning", "item_reference"];
const partTypes = ["input_text", "output_text", "text", "refusal", "reasoning_text"];

/** Most items of `input`, with the parts of their content: the contract judges each in several ways, and meanwhile nobody else is answered. */
const mostItems = 10_000;
/** Most elements of other fields' lists. */
const mostElements = 1024;
/** Most characters of `instructions`, and of `tools` as JSON: a stream repeats them three times. */
const mostEchoed = 1024 ** 2;

/** @throws PermanentError 400 `unsupported`, `too_many_items` or `field_too_large` with the field. */
export function refuseWhatIsNotOffered(body: Fields): void {
  refuseWhatIsTooLarge(body);
  for (const [field, value] of Object.entries(body)) {
    if (value === null || value === undefined) continue;
    const why = never[field] ?? (unless[field]?.holds(value) === false ? unless[field].why : undefined);
    if (why !== undefined) throw notOffered(field, why);
  }
  const { verbosity } = fieldsOf(body["text"]);
  if (verbosity !== null && verbosity !== undefined && verbosity !== "medium")
    throw notOffered("text.verbosity", "say it in `instructions`");
  for (const [index, tool] of listOf(body["tools"]).entries()) {
    const { type } = fieldsOf(tool);
    if (typeof type === "string" && type !== "function")
      throw notOffered(`tools[${index}].type`, `"${type}" is a built-in tool; only functions are called, and by the client`);
  }
  const { type: choice } = fieldsOf(body["tool_choice"]);
  if (typeof choice === "string" && choice !== "function")
    throw notOffered("tool_choice.type", `"${choice}": use none, auto, required or {"type": "function", "name": …}`);
  for (const [index, item] of listOf(body["input"]).entries()) {
    const { type, content, output } = fieldsOf(item);
    if (typeof type === "string" && !itemTypes.includes(type))
      throw notOffered(`input[${index}].type`, `"${type}" is no item that can be answered; there are ${itemTypes.join(", ")}`);
    for (const [field, parts] of Object.entries({ content, output })) {
      for (const [at, part] of listOf(parts).entries()) {
        const { type: kind } = fieldsOf(part);
        if (typeof kind === "string" && !partTypes.includes(kind))
          throw notOffered(`input[${index}].${field}[${at}].type`, `"${kind}" is no text, and the bases here read text`);
      }
    }
  }
}

function refuseWhatIsTooLarge(body: Fields): void {
  for (const [field, value] of Object.entries(body)) {
    if (field === "input" || !Array.isArray(value) || value.length <= mostElements) continue;
    throw badRequest("too_many_items", `${field} has ${value.length} elements; at most ${mostElements} are taken.`, field);
  }
  const input = listOf(body["input"]);
  let items = input.length;
  for (const item of items > mostItems ? [] : input) {
    const { content, output } = fieldsOf(item);
    items += listOf(content).length + listOf(output).length;
  }
  if (items > mostItems)
    throw badRequest("too_many_items", `input has ${items} items and parts of their content; at most ${mostItems} are taken.`, "input");
  const { instructions, tools } = body;
  const echoed = { instructions: typeof instructions === "string" ? instructions : "", tools: JSON.stringify(tools ?? null) };
  for (const [field, { length }] of Object.entries(echoed)) {
    if (length <= mostEchoed) continue;
    throw badRequest(
      "field_too_large",
      `${field} has ${length} characters; at most ${mostEchoed} are taken, as each response repeats it.`,
      field,
    );
  }
}

const notOffered = (field: string, why: string) => badRequest("unsupported", `${field} is not offered: ${why}.`, field);

const fieldsOf = (value: unknown): Fields => (typeof value === "object" && value !== null ? (value as Fields) : {});
const listOf = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);
