/** Pictures with a text beside each, as tools for captions leave them (1.png, 1.txt), to rows `{image, caption}`. */
import { type RawRow, rowTooLarge } from "../raw-rows.ts";
import { decodeUtf8 } from "../text/decode-text.ts";
import { notText } from "../text/split-rows.ts";
import type { Archive } from "./read-zip.ts";

const batchRows = 256;

/** @param captions - of each text's name its picture's. Throws what the archive's files throw. */
export async function* readCaptions(
  archive: Archive,
  captions: ReadonlyMap<string, string>,
  maxRowBytes: number,
): AsyncGenerator<RawRow[], void, undefined> {
  let rows: RawRow[] = [];
  let line = 0;
  for (const [name, image] of captions) {
    const row = await readCaption(archive, name, image, { line: ++line, maxRowBytes });
    rows.push({ ...row, file: name });
    if (rows.length < batchRows) continue;
    yield rows;
    rows = [];
  }
  yield rows;
}

async function readCaption(
  archive: Archive,
  name: string,
  image: string,
  { line, maxRowBytes }: { line: number; maxRowBytes: number },
): Promise<RawRow> {
  const pieces: Uint8Array[] = [];
  let size = 0;
  for await (const piece of archive.open(name)) {
    size += piece.byteLength;
    if (size > maxRowBytes) return rowTooLarge(line, name, size, maxRowBytes);
    pieces.push(piece);
  }
  const text = decodeUtf8(Buffer.concat(pieces));
  if (text === undefined) return notText(line, name);
  const value = { image, caption: text.replace(/^\uFEFF/, "").trim() };
  return { line, place: name, value, exact: () => value };
}
