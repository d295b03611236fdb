import { describe, expect, it } from "vitest";
import { createTestClock, wantedAdapter } from "./agent-under-test.ts";
import type { AgentAction } from "./adapters/decide-adapters.ts";
import type { VersionRank } from "../version-rank.ts";
import { createScheduler, schedulerLimits } from "./scheduler.ts";

/** A scheduler whose names need what `actions` says: nothing once their work is done. */
function scheduled() {
  const clock = createTestClock();
  const running = new Map<string, () => void>();
  const at = {
    actions: new Map<string, AgentAction>(),
    ranks: new Map<string, VersionRank>(),
    retries: new Set<string>(),
    paused: false,
    started: [] as string[],
    asked: [] as string[],
  };
  const scheduler = createScheduler({
    clock,
    rankOf: (name) => at.ranks.get(name) ?? 3,
    decide(name) {
      if (scheduler.inWork.has(name)) return undefined;
      at.asked.push(name);
      return at.actions.get(name);
    },
    isRetry: (name) => at.retries.has(name),
    work(name) {
      at.started.push(name);
      return new Promise((resolve) => {
        running.set(name, resolve);
      });
    },
    onDone(name) {
      expect(scheduler.inWork.has(name)).toBe(false);
      at.actions.delete(name);
    },
    isPaused: () => at.paused,
  });
  const names = (prefix: string, count: number): string[] => Array.from({ length: count }, (_, i) => `${prefix}${i}`);
  return {
    at,
    clock,
    scheduler,
    names,
    needs(...these: string[]) {
      for (const name of these) at.actions.set(name, { kind: "load", wanted: wantedAdapter(name) });
      scheduler.consider(these);
      return clock.pass(0);
    },
    end(name: string) {
      running.get(name)?.();
      return clock.pass(0);
    },
  };
}

describe("the scheduler", () => {
  it("works on a few at once, and begins the next when one is done", async () => {
    const { at, needs, names, end, scheduler } = scheduled();
    await needs(...names("n", 6));
    expect(at.started).toEqual(["n0", "n1", "n2", "n3"]);
    await end("n1");
    expect(at.started.at(-1)).toBe("n4");
    expect([...scheduler.inWork.keys()]).toEqual(["n0", "n2", "n3", "n4"]);
  });

  it("takes those of the first rank first, in whichever order they came", async () => {
    const { at, needs } = scheduled();
    for (const [index, name] of ["c", "b", "a"].entries()) at.ranks.set(name, (2 - index) as 0 | 1 | 2);
    await needs("c", "b", "a");
    expect(at.started).toEqual(["a", "b", "c"]);
  });

  it("keeps room for those that have not failed yet", async () => {
    const { at, needs, names } = scheduled();
    at.retries = new Set(names("failed", 4));
    await needs(...names("failed", 4), ...names("new", 4));
    expect(at.started).toEqual(["failed0", "failed1", "new0", "new1"]);
  });

  it("does not let slow work keep others waiting, up to a limit", async () => {
    const { at, needs, names, clock } = scheduled();
    await needs(...names("n", 40));
    expect(at.started).toHaveLength(schedulerLimits.concurrency);
    await clock.pass(schedulerLimits.slowMs);
    expect(at.started).toHaveLength(2 * schedulerLimits.concurrency);
    await clock.pass(10 * schedulerLimits.slowMs);
    expect(at.started).toHaveLength(schedulerLimits.mostAtOnce);
  });

  it("asks again about a name that has to wait when its time has come, and not before", async () => {
    const { at, clock, scheduler } = scheduled();
    at.actions.set("late", { kind: "wake", at: clock.now() + 2000 });
    at.actions.set("soon", { kind: "wake", at: clock.now() + 500 });
    scheduler.consider(["late", "soon"]);
    await clock.pass(499);
    expect(at.asked).toEqual(["late", "soon"]);
    at.actions.clear();
    await clock.pass(1);
    expect(at.asked).toEqual(["late", "soon", "soon"]);
    await clock.pass(1500);
    expect(at.asked.at(-1)).toBe("late");
    await clock.pass(100_000);
    expect(at.asked).toHaveLength(4);
  });

  it("decides once about what changes together", async () => {
    const { at, clock, scheduler } = scheduled();
    for (let i = 0; i < 5; i++) scheduler.consider(["n"]);
    await clock.pass(0);
    expect(at.asked).toEqual(["n"]);
  });

  it("begins nothing while it is paused, and goes on when it is asked again", async () => {
    const { at, needs, scheduler, clock } = scheduled();
    at.paused = true;
    await needs("n");
    expect(at.started).toEqual([]);
    at.paused = false;
    scheduler.consider([]);
    await clock.pass(0);
    expect(at.started).toEqual(["n"]);
  });

  it("waits at the end for what is under way, and begins no more", async () => {
    const { at, needs, names, end, scheduler } = scheduled();
    await needs(...names("n", 5));
    let isDone = false;
    const done = scheduler[Symbol.asyncDispose]().then(() => (isDone = true));
    for (const name of names("n", 4)) {
      expect(isDone).toBe(false);
      await end(name);
    }
    await done;
    expect(at.started).toHaveLength(4);
  });
});
