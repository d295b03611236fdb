import { expect, it, vi } from "vitest";
import { always } from "./decide-turns.ts";
import { createTurns } from "./turns.ts";

const busyLoop = (share: () => number) => () => ({ idle: 0, active: 0, utilization: share() });

it("lets a tenant wait behind its own requests while there is no time left, and others not", async () => {
  vi.useFakeTimers();
  try {
    let share = 0.99;
    using turns = createTurns(busyLoop(() => share));
    const loud = Array.from({ length: 50 }, () => turns.begin("loud"));
    const running = await Promise.all(loud);
    await turns.begin("quiet");
    // Alone, or with time left, all of them may run; now there are two, and no time.
    await vi.advanceTimersByTimeAsync(2000);
    let began = 0;
    for (let n = 0; n < 10; n++) void turns.begin("loud").then(() => began++);
    await vi.advanceTimersByTimeAsync(0);
    expect([began, turns.waiting()]).toEqual([0, 10]);
    const quiet = await turns.begin("quiet");
    quiet[Symbol.dispose]();
    for (const turn of running.slice(0, 50 - always)) turn[Symbol.dispose]();
    await vi.advanceTimersByTimeAsync(0);
    expect([began, turns.waiting()]).toEqual([0, 10]);
    running[49]?.[Symbol.dispose]();
    // Done twice is done once.
    running[49]?.[Symbol.dispose]();
    await vi.advanceTimersByTimeAsync(0);
    expect([began, turns.waiting()]).toEqual([1, 9]);
    share = 0.2;
    await vi.advanceTimersByTimeAsync(3000);
    expect([began, turns.waiting()]).toEqual([10, 0]);
  } finally {
    vi.useRealTimers();
  }
});

it("lets nobody wait long, even if those under way never end and there is never any time left", async () => {
  vi.useFakeTimers();
  try {
    using turns = createTurns(busyLoop(() => 1));
    for (let n = 0; n < 30; n++) await turns.begin("loud");
    await turns.begin("quiet");
    await vi.advanceTimersByTimeAsync(1000);
    let began = 0;
    for (let n = 0; n < 100; n++) void turns.begin("loud").then(() => began++);
    await vi.advanceTimersByTimeAsync(1000);
    expect(began).toBeGreaterThan(50);
    expect(began).toBeLessThan(90);
    await vi.advanceTimersByTimeAsync(2500);
    expect(began).toBe(100);
  } finally {
    vi.useRealTimers();
  }
});

it("lets all of them in when it ends, so that nobody waits for ever", async () => {
  vi.useFakeTimers();
  try {
    const turns = createTurns(busyLoop(() => 1));
    for (let n = 0; n < 30; n++) await turns.begin("loud");
    await turns.begin("quiet");
    await vi.advanceTimersByTimeAsync(1000);
    const waiting = turns.begin("loud");
    expect(turns.waiting()).toBe(1);
    turns[Symbol.dispose]();
    await waiting;
  } finally {
    vi.useRealTimers();
  }
});
