/**
 * Decides what is served: gates trained versions, writes what engines must hold into KV `adapters`, watches them converge, moves the alias.
 *
 *   run.adapter-written ─► incoming: replicas may load and prove it, nobody can ask it
 *   run.trained ─► gate ─► accepted: desired ─► proven on every ready replica: served, alias moves (auto) ─► run.served
 *                   └────► refused ◄── a replica cannot be proven                       or its canary begins └─► run.failed
 *
 * The state is written first, then its events are published: an event that was lost to a crash is published at the next start, with the
 * id it would have had. This file only puts the units together; what each does stands in its own file.
 */
import { type Bus, tellWaiting, watchQuotas } from "@loraline/bus";
import {
  adapterCheckpointWanted,
  adapterCommandRefused,
  adapterDeleteRequested,
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
  parseReplicaKey,
  type QuotaSettings,
  type runCancelRequested,
  runFailed,
  runWaiting,
} from "@loraline/contracts";
import type { Objects, StoreState } from "@loraline/objects";
import { type Log, PermanentError, type Telemetry } from "@loraline/runtime";
import { type AdapterEventDeps, keyOf, nameOf, publishWhatWasLost } from "./aliases/adapter-events.ts";
import { createCanaries } from "./aliases/canary.ts";
import type { AliasCommand } from "./aliases/decide-alias.ts";
import { followAliasCommand } from "./aliases/follow-alias-command.ts";
import { createAssigner } from "./placement/assign-versions.ts";
import { createIncomingVersions } from "./placement/incoming-versions.ts";
import { createPlacer } from "./placement/place-versions.ts";
import { createReplicas, createReplicaSweep } from "./replicas.ts";
import { createConvergence } from "./versions/convergence.ts";
import {
  onAdapterDeleteRequested,
  onDeleteRequested,
  onKeepRequested,
  onVersionWanted,
  trainingRun,
} from "./versions/follow-keep-commands.ts";
import { createKeeper } from "./versions/keep-versions.ts";
import { onAdapterWritten } from "./versions/on-adapter-written.ts";
import { onCancelRequested } from "./versions/on-cancel-requested.ts";
import { onCheckpointWanted } from "./versions/on-checkpoint-wanted.ts";
import { onRunTrained } from "./versions/on-run-trained.ts";
import { createAudited } from "./audited.ts";
import { followServing } from "./serve-metrics.ts";
import { createWatchedTable } from "./watched-table.ts";

export interface ServeServiceDeps {
  bus: Bus;
  objects: Pick<Objects, "get" | "touch"> & Partial<StoreState>;
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
  /** What the operator grants tenants. Default: every quota's own default. */
  quotas?: QuotaSettings;
}

interface ServeService extends AsyncDisposable {
  /** An engine that has come, or is another now. */
  setEngine(record: EngineRecord): Promise<void>;
  removeEngine(engine: string): Promise<void>;
}

export async function createServeService(deps: ServeServiceDeps): Promise<ServeService> {
  // A replica that was silent for ten minutes has another name when it comes back, or writes everything again.
  const { bus, objects, log, telemetry, resyncMs = 2000, replicaAwayMs = 30_000, replicaGoneMs = 10 * 60_000 } = deps;
  const eventDeps: AdapterEventDeps = { bus, log, telemetry };
  const stopping = new AbortController();
  const { signal } = stopping;
  const [adapters, assignments, deletions, engines, replicaReports, holdings, runs, trainingRuns] = await Promise.all([
    bus.bucket(buckets.adapters),
    bus.bucket(buckets.assignments),
    bus.bucket(buckets.deletions),
    bus.bucket(buckets.engines),
    bus.bucket(buckets.replicas),
    bus.bucket(buckets.holdings),
    bus.bucket(buckets.runs),
    bus.bucket({ ...buckets.runs, value: trainingRun }),
  ]);
  for (const record of deps.engines) await engines.put(record.engine, record);
  const quotas = await watchQuotas({ bus, settings: deps.quotas ?? {}, signal });

  /* what there is */

  const [adapterTable, engineTable, replicas] = await Promise.all([
    createWatchedTable(adapters, signal),
    createWatchedTable(engines, signal),
    createReplicas({ bus, signal }),
  ]);

  const metrics = followServing(telemetry.metrics, { states: adapterTable, replicas: replicas.table });

  /* who decides about it */

  const placer = createPlacer({
    adapters,
    states: adapterTable,
    table: replicas.table,
    engineOf: engineTable.get,
    awayMs: replicaAwayMs,
    log,
    signal,
  });
  const incoming = createIncomingVersions((key) => assigner.onAdapter(key));
  const assigner = await createAssigner({ assignments, states: adapterTable, incoming, log });
  const canaries = await createCanaries({ ...eventDeps, adapters, replicas: replicas.of, resyncMs, signal });
  const keeper = createKeeper({ ...eventDeps, adapters, states: adapterTable, replicas: replicas.of, resyncMs, signal });
  const convergence = createConvergence({
    ...eventDeps,
    adapters,
    states: adapterTable,
    replicas,
    engines: engineTable,
    canaries,
    keeper,
  });

  /* who hears of what */

  canaries.onDue(convergence.consider);
  keeper.onDue(convergence.consider);
  adapterTable.follow((key, state, before) => {
    assigner.onAdapter(key);
    if (state !== undefined) {
      placer.onAdapter(state);
      incoming.onAdapter(state);
      const many = incoming.countOn(state.engine);
      if (many > 0 && !placer.hasRoom(state.engine, many)) incoming.dropOn(state.engine);
    }
    convergence.onAdapter(key, state, before);
    canaries.onAdapter(key, state);
    keeper.onAdapter(key, state);
  });
  const assigned = [...adapterTable.values()].map(({ engine }) => engine);
  assigner.complete(new Set([...deps.engines.map(({ engine }) => engine), ...assigned]));
  engineTable.follow((engine) => placer.wake(engine, "limits"));
  replicas.follow({
    onReplica(key) {
      convergence.onReplica(key);
      placer.wake(parseReplicaKey(key).engine, "replicas");
    },
    onHolding(key, adapterKey) {
      convergence.onHolding(key, adapterKey);
      const state = adapterTable.get(adapterKey);
      if (state !== undefined) placer.wake(state.engine, "holdings");
    },
  });
  await publishLostEvents([...adapterTable.values()], eventDeps);

  /* events and commands */

  const trained = await bus.consume({
    consumer: consumers.serveRunTrained,
    handlers: { "run.trained.v1": (received) => onRunTrained(received, { ...eventDeps, objects, adapters, engines, placer, quotas }) },
    isAway: objects.problem && (() => objects.problem?.() !== undefined),
    async onWait({ at }, reason) {
      await tellWaiting(bus, runWaiting, at, { stage: "serve", reason });
      if (reason === null) convergence.onGateWaitOver(at.id);
    },
    // The run's owner learns why it is not served.
    async onDeadLetter({ tenant, id, code, message, param }) {
      await bus.publish(runFailed, { tenant, id }, { code, message, param });
    },
  });
  const notComing = async ({ at }: { at: EventAddress }): Promise<void> => incoming.drop(at.id);
  const written = await bus.consume({
    consumer: consumers.serveRunIncoming,
    handlers: {
      "run.adapter-written.v1": async (received) => {
        // Whatever is wrong with it is told when the run has trained.
        await onAdapterWritten(received, { ...eventDeps, objects, adapters, engines, placer, quotas, incoming }).catch((error: unknown) =>
          log.warn({ err: error, runId: received.at.id }, "an adapter is not loaded ahead of its gate"),
        );
      },
      "run.attempt-ended.v1": notComing,
      "run.failed.v1": notComing,
      "run.cancelled.v1": notComing,
    },
  });
  const audited = createAudited(bus.audit);
  const cancels = await bus.consume({
    consumer: consumers.serveRunCancelRequested,
    handlers: {
      "run.cancel-requested.v1": audited<typeof runCancelRequested>("run.cancel", (received) =>
        onCancelRequested(received, eventDeps, adapters),
      ),
    },
  });
  const onCommand = (at: EventAddress, command: AliasCommand): Promise<void> =>
    followAliasCommand(at, command, eventDeps, adapters, replicas.of);
  const commands = await bus.consume({
    consumer: consumers.serveAdapterCommands,
    handlers: {
      [adapterPromoteRequested.type]: audited<typeof adapterPromoteRequested>("adapter.promote", ({ at, data, seq }) =>
        onCommand(at, { kind: "promote", version: data.version, canary: data.canary, by: data.by ?? null, seq }),
      ),
      [adapterRollbackRequested.type]: audited<typeof adapterRollbackRequested>("adapter.rollback", ({ at, data, seq }) =>
        onCommand(at, { kind: "rollback", version: data.version ?? null, by: data.by ?? null, seq }),
      ),
      [adapterPlaceRequested.type]: audited<typeof adapterPlaceRequested>("adapter.place", async ({ at, seq, data: { placement, by } }) => {
        const state = await adapters.change(keyOf(at), (current) => {
          if (current === undefined || (current.placementSeq ?? 0) > seq) return undefined;
          return { ...current, placement, placementSeq: seq };
        });
        if (state === undefined) throw new PermanentError("ADAPTER_UNKNOWN", `there is no adapter "${nameOf(at)}".`);
        log.info({ adapter: nameOf(at), placement, by }, "placement set");
      }),
      [adapterKeepRequested.type]: audited<typeof adapterKeepRequested>("adapter.keep", (received) =>
        onKeepRequested(received, eventDeps, adapters),
      ),
      [adapterVersionDeleteRequested.type]: audited<typeof adapterVersionDeleteRequested>("adapter.delete-version", (received) =>
        onDeleteRequested(received, eventDeps, adapters, deletions),
      ),
      [adapterDeleteRequested.type]: audited<typeof adapterDeleteRequested>("adapter.delete", (received) =>
        onAdapterDeleteRequested(received, eventDeps, adapters, trainingRuns, deletions),
      ),
    },
    // Who gives a command over NATS waits for an event, and would wait for ever.
    async onDeadLetter({ tenant, id, type, seq, code, message, param }) {
      await bus.publish(adapterCommandRefused, { tenant, id }, { command: type, code, message, param }, { key: `refused-${seq}` });
    },
  });
  const wishes = await bus.consume({
    consumer: consumers.serveVersionWanted,
    handlers: {
      [adapterCheckpointWanted.type]: (received) =>
        onCheckpointWanted(received, {
          ...eventDeps,
          objects,
          adapters,
          engines,
          placer,
          quotas,
          runs,
          wantedForMs: deps.wantedForMs,
        }),
      [adapterVersionWanted.type]: (received) => onVersionWanted(received, { ...eventDeps, wantedForMs: deps.wantedForMs }, adapters),
    },
  });

  /* time */

  const sweep = createReplicaSweep({ table: replicas.table, replicas: replicaReports, holdings, goneMs: replicaGoneMs, log, signal });
  const resync = setInterval(() => {
    convergence.considerOpen();
    sweep();
  }, resyncMs);

  return {
    async setEngine(record) {
      await engines.put(record.engine, record);
      // Its agents wait to be told that what they are told is all.
      assigner.complete([record.engine]);
    },
    async removeEngine(engine) {
      await engines.delete(engine);
    },
    async [Symbol.asyncDispose]() {
      clearInterval(resync);
      metrics[Symbol.dispose]();
      await Promise.all([trained, written, cancels, commands, wishes].map((consuming) => consuming[Symbol.asyncDispose]()));
      stopping.abort();
      await Promise.all([convergence[Symbol.asyncDispose](), assigner[Symbol.asyncDispose]()]);
    },
  };
}

/** Publishes what an earlier controller wrote without its events, of sixteen adapters at a time. */
async function publishLostEvents(states: AdapterState[], deps: AdapterEventDeps): Promise<void> {
  const publishNext = async (): Promise<void> => {
    for (let state = states.pop(); state !== undefined; state = states.pop()) await publishWhatWasLost(state, deps);
  };
  await Promise.all(Array.from({ length: 16 }, publishNext));
}
