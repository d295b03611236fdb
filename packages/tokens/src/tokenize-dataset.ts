/** Converts a dataset's records to Arrow shards and their manifest; or says why they cannot be trained on. */
import {
  type BlobRef,
  type DatasetManifest,
  datasetReport,
  type Digest,
  type ProbePrompt,
  type Problem,
  type RunSpec,
  type TokenManifest,
} from "@loraline/contracts";
import { createNearDuplicates, type NearDuplicates } from "@loraline/datasets";
import { digestOf, getJson, type Objects, putJson, putPictureTable } from "@loraline/objects";
import type { Telemetry } from "@loraline/runtime";
import { explainTooFew, listed } from "./decide-remedy.ts";
import { ignored, type Sequence } from "./encoder/encode-pieces.ts";
import { examplesOf, isSided, sequencesPerExample, sequencesTogether } from "./encoder/encode-preferences.ts";
import { createRecordEncoder } from "./encoder/encode-records.ts";
import { type DroppedRecord, type EncodedChunk, recordIdOf, shownRecords, signatureOfSequence } from "./encoder/encoded-chunk.ts";
import { type Base, identityOf } from "./encoder/load-base.ts";
import { type Bins, pack } from "./shards/pack.ts";
import { neutralQuestions, promptOf, promptsFor, sharedStart } from "./probe-prompts.ts";
import { createSequenceStore, type SequenceStore } from "./shards/sequence-store.ts";
import { holdOut, inSeededOrder, shortId } from "./shards/split-holdout.ts";
import { writeShards } from "./shards/write-shards.ts";

/** Version of the conversion. Raise it when the same records give other tokens, rows or probes, so that results cached by older code are not used. */
export const tokenizeCode = "tokenize/5";

export interface TokenizeInput {
  tenant: string;
  base: Base;
  spec: RunSpec;
  dataset: DatasetManifest;
  /** Records for evaluation; null: some of the dataset's records are held out. */
  validation: DatasetManifest | null;
}
interface TokenizeDeps {
  /** Encodes the chunks' records to sequences, in the chunks' order. */
  encode(chunks: DatasetManifest["chunks"]): AsyncIterable<EncodedChunk>;
  objects: Objects;
  telemetry: Telemetry;
  signal: AbortSignal;
  /** Called after each few milliseconds' work. Default: a turn of the event loop. */
  breathe?: () => Promise<void>;
  shardBytes: number;
}
export type TokenizeResult = { kind: "tokenized"; ref: BlobRef; manifest: TokenManifest } | { kind: "rejected"; problem: Problem };

/** `packing: auto` packs only if an epoch still has at least so many steps, because packing reduces them. */
const stepsWorthPacking = 64;
/** Longest probe prompt, in tokens. Longer prompts make the proof slower and not better. */
const probeTokens = 256;
/** Numbers of the run's own probe prompts and of neutral ones: enough to distinguish a weak adapter's effect from rounding (services/serve/src/decide-proof.ts). */
const probesOfEach = 4;
const probeCandidates = 16;
/** Of the run's own probes: a picture is large, and each proof sends it. */
const probesWithPictures = 2;

/** Hash of everything that decides the result. */
export function tokenizeKey({ base, spec, dataset, validation }: TokenizeInput): Digest {
  const { packing } = spec.tokenize;
  const batch = [spec.training.per_device_train_batch_size, spec.training.gradient_accumulation_steps];
  return digestOf(
    JSON.stringify([
      tokenizeCode,
      identityOf(base),
      Object.entries(spec.tokenize).sort(([a], [b]) => (a < b ? -1 : 1)),
      packing === "auto" ? batch : null,
      spec.training.seed,
      [spec.dedupe ?? "none", spec.validation_overlap ?? "drop"],
      dataset.chunks.map((chunk) => chunk.blob.digest),
      validation === null ? spec.holdout : validation.chunks.map((chunk) => chunk.blob.digest),
      ...(examplesOf(spec.method) === "answers" ? [] : [examplesOf(spec.method)]),
    ]),
  );
}

/**
 * Equal jobs give equal bytes. Shards are content-addressed and the manifest is written last.
 * @throws PermanentError TEMPLATE_MISSING, TEMPLATE_UNSUPPORTED, PAD_TOKEN_MISSING, EOS_TOKEN_MISSING, OBJECT_MISSING,
 * OBJECT_CORRUPT, DISK_FULL
 */
export async function tokenizeDataset(deps: TokenizeDeps, input: TokenizeInput): Promise<TokenizeResult> {
  const { objects, telemetry, signal, breathe, shardBytes } = deps;
  const { tenant, base, spec, dataset, validation } = input;
  using store = createSequenceStore();
  const examples = examplesOf(spec.method);

  const [train, evaluation] = await telemetry.span("encode records", {}, async (span) => {
    const evaluated = createRefuse(spec, { remembers: validation !== null });
    const unseen = validation === null ? undefined : await encodeAll(deps, validation, store, evaluated.refuse);
    const all = await encodeAll(deps, dataset, store, createRefuse(spec, { validation: evaluated.kept }).refuse);
    span.setAttributes({ "loraline.sequences": all.sequences.length, "loraline.dropped": counted(all) });
    if (unseen !== undefined) return [all, unseen];
    // Of a single long text, parts are held out.
    const isOne = new Set(all.sequences.map((one) => one.id)).size === 1;
    const unitOf = (one: Stored): number => (isOne ? Math.floor(one.index / sequencesPerExample(examples)) : one.id);
    const heldOut = holdOut(all.sequences.map(unitOf), spec.holdout, spec.training.seed);
    const [kept, held] = [false, true].map((side) => all.sequences.filter((one) => heldOut.has(unitOf(one)) === side));
    return [
      { ...all, sequences: kept ?? [] },
      { ...all, sequences: held ?? [] },
    ];
  });

  const together = sequencesTogether(examples);
  const usable = (train.sequences.length + (validation === null ? evaluation.sequences.length : 0)) / sequencesPerExample(examples);
  if (usable < spec.min_records || train.sequences.length === 0) {
    return { kind: "rejected", problem: await tooFew(objects, input, usable, train.reasons) };
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
    const lengths = new Int32Array(indices.length / together);
    for (const [at, index] of indices.entries()) (lengths[Math.floor(at / together)] as number) += store.length(index);
    const bins = choosePacking(spec, lengths, together * spec.tokenize.max_length);
    const metadata = new Map<string, string>([
      ["loraline.code", tokenizeCode],
      ["loraline.records", "lrec/1"],
      ["loraline.tokenizer", base.encoder.digest],
      ["loraline.template", base.templateDigest],
      ["loraline.tokenize.template", spec.tokenize.template],
      ["loraline.max_length", String(spec.tokenize.max_length)],
      ["loraline.packed", String(bins !== undefined)],
      ["loraline.seed", String(spec.training.seed)],
      ...(examples === "answers" ? [] : ([["loraline.examples", examples]] as const)),
    ]);
    const pictured = [...train.sequences, ...evaluation.sequences].some((one) => store.pictures(one.index).length > 0);
    const write = (rows: Iterable<Int32Array>) =>
      writeShards({
        store,
        rows,
        metadata,
        sided: isSided(examples),
        pictured,
        shardBytes,
        signal,
        breathe,
        put: (bytes) => objects.put(tenant, "shard", bytes),
      });
    const trainShards = await write(rowsOf(indices, together, bins));
    const evalShards = await write(
      rowsOf(
        Int32Array.from(inEvaluationOrder(evaluation.sequences, spec.training.seed), (one) => one.index),
        together,
      ),
    );
    const leaked = promptsHeldOutToo(train, evaluation);

    const sum = (shards: typeof trainShards, count: "sequences" | "tokens" | "supervised"): number =>
      shards.reduce((total, shard) => total + shard[count], 0);
    const sides = validation === null ? [train] : [train, evaluation];
    const droppedCount = sides.reduce((total, side) => total + counted(side), 0);
    const manifest: TokenManifest = {
      version: 1,
      cacheKey: tokenizeKey(input),
      base: base.ref,
      tokenizerDigest: base.encoder.digest,
      templateDigest: base.templateDigest,
      templateFamily: train.family ?? evaluation.family,
      template: spec.tokenize.template,
      maxLength: spec.tokenize.max_length,
      packed: bins !== undefined,
      seed: spec.training.seed,
      code: tokenizeCode,
      train: trainShards,
      eval: evalShards,
      ...(pictured && { pictures: await storePictures(objects, tenant, store, [...train.sequences, ...evaluation.sequences]) }),
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
      noted: [...leaked, ...sides.flatMap((side) => side.noted)].slice(0, shownRecords),
      notes: { ...totalled(sides.map((side) => side.notes)), ...(leaked.length > 0 && { PROMPT_HELD_OUT_TOO: leaked.length }) },
      probes: await choosePrompts(input, store, train),
    };
    span.setAttributes({ "loraline.tokens": manifest.totals.tokens, "loraline.packed": manifest.packed });
    return { kind: "tokenized", ref: await putJson(objects, tenant, "tokens", manifest), manifest };
  });
}

/** Stores the table of the pictures that sequences show. The pictures themselves are stored already, by ingest. */
async function storePictures(
  objects: Objects,
  tenant: string,
  store: SequenceStore,
  sequences: readonly Stored[],
): Promise<TokenManifest["pictures"]> {
  const pictures = new Map(sequences.flatMap((one) => store.pictures(one.index).map((entry) => [entry.digest, entry] as const)));
  return putPictureTable(objects, tenant, pictures.values());
}

/** The trainer evaluates as many of the held-out sequences as its budget allows, from the first. So their order must not be that of the file. */
function inEvaluationOrder(sequences: readonly Stored[], seed: number): Stored[] {
  const rank = new Map(
    inSeededOrder(
      sequences.map((one) => one.id),
      seed,
    ).map((id, at) => [id, at]),
  );
  return sequences.toSorted((a, b) => (rank.get(a.id) as number) - (rank.get(b.id) as number));
}

interface Stored {
  /** Index of the sequence in the store. */
  index: number;
  id: number;
  line: number;
  /** What it asks with pictures, if it could be a probe. */
  question?: NonNullable<ProbePrompt["messages"]>;
  /** Of a preference: hash of the tokens before its answer, and the id of its record. */
  asked?: { prompt: number; digest: Digest };
}
interface Encoded {
  sequences: Stored[];
  dropped: DroppedRecord[];
  noted: DroppedRecord[];
  /** Number of dropped records by code. */
  reasons: Map<string, number>;
  /** Code of a note to count. */
  notes: Map<string, number>;
  family: string | null;
}
const counted = ({ reasons }: Encoded): number => [...reasons.values()].reduce((total, count) => total + count, 0);

type Refuse = (id: number, line: number, signature: Uint32Array | undefined) => { code: string; message: string } | undefined;

/** Leaves out records that could be trained on but that the run does not want, such as duplicates. */
function createRefuse(
  { dedupe, validation_overlap }: RunSpec,
  { validation, remembers = false }: { validation?: Contents; remembers?: boolean },
): { refuse: Refuse; kept: Contents } {
  // The table takes a hundred bytes for each record, so it is made only if it is used.
  const isCompared = remembers || dedupe === "exact" || dedupe === "near";
  const kept: Contents = { lines: new Map(), near: createNearDuplicates(Number.POSITIVE_INFINITY) };
  const unseen = validation_overlap === "keep" ? undefined : validation;
  const refuse: Refuse = (id, line, signature) => {
    const like = (contents: Contents): number | undefined =>
      signature === undefined ? undefined : contents.near.findSigned(signature)?.of;
    if (unseen?.lines.has(id) === true) {
      return { code: "IN_VALIDATION", message: "the validation dataset holds the same record, and it must not be trained on" };
    }
    const [near, earlier] = [unseen && like(unseen), dedupe === "exact" || dedupe === "near" ? kept.lines.get(id) : undefined];
    if (near !== undefined) {
      return {
        code: "NEARLY_IN_VALIDATION",
        message: `line ${near} of the validation dataset says nearly the same, and must not be trained on`,
      };
    }
    if (earlier !== undefined) return { code: "EXACT_DUPLICATE", message: `it says the same as line ${earlier}, which is kept` };
    const alike = dedupe === "near" ? like(kept) : undefined;
    if (alike !== undefined) return { code: "NEAR_DUPLICATE", message: `it says nearly the same as line ${alike}, which is kept` };
    if (isCompared) kept.lines.set(id, kept.lines.get(id) ?? line);
    if (dedupe === "near" && signature !== undefined) kept.near.addSigned(signature, line);
    return undefined;
  };
  return { refuse, kept };
}

/** Finds records by id, with their lines, and by similar content. */
interface Contents {
  lines: Map<number, number>;
  near: NearDuplicates;
}

async function encodeAll(
  { encode, signal }: TokenizeDeps,
  { chunks }: DatasetManifest,
  store: SequenceStore,
  refuse: Refuse,
): Promise<Encoded> {
  const encoded: Encoded = { sequences: [], dropped: [], noted: [], reasons: new Map(), notes: new Map(), family: null };
  const count = (counts: Map<string, number>, code: string, more = 1): void => void counts.set(code, (counts.get(code) ?? 0) + more);
  for await (const chunk of encode(chunks)) {
    signal.throwIfAborted();
    const first = store.add(chunk);
    const dropped: DroppedRecord[] = [...chunk.dropped];
    const questions = new Map(chunk.pictureProbes.map(({ sequence, messages }) => [sequence, messages]));
    let record = { position: -1, id: 0, refused: undefined as DroppedRecord | undefined };
    let next = 0;
    for (const [at, line] of chunk.lines.entries()) {
      const tokens = chunk.lengths[at] as number;
      const start = next;
      next += 2 * tokens;
      if (record.position !== chunk.positions[at]) {
        const digest = recordIdOf(chunk, at);
        const id = shortId(digest);
        const reason = refuse(id, line, signatureOfSequence(chunk, at));
        record = { position: chunk.positions[at] as number, id, refused: reason && { id: digest, line, tokens: 0, ...reason } };
        if (record.refused !== undefined) dropped.push(record.refused);
      }
      if (record.refused === undefined) {
        const stored: Stored = { index: first + at, id: record.id, line };
        // Only comparisons share questions as a rule, so only they are asked about it.
        if (chunk.sides.length > 0) stored.asked = { prompt: hashOfPrompt(chunk, start, tokens), digest: recordIdOf(chunk, at) };
        const question = questions.get(at);
        if (question !== undefined) stored.question = question;
        encoded.sequences.push(stored);
      } else record.refused.tokens += tokens;
    }
    for (const { code } of dropped) count(encoded.reasons, code);
    encoded.dropped.push(...dropped.sort((a, b) => a.line - b.line).slice(0, shownRecords - encoded.dropped.length));
    encoded.noted.push(...chunk.noted.slice(0, shownRecords - encoded.noted.length));
    for (const [code, more] of Object.entries(chunk.notes)) count(encoded.notes, code, more);
    encoded.family ??= chunk.family;
  }
  return encoded;
}

/** @param start - where the sequence's ids stand in the chunk's data; its labels follow. */
function hashOfPrompt({ data }: EncodedChunk, start: number, tokens: number): number {
  const labels = data.subarray(start + tokens, start + 2 * tokens);
  const answer = labels.findIndex((label) => label !== ignored);
  const ids = data.subarray(start, start + (answer === -1 ? tokens : answer));
  return shortId(digestOf(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength)));
}

/** Trained comparisons whose question is that of one that was held out: each record once. */
function promptsHeldOutToo(train: Encoded, held: Encoded): DroppedRecord[] {
  const lines = new Map(held.sequences.flatMap(({ asked, line }) => (asked === undefined ? [] : [[asked.prompt, line] as const])));
  const found = new Map<Digest, DroppedRecord>();
  for (const { asked, line } of train.sequences) {
    const other = asked && lines.get(asked.prompt);
    if (asked === undefined || other === undefined) continue;
    const message = `its question is that of line ${other}, which is held out: what is measured there is a little too good. Put all answers to a question into one row, or give a validation file with other questions.`;
    found.set(asked.digest, { id: asked.digest, line, code: "PROMPT_HELD_OUT_TOO", tokens: 0, message });
  }
  return [...found.values()];
}

function totalled(sides: readonly ReadonlyMap<string, number>[]): Record<string, number> {
  const total: Record<string, number> = {};
  for (const side of sides) for (const [code, count] of side) total[code] = (total[code] ?? 0) + count;
  return total;
}

/** @returns the packed rows; undefined: one sequence per row. */
function choosePacking({ tokenize, training }: RunSpec, lengths: Int32Array, capacity: number): Bins | undefined {
  const { packing, template } = tokenize;
  if (packing === false || (packing === "auto" && template === "seed")) return undefined;
  const bins = pack(lengths, capacity, training.seed);
  const steps = Math.ceil(bins.count / (training.per_device_train_batch_size * training.gradient_accumulation_steps));
  return packing === true || steps >= stepsWorthPacking ? bins : undefined;
}

/** @param together - so many sequences, one after the other, are in the same row: both sides of a pair. Bins hold examples. */
export function* rowsOf(indices: Int32Array, together: number, bins?: Bins): Generator<Int32Array> {
  const example = (item: number): Int32Array => indices.subarray(item * together, (item + 1) * together);
  if (bins === undefined) for (let item = 0; item < indices.length / together; item++) yield example(item);
  else {
    for (let bin = 0; bin < bins.count; bin++) {
      const items = bins.items.subarray(bins.starts[bin], bins.starts[bin + 1]);
      yield Int32Array.from([...items].flatMap((item) => [...example(item)]));
    }
  }
}

/**
 * Chooses the prompts with which a replica must prove that it applies the adapter: some from the training, where the effect is
 * largest, and some others.
 */
async function choosePrompts(
  { base, spec }: TokenizeInput,
  store: SequenceStore,
  { sequences: train, family }: Encoded,
): Promise<ProbePrompt[]> {
  const encoder = createRecordEncoder(base, { ...spec.tokenize, max_length: Math.max(spec.tokenize.max_length, 4096) });
  const neutral =
    spec.tokenize.template === "seed" || family !== null
      ? await promptsFor(encoder, "neutral", neutralQuestions.slice(0, probesOfEach))
      : [];
  const own = new Map<string, ProbePrompt>();
  const seen = new Map<string, ProbePrompt & { bytes: number }>();
  const together = sequencesTogether(examplesOf(spec.method));
  const sequenceOf = ({ index }: Stored): Sequence => {
    const sequence = { ids: new Int32Array(store.length(index)), labels: new Int32Array(store.length(index)) };
    store.read(index, sequence.ids, sequence.labels, 0);
    return sequence;
  };
  const add = (position: number, limit: number): void => {
    const last = train[position] as Stored;
    const pictures = store.pictures(last.index);
    if (pictures.length > 0) {
      const asked = promptOf(sequenceOf(last));
      if (last.question === undefined || asked.length > limit) return;
      const bytes = pictures.reduce((sum, picture) => sum + picture.bytes, 0);
      const probe = {
        name: `line-${last.line}`,
        input_ids: asked,
        pictures: pictures.map(({ digest }) => digest),
        messages: last.question,
      };
      seen.set(JSON.stringify([asked, probe.pictures]), { ...probe, bytes });
      return;
    }
    const prompt = together === 2 ? sharedStart(sequenceOf(train[position - 1] as Stored), sequenceOf(last)) : promptOf(sequenceOf(last));
    if (prompt.length > 0 && prompt.length <= limit) own.set(prompt.join(), { name: `line-${last.line}`, input_ids: prompt });
  };
  // Of a record with several sequences the last counts; of pairs that is a rejected answer, and the chosen one stands before it.
  const byId = new Map(train.map((one, position) => [one.id, position]));
  for (const id of inSeededOrder(byId.keys(), spec.training.seed)) {
    if (own.size >= probeCandidates) break;
    add(byId.get(id) as number, probeTokens);
  }
  const shown = [...seen.values()].sort((a, b) => a.bytes - b.bytes).slice(0, probesWithPictures);
  if (own.size === 0 && shown.length === 0 && neutral.length === 0) {
    const lengthOf = (position: number): number => store.length((train[position] as Stored).index);
    let shortest = together - 1;
    for (let position = shortest; position < train.length; position += together) {
      if (lengthOf(position) < lengthOf(shortest)) shortest = position;
    }
    add(shortest, Number.POSITIVE_INFINITY);
  }
  // Short prompts prove as much as long ones and are answered faster.
  const shortest = [...own.values()].sort((a, b) => a.input_ids.length - b.input_ids.length).slice(0, probesOfEach);
  return [...shown.map(({ bytes: _bytes, ...probe }) => probe), ...shortest, ...neutral];
}

async function tooFew(
  objects: Objects,
  { tenant, spec, dataset }: TokenizeInput,
  usable: number,
  dropped: ReadonlyMap<string, number>,
): Promise<Problem> {
  const { records, rejections } = dataset;
  let rejected: string | undefined;
  if (rejections > 0) {
    const report = await getJson(objects, tenant, dataset.report, datasetReport);
    const reasons = listed(new Map(Object.entries(report.reasons)));
    rejected = `${rejections} of ${records + rejections} rows were rejected before: ${reasons}.`;
    const [first] = report.firstRejections;
    if (first !== undefined) rejected += ` The first, ${first.file === undefined ? "" : `${first.file}, `}${first.message}`;
  }
  return explainTooFew({
    records,
    formats: dataset.formats,
    usable,
    dropped,
    minRecords: spec.min_records,
    tokenize: spec.tokenize,
    method: spec.method.type,
    ...(rejected && { rejected }),
  });
}
