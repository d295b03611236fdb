/** Writes rows of sequences to Arrow IPC streams of limited size, which the trainer reads. */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { BlobRef, tokenShard } from "@loraline/contracts";
import { type Data, Field, Int32, List, makeData, RecordBatch, RecordBatchStreamWriter, Schema, Struct, Utf8 } from "apache-arrow";
import type { z } from "zod";
import type { SequenceStore } from "./sequence-store.ts";

type TokenShard = z.infer<typeof tokenShard>;

interface ShardOptions {
  store: SequenceStore;
  /** Sequences of each row, by their index in the store. */
  rows: Iterable<ArrayLike<number> & Iterable<number>>;
  /** Written into each shard's schema. */
  metadata: ReadonlyMap<string, string>;
  /** Whether there is a column `sides` beside `seq_lengths`: 1 of a chosen or good answer, 0 of another one. */
  sided?: boolean;
  /** Whether there are the columns `pictures`, digests in the order of their tokens, and `picture_counts`, how many each sequence has. */
  pictured?: boolean;
  /** Bytes of token data after which a shard is closed. About as much is held in memory. */
  shardBytes: number;
  put(bytes: AsyncIterable<Uint8Array>): Promise<BlobRef>;
  signal: AbortSignal;
  /** Called after each few milliseconds' work. Default: a turn of the event loop. */
  breathe?: (() => Promise<void>) | undefined;
}

/** Tokens per record batch: the part of a shard that a reader maps at once. */
const batchTokens = 128 * 1024;
const bytesPerToken = 8;

const list = (): List<Int32> => new List(new Field("item", new Int32(), true));
const texts = (): List<Utf8> => new List(new Field("item", new Utf8(), true));
type Columns = {
  input_ids: List<Int32>;
  labels: List<Int32>;
  seq_lengths: List<Int32>;
  sides?: List<Int32>;
  pictures?: List<Utf8>;
  picture_counts?: List<Int32>;
};

/** Equal sequences and rows give equal bytes. */
export async function writeShards(options: ShardOptions): Promise<TokenShard[]> {
  const { store, rows, metadata, sided = false, pictured = false, shardBytes, put, signal, breathe = () => nextTurn() } = options;
  const fields = [
    ...["input_ids", "labels", "seq_lengths", ...(sided ? ["sides"] : [])].map((name) => new Field(name, list(), true)),
    ...(pictured ? [new Field("pictures", texts(), true), new Field("picture_counts", list(), true)] : []),
  ];
  const schema = new Schema<Columns>(fields, new Map(metadata));
  const shards: TokenShard[] = [];
  let writer = new RecordBatchStreamWriter<Columns>();
  let shard = { rows: 0, sequences: 0, tokens: 0, supervised: 0 };
  let batch: (readonly number[])[] = [];
  let waiting = 0;

  const closeBatch = async (): Promise<void> => {
    if (batch.length === 0) return;
    writer.write(toRecordBatch(schema, store, batch, waiting));
    batch = [];
    waiting = 0;
    signal.throwIfAborted();
    await breathe();
  };
  const closeShard = async (): Promise<void> => {
    await closeBatch();
    if (shard.rows === 0) return;
    writer.finish();
    // The writer queues everything that is written, so a shard stays in memory until it is stored. The limit on shards bounds this memory.
    shards.push({ blob: await put(writer), ...shard });
    writer = new RecordBatchStreamWriter<Columns>();
    shard = { rows: 0, sequences: 0, tokens: 0, supervised: 0 };
  };

  for (const row of rows) {
    const sequences = [...row];
    batch.push(sequences);
    shard.rows++;
    for (const index of sequences) {
      shard.sequences++;
      shard.tokens += store.length(index);
      shard.supervised += store.supervised(index);
      waiting += store.length(index);
    }
    if (waiting >= batchTokens) await closeBatch();
    if (shard.tokens * bytesPerToken >= shardBytes) await closeShard();
  }
  await closeShard();
  return shards;
}

function toRecordBatch(
  schema: Schema<Columns>,
  store: SequenceStore,
  rows: readonly (readonly number[])[],
  tokens: number,
): RecordBatch<Columns> {
  const ids = new Int32Array(tokens);
  const labels = new Int32Array(tokens);
  const lengths: number[] = [];
  const has = (name: keyof Columns): boolean => schema.fields.some((field) => field.name === name);
  const [sided, pictured] = [has("sides"), has("pictures")];
  const sides: number[] = [];
  const pictures: string[] = [];
  const pictureCounts: number[] = [];
  const pictureOffsets = new Int32Array(rows.length + 1);
  const tokenOffsets = new Int32Array(rows.length + 1);
  const sequenceOffsets = new Int32Array(rows.length + 1);
  let at = 0;
  for (const [index, row] of rows.entries()) {
    for (const sequence of row) {
      store.read(sequence, ids, labels, at);
      at += store.length(sequence);
      lengths.push(store.length(sequence));
      if (sided) sides.push(store.side(sequence));
      if (pictured) pictureCounts.push(store.pictures(sequence).length);
      if (pictured) for (const { digest } of store.pictures(sequence)) pictures.push(digest);
    }
    tokenOffsets[index + 1] = at;
    sequenceOffsets[index + 1] = lengths.length;
    pictureOffsets[index + 1] = pictures.length;
  }
  const column = (values: Int32Array, valueOffsets: Int32Array) =>
    makeData({
      type: list(),
      length: rows.length,
      nullCount: 0,
      valueOffsets,
      child: makeData({ type: new Int32(), length: values.length, nullCount: 0, data: values }),
    });
  const texted = (values: readonly string[], valueOffsets: Int32Array) => {
    const each = values.map((value) => Buffer.from(value));
    const ends = new Int32Array(values.length + 1);
    for (const [index, { length }] of each.entries()) ends[index + 1] = (ends[index] as number) + length;
    const child = makeData({ type: new Utf8(), length: values.length, nullCount: 0, valueOffsets: ends, data: Buffer.concat(each) });
    return makeData({ type: texts(), length: rows.length, nullCount: 0, valueOffsets, child });
  };
  const children: Data[] = [column(ids, tokenOffsets), column(labels, tokenOffsets), column(Int32Array.from(lengths), sequenceOffsets)];
  if (sided) children.push(column(Int32Array.from(sides), sequenceOffsets));
  if (pictured) children.push(texted(pictures, pictureOffsets), column(Int32Array.from(pictureCounts), sequenceOffsets));
  return new RecordBatch(schema, makeData({ type: new Struct<Columns>(schema.fields), length: rows.length, nullCount: 0, children }));
}
