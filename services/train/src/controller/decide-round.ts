/**
 * A round: of all runs that are not over, which ones have something to do, and where each waiting run stands in line. Pure. Works on what
 * the controller knows from its watches, so that a round over many runs that only wait reads nothing and costs a few microseconds for each.
 * What is done about a run is then decided from that run's own state, read afresh (decide-run.ts).
 */
import { runKey, type RunState } from "@loraline/contracts";
import type { Attempt } from "../launchers/launcher.ts";
import { decideRun, type History, type Line, mayStillTrain, newestOf, readyAt } from "./decide-run.ts";

export interface RoundInput {
  /** Every run that is not over, by its key. */
  runs: ReadonlyMap<string, RunState>;
  /** Of all runs. */
  attempts: readonly Attempt[];
  slots: { total: number; free: number };
  /** What was read of runs' streams so far. It may be older than the stream; what it says stays true. */
  histories: ReadonlyMap<string, History>;
}

interface Round {
  /** Keys of the runs to read afresh and decide about, in the order in which they may take slots. */
  due: string[];
  /** Milliseconds until a run is due although nothing changes; undefined: none will be. */
  wakeAfterMs: number | undefined;
  line: WaitingLine;
  attemptsOf: AttemptsByRun;
}

type AttemptsByRun = ReadonlyMap<string, readonly Attempt[]>;

/** The runs that could start now if there were slots, in the order in which they get them. */
export class WaitingLine {
  readonly #places = new Map<string, number>();

  constructor(inOrder: Iterable<RunState>) {
    for (const run of inOrder) this.#places.set(keyOf(run), this.#places.size);
  }

  /** Keys of its runs, the first one first. */
  keys(): Iterable<string> {
    return this.#places.keys();
  }

  has(key: string): boolean {
    return this.#places.has(key);
  }

  /** Runs before this one. A run that was not ready when the line was made stands behind all. */
  aheadOf(key: string): number {
    return this.#places.get(key) ?? this.#places.size;
  }
}

/** First come, first served. */
const inOrder = (ready: Iterable<RunState>): RunState[] =>
  [...ready].sort((a, b) => compare(a.requestedAt, b.requestedAt) || compare(a.runId, b.runId));

const keyOf = ({ tenant, runId }: { tenant: string; runId: string }): string => runKey({ tenant, id: runId });
const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
const noAttempts: readonly Attempt[] = [];
const noHistory: History = { over: false, lost: [], checkpoint: null };

export function decideRound({ runs, attempts, slots, histories }: RoundInput, now: number): Round {
  const attemptsOf: AttemptsByRun = Map.groupBy(attempts, keyOf);
  const line = new WaitingLine(inOrder(runs.values().filter((run) => isReady(run, attemptsOf.get(keyOf(run)) ?? noAttempts, now))));
  const due = new Set<string>();
  let wakeAfterMs: number | undefined;
  const judge = (key: string): void => {
    const run = runs.get(key);
    if (run === undefined) return;
    const place: Line = { ...slots, ahead: line.aheadOf(key) };
    const history = histories.get(key) ?? noHistory;
    for (const action of decideRun({ run, attempts: attemptsOf.get(key) ?? noAttempts, history, line: place }, now)) {
      if (action.kind === "wake") wakeAfterMs = Math.min(wakeAfterMs ?? action.afterMs, action.afterMs);
      else due.add(key);
    }
  };
  // Runs in line first, because a slot belongs to the first of them.
  for (const key of line.keys()) judge(key);
  for (const key of runs.keys()) if (!line.has(key)) judge(key);
  // Attempts of runs that are over, or not known.
  for (const key of attemptsOf.keys()) if (!runs.has(key)) due.add(key);
  return { due: [...due], wakeAfterMs, line, attemptsOf };
}

/** Whether the run could start now. A run that waits out a delay after a failure does not hold up those behind it. */
function isReady(run: RunState, its: readonly Attempt[], now: number): boolean {
  if (!mayStillTrain(run) || run.tokens === null || run.cancelRequested) return false;
  return its.length === 0 || (its.every(({ phase }) => phase === "failed") && readyAt(newestOf(its), now) <= now);
}
