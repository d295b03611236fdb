/** Turns any uploaded file into rows: unpacks, decodes and splits it by what its first bytes say. Memory stays bounded at any size. */
import { createReadStream } from "node:fs";
import { PermanentError } from "@loraline/runtime";
import { hasOnlyCarriageReturns, toUtf8, withLineFeeds } from "./decode-text.ts";
import type { RawRow, RawRows } from "./raw-rows.ts";
import { readArrow } from "./read-arrow.ts";
import { readCsv, recogniseCsv } from "./read-csv.ts";
import { readParquet } from "./read-parquet.ts";
import { recognise, recogniseBytes } from "./recognise-file.ts";
import { isBlank, splitArray, splitLines } from "./split-rows.ts";
import { defaultUnpackLimits, unpack, type UnpackLimits } from "./unpack.ts";

/** The bytes of an upload, or a file on disk. A file spares a copy for formats that are read at random places. */
export type FileSource = AsyncIterable<Uint8Array> | { readonly file: string };

interface OpenOptions {
  maxRowBytes: number;
  unpackLimits?: UnpackLimits;
}

/** How often a file may be packed inside of another packing. More is an attack, not a dataset. */
const mostPackings = 2;

/**
 * @returns undefined when the file is empty or blank.
 * @throws PermanentError CONTAINER_UNSUPPORTED, FILE_TRUNCATED, FILE_CORRUPT, FILE_TOO_LARGE
 */
export async function openContainer(
  source: FileSource,
  { maxRowBytes, unpackLimits = defaultUnpackLimits }: OpenOptions,
): Promise<RawRows | undefined> {
  let file = "file" in source ? source : undefined;
  let bytes = file === undefined ? (source as AsyncIterable<Uint8Array>) : createReadStream(file.file, { highWaterMark: 256 * 1024 });
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
        return { container: "parquet", batches: readParquet(file ?? peeked.all(), { maxRowBytes, unpackLimits }) };
      }
      case "arrow-file":
      case "arrow-stream": {
        return { container: "arrow", batches: readArrow(peeked.all(), { maxRowBytes, unpackLimits, asFile: found.is === "arrow-file" }) };
      }
      case "other": {
        await peeked.close();
        const expected = "JSON Lines, a JSON array, CSV, TSV, Parquet or Arrow, plain or packed with gzip or zstd, is expected";
        throw new PermanentError("CONTAINER_UNSUPPORTED", `the file is ${found.name}; ${expected}. ${found.advice}`);
      }
      case "text": {
        let text = toUtf8(skipBytes(peeked.all(), found.skip), found.encoding);
        if (found.encoding === "utf-8" && hasOnlyCarriageReturns(head)) text = withLineFeeds(text);
        return splitText(text, maxRowBytes);
      }
    }
  }
}

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
  let begin = 0;
  let first = await openPart(parts[0] as Part, options);
  while (first === undefined && ++begin < parts.length) first = await openPart(parts[begin] as Part, options);
  if (first === undefined) return undefined;
  const { container, batches } = first;
  async function* all(): AsyncGenerator<RawRow[]> {
    let before = 0;
    for (const [index, part] of parts.slice(begin).entries()) {
      const opened = index === 0 ? batches : (await openPart(part, options))?.batches;
      let last = 0;
      try {
        for await (const batch of opened ?? []) {
          last = batch.at(-1)?.line ?? last;
          yield batch.map((row) => inPart(row, part.name, before));
        }
      } catch (error) {
        throw faultOf(error, part.name);
      }
      before += last;
    }
  }
  return { container, batches: all() };
}

const openPart = (part: Part, options: OpenOptions): Promise<RawRows | undefined> =>
  part
    .open()
    .then((source) => openContainer(source, options))
    .catch((error: unknown) => {
      throw faultOf(error, part.name);
    });

const faultOf = (error: unknown, name: string): unknown =>
  error instanceof PermanentError && !error.code.startsWith("OBJECT_")
    ? new PermanentError(error.code, `${name}: ${error.message}`, { param: error.param, status: error.status, cause: error })
    : error;

function inPart(row: RawRow, name: string, before: number): RawRow {
  const moved = { ...row, line: row.line + before, place: `${name}, ${row.place}` };
  if (!("refusal" in row)) return moved;
  return { ...moved, refusal: { code: row.refusal.code, message: `${name}, ${row.refusal.message}` } };
}

async function splitText(text: AsyncIterable<Uint8Array>, maxRowBytes: number): Promise<RawRows | undefined> {
  // Any number of blank lines may come before the first row.
  const peeked = await peek(text, recogniseBytes, (head) => head.byteLength > maxRowBytes || !head.every(isBlank));
  const { head } = peeked;
  const start = head.findIndex((byte) => !isBlank(byte));
  if (start === -1 && peeked.ended) return undefined;
  if (head[start] === 0x5b) return { container: "json-array", batches: splitArray(peeked.all(), maxRowBytes) };
  const delimiter = recogniseCsv(Buffer.from(head.buffer, head.byteOffset, head.byteLength).toString("utf8"));
  if (delimiter !== undefined) {
    return { container: delimiter === "\t" ? "tsv" : "csv", batches: readCsv(peeked.all(), { delimiter, maxRowBytes }) };
  }
  return { container: "jsonl", batches: splitLines(peeked.all(), maxRowBytes) };
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
