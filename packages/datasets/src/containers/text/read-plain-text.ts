/**
 * Plain text and Markdown to rows `{text}`: whole documents, of which only large ones are cut, between paragraphs (Markdown: before a
 * heading where possible); or one row for each paragraph. How long a sequence is, tokens decide later (`tokenize.too_long: split`).
 */
import { decodeUtf8 } from "./decode-text.ts";
import { type RawRow, rowTooLarge } from "../raw-rows.ts";
import { notText } from "./split-rows.ts";

export type TextUnit = "document" | "paragraph";

/** Bytes after which a document is cut at the next paragraph. A row is in memory as a whole. */
const cutAfter = 256 * 1024;
const newline = 0x0a;

interface Block {
  /** Line on which it begins, from 1. */
  line: number;
  /** Its lines with their ends, `size` bytes, and room for more. A buffer for each line would take a hundred times the room of short lines. */
  bytes: Buffer;
  size: number;
}

/** @throws what `source` throws. */
export async function* readPlainText(
  source: AsyncIterable<Uint8Array>,
  { unit, maxRowBytes }: { unit: TextUnit; maxRowBytes: number },
): AsyncGenerator<RawRow[], void, undefined> {
  const target = unit === "paragraph" ? 0 : Math.min(cutAfter, maxRowBytes);
  let block: Block | undefined;
  let line = 0;
  let rows: RawRow[] = [];
  const finish = (): void => {
    if (block !== undefined) rows.push(...rowOf(block, maxRowBytes));
    block = undefined;
  };
  for await (const bytes of linesOf(source, maxRowBytes)) {
    line++;
    const isBlank = bytes.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d);
    if (isBlank && unit === "paragraph") finish();
    else if (block !== undefined && (isBlank || bytes[0] === 0x23) && block.size >= target) finish();
    if (isBlank && block === undefined) continue;
    // A paragraph without an end is cut between lines.
    if (block !== undefined && block.size + bytes.byteLength + 1 > maxRowBytes) finish();
    block ??= { line, bytes: Buffer.alloc(0), size: 0 };
    addLine(block, bytes);
    if (rows.length >= 256) {
      yield rows;
      rows = [];
    }
  }
  finish();
  yield rows;
}

function addLine(block: Block, line: Uint8Array): void {
  const size = block.size + line.byteLength + 1;
  if (size > block.bytes.length) {
    const larger = Buffer.allocUnsafe(Math.max(size, 2 * block.bytes.length));
    block.bytes.copy(larger, 0, 0, block.size);
    block.bytes = larger;
  }
  block.bytes.set(line, block.size);
  block.bytes[size - 1] = newline;
  block.size = size;
}

function rowOf({ line, bytes, size }: Block, maxRowBytes: number): RawRow[] {
  const place = `line ${line}`;
  if (size - 1 > maxRowBytes) return [rowTooLarge(line, place, size, maxRowBytes)];
  const text = decodeUtf8(bytes.subarray(0, size - 1));
  if (text === undefined) return [notText(line, place)];
  const value = {
    text: text
      .replace(/^\uFEFF/, "")
      .replaceAll("\r", "")
      .trim(),
  };
  return value.text === "" ? [] : [{ line, place, value, exact: () => value }];
}

/** Lines without their ends. A line that is longer than a row may be comes in pieces of that length. */
export async function* linesOf(source: AsyncIterable<Uint8Array>, maxBytes: number): AsyncGenerator<Uint8Array> {
  let rest: Buffer = Buffer.alloc(0);
  for await (const chunk of source) {
    let bytes = rest.length === 0 ? Buffer.from(chunk) : Buffer.concat([rest, chunk]);
    for (let end = bytes.indexOf(newline); end !== -1; end = bytes.indexOf(newline)) {
      yield bytes.subarray(0, end);
      bytes = bytes.subarray(end + 1);
    }
    for (let cut = cutOf(bytes, maxBytes); bytes.length > maxBytes; cut = cutOf(bytes, maxBytes)) {
      yield bytes.subarray(0, cut);
      bytes = bytes.subarray(cut);
    }
    rest = Buffer.from(bytes);
  }
  if (rest.length > 0) yield rest;
}

/** The last place up to `maxBytes` at which no character is cut in two. */
function cutOf(bytes: Buffer, maxBytes: number): number {
  let cut = maxBytes;
  while (cut > maxBytes - 4 && cut > 1 && ((bytes[cut] as number) & 0xc0) === 0x80) cut--;
  return cut;
}
