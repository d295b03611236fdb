/**
 * What an agent writes about its replica: a small heartbeat in KV `replicas`, and one entry for each adapter in KV `holdings`, when what is
 * held of it changes. So a change costs one write, however many adapters there are.
 */
import type { KvBucket } from "@loraline/bus";
import { everyHoldingOf, holdingKey, type ReplicaAdapter, type ReplicaHolding, type ReplicaReport } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";

/** Writes on their way at once; those of one adapter never overtake each other. */
const concurrency = 16;
/** After this long without a heartbeat the controller may have cleared away what was written, so all of it is written again. */
const rewriteAfterMs = 5 * 60_000;

interface ReplicaReporter {
  /** What is held of this adapter (`<tenant>.<adapter>`) may have changed. Resolves when it is written, or could not be written. */
  changed(adapterKey: string): Promise<void>;
  /** Writes the heartbeat, and tries again what could not be written. Resolves with false when the heartbeat could not be written; the next one tries again. */
  heartbeat(): Promise<boolean>;
  /** Waits for what is being written, then removes the heartbeat and the holdings. */
  close(): Promise<void>;
}

/** First removes what an earlier agent of this replica wrote. */
export async function createReplicaReporter({
  replicas,
  holdings,
  log,
  key,
  report,
  holder,
  held,
}: {
  replicas: KvBucket<ReplicaReport>;
  holdings: KvBucket<ReplicaHolding>;
  log: Log;
  /** `<engine>.<replica>` */
  key: string;
  report(): ReplicaReport;
  /** The processes that hold it: engine and agent. */
  holder(): { incarnation: string; agent: string };
  /** What is held of an adapter now. */
  held(adapterKey: string): ReplicaAdapter[];
}): Promise<ReplicaReporter> {
  await holdings.clear(everyHoldingOf(key));
  /** Entries as they stand in the bucket, without their times. */
  const written = new Map<string, string>();
  const waiting = new Map<string, PromiseWithResolvers<void>>();
  const writing = new Map<string, Promise<void>>();
  let failed = new Set<string>();
  let closed = false;

  /** Another agent has taken this one's place: what stands in the buckets is its own, and it would not write it again. */
  let superseded = false;
  /** Agents are called by ULIDs, so the later one has the greater name. */
  const isLater = (agent: string | null | undefined): boolean => agent !== null && agent !== undefined && agent > holder().agent;
  const isSuperseded = async (): Promise<boolean> => {
    const last = await replicas.get(key).catch(() => undefined);
    const now = isLater(last?.value.agent);
    if (now && !superseded)
      log.warn({ by: last?.value.agent }, "another agent has taken this one's place; it reports, and this one does not");
    // The other one is gone, as when a clock was set back in between: everything is written again.
    if (!now && superseded) {
      failed = new Set([...failed, ...written.keys()]);
      written.clear();
    }
    superseded = now;
    return now;
  };

  const write = async (adapterKey: string): Promise<void> => {
    if (superseded) {
      failed.add(adapterKey);
      return;
    }
    const { incarnation, agent } = holder();
    const adapters = held(adapterKey);
    const text = JSON.stringify([incarnation, adapters.map(({ at: _at, ...rest }) => rest)]);
    if (adapters.length === 0 ? !written.has(adapterKey) : written.get(adapterKey) === text) return;
    try {
      if (adapters.length === 0) {
        await holdings.delete(holdingKey({ replicaKey: key, adapterKey }));
        written.delete(adapterKey);
      } else {
        await holdings.put(holdingKey({ replicaKey: key, adapterKey }), { incarnation, agent, adapters });
        written.set(adapterKey, text);
      }
      failed.delete(adapterKey);
    } catch (error) {
      failed.add(adapterKey);
      if (!closed) log.warn({ err: error, adapter: adapterKey }, "holding not written; the next heartbeat tries again");
    }
  };

  const next = (): void => {
    for (const [adapterKey, { resolve }] of waiting) {
      if (writing.size >= concurrency) return;
      if (writing.has(adapterKey)) continue;
      waiting.delete(adapterKey);
      const done = write(adapterKey).finally(() => {
        writing.delete(adapterKey);
        resolve();
        next();
      });
      writing.set(adapterKey, done);
    }
  };

  const changed = (adapterKey: string): Promise<void> => {
    let turn = waiting.get(adapterKey);
    if (turn === undefined) {
      turn = Promise.withResolvers<void>();
      waiting.set(adapterKey, turn);
      next();
    }
    return turn.promise;
  };

  let heartbeat: Promise<boolean> = Promise.resolve(false);
  let heartbeatsWaiting = 0;
  let lastHeartbeatAt = performance.now();
  return {
    changed,
    heartbeat() {
      if (closed || heartbeatsWaiting > 0) return heartbeat;
      heartbeatsWaiting += 1;
      heartbeat = heartbeat.then(async () => {
        heartbeatsWaiting -= 1;
        if (await isSuperseded()) return true;
        if (performance.now() - lastHeartbeatAt > rewriteAfterMs) {
          failed = new Set([...failed, ...written.keys()]);
          written.clear();
        }
        for (const adapterKey of failed) void changed(adapterKey);
        try {
          await replicas.put(key, report());
          lastHeartbeatAt = performance.now();
          return true;
        } catch (error) {
          if (!closed) log.warn({ err: error }, "heartbeat not written; the next one tries again");
          return false;
        }
      });
      return heartbeat;
    },
    async close() {
      closed = true;
      while (writing.size > 0) await Promise.all(writing.values());
      await heartbeat;
      if (await isSuperseded()) return;
      // One that began a moment ago may not have said so yet, or this one has written over it.
      const entries = await holdings.entries(everyHoldingOf(key), { skipUnreadable: true }).catch(() => []);
      if (entries.some(({ value }) => isLater(value.agent))) return;
      // An agent that ends in order says so; otherwise the controller waits until its last heartbeat is old.
      await replicas.delete(key).catch((error: unknown) => log.warn({ err: error }, "heartbeat not removed; it ages away"));
      await holdings
        .clear(everyHoldingOf(key))
        .catch((error: unknown) => log.warn({ err: error }, "holdings not removed; they do not count any more"));
    },
  };
}
