/**
 * Order of work inside one process: tasks of one lane one after another, those of different lanes side by side. Who waits for a place gets it
 * in turns by owner, so that an owner of many tasks does not hold up one of few.
 */
import { setTimeout as sleep } from "node:timers/promises";

/** The place of a running task among all that may run at once. */
export interface Turn {
  /** Gives the place to others for `ms`, and waits until there is one again. Ends early when the signal aborts. */
  pause(ms: number, signal: AbortSignal): Promise<void>;
}

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
  /** Tasks that run at once; those that pause do not count. */
  places: number;
  /** Tasks that may wait for a place before there is no more room. Default 0. */
  ahead?: number | undefined;
  /** Bytes of those that wait for a place before there is no more room. Default: any number. */
  aheadBytes?: number | undefined;
  /** Places more that only an owner may take of whom nothing runs: the tasks of another may take long. Default 0. */
  spare?: number | undefined;
}

export function createLanes({ places, ahead = 0, aheadBytes = Infinity, spare = 0 }: LanesOptions): Lanes {
  const last = new Map<string, Promise<void>>();
  /** Running tasks by owner; an owner without any is not in it. */
  const running = new Map<string, number>();
  let taken = 0;
  /** Those who wait for a place, by owner. The first owner is the next in turn. */
  const waiting = new Map<string, (() => void)[]>();
  let waitingCount = 0;
  let waitingBytes = 0;
  /** Tasks come before those who only look for room. */
  let watchers: (() => void)[] = [];

  const mayRun = (owner: string): boolean => taken < places || (taken < places + spare && !running.has(owner));
  const begin = (owner: string): void => {
    taken += 1;
    running.set(owner, (running.get(owner) ?? 0) + 1);
  };
  const hasRoom = (): boolean => taken < places || (waitingCount < ahead && waitingBytes < aheadBytes);
  const wake = (): void => {
    if (!hasRoom()) return;
    const woken = watchers;
    watchers = [];
    for (const go of woken) go();
  };

  const take = async (owner: string, bytes: number): Promise<void> => {
    if (mayRun(owner)) {
      begin(owner);
      return;
    }
    waitingCount += 1;
    waitingBytes += bytes;
    // The place is handed over, so it is not counted as free in between.
    await new Promise<void>((resolve) => {
      const queue = waiting.get(owner);
      if (queue === undefined) waiting.set(owner, [resolve]);
      else queue.push(resolve);
    });
    waitingBytes -= bytes;
    wake();
  };
  const give = (owner: string): void => {
    taken -= 1;
    const left = (running.get(owner) ?? 1) - 1;
    if (left === 0) running.delete(owner);
    else running.set(owner, left);
    for (const [next, queue] of waiting) {
      if (!mayRun(next)) continue;
      const go = queue.shift();
      // Behind all the others.
      waiting.delete(next);
      if (queue.length > 0) waiting.set(next, queue);
      waitingCount -= 1;
      begin(next);
      go?.();
      break;
    }
    wake();
  };
  return {
    run({ lane, owner, bytes = 0 }, work) {
      const before = last.get(lane);
      const turn: Turn = {
        async pause(ms, signal) {
          give(owner);
          await sleep(ms, undefined, { signal }).catch(() => {});
          await take(owner, bytes);
        },
      };
      const run = async (): Promise<void> => {
        if (before !== undefined) await before.catch(() => {});
        await take(owner, bytes);
        try {
          await work(turn);
        } finally {
          give(owner);
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
