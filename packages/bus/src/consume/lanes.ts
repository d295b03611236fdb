/**
 * Order of work inside one process: tasks of one lane one after another, those of different lanes side by side. Who waits for a place gets it
 * in turns by owner, so that an owner of many tasks does not hold up one of few. Those that run share one thread: long ones step aside
 * for what others have just begun, which is short as a rule and would otherwise wait for a part of each of them at each of its own steps.
 */
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";

/** The place of a running task among all that may run at once. */
export interface Turn {
  /** Gives the place to others while `work` runs, and then waits until there is one again. Nothing here bounds how many tasks are without. */
  withoutPlace: <T>(work: () => Promise<T>) => Promise<T>;
  /** Gives the place to others for `ms`. Ends early when the signal aborts. */
  pause(ms: number, signal: AbortSignal): Promise<void>;
  /**
   * To be called now and then by work that keeps the thread busy: lets others use it. While other owners have tasks that began lately, it
   * waits until these end, but no longer than its owner could work since it waited before, so that everybody has half of the time.
   */
  breathe(): Promise<void>;
}

/** A task that runs. */
interface Place {
  readonly owner: string;
  readonly of: Owner;
  readonly began: number;
}

/** What an owner has under way. */
interface Owner {
  readonly tasks: Set<Place>;
  /** Since when its tasks could work. */
  since: number;
  /** While it steps aside. */
  aside?: { over: Promise<void>; look(): void } | undefined;
}

/** Others step aside for a task that began within so many milliseconds. */
const youngMs = 250;

interface Task {
  lane: string;
  /** Whose task it is. */
  owner: string;
  /** What it holds in memory. Default 0. */
  bytes?: number;
}

interface Lanes {
  /** Runs the task when those that came to its lane before are over and it has a place. */
  run(of: Task, work: (turn: Turn) => Promise<void>): Promise<void>;
  /** Resolves as soon as a place is free, or fewer tasks wait for one than may. */
  room(): Promise<void>;
  /** Resolves when nothing runs or waits any more. */
  idle(): Promise<void>;
}

interface LanesOptions {
  /** Tasks that run at once; those that pause, or are without a place, do not count. */
  places: number;
  /** Tasks that may wait for a place before there is no more room. Default 0. */
  ahead?: number | undefined;
  /** Bytes of those that wait for a place before there is no more room. Default: any number. */
  aheadBytes?: number | undefined;
  /** Places more that only an owner may take of whom nothing runs: the tasks of another may take long. Default 0. */
  spare?: number | undefined;
  /** A clock in milliseconds, which only goes forward. */
  now?: () => number;
}

export function createLanes({ places, ahead = 0, aheadBytes = Infinity, spare = 0, now = () => performance.now() }: LanesOptions): Lanes {
  const last = new Map<string, Promise<void>>();
  /** Owners of running tasks; an owner without any is not in it. */
  const running = new Map<string, Owner>();
  let taken = 0;
  /** Those who wait for a place, by owner. The first owner is the next in turn. */
  const waiting = new Map<string, (() => void)[]>();
  let waitingCount = 0;
  let waitingBytes = 0;
  /** Tasks come before those who only look for room. */
  let watchers: (() => void)[] = [];

  const mayRun = (owner: string): boolean => taken < places || (taken < places + spare && !running.has(owner));
  const begin = (owner: string): Place => {
    taken += 1;
    const began = now();
    const of = running.get(owner) ?? { tasks: new Set(), since: began };
    running.set(owner, of);
    const place: Place = { owner, of, began };
    of.tasks.add(place);
    return place;
  };
  const hasRoom = (): boolean => taken < places || (waitingCount < ahead && waitingBytes < aheadBytes);
  const wake = (): void => {
    if (!hasRoom()) return;
    const woken = watchers;
    watchers = [];
    for (const go of woken) go();
  };

  const take = async (owner: string, bytes: number): Promise<Place> => {
    if (mayRun(owner)) return begin(owner);
    waitingCount += 1;
    waitingBytes += bytes;
    // The place is handed over, so it is not counted as free in between.
    const place = await new Promise<Place>((resolve) => {
      const go = (): void => resolve(begin(owner));
      const queue = waiting.get(owner);
      if (queue === undefined) waiting.set(owner, [go]);
      else queue.push(go);
    });
    waitingBytes -= bytes;
    wake();
    return place;
  };
  const give = (place: Place): void => {
    taken -= 1;
    place.of.tasks.delete(place);
    if (place.of.tasks.size === 0) running.delete(place.owner);
    for (const [next, queue] of waiting) {
      if (!mayRun(next)) continue;
      const go = queue.shift();
      // Behind all the others.
      waiting.delete(next);
      if (queue.length > 0) waiting.set(next, queue);
      waitingCount -= 1;
      go?.();
      break;
    }
    for (const { aside } of running.values()) aside?.look();
    wake();
  };

  /** Whether another owner has a task that began lately. One that steps aside itself is not waited for, or both would. */
  const hasYoung = (but: Owner): boolean => {
    const since = now() - youngMs;
    for (const of of running.values()) {
      if (of === but || of.aside !== undefined) continue;
      for (const { began } of of.tasks) if (began >= since) return true;
    }
    return false;
  };
  const stepAside = async (of: Owner): Promise<void> => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, Math.min(now() - of.since, youngMs));
    const over = promise.finally(() => {
      clearTimeout(timer);
      of.aside = undefined;
      of.since = now();
    });
    of.aside = { over, look: () => void (hasYoung(of) || resolve()) };
    await over;
  };
  const breathe = async ({ of }: Place): Promise<void> => {
    await nextTurn();
    if (of.aside !== undefined) await of.aside.over;
    else if (now() - of.since >= 1 && hasYoung(of)) await stepAside(of);
  };

  return {
    run({ lane, owner, bytes = 0 }, work) {
      const before = last.get(lane);
      const run = async (): Promise<void> => {
        if (before !== undefined) await before.catch(() => {});
        let place = await take(owner, bytes);
        const withoutPlace: Turn["withoutPlace"] = async (other) => {
          give(place);
          try {
            return await other();
          } finally {
            place = await take(owner, bytes);
          }
        };
        const turn: Turn = {
          withoutPlace,
          pause: (ms, signal) => withoutPlace(() => sleep(ms, undefined, { signal }).catch(() => {})),
          breathe: () => breathe(place),
        };
        try {
          await work(turn);
        } finally {
          give(place);
        }
      };
      const running = run().finally(() => {
        if (last.get(lane) === running) last.delete(lane);
      });
      last.set(lane, running);
      return running;
    },
    async room() {
      while (!hasRoom()) await new Promise<void>((resolve) => watchers.push(resolve));
    },
    async idle() {
      await Promise.allSettled(last.values());
    },
  };
}
