/**
 * Decides what is served: gates trained versions, writes what engines must hold into KV `adapters`, watches them converge, moves the alias.
 *
 *   run.trained ─► gate ─► accepted: desired ─► proven on every ready replica: served, alias moves (auto) ─► run.served
 *                   └────► refused ◄── a replica cannot be proven                       or its canary begins └─► run.failed
 *
 * State first, event after: an event that was lost to a crash is published at the next start, with the id it would have had.
 */
import { type Bus, createReplicaTable, type ReplicaEntry, type ReplicaTable, tellWaiting } from "@loraline/bus";
import {
  adapterKey,
  adapterKeepRequested,
  adapterPlaceRequested,
  adapterPromoteRequested,
  adapterRollbackRequested,
  type AdapterState,
  adapterVersionDeleteRequested,
  adapterVersionWanted,
  buckets,
  consumers,
  type EngineRecord,
  type EventAddress,
  everyHoldingOf,
  replicaKey,
  type ReplicaState,
  runFailed,
  runWaiting,
} from "@loraline/contracts";
import type { Objects, StoreState } from "@loraline/objects";
import { createKeyedQueue, type Log, PermanentError, type Telemetry } from "@loraline/runtime";
import { keyOf, nameOf, publishWhatWasLost } from "./aliases/adapter-events.ts";
import { type Canaries, createCanaries } from "./aliases/canary.ts";
import type { AliasCommand } from "./aliases/decide-alias.ts";
import { awaitedReplica, decideConvergence, decideWaiting, replicaFreshMs } from "./versions/decide-convergence.ts";
import { followAliasCommand } from "./aliases/follow-alias-command.ts";
import { onCancelRequested } from "./versions/on-cancel-requested.ts";
import { onRunTrained } from "./versions/on-run-trained.ts";
import { createPlacer, type Placer } from "./placement/place-versions.ts";
import { onDeleteRequested, onKeepRequested, onVersionWanted } from "./versions/follow-keep-commands.ts";
import { createKeeper, type Keeper } from "./versions/keep-versions.ts";
import { settle } from "./versions/settle-version.ts";

export interface ServeServiceDeps {
  bus: Bus;
  objects: Pick<Objects, "get" | "delete"> & Partial<StoreState>;
  log: Log;
  telemetry: Telemetry;
  /** What each engine can serve; becomes KV `engines`. */
  engines: readonly EngineRecord[];
  /** How often versions that are not served yet are looked at although no report came. Default 2 s. */
  resyncMs?: number;
  /** A version that was asked for by name stays loaded for so long. Default 15 min. */
  wantedForMs?: number;
  /** What a replica held is placed elsewhere after so long without a sign of it. Default 30 s. */
  replicaAwayMs?: number;
  /** What a replica told is removed after so long without a sign of it. Default 10 min. */
  replicaGoneMs?: number;
}

const isOpen = ({ versions }: AdapterState): boolean => versions.some(({ status, servedAt }) => status === "desired" && servedAt === null);

/** Whether a replica reports of any version that it will not have it. */
const saysNo = (replica: ReplicaEntry | undefined, { versions }: AdapterState): boolean =>
  versions.some(({ engineName }) => ["refused", "quarantined"].includes(replica?.held(engineName)?.state ?? ""));

export async function createServeService(deps: ServeServiceDeps): Promise<AsyncDisposable> {
  // A replica that was silent for ten minutes has another name when it comes back; if it does not, it tells everything again.
  const { bus, log, engines, resyncMs = 2000, replicaAwayMs = 30_000, replicaGoneMs = 10 * 60_000 } = deps;
  const [adapterBucket, engineBucket] = await Promise.all([bus.bucket(buckets.adapters), bus.bucket(buckets.engines)]);
  for (const record of engines) await engineBucket.put(record.engine, record);

  const stopping = new AbortController();
  /** What is there only after the watches have begun. */
  const late: { table?: ReplicaTable; canaries?: Canaries; keeper?: Keeper; placer?: Placer } = {};
  /** Replicas of its engine that were heard of lately, with what they hold of this adapter alone: they hold a thousand others. */
  const replicasOf = ({ engine, versions }: AdapterState): ReplicaState[] => {
    const time = performance.now();
    const at = new Date().toISOString();
    return [...(late.table?.entries() ?? [])]
      .filter(({ report, heardAt }) => report.engine === engine && time - heardAt < replicaFreshMs)
      .map(({ report, held }) => ({ ...report, at, adapters: versions.flatMap(({ engineName }) => held(engineName) ?? []) }));
  };
  /** Adapters with a version that is not served yet, by engine: only these wait for a replica's report. */
  const open = new Map<string, Set<string>>();

  /** Adapters whose state may have been written without its events: the bus went away in between. */
  const untold = new Set<string>();
  /** Of an adapter that is not settled, one replica that it waits for: a hundred report each version, and few reports settle anything. */
  const awaited = new Map<string, string>();
  const engineRecords = new Map<string, EngineRecord>();
  /** What runs whose version is not served yet were told of a wait. Of those that are not in here an earlier controller may have told it. */
  const waiting = new Map<string, string | undefined>();
  const tellWaitingRuns = async (state: AdapterState, replicas: readonly ReplicaState[], now: number): Promise<void> => {
    for (const { runId, reason } of decideWaiting(state, replicas, now, engineRecords.get(state.engine))) {
      if (waiting.has(runId) && waiting.get(runId) === reason?.code) continue;
      await tellWaiting(bus, runWaiting, { tenant: state.tenant, id: runId }, { stage: "serve", reason });
      waiting.set(runId, reason?.code);
    }
  };
  const queue = createKeyedQueue({
    concurrency: 16,
    log,
    async work(key) {
      const seen = states.get(key);
      if (seen === undefined) return;
      awaited.delete(key);
      const now = Date.now();
      const replicas = replicasOf(seen);
      await tellWaitingRuns(seen, replicas, now);
      if (!untold.has(key) && !seen.canary && !late.keeper?.isDue(key)) {
        if (decideConvergence(seen, replicas, now).length === 0) {
          const replica = awaitedReplica(seen, replicas, now);
          if (replica !== undefined) awaited.set(key, replicaKey({ engine: seen.engine, replica }));
          return;
        }
      }
      const entry = await adapterBucket.get(key);
      if (entry === undefined) return;
      if (untold.has(key)) await publishWhatWasLost(entry.value, deps);
      untold.add(key);
      for (const settled of decideConvergence(entry.value, replicasOf(entry.value), Date.now()))
        await settle(key, settled, deps, adapterBucket);
      await late.canaries?.move(key);
      await late.keeper?.keep(key);
      untold.delete(key);
      await late.keeper?.erase(key);
    },
  });

  /** Whether what is new about a replica may settle something about an adapter. */
  const matters = (replica: string, state: AdapterState): boolean => {
    const other = awaited.get(adapterKey(state));
    return other === undefined || other === replica || saysNo(late.table?.get(replica), state);
  };
  const wakeEngine = (engine: string, replica?: string): void => {
    for (const key of open.get(engine) ?? []) {
      const state = states.get(key);
      if (replica === undefined || (state !== undefined && matters(replica, state))) queue.add(key);
    }
  };

  const states = new Map<string, AdapterState>();
  const watchedAdapters = Promise.withResolvers<void>();
  await adapterBucket.watch({
    signal: stopping.signal,
    onChange(key, state) {
      const before = states.get(key);
      if (before !== undefined) open.get(before.engine)?.delete(key);
      awaited.delete(key);
      if (state === undefined) states.delete(key);
      else {
        states.set(key, state);
        late.placer?.see(state);
        if (isOpen(state)) {
          if (!open.has(state.engine)) open.set(state.engine, new Set());
          open.get(state.engine)?.add(key);
          queue.add(key);
        } else for (const { runId } of state.versions) waiting.delete(runId);
      }
      late.canaries?.see(key, state);
      late.keeper?.see(key, state);
    },
    onReady: watchedAdapters.resolve,
  });
  late.table = await createReplicaTable({
    bus,
    signal: stopping.signal,
    onReplica(key) {
      const engine = key.slice(0, key.indexOf("."));
      wakeEngine(engine, key);
      late.placer?.wake(engine, "replicas");
    },
    onHolding(key, adapterKey) {
      const state = states.get(adapterKey);
      if (state === undefined) return;
      if (isOpen(state) && matters(key, state)) queue.add(adapterKey);
      late.placer?.wake(state.engine, "holdings");
    },
  });
  const watchedEngines = Promise.withResolvers<void>();
  await engineBucket.watch({
    signal: stopping.signal,
    onChange(engine, record) {
      if (record === undefined) engineRecords.delete(engine);
      else engineRecords.set(engine, record);
      late.placer?.wake(engine, "limits");
    },
    onReady: watchedEngines.resolve,
  });
  await Promise.all([watchedAdapters.promise, watchedEngines.promise]);
  const placer = createPlacer({
    adapters: adapterBucket,
    states,
    table: late.table,
    engineOf: (engine) => engineRecords.get(engine),
    awayMs: replicaAwayMs,
    log,
    signal: stopping.signal,
  });
  late.placer = placer;
  for (const state of states.values()) placer.see(state);

  const unchecked = [...states.values()];
  const tellLost = async (): Promise<void> => {
    for (let state = unchecked.pop(); state !== undefined; state = unchecked.pop()) await publishWhatWasLost(state, deps);
  };
  await Promise.all(Array.from({ length: 16 }, tellLost));
  // Not before the replicas are known, or every canary would seem to be proven nowhere.
  const canaries = await createCanaries({
    deps,
    adapters: adapterBucket,
    replicas: replicasOf,
    wake: (key) => queue.add(key),
    signal: stopping.signal,
  });
  late.canaries = canaries;
  const keeper = createKeeper({
    deps,
    adapters: adapterBucket,
    states,
    replicas: replicasOf,
    wake: (key) => queue.add(key),
    signal: stopping.signal,
  });
  late.keeper = keeper;
  for (const [key, state] of states) {
    canaries.see(key, state);
    keeper.see(key, state);
  }

  const trained = await bus.consume({
    consumer: consumers.serveRunTrained,
    handlers: { "run.trained.v1": (received) => onRunTrained(received, deps, adapterBucket, engineBucket, placer) },
    isAway: deps.objects.problem && (() => deps.objects.problem?.() !== undefined),
    onWait: ({ at }, reason) => tellWaiting(bus, runWaiting, at, { stage: "serve", reason }),
    // Whoever waits for the run learns why it is not served.
    async onDeadLetter({ tenant, id, code, message, param }) {
      await bus.publish(runFailed, { tenant, id }, { code, message, param });
    },
  });
  const cancels = await bus.consume({
    consumer: consumers.serveRunCancelRequested,
    handlers: { "run.cancel-requested.v1": (received) => onCancelRequested(received, deps, adapterBucket) },
  });
  const onCommand = async (at: EventAddress, command: AliasCommand): Promise<void> => {
    await followAliasCommand(at, command, deps, adapterBucket, replicasOf);
  };
  const commands = await bus.consume({
    consumer: consumers.serveAdapterCommands,
    handlers: {
      [adapterPromoteRequested.type]: ({ at, data, seq }) =>
        onCommand(at, { kind: "promote", version: data.version, canary: data.canary, by: data.by ?? null, seq }),
      [adapterRollbackRequested.type]: ({ at, data, seq }) =>
        onCommand(at, { kind: "rollback", version: data.version ?? null, by: data.by ?? null, seq }),
      async [adapterPlaceRequested.type]({ at, data: { placement, by } }) {
        const state = await adapterBucket.change(keyOf(at), (current) => current && { ...current, placement });
        if (state === undefined) throw new PermanentError("ADAPTER_UNKNOWN", `there is no adapter "${nameOf(at)}".`);
        log.info({ adapter: nameOf(at), placement, by }, "placement set");
      },
      [adapterKeepRequested.type]: (received) => onKeepRequested(received, deps, adapterBucket),
      [adapterVersionDeleteRequested.type]: (received) => onDeleteRequested(received, deps, adapterBucket),
    },
  });
  const wishes = await bus.consume({
    consumer: consumers.serveVersionWanted,
    handlers: { [adapterVersionWanted.type]: (received) => onVersionWanted(received, deps, adapterBucket) },
  });
  // A replica that vanished sends no report; its last one ages, and what it held is cleared away in the end.
  const [replicaBucket, holdingBucket] = await Promise.all([bus.bucket(buckets.replicas), bus.bucket(buckets.holdings)]);
  const table = late.table;
  const removing = new Set<string>();
  const remove = async (key: string): Promise<void> => {
    removing.add(key);
    try {
      // Who was cut off itself has heard of nobody: the bucket is asked, and a replica that is there would not tell its holdings again.
      if ((await replicaBucket.get(key)) !== undefined) return;
      await holdingBucket.clear(everyHoldingOf(key));
      table.drop(key);
      log.info({ replica: key }, "replica is gone for good; what it told is removed");
    } catch (error) {
      if (!stopping.signal.aborted) log.warn({ err: error, replica: key }, "what a replica told that is gone is not removed yet");
    } finally {
      removing.delete(key);
    }
  };
  const resync = setInterval(() => {
    for (const engine of open.keys()) wakeEngine(engine);
    const time = performance.now();
    for (const { key, heardAt } of table.entries()) if (time - heardAt > replicaFreshMs) table.forget(key);
    for (const { key, since } of table.orphans()) {
      if (time - since < replicaGoneMs) continue;
      if (!removing.has(key)) void remove(key);
    }
  }, resyncMs);

  return {
    async [Symbol.asyncDispose]() {
      clearInterval(resync);
      await Promise.all([trained, cancels, commands, wishes].map((consuming) => consuming[Symbol.asyncDispose]()));
      stopping.abort();
      await queue[Symbol.asyncDispose]();
    },
  };
}
