/**
 * Pure: which blobs of a tenant are needed, and which may go.
 *
 *   datasets, runs, versions, cache ──► roots ──► what their manifests refer to ──► needed
 *   all other blobs ──► still being written, or stored a moment ago: they stay for now ──► the rest is garbage
 *
 * Whoever stores bytes that are there already, or tells of such bytes, makes them young again (`Objects.put`, `Objects.touch`). So a blob that
 * is in use by work under way is never older than that work.
 */
import { type BlobKind, type BlobRef, stageOfCacheKey, uploadGraceMs } from "@loraline/contracts";
import type { CacheRecord, NeededRun, TenantRecords } from "./tenant-records.ts";

const minute = 60_000;
const day = 24 * 60 * minute;

/** How long something stays that nobody needs, in milliseconds. */
export interface Retention {
  /** A blob since it was stored last: its writer has yet to tell of it. */
  untold: number;
  /** Tokens of a run, since they were last used: the next run with the same data and settings need not make them again. */
  tokens: number;
  /** Checkpoints, since their run ended. */
  checkpoints: number;
}

export const usualRetention: Retention = { untold: minute, tokens: 30 * day, checkpoints: 7 * day };

/** The clocks of producers may differ from the store's by so much. */
const clockSkewMs = 5 * minute;
/** Chunks of tokens are removed by the run that used them. One that stays longer was left by a run that died. */
const chunkMs = day;

interface Roots {
  /** Needed, with everything they refer to. */
  whole: BlobRef[];
  /** Needed by themselves. */
  alone: BlobRef[];
  /** Keys of KV `cache` that lead to what nobody needs. */
  dropFromCache: string[];
}

/** @param now - the server's clock, in milliseconds since the epoch. */
export function decideRoots({ datasets, runs, adapters, cache, uploads }: TenantRecords, now: number, retention: Retention): Roots {
  const roots: Roots = { whole: [], alone: [], dropFromCache: [] };
  const live = new Map(datasets.filter(({ status }) => status !== "deleted").map((dataset) => [dataset.datasetId, dataset]));
  for (const { blob, parts, manifest, report } of live.values()) {
    roots.alone.push(...(blob === null ? [] : [blob]), ...parts.map((part) => part.blob));
    roots.whole.push(...(manifest === null ? [] : [manifest]), ...(report === null ? [] : [report]));
  }

  // What is put together is told of a moment later, or when somebody asks for its completion again. Parts are needed no more then.
  for (const { status, parts, file, expiresAt } of uploads) {
    if (now >= Date.parse(expiresAt) + uploadGraceMs) continue;
    if (status === "pending") roots.alone.push(...parts.map(({ blob }) => blob));
    if (status === "completed" && file !== null) roots.alone.push(file);
  }

  const hasData = ({ spec }: NeededRun): boolean => [spec.dataset, spec.validation].every((id) => id === undefined || live.has(id));
  const deletedDigests = new Set(
    adapters.flatMap(({ versions }) =>
      versions.filter(({ status, checkpoint }) => status === "deleted" && !checkpoint).map(({ runId }) => runId),
    ),
  );
  const deletedCheckpoints = new Set(
    adapters.flatMap(({ versions }) =>
      versions.flatMap(({ status, checkpoint }) => (status === "deleted" && checkpoint ? [`${checkpoint.runId}/${checkpoint.step}`] : [])),
    ),
  );
  for (const run of runs) {
    const { spec, tokens, trained, finishedAt, checkpoints, phase } = run;
    const newest = checkpoints.slice(0, Math.max(1, spec.save_total_limit));
    const published = newest.flatMap(({ step, published: one }) => (one && !deletedCheckpoints.has(`${run.runId}/${step}`) ? [one] : []));
    const kept = [...newest.map(({ checkpoint }) => checkpoint), ...published.map(({ adapter }) => adapter)];
    const proofs = published.map(({ evidence }) => evidence);
    if (finishedAt === null) {
      roots.whole.push(...(tokens === null ? [] : [tokens.manifest]), ...kept);
      roots.alone.push(...proofs, ...spec.imported);
    } else if (hasData(run) && now - Date.parse(finishedAt) < retention.checkpoints) {
      roots.whole.push(...kept);
      roots.alone.push(...proofs);
    }
    // A version that its adapter's entry has forgotten can still be served by its digest, until it is deleted.
    if (trained !== null && (finishedAt === null || phase === "served") && !deletedDigests.has(run.runId)) {
      roots.whole.push(trained.adapter);
      roots.alone.push(trained.evidence);
    }
  }
  for (const { versions } of adapters) {
    for (const { status, manifest, evidence } of versions) {
      if (status === "deleted") continue;
      roots.whole.push(manifest);
      roots.alone.push(evidence);
    }
  }

  const manifests = new Set([...live.values()].map(({ manifest }) => manifest?.digest));
  const reading = [...live.values()].some(({ status }) => status === "received");
  const tokenizing = runs.some(({ phase }) => phase === "requested");
  const isNeeded = ({ key, manifest, at }: CacheRecord): boolean => {
    const age = now - Date.parse(at);
    switch (stageOfCacheKey(key)) {
      case "ingest":
        // Its dataset does not say so yet.
        return manifests.has(manifest.digest) || (reading && age < clockSkewMs);
      case "tokenize": {
        const users = runs.filter(({ tokens }) => tokens?.manifest.digest === manifest.digest);
        return (
          users.some((run) => run.finishedAt === null || (hasData(run) && now - Date.parse(run.finishedAt) < retention.tokens)) ||
          (tokenizing && age < clockSkewMs)
        );
      }
      default:
        return tokenizing && age < chunkMs;
    }
  };
  for (const entry of cache) {
    if (isNeeded(entry)) roots.whole.push(entry.manifest);
    else roots.dropFromCache.push(entry.key);
  }
  return roots;
}

const writtenBy: Record<"import" | "ingest" | "tokenize" | "train", readonly BlobKind[]> = {
  import: ["raw"],
  ingest: ["records", "picture", "pictures", "report", "dataset"],
  tokenize: ["settings", "encoded", "shard", "pictures", "tokens"],
  train: ["checkpoint-file", "checkpoint", "adapter-file", "adapter", "evidence"],
};

/** For each kind of blob: those that were stored after this time may belong to work under way. */
export function decideHolds({ datasets, runs }: Pick<TenantRecords, "datasets" | "runs">): ReadonlyMap<BlobKind, number> {
  const holds = new Map<BlobKind, number>();
  const hold = (kinds: readonly BlobKind[], since: string): void => {
    const from = Date.parse(since) - clockSkewMs;
    for (const kind of kinds) holds.set(kind, Math.min(holds.get(kind) ?? from, from));
  };
  for (const { status, receivedAt } of datasets) {
    if (status === "importing") hold(writtenBy.import, receivedAt);
    if (status === "received") hold(writtenBy.ingest, receivedAt);
  }
  for (const { phase, finishedAt, requestedAt } of runs) {
    if (finishedAt === null) hold(phase === "requested" ? writtenBy.tokenize : writtenBy.train, requestedAt);
  }
  return holds;
}

interface Stored {
  kind: BlobKind;
  digest: string;
  storedAt: number;
}

/** @param needed - `<kind>/<digest>` of every blob that is needed. */
export function decideGarbage<B extends Stored>(
  blobs: Iterable<B>,
  needed: ReadonlySet<string>,
  holds: ReadonlyMap<BlobKind, number>,
  now: number,
  retention: Retention,
): { garbage: B[]; young: B[] } {
  const decided: { garbage: B[]; young: B[] } = { garbage: [], young: [] };
  for (const blob of blobs) {
    if (needed.has(nameOf(blob))) continue;
    const isHeld = blob.storedAt >= (holds.get(blob.kind) ?? Number.POSITIVE_INFINITY) || now - blob.storedAt < retention.untold;
    (isHeld ? decided.young : decided.garbage).push(blob);
  }
  return decided;
}

export const nameOf = ({ kind, digest }: { kind: BlobKind; digest: string }): string => `${kind}/${digest}`;
