/** The operator's view of engines and replicas, kept up to date from NATS. All namespaces that it serves share it. */
import { type Bus, createReplicaTable } from "@loraline/bus";
import { type AdapterVersion, buckets, type EngineRecord } from "@loraline/contracts";
import type { Held } from "./decide-adapter.ts";

/** A replica whose heartbeat is older than this is gone; the same as the TTL of KV `replicas`. */
const freshMs = buckets.replicas.ttlMs;

export interface LineView extends AsyncDisposable {
  /** The engines that a tenant may use. */
  engines(tenant: string): EngineRecord[];
  engine(name: string): EngineRecord | undefined;
  allEngines(): Iterable<EngineRecord>;
  held(engine: string, version: AdapterVersion): Held;
  subscribe(listener: LineListener): Disposable;
}

interface LineListener {
  onEngines(): void;
  /** Called when a replica of this engine appears, goes or restarts. */
  onReplica(engine: string): void;
  /** Called when a replica's versions of this adapter changed; the key is `<tenant>.<adapter>`. */
  onHolding(adapterKey: string): void;
}

export async function createLineView({ bus }: { bus: Bus }): Promise<LineView> {
  const ending = new AbortController();
  const { signal } = ending;
  const listeners = new Set<LineListener>();
  const engines = new Map<string, EngineRecord>();
  const ready = Promise.withResolvers<void>();
  const engineBucket = await bus.bucket(buckets.engines);
  await engineBucket.watch({
    signal,
    onReady: ready.resolve,
    onChange(key, value) {
      if (value === undefined) engines.delete(key);
      else engines.set(key, value);
      for (const listener of listeners) listener.onEngines();
    },
  });
  const engineOf = (replicaKey: string): string => replicaKey.slice(0, replicaKey.indexOf("."));
  const table = await createReplicaTable({
    bus,
    signal,
    onReplica: (key) => {
      for (const listener of listeners) listener.onReplica(engineOf(key));
    },
    onHolding: (_key, adapterKey) => {
      for (const listener of listeners) listener.onHolding(adapterKey);
    },
  });
  await ready.promise;
  const isFresh = ({ heardAt }: { heardAt: number }): boolean => performance.now() - heardAt < freshMs;
  const forgetting = setInterval(() => {
    for (const entry of table.entries()) if (!isFresh(entry)) table.forget(entry.key);
  }, 5000);

  return {
    engine: (name) => engines.get(name),
    allEngines: () => engines.values(),
    engines: (tenant) => [...engines.values()].filter(({ tenants }) => tenants?.includes(tenant) ?? true),
    held(engine, { engineName: loraName, replicas: placed }) {
      const found: Held = { proven: 0, of: 0, trouble: undefined };
      for (const entry of table.entries()) {
        const { report } = entry;
        if (report.engine !== engine || !report.ready || !isFresh(entry)) continue;
        if (placed !== null && placed !== undefined && !placed.includes(report.replica)) continue;
        found.of++;
        if (entry.proven.has(loraName)) found.proven++;
        else {
          const error = entry.held(loraName)?.error;
          if (error !== null && error !== undefined) found.trouble ??= { ...error, replica: report.replica };
        }
      }
      return found;
    },
    subscribe(listener) {
      listeners.add(listener);
      return { [Symbol.dispose]: () => void listeners.delete(listener) };
    },
    async [Symbol.asyncDispose]() {
      clearInterval(forgetting);
      ending.abort();
    },
  };
}
