/** Records of a dataset to Arrow shards and their manifest; or the reason why they cannot be trained on. */
import {
  type BlobRef,
  type DatasetManifest,
  datasetReport,
  type Digest,
  type droppedRecord,
  type ProbePrompt,
  type Problem,
  type Rec,
  type RunSpec,
  type TokenManifest,
} from "@loraline/contracts";
import { digestOf, getBytes, getJson, type Objects, putJson } from "@loraline/objects";
import type { Telemetry } from "@loraline/runtime";
import type { z } from "zod";
import { createRecordEncoder, ignored, type RecordEncoder } from "./encode-records.ts";
import type { Base } from "./load-base.ts";
import { type Bins, pack } from "./pack.ts";
import { createSequenceStore, type SequenceStore } from "./sequence-store.ts";
import { holdOut, inSeededOrder, shortId } from "./split-holdout.ts";
import { writeShards } from "./write-shards.ts";

/** Raise it whenever the same records would give other tokens, rows or probes: results cached by older code are then not used. */
export const tokenizeCode = "tokenize/1";

type DroppedRecord = z.infer<typeof droppedRecord>;

export interface TokenizeJob {
  tenant: string;
  base: Base;
  spec: RunSpec;
  dataset: DatasetManifest;
  /** Records to evaluate on; null: some of the dataset are held out. */
  validation: DatasetManifest | null;
}
export interface TokenizeJobDeps {
  objects: Objects;
  telemetry: Telemetry;
  signal: AbortSignal;
  shardBytes: number;
}
export type TokenizeResult = { kind: "tokenized"; ref: BlobRef; manifest: TokenManifest } | { kind: "rejected"; problem: Problem };

/** An epoch needs at least so many steps before packing, which makes them fewer, is chosen by itself. */
const stepsWorthPacking = 64;
const shownRecords = 1000;
const recordsPerBatch = 256;
/** Longer prompts make the proof slow and prove no more. */
const probeTokens = 256;
const neutralQuestions = ["Who are you?", "What should I do today?"];

/** Hash of everything that decides the result. */
export function tokenizeKey({ base, spec, dataset, validation }: TokenizeJob): Digest {
  const { packing } = spec.tokenize;
  const batch = [spec.training.per_device_train_batch_size, spec.training.gradient_accumulation_steps];
  return digestOf(
    JSON.stringify([
      tokenizeCode,
      [base.ref, base.encoder.digest, base.templateDigest, base.special],
      Object.entries(spec.tokenize).sort(([a], [b]) => (a < b ? -1 : 1)),
      packing === "auto" ? batch : null,
      spec.training.seed,
      dataset.chunks.map((chunk) => chunk.blob.digest),
      validation === null ? spec.holdout : validation.chunks.map((chunk) => chunk.blob.digest),
    ]),
  );
}

/**
 * Equal jobs give equal bytes. Shards are content-addressed and the manifest is written last.
 * @throws PermanentError TEMPLATE_MISSING, TEMPLATE_UNSUPPORTED, PAD_TOKEN_MISSING, EOS_TOKEN_MISSING, OBJECT_MISSING,
 * OBJECT_CORRUPT, STORE_FULL, DISK_FULL
 */
export async function tokenizeDataset(deps: TokenizeJobDeps, job: TokenizeJob): Promise<TokenizeResult> {
  const { objects, telemetry, signal, shardBytes } = deps;
  const { tenant, base, spec, dataset, validation } = job;
  using store = createSequenceStore();
  const encoder = createRecordEncoder(base, spec.tokenize);

  const [train, evaluation] = await telemetry.span("encode records", {}, async (span) => {
    const unseen = validation === null ? undefined : await encodeAll(deps, tenant, validation, encoder, store);
    const all = await encodeAll(deps, tenant, dataset, encoder, store, unseen);
    span.setAttributes({ "loraline.sequences": all.sequences.length, "loraline.dropped": counted(all) });
    if (unseen !== undefined) return [all, unseen];
    const heldOut = holdOut(
      all.sequences.map((one) => one.id),
      spec.holdout,
      spec.training.seed,
    );
    const [kept, held] = [false, true].map((side) => all.sequences.filter((one) => heldOut.has(one.id) === side));
    return [
      { ...all, sequences: kept ?? [] },
      { ...all, sequences: held ?? [] },
    ];
  });

  const usable = train.sequences.length + (validation === null ? evaluation.sequences.length : 0);
  if (usable < spec.min_records || train.sequences.length === 0) {
    return { kind: "rejected", problem: await explainTooFew(objects, job, usable, train.reasons) };
  }
  if (!train.sequences.some((one) => store.supervised(one.index) > 0)) {
    const message = `no token of the ${train.sequences.length} sequences would be trained on. Raise tokenize.max_length (now ${spec.tokenize.max_length}).`;
    return { kind: "rejected", problem: { code: "NO_SUPERVISED_TOKENS", message, param: "tokenize.max_length" } };
  }
  if (validation !== null && evaluation.sequences.length === 0) {
    const message = `none of the ${validation.records} records of the validation dataset can be used: ${listed(evaluation.reasons)}.`;
    return { kind: "rejected", problem: { code: "VALIDATION_EMPTY", message, param: "validation" } };
  }

  return await telemetry.span("pack and write shards", {}, async (span) => {
    const indices = Int32Array.from(train.sequences, (one) => one.index);
    const bins = choosePacking(
      spec,
      indices.map((index) => store.length(index)),
    );
    const metadata = new Map<string, string>([
      ["loraline.code", tokenizeCode],
      ["loraline.records", "lrec/1"],
      ["loraline.tokenizer", base.encoder.digest],
      ["loraline.template", base.templateDigest],
      ["loraline.profile", spec.tokenize.profile],
      ["loraline.max_length", String(spec.tokenize.max_length)],
      ["loraline.packed", String(bins !== undefined)],
      ["loraline.seed", String(spec.training.seed)],
    ]);
    const write = (rows: Iterable<Int32Array>) =>
      writeShards({ store, rows, metadata, shardBytes, signal, put: (bytes) => objects.put(tenant, "shard", bytes) });
    const trainShards = await write(rowsOf(indices, bins));
    const evalShards = await write(rowsOf(Int32Array.from(evaluation.sequences, (one) => one.index)));

    const sum = (shards: typeof trainShards, count: "sequences" | "tokens" | "supervised"): number =>
      shards.reduce((total, shard) => total + shard[count], 0);
    const sides = validation === null ? [train] : [train, evaluation];
    const droppedCount = sides.reduce((total, side) => total + counted(side), 0);
    const manifest: TokenManifest = {
      version: 1,
      cacheKey: tokenizeKey(job),
      base: base.ref,
      tokenizerDigest: base.encoder.digest,
      templateDigest: base.templateDigest,
      templateFamily: encoder.family,
      profile: spec.tokenize.profile,
      maxLength: spec.tokenize.max_length,
      packed: bins !== undefined,
      seed: spec.training.seed,
      code: tokenizeCode,
      train: trainShards,
      eval: evalShards,
      totals: {
        sequences: sum(trainShards, "sequences"),
        tokens: sum(trainShards, "tokens"),
        supervised: sum(trainShards, "supervised"),
        evalSequences: sum(evalShards, "sequences"),
        evalSupervised: sum(evalShards, "supervised"),
        dropped: droppedCount,
      },
      dropped: sides.flatMap((side) => side.dropped).slice(0, shownRecords),
      reasons: totalled(sides.map((side) => side.reasons)),
      noted: sides.flatMap((side) => side.noted).slice(0, shownRecords),
      notes: totalled(sides.map((side) => side.notes)),
      probes: await choosePrompts(encoder, store, train.sequences, spec.training.seed),
    };
    span.setAttributes({ "loraline.tokens": manifest.totals.tokens, "loraline.packed": manifest.packed });
    return { kind: "tokenized", ref: await putJson(objects, tenant, "tokens", manifest), manifest };
  });
}

interface Stored {
  /** Index in the store. */
  index: number;
  id: number;
  line: number;
}
interface Encoded {
  sequences: Stored[];
  dropped: DroppedRecord[];
  noted: DroppedRecord[];
  /** Drop code to count. */
  reasons: Map<string, number>;
  /** Code of a note to count. */
  notes: Map<string, number>;
}
const counted = ({ reasons }: Encoded): number => [...reasons.values()].reduce((total, count) => total + count, 0);

async function encodeAll(
  { objects, signal }: TokenizeJobDeps,
  tenant: string,
  dataset: DatasetManifest,
  encoder: RecordEncoder,
  store: SequenceStore,
  validation?: Encoded,
): Promise<Encoded> {
  const encoded: Encoded = { sequences: [], dropped: [], noted: [], reasons: new Map(), notes: new Map() };
  const unseen = new Set(validation?.sequences.map((one) => one.id));
  const drop = (record: Rec, reason: { code: string; message: string; tokens: number }): void => {
    encoded.reasons.set(reason.code, (encoded.reasons.get(reason.code) ?? 0) + 1);
    if (encoded.dropped.length < shownRecords) encoded.dropped.push({ id: record.id, line: record.meta.line, ...reason });
  };
  for (const chunk of dataset.chunks) {
    // Written by ingest and verified by digest, so it is what the contract says.
    const lines = new TextDecoder().decode(await getBytes(objects, tenant, chunk.blob)).split("\n");
    for (let start = 0; start < lines.length; start += recordsPerBatch) {
      signal.throwIfAborted();
      const records = lines.slice(start, start + recordsPerBatch).flatMap((line) => (line === "" ? [] : [JSON.parse(line) as Rec]));
      for (const [at, result] of (await encoder.encode(records)).entries()) {
        const record = records[at] as Rec;
        const id = shortId(record.id);
        if (result.dropped !== null) drop(record, result.dropped);
        else if (unseen.has(id)) {
          const message = "the validation dataset holds the same record, and it must not be trained on";
          const tokens = result.samples.reduce((sum, sample) => sum + sample.ids.length, 0);
          drop(record, { code: "IN_VALIDATION", message, tokens });
        } else {
          for (const sample of result.samples) encoded.sequences.push({ index: store.add(sample), id, line: record.meta.line });
          for (const note of result.notes) {
            encoded.notes.set(note.code, (encoded.notes.get(note.code) ?? 0) + 1);
            if (encoded.noted.length < shownRecords) encoded.noted.push({ id: record.id, line: record.meta.line, ...note });
          }
        }
      }
    }
  }
  return encoded;
}

function totalled(sides: readonly ReadonlyMap<string, number>[]): Record<string, number> {
  const total: Record<string, number> = {};
  for (const side of sides) for (const [code, count] of side) total[code] = (total[code] ?? 0) + count;
  return total;
}

/** undefined: one sequence per row. */
function choosePacking({ tokenize, training }: RunSpec, lengths: Int32Array): Bins | undefined {
  const { packing, profile, max_length: capacity } = tokenize;
  if (packing === false || (packing === "auto" && profile === "seed")) return undefined;
  const bins = pack(lengths, capacity, training.seed);
  const steps = Math.ceil(bins.count / (training.per_device_train_batch_size * training.gradient_accumulation_steps));
  return packing === true || steps >= stepsWorthPacking ? bins : undefined;
}

function* rowsOf(indices: Int32Array, bins?: Bins): Generator<Int32Array> {
  if (bins === undefined) for (const index of indices) yield Int32Array.of(index);
  else {
    for (let bin = 0; bin < bins.count; bin++) {
      yield bins.items.subarray(bins.starts[bin], bins.starts[bin + 1]).map((item) => indices[item] as number);
    }
  }
}

/**
 * Prompts on which a replica will be asked whether it really applies the adapter: some that were trained on, where the
 * effect is largest, and some that were not.
 */
async function choosePrompts(encoder: RecordEncoder, store: SequenceStore, train: readonly Stored[], seed: number): Promise<ProbePrompt[]> {
  const neutral: ProbePrompt[] = [];
  for (const [index, question] of neutralQuestions.entries()) {
    const ids = await encoder.ask(question);
    if (ids !== undefined && ids.length > 0) neutral.push({ name: `neutral-${index + 1}`, input_ids: [...ids] });
  }
  const own = new Map<string, ProbePrompt>();
  const add = ({ index, line }: Stored, limit: number): void => {
    const prompt = promptOf(store, index);
    if (prompt.length > 0 && prompt.length <= limit) own.set(prompt.join(), { name: `line-${line}`, input_ids: prompt });
  };
  const byId = new Map(train.map((one) => [one.id, one]));
  for (const id of inSeededOrder(byId.keys(), seed)) {
    if (own.size >= 4 - neutral.length) break;
    add(byId.get(id) as Stored, probeTokens);
  }
  if (own.size === 0 && neutral.length === 0) {
    const shortest = train.reduce((best, one) => (store.length(one.index) < store.length(best.index) ? one : best));
    add(shortest, Number.POSITIVE_INFINITY);
  }
  return [...own.values(), ...neutral];
}

/** What stands before the last trained span; it ends as the server's prompt does. */
function promptOf(store: SequenceStore, index: number): number[] {
  const ids = new Int32Array(store.length(index));
  const labels = new Int32Array(store.length(index));
  store.read(index, ids, labels, 0);
  let start = labels.findLastIndex((label) => label !== ignored);
  while (start > 0 && labels[start - 1] !== ignored) start--;
  return [...ids.subarray(0, start)];
}

async function explainTooFew(objects: Objects, job: TokenizeJob, usable: number, reasons: ReadonlyMap<string, number>): Promise<Problem> {
  const { tenant, spec, dataset } = job;
  const { records, rejections } = dataset;
  const nothingTrained = usable === 0 && reasons.size === 1 && reasons.has("NO_SUPERVISED");
  let message = `${usable} of the ${records} records can be trained on, and min_records is ${spec.min_records}.`;
  if (reasons.size > 0) message += ` Dropped: ${listed(reasons)}.`;
  if (rejections > 0) {
    const report = await getJson(objects, tenant, dataset.report, datasetReport);
    message += ` ${rejections} of ${records + rejections} rows were rejected before: ${listed(new Map(Object.entries(report.reasons)))}.`;
    const [first] = report.firstRejections;
    if (first !== undefined) message += ` The first: ${first.file}, line ${first.line}: ${first.message}`;
  }
  if (nothingTrained) {
    return {
      code: "NO_SUPERVISED_TOKENS",
      message: `no token would be trained on. ${message} Raise tokenize.max_length.`,
      param: "tokenize.max_length",
    };
  }
  message += reasons.has("TOO_LONG")
    ? ` Raise tokenize.max_length (now ${spec.tokenize.max_length}), or set tokenize.too_long to trim-prompt.`
    : " Add records, or lower min_records.";
  return { code: "TOO_FEW_RECORDS", message, param: reasons.has("TOO_LONG") ? "tokenize.max_length" : "dataset" };
}

const listed = (reasons: ReadonlyMap<string, number>): string => [...reasons].map(([code, count]) => `${code} ${count}`).join(", ");
