/**
 * Tokenizes without any service: records in, a folder of shards out. Nothing is shuffled or held out, so rows have the records' order.
 * Every record without a row is listed with its line and the reason.
 */
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import { mkdir, readdir, rename, rm, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { type BlobRef, type Rec, olderTemplates, templateOf, templates, tokenizeSpec } from "@loraline/contracts";
import { explainSystemError, PermanentError } from "@loraline/runtime";
import { z } from "zod";
import { type Examples, isSided, sequencesTogether } from "./encoder/encode-preferences.ts";
import { createRecordEncoder } from "./encoder/encode-records.ts";
import { createEncodeThreads, type EncodeThreads } from "./encoder/encode-threads.ts";
import { chunkFromBytes, type DroppedRecord, encodeChunk, type EncodedChunk } from "./encoder/encoded-chunk.ts";
import { type Base, loadBase } from "./encoder/load-base.ts";
import type { TokenizeSpec } from "./encoder/record-encoder.ts";
import { pack } from "./shards/pack.ts";
import { createSequenceStore } from "./shards/sequence-store.ts";
import { rowsOf, tokenizeCode } from "./tokenize-dataset.ts";
import { writeShards } from "./shards/write-shards.ts";

export interface TokenizeRecordsOptions {
  /** Records in the file's order, in batches of any size, from `readRecords` of packages/datasets. */
  batches: AsyncIterable<{ records: readonly Rec[] }>;
  /** Folder with tokenizer.json and tokenizer_config.json; chat_template.jinja, generation_config.json and base.json may be absent. */
  baseDir: string;
  /** Output folder: empty or absent. A folder that this function wrote before is replaced. */
  outDir: string;
  /** Defaults as in the run spec, but `packing: "auto"` means no packing: there are no training steps to choose by. */
  tokenize?: z.input<typeof tokenizeSpec>;
  /** What the method of the run trains. Default: answers. Both sides of a pair are adjacent sequences of a row; `sides` says which is which. */
  examples?: Examples;
  /** Decides which of equally long sequences share a packed row, and the order of the packed rows. */
  seed?: number;
  /** The official package encodes everything, several times slower. A fallback in case the fast encoder is ever wrong. */
  exact?: boolean;
  shardBytes?: number;
  signal?: AbortSignal;
  onDropped?(record: TokenizedDrop): void;
}

export type TokenizedDrop = DroppedRecord;

/** `manifest.json` of the folder; written last. */
export const tokenFolderManifest = z
  .object({
    version: z.literal(1),
    code: z.string(),
    base: z.object({ dir: z.string().describe("As it was given."), name: z.string() }),
    tokenizerDigest: z.string(),
    templateDigest: z.string(),
    templateFamily: z.string().nullable(),
    template: templates.optional(),
    profile: olderTemplates,
    system: z.string().nullable(),
    maxLength: z.int(),
    tooLong: z.string(),
    packed: z.boolean(),
    seed: z.int(),
    examples: z.string().optional().describe("Absent: answers."),
    shards: z.array(
      z.object({
        file: z.string(),
        digest: z.string(),
        bytes: z.int(),
        rows: z.int(),
        sequences: z.int(),
        tokens: z.int(),
        supervised: z.int(),
      }),
    ),
    /** records = records that gave sequences + dropped. */
    totals: z.object({
      records: z.int(),
      rows: z.int(),
      sequences: z.int(),
      tokens: z.int(),
      supervised: z.int(),
      dropped: z.int(),
    }),
    /** Number of dropped records by code; each one is listed in dropped.jsonl. */
    dropped: z.record(z.string(), z.int()),
    /** Number of kept records by note, such as PROMPT_TRIMMED. */
    notes: z.record(z.string(), z.int()),
  })
  .transform(({ template, profile, ...manifest }) => ({ ...manifest, template: templateOf({ template, profile }) }));
export type TokenFolderManifest = z.infer<typeof tokenFolderManifest>;

/**
 * Writes `shard-00000.arrow` …, `lines.txt` (line n: the source lines of row n), `dropped.jsonl` ({@link TokenizedDrop} per
 * line) and `manifest.json`.
 * @throws PermanentError BASE_FILES_MISSING, TOKENIZER_INVALID, TEMPLATE_MISSING, TEMPLATE_UNSUPPORTED, PAD_TOKEN_MISSING,
 * EOS_TOKEN_MISSING, OUT_NOT_EMPTY, DISK_FULL
 */
export async function tokenizeRecords(options: TokenizeRecordsOptions): Promise<TokenFolderManifest> {
  const { batches, baseDir, outDir, seed = 42, shardBytes = 64 * 1024 * 1024, signal = new AbortController().signal, onDropped } = options;
  const spec = tokenizeSpec.parse(options.tokenize ?? {});
  const { exact = false, examples = "answers" } = options;
  const together = sequencesTogether(examples);
  const groups = inGroups(batches, recordsPerChunk);
  const first = await groups.next();
  const second = first.done === true ? first : await groups.next();
  const count = availableParallelism();
  await using threads = createEncodeThreads(count, { exact });
  // A small file is finished before a thread has started. For a large file the threads load the base while this thread does.
  if (second.done !== true) threads.warm(baseDir);
  const base = await loadBase(baseDir, { fast: exact ? "none" : "judged" });
  await makeEmpty(outDir);
  using store = createSequenceStore();
  const lines: number[] = [];
  const dropped: TokenizedDrop[] = [];
  const reasons: Record<string, number> = {};
  const notes: Record<string, number> = {};
  const totals = { records: 0, rows: 0, sequences: 0, tokens: 0, supervised: 0, dropped: 0 };
  let family: string | null = null;
  const all = chained(second === first ? [first] : [first, second], groups);
  const chunks =
    second.done === true ? alone(base, spec, examples, all, signal) : withThreads(threads, count, { base, spec, examples }, all, signal);
  for await (const chunk of chunks) {
    totals.records += chunk.records;
    family ??= chunk.family;
    store.add(chunk);
    for (const line of chunk.lines) lines.push(line);
    for (const one of chunk.dropped) {
      dropped.push(one);
      onDropped?.(one);
      reasons[one.code] = (reasons[one.code] ?? 0) + 1;
    }
    for (const [code, count] of Object.entries(chunk.notes)) notes[code] = (notes[code] ?? 0) + count;
  }

  const packed = spec.packing === true;
  const lengths = new Int32Array(lines.length / together);
  for (const index of lines.keys()) (lengths[Math.floor(index / together)] as number) += store.length(index);
  const bins = packed ? pack(lengths, together * spec.max_length, seed) : undefined;
  const rows = [...rowsOf(Int32Array.from(lines.keys()), together, bins)];

  const files: string[] = [];
  const shards = await writeShards({
    store,
    rows,
    sided: isSided(examples),
    metadata: new Map([
      ["loraline.code", tokenizeCode],
      ["loraline.records", "lrec/1"],
      ["loraline.tokenizer", base.encoder.digest],
      ["loraline.template", base.templateDigest],
      ["loraline.tokenize.template", spec.template],
      ["loraline.max_length", String(spec.max_length)],
      ["loraline.packed", String(packed)],
      ["loraline.seed", String(seed)],
      ...(examples === "answers" ? [] : ([["loraline.examples", examples]] as const)),
    ]),
    shardBytes,
    signal,
    async put(bytes) {
      const file = `shard-${String(files.length).padStart(5, "0")}.arrow`;
      files.push(file);
      return writeBlob(join(outDir, file), bytes);
    },
  });
  for (const shard of shards) {
    totals.rows += shard.rows;
    totals.sequences += shard.sequences;
    totals.tokens += shard.tokens;
    totals.supervised += shard.supervised;
  }
  totals.dropped = dropped.length;
  await writeFile(join(outDir, "lines.txt"), rows.map((row) => `${Array.from(row, (index) => lines[index]).join(" ")}\n`).join(""));
  await writeFile(join(outDir, "dropped.jsonl"), dropped.map((one) => `${JSON.stringify(one)}\n`).join(""));
  const manifest: TokenFolderManifest = {
    version: 1,
    code: tokenizeCode,
    base: { dir: baseDir, name: base.ref.name },
    tokenizerDigest: base.encoder.digest,
    templateDigest: base.templateDigest,
    templateFamily: family,
    template: spec.template,
    system: spec.system ?? null,
    maxLength: spec.max_length,
    tooLong: spec.too_long,
    packed,
    seed,
    ...(examples === "answers" ? {} : { examples }),
    shards: shards.map(({ blob, ...counts }, index) => ({
      file: files[index] as string,
      digest: blob.digest,
      bytes: blob.size,
      ...counts,
    })),
    totals,
    dropped: reasons,
    notes,
  };
  await writeFile(join(outDir, "manifest.json.part"), `${JSON.stringify(manifest, null, 2)}\n`);
  await rename(join(outDir, "manifest.json.part"), join(outDir, "manifest.json"));
  return manifest;
}

/** Records from which threads are worth their start, with a vocabulary loaded in each. */
const recordsPerChunk = 1024;

type Group = readonly Rec[];

async function* withThreads(
  threads: EncodeThreads,
  count: number,
  { base, spec, examples }: { base: Base; spec: TokenizeSpec; examples: Examples },
  groups: AsyncIterable<Group>,
  signal: AbortSignal,
): AsyncGenerator<EncodedChunk> {
  const started: Promise<EncodedChunk>[] = [];
  for await (const records of groups) {
    const jsonl = new TextEncoder().encode(records.map((record) => JSON.stringify(record)).join("\n"));
    const encoded = threads.encode({ base, spec, examples, records: jsonl, compress: false, signal }).then(chunkFromBytes);
    encoded.catch(() => undefined); // the error is reported when this chunk's turn comes
    started.push(encoded);
    if (started.length > count * 2) yield started.shift() as Promise<EncodedChunk>;
  }
  while (started.length > 0) yield started.shift() as Promise<EncodedChunk>;
}

async function* alone(
  base: Base,
  spec: TokenizeSpec,
  examples: Examples,
  groups: AsyncIterable<Group>,
  signal: AbortSignal,
): AsyncGenerator<EncodedChunk> {
  for await (const records of groups) yield encodeChunk(createRecordEncoder(base, spec, examples), records, { signal });
}

async function* chained(read: readonly IteratorResult<Group, void>[], rest: AsyncIterable<Group>): AsyncGenerator<Group> {
  for (const one of read) if (one.done !== true) yield one.value;
  yield* rest;
}

async function* inGroups(batches: TokenizeRecordsOptions["batches"], size: number): AsyncGenerator<Group, void> {
  let group: Rec[] = [];
  for await (const { records } of batches) {
    for (const record of records) {
      group.push(record);
      if (group.length < size) continue;
      yield group;
      group = [];
    }
  }
  if (group.length > 0) yield group;
}

const ours = /^(shard-\d{5,}\.arrow|lines\.txt|dropped\.jsonl|manifest\.json(\.part)?)$/;

async function makeEmpty(dir: string): Promise<void> {
  await mkdir(dir, { recursive: true });
  const names = await readdir(dir);
  const foreign = names.find((name) => !ours.test(name));
  if (foreign !== undefined) {
    throw new PermanentError("OUT_NOT_EMPTY", `${dir} holds other files, such as ${foreign}. Name an empty or a new folder.`, {
      param: "out",
    });
  }
  // The manifest is removed first: a folder without a manifest is not complete.
  for (const name of names.sort((a, b) => Number(b.startsWith("manifest")) - Number(a.startsWith("manifest")))) await rm(join(dir, name));
}

/** Writes and hashes a file, so that the manifest has its digest. */
async function writeBlob(path: string, bytes: AsyncIterable<Uint8Array>): Promise<BlobRef> {
  const sha256 = createHash("sha256");
  let size = 0;
  const hashed = async function* (): AsyncGenerator<Uint8Array> {
    for await (const part of bytes) {
      sha256.update(part);
      size += part.byteLength;
      yield part;
    }
  };
  try {
    await pipeline(hashed, createWriteStream(path));
  } catch (error) {
    throw explainSystemError(error, `writing ${path}`);
  }
  return { kind: "shard", digest: `sha256:${sha256.digest("hex")}`, size };
}
