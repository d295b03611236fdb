/**
 * Shards with pictures, as the trainer reads them. `testdata/pictures/train-00000.arrow` is also read by the trainer's own test, so that both
 * sides are held to the same bytes.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { PictureEntry, Rec } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { RecordBatchReader } from "apache-arrow";
import { expect, it } from "vitest";
import { chunkFromBytes, chunkToBytes, encodeChunk } from "../encoder/encoded-chunk.ts";
import type { Encoded, RecordEncoder } from "../encoder/record-encoder.ts";
import { createSequenceStore } from "./sequence-store.ts";
import { writeShards } from "./write-shards.ts";

const folder = join(import.meta.dirname, "../../testdata/pictures");
const picture = (file: string, media_type: PictureEntry["media_type"]): PictureEntry => {
  const bytes = readFileSync(join(folder, file));
  return { digest: digestOf(bytes), bytes: bytes.length, media_type, width: 24, height: 16 };
};
const red = picture("red-square.png", "image/png");
const blue = picture("blue-circle.jpg", "image/jpeg");

/** Ids of SmolVLM's tokenizer: what Idefics3's processor makes of `<image>` where it does not split pictures and shows each as four tokens. */
const shown = [49189, 49152, 49190, 49190, 49190, 49190, 49189];
const sequence = (prompt: readonly number[], answer: readonly number[], pictures: readonly PictureEntry[]): Encoded => ({
  samples: [
    {
      ids: Int32Array.from([...prompt, ...answer]),
      labels: Int32Array.from([...prompt.map(() => -100), ...answer]),
      pictures,
      question: () => [{ role: "user", content: pictures.map(({ digest }) => ({ type: "image" as const, digest })) }],
    },
  ],
  dropped: null,
  notes: [],
});
const rows: readonly Encoded[] = [
  sequence([1, ...shown, 30], [40, 2], [red]),
  sequence([1, 31, 32], [41, 2], []),
  sequence([1, ...shown, 33, ...shown, 34, ...shown], [42, 43, 2], [blue, red, blue]),
];
const encoder: RecordEncoder = { encode: async () => [...rows], ask: async () => undefined, family: "jinja" };
const records = rows.map((_, at): Rec => ({
  v: "lrec/1",
  id: digestOf(String(at)),
  kind: "chat",
  task: "chat",
  meta: { line: at + 1, format: "conversation" },
}));

const write = async (pictured: boolean): Promise<Buffer> => {
  const chunk = chunkFromBytes(chunkToBytes(await encodeChunk(encoder, records)));
  using store = createSequenceStore();
  store.add(chunk);
  const written: Uint8Array[] = [];
  await writeShards({
    store,
    // Two sequences are packed into the first row.
    rows: [[0, 1], [2]],
    metadata: new Map([["loraline.code", "test"]]),
    pictured,
    shardBytes: 1e6,
    signal: new AbortController().signal,
    async put(bytes) {
      for await (const part of bytes) written.push(part);
      return { kind: "shard", digest: digestOf("x"), size: 1 };
    },
  });
  return Buffer.concat(written);
};

it("keeps, for each sequence, which pictures it shows", async () => {
  const bytes = await write(true);
  expect(bytes.equals(readFileSync(join(folder, "train-00000.arrow"))), "bytes of the golden file").toBe(true);

  const [batch] = [...RecordBatchReader.from(bytes)];
  const column = (name: string, row: number): unknown[] => Array.from(batch?.getChild(name)?.get(row) as ArrayLike<unknown>);
  expect(column("pictures", 0)).toEqual([red.digest]);
  expect(column("picture_counts", 0)).toEqual([1, 0]);
  expect(column("pictures", 1)).toEqual([blue.digest, red.digest, blue.digest]);
  expect(column("picture_counts", 1)).toEqual([3]);
  expect(column("seq_lengths", 0)).toEqual([11, 5]);
});

it("writes no columns of pictures for a run without any", async () => {
  const [batch] = [...RecordBatchReader.from(await write(false))];
  expect(batch?.schema.fields.map(({ name }) => name)).toEqual(["input_ids", "labels", "seq_lengths"]);
});

it("keeps each picture of a chunk once, and what a probe would ask", async () => {
  const { pictures, shown: which, pictureProbes } = chunkFromBytes(chunkToBytes(await encodeChunk(encoder, records)));
  expect(pictures).toEqual([red, blue]);
  expect(which).toEqual([
    [0, [0]],
    [2, [1, 0, 1]],
  ]);
  expect(pictureProbes[0]).toEqual({ sequence: 0, messages: [{ role: "user", content: [{ type: "image", digest: red.digest }] }] });
});
