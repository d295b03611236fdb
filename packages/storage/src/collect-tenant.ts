/** One pass over what one tenant has: erases what was deleted, and removes what nobody needs. Can be done again at any time, by anybody. */
import type { Bus } from "@loraline/bus";
import { adapterKey, type AdapterState, buckets, deletionKey, type DeletionState, everyDeletionOf } from "@loraline/contracts";
import { countStored, type Objects, type StoredBlob } from "@loraline/objects";
import type { Log } from "@loraline/runtime";
import { decideGarbage, decideHolds, decideRoots, nameOf, type Retention } from "./decide-garbage.ts";
import { eraseCounters, eraseRecordsOf, type EraseRecordsDeps } from "./erase-records.ts";
import type { ManifestReferences } from "./manifest-references.ts";
import { type NeededAdapter, readTenant } from "./tenant-records.ts";

export interface CollectDeps extends EraseRecordsDeps {
  bus: Pick<Bus, "bucket" | "publish" | "stored">;
  objects: Pick<Objects, "stored" | "delete">;
  references: ManifestReferences;
  retention: Retention;
  /** Work that was under way when something was deleted may still tell of it for so long, in ms. */
  settleMs: number;
  log: Log;
}

interface Collected {
  blobs: number;
  bytes: number;
  /** Whether something is left to be done soon. */
  again: boolean;
}

const deletesAtOnce = 8;

/**
 * @param stored - what the tenant has in the store; absent: it is looked up.
 * @throws RetryLaterError: as `readTenant`.
 */
export async function collectTenant(tenant: string, deps: CollectDeps, stored?: readonly StoredBlob[]): Promise<Collected> {
  const { bus, objects, references, retention, log } = deps;
  const deletions = await bus.bucket(buckets.deletions);
  const asked = (await deletions.entries(everyDeletionOf(tenant))).map(({ value }) => value);
  const pending = asked.filter(({ doneAt }) => doneAt === null);

  const before = await readTenant(tenant, deps);
  // Also those that an older version deleted, or whose deletion was not written down because somebody died.
  for (const { datasetId } of before.datasets.filter(({ status }) => status === "deleted")) {
    if (!pending.some(({ what, id }) => what === "dataset" && id === datasetId)) {
      pending.push({ tenant, what: "dataset", id: datasetId, by: null, at: new Date(0).toISOString(), waiting: null, doneAt: null });
    }
  }
  const waits = new Map<DeletionState, string | undefined>();
  for (const deletion of pending) waits.set(deletion, await eraseRecordsOf(deletion, before, deps));

  const now = await deletions.serverTime();
  const records = await readTenant(tenant, deps);
  const blobs = stored ?? (await Array.fromAsync(objects.stored(tenant)));
  const { datasets, runs, adapters, uploads } = records;
  if (asked.length === 0 && blobs.length > 0 && [datasets, runs, adapters, uploads].every((of) => of.length === 0)) {
    // NATS was lost or is not restored yet, and the store is the only copy that is left.
    const message = "nothing says what this tenant's blobs are for, and nothing of it was ever deleted: its blobs are left alone";
    log.warn({ tenant, blobs: blobs.length }, message);
    return { blobs: 0, bytes: 0, again: false };
  }
  const roots = decideRoots(records, now, retention);
  const cache = await bus.bucket(buckets.cache);
  // An entry goes before what it leads to.
  for (const key of roots.dropFromCache) await cache.delete(key);
  const needed = await references.expand(tenant, roots.whole);
  for (const ref of roots.alone) needed.add(nameOf(ref));
  const { garbage, young } = decideGarbage(blobs, needed, decideHolds(records), now, retention);
  await correctCounts(tenant, blobs, deps);
  const collected: Collected = { blobs: 0, bytes: 0, again: false };
  const waiting = [...garbage];
  const removeNext = async (): Promise<void> => {
    for (let blob = waiting.pop(); blob !== undefined; blob = waiting.pop()) {
      if (!(await objects.delete(tenant, blob, { revision: blob.revision }))) continue;
      collected.blobs++;
      collected.bytes += blob.size;
    }
  };
  await Promise.all(Array.from({ length: deletesAtOnce }, removeNext));
  await markErased(records.adapters, new Set(young.map(nameOf)), deps);

  for (const [deletion, wait] of waits) {
    const at = Date.parse(deletion.at);
    const left = young.filter(({ storedAt }) => storedAt <= at + deps.settleMs);
    const why = wait ?? (left.length > 0 ? "blobs that work under way may need" : now - at < deps.settleMs ? "work under way" : null);
    if (why !== null) collected.again = true;
    else if (deletion.what === "tenant") await eraseCounters(tenant, deps);
    await note(deletion, why, deps);
  }
  if (collected.blobs > 0) log.info({ tenant, blobs: collected.blobs, bytes: collected.bytes }, "unneeded blobs removed");
  return collected;
}

/** Notes of deleted versions that their bytes are gone, or belong to another version too. */
async function markErased(adapters: readonly NeededAdapter[], left: ReadonlySet<string>, { bus, log }: CollectDeps): Promise<void> {
  const bucket = await bus.bucket(buckets.adapters);
  for (const { tenant, adapter, versions } of adapters) {
    const erased = new Set(
      versions
        .filter(({ status, erased: done }) => status === "deleted" && done !== true)
        .filter(({ manifest, evidence }) => !left.has(nameOf(manifest)) && !left.has(nameOf(evidence)))
        .map(({ version }) => version),
    );
    if (erased.size === 0) continue;
    await bucket.change(adapterKey({ tenant, adapter }), (current) => {
      if (current === undefined) return undefined;
      const mark = ({ status, version }: AdapterState["versions"][number]) => status === "deleted" && erased.has(version);
      return { ...current, versions: current.versions.map((known) => (mark(known) ? { ...known, erased: true } : known)) };
    });
    log.info({ adapter: `${tenant}/${adapter}`, versions: [...erased] }, "deleted versions are erased");
  }
}

/** Sets the counters right: whoever stored or removed a blob may have died before it counted that, or be about to. */
async function correctCounts(tenant: string, blobs: readonly StoredBlob[], { nc, bus }: CollectDeps): Promise<void> {
  const counted = await bus.stored(tenant);
  const actual = new Map<StoredBlob["kind"], number>();
  for (const { kind, size } of blobs) actual.set(kind, (actual.get(kind) ?? 0) + size);
  const count = countStored(nc);
  for (const kind of new Set([...counted.keys(), ...actual.keys()])) {
    await count(tenant, kind, (actual.get(kind) ?? 0) - (counted.get(kind) ?? 0));
  }
}

/** Writes down how far a deletion is. */
async function note(deletion: DeletionState, why: string | null, { bus, log }: CollectDeps): Promise<void> {
  const deletions = await bus.bucket(buckets.deletions);
  await deletions.change(deletionKey(deletion), (current) => {
    if (current === undefined || current.doneAt !== null || (why !== null && current.waiting === why)) return undefined;
    return why === null ? { ...current, waiting: null, doneAt: new Date().toISOString() } : { ...current, waiting: why };
  });
  if (why === null && deletion.at !== new Date(0).toISOString()) {
    const { tenant, what, id, by } = deletion;
    log.info({ tenant, what, id, by }, "deleted for good");
  }
}
