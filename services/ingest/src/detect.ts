/**
 * What one row is, and what it becomes. Pure.
 *
 * Formats are an ordered list of typed signatures: a signature matches when every field it needs is there with its type.
 * The first match wins; matches of different kinds make the row ambiguous. A new format is one entry in `signatures`.
 */
import { isTrainedTurn, type Message, type Rec } from "@loraline/contracts";

export type Body = Pick<Rec, "kind" | "task" | "messages" | "prompt" | "completion" | "text" | "tools">;
/** Why a row gives no record. */
export interface Refusal {
  readonly code: string;
  readonly message: string;
}
export interface Detected {
  readonly format: string;
  readonly body: Body;
  readonly unusedKeys: readonly string[];
  /** The columns that the profile `seed` joins by itself. */
  readonly seed?: { instruction: string; input: string; output: string };
}
export const isRefusal = (value: Detected | Refusal): value is Refusal => "code" in value;

type Row = Readonly<Record<string, unknown>>;

/* --- fields --- */

interface Type<T> {
  readonly called: string;
  readonly is: (value: unknown) => value is T;
}
const text: Type<string> = { called: "text", is: (value) => typeof value === "string" };
const list: Type<readonly unknown[]> = { called: "a list", is: (value) => Array.isArray(value) };
const textOrList: Type<string | readonly unknown[]> = {
  called: "a list or JSON text",
  is: (value) => typeof value === "string" || Array.isArray(value),
};

interface Field<T = unknown, Optional extends boolean = boolean> {
  /** Names that mean this field; the first that is there counts. */
  readonly keys: readonly [string, ...string[]];
  readonly type: Type<T>;
  readonly optional: Optional;
}
const needs = <T>(type: Type<T>, ...keys: [string, ...string[]]): Field<T, false> => ({ keys, type, optional: false });
const may = <T>(type: Type<T>, ...keys: [string, ...string[]]): Field<T, true> => ({ keys, type, optional: true });

type Fields = Readonly<Record<string, Field>>;
type Values<F extends Fields> = {
  readonly [K in keyof F]: F[K] extends Field<infer T, infer Optional> ? (Optional extends true ? T | undefined : T) : never;
};

/** The row again, with numbers as they were written; only JSON that is kept as text needs it. */
export type ExactRow = () => Row;

interface Converted {
  readonly body: Body;
  readonly seed?: NonNullable<Detected["seed"]>;
  readonly unusedKeys?: readonly string[];
}

export interface Signature {
  readonly format: string;
  readonly kind: Rec["kind"];
  readonly fields: Fields;
  readonly convert: (values: never, exact: ExactRow) => Converted | Refusal;
}
const signature = <F extends Fields>(
  def: Omit<Signature, "fields" | "convert"> & {
    readonly fields: F;
    readonly convert: (values: Values<F>, exact: ExactRow) => Converted | Refusal;
  },
): Signature => def;

/* --- the formats --- */

export const signatures: readonly Signature[] = [
  signature({
    format: "conversation",
    kind: "chat",
    fields: {
      turns: needs(list, "messages", "conversation", "conversations"),
      system: may(text, "system"),
      tools: may(textOrList, "tools"),
    },
    convert: convertConversation,
  }),
  signature({
    format: "instruction",
    kind: "chat",
    fields: {
      instruction: needs(text, "instruction"),
      output: needs(text, "output"),
      input: may(text, "input"),
      system: may(text, "system"),
    },
    convert({ instruction, input = "", output, system }) {
      if (isBlank(output)) return refuse("EMPTY_ANSWER", "`output` is empty: there is nothing to learn from it");
      if (isBlank(instruction) && isBlank(input)) return refuse("EMPTY_PROMPT", "`instruction` and `input` are both empty");
      const messages: Message[] = [];
      if (system !== undefined) messages.push({ role: "system", content: system });
      messages.push(
        { role: "user", content: input === "" ? instruction : `${instruction}\n${input}` },
        { role: "assistant", content: output },
      );
      return { body: { kind: "chat", task: "instruct", messages }, seed: { instruction, input, output } };
    },
  }),
  signature({
    format: "prompt-completion",
    kind: "completion",
    fields: { prompt: needs(text, "prompt"), completion: needs(text, "completion") },
    convert({ prompt, completion }) {
      if (isBlank(completion)) return refuse("EMPTY_ANSWER", "`completion` is empty: there is nothing to learn from it");
      return { body: { kind: "completion", task: "completion", prompt, completion } };
    },
  }),
];

const roles: Readonly<Record<string, Message["role"] | "function_call">> = {
  system: "system",
  developer: "system",
  user: "user",
  human: "user",
  assistant: "assistant",
  gpt: "assistant",
  bot: "assistant",
  model: "assistant",
  chatgpt: "assistant",
  tool: "tool",
  observation: "tool",
  function_response: "tool",
  function_call: "function_call",
};
const turnKeys = new Set(["role", "content", "from", "value", "name", "tool_calls", "tool_call_id", "train", "weight"]);

function convertConversation(
  { turns, system, tools }: { turns: readonly unknown[]; system: string | undefined; tools: string | readonly unknown[] | undefined },
  exact: ExactRow,
): Converted | Refusal {
  const messages: Message[] = [];
  const unusedKeys = new Set<string>();
  for (const [index, turn] of turns.entries()) {
    const place = `message ${index + 1}`;
    if (!isObject(turn)) return refuse("MESSAGE_INVALID", `${place} is ${nameOf(turn)}; an object with role and content is expected`);
    // One object for a question and its answer.
    if (typeof turn.human === "string" && typeof turn.assistant === "string") {
      messages.push({ role: "user", content: turn.human }, { role: "assistant", content: turn.assistant });
      for (const key of Object.keys(turn)) if (key !== "human" && key !== "assistant") unusedKeys.add(`messages[].${key}`);
      continue;
    }
    for (const key of Object.keys(turn)) if (!turnKeys.has(key)) unusedKeys.add(`messages[].${key}`);
    const read = convertTurn(
      turn,
      place,
      () => ((exact().messages ?? exact().conversation ?? exact().conversations) as Row[])[index] as Row,
    );
    if ("code" in read) return read;
    messages.push(read);
  }
  if (system !== undefined) {
    const first = messages[0];
    if (first?.role !== "system") messages.unshift({ role: "system", content: system });
    else if (first.content !== system) {
      return refuse("SYSTEM_TWICE", "`system` and the first message are two different system prompts. Keep one.");
    }
  }
  const problem = judgeMessages(messages);
  if (problem !== undefined) return problem;
  const body: Body = { kind: "chat", task: "chat", messages };
  if (typeof tools === "string" && tools !== "" && !isJson(tools)) return refuse("TOOLS_INVALID", "`tools` is text, but not JSON");
  if (tools !== undefined && tools.length > 0) body.tools = typeof tools === "string" ? tools : JSON.stringify(exact().tools);
  return { body, unusedKeys: [...unusedKeys] };
}

function convertTurn(turn: Row, place: string, exact: () => Row): Message | Refusal {
  const speaker = turn.role ?? turn.from;
  if (typeof speaker !== "string") return refuse("MESSAGE_INVALID", `${place} has no role (\`role\` or \`from\`)`);
  const role = Object.hasOwn(roles, speaker.toLowerCase()) ? roles[speaker.toLowerCase()] : undefined;
  if (role === undefined) {
    return refuse("ROLE_UNKNOWN", `${place} has the role "${shorten(speaker)}". Known roles: ${Object.keys(roles).join(", ")}.`);
  }
  const written = turn.content ?? turn.value;
  const hasCalls = Array.isArray(turn.tool_calls) && turn.tool_calls.length > 0;
  const content = written ?? (hasCalls ? "" : undefined);
  if (typeof content !== "string") {
    return refuse("CONTENT_NOT_TEXT", `the content of ${place} is ${nameOf(written)}; it must be text`);
  }
  if (role === "function_call") {
    if (!isJson(content)) return refuse("MESSAGE_INVALID", `${place} is a function call, but its content is not JSON`);
    return { role: "assistant", content: "", tool_calls: content };
  }
  const message: Message = { role, content };
  if (typeof turn.name === "string") message.name = turn.name;
  if (typeof turn.tool_call_id === "string") message.tool_call_id = turn.tool_call_id;
  if (hasCalls) message.tool_calls = JSON.stringify(exact().tool_calls);
  const { train, weight } = turn;
  if ((train !== undefined && typeof train !== "boolean") || (weight !== undefined && weight !== 0 && weight !== 1)) {
    return refuse("MESSAGE_INVALID", `${place}: \`train\` must be true or false, \`weight\` must be 0 or 1`);
  }
  if (role !== "assistant") {
    if (train === true || weight === 1) return refuse("MESSAGE_INVALID", `${place} is not the assistant's, so it cannot be trained on`);
    return message;
  }
  if (train !== undefined) message.train = train;
  if (weight !== undefined) message.weight = weight;
  return message;
}

function judgeMessages(messages: readonly Message[]): Refusal | undefined {
  const users = messages.filter((message) => message.role === "user");
  if (users.length === 0) return refuse("NO_USER_TURN", "the conversation has no user turn");
  if (!messages.some((message) => message.role === "assistant"))
    return refuse("NO_ASSISTANT_TURN", "the conversation has no assistant turn");
  const last = messages.findLast(isTrainedTurn);
  if (last === undefined)
    return refuse("NOTHING_TRAINED", "every assistant turn has `train: false` or `weight: 0`: nothing would be learned");
  if (isBlank(last.content) && last.tool_calls === undefined) {
    return refuse("EMPTY_ANSWER", "the last assistant turn is empty: there is nothing to learn from it");
  }
  if (users.every((user) => isBlank(user.content))) return refuse("EMPTY_PROMPT", "every user turn is empty");
  return undefined;
}

/* --- detection --- */

/** Tells what `value` (one parsed row) is and converts it. */
export function detect(value: unknown, exact: ExactRow): Detected | Refusal {
  if (!isObject(value)) return refuse("NOT_AN_OBJECT", `the row is ${nameOf(value)}; a JSON object is expected`);
  const normal = normaliseKeys(value);
  if (!("row" in normal)) return normal;
  const { row } = normal;
  const matches = signatures.filter((candidate) => Object.values(candidate.fields).every((field) => fits(field, row)));
  const [first] = matches;
  if (first === undefined) return explainMiss(row);
  const other = matches.find((match) => match.kind !== first.kind);
  if (other !== undefined) {
    const message = `the row fits two formats, "${first.format}" and "${other.format}" (${keysOf(first)}; ${keysOf(other)}). Remove the columns that are not meant.`;
    return refuse("AMBIGUOUS", message);
  }
  const values = Object.fromEntries(Object.entries(first.fields).map(([name, field]) => [name, valueOf(field, row)]));
  const converted = first.convert(values as never, () => (normaliseKeys(exact()) as { row: Row }).row);
  if ("code" in converted) return converted;
  const broken = textsOf(converted.body).find((part) => !part.isWellFormed());
  if (broken !== undefined) {
    return refuse("LONE_SURROGATE", `"${shorten(broken)}" holds half of a character (a lone surrogate escape). Repair the escape.`);
  }
  const used = new Set(Object.values(first.fields).map((field) => keyOf(field, row)));
  const unusedKeys = Object.keys(row).filter((key) => !used.has(key) && row[key] !== null);
  return {
    format: first.format,
    body: converted.body,
    unusedKeys: [...unusedKeys, ...(converted.unusedKeys ?? [])],
    ...(converted.seed === undefined ? {} : { seed: converted.seed }),
  };
}

const keyOf = (field: Field, row: Row): string | undefined => field.keys.find((key) => Object.hasOwn(row, key) && row[key] !== null);
const valueOf = (field: Field, row: Row): unknown => {
  const key = keyOf(field, row);
  return key === undefined ? undefined : row[key];
};
const fits = (field: Field, row: Row): boolean => {
  const value = valueOf(field, row);
  return value === undefined ? field.optional : field.type.is(value);
};

const plainKey = /^[a-z0-9_]+$/;
/** ` Instruction` is `instruction`. Two keys that become one are refused. */
function normaliseKeys(row: Row): { row: Row } | Refusal {
  const keys = Object.keys(row);
  if (keys.every((key) => plainKey.test(key))) return { row };
  const normal = new Map<string, unknown>();
  for (const key of keys) {
    const name = key
      .replace(/^\uFEFF/, "")
      .normalize("NFKC")
      .trim()
      .toLowerCase();
    if (normal.has(name)) return refuse("KEY_TWICE", `two keys mean \`${shorten(name)}\`. Keep one.`);
    normal.set(name, row[key]);
  }
  return { row: Object.fromEntries(normal) };
}

/** The signature that comes closest decides what the row is told to change. */
function explainMiss(row: Row): Refusal {
  const near = signatures
    .map((candidate) => {
      const needed = Object.values(candidate.fields).filter((field) => !field.optional);
      return { candidate, share: needed.filter((field) => keyOf(field, row) !== undefined).length / needed.length };
    })
    .reduce((best, next) => (next.share > best.share ? next : best));
  const found = Object.keys(row).slice(0, 12).map(shorten).join(", ") || "none";
  if (near.share === 0) {
    const known = signatures.map((candidate) => keysOf(candidate)).join("; ");
    return refuse("FORMAT_UNKNOWN", `no known format. Keys found: ${found}. Known: ${known}.`);
  }
  const faults = Object.values(near.candidate.fields).flatMap((field) => {
    const value = valueOf(field, row);
    if (value === undefined) return field.optional ? [] : [`\`${field.keys[0]}\` is missing`];
    return field.type.is(value) ? [] : [`\`${keyOf(field, row)}\` is ${nameOf(value)}; it must be ${field.type.called}`];
  });
  return refuse("FORMAT_UNKNOWN", `close to the format "${near.candidate.format}", but ${faults.join(", and ")}. Keys found: ${found}.`);
}

const keysOf = (candidate: Signature): string =>
  Object.values(candidate.fields)
    .filter((field) => !field.optional)
    .map((field) => field.keys.join("|"))
    .join(" + ");

function textsOf(body: Body): string[] {
  const texts = [body.prompt, body.completion, body.text, body.tools].filter((part) => part !== undefined);
  for (const message of body.messages ?? []) {
    texts.push(message.content);
    if (message.tool_calls !== undefined) texts.push(message.tool_calls);
    if (message.name !== undefined) texts.push(message.name);
  }
  return texts;
}

const refuse = (code: string, message: string): Refusal => ({ code, message });
const isObject = (value: unknown): value is Row => typeof value === "object" && value !== null && !Array.isArray(value);
const isBlank = (value: string): boolean => value.trim() === "";
const shorten = (value: string): string => (value.length > 60 ? `${value.slice(0, 60)}…` : value).toWellFormed();
const isJson = (value: string): boolean => {
  try {
    JSON.parse(value);
    return true;
  } catch {
    return false;
  }
};
const nameOf = (value: unknown): string => {
  if (value === undefined) return "missing";
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "an object";
  if (typeof value === "string") return "text";
  return typeof value === "number" ? "a number" : typeof value === "boolean" ? "true or false" : typeof value;
};
