/**
 * Beside each engine: makes it hold what KV `assignments` wants of this replica, proves it, and tells in KV `replicas` and `holdings`.
 *
 *   KV assignments ► wanted-set ──┐
 *   engine ──────► engine-observer├─► scheduler ─ decide-adapters ─► adapter-work ─► adapter-memory ─► replica-report
 *   KV traffic ──► traffic-view ──┘                                       └─► load-events
 *
 * This file only puts the units together; what each does stands in its own file.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Bus } from "@loraline/bus";
import {
  adapterKey,
  type Assignment,
  assignmentsTo,
  buckets,
  defaultEngineKind,
  type EngineKindName,
  type EngineRecord,
  replicaKey,
} from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import { type Log, RetryLaterError, type Telemetry } from "@loraline/runtime";
import { ulid } from "ulid";
import { engines as engineTable } from "../engines/table.ts";
import { isLoraName, partsOfLoraName } from "../lora-names.ts";
import { type AdapterFiles, createAdapterFiles } from "./adapters/adapter-files.ts";
import { createAdapterMemory } from "./adapters/adapter-memory.ts";
import { createAdapterSteps, type EngineFacts } from "./adapters/adapter-steps.ts";
import { createAdapterWork } from "./adapters/adapter-work.ts";
import { createAgentMetrics } from "./agent-metrics.ts";
import { checkTemplate } from "./check-template.ts";
import { systemClock } from "./clock.ts";
import { type AgentView, decideAdapter, type DrainLimits, drainLimits } from "./adapters/decide-adapters.ts";
import { createDrain, leaveLimits, type LeaveLimits } from "./drain.ts";
import { createEngineObserver } from "./engine-observer.ts";
import { createFileWatch } from "./adapters/file-watch.ts";
import { countsOf, holdingsOf, type ReplicaView } from "./adapters/holdings.ts";
import { createLoadEvents } from "./adapters/load-events.ts";
import { createReadiness } from "./readiness.ts";
import { createReplicaReporter } from "./replica-report.ts";
import { createScheduler } from "./scheduler.ts";
import { createTrafficView } from "./traffic-view.ts";
import { createWantedSet } from "./adapters/wanted-set.ts";

export interface AgentServiceDeps {
  bus: Pick<Bus, "bucket" | "publish">;
  objects: Pick<Objects, "get">;
  log: Log;
  telemetry: Telemetry;
  /** Name of the engine this replica belongs to. */
  engine: string;
  /** Name of the base, as the engine serves it. */
  base: string;
  /** Identity of the replica: pod UID, or the local process's slot. */
  replica: string;
  /** Name of its pod, for people. */
  pod?: string | undefined;
  /** Where the agent reaches the engine: loopback. */
  engineUrl: string;
  /** What program the engine is. Default: vllm. */
  engineKind?: EngineKindName | undefined;
  /** The key that the engine was started with. */
  engineKey?: string | undefined;
  /** Where the gateway reaches it. */
  publicUrl: string;
  /** Belongs to this agent alone; the engine must see it under the same path. */
  adaptersDir: string;
  /** For agents of one process that share a folder; default: `adaptersDir`. */
  files?: AdapterFiles;
  /** Ranks the engine was started for. Default: what KV `engines` says. */
  maxLoraRank?: number;
  /** Changes with each start of the engine process. Default: what the engine says of itself. */
  incarnation?: () => Promise<string>;
  drain?: Partial<DrainLimits>;
  leave?: Partial<LeaveLimits>;
  healthMs?: number;
  heartbeatMs?: number;
  loadTimeoutMs?: number;
}

export interface ServeAgent extends AsyncDisposable {
  /**
   * What keeps the replica from counting as ready, in words: its engine is away, or not everything that was wanted when this engine
   * process began has been proven (or refused, or given up) yet. undefined: it is ready.
   */
  unready(): string | undefined;
  /**
   * The engine is about to be ended: gateways are told to send nothing more, and what they still have in flight here is waited for.
   * Resolves with what came of it, in words. Another engine process that comes up afterwards is served from again.
   */
  drain(): Promise<string>;
}

export async function createAgentService(deps: AgentServiceDeps): Promise<ServeAgent> {
  const { bus, objects, telemetry, engine, base, replica, publicUrl, healthMs = 500, heartbeatMs = 3000 } = deps;
  const log = deps.log.child({ engine, replica });
  const clock = systemClock;
  const { now } = clock;
  const stopping = new AbortController();
  const { signal } = stopping;
  const [assignments, replicas, holdings, engines] = await Promise.all([
    bus.bucket(buckets.assignments),
    bus.bucket(buckets.replicas),
    bus.bucket(buckets.holdings),
    bus.bucket(buckets.engines),
  ]);
  const registeredEngine = async (): Promise<EngineRecord | undefined> => (await engines.get(engine))?.value;

  /* what is wanted, what the engine holds, what is remembered */

  const client = engineTable[deps.engineKind ?? defaultEngineKind].connect({
    url: deps.engineUrl,
    apiKey: deps.engineKey,
    ...(deps.loadTimeoutMs === undefined ? {} : { loadTimeoutMs: deps.loadTimeoutMs }),
  });
  const files = deps.files ?? createAdapterFiles({ dir: deps.adaptersDir, objects });
  const traffic = await createTrafficView({ bus, replica, signal });
  const wanted = createWantedSet();
  const observer = createEngineObserver({
    client,
    base,
    log,
    incarnation: deps.incarnation,
    check: () => checkTemplate({ client, base, log, engine: registeredEngine }),
    onChange: (what) => (what === "listed" ? onListed() : onEngineChanged(what)),
  });
  const memory = createAdapterMemory({ incarnation: () => observer.incarnation, now });

  /* telling */

  const agent = ulid();
  const view = (): ReplicaView => ({ wanted, memory, inWork: scheduler.inWork, listed: observer.observed?.listed });
  const reporter = await createReplicaReporter({
    replicas,
    holdings,
    log,
    key: replicaKey({ engine, replica }),
    held: (key) => holdingsOf(key, view(), now(), heartbeatMs),
    holder: () => ({ incarnation: observer.incarnation, agent }),
    report: () => ({
      engine,
      base,
      replica,
      pod: deps.pod,
      incarnation: observer.incarnation,
      agent,
      url: publicUrl,
      ready: observer.ready && !leaving.isLeaving(),
      problem: leaving.isLeaving()
        ? { code: "LEAVING", message: "this replica is about to end; it finishes what it has begun" }
        : observer.problem,
      counts: countsOf(view()),
      at: new Date().toISOString(),
    }),
  });
  const metrics = createAgentMetrics(telemetry.metrics, {
    engine,
    replica: deps.pod ?? replica,
    now: () => ({ ready: observer.ready && !leaving.isLeaving(), counts: countsOf(view()) }),
  });
  const reportHolding = (loraName: string): void => {
    if (!signal.aborted) void reporter.changed(adapterKey(partsOfLoraName(loraName)));
  };
  const events = createLoadEvents({ bus, engine, replica, now, log });
  const leaving = createDrain({
    engine: observer,
    announce: () => reporter.heartbeat(),
    anyRequests: traffic.anyRequests,
    now,
    wait: (ms) => sleep(ms, undefined, { signal }),
    log,
    limits: { ...leaveLimits, ...deps.leave },
  });
  const readiness = createReadiness({ wanted, memory, engine: observer, product: client.product, isLeaving: leaving.isLeaving });

  /* deciding and doing */

  const steps = createAdapterSteps({
    client,
    engine: observer,
    files,
    objects,
    telemetry,
    base,
    limits: limitsOf(engine, deps.maxLoraRank, registeredEngine),
  });
  const limits: DrainLimits = { ...drainLimits, ...deps.drain };
  const agentView = (): AgentView => ({
    wanted: wanted.isComplete ? wanted.adapters : undefined,
    isUnsure: unreadable.size > 0,
    engine: observer.observed,
    held: memory.held,
    inWork: scheduler.inWork,
    leaving: memory.leaving,
    spoiled: memory.spoiled,
    pathOf: files.pathOf,
    requests: traffic.requests,
  });
  const scheduler = createScheduler({
    clock,
    rankOf: (loraName) => wanted.adapters.get(loraName)?.rank ?? 3,
    decide: (loraName, time) => decideAdapter(agentView(), loraName, time, limits),
    isRetry: (loraName) => (memory.currentOf(loraName)?.attempts ?? 0) > 0,
    isPaused: () => signal.aborted || leaving.isLeaving(),
    work: createAdapterWork({ steps, engine: observer, wanted, memory, events, report: reporter.changed, metrics, telemetry, log, signal }),
    onDone(loraName) {
      // It may have stopped being wanted while it was worked on.
      if (observer.observed?.listed.has(loraName) && !wanted.adapters.has(loraName)) memory.leave(loraName);
      reportHolding(loraName);
    },
  });
  /** Keys of assignments that could not be read: this replica may have to hold what they name. */
  const unreadable = new Set<string>();
  const fileWatch = createFileWatch({
    files,
    wanted: wanted.adapters,
    listed: () => observer.observed?.listed,
    isBusy: (loraName) => scheduler.inWork.has(loraName) || memory.spoiled.has(loraName),
    now,
    onTouched(loraName) {
      log.error({ loraName }, "files of a loaded adapter changed on disk; loading it anew");
      memory.spoil(loraName, now());
      memory.forget(loraName);
      reportHolding(loraName);
      scheduler.consider([loraName]);
    },
  });

  /* what happens */

  let isRead = false;
  let isAssigned = false;

  function onAssignment(key: string, entry: Assignment | undefined): void {
    unreadable.delete(key);
    const change = wanted.take(key, entry);
    if (change === undefined) {
      isAssigned = entry !== undefined;
      return completeWanted();
    }
    for (const loraName of change.gone) {
      if (observer.observed?.listed.has(loraName)) memory.leave(loraName);
      memory.forget(loraName);
      memory.unspoil(loraName);
    }
    for (const loraName of change.wanted) memory.stay(loraName);
    if (!wanted.isComplete) return;
    void reporter.changed(change.adapterKey);
    scheduler.consider([...change.gone, ...change.wanted]);
  }

  /** What is wanted is known once the bucket was read and the controller has said that it holds everything. */
  function completeWanted(): void {
    if (wanted.isComplete || !isRead || !isAssigned) return;
    wanted.markComplete();
    if (observer.ready) readiness.engineReady();
    onListed();
  }

  function onEngineChanged(what: "ready" | "away"): void {
    if (what === "ready") {
      metrics.engineStarted();
      readiness.engineReady();
      memory.engineReady();
    }
    void reporter.heartbeat();
  }

  function onListed(): void {
    const listed = observer.observed?.listed ?? new Map<string, string | null>();
    if (wanted.isComplete) {
      for (const loraName of listed.keys()) if (!wanted.adapters.has(loraName) && isLoraName(loraName)) memory.leave(loraName);
    }
    for (const [loraName, { state }] of memory.held) {
      if (state !== "proven" || listed.has(loraName)) continue;
      // Not this agent has unloaded it.
      memory.forget(loraName);
      reportHolding(loraName);
    }
    for (const loraName of memory.leaving.keys()) {
      if (listed.has(loraName)) continue;
      memory.stay(loraName);
      reportHolding(loraName);
    }
    scheduler.consider(wanted.adapters.keys());
    scheduler.consider(memory.leaving.keys());
  }

  /* starting */

  const reading = Promise.withResolvers<void>();
  await assignments.watch({
    filter: assignmentsTo({ engine, replica }),
    signal,
    onChange: onAssignment,
    onUnreadable: (key) => unreadable.add(key),
    onReady: reading.resolve,
  });
  await reading.promise;
  isRead = true;
  completeWanted();
  await reporter.heartbeat();

  const every = async (ms: number, work: () => Promise<void>): Promise<void> => {
    while (!signal.aborted) {
      await work().catch((error: unknown) => {
        if (!signal.aborted) log.error({ err: error }, "agent loop");
      });
      await sleep(ms, undefined, { signal }).catch(() => {});
    }
  };
  const loops = [
    every(healthMs, () => observer.checkHealth()),
    every(heartbeatMs, async () => {
      if (observer.ready) {
        await observer.look();
        await fileWatch.look();
        for (const loraName of scheduler.inWork.keys()) reportHolding(loraName);
      }
      await reporter.heartbeat();
      await events.retry();
    }),
  ];

  return {
    unready: readiness.unready,
    drain: leaving.drain,
    async [Symbol.asyncDispose]() {
      stopping.abort();
      metrics[Symbol.dispose]();
      client[Symbol.dispose]();
      await Promise.all([...loops, scheduler[Symbol.asyncDispose]()]);
      await reporter.close();
    },
  };
}

/** What an engine was started for: as given, or as KV `engines` says, now or before NATS went away. */
function limitsOf(
  engine: string,
  maxLoraRank: number | undefined,
  registered: () => Promise<EngineRecord | undefined>,
): () => Promise<EngineFacts> {
  let known: EngineFacts | undefined = maxLoraRank === undefined ? undefined : { maxLoraRank };
  return async () => {
    if (maxLoraRank === undefined) known = (await registered().catch(() => undefined)) ?? known;
    if (known !== undefined) return known;
    throw new RetryLaterError(
      "ENGINE_UNREGISTERED",
      1000,
      `KV engines has no "${engine}" yet; the serve controller writes it when it starts`,
    );
  };
}
