/** `run.requested` → `run.tokenized` or `run.rejected`. */
import { setTimeout as sleep } from "node:timers/promises";
import {
  type Bus,
  type HandlerContext,
  judgeRequestAgain,
  judgeRunByQuotas,
  type Received,
  tellProgress,
  tellWaiting,
  type TenantQuotas,
} from "@loraline/bus";
import {
  type BaseRef,
  type BlobRef,
  buckets,
  byMethod,
  cacheKey,
  datasetDeleted,
  datasetImportRequested,
  datasetIngested,
  type DatasetManifest,
  datasetManifest,
  datasetReceived,
  datasetRejected,
  datasetWaiting,
  type EngineRecord,
  type EventAddress,
  type InitialAdapter,
  type MethodOf,
  type MethodTable,
  type Problem,
  runCommandRefused,
  runProgress,
  runRejected,
  runRequested,
  type RunSpec,
  runTokenized,
  runWaiting,
  type TokenManifest,
  tokenManifest,
  type Twin,
} from "@loraline/contracts";
import { enginesServing, judgeRunSpec, kinship } from "@loraline/models";
import { getJson, type Objects } from "@loraline/objects";
import { PermanentError, problemOf, RetryLaterError, type Telemetry } from "@loraline/runtime";
import type { ChunkWorkDeps } from "./chunk-key.ts";
import { encodeChunks, forgetChunks, TokensNotNeeded } from "./encode-chunks.ts";
import { needsNoTokens, rejectingCodes } from "./run-outcome.ts";
import {
  type EncodedChunk,
  examplesOf,
  judgeTemplate,
  seedSystem,
  sequencesPerExample,
  tokenizeDataset,
  type TokenizeInput,
  tokenizeKey,
  type TokenizeResult,
} from "@loraline/tokens";
import { findInitialAdapter } from "./find-initial-adapter.ts";
import { tokenizeImport } from "./tokenize-import.ts";

interface OnRunRequestedDeps extends ChunkWorkDeps {
  telemetry: Telemetry;
  quotas: TenantQuotas;
  shardBytes: number;
  /** How often it is told how far tokenizing is. Default: every two seconds. */
  tellEveryMs?: number | undefined;
}

const pollMs = 100;
/**
 * A dataset is waited for so long here, where what is read in seconds goes on at once. Then the message goes back to the queue, however long
 * the dataset takes: its place is one of few, and others' runs have theirs ready.
 */
const patienceMs = 5000;
/** Tries during which an engine may still be registering. */
const engineTries = 5;

/**
 * Each step is harmless when repeated: shards, manifest and cache entry are functions of records, base and settings, and
 * the event has one id. The order is shards, manifest, cache entry, event, acknowledgement.
 */
export function onRunRequested(deps: OnRunRequestedDeps) {
  const { bus } = deps;
  return async (received: Received<typeof runRequested>, context: HandlerContext): Promise<void> => {
    const { at } = received;
    const { log } = context;
    // A second request under the same id does not count. A redriven request has the same spec as the first, and does.
    const first = await bus.first(runRequested, at);
    const problem =
      first !== undefined && first.seq < received.seq
        ? judgeRequestAgain(at.id, { first: first.data.spec, again: received.data.spec })
        : undefined;
    if (problem !== undefined) {
      log.warn({ seq: received.seq, first: first?.seq }, "the run was requested before with another spec, which counts");
      await bus.publish(runCommandRefused, at, { command: received.type, ...problem }, { key: `refused-${received.seq}` });
      return;
    }
    if (await needsNoTokens(bus, at)) return;
    const outcome = await tokenizeRun(deps, received, context).catch((error: unknown) => {
      if (!(error instanceof PermanentError) || !rejectingCodes.has(error.code)) throw error;
      return { kind: "rejected" as const, problem: { code: error.code, message: error.message, param: error.param } };
    });
    switch (outcome.kind) {
      case "not-needed":
        return;
      case "rejected":
        log.info({ code: outcome.problem.code }, "run rejected");
        await bus.publish(runRejected, at, outcome.problem);
        return;
      case "tokenized": {
        const { ref, manifest, cacheHit } = outcome;
        const system = await systemOf(bus, at.tenant, received.data.spec);
        log.info({ ...manifest.totals, packed: manifest.packed, cacheHit }, "run tokenized");
        const { init } = outcome;
        const { totals, packed, base } = manifest;
        const twins = await twinsOf(bus, at.tenant, base);
        await bus.publish(runTokenized, at, { manifest: ref, totals, packed, cacheHit, system, init, twins });
        return;
      }
    }
  };
}

/** Quantised bases that serve what is trained on a base, because it has no engine itself. */
async function twinsOf(bus: Bus, tenant: string, base: BaseRef): Promise<Twin[]> {
  const serving = enginesServing((await enginesOf(bus)).filter(isFor(tenant)), base.name);
  const twins = serving.filter((engine) => kinship(engine, base) === "twin").map(({ base: { name, digest } }) => ({ name, digest }));
  return [...new Map(twins.map((twin) => [twin.digest, twin])).values()];
}

/** The system prompt of conversations that have none of their own: the run's, else that of the template or of the dataset's mapping. */
async function systemOf(bus: Bus, tenant: string, { tokenize, dataset, method }: RunSpec): Promise<string | null> {
  if (method.type === "import") return method.system ?? null;
  if (tokenize.template === "seed") return tokenize.system ?? seedSystem;
  const received = dataset === undefined ? undefined : await bus.last(datasetReceived, { tenant, id: dataset });
  return received?.data.mapping?.system ?? tokenize.system ?? null;
}

type Outcome =
  | { kind: "not-needed" }
  | (TokenizeResult & { kind: "rejected" })
  | (TokenizeResult & { kind: "tokenized" } & { cacheHit: boolean; init: InitialAdapter | null });

async function tokenizeRun(deps: OnRunRequestedDeps, received: Received<typeof runRequested>, context: HandlerContext): Promise<Outcome> {
  const { at } = received;
  const { spec } = received.data;
  const [problem] = [
    ...(await judge(deps.bus, at.tenant, spec, context.tries)),
    ...(await judgeRunByQuotas(deps.bus, { tenant: at.tenant, spec, quotas: deps.quotas.of(at.tenant), profiles: deps.quotas.profiles })),
  ];
  if (problem !== undefined) return { kind: "rejected", problem };
  return byMethod(tokenizers, spec.method, deps, received, context);
}

/** What each method needs as tokens. */
const tokenizers: MethodTable<[OnRunRequestedDeps, Received<typeof runRequested>, HandlerContext], Promise<Outcome>> = {
  supervised: (_, ...run) => tokenizeRecords(...run),
  dpo: (_, ...run) => tokenizeRecords(...run),
  orpo: (_, ...run) => tokenizeRecords(...run),
  simpo: (_, ...run) => tokenizeRecords(...run),
  kto: (_, ...run) => tokenizeRecords(...run),
  judge: (_, ...run) => tokenizeRecords(...run),
  import: (method, deps, { at, data }) => tokenizeAdapter(deps, at.tenant, data.spec, method),
};

async function tokenizeRecords(
  deps: OnRunRequestedDeps,
  received: Received<typeof runRequested>,
  context: HandlerContext,
): Promise<Outcome> {
  const { bus, objects, telemetry, loadBase, shardBytes } = deps;
  const { at } = received;
  const { spec } = received.data;
  if (spec.dataset === undefined) throw new PermanentError("SPEC_INVALID", "the run names no dataset to train on", { param: "dataset" });
  const dataset = await findDataset(deps, at, spec.dataset, "dataset", context.signal);
  if (dataset.kind !== "found") return dataset;
  let validation: DatasetManifest | null = null;
  if (spec.validation !== undefined) {
    const found = await findDataset(deps, at, spec.validation, "validation", context.signal);
    if (found.kind !== "found") return found;
    validation = found.manifest;
  }

  const base = await telemetry.span("load tokenizer", {}, () => loadBase(spec.base));
  const mismatch = judgeTemplate(base, (await enginesOf(bus)).filter(isFor(at.tenant)));
  if (mismatch !== undefined) return { kind: "rejected", problem: mismatch };
  const init = await findInitialAdapter(deps, at.tenant, spec, base.ref);
  if (init !== null && "code" in init) return { kind: "rejected", problem: init };
  const input: TokenizeInput = { tenant: at.tenant, base, spec, dataset: dataset.manifest, validation };
  const cache = await bus.bucket(buckets.cache);
  const key = cacheKey({ stage: "tokenize", tenant: at.tenant, hex: tokenizeKey(input).slice("sha256:".length) });
  const entry = await cache.get(key);
  const manifest = entry === undefined ? undefined : await readComplete(objects, at.tenant, entry.value.manifest);
  // The minimum is no part of the key: the tokens are the same whatever it is.
  const sequences = manifest === undefined ? 0 : manifest.totals.sequences + (validation === null ? manifest.totals.evalSequences : 0);
  const usable = sequences / sequencesPerExample(examplesOf(spec.method));
  if (entry !== undefined && manifest !== undefined && usable >= spec.min_records) {
    return { kind: "tokenized", ref: entry.value.manifest, manifest, cacheHit: true, init };
  }
  const chunks = [...dataset.manifest.chunks, ...(validation?.chunks ?? [])];
  const run = {
    run: at,
    base,
    spec: spec.tokenize,
    signed: spec.dedupe === "near",
    examples: examplesOf(spec.method),
    signal: context.signal,
    breathe: context.breathe,
    delivery: received.seq * 1000 + context.deliveries,
    isDone: async () => (await cache.get(key)) !== undefined,
  };
  const report = tellProgress({
    total: chunks.reduce((sum, chunk) => sum + chunk.records, 0),
    tell: (work, messageKey) =>
      bus.publish(runProgress, at, { attempt: 0, phase: "tokenize", step: 0, totalSteps: 0, ...work }, { key: messageKey }),
    everyMs: deps.tellEveryMs,
  });
  let done = 0;
  async function* encode(some: DatasetManifest["chunks"]): AsyncGenerator<EncodedChunk> {
    let next = 0;
    for await (const encoded of encodeChunks(deps, run, some)) {
      yield encoded;
      report((done += some[next++]?.records ?? 0));
    }
  }
  const result = await tokenizeDataset(
    { objects, telemetry, signal: context.signal, breathe: context.breathe, shardBytes, encode },
    input,
  ).catch((error: unknown) => {
    if (error instanceof TokensNotNeeded) return { kind: "not-needed" as const };
    throw error;
  });
  if (result.kind === "tokenized") await cache.put(key, { manifest: result.ref, at: new Date().toISOString() });
  await forgetChunks(deps, run, chunks);
  return result.kind === "tokenized" ? { ...result, cacheHit: false, init } : result;
}

/** Nothing is trained: the adapter is judged, and its probes are made ready. */
async function tokenizeAdapter(
  { bus, objects, telemetry, loadBase }: OnRunRequestedDeps,
  tenant: string,
  spec: RunSpec,
  adapter: MethodOf<"import">,
): Promise<Outcome> {
  const base = await telemetry.span("load tokenizer", {}, () => loadBase(spec.base));
  const engines = (await enginesOf(bus)).filter(isFor(tenant));
  const mismatch = judgeTemplate(base, engines);
  if (mismatch !== undefined) return { kind: "rejected", problem: mismatch };
  try {
    const result = await tokenizeImport({ objects }, { tenant, base, spec, adapter, engines });
    return result.kind === "rejected" ? result : { ...result, cacheHit: false, init: null };
  } catch (error) {
    // Waiting would not mend this error, and the user has to know it.
    if (!(error instanceof PermanentError) || !/^(?:ADAPTER|OBJECT)_/.test(error.code)) throw error;
    return { kind: "rejected", problem: problemOf(error) };
  }
}

async function judge(bus: Bus, tenant: string, spec: RunSpec, tries: number): Promise<Problem[]> {
  const engines = await enginesOf(bus);
  // When there is no engine at all, serve has probably not come up yet, so the base is not called unknown.
  if (engines.length === 0 && tries <= engineTries) {
    throw new RetryLaterError("NO_ENGINE", 2000, "no engine is registered yet");
  }
  return judgeRunSpec(spec, engines.filter(isFor(tenant)));
}

const enginesOf = async (bus: Bus): Promise<EngineRecord[]> =>
  (await (await bus.bucket(buckets.engines)).entries(">", { skipUnreadable: true })).map((entry) => entry.value);
const isFor =
  (tenant: string) =>
  ({ tenants }: EngineRecord): boolean =>
    tenants?.includes(tenant) ?? true;

/** Waits for the dataset's manifest. @returns the manifest, why there will be none, or that the run needs no tokens any more */
async function findDataset(
  { bus, objects }: OnRunRequestedDeps,
  run: EventAddress,
  id: string,
  param: "dataset" | "validation",
  signal: AbortSignal,
): Promise<{ kind: "found"; manifest: DatasetManifest } | { kind: "rejected"; problem: Problem } | { kind: "not-needed" }> {
  const refuse = (code: string, message: string) => ({ kind: "rejected" as const, problem: { code, message, param } });
  const at = { tenant: run.tenant, id };
  for (let waitedMs = 0; waitedMs < patienceMs; waitedMs += pollMs) {
    const [ingested, rejected, deleted] = await Promise.all([
      bus.last(datasetIngested, at),
      bus.last(datasetRejected, at),
      bus.last(datasetDeleted, at),
    ]);
    if (deleted !== undefined) return refuse("DATASET_UNKNOWN", `dataset ${id} was deleted. Upload it again.`);
    // A dataset that was rejected and then redriven may have both; the newer one counts.
    if (ingested !== undefined && ingested.seq > (rejected?.seq ?? 0))
      return { kind: "found", manifest: await getJson(objects, run.tenant, ingested.data.manifest, datasetManifest) };
    if (rejected !== undefined) return refuse(rejected.data.code, rejected.data.message);
    if (waitedMs % 2000 === 0) {
      if ((await bus.last(datasetReceived, at)) === undefined && (await bus.last(datasetImportRequested, at)) === undefined) {
        return refuse("DATASET_UNKNOWN", `there is no dataset ${id}. Upload a file first, and use the id it gets.`);
      }
      if (await needsNoTokens(bus, run)) return { kind: "not-needed" };
      const waits = await bus.last(datasetWaiting, at);
      const reason = waits?.data.reason ?? null;
      const forDataset = reason && { code: reason.code, message: `${param} ${id} is not read yet: ${reason.message}` };
      await tellWaiting(bus, runWaiting, run, { stage: "tokenize", reason: forDataset });
    }
    await sleep(pollMs, undefined, { signal });
  }
  throw new RetryLaterError("DATASET_NOT_READY", 1000, `dataset ${id} is still being read`);
}

/** The manifest, if it and everything that it refers to is there. It then stays there: other runs may need it no more. */
async function readComplete(objects: Objects, tenant: string, ref: BlobRef): Promise<TokenManifest | undefined> {
  if ((await objects.touch(tenant, ref)) === undefined) return undefined;
  const manifest = await getJson(objects, tenant, ref, tokenManifest);
  const blobs = [...manifest.train, ...manifest.eval].map((shard) => shard.blob);
  if (manifest.pictures !== undefined) blobs.push(manifest.pictures.table);
  const there = await Promise.all(blobs.map((blob) => objects.touch(tenant, blob)));
  return there.every((blob) => blob !== undefined) ? manifest : undefined;
}
