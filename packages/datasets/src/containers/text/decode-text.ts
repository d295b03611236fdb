/** Text in any encoding that is known for sure, as UTF-8 bytes. */
import { isUtf8 } from "node:buffer";
import type { Encoding } from "../recognise-file.ts";

/** A byte that UTF-8 never has. It marks where the text was broken, so that only the row with the mark is rejected. */
const broken = Buffer.from([0xff]);

export async function* toUtf8(source: AsyncIterable<Uint8Array>, encoding: Encoding): AsyncGenerator<Uint8Array, void, undefined> {
  if (encoding === "utf-8") {
    yield* source;
    return;
  }
  let rest: Buffer = Buffer.alloc(0);
  for await (const chunk of source) {
    const bytes = Buffer.concat([rest, chunk]);
    // Whole code units, and never half of a surrogate pair.
    let end = bytes.length & ~1;
    const last = end >= 2 ? (encoding === "utf-16le" ? bytes.readUInt16LE(end - 2) : bytes.readUInt16BE(end - 2)) : 0;
    if (last >= 0xd800 && last < 0xdc00) end -= 2;
    yield recoded(bytes.subarray(0, end), encoding);
    rest = Buffer.from(bytes.subarray(end));
  }
  if (rest.length >= 2) yield recoded(rest.subarray(0, rest.length & ~1), encoding);
  if (rest.length % 2 === 1) yield broken;
}

function recoded(bytes: Buffer, encoding: Encoding): Uint8Array {
  if (encoding === "utf-16be") bytes = Buffer.from(bytes).swap16();
  const text = bytes.toString("utf16le");
  if (text.isWellFormed()) return Buffer.from(text, "utf8");
  const parts = text.split(/(?:[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff])/);
  return Buffer.concat(parts.flatMap((part, index) => (index === 0 ? [Buffer.from(part, "utf8")] : [broken, Buffer.from(part, "utf8")])));
}

/** A lone CR as line end, as old Macintosh programs and some spreadsheets write it. It counts only in texts without any other line end. */
export const hasOnlyCarriageReturns = (head: Uint8Array): boolean => {
  const first = head.indexOf(0x0d);
  // A CR at the end of the chunk may be followed by the LF of a CRLF.
  return first !== -1 && first < head.length - 1 && !head.includes(0x0a);
};

export async function* withLineFeeds(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
  for await (const chunk of source) {
    const copy = Buffer.from(chunk);
    for (let at = copy.indexOf(0x0d); at !== -1; at = copy.indexOf(0x0d, at + 1)) copy[at] = 0x0a;
    yield copy;
  }
}

/** @returns the text; undefined when the bytes are not UTF-8. A byte order mark is kept. */
export const decodeUtf8 = (bytes: Uint8Array): string | undefined =>
  isUtf8(bytes) ? Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8") : undefined;
