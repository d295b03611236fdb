/** Turns any uploaded file into rows: unpacks, decodes and splits it by what its first bytes say. Memory stays bounded at any size. */
import { createReadStream } from "node:fs";
import { countBytes, PermanentError } from "@loraline/runtime";
import { hasOnlyCarriageReturns, toUtf8, withLineFeeds } from "./text/decode-text.ts";
import { decideArchiveFiles, isTextFile } from "./archives/decide-archive-files.ts";
import { readCaptions } from "./archives/read-captions.ts";
import { readExcel } from "./archives/read-excel.ts";
import { openTar } from "./archives/read-tar.ts";
import { openZip, type Archive } from "./archives/read-zip.ts";
import type { Note, RawRow, RawRows } from "./raw-rows.ts";
import { readArrow } from "./read-arrow.ts";
import { isTable, readCsv, recogniseCsv } from "./text/read-csv.ts";
import { decodeText } from "./text/detect-encoding.ts";
import { readConll, recogniseConll } from "./text/read-conll.ts";
import { readPlainText, type TextUnit } from "./text/read-plain-text.ts";
import { readParquet } from "./read-parquet.ts";
import { recognise, recogniseBytes, recogniseOtherText } from "./recognise-file.ts";
import { isBlank, splitArray, splitLines } from "./text/split-rows.ts";
import { defaultUnpackLimits, unpack, type UnpackLimits } from "./unpack.ts";

/**
 * The bytes of an upload, or a file on disk. A file spares a copy for formats that are read at random places. `onRead` is told of bytes as
 * they are read, where the file is read from its beginning to its end.
 */
export type FileSource = AsyncIterable<Uint8Array> | { readonly file: string; readonly onRead?: (bytes: number) => void };

interface OpenOptions {
  maxRowBytes: number;
  unpackLimits?: UnpackLimits;
  /** The file's name, which tells plain text from tables; everything else is told by the bytes. */
  name?: string | undefined;
  /** The mapping's encoding of texts without a mark; absent: detected. */
  encoding?: string | undefined;
  /**
   * Told how much of a file's rows is read, from 0 to 1, where the file is copied first or read at random places (Parquet, ZIP): its bytes
   * say nothing about that. Told 0 as soon as this is known.
   */
  onShare?: ((share: number) => void) | undefined;
  /** The mapping's `text_rows`: the file is plain text, whatever its name. */
  textRows?: TextUnit | undefined;
}

/** How often a file may be packed inside of another packing. More is an attack, not a dataset. */
const mostPackings = 2;

/**
 * @returns undefined when the file is empty or blank.
 * @throws PermanentError CONTAINER_UNSUPPORTED, FILE_TRUNCATED, FILE_CORRUPT, FILE_TOO_LARGE
 */
export async function openContainer(source: FileSource, options: OpenOptions): Promise<RawRows | undefined> {
  return openOne(source, options, { isInArchive: false });
}

async function openOne(source: FileSource, options: OpenOptions, { isInArchive }: { isInArchive: boolean }): Promise<RawRows | undefined> {
  const { maxRowBytes, unpackLimits = defaultUnpackLimits } = options;
  const notes: Note[] = [];
  let file = "file" in source ? source : undefined;
  let bytes = file === undefined ? (source as AsyncIterable<Uint8Array>) : readFrom(file);
  for (let packings = 0; ; packings++) {
    const peeked = await peek(bytes, recogniseBytes);
    const { head } = peeked;
    const found = recognise(head);
    switch (found.is) {
      case "gzip":
      case "zstd": {
        if (packings === mostPackings) {
          await peeked.close();
          throw new PermanentError(
            "CONTAINER_UNSUPPORTED",
            `the file is packed more than ${mostPackings} times. Unpack it, or pack it once.`,
          );
        }
        bytes = unpack(peeked.all(), found.is, unpackLimits);
        file = undefined;
        continue;
      }
      case "parquet": {
        if (file !== undefined) await peeked.close();
        options.onShare?.(0);
        return {
          container: "parquet",
          notes,
          batches: readParquet(file ?? peeked.all(), { maxRowBytes, unpackLimits, onShare: options.onShare }),
        };
      }
      case "arrow-file":
      case "arrow-stream": {
        return {
          container: "arrow",
          notes,
          batches: readArrow(peeked.all(), { maxRowBytes, unpackLimits, asFile: found.is === "arrow-file" }),
        };
      }
      case "zip": {
        if (file !== undefined) await peeked.close();
        if (!isInArchive) options.onShare?.(0);
        return openArchive(await openZip(file ?? peeked.all(), unpackLimits), options, isInArchive);
      }
      case "tar": {
        return openArchive(await openTar(peeked.all(), unpackLimits), options, isInArchive);
      }
      case "other": {
        await peeked.close();
        throw notADataset(found);
      }
      case "text": {
        const bytes = skipBytes(peeked.all(), found.skip);
        const isUnmarked = found.encoding === "utf-8" && found.skip === 0;
        let text = isUnmarked ? decodeText(bytes, { given: options.encoding, notes }) : toUtf8(bytes, found.encoding);
        if (found.encoding === "utf-8" && hasOnlyCarriageReturns(head)) text = withLineFeeds(text);
        return splitText(text, options, notes);
      }
    }
  }
}

const expected =
  "JSON Lines, a JSON array, CSV, TSV, Excel (xlsx), Parquet, Arrow, CoNLL, plain text or Markdown, plain or packed with gzip, zstd, ZIP or tar, is expected";
const notADataset = ({ name, advice }: { name: string; advice: string }): PermanentError =>
  new PermanentError("CONTAINER_UNSUPPORTED", `the file is ${name}; ${expected}. ${advice}`);

function readFrom({ file, onRead }: Extract<FileSource, { file: string }>): AsyncIterable<Uint8Array> {
  const pieces = createReadStream(file, { highWaterMark: 256 * 1024 });
  return onRead === undefined ? pieces : countBytes(pieces, onRead);
}

/** Notes that are told one by one. An archive may have a hundred thousand files, and the report of them is read as a whole. */
const mostNotes = 20;

/** One of several files that are read as one dataset, such as the shards of a split. */
export interface Part {
  readonly name: string;
  open(): Promise<FileSource>;
}

/**
 * Several files, one after the other. Lines are counted on through all of them, and every message names the file.
 * @returns undefined when all of them are empty or blank.
 */
export async function openParts(parts: readonly Part[], options: OpenOptions): Promise<RawRows | undefined> {
  return openAll(parts, options, { isInArchive: false, notes: [] });
}

async function openAll(
  parts: readonly Part[],
  options: OpenOptions,
  { isInArchive, notes }: { isInArchive: boolean; notes: Note[] },
): Promise<RawRows | undefined> {
  const openPart = (part: Part): Promise<RawRows | undefined> =>
    part
      .open()
      // How much of all files is read, whoever opened them counts.
      .then((source) => openOne(source, { ...options, name: part.name, onShare: undefined }, { isInArchive }))
      .catch((error: unknown) => {
        throw faultOf(error, part.name);
      });
  let begin = 0;
  let first = await openPart(parts[0] as Part);
  while (first === undefined && ++begin < parts.length) first = await openPart(parts[begin] as Part);
  if (first === undefined) return undefined;
  const { container } = first;
  async function* all(): AsyncGenerator<RawRow[]> {
    let before = 0;
    const untold = new Map<string, number>();
    for (const [index, part] of parts.slice(begin).entries()) {
      const opened = index === 0 ? first : await openPart(part);
      let last = 0;
      try {
        for await (const batch of opened?.batches ?? []) {
          last = batch.at(-1)?.line ?? last;
          yield batch.map((row) => inPart(row, part.name, before));
        }
      } catch (error) {
        throw faultOf(error, part.name);
      }
      for (const { code, message } of opened?.notes ?? []) {
        if (notes.length < mostNotes) notes.push({ code, message: `${part.name}: ${message}` });
        else untold.set(code, (untold.get(code) ?? 0) + 1);
      }
      before += last;
    }
    for (const [code, count] of untold) notes.push({ code, message: `the same is noted of ${count} more files.` });
  }
  return { container, notes, batches: all() };
}

const faultOf = (error: unknown, name: string): unknown =>
  error instanceof PermanentError && !error.code.startsWith("OBJECT_")
    ? new PermanentError(error.code, `${name}: ${error.message}`, { param: error.param, status: error.status, cause: error })
    : error;

function inPart(row: RawRow, name: string, before: number): RawRow {
  const moved = { ...row, file: row.file ?? name, line: row.line + before, place: `${name}, ${row.place}` };
  if (!("refusal" in row)) return moved;
  return { ...moved, refusal: { code: row.refusal.code, message: `${name}, ${row.refusal.message}` } };
}

/** Files of an archive, read as one dataset; or the workbook that the archive is. */
async function openArchive(archive: Archive, options: OpenOptions, isInArchive: boolean): Promise<RawRows | undefined> {
  const release = async (): Promise<void> => archive[Symbol.asyncDispose]();
  try {
    const { files } = archive;
    const notes: Note[] = [];
    if (files.some(({ name }) => name === "xl/workbook.xml")) {
      const rows = readExcel(archive, { maxRowBytes: options.maxRowBytes, notes });
      return { container: "xlsx", notes, batches: releasing(rows, release) };
    }
    if (isInArchive) {
      throw new PermanentError("CONTAINER_UNSUPPORTED", "the file is an archive inside of another. Unpack it, and pack its files once.");
    }
    const inner = files.find(({ name }) => /\.(?:zip|tar|tgz|7z|rar|tar\.\w+)$/i.test(name))?.name;
    const { read, left, captions } = decideArchiveFiles(files.filter(({ size }) => size > 0).map(({ name }) => name));
    if (read.length === 0) {
      const held = files.slice(0, 10).map(({ name }) => name);
      throw new PermanentError(
        "CONTAINER_UNSUPPORTED",
        `the archive has no file of a known kind (${held.join(", ") || "it is empty"}). ${inner === undefined ? "" : `${inner} is an archive itself: unpack it first. `}Pack files that end in .jsonl, .json, .csv, .tsv, .xlsx, .parquet, .arrow, .conll, .txt or .md.`,
      );
    }
    if (left.length > 0) {
      const message = `of the archive ${read.length === 1 ? `only ${read[0]} is` : `${read.length} files are`} read; left out: ${left.slice(0, 10).join(", ")}${left.length > 10 ? ` and ${left.length - 10} more` : ""}.`;
      notes.push({ code: "FILES_LEFT_OUT", message });
    }
    if (captions.size > 0) {
      const rows = readCaptions(archive, captions, options.maxRowBytes);
      return { container: "text", notes, batches: releasing(besideIn(archive, rows), release) };
    }
    const sizes = new Map(files.map(({ name, size }) => [name, size]));
    const total = read.reduce((sum, name) => sum + (sizes.get(name) ?? 0), 0);
    let unpacked = 0;
    const onPiece = (bytes: number): void => options.onShare?.(Math.min(1, (unpacked += bytes) / Math.max(1, total)));
    const parts = read.map((name): Part => ({ name, open: async () => countBytes(archive.open(name), onPiece) }));
    const rows = await openAll(parts, options, { isInArchive: true, notes });
    if (rows === undefined) await release();
    return rows && { ...rows, batches: releasing(besideIn(archive, rows.batches), release) };
  } catch (error) {
    await release();
    throw error;
  }
}

async function* besideIn(beside: Archive, batches: AsyncIterable<RawRow[]>): AsyncGenerator<RawRow[]> {
  for await (const rows of batches) yield rows.map((row) => ({ ...row, beside }));
}

async function* releasing(batches: AsyncIterable<RawRow[]>, release: () => Promise<void>): AsyncGenerator<RawRow[]> {
  try {
    yield* batches;
  } finally {
    await release();
  }
}

async function splitText(
  text: AsyncIterable<Uint8Array>,
  { maxRowBytes, name, textRows }: OpenOptions,
  notes: Note[],
): Promise<RawRows | undefined> {
  // Any number of blank lines may come before the first row.
  let blank = 0;
  const peeked = await peek(text, recogniseBytes, (head) => {
    while (blank < head.byteLength && isBlank(head[blank] as number)) blank++;
    return blank < head.byteLength || blank > maxRowBytes;
  });
  const { head } = peeked;
  const start = head.findIndex((byte) => !isBlank(byte));
  if (start === -1 && peeked.ended) return undefined;
  if (textRows !== undefined) {
    return { container: "text", notes, batches: readPlainText(peeked.all(), { unit: textRows, maxRowBytes }) };
  }
  const beginning = Buffer.from(head.buffer, head.byteOffset, head.byteLength).toString("utf8");
  const content = beginning.trimStart();
  // A text may begin with a bracket that opens no list of rows, such as the time of a message in a chat's export.
  const isProse = isTextFile(name) && !/^\[\s*(?:[[{"\]]|$)/.test(content);
  if (head[start] === 0x5b && !isProse) return { container: "json-array", notes, batches: splitArray(peeked.all(), maxRowBytes) };
  const conll = head[start] === 0x7b ? undefined : recogniseConll(beginning);
  if (conll !== undefined) return { container: "conll", notes, batches: readConll(peeked.all(), { kind: conll, maxRowBytes }) };
  const delimiter = recogniseCsv(beginning);
  if (isTextFile(name) && head[start] !== 0x7b && (delimiter === undefined || !isTable(beginning, delimiter))) {
    return { container: "text", notes, batches: readPlainText(peeked.all(), { unit: "document", maxRowBytes }) };
  }
  if (delimiter !== undefined) {
    return { container: delimiter === "\t" ? "tsv" : "csv", notes, batches: readCsv(peeked.all(), { delimiter, maxRowBytes }) };
  }
  const other = recogniseOtherText(content);
  if (other !== undefined) throw notADataset(other);
  return { container: "jsonl", notes, batches: splitLines(peeked.all(), maxRowBytes) };
}

interface Peeked {
  head: Uint8Array;
  /** True: the whole file is in `head`. */
  ended: boolean;
  /** All bytes, from the beginning. May be read once. */
  all(): AsyncIterable<Uint8Array>;
  /** Releases the source when `all` is not read. */
  close(): Promise<void>;
}

/** Reads until there are `size` bytes and `enough` accepts them. */
async function peek(source: AsyncIterable<Uint8Array>, size: number, enough: (head: Uint8Array) => boolean = () => true): Promise<Peeked> {
  const iterator = source[Symbol.asyncIterator]();
  let head: Uint8Array = new Uint8Array(0);
  let ended = false;
  let broken: { error: unknown } | undefined;
  while (head.byteLength < size || !enough(head)) {
    // The rows before the break are still recognised and counted, as they would be later in the file.
    const next = await iterator.next().catch((error: unknown): IteratorResult<Uint8Array> => {
      broken = { error };
      return { done: true, value: undefined };
    });
    if (next.done === true) {
      ended = true;
      break;
    }
    head = head.byteLength === 0 ? next.value : Buffer.concat([head, next.value]);
  }
  async function* all(): AsyncGenerator<Uint8Array> {
    try {
      if (head.byteLength > 0) yield head;
      if (broken !== undefined) throw broken.error;
      for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) yield next.value;
    } finally {
      await iterator.return?.();
    }
  }
  if (broken !== undefined && head.byteLength === 0) throw broken.error;
  return {
    head,
    ended: ended && broken === undefined,
    all,
    async close() {
      await iterator.return?.();
    },
  };
}

async function* skipBytes(source: AsyncIterable<Uint8Array>, count: number): AsyncGenerator<Uint8Array, void, undefined> {
  let left = count;
  for await (const chunk of source) {
    const skipped = Math.min(left, chunk.byteLength);
    left -= skipped;
    if (skipped < chunk.byteLength) yield chunk.subarray(skipped);
  }
}
