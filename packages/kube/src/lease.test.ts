import { setTimeout as sleep } from "node:timers/promises";
import { createLog } from "@loraline/runtime";
import { expect, it } from "vitest";
import { type Kube } from "./kube.ts";
import { withLease } from "./lease.ts";

const log = createLog({ service: "test", level: "silent" });
const durationMs = 1000;

/** An API server whose answers to the n-th write of the lease come as `answer` lets them, after it has stored it. */
function slowServer(answer: (write: number) => Promise<void>) {
  let stored: { metadata: { resourceVersion: string }; spec?: object } | undefined;
  const writes: number[] = [];
  const write = async (object: { spec?: object }) => {
    const n = writes.push(performance.now());
    stored = { ...object, metadata: { resourceVersion: String(n) } };
    await answer(n);
    return stored;
  };
  const kube = {
    get: async () => stored,
    create: (_of: unknown, object: object) => write(object),
    replace: (_of: unknown, object: object) => write(object),
  } as unknown as Kube;
  return { kube, writes };
}

it("stops its work before others may begin, however slowly the API server fails", { timeout: 10_000 }, async () => {
  const ending = new AbortController();
  let failing = false;
  const asked: number[] = [];
  const { kube, writes } = slowServer(async () => {});
  const { get } = kube;
  // Refuses late, just before it would be given up on; then says nothing any more.
  kube.get = async (of, at) => {
    if (!failing) return get(of, at);
    asked.push(performance.now());
    if (asked.length === 1) await sleep(380);
    else await sleep(5000, undefined, { signal: ending.signal });
    throw new Error("no answer");
  };
  const stopped = Promise.withResolvers<number>();
  const done = withLease(kube, {
    namespace: "n",
    name: "l",
    identity: "one",
    log,
    durationMs,
    signal: ending.signal,
    async work(lost) {
      failing = true;
      await new Promise((resolve) => lost.addEventListener("abort", resolve, { once: true }));
      stopped.resolve(performance.now());
    },
  });
  expect((await stopped.promise) - (writes[0] ?? 0)).toBeLessThan(durationMs * 0.8);
  ending.abort();
  await done;
});

it("does not begin on an answer that came when another may hold the lease already", { timeout: 10_000 }, async () => {
  const ending = new AbortController();
  const { kube, writes } = slowServer((write) => (write === 1 ? sleep(1500).then(() => {}) : Promise.resolve()));
  const began = Promise.withResolvers<number>();
  const done = withLease(kube, {
    namespace: "n",
    name: "l",
    identity: "one",
    log,
    durationMs,
    signal: ending.signal,
    async work() {
      began.resolve(performance.now());
      ending.abort();
    },
  });
  const at = await began.promise;
  expect(at - (writes.findLast((time) => time <= at) ?? 0)).toBeLessThan(durationMs * 0.6);
  await done;
});
