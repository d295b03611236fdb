/** What an engine answers, made fit for callers: pinned names instead of engine names, OpenAI's error body. */
import type { ErrorBody } from "@loraline/contracts";
import { errorBodyOf } from "./errors.ts";

export interface Renaming {
  /** As the engine calls it. Letters, digits, dots and dashes: the same in JSON. */
  from: string;
  to: string;
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

const newline = 0x0a;

/**
 * Passes server-sent events on as they come, line by line, with the pinned name in them. If the engine breaks off, the
 * reader is told by an error event, which the SDKs throw, instead of an answer that merely stops.
 */
export async function* renameEvents(
  source: AsyncIterable<Uint8Array>,
  renaming: Renaming,
  onBroken: (error: unknown) => void,
): AsyncGenerator<Uint8Array, void, undefined> {
  let rest: Buffer = Buffer.alloc(0);
  try {
    for await (const chunk of source) {
      const bytes: Buffer =
        rest.length === 0 ? Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength) : Buffer.concat([rest, chunk]);
      if (renaming.from === renaming.to) {
        yield bytes;
        continue;
      }
      const end = bytes.lastIndexOf(newline) + 1;
      rest = bytes.subarray(end);
      if (end > 0) yield Buffer.from(renameModel(bytes.toString("utf8", 0, end), renaming));
    }
    if (rest.length > 0) yield Buffer.from(renameModel(rest.toString("utf8"), renaming));
  } catch (error) {
    onBroken(error);
    const body = errorBodyOf(502, "The engine broke off while it answered. Ask again.", "engine_broke_off");
    yield Buffer.from(`\n\ndata: ${JSON.stringify(body)}\n\n`);
  }
}

/** Pure: an engine's error in OpenAI's shape. vLLM's has a number as code; older ones have no `error` around it. */
export function engineErrorOf(status: number, text: string, renaming: Renaming): ErrorBody {
  const told = text.replaceAll(renaming.from, renaming.to);
  let parsed: unknown;
  try {
    parsed = JSON.parse(told);
  } catch {
    return errorBodyOf(status, told.trim() || `The engine answered ${status}.`, "engine_error");
  }
  const body = fieldsOf(fieldsOf(parsed)["error"] ?? parsed);
  const { message, detail, code, param } = body;
  const text_ = typeof message === "string" ? message : typeof detail === "string" ? detail : told;
  return errorBodyOf(status, text_, typeof code === "string" ? code : null, typeof param === "string" ? param : null);
}

const fieldsOf = (value: unknown): Record<string, unknown> => (typeof value === "object" && value !== null ? { ...value } : {});
