import { expect, it } from "vitest";
import { tellProgress } from "./tell-progress.ts";

it("tells every two seconds how much is done and how long the rest takes, and nothing of what is quick", async () => {
  let time = 0;
  const told: object[] = [];
  const report = tellProgress({ total: 1000, now: () => time, tell: async (work) => void told.push(work) });
  for (const [at, done] of [
    [1000, 100],
    [2000, 200],
    [2100, 210],
    [4000, 500],
  ] as const) {
    time = at;
    report(done);
    await Promise.resolve().then(() => undefined);
    await new Promise(setImmediate);
  }
  expect(told).toEqual([
    { done: 200, total: 1000, etaSeconds: 8 },
    { done: 500, total: 1000, etaSeconds: 4 },
  ]);
});

it("knows no end where nobody knows the total, and goes on when it cannot tell", async () => {
  let time = 0;
  const told: object[] = [];
  const tell = async (work: object) => {
    told.push(work);
    throw new Error("NATS is away");
  };
  const report = tellProgress({ total: null, now: () => time, tell });
  for (const at of [2000, 4000]) {
    time = at;
    report(at);
    await new Promise(setImmediate);
  }
  expect(told).toEqual([
    { done: 2000, total: null, etaSeconds: null },
    { done: 4000, total: null, etaSeconds: null },
  ]);
});
