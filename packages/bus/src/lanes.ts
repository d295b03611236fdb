/** Order of work inside one process: tasks of one lane one after another, those of different lanes side by side. */
import { setTimeout as sleep } from "node:timers/promises";

/** The place of a running task among all that may run at once. */
export interface Turn {
  /** Gives the place to others for `ms`, and waits until there is one again. Ends early when the signal aborts. */
  pause(ms: number, signal: AbortSignal): Promise<void>;
}

interface Lanes {
  /** Runs the task when those that came to its lane before are over and one of the places is free. */
  run(lane: string, task: (turn: Turn) => Promise<void>): Promise<void>;
  /** Resolves as soon as a place is free. */
  room(): Promise<void>;
  /** Resolves when nothing runs or waits any more. */
  idle(): Promise<void>;
}

/** @param places - tasks that run at once; those that pause do not count. */
export function createLanes(places: number): Lanes {
  const last = new Map<string, Promise<void>>();
  let free = places;
  /** Tasks come before those who only look for room. */
  const tasks: (() => void)[] = [];
  let watchers: (() => void)[] = [];

  const take = async (): Promise<void> => {
    if (free > 0) free -= 1;
    // The place is handed over, so it is not counted as free in between.
    else await new Promise<void>((resolve) => tasks.push(resolve));
  };
  const give = (): void => {
    const next = tasks.shift();
    if (next !== undefined) {
      next();
      return;
    }
    free += 1;
    const woken = watchers;
    watchers = [];
    for (const wake of woken) wake();
  };
  const turn: Turn = {
    async pause(ms, signal) {
      give();
      await sleep(ms, undefined, { signal }).catch(() => {});
      await take();
    },
  };
  return {
    run(lane, task) {
      const before = last.get(lane);
      const run = async (): Promise<void> => {
        if (before !== undefined) await before.catch(() => {});
        await take();
        try {
          await task(turn);
        } finally {
          give();
        }
      };
      const running = run().finally(() => {
        if (last.get(lane) === running) last.delete(lane);
      });
      last.set(lane, running);
      return running;
    },
    async room() {
      while (free <= 0) await new Promise<void>((resolve) => watchers.push(resolve));
    },
    async idle() {
      await Promise.allSettled(last.values());
    },
  };
}
