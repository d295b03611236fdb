/** What the gateway knows about engines, adapters and replicas, kept in memory by watching their KV buckets. */
import { type Bus, createReplicaTable } from "@loraline/bus";
import { type AdapterState, buckets, type EngineRecord, replicaKey } from "@loraline/contracts";
import type { ReplicaView, RoutingView } from "./decide-route.ts";

/** Agents write every 3 s. */
const silentAfterMs = 15_000;
/** A replica that was silent for this long is not asked any more; another pod may have its address by now. */
const forgottenAfterMs = 10 * 60_000;

export interface RoutingTable {
  view(): RoutingView;
  engine(name: string): EngineRecord | undefined;
  /** Counts a request as in flight on a replica until the returned function is called; calling it again does nothing. */
  begin(replica: ReplicaView): () => void;
  /** It could not be reached: it is asked last until it is heard of again. */
  unreachable(replica: ReplicaView): void;
}

/** Resolves when the table holds everything that was in the buckets. Ends with the signal. */
export async function createRoutingTable({
  bus,
  signal,
  now = () => performance.now(),
  random,
}: {
  bus: Pick<Bus, "bucket">;
  signal: AbortSignal;
  now?: () => number;
  /** For benchmarks: replicas are chosen by these numbers from 0 to 1 instead of by affinity and load. */
  random?: (() => number) | undefined;
}): Promise<RoutingTable> {
  const engines = new Map<string, EngineRecord>();
  const adapters = new Map<string, AdapterState>();
  const inFlight = new Map<string, number>();
  const unreachableAt = new Map<string, number>();

  const [replicas] = await Promise.all([
    createReplicaTable({ bus, signal, now }),
    follow<EngineRecord>(await bus.bucket(buckets.engines), signal, engines),
    follow<AdapterState>(await bus.bucket(buckets.adapters), signal, adapters),
  ]);

  let sweptAt = now();
  return {
    view() {
      const time = now();
      // Entries of replicas that are gone are removed here, because no watch event says that they went.
      if (time - sweptAt > forgottenAfterMs) {
        sweptAt = time;
        for (const { key, since } of replicas.orphans()) if (time - since > forgottenAfterMs) replicas.drop(key);
      }
      const views: ReplicaView[] = [];
      for (const { key, report: state, proven, held, heardAt } of replicas.entries()) {
        // The bucket's TTL removes entries without telling watchers.
        if (time - heardAt > forgottenAfterMs) {
          replicas.forget(key);
          unreachableAt.delete(key);
          continue;
        }
        const reached = heardAt > (unreachableAt.get(key) ?? Number.NEGATIVE_INFINITY);
        views.push({ state, proven, held, fresh: reached && time - heardAt <= silentAfterMs, inFlight: inFlight.get(key) ?? 0 });
      }
      return { engines: [...engines.values()], adapters, replicas: views, random };
    },
    engine: (name) => engines.get(name),
    unreachable: ({ state }) => void unreachableAt.set(replicaKey(state), now()),
    begin({ state }) {
      const key = replicaKey(state);
      inFlight.set(key, (inFlight.get(key) ?? 0) + 1);
      let ended = false;
      return () => {
        if (ended) return;
        ended = true;
        const left = (inFlight.get(key) ?? 1) - 1;
        if (left > 0) inFlight.set(key, left);
        else inFlight.delete(key);
      };
    },
  };
}

/** Keeps `into` equal to the bucket. */
async function follow<T>(
  bucket: Awaited<ReturnType<Bus["bucket"]>>,
  signal: AbortSignal,
  into: { set(key: string, value: T): unknown; delete(key: string): unknown },
): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const onChange = (key: string, value: unknown): void => {
      // The bucket has parsed it with the schema that T comes from.
      if (value === undefined) into.delete(key);
      else into.set(key, value as T);
    };
    bucket.watch({ signal, onChange, onReady: resolve }).catch(reject);
  });
}
