/**
 * Decides what is served: gates trained versions, writes what engines must hold into KV `adapters`, watches them converge, moves the alias.
 *
 *   run.trained ─► gate ─► accepted: desired ─► proven on every ready replica: served, alias moves (auto) ─► run.served
 *                   └────► refused ◄── a replica cannot be proven                                       └─► run.failed
 *
 * State first, event after: an event that was lost to a crash is published at the next start, with the id it would have had.
 */
import type { Bus, KvBucket, Received } from "@loraline/bus";
import {
  adapterAccepted,
  adapterManifest,
  adapterPromoted,
  adapterPromoteRequested,
  adapterRefused,
  adapterRollbackRequested,
  adapterRolledBack,
  type AdapterState,
  type AdapterVersion,
  buckets,
  consumers,
  type EngineRecord,
  type EventAddress,
  evidence as evidenceShape,
  type Problem,
  type ReplicaState,
  runCancelled,
  runFailed,
  runRequested,
  runServed,
  type runTrained,
} from "@loraline/contracts";
import { getJson, type Objects } from "@loraline/objects";
import { createKeyedQueue, type Log, PermanentError, type Telemetry } from "@loraline/runtime";
import { decideGate } from "./decide-gate.ts";
import {
  addVersion,
  type AliasCommand,
  applyRefused,
  applyServed,
  type Convergence,
  decideAlias,
  decideConvergence,
  versionOfRun,
} from "./decide-versions.ts";

export interface ServeControllerDeps {
  bus: Bus;
  objects: Pick<Objects, "get">;
  log: Log;
  telemetry: Telemetry;
  /** What each engine can serve; becomes KV `engines`. */
  engines: readonly EngineRecord[];
  /** How often versions that are not served yet are looked at although no report came. Default 2 s. */
  resyncMs?: number;
}

const keyOf = ({ tenant, id }: EventAddress): string => `${tenant}.${id}`;
const addressOf = ({ tenant, adapter }: AdapterState): EventAddress => ({ tenant, id: adapter });
const nameOf = ({ tenant, id }: EventAddress): string => `${tenant}/${id}`;
const isOpen = ({ versions }: AdapterState): boolean => versions.some(({ status, servedAt }) => status === "desired" && servedAt === null);

export async function createServeController(deps: ServeControllerDeps): Promise<AsyncDisposable> {
  const { bus, log, engines, resyncMs = 2000 } = deps;
  const [adapterBucket, replicaBucket, engineBucket] = await Promise.all([
    bus.bucket(buckets.adapters),
    bus.bucket(buckets.replicas),
    bus.bucket(buckets.engines),
  ]);
  for (const record of engines) await engineBucket.put(record.engine, record);

  const stopping = new AbortController();
  const replicas = new Map<string, ReplicaState>();
  /** Adapters with a version that is not served yet, by engine: only these wait for a replica's report. */
  const open = new Map<string, Set<string>>();

  /** Adapters whose state may have been written without its events: the bus went away in between. */
  const untold = new Set<string>();
  const queue = createKeyedQueue({
    concurrency: 4,
    log,
    async work(key) {
      const entry = await adapterBucket.get(key);
      if (entry === undefined) return;
      if (untold.has(key)) await publishWhatWasLost(entry.value, deps);
      untold.add(key);
      for (const settled of decideConvergence(entry.value, replicas.values(), Date.now())) await settle(key, settled, deps, adapterBucket);
      untold.delete(key);
    },
  });

  const wakeEngine = (engine: string): void => {
    for (const key of open.get(engine) ?? []) queue.add(key);
  };

  const states = new Map<string, AdapterState>();
  const watchedAdapters = Promise.withResolvers<void>();
  await adapterBucket.watch({
    signal: stopping.signal,
    onChange(key, state) {
      const before = states.get(key);
      if (before !== undefined) open.get(before.engine)?.delete(key);
      if (state === undefined) states.delete(key);
      else {
        states.set(key, state);
        if (isOpen(state)) {
          if (!open.has(state.engine)) open.set(state.engine, new Set());
          open.get(state.engine)?.add(key);
          queue.add(key);
        }
      }
    },
    onReady: watchedAdapters.resolve,
  });
  const watchedReplicas = Promise.withResolvers<void>();
  await replicaBucket.watch({
    signal: stopping.signal,
    onChange(key, state) {
      const before = replicas.get(key);
      if (state === undefined) replicas.delete(key);
      else replicas.set(key, state);
      wakeEngine(state?.engine ?? before?.engine ?? "");
    },
    onReady: watchedReplicas.resolve,
  });
  await Promise.all([watchedAdapters.promise, watchedReplicas.promise]);

  for (const state of states.values()) await publishWhatWasLost(state, deps);

  const trained = await bus.consume({
    consumer: consumers.serveRunTrained,
    handlers: { "run.trained.v1": (received) => onRunTrained(received, deps, adapterBucket, engineBucket) },
    // Whoever waits for the run learns why it is not served.
    async onDeadLetter({ tenant, id, code, message, param }) {
      await bus.publish(runFailed, { tenant, id }, { code, message, param });
    },
  });
  const onCommand = async (at: EventAddress, command: AliasCommand): Promise<void> => {
    await moveAlias(at, command, deps, adapterBucket, () => replicas.values());
  };
  const commands = await bus.consume({
    consumer: consumers.serveAdapterCommands,
    handlers: {
      [adapterPromoteRequested.type]: ({ at, data, seq }) =>
        onCommand(at, { kind: "promote", version: data.version, by: data.by ?? null, seq }),
      [adapterRollbackRequested.type]: ({ at, data, seq }) =>
        onCommand(at, { kind: "rollback", version: data.version ?? null, by: data.by ?? null, seq }),
    },
  });
  // A replica that vanished sends no report; its last one ages.
  const resync = setInterval(() => {
    for (const engine of open.keys()) wakeEngine(engine);
  }, resyncMs);

  return {
    async [Symbol.asyncDispose]() {
      clearInterval(resync);
      await Promise.all([trained[Symbol.asyncDispose](), commands[Symbol.asyncDispose]()]);
      stopping.abort();
      await queue[Symbol.asyncDispose]();
    },
  };
}

/* a trained version */

async function onRunTrained(
  received: Received<typeof runTrained>,
  deps: ServeControllerDeps,
  adapters: KvBucket<AdapterState>,
  engines: KvBucket<EngineRecord>,
): Promise<void> {
  const { bus, objects, log, telemetry } = deps;
  const { at, data } = received;
  const { tenant, id: runId } = at;
  const requested = await bus.first(runRequested, at);
  if (requested === undefined)
    throw new PermanentError("RUN_UNKNOWN", `run ${runId} of tenant "${tenant}" was trained, but nobody requested it.`);
  const { spec } = requested.data;
  // It may have been called off while its last attempt was ending; and a failed run has failed for good.
  const over = (await bus.last(runCancelled, at)) ?? (await bus.last(runFailed, at));
  if (over !== undefined) {
    log.info({ runId, because: over.type }, "run is over; its adapter is not served");
    return;
  }

  const key = `${tenant}.${spec.adapter}`;
  const name = { tenant, id: spec.adapter };
  const known = (await adapters.get(key))?.value;
  let version = versionOfRun(known, runId);
  if (version === undefined) {
    const [manifest, evidence] = await Promise.all([
      getJson(objects, tenant, data.adapter, adapterManifest),
      getJson(objects, tenant, data.evidence, evidenceShape),
    ]);
    const candidates = (await engines.entries())
      .map(({ value }) => value)
      .filter(({ base, tenants }) => base.name === spec.base && (tenants?.includes(tenant) ?? true));
    const engine = candidates.find((candidate) => candidate.engine === known?.engine) ?? candidates[0];
    const problem = await telemetry.span(
      "gate",
      { attributes: { "loraline.adapter": spec.adapter, "loraline.digest": data.adapter.digest } },
      async (span) => {
        const found = decideGate({
          spec,
          digest: data.adapter.digest,
          manifest,
          evidence,
          evaluation: data.evaluation,
          engine,
          adapter: known,
        });
        span.setAttribute("loraline.gate", found?.code ?? "accepted");
        return found;
      },
    );
    if (problem !== undefined || engine === undefined) {
      const why = problem ?? { code: "BASE_UNKNOWN", message: `no engine serves base "${spec.base}".` };
      log.warn({ runId, adapter: nameOf(name), ...why }, "version refused by the gate");
      await bus.publish(adapterRefused, name, { ...why, version: null, digest: data.adapter.digest, runId }, { key: runId });
      await bus.publish(runFailed, at, why);
      return;
    }
    const state = await adapters.change(key, (current) =>
      addVersion(current, {
        tenant,
        adapter: spec.adapter,
        engine: engine.engine,
        base: spec.base,
        digest: data.adapter.digest,
        manifest: data.adapter,
        evidence: data.evidence,
        runId,
        rank: data.rank,
        promote: spec.promote,
        evaluation: data.evaluation,
        lastStepAt: data.lastStepAt,
        createdAt: new Date().toISOString(),
        trace: telemetry.traceparent() ?? received.trace,
      }),
    );
    version = versionOfRun(state, runId);
  }
  if (version === undefined) throw new Error(`run ${runId} has no version in KV adapters/${key} after it was added`);
  await publishAccepted(name, spec.base, version, deps);
}

const publishAccepted = async (at: EventAddress, base: string, version: AdapterVersion, { bus }: ServeControllerDeps): Promise<void> => {
  const { digest, runId, engineName } = version;
  await bus.publish(adapterAccepted, at, { version: version.version, digest, base, runId, engineName }, { key: runId });
};

/* convergence */

async function settle(key: string, settled: Convergence, deps: ServeControllerDeps, adapters: KvBucket<AdapterState>): Promise<void> {
  const { log } = deps;
  if (settled.kind === "refused") {
    const state = await adapters.change(key, (current) => current && changed(current, applyRefused(current, settled)));
    const version = state?.versions.find((known) => known.version === settled.version);
    if (state === undefined || version?.status !== "refused") return;
    log.warn({ adapter: key, version: settled.version, ...settled.problem }, "version refused: a replica cannot be proven to apply it");
    await publishRefused(state, version, version.reason ?? settled.problem, deps);
    return;
  }
  const now = new Date().toISOString();
  const before = (await adapters.get(key))?.value;
  const trace = before?.versions.find(({ version }) => version === settled.version)?.trace;
  await deps.telemetry.span(
    "promote",
    { parent: trace ?? undefined, attributes: { "loraline.version": settled.version } },
    async (span) => {
      const state = await adapters.change(key, (current) => current && changed(current, applyServed(current, settled, now)));
      const version = state?.versions.find((known) => known.version === settled.version);
      if (state === undefined || version === undefined || version.servedAt === null) return;
      span.setAttributes({ "loraline.tenant": state.tenant, "loraline.adapter": state.adapter, "loraline.alias": state.alias ?? 0 });
      log.info({ adapter: key, version: settled.version, alias: state.alias, replicas: settled.replicas }, "version is served");
      if (movedTo(state, version) !== undefined) await publishMove(state, movedTo(state, version) as number, deps);
      await publishServed(state, version, settled.replicas, deps);
    },
  );
}

/** undefined tells `change` to leave the entry as it is. */
const changed = (before: AdapterState, after: AdapterState): AdapterState | undefined =>
  before === after || JSON.stringify(before) === JSON.stringify(after) ? undefined : after;

/** Index in the history of the move that came with the proof. */
const movedTo = ({ history }: AdapterState, { version }: AdapterVersion): number | undefined => {
  const index = history.findIndex(({ to, command }) => to === version && (command ?? null) === null);
  return index === -1 ? undefined : index;
};

/* the alias */

async function moveAlias(
  at: EventAddress,
  command: AliasCommand,
  deps: ServeControllerDeps,
  adapters: KvBucket<AdapterState>,
  replicas: () => Iterable<ReplicaState>,
): Promise<void> {
  const { log, telemetry } = deps;
  await telemetry.span(
    "promote",
    { attributes: { "loraline.tenant": at.tenant, "loraline.adapter": at.id, "loraline.command": command.kind } },
    async () => {
      let rejected: Problem | undefined;
      let nothing: string | undefined;
      const state = await adapters.change(keyOf(at), (current) => {
        const decision = decideAlias(current, command, { name: nameOf(at), replicas: replicas(), now: Date.now() });
        rejected = decision.kind === "reject" ? decision.problem : undefined;
        nothing = decision.kind === "nothing" ? decision.why : undefined;
        return decision.kind === "move" ? decision.state : undefined;
      });
      if (rejected !== undefined) throw new PermanentError(rejected.code, rejected.message, { param: rejected.param });
      const index = state?.history.findIndex((move) => move.command === command.seq) ?? -1;
      if (state === undefined || index === -1) {
        log.info({ adapter: nameOf(at), ...command, why: nothing }, "alias stays");
        return;
      }
      log.info({ adapter: nameOf(at), ...command, alias: state.alias }, "alias moved");
      await publishMove(state, index, deps);
    },
  );
}

/* events, each with an id that follows from the state it tells */

const moveKey = (index: number): string => `move-${index + 1}`;

async function publishMove(state: AdapterState, index: number, { bus }: ServeControllerDeps): Promise<void> {
  const move = state.history[index];
  if (move === undefined) return;
  const { kind, from, to, by, reason } = move;
  const event = kind === "promoted" ? adapterPromoted : adapterRolledBack;
  await bus.publish(event, addressOf(state), { from, to, by, reason }, { key: moveKey(index) });
}

async function publishServed(
  state: AdapterState,
  version: AdapterVersion,
  replicas: number,
  { bus, telemetry }: ServeControllerDeps,
): Promise<void> {
  const { runId, digest, servedAt, lastStepAt, trace } = version;
  await bus.publish(
    runServed,
    { tenant: state.tenant, id: runId },
    {
      adapter: state.adapter,
      version: version.version,
      digest,
      replicas,
      promoted: movedTo(state, version) !== undefined,
      // Two machines' clocks.
      lastStepToProvenMs: Math.max(0, Date.parse(servedAt ?? "") - Date.parse(lastStepAt)),
    },
    { traceparent: telemetry.traceparent() ?? trace },
  );
}

async function publishRefused(
  state: AdapterState,
  version: AdapterVersion,
  problem: Problem,
  { bus, telemetry }: ServeControllerDeps,
): Promise<void> {
  const { runId, digest, trace } = version;
  const { code, message, param } = problem;
  await bus.publish(
    adapterRefused,
    addressOf(state),
    { code, message, param, version: version.version, digest, runId },
    { key: runId, traceparent: telemetry.traceparent() ?? trace },
  );
  await bus.publish(
    runFailed,
    { tenant: state.tenant, id: runId },
    { code, message, param },
    { traceparent: telemetry.traceparent() ?? trace },
  );
}

/** After a crash, or an absence of the bus, between a write and its events. What the stream has is not said again. */
async function publishWhatWasLost(state: AdapterState, deps: ServeControllerDeps): Promise<void> {
  const { bus, log } = deps;
  const lastMove = state.history.length - 1;
  if (lastMove >= 0) {
    const told = await Promise.all([bus.last(adapterPromoted, addressOf(state)), bus.last(adapterRolledBack, addressOf(state))]);
    if (!told.some((event) => event?.id.endsWith(`/${moveKey(lastMove)}`))) {
      log.warn({ adapter: nameOf(addressOf(state)), move: lastMove + 1 }, "publishing a move of the alias that was not told");
      await publishMove(state, lastMove, deps);
    }
  }
  for (const version of state.versions) {
    const at = { tenant: state.tenant, id: version.runId };
    if (version.status === "refused" && (await bus.last(runFailed, at)) === undefined) {
      await publishRefused(state, version, version.reason ?? { code: "REFUSED", message: "refused" }, deps);
    }
    if (version.servedAt !== null && version.status !== "retired" && (await bus.last(runServed, at)) === undefined) {
      await publishServed(state, version, 1, deps);
    }
  }
}
