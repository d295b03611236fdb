import { pino } from "pino";
import { describe, expect, it } from "vitest";
import { createKeyedQueue } from "./keyed-queue.ts";

const log = pino({ enabled: false });

describe("createKeyedQueue", () => {
  it("never works on one key twice at once, and runs a key once more that was added meanwhile", async () => {
    const started: string[] = [];
    const active = new Set<string>();
    let release = Promise.withResolvers<void>();
    const queue = createKeyedQueue({
      concurrency: 10,
      log,
      async work(key) {
        expect(active.has(key)).toBe(false);
        active.add(key);
        started.push(key);
        await release.promise;
        active.delete(key);
      },
    });
    for (const key of ["a", "a", "b", "a", "a"]) queue.add(key);
    expect(started).toEqual(["a", "b"]);
    const first = release;
    release = Promise.withResolvers();
    first.resolve();
    await expect.poll(() => started).toEqual(["a", "b", "a"]);
    release.resolve();
    await queue[Symbol.asyncDispose]();
    expect(started).toEqual(["a", "b", "a"]);
  });

  it("works on at most `concurrency` keys, in the order they came", async () => {
    const order: string[] = [];
    let active = 0;
    const queue = createKeyedQueue({
      concurrency: 2,
      log,
      async work(key) {
        expect(++active).toBeLessThanOrEqual(2);
        order.push(key);
        await new Promise((resolve) => setTimeout(resolve, 5));
        active--;
      },
    });
    for (const key of ["1", "2", "3", "4", "5"]) queue.add(key);
    await expect.poll(() => order).toEqual(["1", "2", "3", "4", "5"]);
    await queue[Symbol.asyncDispose]();
  });

  it("brings a failed key back, and wakes at the earliest planned time", async () => {
    let runs = 0;
    const times: number[] = [];
    const queue = createKeyedQueue({
      concurrency: 1,
      log,
      async work(key) {
        times.push(performance.now());
        if (key === "bad" && ++runs === 1) throw new Error("once");
      },
    });
    queue.add("bad");
    await expect.poll(() => times.length, { timeout: 60_000 }).toBe(2);
    expect((times[1] as number) - (times[0] as number)).toBeGreaterThan(400);
    queue.addAfter("later", 10_000);
    queue.addAfter("later", 20);
    queue.addAfter("later", 5000);
    await expect.poll(() => times.length).toBe(3);
    await queue[Symbol.asyncDispose]();
  });

  it("drops what waits when it is disposed, after what runs has ended", async () => {
    const done: string[] = [];
    const queue = createKeyedQueue({
      concurrency: 1,
      log,
      async work(key) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        done.push(key);
      },
    });
    queue.add("a");
    queue.add("b");
    queue.addAfter("c", 1);
    await queue[Symbol.asyncDispose]();
    queue.add("d");
    expect(done).toEqual(["a"]);
  });
});
