/** Erases what streams and KV buckets hold about something: the bytes, not only the entries. */
import type { Bus } from "@loraline/bus";
import {
  adapterKey,
  type BucketDef,
  buckets,
  datasetDeleted,
  datasetKey,
  type DeletionState,
  everyCacheKeyOf,
  everyHolding,
  everyKeyOf,
  everyUsageOfAdapter,
  everyUsageOfTenant,
  filterFor,
  limitKey,
  runCancelRequested,
  runKey,
  storedSubject,
  streams,
} from "@loraline/contracts";
import { eraseMessages } from "@loraline/objects";
import { traceIdOf } from "@loraline/runtime";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import { eraseSpansOf } from "./erase-spans.ts";
import type { NeededAdapter, NeededDataset, NeededRun, TenantRecords } from "./tenant-records.ts";

export interface EraseRecordsDeps {
  nc: NatsConnection;
  bus: Pick<Bus, "bucket" | "publish">;
  /** Removes traces that are kept in files. Absent: none are. */
  removeTrace?: ((traceId: string) => Promise<void>) | undefined;
}

/** @returns why the rest has to wait; undefined: no record is left. Can be done again at any time. */
export async function eraseRecordsOf(deletion: DeletionState, records: TenantRecords, deps: EraseRecordsDeps): Promise<string | undefined> {
  const { tenant, id } = deletion;
  switch (deletion.what) {
    case "dataset":
      await eraseDataset(
        tenant,
        id,
        records.datasets.find(({ datasetId }) => datasetId === id),
        deps,
      );
      return undefined;
    case "version":
      return undefined; // The serve controller has marked it, and its entry says what was deleted.
    case "adapter":
      return eraseAdapter(tenant, id, records, deps);
    case "tenant":
      return eraseTenant(tenant, records, deps);
  }
}

async function eraseDataset(tenant: string, id: string, state: NeededDataset | undefined, deps: EraseRecordsDeps): Promise<void> {
  // Deleted by somebody, but not folded yet: it is done when it is.
  if (state !== undefined && state.status !== "deleted") return;
  await eraseTraces(tenant, [state?.trace], deps);
  const kept = filterFor(datasetDeleted, { tenant, id });
  const subjects = `loraline.${tenant}.dataset.${id}.`;
  await erase(deps, streams.DATASETS.name, `${subjects}>`, ({ subject }) => subject !== kept);
  await eraseLetters([subjects], deps);
  await eraseEntries(deps, buckets.datasets, datasetKey({ tenant, id }));
}

async function eraseRun({ tenant, runId, trace }: NeededRun, deps: EraseRecordsDeps): Promise<void> {
  await eraseTraces(tenant, [trace], deps);
  for (const { name } of [streams.RUNS, streams.PROGRESS]) await erase(deps, name, `loraline.${tenant}.run.${runId}.>`);
  await eraseEntries(deps, buckets.runs, runKey({ tenant, id: runId }));
}

async function eraseAdapter(
  tenant: string,
  adapter: string,
  { runs, adapters }: TenantRecords,
  deps: EraseRecordsDeps,
): Promise<string | undefined> {
  const state = adapters.find((known) => known.adapter === adapter);
  const own = runs.filter(({ spec }) => spec.adapter === adapter);
  if (own.some(({ finishedAt }) => finishedAt === null)) return "runs that have not ended";
  if (state !== undefined) {
    await markDeleted(state, deps);
    const held = await deps.bus.bucket(buckets.holdings).then((holdings) => holdings.entries(everyHolding({ tenant, adapter })));
    if (held.some(({ value }) => value.adapters.length > 0)) return "replicas that still hold it";
  }
  for (const run of own) await eraseRun(run, deps);
  const subjects = [`loraline.${tenant}.adapter.${adapter}.`, ...own.map(({ runId }) => `loraline.${tenant}.run.${runId}.`)];
  for (const { name } of [streams.ADAPTERS, streams.WANTED]) await erase(deps, name, `${subjects[0]}>`);
  await eraseLetters(subjects, deps);
  await eraseEntries(deps, buckets.usage, everyUsageOfAdapter({ tenant, adapter }));
  await forget(deps, buckets.limits, adapterKey({ tenant, adapter }));
  await forget(deps, buckets.adapters, adapterKey({ tenant, adapter }));
  return undefined;
}

/** No version is served any more, and replicas unload them. */
async function markDeleted({ tenant, adapter }: NeededAdapter, { bus }: EraseRecordsDeps): Promise<void> {
  const bucket = await bus.bucket(buckets.adapters);
  const reason = { code: "VERSION_DELETED", message: "the adapter was deleted." };
  await bucket.change(adapterKey({ tenant, adapter }), (current) => {
    if (current === undefined || current.versions.every(({ status }) => status === "deleted")) return undefined;
    const versions = current.versions.map((known) =>
      known.status === "deleted" ? known : { ...known, status: "deleted" as const, reason },
    );
    return { ...current, versions, alias: null, canary: null, awaiting: null };
  });
}

async function eraseTenant(tenant: string, records: TenantRecords, deps: EraseRecordsDeps): Promise<string | undefined> {
  const unfinished = records.runs.filter(({ finishedAt }) => finishedAt === null);
  for (const { runId } of unfinished) await deps.bus.publish(runCancelRequested, { tenant, id: runId }, { by: null });
  if (unfinished.length > 0) return `runs that have not ended: ${unfinished.length}`;
  for (const state of records.adapters) await markDeleted(state, deps);
  const held = await deps.bus.bucket(buckets.holdings).then((holdings) => holdings.entries(everyHolding({ tenant })));
  if (held.some(({ value }) => value.adapters.length > 0)) return "replicas that still hold its adapters";
  await eraseTraces(tenant, [...records.runs.map(({ trace }) => trace), ...records.datasets.map(({ trace }) => trace)], deps);
  const { DATASETS, RUNS, PROGRESS, CHUNKS, ADAPTERS, WANTED } = streams;
  for (const { name } of [DATASETS, RUNS, PROGRESS, CHUNKS, ADAPTERS, WANTED]) await erase(deps, name, `loraline.${tenant}.>`);
  await eraseLetters([`loraline.${tenant}.`], deps);
  for (const bucket of [buckets.datasets, buckets.runs, buckets.responses, buckets.uploads, buckets.sessions])
    await eraseEntries(deps, bucket, everyKeyOf(tenant));
  await eraseEntries(deps, buckets.usage, everyUsageOfTenant(tenant));
  await eraseEntries(deps, buckets.cache, everyCacheKeyOf(tenant));
  for (const { adapter } of records.adapters) await forget(deps, buckets.adapters, adapterKey({ tenant, adapter }));
  const limits = await deps.bus.bucket(buckets.limits);
  for (const filter of [limitKey({ tenant }), everyKeyOf(tenant)])
    for (const { key } of await limits.entries(filter)) await forget(deps, buckets.limits, key);
  return undefined;
}

/** What a deleted tenant had in the store; after its last blob is gone. */
export const eraseCounters = (tenant: string, deps: EraseRecordsDeps): Promise<void> =>
  erase(deps, streams.STORED.name, storedSubject({ tenant, kind: "*" }));

async function erase(
  { nc }: EraseRecordsDeps,
  stream: string,
  filter: string,
  doomed?: Parameters<typeof eraseMessages>[3],
): Promise<void> {
  await eraseMessages(await jetstreamManager(nc), stream, filter, doomed);
}

/** Entries that nobody watches: they vanish without a mark. */
const eraseEntries = (deps: EraseRecordsDeps, { name }: BucketDef, filter: string): Promise<void> =>
  erase(deps, `KV_${name}`, `$KV.${name}.${filter}`);

/** An entry that gateways and agents watch: they are told that it is gone. */
async function forget(deps: EraseRecordsDeps, bucket: BucketDef, key: string): Promise<void> {
  await eraseEntries(deps, bucket, key);
  await (await deps.bus.bucket(bucket)).delete(key);
}

/** Failed messages whose original had one of these beginnings of a subject. */
async function eraseLetters(subjects: readonly string[], { nc }: EraseRecordsDeps): Promise<void> {
  const jsm = await jetstreamManager(nc);
  const { name } = streams.DLQ;
  if ((await jsm.streams.info(name)).state.messages === 0) return;
  const consumer = await jetstream(nc).consumers.get(name, { headers_only: true });
  const found: string[] = [];
  try {
    for (let left = (await consumer.info()).num_pending; left > 0; left = (await consumer.info()).num_pending) {
      for await (const { subject, headers, info } of await consumer.fetch({ max_messages: Math.min(left, 1000), expires: 5000 })) {
        const original = headers?.get("Loraline-Dlq-Subject") ?? "";
        if (subjects.some((beginning) => original.startsWith(beginning))) found.push(subject);
        if (info.pending === 0) break;
      }
    }
  } finally {
    await consumer.delete().catch(() => false);
  }
  for (const subject of found) await eraseMessages(jsm, name, subject);
}

async function eraseTraces(tenant: string, traceparents: readonly (string | null | undefined)[], deps: EraseRecordsDeps): Promise<void> {
  for (const traceparent of traceparents) {
    const traceId = traceIdOf(traceparent ?? null);
    if (traceId === undefined) continue;
    await eraseSpansOf(deps.nc, tenant, traceId);
    await deps.removeTrace?.(traceId);
  }
}
