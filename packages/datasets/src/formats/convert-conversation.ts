/** Converts conversations in every known spelling to messages. Pure. */
import { isTrainedTurn, type Message, pictureMark } from "@loraline/contracts";
import { parseExact, parseJson } from "../containers/exact-json.ts";
import {
  asOpenAiTools,
  callsOfList,
  isGeminiTool,
  splitAnthropicTurn,
  systemOfGlaive,
  turnsOfGeminiParts,
  turnsOfGlaive,
} from "./convert-tool-calls.ts";
import { judges, mayJudge } from "./judgements.ts";
import { imageMark, type Media, mediaOf, placeImages, refOf, settle, unmark } from "./place-images.ts";
import {
  type Body,
  type Context,
  type Conversion,
  deepest,
  isBlank,
  isDeeperThan,
  isObject,
  nameOf,
  type Refusal,
  refuse,
  type Row,
  shorten,
} from "./signature.ts";

/** Spellings of roles in files, and the role that each means. */
export const roles: Readonly<Record<string, Message["role"] | "function_call">> = {
  system: "system",
  developer: "system",
  系统: "system",
  user: "user",
  human: "user",
  prompter: "user",
  用户: "user",
  assistant: "assistant",
  gpt: "assistant",
  bot: "assistant",
  chatbot: "assistant",
  model: "assistant",
  ai: "assistant",
  chatgpt: "assistant",
  助手: "assistant",
  tool: "tool",
  observation: "tool",
  function: "tool",
  function_response: "tool",
  tool_response: "tool",
  ipython: "tool",
  function_call: "function_call",
  tool_call: "function_call",
};
const turnKeys = new Set(
  "role from speaker content value text name reasoning_content reasoning thinking tool_calls tool_call_id function_call train loss weight".split(
    " ",
  ),
);
/** Keys of objects that hold two turns: a question and its answer. */
const pairs = [
  ["human", "assistant"],
  ["user", "assistant"],
  ["human", "bot"],
  ["question", "answer"],
  ["prompt", "response"],
] as const;

export interface Turns {
  readonly messages: Message[];
  readonly media: Media;
  /** Images that the turns show and do not hold: `imageMark` stands in their places. */
  readonly imageParts: number;
  /** Keys of turns that are not kept in messages. */
  readonly unusedKeys: ReadonlySet<string>;
}

/** Whether a turn's key says something that is lost: `deleted: false` does not. */
const isSaid = (key: string, value: unknown): boolean =>
  value !== null && value !== undefined && (!mayJudge(key.toLowerCase()) || judges(key.toLowerCase(), value));

/** @param field - the row's field that holds the turns; used for parts that are kept as JSON, and in error messages. */
export function convertTurns(
  turns: readonly unknown[],
  field: string,
  context: Context,
  exact = () => context.exact(field),
): Turns | Refusal {
  const messages: Message[] = [];
  const media: Media = [];
  const shown = { imageParts: 0 };
  const unusedKeys = new Set<string>();
  const own = context.names[field] ?? field;
  for (const [index, turn] of turns.entries()) {
    const place = `message ${index + 1}`;
    if (!isObject(turn)) return refuse("MESSAGE_INVALID", `${place} is ${nameOf(turn)}; an object with role and content is expected`);
    const pair = pairs.find(([asks, answers]) => typeof turn[asks] === "string" && typeof turn[answers] === "string");
    if (pair !== undefined && turn.role === undefined && turn.from === undefined) {
      messages.push({ role: "user", content: turn[pair[0]] as string }, { role: "assistant", content: turn[pair[1]] as string });
      for (const key of Object.keys(turn))
        if (key !== pair[0] && key !== pair[1] && isSaid(key, turn[key])) unusedKeys.add(`${own}[].${key}`);
      continue;
    }
    for (const key of Object.keys(turn)) if (!turnKeys.has(key) && isSaid(key, turn[key])) unusedKeys.add(`${own}[].${key}`);
    const exactTurn = (): Row => (exact() as Row[])[index] as Row;
    const split = splitAnthropicTurn(turn, exactTurn);
    for (const one of split ?? [turn]) {
      const exactOne = split === undefined ? exactTurn : () => one;
      const read = convertTurn(one, place, { media, shown, roles: context.mapping.roles, exact: exactOne });
      if ("code" in read) return read;
      messages.push(read);
    }
  }
  return { messages, media, ...shown, unusedKeys };
}

interface TurnContext {
  readonly media: Media;
  readonly shown: { imageParts: number };
  readonly roles: Context["mapping"]["roles"];
  readonly exact: () => Row;
}

function convertTurn(turn: Row, place: string, context: TurnContext): Message | Refusal {
  const speaker = turn.role ?? turn.from ?? turn.speaker;
  if (typeof speaker !== "string") return refuse("MESSAGE_INVALID", `${place} has no role (\`role\` or \`from\`)`);
  const role = roleOf(speaker, context.roles);
  if (role === undefined) {
    return refuse(
      "ROLE_UNKNOWN",
      `${place} has the role "${shorten(speaker)}". Known roles: ${Object.keys(roles).join(", ")}. Name others in the mapping's \`roles\`.`,
    );
  }
  const key = (["content", "value", "text"] as const).find((each) => turn[each] !== undefined && turn[each] !== null);
  const written = key === undefined ? turn.content : turn[key];
  const calls = callsOf(turn, place, context.exact);
  if (typeof calls === "object") return calls;
  const images: number[] = [];
  const content = textOf(written ?? (calls === undefined ? undefined : ""), role, place, key ?? "content", context, images);
  if (typeof content !== "string") return content;
  if (role === "function_call") {
    const parsed = parseJson(content);
    if (typeof parsed !== "object" || parsed === null) {
      return refuse("MESSAGE_INVALID", `${place} is a function call, but its content is not the JSON of one`);
    }
    return { role: "assistant", content: "", tool_calls: Array.isArray(parsed) ? content.trim() : `[${content.trim()}]` };
  }
  const message: Message = { role, content };
  if (typeof turn.name === "string") message.name = turn.name;
  if (typeof turn.tool_call_id === "string") message.tool_call_id = turn.tool_call_id;
  if (images.length > 0) Object.assign(message, settle(content, images));
  const train = turn.train ?? turn.loss ?? undefined;
  const weight = turn.weight ?? undefined;
  if ((train !== undefined && typeof train !== "boolean") || (weight !== undefined && weight !== 0 && weight !== 1)) {
    return refuse("MESSAGE_INVALID", `${place}: \`train\` must be true or false, \`weight\` must be 0 or 1`);
  }
  if (role !== "assistant") {
    if (train === true || weight === 1) return refuse("MESSAGE_INVALID", `${place} is not the assistant's, so it cannot be trained on`);
    return message;
  }
  if (calls !== undefined) message.tool_calls = calls;
  const reasoning = turn.reasoning_content ?? turn.reasoning ?? turn.thinking;
  if (typeof reasoning === "string" && !isBlank(reasoning)) message.reasoning = reasoning;
  if (train !== undefined) message.train = train;
  if (weight !== undefined) message.weight = weight;
  return message;
}

function roleOf(speaker: string, others: TurnContext["roles"]): Message["role"] | "function_call" | undefined {
  if (others !== undefined && Object.hasOwn(others, speaker)) return others[speaker];
  if (Object.hasOwn(roles, speaker)) return roles[speaker];
  const plain = speaker.trim().toLowerCase();
  return Object.hasOwn(roles, plain) ? roles[plain] : undefined;
}

/** @returns a turn's tool calls as the JSON of a list; undefined: it has none. */
function callsOf(turn: Row, place: string, exact: () => Row): string | undefined | Refusal {
  for (const key of ["tool_calls", "function_call"] as const) {
    const calls = turn[key];
    if (calls === undefined || calls === null || (Array.isArray(calls) && calls.length === 0)) continue;
    if (typeof calls === "string" && isBlank(calls)) continue;
    const isText = typeof calls === "string";
    const value = isText ? parseJson(calls) : calls;
    const many = Array.isArray(value) ? value : [value];
    if (!many.every((call) => isObject(call))) {
      return refuse("MESSAGE_INVALID", `${place}: \`${key}\` is ${nameOf(calls)}; it must be a list of calls, or one as JSON text`);
    }
    if (isDeeperThan(value, deepest)) return refuse("NESTED_TOO_DEEPLY", `${place}: \`${key}\` is nested more than ${deepest} levels deep`);
    const json = isText ? calls.trim() : JSON.stringify(exact()[key]);
    return Array.isArray(value) ? json : `[${json}]`;
  }
  return undefined;
}

/**
 * Joins OpenAI's content parts with newlines, as vLLM does for templates that take text. `<think>` inside a content stays there:
 * templates that know it separate it themselves, and for other templates it must stay text so that the model learns it.
 */
function textOf(
  written: unknown,
  role: Message["role"] | "function_call",
  place: string,
  key: string,
  { media, shown, exact }: TurnContext,
  images: number[],
): string | Refusal {
  if (typeof written === "string") return written;
  if (Array.isArray(written) && written.every((part) => typeof part === "string" || (isObject(part) && typeof part.type === "string"))) {
    const said: string[] = [];
    const isShowing = (written as (string | Row)[]).some((part) => typeof part === "object" && /image/.test(part.type as string));
    for (const part of written as (string | Row)[]) {
      if (typeof part === "string") said.push(unmark(part, !isShowing));
      else if (typeof part.text === "string" && /^(?:input_|output_)?text$/.test(part.type as string))
        said.push(unmark(part.text, !isShowing));
      else {
        const isImage = /^(?:input_)?image(?:_url)?$/.test(part.type as string);
        const held: unknown = part.image_url ?? part.image ?? part.url ?? part.path ?? undefined;
        if (isImage && held === undefined) {
          // As datasets for TRL have it: the row has its images in a field of their own.
          shown.imageParts++;
          said.push(imageMark);
          continue;
        }
        const image = isImage ? refOf(held) : undefined;
        if (image === undefined) {
          return refuse(
            "CONTENT_NOT_TEXT",
            `${place} holds a part of type "${shorten(part.type as string)}"; text, image URLs and calls of tools can be read`,
          );
        }
        images.push(media.push({ type: "image", ref: image }) - 1);
        said.push(pictureMark);
      }
    }
    // Texts side by side are lines; a picture between them separates them itself.
    const isText = (one: string | undefined): boolean => one !== pictureMark && one !== imageMark;
    return said.reduce((all, one, at) => all + (at > 0 && isText(one) && isText(said[at - 1]) ? "\n" : "") + one, "");
  }
  // The result of a tool may be data: templates show it as JSON.
  if (role === "tool" && typeof written === "object" && written !== null) {
    if (isDeeperThan(written, deepest)) return refuse("NESTED_TOO_DEEPLY", `${place} is nested more than ${deepest} levels deep`);
    return JSON.stringify(exact()[key]);
  }
  return refuse("CONTENT_NOT_TEXT", `the content of ${place} is ${nameOf(written)}; it must be text`);
}

/* --- whole rows --- */

interface ConversationValues {
  readonly messages: string | readonly unknown[];
  readonly system: string | undefined;
  readonly tools?: string | readonly unknown[] | undefined;
  readonly image?: unknown;
}

/** Reads the messages of a field that is a list, or the JSON text of a list. */
export function readTurns(given: string | readonly unknown[], field: string, context: Context): Turns | Refusal {
  if (typeof given !== "string") return convertTurns(given, field, context);
  const parsed = parseJson(given);
  if (!Array.isArray(parsed)) {
    return refuse(
      "MESSAGE_INVALID",
      `\`${context.names[field] ?? field}\` is text; it must be a list of messages, or one as JSON text${/^\s*\[\s*\{\s*'/.test(given) ? ". These are Python's quotes: write the column with json.dumps" : ""}`,
    );
  }
  let exact: unknown;
  return convertTurns(parsed, field, context, () => (exact ??= parseExact(given)));
}

/** Gemini's shape: `contents` of turns with `parts`, the system prompt apart (`systemInstruction`). Texts and calls of functions can be read. */
export function convertContents(
  values: { contents: readonly unknown[]; system_instruction: unknown; tools: string | readonly unknown[] | undefined },
  context: Context,
): Conversion {
  const read: Row[] = [];
  const hasTools = values.contents.some((turn) => isObject(turn) && Array.isArray(turn.parts) && turn.parts.some(isGeminiTool));
  const contents = (hasTools ? context.exact("contents") : values.contents) as readonly unknown[];
  for (const [index, turn] of contents.entries()) {
    const own = isObject(turn) && Array.isArray(turn.parts) ? (turn.parts as unknown[]).filter(isGeminiTool) : [];
    const others =
      own.length === 0 ? turn : { ...(turn as Row), parts: (turn as { parts: unknown[] }).parts.filter((part) => !isGeminiTool(part)) };
    const said = textOfParts(others, `message ${index + 1}`);
    if (typeof said !== "string") return said;
    // Gemini leaves the role out where there is a single question.
    const { role = "user", parts: _parts, ...rest } = others as Row;
    if (own.length === 0) read.push({ ...rest, role, content: said });
    else read.push(...turnsOfGeminiParts(own, { ...rest, role }, said === "" ? undefined : said));
  }
  const system =
    typeof values.system_instruction === "object" && values.system_instruction !== null
      ? textOfParts(values.system_instruction, "`system_instruction`")
      : (values.system_instruction as string | undefined);
  if (typeof system === "object") return system;
  const messages = { messages: read, system, tools: values.tools };
  const names = { ...context.names, messages: context.names.contents ?? "contents" };
  return convertConversation(messages, { ...context, names, exact: (field) => (field === "messages" ? read : context.exact(field)) });
}

/** A question, and the calls of functions that answer it (xLAM). */
export function convertToolCalls(
  values: { question: string; calls: string | readonly unknown[]; tools: string | readonly unknown[]; system: string | undefined },
  context: Context,
): Conversion {
  const calls = callsOfList(values.calls, context.names.calls ?? "calls", () => context.exact("calls"));
  if (typeof calls === "object") return calls;
  const turns = [
    { role: "user", content: values.question },
    { role: "assistant", content: "", tool_calls: calls },
  ];
  return convertConversation({ messages: turns, system: values.system, tools: values.tools }, context);
}

/** glaive-function-calling: turns and functions as text. */
export function convertGlaive(values: { chat: string; system: string | undefined }, context: Context): Conversion {
  const turns = turnsOfGlaive(values.chat);
  if ("code" in turns) return turns;
  const { system, tools, ...fault } = {
    system: undefined,
    tools: undefined,
    ...(values.system === undefined ? {} : systemOfGlaive(values.system)),
  };
  if ("code" in fault) return fault;
  return convertConversation({ messages: turns, system, tools }, { ...context, exact: () => turns });
}

function textOfParts(turn: unknown, place: string): string | Refusal {
  if (!isObject(turn) || !Array.isArray(turn.parts)) {
    return refuse("MESSAGE_INVALID", `${place} is ${nameOf(turn)} without \`parts\`; {"role": …, "parts": [{"text": …}]} is expected`);
  }
  const said: string[] = [];
  for (const part of turn.parts as unknown[]) {
    if (!isObject(part) || typeof part.text !== "string") {
      const kinds = isObject(part) ? Object.keys(part).map(shorten).join(", ") : nameOf(part);
      return refuse("CONTENT_NOT_TEXT", `${place} holds a part with ${kinds}; text and calls of functions can be read`);
    }
    said.push(part.text);
  }
  return said.join("\n");
}

export function convertConversation(values: ConversationValues, context: Context): Conversion {
  const turns = readTurns(values.messages, "messages", context);
  if ("code" in turns) return turns;
  const { messages, media } = turns;
  const problem = putSystem(values.system, messages) ?? judgeMessages(messages);
  if (problem !== undefined) return problem;
  const body: Body = { kind: "chat", task: "chat", messages };
  const tools = toolsOf(values.tools, context);
  if (typeof tools === "object") return tools;
  if (tools !== undefined) body.tools = tools;
  const images = mediaOf(values.image, context.names.image ?? "image");
  if ("code" in images) return images;
  const misplaced = placeImages(messages, media, images, { parts: turns.imageParts });
  if (misplaced !== undefined) return misplaced;
  if (media.length > 0) body.media = media;
  return { body, unusedKeys: [...turns.unusedKeys] };
}

export function putSystem(system: string | undefined, messages: Message[]): Refusal | undefined {
  if (system === undefined || system === "") return undefined;
  const first = messages[0];
  if (first?.role !== "system") messages.unshift({ role: "system", content: system });
  else if (first.content !== system) {
    return refuse("SYSTEM_TWICE", "`system` and the first message are two different system prompts. Keep one.");
  }
  return undefined;
}

/** @returns the tools as JSON; undefined: there are none. */
export function toolsOf(tools: string | readonly unknown[] | undefined, context: Context): string | undefined | Refusal {
  if (tools === undefined || tools.length === 0 || (typeof tools === "string" && isBlank(tools))) return undefined;
  const value = typeof tools === "string" ? parseJson(tools) : tools;
  if (value === undefined) return refuse("TOOLS_INVALID", "`tools` is text, but not JSON");
  const many = Array.isArray(value) ? value : [value];
  if (!many.every((tool) => isObject(tool))) return refuse("TOOLS_INVALID", "`tools` must be a list of objects, one for each tool");
  if (isDeeperThan(value, deepest)) return refuse("NESTED_TOO_DEEPLY", `\`tools\` is nested more than ${deepest} levels deep`);
  if (many.length === 0) return undefined;
  const written = typeof tools === "string" ? parseExact(tools) : context.exact("tools");
  const listed = (Array.isArray(written) ? written : [written]) as Row[];
  const read = asOpenAiTools(listed);
  if (read.some((tool, index) => tool !== listed[index])) return JSON.stringify(read);
  const json = typeof tools === "string" ? tools : JSON.stringify(written);
  return Array.isArray(value) ? json : `[${json}]`;
}

export function judgeMessages(messages: readonly Message[]): Refusal | undefined {
  let asked = false;
  let said = false;
  let last: Message | undefined;
  let answered = false;
  for (const message of messages) {
    if (message.role === "user") {
      asked = true;
      if (!isBlank(message.content) || message.media !== undefined) said = true;
    } else if (message.role === "assistant") {
      answered = true;
      if (isTrainedTurn(message)) last = message;
    }
  }
  if (!asked) return refuse("NO_USER_TURN", "the conversation has no user turn");
  if (!answered) return refuse("NO_ASSISTANT_TURN", "the conversation has no assistant turn");
  if (last === undefined)
    return refuse("NOTHING_TRAINED", "every assistant turn has `train: false` or `weight: 0`: nothing would be learned");
  if (isBlank(last.content) && last.tool_calls === undefined) {
    return refuse("EMPTY_ANSWER", "the last assistant turn is empty: there is nothing to learn from it");
  }
  if (!said) return refuse("EMPTY_PROMPT", "every user turn is empty");
  return undefined;
}

/** Reads the earlier turns in the history field beside a question: messages, or pairs of question and answer. */
export function readHistory(history: readonly unknown[] | undefined, context: Context): Turns | Refusal {
  const none = { media: [], imageParts: 0, unusedKeys: new Set<string>() };
  if (history === undefined || history.length === 0) return { messages: [], ...none };
  if (history.every((pair) => Array.isArray(pair))) {
    const messages: Message[] = [];
    for (const [index, pair] of (history as unknown[][]).entries()) {
      const [question, answer] = pair;
      if (pair.length !== 2 || typeof question !== "string" || typeof answer !== "string") {
        return refuse("HISTORY_INVALID", `\`history\` ${index + 1} is no pair of texts: question and answer`);
      }
      messages.push({ role: "user", content: question }, { role: "assistant", content: answer });
    }
    return { messages, ...none };
  }
  return convertTurns(history, "history", context);
}
