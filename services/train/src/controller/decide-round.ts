/**
 * A round: of all runs that are not over, which ones have something to do, and where each waiting run stands in line. Pure. Works on what
 * the controller knows from its watches, so that a round over many runs that only wait reads nothing and costs a few microseconds for each.
 * What is done about a run is then decided from that run's own state, read afresh (decide-run.ts).
 */
import { parseRunKey, runKey, type RunState } from "@loraline/contracts";
import type { Attempt, Launcher, Slots } from "../launchers/launcher.ts";
import { decideLine, type Held, type LineQuotas, type ReadyRun, type Standing } from "./decide-line.ts";
import { decideRun, type History, mayStillTrain, newestOf, readyAt } from "./decide-run.ts";

export interface RoundInput {
  /** Every run that is not over, by its key. */
  runs: ReadonlyMap<string, RunState>;
  /** Of all runs. */
  attempts: readonly Attempt[];
  slots: Slots;
  sizeOf: Launcher["sizeOf"];
  quotasOf: (tenant: string) => LineQuotas;
  /** Keys of runs that an attempt is just being started for. */
  launching: ReadonlySet<string>;
  /** Runs that their tenants may not have, by key. */
  refusals: ReadonlyMap<string, { code: string; message: string }>;
  /** What was read of runs' streams so far. It may be older than the stream; what it says stays true. */
  histories: ReadonlyMap<string, History>;
}

interface Round {
  /** Keys of the runs to read afresh and decide about, in the order in which they may take slots. */
  due: string[];
  /** Milliseconds until a run is due although nothing changes; undefined: none will be. */
  wakeAfterMs: number | undefined;
  /** Of the runs that could start now, in the order of the line. */
  standings: ReadonlyMap<string, Standing>;
  /** By tenant, of runs that are not over: what has a place, and how many have none. */
  use: ReadonlyMap<string, TenantUse>;
}

interface TenantUse {
  running: number;
  gpus: number;
  waiting: number;
}

type AttemptsByRun = ReadonlyMap<string, readonly Attempt[]>;

const keyOf = ({ tenant, runId }: { tenant: string; runId: string }): string => runKey({ tenant, id: runId });
const noAttempts: readonly Attempt[] = [];
const noHistory: History = { over: false, lost: [], checkpoint: null };

export function decideRound(input: RoundInput, now: number): Round {
  const { runs, attempts, slots, histories, refusals, launching, sizeOf, quotasOf } = input;
  const attemptsOf: AttemptsByRun = Map.groupBy(attempts, keyOf);
  const { held, taken } = holdings(input, attemptsOf);
  const ready: ReadyRun[] = [];
  for (const [key, run] of runs) {
    if (launching.has(key) || refusals.has(key) || !isReady(run, attemptsOf.get(key) ?? noAttempts, now)) continue;
    const { tenant, runId, requestedAt, spec } = run;
    ready.push({ key, tenant, runId, requestedAt, priority: spec.priority ?? 0, ...sizeOf(spec) });
  }
  const room = { ...slots, free: Math.min(slots.free, slots.total - taken) };
  const standings = decideLine(ready, held, room, quotasOf);
  const due = new Set<string>();
  let wakeAfterMs: number | undefined;
  const judge = (key: string): void => {
    const run = runs.get(key);
    if (run === undefined) return;
    const standing = standings.get(key);
    const history = histories.get(key) ?? noHistory;
    const its = attemptsOf.get(key) ?? noAttempts;
    for (const action of decideRun({ run, attempts: its, history, standing, refusal: refusals.get(key) }, now)) {
      if (action.kind === "wake") wakeAfterMs = Math.min(wakeAfterMs ?? action.afterMs, action.afterMs);
      else due.add(key);
    }
  };
  // Runs in line first, because a slot belongs to the first of them.
  for (const key of standings.keys()) judge(key);
  for (const key of runs.keys()) if (!standings.has(key) && !launching.has(key)) judge(key);
  // Attempts of runs that are over, or not known.
  for (const key of attemptsOf.keys()) if (!runs.has(key)) due.add(key);
  return { due: [...due], wakeAfterMs, standings, use: useOf(runs, held) };
}

/** What attempts hold, by tenant, and how many slots all of them take. An attempt of an unknown run counts as one. */
function holdings(
  { runs, attempts, launching, sizeOf }: RoundInput,
  attemptsOf: AttemptsByRun,
): { held: Map<string, Held>; taken: number } {
  const held = new Map<string, Held>();
  let taken = 0;
  const hold = (key: string, tenant: string, isPending: boolean): void => {
    const run = runs.get(key);
    const { slots, gpus } = run === undefined ? { slots: 1, gpus: 1 } : sizeOf(run.spec);
    taken += slots;
    const of = held.get(tenant);
    if (of === undefined) held.set(tenant, { runs: 1, gpus, pending: isPending ? 1 : 0 });
    else {
      of.runs += 1;
      of.gpus += gpus;
      if (isPending) of.pending += 1;
    }
  };
  for (const attempt of attempts) {
    if (hasPlace(attempt)) hold(keyOf(attempt), attempt.tenant, attempt.phase === "pending");
  }
  for (const key of launching) {
    const isObserved = attemptsOf.get(key)?.some(hasPlace) ?? false;
    if (!isObserved) hold(key, parseRunKey(key).tenant, true);
  }
  return { held, taken };
}

/** One that could not be observed may still run. */
const hasPlace = ({ phase }: Attempt): boolean => phase === "running" || phase === "pending" || phase === "unknown";

function useOf(runs: ReadonlyMap<string, RunState>, held: ReadonlyMap<string, Held>): Map<string, TenantUse> {
  const use = new Map<string, TenantUse>();
  for (const [tenant, { runs: running, gpus }] of held) use.set(tenant, { running, gpus, waiting: 0 });
  for (const run of runs.values()) {
    if (!isWaiting(run)) continue;
    const of = use.get(run.tenant);
    if (of === undefined) use.set(run.tenant, { running: 0, gpus: 0, waiting: 1 });
    else of.waiting += 1;
  }
  return use;
}

/** Whether it counts for the quota of runs that wait: from the request until its first attempt runs, and between attempts. */
export const isWaiting = (run: RunState): boolean => mayStillTrain(run) && run.phase !== "running";

/** Whether the run could start now. A run that waits out a delay after a failure does not hold up those behind it. */
function isReady(run: RunState, its: readonly Attempt[], now: number): boolean {
  if (!mayStillTrain(run) || run.tokens === null || run.cancelRequested || run.paused === true) return false;
  return its.length === 0 || (its.every(({ phase }) => phase === "failed") && readyAt(newestOf(its), now) <= now);
}
