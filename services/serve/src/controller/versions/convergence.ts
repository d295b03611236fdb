/**
 * Follows versions until they are served or refused, canaries until they are over, and what is to be kept or moved later: each adapter is
 * looked at when something about it may have changed, and what is decided is written, then published.
 */
import { type KvBucket, type ReplicaEntry, tellWaiting } from "@loraline/bus";
import {
  adapterKey,
  type AdapterState,
  type EngineRecord,
  parseReplicaKey,
  replicaKey,
  type ReplicaState,
  runWaiting,
} from "@loraline/contracts";
import { createKeyedQueue, type Log } from "@loraline/runtime";
import { type AdapterEventDeps, publishWhatWasLost } from "../aliases/adapter-events.ts";
import type { Canaries } from "../aliases/canary.ts";
import type { ReplicaFollower, Replicas } from "../replicas.ts";
import type { WatchedTable } from "../watched-table.ts";
import { awaitedReplica, decideConvergence, decideWaiting } from "./decide-convergence.ts";
import type { Keeper } from "./keep-versions.ts";
import { recordConvergence } from "./record-convergence.ts";

interface ConvergenceDeps extends AdapterEventDeps {
  adapters: KvBucket<AdapterState>;
  /** Every adapter as it is known now. */
  states: Pick<WatchedTable<AdapterState>, "get">;
  replicas: Pick<Replicas, "of"> & { table: { get(key: string): ReplicaEntry | undefined } };
  engines: { get(engine: string): Pick<EngineRecord, "problem"> | undefined };
  canaries: Pick<Canaries, "move">;
  keeper: Pick<Keeper, "isDue" | "keep">;
  log: Log;
}

interface Convergence extends ReplicaFollower, AsyncDisposable {
  /** To be called with every change of an adapter. */
  onAdapter(key: string, state: AdapterState | undefined, before: AdapterState | undefined): void;
  /** Something about this adapter may be due. */
  consider(key: string): void;
  /** Looks at every adapter with a version that is not served yet: time passes, and replicas vanish, without a report. */
  considerOpen(): void;
  /** To be called when the gate has published that a run waits no more: a replica's reason may have been seen, and not published, before. */
  onGateWaitOver(runId: string): void;
}

const isOpen = ({ versions }: AdapterState): boolean => versions.some(({ status, servedAt }) => status === "desired" && servedAt === null);

/** Whether a replica says no to any version of an adapter. */
const saysNo = (replica: ReplicaEntry | undefined, { versions }: AdapterState): boolean =>
  versions.some(({ engineName }) => ["refused", "quarantined"].includes(replica?.held(engineName)?.state ?? ""));

export function createConvergence(deps: ConvergenceDeps): Convergence {
  const { bus, adapters, states, replicas, engines, canaries, keeper, log } = deps;
  /** Adapters with a version that is not served yet, by engine: only these have to be looked at when a replica reports. */
  const open = new Map<string, Set<string>>();
  /** Adapters whose state may have been written without its events: the bus went away in between. */
  const unpublished = new Set<string>();
  /** One replica that an adapter waits for: a hundred report each version, and few of these reports change anything. */
  const awaited = new Map<string, string>();
  const waiting = createWaitingRuns(bus);

  const work = async (key: string): Promise<void> => {
    const seen = states.get(key);
    if (seen === undefined) return;
    awaited.delete(key);
    const now = Date.now();
    const found = replicas.of(seen);
    await waiting.tell(seen, found, now, engines.get(seen.engine));
    if (!unpublished.has(key) && !seen.canary && !keeper.isDue(key) && decideConvergence(seen, found, now).length === 0) {
      const replica = awaitedReplica(seen, found, now);
      if (replica !== undefined) awaited.set(key, replicaKey({ engine: seen.engine, replica }));
      return;
    }
    const entry = await adapters.get(key);
    if (entry === undefined) return;
    if (unpublished.has(key)) await publishWhatWasLost(entry.value, deps);
    unpublished.add(key);
    for (const decided of decideConvergence(entry.value, replicas.of(entry.value), Date.now()))
      await recordConvergence(key, decided, deps, adapters);
    await canaries.move(key);
    await keeper.keep(key);
    unpublished.delete(key);
  };
  const queue = createKeyedQueue({ concurrency: 16, log, work, measured: { metrics: deps.telemetry.metrics, name: "adapters" } });

  /** Whether what is new about a replica may change something about an adapter. */
  const matters = (replica: string, state: AdapterState): boolean => {
    const other = awaited.get(adapterKey(state));
    return other === undefined || other === replica || saysNo(replicas.table.get(replica), state);
  };

  return {
    onAdapter(key, state, before) {
      if (before !== undefined) open.get(before.engine)?.delete(key);
      awaited.delete(key);
      if (state === undefined) return;
      if (!isOpen(state)) return waiting.forget(state);
      const ofEngine = open.get(state.engine) ?? new Set();
      open.set(state.engine, ofEngine.add(key));
      queue.add(key);
    },
    onReplica(replica) {
      for (const key of open.get(parseReplicaKey(replica).engine) ?? []) {
        const state = states.get(key);
        if (state !== undefined && matters(replica, state)) queue.add(key);
      }
    },
    onHolding(replica, key) {
      const state = states.get(key);
      if (state !== undefined && isOpen(state) && matters(replica, state)) queue.add(key);
    },
    consider: (key) => queue.add(key),
    onGateWaitOver: (runId) => waiting.doubt(runId),
    considerOpen() {
      for (const keys of open.values()) for (const key of keys) queue.add(key);
    },
    [Symbol.asyncDispose]: () => queue[Symbol.asyncDispose](),
  };
}

/** Publishes `run.waiting` for runs whose version cannot be proven for now: when that begins, and when it is over. */
function createWaitingRuns(bus: AdapterEventDeps["bus"]) {
  /** Code of the reason that was published last. Of a run that is not in here an earlier controller may have published one. */
  const published = new Map<string, string | undefined>();
  /** Runs of which the gate has published that they wait no more, since the last look. */
  const doubted = new Set<string>();
  return {
    doubt: (runId: string): void => void doubted.add(runId),
    async tell(state: AdapterState, replicas: readonly ReplicaState[], now: number, engine: Pick<EngineRecord, "problem"> | undefined) {
      for (const { runId, reason } of decideWaiting(state, replicas, now, engine)) {
        if (doubted.delete(runId)) published.delete(runId);
        if (published.has(runId) && published.get(runId) === reason?.code) continue;
        await tellWaiting(bus, runWaiting, { tenant: state.tenant, id: runId }, { stage: "serve", reason });
        published.set(runId, reason?.code);
      }
    },
    forget({ versions }: AdapterState): void {
      for (const { runId } of versions) {
        published.delete(runId);
        doubted.delete(runId);
      }
    },
  };
}
