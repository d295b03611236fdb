/** Everything that says what a tenant needs, as it is now. */
import type { Bus, KvBucket } from "@loraline/bus";
import {
  adapterState,
  type BlobRef,
  buckets,
  consumers,
  datasetState,
  everyCacheKeyOf,
  everyKeyOf,
  runSpec,
  runState,
  uploadState,
} from "@loraline/contracts";
import { RetryLaterError } from "@loraline/runtime";
import { jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";

/*
 * Of each entry what the collector reads. It holds all entries of a tenant at once, each of which may have hundreds of kilobytes: in a mapping, a
 * spec, names of files. What is left out cannot stop it either, such as a mapping that only an older version took.
 */
const onlyBlobs = (parts: readonly { blob: BlobRef }[]) => parts.map(({ blob }) => ({ blob }));
const neededDataset = datasetState
  .pick({ datasetId: true, status: true, blob: true, receivedAt: true, manifest: true, report: true, trace: true })
  .extend({ parts: datasetState.shape.parts.transform(onlyBlobs) });
const neededRun = runState.pick({ tenant: true, runId: true, phase: true, requestedAt: true, finishedAt: true, trace: true }).extend({
  spec: runSpec.transform(({ adapter, dataset, validation, method, training }) => ({
    adapter,
    dataset,
    validation,
    imported: method.type === "import" ? [method.config, method.weights] : [],
    save_total_limit: training.save_total_limit,
  })),
  tokens: runState.shape.tokens.transform((tokens) => tokens && { manifest: tokens.manifest }),
  checkpoints: runState.shape.checkpoints.element
    .pick({ step: true, checkpoint: true })
    .extend({
      published: runState.shape.checkpoints.element.shape.published.transform((of) => of && { adapter: of.adapter, evidence: of.evidence }),
    })
    .array(),
  trained: runState.shape.trained.transform((trained) => trained && { adapter: trained.adapter, evidence: trained.evidence }),
});
const neededAdapter = adapterState.pick({ tenant: true, adapter: true }).extend({
  versions: adapterState.shape.versions.element
    .pick({ version: true, status: true, runId: true, checkpoint: true, manifest: true, evidence: true, erased: true })
    .array(),
});
const neededUpload = uploadState
  .pick({ status: true, file: true, expiresAt: true })
  .extend({ parts: uploadState.shape.parts.transform(onlyBlobs) });

export type NeededDataset = ReturnType<typeof neededDataset.parse>;
export type NeededRun = ReturnType<typeof neededRun.parse>;
export type NeededAdapter = ReturnType<typeof neededAdapter.parse>;

export interface CacheRecord {
  key: string;
  manifest: BlobRef;
  at: string;
}

export interface TenantRecords {
  datasets: readonly NeededDataset[];
  runs: readonly NeededRun[];
  adapters: readonly NeededAdapter[];
  cache: readonly CacheRecord[];
  uploads: readonly ReturnType<typeof neededUpload.parse>[];
}

/** How long the projector is waited for. */
const foldedWithinMs = 10_000;

/** @throws RetryLaterError while the projector is behind: what it has not folded yet would look as if nobody needed it. */
export async function readTenant(tenant: string, { bus, nc }: { bus: Pick<Bus, "bucket">; nc: NatsConnection }): Promise<TenantRecords> {
  // First, so that whoever wrote an entry that is seen was requested before, and is folded below.
  const cache = await bus.bucket(buckets.cache).then((bucket) => bucket.entries(everyCacheKeyOf(tenant)));
  const jsm = await jetstreamManager(nc);
  for (const { durable, stream } of [consumers.projectorDatasets, consumers.projectorRuns]) {
    const { last_seq: last } = (await jsm.streams.info(stream.name)).state;
    for (const end = performance.now() + foldedWithinMs; ;) {
      const { num_pending: unread, num_ack_pending: inWork, ack_floor: folded } = await jsm.consumers.info(stream.name, durable);
      if (folded.stream_seq >= last || (unread === 0 && inWork === 0)) break;
      if (performance.now() >= end) throw new RetryLaterError("NOT_FOLDED", 5000, `the projector has not folded ${stream.name} yet`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  const valuesOf = async <T>(bucket: Promise<KvBucket<T>>): Promise<T[]> =>
    (await (await bucket).entries(everyKeyOf(tenant))).map(({ value }) => value);
  const [uploads, datasets, runs, adapters] = await Promise.all([
    valuesOf(bus.bucket({ ...buckets.uploads, value: neededUpload })),
    valuesOf(bus.bucket({ ...buckets.datasets, value: neededDataset })),
    valuesOf(bus.bucket({ ...buckets.runs, value: neededRun })),
    valuesOf(bus.bucket({ ...buckets.adapters, value: neededAdapter })),
  ]);
  return { uploads, datasets, runs, adapters, cache: cache.map(({ key, value }) => ({ key, ...value })) };
}
