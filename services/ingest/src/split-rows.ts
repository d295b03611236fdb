/**
 * Bytes of a file to the texts of its rows, with bounded memory: JSON Lines or one JSON array, decided by content.
 *
 * Only boundaries are found here; each row is parsed by itself (`JSON.parse`), so that a bad row costs one row and not the
 * rest of the file, a row can be refused for its size before it is in memory, and numbers can be read as they were written.
 * A streaming JSON parser gives none of these (and stream-json's own page advises against input from strangers).
 */
import { PermanentError } from "@loraline/runtime";

export type RawRow =
  | { readonly number: number; readonly firstLine: number; readonly text: string }
  | { readonly number: number; readonly firstLine: number; readonly code: string; readonly message: string };

export type Container = "jsonl" | "json-array";

export interface RawRows {
  readonly container: Container;
  /** A batch per chunk of input. `number` is the 1-based line (JSON Lines) or element (JSON array). */
  readonly batches: AsyncIterable<RawRow[]>;
}

const newline = 0x0a;
const quote = 0x22;
const comma = 0x2c;
const backslash = 0x5c;
const [openBracket, closeBracket, openBrace, closeBrace] = [0x5b, 0x5d, 0x7b, 0x7d];

/** What a file is that is no text at all, by its first bytes. */
const otherContainers: readonly { name: string; magic: readonly number[]; advice: string }[] = [
  { name: "a gzip file", magic: [0x1f, 0x8b], advice: "Unpack it first." },
  { name: "a zstd file", magic: [0x28, 0xb5, 0x2f, 0xfd], advice: "Unpack it first." },
  { name: "a zip archive", magic: [0x50, 0x4b, 0x03, 0x04], advice: "Unpack it first." },
  { name: "a Parquet file", magic: [0x50, 0x41, 0x52, 0x31], advice: "Convert it to JSON Lines first." },
  { name: "an Arrow file", magic: [0x41, 0x52, 0x52, 0x4f, 0x57, 0x31], advice: "Convert it to JSON Lines first." },
  { name: "UTF-16 text", magic: [0xff, 0xfe], advice: "Save it as UTF-8." },
  { name: "UTF-16 text", magic: [0xfe, 0xff], advice: "Save it as UTF-8." },
];

const byteOrderMark = [0xef, 0xbb, 0xbf];
const startsWith = (bytes: Uint8Array, magic: readonly number[]): boolean => magic.every((byte, index) => bytes[index] === byte);
const isBlank = (byte: number): boolean => byte === 0x20 || byte === newline || byte === 0x0d || byte === 0x09;

/**
 * Looks at the beginning of a file and starts splitting it.
 * @returns undefined when the file is empty or blank.
 * @throws PermanentError CONTAINER_UNSUPPORTED
 */
export async function splitRows(source: AsyncIterable<Uint8Array>, maxRowBytes: number): Promise<RawRows | undefined> {
  const iterator = source[Symbol.asyncIterator]();
  let head: Uint8Array = new Uint8Array(0);
  let ended = false;
  while (head.byteLength <= maxRowBytes && (head.byteLength < 8 || head.subarray(3).every(isBlank))) {
    const next = await iterator.next();
    ended = next.done === true;
    if (next.done === true) break;
    head = head.byteLength === 0 ? next.value : Buffer.concat([head, next.value]);
  }
  const other = otherContainers.find(({ magic }) => startsWith(head, magic));
  if (other !== undefined) {
    await iterator.return?.();
    throw new PermanentError(
      "CONTAINER_UNSUPPORTED",
      `the file is ${other.name}; JSON Lines (one object per line) or one JSON array in UTF-8 is expected. ${other.advice}`,
    );
  }
  if (startsWith(head, byteOrderMark)) head = head.subarray(3);
  const first = head.find((byte) => !isBlank(byte));
  if (first === undefined && ended) return undefined;

  async function* all(): AsyncGenerator<Uint8Array> {
    try {
      yield head;
      for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) yield next.value;
    } finally {
      await iterator.return?.();
    }
  }
  return first === openBracket
    ? { container: "json-array", batches: splitArray(all(), maxRowBytes) }
    : { container: "jsonl", batches: splitLines(all(), maxRowBytes) };
}

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
  /** The row, ready to be parsed or refused; the collector is empty afterwards. */
  take(number: number, firstLine: number, place: string): RawRow {
    const { size } = this;
    const bytes = this.#parts.length === 1 ? (this.#parts[0] as Uint8Array) : Buffer.concat(this.#parts);
    this.#parts = [];
    this.size = 0;
    if (size > this.#limit) {
      const message = `${place} has ${size} bytes; a row may have ${this.#limit}. Split it, or shorten it.`;
      return { number, firstLine, code: "ROW_TOO_LARGE", message };
    }
    try {
      return { number, firstLine, text: utf8.decode(bytes) };
    } catch {
      return { number, firstLine, code: "NOT_UTF8", message: `${place} is not UTF-8 text. Save the file as UTF-8.` };
    }
  }
}
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

async function* splitLines(source: AsyncIterable<Uint8Array>, maxRowBytes: number): AsyncGenerator<RawRow[]> {
  const row = new RowBytes(maxRowBytes);
  let line = 1;
  const finish = (rows: RawRow[]): void => {
    if (row.size > 0) {
      const taken = row.take(line, line, `line ${line}`);
      // A blank line is no row, but it counts as a line.
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

/** An element ends at a comma or at the closing bracket outside of every string, object and inner array. */
async function* splitArray(source: AsyncIterable<Uint8Array>, maxRowBytes: number): AsyncGenerator<RawRow[]> {
  const row = new RowBytes(maxRowBytes);
  let state = "before" as "before" | "inside" | "after";
  let depth = 0;
  let inString = false;
  let escaped = false;
  let line = 1;
  let element = 1;
  /** Line on which the element's first byte stands; 0: it has none yet. */
  let firstLine = 0;
  const place = (): string => `element ${element} (line ${firstLine})`;

  for await (const chunk of source) {
    const rows: RawRow[] = [];
    let start = 0;
    for (let at = 0; at < chunk.byteLength; at++) {
      const byte = chunk[at] as number;
      if (byte === newline) line++;
      if (inString) {
        if (escaped) escaped = false;
        else if (byte === backslash) escaped = true;
        else if (byte === quote) inString = false;
        continue;
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
          rows.push({ number: element, firstLine, code: "NOT_JSON", message });
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
          rows.push({ number: element, firstLine: line, code: "NOT_JSON", message });
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
    yield [{ number: element, firstLine: firstLine || line, code: "NOT_JSON", message }];
  }
}
