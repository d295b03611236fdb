/** Every replica with what it holds, for the controller: those that were heard of lately; what is left of those that are gone is removed. */
import { type Bus, createReplicaTable, type KvBucket, type ReplicaTable } from "@loraline/bus";
import { type AdapterState, everyHoldingOf, type ReplicaHolding, type ReplicaReport, type ReplicaState } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { replicaFreshMs } from "./versions/bucket-replicas.ts";

export interface ReplicaFollower {
  /** A replica (`<engine>.<replica>`) came, went, or became another. */
  onReplica(key: string): void;
  /** What a replica holds of one adapter (`<tenant>.<adapter>`) changed. */
  onHolding(key: string, adapterKey: string): void;
}

export interface Replicas {
  readonly table: ReplicaTable;
  /** Replicas of the adapter's engine that were heard of lately, with what they hold of this adapter alone: they hold a thousand others. */
  of(state: AdapterState): ReplicaState[];
  follow(follower: ReplicaFollower): void;
}

/** Resolves when every replica is known. Ends with the signal. */
export async function createReplicas({ bus, signal }: { bus: Pick<Bus, "bucket">; signal: AbortSignal }): Promise<Replicas> {
  const followers: ReplicaFollower[] = [];
  const table = await createReplicaTable({
    bus,
    signal,
    onReplica(key) {
      for (const follower of followers) follower.onReplica(key);
    },
    onHolding(key, adapterKey) {
      for (const follower of followers) follower.onHolding(key, adapterKey);
    },
  });
  return {
    table,
    of({ engine, versions }) {
      const time = performance.now();
      const at = new Date().toISOString();
      return [...table.entries()]
        .filter(({ report, heardAt }) => report.engine === engine && time - heardAt < replicaFreshMs)
        .map(({ report, held }) => ({ ...report, at, adapters: versions.flatMap(({ engineName }) => held(engineName) ?? []) }));
    },
    follow(follower) {
      followers.push(follower);
    },
  };
}

interface SweepDeps {
  table: Pick<ReplicaTable, "entries" | "forget" | "orphans" | "drop">;
  replicas: Pick<KvBucket<ReplicaReport>, "get">;
  holdings: Pick<KvBucket<ReplicaHolding>, "clear">;
  /** What a replica wrote is removed after so long without a sign of it. */
  goneMs: number;
  log: Log;
  signal: AbortSignal;
  /** Milliseconds, by the clock of `table`. */
  now?: () => number;
}

/**
 * Forgets replicas that are silent, and removes what they wrote once they are gone for good: a replica that vanished sends nothing.
 * @returns a function to be called from time to time.
 */
export function createReplicaSweep({
  table,
  replicas,
  holdings,
  goneMs,
  log,
  signal,
  now = () => performance.now(),
}: SweepDeps): () => void {
  const removing = new Set<string>();
  const remove = async (key: string): Promise<void> => {
    removing.add(key);
    try {
      // A controller that was cut off has heard of nobody, so the bucket is asked: a replica that is there would not write its holdings again.
      if ((await replicas.get(key)) !== undefined) return;
      await holdings.clear(everyHoldingOf(key));
      table.drop(key);
      log.info({ replica: key }, "replica is gone for good; what it wrote is removed");
    } catch (error) {
      if (!signal.aborted) log.warn({ err: error, replica: key }, "what a replica wrote that is gone is not removed yet");
    } finally {
      removing.delete(key);
    }
  };
  return () => {
    const time = now();
    for (const { key, heardAt } of table.entries()) if (time - heardAt > replicaFreshMs) table.forget(key);
    for (const { key, since } of table.orphans()) if (time - since >= goneMs && !removing.has(key)) void remove(key);
  };
}
