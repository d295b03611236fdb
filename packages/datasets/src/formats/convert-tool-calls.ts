/** Function calling in other shapes than OpenAI's, brought into that one: Anthropic's and Gemini's parts, glaive's text, xLAM's lists. Pure. */
import { parseExact, parseJson } from "../containers/exact-json.ts";
import { deepest, isBlank, isDeeperThan, isObject, type Refusal, refuse, type Row } from "./signature.ts";

/* --- tools --- */

/**
 * Definitions of tools as chat templates and engines expect them: `{type: "function", function: {name, description, parameters}}`. What is
 * written so already, or is in no known shape, stays as it is.
 */
export const asOpenAiTools = (tools: readonly Row[]): Row[] =>
  tools.flatMap((tool): Row[] => {
    const declared = tool.functionDeclarations ?? tool.function_declarations;
    if (Array.isArray(declared)) return asOpenAiTools((declared as unknown[]).filter(isObject).map(withLowerTypes));
    if (typeof tool.name !== "string" || tool.function !== undefined || (tool.type !== undefined && tool.type !== "function"))
      return [tool];
    const { type: _type, input_schema: schema, parameters = schema, ...rest } = tool;
    return [
      {
        type: "function",
        function: {
          ...rest,
          ...(parameters === undefined ? {} : { parameters: isObject(parameters) ? asSchema(parameters) : parameters }),
        },
      },
    ];
  });

/** Gemini spells types in capitals: `OBJECT`. */
function withLowerTypes(value: Row): Row {
  const lower = (each: unknown): unknown => (Array.isArray(each) ? each.map(lower) : isObject(each) ? withLowerTypes(each) : each);
  return Object.fromEntries(
    Object.entries(value).map(([key, held]) => [key, key === "type" && typeof held === "string" ? held.toLowerCase() : lower(held)]),
  );
}

const pythonTypes: Readonly<Record<string, string>> = {
  str: "string",
  int: "integer",
  float: "number",
  bool: "boolean",
  list: "array",
  dict: "object",
};
/** xLAM lists the parameters by name, with Python's types: `{"city": {"type": "str, optional"}}`. */
function asSchema(parameters: Row): Row {
  const given = Object.entries(parameters);
  const isListed = given.length > 0 && given.every(([, held]) => isObject(held) && typeof held.type === "string");
  if (!isListed || "properties" in parameters) return parameters;
  const typeOf = (text: string): string => {
    const name = (/^[A-Za-z]+/.exec(text)?.[0] ?? text).toLowerCase();
    return pythonTypes[name] ?? name;
  };
  const properties = Object.fromEntries(
    given.map(([name, held]) => [name, { ...(held as Row), type: typeOf((held as { type: string }).type) }]),
  );
  const required = given.filter(([, held]) => !/optional/i.test((held as { type: string }).type) && !("default" in (held as Row)));
  return { type: "object", properties, ...(required.length === 0 ? {} : { required: required.map(([name]) => name) }) };
}

/* --- Anthropic --- */

const textIn = (parts: readonly unknown[]): string =>
  parts
    .flatMap((part) => (typeof part === "string" ? [part] : isObject(part) && typeof part.text === "string" ? [part.text] : []))
    .join("\n");

/**
 * A turn with Anthropic's parts for tools and thoughts, as OpenAI's turns: what tools said stands in turns of its own before the user's words.
 * @param exact - the same turn with numbers spelled as in the file.
 * @returns undefined: the turn has no such parts.
 */
export function splitAnthropicTurn(turn: Row, exact: () => Row): Row[] | undefined {
  const own = new Set(turn.role === "assistant" ? ["tool_use", "thinking"] : ["tool_result"]);
  const isOwn = (part: unknown): part is Row => isObject(part) && own.has(part.type as string);
  if (!Array.isArray(turn.content) || !(turn.content as unknown[]).some(isOwn)) return undefined;
  const { content, ...rest } = exact() as Row & { content: unknown[] };
  const others = content.filter((part) => !isOwn(part));
  const parts = content.filter(isOwn);
  if (turn.role !== "assistant") {
    const results = parts.map((part): Row => {
      const said = Array.isArray(part.content) ? textIn(part.content as unknown[]) : (part.content ?? "");
      return { role: "tool", content: said, tool_call_id: part.tool_use_id };
    });
    return others.length === 0 ? results : [...results, { ...rest, content: others }];
  }
  const calls = parts.filter(({ type }) => type === "tool_use");
  const thoughts = parts.flatMap(({ thinking }) => (typeof thinking === "string" ? [thinking] : []));
  return [
    {
      ...rest,
      content: others,
      ...(thoughts.length === 0 ? {} : { reasoning_content: thoughts.join("\n") }),
      ...(calls.length === 0
        ? {}
        : { tool_calls: calls.map(({ id, name, input = {} }) => ({ id, type: "function", function: { name, arguments: input } })) }),
    },
  ];
}

/* --- Gemini --- */

const callOf = (part: Row): unknown => part.functionCall ?? part.function_call;
const responseOf = (part: Row): unknown => part.functionResponse ?? part.function_response;

/** Whether a part of Gemini's calls a function, or says what one returned. */
export const isGeminiTool = (part: unknown): part is Row => isObject(part) && (isObject(callOf(part)) || isObject(responseOf(part)));

/** The turns that the tool parts of one of Gemini's turns are. @param said - its text parts, joined; undefined: it has none. */
export function turnsOfGeminiParts(parts: readonly Row[], rest: Row, said: string | undefined): Row[] {
  const calls = parts.map(callOf).filter(isObject);
  const results = parts.map(responseOf).filter(isObject);
  const turns: Row[] = results.map(({ name, response }) => ({ role: "tool", name, content: response ?? "" }));
  if (calls.length > 0) {
    turns.push({
      ...rest,
      content: said ?? "",
      tool_calls: calls.map(({ name, args = {} }) => ({ type: "function", function: { name, arguments: args } })),
    });
  } else if (said !== undefined) turns.push({ ...rest, content: said });
  return turns;
}

/* --- xLAM --- */

/** @returns the calls as the JSON of OpenAI's. */
export function callsOfList(given: string | readonly unknown[], name: string, exact: () => unknown): string | Refusal {
  const value = typeof given === "string" ? parseJson(given) : given;
  if (
    !Array.isArray(value) ||
    value.length === 0 ||
    !value.every((call) => isObject(call) && typeof (call.name ?? call.function) !== "undefined")
  )
    return refuse("MESSAGE_INVALID", `\`${name}\` must be a list of calls, {"name": …, "arguments": …}, or one as JSON text`);
  if (isDeeperThan(value, deepest)) return refuse("NESTED_TOO_DEEPLY", `\`${name}\` is nested more than ${deepest} levels deep`);
  const written = (typeof given === "string" ? parseExact(given) : exact()) as Row[];
  return JSON.stringify(
    written.map((call) =>
      isObject(call.function)
        ? call
        : { type: "function", function: { name: call.name, arguments: call.arguments ?? call.parameters ?? {} } },
    ),
  );
}

/* --- glaive --- */

const speakers = { USER: "user", ASSISTANT: "assistant", "FUNCTION RESPONSE": "tool" } as const;
const speaker = /(?:^|\n)[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*/g;

/**
 * The turns of glaive-function-calling's `chat`: `USER: … ASSISTANT: <functioncall> {"name": …, "arguments": '…'} FUNCTION RESPONSE: …`.
 * @returns turns as OpenAI writes them.
 */
export function turnsOfGlaive(chat: string): Row[] | Refusal {
  const marks = [...chat.matchAll(speaker)];
  if (marks[0]?.[1] !== "USER" || chat.slice(0, marks[0].index).trim() !== "")
    return refuse("MESSAGE_INVALID", "`chat` does not begin with `USER:`; turns of USER, ASSISTANT and FUNCTION RESPONSE are expected");
  const turns: Row[] = [];
  for (const [index, mark] of marks.entries()) {
    const end = marks[index + 1]?.index ?? chat.length;
    const said = chat
      .slice(mark.index + mark[0].length, end)
      .replaceAll("<|endoftext|>", "")
      .trim();
    const role = speakers[mark[1] as keyof typeof speakers];
    const at = role === "assistant" ? said.indexOf("<functioncall>") : -1;
    if (at === -1) {
      turns.push({ role, content: said });
      continue;
    }
    const call = glaiveCall(said.slice(at + "<functioncall>".length).trim());
    if (call === undefined) return refuse("MESSAGE_INVALID", `message ${index + 1}: what follows <functioncall> is not the JSON of a call`);
    turns.push({ role, content: said.slice(0, at).trim(), tool_calls: [{ type: "function", function: call }] });
  }
  return turns;
}

/** A call whose arguments are JSON in single quotes, in which quotes of the text are escaped. */
function glaiveCall(text: string): Row | undefined {
  const quoted = /^\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*'(.*)'\s*\}$/s.exec(text);
  if (quoted === null) {
    const plain = parseJson(text);
    return isObject(plain) && typeof plain.name === "string" ? { name: plain.name, arguments: plain.arguments ?? {} } : undefined;
  }
  const written = (quoted[2] as string).replaceAll(String.raw`\'`, "'");
  return isObject(parseJson(written)) ? { name: parseJson(quoted[1] as string), arguments: written } : undefined;
}

/** glaive's system prompt: a sentence, and perhaps the functions as JSON objects one behind the other. */
export function systemOfGlaive(text: string): { system: string; tools: string | undefined } | Refusal {
  const plain = text.replace(/^\s*SYSTEM:\s*/, "");
  const start = plain.search(/\{\s*"name"/);
  if (start === -1) return { system: plain.trim(), tools: undefined };
  const objects: string[] = [];
  let [depth, from, inString] = [0, start, false];
  for (let at = start; at < plain.length; at++) {
    const character = plain[at];
    if (inString) {
      if (character === "\\") at++;
      else if (character === '"') inString = false;
    } else if (character === '"') inString = true;
    else if (character === "{" && depth++ === 0) from = at;
    else if (character === "}" && --depth === 0) objects.push(plain.slice(from, at + 1));
  }
  if (depth !== 0 || objects.some((object) => !isObject(parseJson(object))))
    return refuse("TOOLS_INVALID", "the functions in `system` are not JSON");
  // The base's template says itself that there are functions.
  const said = plain.slice(0, start).trim();
  const beforeDash = said.replace(/-$/, "").trimEnd();
  const itself = beforeDash.replace(/with access to the following functions\. Use them if required$/i, "");
  const system = itself === beforeDash ? said : `${itself.trimEnd().replace(/,$/, "")}.`;
  return { system: isBlank(system) ? "" : system, tools: `[${objects.join(",")}]` };
}
