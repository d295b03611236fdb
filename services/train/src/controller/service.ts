/**
 * The controller: brings what runs in line with what is wanted. A round decides which runs are due (decide-round.ts); then
 * gather → decide → act, one run at a time.
 */
import { type Bus, type KvBucket, watchQuotas } from "@loraline/bus";
import {
  buckets,
  type EventAddress,
  parseRunKey,
  type QuotaSettings,
  runCancelled,
  runCheckpointed,
  runFailed,
  runAttemptEnded,
  runPreempted,
  runQueued,
  runRejected,
  runRequested,
  runKey,
  type RunState,
  runTrained,
  terminalPhases,
} from "@loraline/contracts";
import { createKeyedQueue, type Log, PermanentError, problemOf, type Telemetry, traceparentOf } from "@loraline/runtime";
import type { Standing } from "./decide-line.ts";
import { decideRound, isWaiting } from "./decide-round.ts";
import { type Action, decideRun, type History, needsHistory, type Observed } from "./decide-run.ts";
import { attemptNameOf } from "../attempt/attempt-spec.ts";
import type { Launcher } from "../launchers/launcher.ts";
import { createRounds } from "./rounds.ts";
import { createTrainMetrics } from "./train-metrics.ts";
import { createUseReport } from "./use-report.ts";

export interface TrainServiceDeps {
  bus: Bus;
  log: Log;
  telemetry: Telemetry;
  /** Stays the caller's, who disposes it after this service. */
  launcher: Launcher;
  /** How often every run is looked at although nothing seems to have changed. Default 5 s. */
  resyncMs?: number;
  /** What the operator grants tenants. Default: every quota's own default. */
  quotas?: QuotaSettings;
}

const nothing: History = { over: false, lost: [], checkpoint: null };

export async function createTrainService(deps: TrainServiceDeps): Promise<AsyncDisposable> {
  const { bus, launcher, log, telemetry, resyncMs = 5000 } = deps;
  const bucket = await bus.bucket(buckets.runs);
  const known: Known = {
    runs: new Map(),
    histories: new Map(),
    strangers: new Set(),
    resting: new Map(),
    launching: new Set(),
    refusals: new Map(),
    standings: new Map(),
  };
  const { runs, histories, resting, launching, refusals } = known;
  const stopping = new AbortController();
  const use = await createUseReport({ bus, log });
  const metrics = createTrainMetrics(telemetry.metrics, {
    runs,
    sizeOf: (spec) => launcher.sizeOf(spec),
    keyOf: ({ tenant, runId }) => runKey({ tenant, id: runId }),
  });

  const queue = createKeyedQueue({
    concurrency: 8,
    log,
    measured: { metrics: telemetry.metrics, name: "runs" },
    async work(key) {
      const rest = (afterMs: number): void => void resting.set(key, performance.now() + afterMs);
      try {
        const observed = await gather(key, { bucket, bus, launcher, known, log });
        if (observed === undefined) return;
        const actions = decideRun(observed, Date.now());
        // From here on its place is taken, though nothing is observed of the attempt yet.
        if (actions.some(({ kind }) => kind === "launch")) launching.add(key);
        for (const action of actions) {
          if (!(await act(action, observed.run, { bus, launcher, log, telemetry, wake: rounds.within, rest }))) return;
        }
        if (actions.some(({ kind }) => kind !== "wake")) rest(foldedMs);
      } catch (error) {
        rest(restMs);
        throw error;
      } finally {
        launching.delete(key);
      }
    },
  });

  const rounds = createRounds(async () => {
    const slots = await launcher.slots();
    // Before the attempts are observed: one that is started meanwhile is in one of the two.
    const inFlight = new Set(launching);
    const attempts = await launcher.observe();
    metrics.seen(attempts, slots);
    const quotasOf = (tenant: string) => quotas.of(tenant);
    const { sizeOf } = launcher;
    const round = decideRound({ runs, attempts, slots, sizeOf, quotasOf, launching: inFlight, refusals, histories }, Date.now());
    known.standings = round.standings;
    use.tell(round.use);
    const now = performance.now();
    for (const key of round.due) if ((resting.get(key) ?? 0) <= now) queue.add(key);
    if (round.wakeAfterMs !== undefined) rounds.within(round.wakeAfterMs);
  }, log);

  const quotas = await watchQuotas({
    bus,
    settings: deps.quotas ?? {},
    signal: stopping.signal,
    onChange: () => rounds.within(0),
  });

  const ready = Promise.withResolvers<void>();
  let isReady = false;
  /** Runs that wait, by tenant. */
  const waiting = new Map<string, number>();
  const count = (run: RunState | undefined, by: 1 | -1): void => {
    if (run !== undefined && isWaiting(run)) waiting.set(run.tenant, (waiting.get(run.tenant) ?? 0) + by);
  };
  await bucket.watch({
    signal: stopping.signal,
    onChange(key, run) {
      const before = runs.get(key);
      const isOver = run === undefined || terminalPhases.has(run.phase);
      count(before, -1);
      if (isOver) for (const one of [runs, histories, resting, refusals]) one.delete(key);
      else {
        runs.set(key, run);
        count(run, 1);
        // Only runs that come: a quota that is lowered takes no place from those that wait.
        const isNew = isReady && before === undefined && isWaiting(run) && run.attempt === 0;
        const refusal = isNew ? tooManyWaiting(waiting.get(run.tenant) ?? 0, quotas.of(run.tenant).runsWaiting) : undefined;
        if (refusal !== undefined) refusals.set(key, refusal);
      }
      if (before !== undefined && before.seq === run?.seq) return; // only progress
      resting.delete(key);
      if (isOver && before !== undefined) queue.add(key); // its attempts are stopped and removed
      if (!isOver || before !== undefined) rounds.within(0);
    },
    onReady: ready.resolve,
  });
  await ready.promise;
  isReady = true;
  // When an attempt ends, a slot is free for the other runs in line.
  const watching = launcher.watch(({ tenant, runId }) => {
    resting.delete(runKey({ tenant, id: runId }));
    rounds.within(0);
  });
  const resync = setInterval(() => rounds.within(0), resyncMs);
  rounds.start();

  return {
    async [Symbol.asyncDispose]() {
      clearInterval(resync);
      watching[Symbol.dispose]();
      stopping.abort();
      await rounds[Symbol.asyncDispose]();
      await queue[Symbol.asyncDispose]();
      await use[Symbol.asyncDispose]();
      metrics[Symbol.dispose]();
    },
  };
}

/** After work on a run failed, or its attempt could not be started, rounds leave it alone for so long unless the run changes. */
const restMs = 5000;
/** What was done about a run shows in its state a moment later. Until then a round would do it again. */
const foldedMs = 1000;

/** What the controller remembers. */
interface Known {
  /** Runs that are not over, as the watch last saw them. A decision about a run reads that run afresh. */
  runs: Map<string, RunState>;
  /** What was read of their streams. */
  histories: Map<string, History>;
  /** Runs that were looked up and do not exist. */
  strangers: Set<string>;
  /** Until when (`performance.now`) rounds leave a run alone. */
  resting: Map<string, number>;
  /** Runs that an attempt is just being started for. */
  launching: Set<string>;
  /** Why tenants may not have these runs. */
  refusals: Map<string, { code: string; message: string }>;
  /** As the last round made them. */
  standings: ReadonlyMap<string, Standing>;
}

async function gather(
  key: string,
  deps: { bucket: KvBucket<RunState>; bus: Bus; launcher: Launcher; known: Known; log: Log },
): Promise<Observed | undefined> {
  const { known } = deps;
  const run = (await deps.bucket.get(key))?.value;
  // Nothing is known of the run: the projector may still have to fold it, or the attempt belongs to another installation. It is left
  // alone; Kubernetes removes an ended Job by itself.
  if (run === undefined) {
    if (!known.strangers.has(key) && (await deps.bus.first(runRequested, parseRunKey(key))) === undefined) {
      known.strangers.add(key);
      deps.log.warn({ run: key }, "there are attempts of a run that is not in this installation; they are left alone");
    }
    return undefined;
  }
  const attempts = await deps.launcher.attemptsOf(run);
  let history = nothing;
  if (needsHistory(run, attempts)) {
    history = await historyOf(deps.bus, parseRunKey(key));
    if (known.runs.has(key)) known.histories.set(key, history);
  }
  return { run, attempts, history, standing: known.standings.get(key), refusal: known.refusals.get(key) };
}

const tooManyWaiting = (count: number, most: number | null): { code: string; message: string } | undefined =>
  most === null || count <= most
    ? undefined
    : {
        code: "QUOTA_RUNS_WAITING",
        message: `${count - 1} runs of this tenant wait already, and its quota runsWaiting is ${most}. Request the run again when some have ended.`,
      };

/** Read from the stream before an attempt is started again or a run fails, because the folded state may lag behind. */
async function historyOf(bus: Bus, at: EventAddress): Promise<History> {
  const history = await bus.history([runAttemptEnded, runPreempted, runCheckpointed, runTrained, runFailed, runCancelled, runRejected], at);
  /** By attempt, because an attempt counts once although its end may be stored twice, once under the name of an older release. */
  const lost = new Map<number, History["lost"][number]>();
  let over = false;
  let checkpoint: History["checkpoint"] = null;
  for (const { type, data } of history) {
    if (type === runAttemptEnded.type || type === runPreempted.type) {
      if (!lost.has(data.attempt)) lost.set(data.attempt, data);
    } else if (type === runCheckpointed.type) {
      const { step, checkpoint: ref } = data;
      if (step >= (checkpoint?.step ?? 0)) checkpoint = { step, checkpoint: ref };
    } else {
      over = true;
    }
  }
  return { over, lost: [...lost.values()], checkpoint };
}

interface ActDeps {
  bus: Bus;
  launcher: Launcher;
  log: Log;
  telemetry: Telemetry;
  /** Asks for a round after this long. */
  wake(afterMs: number): void;
  /** Keeps rounds from this run for so long, unless it changes. */
  rest(afterMs: number): void;
}

/** Carries out one action. false: the actions that were decided with it must not follow. */
async function act(action: Action, run: RunState, deps: ActDeps): Promise<boolean> {
  const { bus, launcher } = deps;
  const at = { tenant: run.tenant, id: run.runId };
  const about = { traceparent: run.trace };
  switch (action.kind) {
    case "launch":
      return launch(action, run, deps);
    case "stop":
      await launcher.stop(action.name);
      return true;
    case "remove":
      await launcher.remove(action.name);
      return true;
    case "queued": {
      const { attempt, reason, message } = action;
      // The key holds the state it was decided from, because the same reason may come again after another one.
      const key = `attempt-${attempt}/${reason}/${message}/${run.seq}`;
      await bus.publish(runQueued, at, { attempt, reason, message }, { key, ...about });
      return true;
    }
    case "attempt-ended": {
      const { attempt, step, code, message } = action;
      await bus.publish(runAttemptEnded, at, { attempt, step, code, message }, { key: `attempt-${attempt}`, ...about });
      return true;
    }
    case "failed": {
      const { attempt, code, message } = action;
      await bus.publish(runFailed, at, { attempt, code, message }, about);
      return true;
    }
    case "cancelled":
      await bus.publish(runCancelled, at, {}, about);
      return true;
    case "wake":
      deps.wake(action.afterMs);
      return true;
  }
}

async function launch(action: Extract<Action, { kind: "launch" }>, run: RunState, deps: ActDeps): Promise<boolean> {
  const { bus, launcher, log, telemetry, wake, rest } = deps;
  const { attempt, resume } = action;
  if (run.tokens === null) return false;
  const tokens = run.tokens.manifest;
  const name = attemptNameOf(run.runId, attempt);
  try {
    const launched = await telemetry.span(
      "launch",
      { parent: run.trace, attributes: { "loraline.run": run.runId, "loraline.attempt": attempt, "loraline.job": name } },
      (span) =>
        launcher.launch({
          version: 1,
          tenant: run.tenant,
          runId: run.runId,
          attempt,
          name,
          runSpec: run.spec,
          tokens,
          init: run.tokens?.init ?? null,
          twins: run.tokens?.twins ?? [],
          resume,
          traceparent: traceparentOf(span),
        }),
    );
    if (!launched) wake(1000);
    return launched;
  } catch (error) {
    const { code, message, param } = problemOf(error);
    const at = { tenant: run.tenant, id: run.runId };
    // A field of the run that this installation can never follow fails the run. Its operator may mend anything else.
    if (error instanceof PermanentError && param !== null && Object.hasOwn(run.spec, param)) {
      await bus.publish(runFailed, at, { attempt, code, message, param }, { traceparent: run.trace });
      return false;
    }
    log.error({ err: error, runId: run.runId, name }, "attempt could not be started; it will be tried again");
    const published = run.queue?.reason === code && run.queue.message === message;
    if (!published) {
      const key = `attempt-${attempt}/${code}/${run.seq}`;
      await bus.publish(runQueued, at, { attempt, reason: code, message }, { key, traceparent: run.trace });
    }
    rest(restMs);
    wake(restMs);
    return false;
  }
}
