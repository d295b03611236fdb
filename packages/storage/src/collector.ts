/**
 * The collector: removes what was deleted, and what nobody needs. One process does it at a time, by a lease in KV; two would only do the
 * same work twice (see docs/adr/0014).
 */
import { randomUUID } from "node:crypto";
import type { Bus } from "@loraline/bus";
import { buckets, type DeletionState, parseUploadKey, type UploadState } from "@loraline/contracts";
import { type Objects, removeUnfinishedBlobs, type StoredBlob } from "@loraline/objects";
import { type Log, messageOf } from "@loraline/runtime";
import type { NatsConnection } from "@nats-io/transport-node";
import { collectTenant, type CollectDeps } from "./collect-tenant.ts";
import { type Retention, usualRetention } from "./decide-garbage.ts";
import { createManifestReferences } from "./manifest-references.ts";

interface CollectorOptions {
  nc: NatsConnection;
  bus: Pick<Bus, "bucket" | "publish" | "stored">;
  objects: Pick<Objects, "stored" | "delete" | "get">;
  log: Log;
  /** Whether blobs are in JetStream's object store, which keeps what killed writers left. */
  inJetStream: boolean;
  /** Removes traces that are kept in files. Absent: none are. */
  removeTrace?: ((traceId: string) => Promise<void>) | undefined;
  retention?: Partial<Retention> | undefined;
  /** How often everything is looked at, in ms. Default: an hour. */
  sweepMs?: number | undefined;
  /** See `CollectDeps`. Default 30 s. */
  settleMs?: number | undefined;
  /** How often the lease is renewed, and unfinished deletions are tried again, in ms. Default 5 s. */
  roundMs?: number | undefined;
}

const lease = "collector";
/** Between two tries of what has to wait. */
const longestPauseMs = 5 * 60_000;

export async function createCollector(options: CollectorOptions): Promise<AsyncDisposable> {
  const { nc, bus, objects, log, sweepMs = 60 * 60_000, settleMs = 30_000, roundMs = 5000 } = options;
  const retention = { ...usualRetention, ...options.retention };
  const references = createManifestReferences({ objects });
  const deps: CollectDeps = { nc, bus, objects, references, retention, settleMs, log, removeTrace: options.removeTrace };
  const holder = randomUUID();
  const stopping = new AbortController();
  const { signal } = stopping;
  const [leases, deletions] = await Promise.all([bus.bucket(buckets.leases), bus.bucket(buckets.deletions)]);
  /** Tenants with something to do, and when, in ms of `performance.now`. */
  const due = new Map<string, { at: number; pause: number }>();
  const putOff = (tenant: string, pause = roundMs): void => {
    due.set(tenant, { at: performance.now() + pause, pause: Math.min(pause * 2, longestPauseMs) });
  };
  let wake = (): void => undefined;
  let sweptAt = Number.NEGATIVE_INFINITY;

  await deletions.watch({
    signal,
    onChange(_key, value: DeletionState | undefined) {
      if (value === undefined || value.doneAt !== null) return;
      if (value.waiting === null) {
        due.set(value.tenant, { at: 0, pause: roundMs });
        wake();
      } else if (!due.has(value.tenant)) putOff(value.tenant);
    },
  });

  // The parts of an upload that has ended are as many bytes as its file. What was stored a moment ago is not removed yet.
  await (
    await bus.bucket(buckets.uploads)
  ).watch({
    signal,
    onChange(key, value: UploadState | undefined) {
      const { tenant } = parseUploadKey(key);
      if (value !== undefined && value.status !== "pending" && !due.has(tenant)) putOff(tenant, retention.untold + roundMs);
    },
  });

  const holdsLease = async (): Promise<boolean> => {
    const now = await leases.change(lease, (current) => (current === undefined || current.holder === holder ? { holder } : undefined));
    return now?.holder === holder;
  };
  const collect = async (tenant: string, stored?: readonly StoredBlob[]): Promise<void> => {
    const pause = due.get(tenant)?.pause;
    due.delete(tenant);
    try {
      if ((await collectTenant(tenant, deps, stored)).again) putOff(tenant, pause);
    } catch (error) {
      putOff(tenant, pause);
      log.warn({ err: error, tenant }, `nothing is removed for now: ${messageOf(error)}`);
    }
  };
  const sweep = async (): Promise<void> => {
    if (options.inJetStream) await removeUnfinishedBlobs(nc);
    const byTenant = new Map<string, StoredBlob[]>();
    for await (const blob of objects.stored()) {
      const own = byTenant.get(blob.tenant);
      if (own === undefined) byTenant.set(blob.tenant, [blob]);
      else own.push(blob);
    }
    for (const [tenant, stored] of byTenant) {
      if (signal.aborted || !(await holdsLease())) return;
      await collect(tenant, stored);
    }
    sweptAt = performance.now();
  };
  const round = async (): Promise<void> => {
    if (!(await holdsLease())) return;
    if (performance.now() - sweptAt >= sweepMs) await sweep();
    for (const [tenant, { at }] of due.entries().toArray()) {
      if (signal.aborted) return;
      if (at > performance.now()) continue;
      await collect(tenant);
      await holdsLease();
    }
  };
  const run = async (): Promise<void> => {
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => (wake = resolve));
      await round().catch((error: unknown) => log.warn({ err: error }, `collector: ${messageOf(error)}; tried again`));
      if (signal.aborted) return;
      await Promise.race([woken, new Promise((resolve) => setTimeout(resolve, roundMs))]);
    }
  };
  const running = run();
  return {
    async [Symbol.asyncDispose]() {
      stopping.abort();
      wake();
      await running;
    },
  };
}
