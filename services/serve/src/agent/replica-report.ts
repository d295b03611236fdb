/**
 * What an agent tells about its replica: a small heartbeat in KV `replicas`, and for each adapter what is held of it in KV
 * `holdings`, written when that changes. A change costs one write however many adapters there are.
 */
import type { KvBucket } from "@loraline/bus";
import type { ReplicaAdapter, ReplicaHolding, ReplicaReport } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";

/** Writes on their way at once; those of one adapter never overtake each other. */
const concurrency = 16;
/** After so long without a heartbeat the controller may have cleared away what was told. */
const retellAfterMs = 5 * 60_000;

export interface ReplicaReporter {
  /** What is held of this adapter (`<tenant>.<adapter>`) may have changed. Resolves when what was true then is written, or could not be. */
  changed(adapterKey: string): Promise<void>;
  /** Writes the heartbeat, and tries again what could not be written. False: the heartbeat could not be, and the next one tries again. */
  heartbeat(): Promise<boolean>;
  /** Waits for what is being written, and takes the heartbeat back. */
  close(): Promise<void>;
}

/** First removes what an earlier agent of this replica told. */
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
  /** Of which processes it is told. */
  holder(): { incarnation: string; agent: string };
  /** What there is to tell of an adapter now. */
  held(adapterKey: string): ReplicaAdapter[];
}): Promise<ReplicaReporter> {
  await holdings.clear(`${key}.>`);
  /** What stands in the bucket, without its times. */
  const written = new Map<string, string>();
  const waiting = new Map<string, PromiseWithResolvers<void>>();
  const writing = new Map<string, Promise<void>>();
  let failed = new Set<string>();
  let closed = false;

  const write = async (adapterKey: string): Promise<void> => {
    const { incarnation, agent } = holder();
    const adapters = held(adapterKey);
    const text = JSON.stringify([incarnation, adapters.map(({ at: _at, ...rest }) => rest)]);
    if (adapters.length === 0 ? !written.has(adapterKey) : written.get(adapterKey) === text) return;
    try {
      if (adapters.length === 0) {
        await holdings.delete(`${key}.${adapterKey}`);
        written.delete(adapterKey);
      } else {
        await holdings.put(`${key}.${adapterKey}`, { incarnation, agent, adapters });
        written.set(adapterKey, text);
      }
      failed.delete(adapterKey);
    } catch (error) {
      failed.add(adapterKey);
      if (!closed) log.warn({ err: error, adapter: adapterKey }, "holding not told; the next heartbeat tries again");
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

  let beating: Promise<boolean> = Promise.resolve(false);
  let beatsWaiting = 0;
  let beatAt = Date.now();
  return {
    changed,
    heartbeat() {
      if (closed || beatsWaiting > 0) return beating;
      beatsWaiting += 1;
      beating = beating.then(async () => {
        beatsWaiting -= 1;
        if (Date.now() - beatAt > retellAfterMs) {
          failed = new Set([...failed, ...written.keys()]);
          written.clear();
        }
        for (const adapterKey of failed) void changed(adapterKey);
        try {
          await replicas.put(key, report());
          beatAt = Date.now();
          return true;
        } catch (error) {
          if (!closed) log.warn({ err: error }, "heartbeat not written; the next one tries again");
          return false;
        }
      });
      return beating;
    },
    async close() {
      closed = true;
      while (writing.size > 0) await Promise.all(writing.values());
      await beating;
      const there = await replicas.get(key).catch(() => undefined);
      // Another agent has taken this one's place already: what stands there is its own, and it would not tell it again.
      if (there !== undefined && there.value.agent !== holder().agent) return;
      // Gone in order: nobody needs to wait until its last heartbeat has aged.
      await replicas.delete(key).catch((error: unknown) => log.warn({ err: error }, "heartbeat not removed; it ages away"));
      await holdings
        .clear(`${key}.>`)
        .catch((error: unknown) => log.warn({ err: error }, "holdings not removed; they do not count any more"));
    },
  };
}
