/**
 * Bytes of UTF-8 to the texts of its rows, with bounded memory: JSON Lines, or one JSON array.
 *
 * Only boundaries are found here; each row is parsed by itself (`JSON.parse`), so that a bad row costs one row and not the
 * rest of the file, a row can be refused for its size before it is in memory, and numbers can be read as they were written.
 * A streaming JSON parser gives none of these (and stream-json's own page advises against input from strangers).
 */
import { decodeUtf8 } from "./decode-text.ts";
import { type RawRow, refused, rowTooLarge } from "../raw-rows.ts";

const newline = 0x0a;
const quote = 0x22;
const comma = 0x2c;
const backslash = 0x5c;
const [openBracket, closeBracket, openBrace, closeBrace] = [0x5b, 0x5d, 0x7b, 0x7d];
export const isBlank = (byte: number): boolean => byte === 0x20 || byte === newline || byte === 0x0d || byte === 0x09;

/** Collects the bytes of one row; beyond the limit it only counts them. */
class RowBytes {
  readonly #limit: number;
  #parts: Uint8Array[] = [];
  size = 0;
  constructor(limit: number) {
    this.#limit = limit;
  }
  add(bytes: Uint8Array): void {
    if (bytes.byteLength === 0) return;
    this.size += bytes.byteLength;
    if (this.size > this.#limit) this.#parts = [];
    else this.#parts.push(bytes);
  }
  /** Takes the row, ready to be parsed or refused. The collector is empty afterwards. */
  take(line: number, firstLine: number, place: string): RawRow {
    const { size } = this;
    const bytes = this.#parts.length === 1 ? (this.#parts[0] as Uint8Array) : Buffer.concat(this.#parts);
    this.#parts = [];
    this.size = 0;
    if (size > this.#limit) return rowTooLarge(line, place, size, this.#limit);
    const text = decodeUtf8(bytes);
    return text === undefined ? notText(line, place) : { line, place, firstLine, text };
  }
}

export const notText = (line: number, place: string): RawRow =>
  refused(
    line,
    place,
    "NOT_UTF8",
    `${place} is not UTF-8 text. Save the file as UTF-8 (it may be in GBK or another encoding), or repair the row.`,
  );

/** `line` is the 1-based line. */
export async function* splitLines(source: AsyncIterable<Uint8Array>, maxRowBytes: number): AsyncGenerator<RawRow[]> {
  const row = new RowBytes(maxRowBytes);
  let line = 1;
  const finish = (rows: RawRow[]): void => {
    if (row.size > 0) {
      const taken = row.take(line, line, `line ${line}`);
      // A blank line is not a row, but its line number counts.
      if (!("text" in taken) || taken.text.trim() !== "") rows.push(taken);
    }
    line++;
  };
  for await (const chunk of source) {
    const rows: RawRow[] = [];
    let start = 0;
    for (let end = chunk.indexOf(newline); end !== -1; end = chunk.indexOf(newline, start)) {
      row.add(chunk.subarray(start, end));
      finish(rows);
      start = end + 1;
    }
    row.add(chunk.subarray(start));
    yield rows;
  }
  const rows: RawRow[] = [];
  finish(rows);
  yield rows;
}

/** An element ends at a comma or at the closing bracket outside of every string, object and inner array. `line` is the element's number, from 1. */
export async function* splitArray(source: AsyncIterable<Uint8Array>, maxRowBytes: number): AsyncGenerator<RawRow[]> {
  const row = new RowBytes(maxRowBytes);
  let state = "before" as "before" | "inside" | "after";
  let depth = 0;
  let inString = false;
  let escaped = false;
  let line = 1;
  let element = 1;
  /** Line of the element's first byte; 0 as long as it has no byte. */
  let firstLine = 0;
  const place = (): string => `element ${element} (line ${firstLine})`;

  for await (const chunk of source) {
    const rows: RawRow[] = [];
    let start = 0;
    /** Index of the next line end from `at` on, kept because most strings have no line end. */
    let lineEnd = chunk.indexOf(newline);
    for (let at = 0; at < chunk.byteLength; at++) {
      if (inString) {
        // Most bytes are in strings: from here to the quote that ends it, unless an odd number of backslashes stands before it.
        const from = at;
        let end = chunk.indexOf(quote, from);
        while (end !== -1 && isEscaped(chunk, from, end, escaped)) end = chunk.indexOf(quote, end + 1);
        const to = end === -1 ? chunk.byteLength : end;
        while (lineEnd !== -1 && lineEnd < to) {
          line++;
          lineEnd = chunk.indexOf(newline, lineEnd + 1);
        }
        escaped = end === -1 && isEscaped(chunk, from, to, escaped);
        inString = end === -1;
        at = to;
        continue;
      }
      const byte = chunk[at] as number;
      if (byte === newline) {
        line++;
        lineEnd = chunk.indexOf(newline, at + 1);
      }
      if (isBlank(byte)) continue;
      if (state === "before") {
        state = "inside"; // the opening bracket
        continue;
      }
      if (state === "after") {
        if (firstLine === 0) {
          firstLine = line;
          const message = `line ${line}: there is text after the end of the JSON array. Remove it, or use JSON Lines.`;
          rows.push(refused(element, place(), "NOT_JSON", message));
        }
        continue;
      }
      if (depth === 0 && (byte === comma || byte === closeBracket)) {
        if (firstLine !== 0) {
          row.add(chunk.subarray(start, at));
          rows.push(row.take(element, firstLine, place()));
          element++;
        } else if (byte === comma || element > 1) {
          const message = `element ${element} (line ${line}) is empty: there is a comma too many`;
          rows.push(refused(element, place(), "NOT_JSON", message));
          element++;
        }
        firstLine = 0;
        if (byte === closeBracket) state = "after";
        continue;
      }
      if (firstLine === 0) {
        firstLine = line;
        start = at;
      }
      if (byte === quote) inString = true;
      else if (byte === openBrace || byte === openBracket) depth++;
      else if (byte === closeBrace || byte === closeBracket) depth = Math.max(0, depth - 1);
    }
    if (state === "inside" && firstLine !== 0) row.add(chunk.subarray(start));
    yield rows;
  }
  if (state !== "after") {
    const message =
      firstLine === 0
        ? `line ${line}: the file ends before the JSON array does. It may have been cut off.`
        : `${place()}: the file ends inside of this element. It may have been cut off.`;
    yield [refused(element, place(), "NOT_JSON", message)];
  }
}

/** Whether the byte at `end` has an odd number of backslashes before it, from `from` on; `before`: one stood before `from`. */
function isEscaped(chunk: Uint8Array, from: number, end: number, before: boolean): boolean {
  let start = end;
  while (start > from && chunk[start - 1] === backslash) start--;
  const count = end - start + (start === from && before ? 1 : 0);
  return count % 2 === 1;
}
