/**
 * Arrow to rows, batch by batch: IPC streams, and IPC files (Feather), which are a stream between two marks.
 *
 * Messages are judged before apache-arrow gets them: how large they say they are, that they are whole, of how much their headers speak, and what
 * packed buffers unpack to.
 */
import { zstdDecompressSync } from "node:zlib";
import { PermanentError } from "@loraline/runtime";
import {
  compressionRegistry,
  CompressionType,
  type Data,
  DataType,
  DateUnit,
  Message,
  RecordBatchReader,
  TimeUnit,
  Vector,
} from "apache-arrow";
import { judgeArrowHeader } from "./judge-arrow-header.ts";
import { decodeLz4Frame } from "./lz4-frame.ts";
import type { RawRow } from "./raw-rows.ts";
import { createRowBatch, dayOf, decimalOf, textOf, textOrBinary, timeOf, TooMany } from "./row-values.ts";
import type { UnpackLimits } from "./unpack.ts";

/** Largest batch, in bytes after unpacking: apache-arrow needs the whole batch in memory. */
const maxBatchBytes = 256 * 1024 * 1024;
/** Largest header of a message, in bytes: a schema, or where the columns of a batch lie. */
const maxHeaderBytes = 4 * 1024 * 1024;
/** A file with more rows than this, and more than a hundred rows per byte, was made as an attack: columns without values take no bytes. */
const freeRows = 1_000_000;
const rowsOfBatch = 500;

/** Unpacks a buffer, to at most `limit` bytes. */
const codecs: Partial<Record<CompressionType, (bytes: Uint8Array, limit: number) => Uint8Array>> = {
  [CompressionType.ZSTD]: (bytes, limit) => zstdDecompressSync(bytes, { maxOutputLength: Math.max(1, limit) }),
  [CompressionType.LZ4_FRAME]: decodeLz4Frame,
};
for (const type of [CompressionType.ZSTD, CompressionType.LZ4_FRAME]) {
  compressionRegistry.set(type, { decode: (bytes) => codecs[type]?.(bytes, maxBatchBytes) as Uint8Array });
}

/** @throws PermanentError FILE_TRUNCATED, FILE_CORRUPT, FILE_TOO_LARGE from the iteration. */
export async function* readArrow(
  source: AsyncIterable<Uint8Array>,
  { maxRowBytes, unpackLimits, asFile }: { maxRowBytes: number; unpackLimits: UnpackLimits; asFile: boolean },
): AsyncGenerator<RawRow[], void, undefined> {
  const judged = judgeMessages(source, asFile, unpackLimits);
  const rows = createRowBatch({ maxRowBytes, maxBytes: unpackLimits.maxUnpackedBytes });
  let line = 0;
  try {
    const reader = await RecordBatchReader.from(judged.messages);
    for await (const batch of reader) {
      const { numRows } = batch;
      if (line + numRows > freeRows && line + numRows > judged.bytesRead() * 100) {
        throw new PermanentError(
          "FILE_TOO_LARGE",
          `the Arrow file has ${line + numRows} rows in ${judged.bytesRead()} bytes, as bombs do.`,
        );
      }
      const columns = batch.schema.fields.map(({ name }, index) => ({ name, vector: batch.getChildAt(index) as Vector }));
      for (let index = 0; index < numRows; index++) {
        // Without a prototype any name of a column is only a name.
        const row = Object.create(null) as Record<string, unknown>;
        const room: Room = { values: maxRowBytes / 8 };
        for (const { name, vector } of columns) row[name] = valueAt(vector, index, room);
        line++;
        if (rows.add(line, row) || line % rowsOfBatch === 0) yield rows.take();
      }
      yield rows.take();
    }
    // apache-arrow does not notice that a file was cut off: it takes the last byte for the end.
    judged.throwFault();
  } catch (error) {
    judged.throwFault();
    throw faultOf(error as Error, ` after row ${line}`);
  } finally {
    await judged.messages.return();
  }
}

/** The messages of a stream or file, up to its end mark, in pieces of any size. */
function judgeMessages(source: AsyncIterable<Uint8Array>, asFile: boolean, { maxUnpackedBytes }: UnpackLimits) {
  const iterator = source[Symbol.asyncIterator]();
  let chunk: Uint8Array = new Uint8Array(0);
  let bytesRead = 0;
  let unpacked = 0;
  let fault: unknown;
  let lost: { error: unknown } | undefined;

  const cutOff = (): PermanentError =>
    new PermanentError(
      "FILE_TRUNCATED",
      "the Arrow file ends too early: it was cut off, or not closed by its writer. Write and upload it again.",
    );
  /** At most `count` bytes; undefined at the end. */
  const some = async (count: number): Promise<Uint8Array | undefined> => {
    while (chunk.byteLength === 0) {
      const next = await iterator.next().catch((error: unknown) => {
        // Such an error is about the disk and not about the file's content.
        lost = { error };
        throw error;
      });
      if (next.done === true) return undefined;
      chunk = next.value;
    }
    const taken = chunk.subarray(0, count);
    chunk = chunk.subarray(taken.byteLength);
    bytesRead += taken.byteLength;
    return taken;
  };
  async function* pieces(count: number): AsyncGenerator<Uint8Array> {
    for (let left = count; left > 0;) {
      const piece = await some(left);
      if (piece === undefined) throw cutOff();
      left -= piece.byteLength;
      yield piece;
    }
  }
  const exactly = async (count: number): Promise<Buffer> => {
    const parts: Uint8Array[] = [];
    for await (const piece of pieces(count)) parts.push(piece);
    return Buffer.concat(parts);
  };

  async function* all(): AsyncGenerator<Uint8Array, void, undefined> {
    if (asFile) await exactly(8);
    let marked = false;
    let schemas = 0;
    for (;;) {
      let prefix = await exactly(4);
      let size = prefix.readInt32LE(0);
      if (size === -1) {
        marked = true;
        prefix = Buffer.concat([prefix, await exactly(4)]);
        size = prefix.readInt32LE(4);
      } else if (marked && asFile) {
        // Writers may leave out the end mark, for the table of contents follows.
        size = 0;
      }
      if (size === 0) break;
      if (size < 0 || size > maxHeaderBytes) throw new Error("a message has a header of a size that cannot be");
      const head = await exactly(size);
      judgeArrowHeader(head);
      const message = Message.decode(head);
      // apache-arrow would decode each.
      if (message.isSchema() && ++schemas > 1) throw new Error("it has more than one schema");
      const { bodyLength } = message;
      if (!(bodyLength >= 0)) throw new Error("a message has a body of a size that cannot be");
      if (bodyLength > maxBatchBytes) throw batchTooLarge(bodyLength);
      unpacked += bodyLength;
      yield prefix;
      yield head;
      const batch = message.isRecordBatch() ? message.header() : message.isDictionaryBatch() ? message.header().data : undefined;
      if (batch === undefined || batch.compression === null) yield* pieces(bodyLength);
      else {
        const body = await exactly(bodyLength);
        unpacked += judgePacked(body, batch.buffers, codecs[batch.compression.type]);
        yield body;
      }
      if (unpacked > maxUnpackedBytes)
        throw new PermanentError("FILE_TOO_LARGE", `the Arrow file unpacks to more than ${maxUnpackedBytes} bytes. Split it.`);
    }
    yield Buffer.from([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    // Bytes after the end of a stream are not part of it and are refused; a file ends with its own mark.
    let tail: Uint8Array = new Uint8Array(0);
    for (let piece = await some(65_536); piece !== undefined; piece = await some(65_536)) {
      if (!asFile) throw new Error("more bytes follow the end of the stream");
      tail = Buffer.concat([tail, piece]).subarray(-6);
    }
    if (asFile && Buffer.from(tail).toString("latin1") !== "ARROW1") throw cutOff();
  }
  async function* noted(): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      yield* all();
    } catch (error) {
      fault = error;
      throw error;
    } finally {
      await iterator.return?.();
    }
  }
  return {
    messages: noted(),
    bytesRead: () => bytesRead,
    throwFault(): void {
      if (lost !== undefined) throw lost.error;
      if (fault !== undefined) throw faultOf(fault as Error, "");
    },
  };
}

const faultOf = (error: Error, where: string): Error =>
  error instanceof PermanentError
    ? error
    : new PermanentError("FILE_CORRUPT", `the Arrow file cannot be read${where}: ${error.message}. Write it again.`, { cause: error });

const batchTooLarge = (bytes: number): PermanentError =>
  new PermanentError(
    "FILE_TOO_LARGE",
    `the Arrow file has a batch of ${bytes} bytes; a batch may have ${maxBatchBytes}. Write it in smaller batches, or as Parquet.`,
  );

/** Unpacks each buffer once, with a limit, to check its declared size: apache-arrow unpacks without a limit. @returns bytes unpacked. */
function judgePacked(
  body: Uint8Array,
  buffers: readonly { offset: number; length: number }[],
  codec: ((bytes: Uint8Array, limit: number) => Uint8Array) | undefined,
): number {
  if (codec === undefined) throw new Error("its buffers are packed in a way that is not known");
  let total = 0;
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  for (const { offset, length } of buffers) {
    if (length === 0) continue;
    if (!(offset >= 0 && length >= 8 && offset + length <= body.byteLength)) throw new Error("a buffer lies outside of its message");
    const said = Number(view.getBigInt64(offset, true));
    if (said === -1) continue;
    total += said;
    if (!(said >= 0) || total > maxBatchBytes) throw batchTooLarge(total);
    const { byteLength } = codec(body.subarray(offset + 8, offset + length), said);
    if (byteLength !== said) throw new Error("a packed buffer is not what it says");
  }
  return total;
}

const units: Readonly<Record<TimeUnit, "second" | "milli" | "micro" | "nano">> = {
  [TimeUnit.SECOND]: "second",
  [TimeUnit.MILLISECOND]: "milli",
  [TimeUnit.MICROSECOND]: "micro",
  [TimeUnit.NANOSECOND]: "nano",
};

/** How many values of lists a row may still have. A list of nulls takes no bytes in the file, however long it says it is. */
interface Room {
  values: number;
}

/** The values of a list, or what stands for more than the row has room for. */
function listOf(length: number, room: Room, at: (index: number) => unknown): unknown {
  room.values -= length;
  return room.values < 0 ? new TooMany(length) : Array.from({ length }, (_, index) => at(index));
}

/** Reads one value without apache-arrow's losses: digits, fractions of a second, and text that is not UTF-8. */
function valueAt(vector: Vector, index: number, room: Room): unknown {
  const data = vector.data[0] as Data | undefined;
  if (data === undefined || !vector.isValid(index)) return null;
  const { type } = vector as { type: DataType };
  if (DataType.isUtf8(type) || DataType.isLargeUtf8(type)) {
    const offsets = data.valueOffsets as Int32Array | BigInt64Array;
    return textOf((data.values as Uint8Array).subarray(Number(offsets[index]), Number(offsets[index + 1])));
  }
  if (DataType.isDictionary(type)) return valueAt(data.dictionary as Vector, Number((data.values as Int32Array)[index]), room);
  if (DataType.isList(type) || DataType.isLargeList(type) || DataType.isFixedSizeList(type)) {
    const items = vector.get(index) as Vector;
    return listOf(items.length, room, (at) => valueAt(items, at, room));
  }
  if (DataType.isStruct(type)) {
    // A struct of nulls takes no bytes either.
    room.values -= type.children.length;
    if (room.values < 0) return new TooMany(type.children.length);
    const row = Object.create(null) as Record<string, unknown>;
    for (const [at, { name }] of type.children.entries()) row[name] = valueAt(new Vector([data.children[at] as Data]), index, room);
    return row;
  }
  if (DataType.isMap(type)) {
    const offsets = data.valueOffsets;
    const length = Number(offsets[index + 1]) - Number(offsets[index]);
    room.values -= length;
    if (room.values < 0) return new TooMany(length);
    const entries = vector.get(index) as Iterable<[unknown, unknown]>;
    return Object.fromEntries([...entries].map(([key, value]) => [String(key), plain(value, room)]));
  }
  if (DataType.isDecimal(type)) {
    const words = vector.get(index) as Uint32Array;
    if (words.length > 8) throw new Error(`a decimal number has ${words.length * 32} bits; 256 are allowed`);
    let unscaled = 0n;
    for (const [at, word] of words.entries()) unscaled |= BigInt(word >>> 0) << BigInt(32 * at);
    return decimalOf(BigInt.asIntN(words.length * 32, unscaled), type.scale);
  }
  if (DataType.isTimestamp(type)) return timeOf(BigInt((data.values as BigInt64Array)[index] as bigint), units[type.unit]);
  if (DataType.isDate(type) && type.unit === DateUnit.DAY) return dayOf(Number((data.values as Int32Array)[index]));
  return plain(vector.get(index), room);
}

/** Values of all other types: numbers, booleans, bytes, and types that training data does not have. */
function plain(value: unknown, room: Room): unknown {
  if (value instanceof Uint8Array) return textOrBinary(value);
  if (value instanceof Date) return value.toISOString();
  if (value instanceof Vector) return listOf(value.length, room, (at) => valueAt(value, at, room));
  return ArrayBuffer.isView(value) ? Array.from(value as unknown as Iterable<unknown>) : value;
}
