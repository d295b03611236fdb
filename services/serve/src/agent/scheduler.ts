/**
 * When the agent works on which adapter: names that may need something are asked about by rank, a few are worked on at once, and one
 * that has to wait is asked about again later. What is to be done about a name is decided elsewhere.
 */
import type { AgentAction } from "./adapters/decide-adapters.ts";
import type { VersionRank } from "../version-rank.ts";
import type { Clock } from "./clock.ts";

interface SchedulerLimits {
  /** Adapters worked on at once; the engine itself takes one step at a time. */
  concurrency: number;
  /** How many of these may have failed before: the others are not kept waiting by them. */
  retriesAtOnce: number;
  /** Work that takes longer than this, in ms, does not keep others waiting any more… */
  slowMs: number;
  /** …but no more than this is under way in all. */
  mostAtOnce: number;
}
export const schedulerLimits: SchedulerLimits = { concurrency: 4, retriesAtOnce: 2, slowMs: 5000, mostAtOnce: 16 };

/** What is done about an adapter: an action that is not only waiting. */
export type AgentStep = Exclude<AgentAction, { kind: "wake" }>;

interface SchedulerDeps {
  clock: Clock;
  rankOf(loraName: string): VersionRank;
  /** What is to be done about a name now; undefined: nothing until the name is considered again. */
  decide(loraName: string, now: number): AgentAction | undefined;
  /** Whether the last step about this name failed. */
  isRetry(loraName: string): boolean;
  /** Takes the step. Never rejects. */
  work(loraName: string, step: AgentStep, retry: boolean): Promise<void>;
  /** The step is over, and the name is not in work any more. It is considered again right afterwards. */
  onDone(loraName: string): void;
  /** While this is true no work is begun; whoever makes it false considers names again. */
  isPaused(): boolean;
  limits?: SchedulerLimits;
}

interface Scheduler extends AsyncDisposable {
  /** Something about these names may have changed. Names that are considered in one turn of the event loop are decided together. */
  consider(loraNames: Iterable<string>): void;
  /** LoRA names that are worked on, with the time since when, ms since the epoch. */
  readonly inWork: ReadonlyMap<string, { readonly since: number }>;
}

/** Disposing begins no more work, and waits for what is under way. */
export function createScheduler(deps: SchedulerDeps): Scheduler {
  const { clock, limits = schedulerLimits } = deps;
  /** Names to decide about, by rank. */
  const due = [new Set<string>(), new Set<string>(), new Set<string>(), new Set<string>()] as const;
  const inWork = new Map<string, { since: number; retry: boolean; done: Promise<void> }>();
  const alarms = createAlarms(clock, consider);
  let isPlanned = false;
  let isClosed = false;

  function consider(names: Iterable<string>): void {
    for (const name of names) due[deps.rankOf(name)].add(name);
    if (isPlanned || isClosed) return;
    isPlanned = true;
    queueMicrotask(() => {
      isPlanned = false;
      startWhatIsDue();
    });
  }

  function startWhatIsDue(): void {
    if (isClosed || deps.isPaused()) return;
    const now = clock.now();
    let free = limits.concurrency;
    let retries = 0;
    for (const { since, retry } of inWork.values()) {
      if (now - since < limits.slowMs) free -= 1;
      if (retry) retries += 1;
    }
    for (const names of due) {
      for (const name of names) {
        const action = deps.decide(name, now);
        if (action === undefined || action.kind === "wake") {
          names.delete(name);
          if (action !== undefined) alarms.set(name, action.at);
          continue;
        }
        const retry = deps.isRetry(name);
        if (free <= 0 || inWork.size >= limits.mostAtOnce) {
          // There may be room again once what is under way counts as slow.
          alarms.set("", now + limits.slowMs);
          return;
        }
        if (retry && retries >= limits.retriesAtOnce) continue;
        names.delete(name);
        free -= 1;
        retries += retry ? 1 : 0;
        start(name, action, retry);
      }
    }
  }

  function start(name: string, step: AgentStep, retry: boolean): void {
    const done = deps.work(name, step, retry).finally(() => {
      inWork.delete(name);
      deps.onDone(name);
      consider([name]);
    });
    inWork.set(name, { since: clock.now(), retry, done });
  }

  return {
    consider,
    inWork,
    async [Symbol.asyncDispose]() {
      isClosed = true;
      alarms.clear();
      await Promise.all([...inWork.values()].map(({ done }) => done));
    },
  };
}

/** Any number of alarms on one timer. `ring` is given the names whose time has come; the name "" rings without a name. */
function createAlarms(clock: Clock, ring: (names: string[]) => void): { set(name: string, at: number): void; clear(): void } {
  const alarms = new Map<string, number>();
  let cancel = (): void => {};
  let nextAt = Number.POSITIVE_INFINITY;
  const set = (name: string, at: number): void => {
    alarms.set(name, Math.min(at, alarms.get(name) ?? Number.POSITIVE_INFINITY));
    if (at >= nextAt) return;
    cancel();
    nextAt = at;
    cancel = clock.after(Math.max(1, at - clock.now()), onTimer);
  };
  const onTimer = (): void => {
    nextAt = Number.POSITIVE_INFINITY;
    const now = clock.now();
    const names: string[] = [];
    let next = Number.POSITIVE_INFINITY;
    for (const [name, at] of alarms) {
      if (at <= now) {
        alarms.delete(name);
        if (name !== "") names.push(name);
      } else next = Math.min(next, at);
    }
    if (next < Number.POSITIVE_INFINITY) set("", next);
    ring(names);
  };
  return {
    set,
    clear() {
      cancel();
      alarms.clear();
      nextAt = Number.POSITIVE_INFINITY;
    },
  };
}
