/** Reads runs and datasets as the projector has folded them, or from the streams where the projector is behind. */
import type { Bus, KvBucket } from "@loraline/bus";
import {
  buckets,
  datasetImportRequested,
  datasetKey,
  datasetReceived,
  type DatasetState,
  everyKeyOf,
  foldDataset,
  foldRun,
  parseRunKey,
  type Problem,
  runKey,
  runRejected,
  runRequested,
  runSpec,
  runState,
  type RunState,
  ulid,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { type PageRequest, readPage } from "./jobs/read-page.ts";

const pollMs = 20;
/** The server takes longer to look for the sizes of many keys than for those of all that a tenant has. */
const fewKeys = 100;

/** What says which runs use a dataset or adapter. Those of a tenant are read all at once for that, and a spec may have 190 kilobytes. */
const runUse = runState.pick({ runId: true, requestedAt: true, phase: true, finishedAt: true, served: true }).extend({
  spec: runSpec.transform(({ adapter, dataset, validation }) => ({ adapter, dataset, validation })),
});
type RunUse = ReturnType<typeof runUse.parse>;

export interface StateReader {
  /** The run; undefined: there is none with this id, or it is another tenant's. A run exists as soon as its request is stored. */
  run(tenant: string, runId: string): Promise<RunState | undefined>;
  /** Why there is no run: its request was rejected as it cannot be read. undefined: nobody asked for a run with this id. */
  rejection(tenant: string, runId: string): Promise<Problem | undefined>;
  /** The dataset, also if it was deleted. */
  dataset(tenant: string, datasetId: string): Promise<DatasetState | undefined>;
  /** All of the tenant, newest first. Lists use `runPage`. */
  runUses(tenant: string): Promise<RunUse[]>;
  /** Reads little more than the page. undefined: there is no run `after`. */
  runPage(tenant: string, page: PageRequest<RunState>): Promise<{ items: RunState[]; hasMore: boolean } | undefined>;
  datasetPage(tenant: string, page: PageRequest<DatasetState>): Promise<{ items: DatasetState[]; hasMore: boolean } | undefined>;
  /** Waits until the folded dataset fulfils `holds`, at most `withinMs`. @returns whether it does */
  runFolded(tenant: string, runId: string, holds: (run: RunState) => boolean, withinMs: number): Promise<boolean>;
  datasetFolded(tenant: string, datasetId: string, holds: (dataset: DatasetState) => boolean, withinMs: number): Promise<boolean>;
}

export async function createStateReader({ bus }: { bus: Pick<Bus, "bucket" | "last"> }): Promise<StateReader> {
  const runs = await bus.bucket(buckets.runs);
  const uses = await bus.bucket({ ...buckets.runs, value: runUse });
  const datasets = await bus.bucket(buckets.datasets);

  const folded = async <T>(read: () => Promise<{ value: T } | undefined>, holds: (value: T) => boolean, withinMs: number) => {
    for (const end = performance.now() + withinMs; ;) {
      const entry = await read();
      if (entry !== undefined && holds(entry.value)) return true;
      if (performance.now() >= end) return false;
      await new Promise((resolve) => setTimeout(resolve, pollMs));
    }
  };
  const newestFirst = (a: { at: string; id: string }, b: { at: string; id: string }): number =>
    a.at === b.at ? (a.id < b.id ? 1 : -1) : a.at < b.at ? 1 : -1;

  const entriesOf = <T>(bucket: KvBucket<T>, tenant: string, known: Map<string, number>) => {
    const keysOf = (ids: readonly string[]): string[] => ids.map((id) => runKey({ tenant, id }));
    const sizesOf = async (filter: string | string[]): Promise<ReadonlyMap<string, number>> =>
      new Map((await bucket.sizes(filter)).map(({ key, bytes }) => [parseRunKey(key).id, bytes]));
    let all: ReturnType<typeof sizesOf> | undefined;
    return {
      ids: async () => (await bucket.keys(everyKeyOf(tenant))).map((key) => parseRunKey(key).id),
      sizes: (ids: readonly string[]) => (ids.length <= fewKeys ? sizesOf(keysOf(ids)) : (all ??= sizesOf(everyKeyOf(tenant)))),
      read: async (ids: readonly string[]) => (await bucket.many(keysOf(ids), { skipUnreadable: true })).map(({ value }) => value),
      known,
    };
  };
  const knownRuns = new Map<string, number>();
  const knownDatasets = new Map<string, number>();

  return {
    async run(tenant, runId) {
      if (!ulid.safeParse(runId).success) return undefined;
      const entry = await runs.get(runKey({ tenant, id: runId }));
      if (entry !== undefined) return entry.value;
      const requested = await lastKept(bus.last(runRequested, { tenant, id: runId }));
      return requested && foldRun(undefined, { ...requested, type: runRequested.type });
    },
    async rejection(tenant, runId) {
      if (!ulid.safeParse(runId).success) return undefined;
      return (await lastKept(bus.last(runRejected, { tenant, id: runId })))?.data;
    },
    async dataset(tenant, datasetId) {
      if (!ulid.safeParse(datasetId).success) return undefined;
      const entry = await datasets.get(datasetKey({ tenant, id: datasetId }));
      if (entry !== undefined) return entry.value;
      const at = { tenant, id: datasetId };
      const [requested, received] = await Promise.all([
        lastKept(bus.last(datasetImportRequested, at)),
        lastKept(bus.last(datasetReceived, at)),
      ]);
      const state = requested && foldDataset(undefined, { ...requested, type: datasetImportRequested.type });
      return received === undefined ? state : foldDataset(state, { ...received, type: datasetReceived.type });
    },
    async runUses(tenant) {
      const entries = await uses.entries(everyKeyOf(tenant), { skipUnreadable: true });
      return entries
        .map(({ value }) => value)
        .toSorted((a, b) => newestFirst({ at: a.requestedAt, id: a.runId }, { at: b.requestedAt, id: b.runId }));
    },
    runPage: (tenant, page) =>
      readPage({ ...entriesOf(runs, tenant, knownRuns), idOf: ({ runId }) => runId, timeOf: ({ requestedAt }) => requestedAt }, page),
    datasetPage: (tenant, page) =>
      readPage(
        { ...entriesOf(datasets, tenant, knownDatasets), idOf: ({ datasetId }) => datasetId, timeOf: ({ receivedAt }) => receivedAt },
        page,
      ),
    runFolded: (tenant, runId, holds, withinMs) => folded(() => runs.get(runKey({ tenant, id: runId })), holds, withinMs),
    datasetFolded: (tenant, datasetId, holds, withinMs) =>
      folded(() => datasets.get(datasetKey({ tenant, id: datasetId })), holds, withinMs),
  };
}

/** Ignores a request that violates the contract: it became a failed message, and no run came of it. */
const lastKept = <T>(reading: Promise<T | undefined>): Promise<T | undefined> =>
  reading.catch((error: unknown) => {
    if (error instanceof PermanentError) return undefined;
    throw error;
  });
