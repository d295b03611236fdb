/** What an engine answers, made fit for callers: pinned names instead of LoRA names, OpenAI's error body, tokens counted. */
import type { ErrorBody } from "@loraline/contracts";
import { errorBodyOf } from "../errors.ts";

export interface Renaming {
  /** As the engine calls it. Letters, digits, dots and dashes: the same in JSON. */
  from: string;
  to: string;
}

export interface TokenCount {
  prompt: number;
  completion: number;
}

/**
 * Pure: puts the pinned name into `model`. Done on the text, so that numbers and unknown fields stay as the engine wrote
 * them. Cannot hit the answer's own words: inside a JSON string the quotes would be escaped.
 */
export function renameModel(json: string, { from, to }: Renaming): string {
  if (from === to) return json;
  const quoted = JSON.stringify(from);
  const name = JSON.stringify(to);
  return json.replaceAll(`"model":${quoted}`, `"model":${name}`).replaceAll(`"model": ${quoted}`, `"model": ${name}`);
}

/** Pure: what the engine says was used, in an answer or one line of a stream; undefined when it does not. The last one counts. */
export function usageOf(json: string): TokenCount | undefined {
  for (let at = json.lastIndexOf('"usage":'); at >= 0; at = at === 0 ? -1 : json.lastIndexOf('"usage":', at - 1)) {
    const start = at + '"usage":'.length;
    // Numbers and objects only: no brace can hide in a string.
    let depth = 0;
    for (let end = start; end < json.length; end++) {
      const letter = json[end];
      if (letter === "{") depth += 1;
      else if (letter === "}" && --depth === 0) return tokensOf(json.slice(start, end + 1));
      else if (depth === 0 && letter !== " ") break;
    }
  }
  return undefined;
}

function tokensOf(json: string): TokenCount | undefined {
  try {
    const { prompt_tokens: prompt, completion_tokens: completion = 0 } = JSON.parse(json) as Record<string, unknown>;
    return typeof prompt === "number" && typeof completion === "number" ? { prompt, completion } : undefined;
  } catch {
    return undefined;
  }
}

interface EventFilter {
  /** The bytes that go on to the client now; empty when a line is not complete yet. */
  push(chunk: Buffer): Buffer;
  /** The bytes that are left when the engine has ended. */
  end(): Buffer;
  /** The engine's count, once it came. */
  readonly usage: TokenCount | undefined;
  /** Events that were passed on: about the tokens, should the engine's count never come. */
  readonly events: number;
  /** Message of an engine that failed in the middle of its answer. It ends such a stream in good order, under status 200. */
  readonly failure: string | undefined;
}

const newline = 0x0a;
const nothing: Buffer = Buffer.alloc(0);
const dataMark = Buffer.from("data:");
const usageMark = Buffer.from('"usage":');
const errorMark = Buffer.from('data: {"error":');

/**
 * Passes server-sent events on as they come, line by line, with the pinned name in them.
 * @param options.hideUsage - the caller did not ask for the count: the event that holds nothing else is kept back.
 */
export function createEventFilter({ from, to }: Renaming, { hideUsage }: { hideUsage: boolean }): EventFilter {
  // Both ways to write it; the engine's is known after the first event.
  const spelled =
    from === to
      ? []
      : ['"model":', '"model": '].map((field) => [Buffer.from(`${field}"${from}"`), Buffer.from(`${field}${JSON.stringify(to)}`)] as const);
  let rest = nothing;
  let usage: TokenCount | undefined;
  let events = 0;
  let failure: string | undefined;
  /** The line before was kept back. The empty line that ends its event is kept back too. */
  let skipBlank = false;

  const rename = (bytes: Buffer): Buffer => {
    for (const [needle, name] of spelled) {
      let at = bytes.indexOf(needle);
      if (at < 0) continue;
      const parts: Buffer[] = [];
      let done = 0;
      for (; at >= 0; at = bytes.indexOf(needle, done)) {
        parts.push(bytes.subarray(done, at), name);
        done = at + needle.length;
      }
      parts.push(bytes.subarray(done));
      return Buffer.concat(parts);
    }
    return bytes;
  };

  /** Whole lines that may hold a count. */
  const judgeLines = (bytes: Buffer): Buffer => {
    const kept: Buffer[] = [];
    for (let start = 0; start < bytes.length;) {
      const found = bytes.indexOf(newline, start);
      const end = found < 0 ? bytes.length : found + 1;
      const line = bytes.subarray(start, end);
      start = end;
      if (skipBlank) {
        skipBlank = false;
        if (line.length <= 2) continue;
      }
      const counted = line.includes(usageMark) ? usageOf(line.toString("utf8")) : undefined;
      usage = counted ?? usage;
      if (counted !== undefined && hideUsage && holdsOnlyUsage(line.toString("utf8"))) skipBlank = true;
      else kept.push(line);
    }
    return kept.length === 1 ? (kept[0] ?? nothing) : Buffer.concat(kept);
  };

  const pass = (bytes: Buffer): Buffer => {
    const judged = skipBlank || bytes.includes(usageMark) ? judgeLines(bytes) : bytes;
    const failedAt = failure === undefined ? judged.indexOf(errorMark) : -1;
    if (failedAt >= 0) failure = failureOf(judged.toString("utf8", failedAt).split("\n", 1)[0] ?? "");
    for (let at = judged.indexOf(dataMark); at >= 0; at = judged.indexOf(dataMark, at + dataMark.length)) events += 1;
    return rename(judged);
  };

  return {
    push(chunk) {
      const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      const end = bytes.lastIndexOf(newline) + 1;
      if (end === bytes.length) {
        rest = nothing;
        return pass(bytes);
      }
      rest = bytes.subarray(end);
      return end === 0 ? nothing : pass(bytes.subarray(0, end));
    },
    end() {
      const bytes = rest;
      rest = nothing;
      return bytes.length === 0 ? bytes : pass(bytes);
    },
    get usage() {
      return usage;
    },
    get events() {
      return events;
    },
    get failure() {
      return failure;
    },
  };
}

function holdsOnlyUsage(line: string): boolean {
  try {
    const { choices } = JSON.parse(line.slice(line.indexOf("{"))) as { choices?: unknown };
    return Array.isArray(choices) && choices.length === 0;
  } catch {
    return false;
  }
}

/** undefined: the engine did not fail; the request was wrong. */
function failureOf(line: string): string | undefined {
  try {
    const { code, message } = fieldsOf(fieldsOf(JSON.parse(line.slice(line.indexOf("{"))))["error"]);
    return typeof code === "number" && code < 500 ? undefined : String(message);
  } catch {
    return line;
  }
}

/** Pure: the error event for a client whose engine broke off. The SDKs throw it; without it the answer would merely stop. */
export const brokeOffEvent = (message: string): string => `\n\ndata: ${JSON.stringify(errorBodyOf(502, message, "engine_broke_off"))}\n\n`;

/** Pure: an engine's error in OpenAI's shape. vLLM's has a number as code; older ones have no `error` around it. */
export function engineErrorOf(status: number, text: string, renaming: Renaming): ErrorBody {
  const renamed = text.replaceAll(renaming.from, renaming.to);
  let parsed: unknown;
  try {
    parsed = JSON.parse(renamed);
  } catch {
    return errorBodyOf(status, renamed.trim() || `The engine answered ${status}.`, "engine_error");
  }
  const body = fieldsOf(fieldsOf(parsed)["error"] ?? parsed);
  const { message, detail, code, param } = body;
  const text_ = typeof message === "string" ? message : typeof detail === "string" ? detail : renamed;
  return errorBodyOf(status, text_, typeof code === "string" ? code : null, typeof param === "string" ? param : null);
}

const fieldsOf = (value: unknown): Record<string, unknown> => (typeof value === "object" && value !== null ? { ...value } : {});
