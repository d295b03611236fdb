/**
 * Renders conversations by the base's own chat template, with `@huggingface/jinja`, as the server would, and finds the trained turns in
 * the text. Works for any template that passes the check below; families have a faster way (render-turns.ts).
 */
import { randomUUID } from "node:crypto";
import { Template } from "@huggingface/jinja";
import { isTrainedTurn, type Message } from "@loraline/contracts";
import { isPythonNumber, type Json, parseExact } from "./python-json.ts";
import type { Base } from "../encoder/load-base.ts";
import { partsOf } from "./content-parts.ts";
import { controlPattern, createSplit, type Piece } from "./pieces.ts";

export interface Conversation {
  readonly messages: readonly Message[];
  /** Verbatim JSON. */
  readonly tools?: string | undefined;
}

/** One sequence of a conversation. */
export interface Sample {
  readonly pieces: readonly Piece[];
  /** The sequence has the messages before this index. */
  readonly end: number;
  /** Indices of the trained turns. */
  readonly trained: readonly number[];
}
export interface Refused {
  readonly code: string;
  readonly message: string;
}
export interface Rendered {
  readonly samples: readonly Sample[];
  readonly notes: readonly Refused[];
}

export interface Jinja {
  /** @returns the text with its seals. @throws Error that the template raises, or for features that are not supported. */
  text(conversation: Conversation, forGeneration: boolean): string;
  /** Removes the seals from a text. */
  unseal(text: string): string;
  render(conversation: Conversation): Rendered | Refused;
  prompt(conversation: Conversation): Piece[];
}

/** The day that templates print as today. It is fixed, because the same records must always give the same tokens. */
const today = new Date(Date.UTC(2024, 6, 26));

/** An empty answer is not trained: the model would learn to say nothing. */
export const isTaught = (message: Message): boolean =>
  isTrainedTurn(message) && (message.content.trim() !== "" || message.tool_calls !== undefined || (message.reasoning ?? "").trim() !== "");

/**
 * Whether a template goes through the parts of contents, as those of multimodal bases do. vLLM gives such templates `[{"type": "text",
 * "text": …}]` for each text, and others the text itself.
 */
const goesThroughContents = (source: string): boolean => /\{%-?\s*for\s+\w+\s+in\s+[^%]*\bcontent\b/.test(source);

/** @throws Error when the template cannot be parsed. */
export function createJinja(
  { template, special, encoder, vision }: Pick<Base, "template" | "special" | "encoder" | "vision">,
  stopIds: ReadonlySet<number>,
): Jinja {
  // Line ends are normalised, as Python's jinja does.
  const source = (template ?? "").replaceAll(/\r\n?/g, "\n").replaceAll(/\bstrftime_now\b/g, "loraline_today");
  const parsed = new Template(source);
  // Some templates need text here, such as DeepSeek's `'\n' + tool['function']['arguments'] + '\n'`.
  const argumentsAreText = !source.includes("tojson") && /\+[^+|{}]*\barguments\b['"\]]*\s*(?:\+|-?\}\}|-?%\})/.test(source);
  const asParts = goesThroughContents(source);
  const names = Object.fromEntries(Object.entries(special).map(([name, token]) => [`${name}_token`, token ?? ""]));
  const split = createSplit(encoder.controls);
  const controls = controlPattern(encoder.controls);
  const stops = controlPattern(new Map([...encoder.controls].filter(([, id]) => stopIds.has(id))));
  // A seal is put inside of each spelling of a control token in the data, and removed from the rendered text.
  const mark = `\uFDD0${randomUUID()}`;

  const unseal = (text: string): string => (text.includes(mark) ? text.replaceAll(mark, "") : text);
  const sealed = (text: string): string =>
    controls === undefined ? text : text.replace(controls, (token) => token.slice(0, 1) + mark + token.slice(1));
  const seal = (value: Json): Json => {
    if (typeof value === "string") return sealed(value);
    if (Array.isArray(value)) return value.map(seal);
    if (value instanceof Map) return new Map([...(value as ReadonlyMap<string, Json>)].map(([key, item]) => [sealed(key), seal(item)]));
    if (isObject(value)) return Object.fromEntries(Object.entries(value).map(([key, item]) => [sealed(key), seal(item)]));
    return value;
  };

  /** Converts tool calls to OpenAI's form. @throws SyntaxError: the arguments are not JSON */
  const calls = (message: Message): Json => {
    const parsedCalls = parseExact(message.tool_calls ?? "[]");
    return (Array.isArray(parsedCalls) ? parsedCalls : [parsedCalls]).map((call: Json): Json => {
      if (!isObject(call)) return call;
      const { function: own, ...rest } = call;
      const { arguments: given = {}, ...name } = isObject(own) ? own : rest;
      // Arguments are parsed, because the engine parses them too before it renders.
      const args = typeof given === "string" && !argumentsAreText ? parseExact(given.trim() === "" ? "{}" : given) : given;
      return { ...(isObject(own) ? rest : {}), type: rest.type ?? "function", function: { ...name, arguments: args } };
    });
  };
  const toInput = (message: Message): Json => {
    const { role, name, tool_call_id, reasoning } = message;
    return {
      role,
      content: asParts
        ? partsOf(message).map((part) => ("text" in part ? { type: "text", text: sealed(part.text) } : { type: "image" }))
        : asText(message),
      ...(name !== undefined && { name: sealed(name) }),
      ...(tool_call_id !== undefined && { tool_call_id: sealed(tool_call_id) }),
      ...(reasoning !== undefined && { reasoning_content: sealed(reasoning), reasoning: sealed(reasoning) }),
      ...(message.tool_calls !== undefined && { tool_calls: seal(calls(message)) }),
    };
  };
  /** Templates that take text get pictures in front of it, each on a line, as vLLM gives them. */
  const asText = (message: Message): string => {
    const parts = partsOf(message);
    const shown = parts.filter((part) => !("text" in part)).map(() => vision?.shown ?? "");
    if (shown.length === 0) return sealed(message.content);
    return [...shown, parts.flatMap((part) => ("text" in part ? [sealed(part.text)] : [])).join("\n")].join("\n");
  };
  const toolsOf = ({ tools }: Conversation): Json => (tools === undefined ? null : seal(parseExact(tools)));
  const renderInput = (messages: readonly Json[], tools: Json, forGeneration: boolean): string =>
    parsed.render({
      messages,
      add_generation_prompt: forGeneration,
      tools,
      documents: null,
      loraline_today: (format: string) => onDay(today, format),
      ...names,
    });
  const text = (conversation: Conversation, forGeneration: boolean): string =>
    renderInput(conversation.messages.map(toInput), toolsOf(conversation), forGeneration);
  const pieces = (rendered: string, spans: readonly (readonly [number, number])[]): Piece[] => {
    const cut: Piece[] = [];
    let at = 0;
    for (const [start, end] of [...spans, [rendered.length, rendered.length] as const]) {
      split(rendered.slice(at, start), false, cut);
      split(rendered.slice(start, end), true, cut);
      at = end;
    }
    return cut.map((piece) => ("text" in piece ? { ...piece, text: unseal(piece.text) } : piece));
  };

  return {
    text,
    unseal,
    prompt: (conversation) => pieces(text(conversation, true), []),
    render(conversation) {
      const { messages } = conversation;
      const notes = new Map<string, Refused>();
      const note = (code: string, message: string): unknown => notes.has(code) || notes.set(code, { code, message });
      try {
        const [inputs, tools] = [messages.map(toInput), toolsOf(conversation)];
        const whole = renderInput(inputs, tools, false);
        if (messages.some((message) => message.tool_calls !== undefined)) {
          const spoken = messages.map(({ tool_calls: _calls, ...message }) => toInput(message));
          if (whole === renderInput(spoken, tools, false)) {
            const message =
              "the base's chat template does not show tool calls, so the model could not learn any. Use a base whose template does.";
            return { code: "TOOLS_UNSUPPORTED", message };
          }
        }
        const trained = messages.flatMap((message, index) => (isTaught(message) ? [index] : []));
        const turns = trained.map((index) => {
          const prompt = renderInput(inputs.slice(0, index), tools, true);
          const through = index === messages.length - 1 ? whole : renderInput(inputs.slice(0, index + 1), tools, false);
          return { index, prompt, through, end: endOf(through, prompt.length, stops) };
        });
        for (const { index, prompt, through, end } of turns) {
          if (!through.startsWith(prompt))
            return refuse(`message ${index + 1} does not stand behind the prompt that the server uses`, prompt, through);
          if (end === undefined) return refuse(`message ${index + 1} does not end with a token at which the engine stops`, prompt, through);
          const { reasoning = "" } = messages[index] as Message;
          if (!unseal(through.slice(prompt.length, end)).includes(reasoning.trim())) {
            note("REASONING_LEFT_OUT", "the base's template has no place for the answer's reasoning, so it is not trained");
          }
        }
        if (tools !== null && whole === renderInput(inputs, null, false)) {
          note("TOOLS_LEFT_OUT", "the base's template has no place for tools, so the model does not see them");
        }
        // A template that removes thoughts from earlier turns renders an answer differently when it is the last one.
        const stable = turns.every(({ through, end }) => whole.startsWith(through.slice(0, end)));
        const spans = (some: typeof turns) => some.map(({ prompt, end }) => [prompt.length, end as number] as const);
        const samples: Sample[] = stable
          ? [{ pieces: pieces(whole, spans(turns)), end: messages.length, trained }]
          : turns.map((turn) => ({ pieces: pieces(turn.through, spans([turn])), end: turn.index + 1, trained: [turn.index] }));
        return { samples, notes: [...notes.values()] };
      } catch (error) {
        return {
          code: "TEMPLATE_REFUSES",
          message: `the base's chat template does not take this conversation: ${(error as Error).message}`,
        };
      }
    },
  };

  function refuse(why: string, prompt: string, through: string): Refused {
    const message = `${why}. Prompt: ${quote(unseal(prompt))}. Conversation: ${quote(unseal(through))}.`;
    return { code: "TEMPLATE_UNSAFE", message };
  }
}

function endOf(text: string, from: number, stops: RegExp | undefined): number | undefined {
  if (stops === undefined) return undefined;
  stops.lastIndex = from;
  const found = stops.exec(text);
  return found === null ? undefined : found.index + found[0].length;
}

const isObject = (value: Json | undefined): value is { readonly [key: string]: Json } =>
  typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Map) && !isPythonNumber(value);

/** Python's `strftime`, with the directives that templates use. */
function onDay(day: Date, format: string): string {
  const part = (options: Intl.DateTimeFormatOptions): string =>
    new Intl.DateTimeFormat("en-US", { timeZone: "UTC", ...options }).format(day);
  const parts: Readonly<Record<string, string>> = {
    Y: String(day.getUTCFullYear()),
    m: String(day.getUTCMonth() + 1).padStart(2, "0"),
    d: String(day.getUTCDate()).padStart(2, "0"),
    b: part({ month: "short" }),
    B: part({ month: "long" }),
    a: part({ weekday: "short" }),
    A: part({ weekday: "long" }),
    H: "00",
    M: "00",
    S: "00",
    "%": "%",
  };
  return format.replaceAll(/%(.)/g, (whole, letter: string) => parts[letter] ?? whole);
}

export const quote = (text: string): string => JSON.stringify(text.length > 600 ? `${text.slice(0, 300)} … ${text.slice(-300)}` : text);
