/** The object store is away while versions are gated, and while replicas fetch them: they wait and say so, and nothing is judged by it. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { createBus, tellWaiting } from "@loraline/bus";
import { adapterAccepted, type BaseRef, buckets, consumers, runFailed, runServed, runWaiting } from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import { UnavailableError } from "@loraline/runtime";
import { createSimulatedEngine, simulatedAdapter, simulatedProbes, test as it } from "@loraline/testkit";
import { expect } from "vitest";
import { createServeService } from "./controller/service.ts";
import { serveUnderTest } from "./serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };
const within = { timeout: 60_000, interval: 50 };
const message = "the object store does not answer (connect ECONNREFUSED 10.0.0.9:443)";

const test = it
  .extend("dir", async ({}, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-serve-"));
    onCleanup(() => rm(dir, { recursive: true, force: true }));
    return dir;
  })
  .extend("engine", async ({}, { onCleanup }) => {
    const engine = await createSimulatedEngine({ base: base.name });
    onCleanup(() => engine[Symbol.asyncDispose]());
    return engine;
  })
  .extend("serve", async ({ nc, tenant, dir }, { onCleanup }) => {
    const serve = await serveUnderTest({ nc, tenant, dir, base });
    onCleanup(() => serve[Symbol.asyncDispose]());
    return serve;
  })
  .extend("adapter", async ({ dir }) => ({
    ...simulatedAdapter({ base: base.name }),
    probes: await simulatedProbes(join(dir, "scratch"), { base: base.name }),
  }));

/** A store whose way is cut for one of those who use it. */
function cuttable(objects: Objects) {
  let away = false;
  let refused = 0;
  return {
    cut: (how: boolean) => void (away = how),
    /** How often it was asked in vain. */
    refused: () => refused,
    objects: {
      get: (...args: Parameters<Objects["get"]>) => {
        if (!away) return objects.get(...args);
        refused++;
        return Promise.reject(new UnavailableError("STORE_UNAVAILABLE", message));
      },
      problem: () => (away ? message : undefined),
    },
  };
}

test(
  "at the gate and at the replicas: the run says what it waits for, and is served when the store is back",
  { timeout: 120_000 },
  async ({ serve, engine, adapter, nc, tenant }) => {
    const { objects, log, telemetry } = serve;
    const bus = createBus({ nc, log, telemetry, source: "serve", longestWaitMs: 100 });
    // Writes what the engine can do; the controller under test follows.
    await (await serve.startController())[Symbol.asyncDispose]();
    const atGate = cuttable(objects);
    const atReplicas = cuttable(objects);
    for (const one of [atGate, atReplicas]) one.cut(true);
    const engines = (await (await bus.bucket(buckets.engines)).entries(serve.engine)).map(({ value }) => value);
    // The gate is slow between writing the version and telling that its wait is over: a replica's failure is told before.
    const slowly: typeof bus = {
      ...bus,
      async publish(event, at, data, options) {
        if (event.type === adapterAccepted.type) await setTimeout(2000);
        return bus.publish(event, at, data, options);
      },
    };
    await using _controller = await createServeService({
      bus: slowly,
      objects: { ...objects, ...atGate.objects },
      log,
      telemetry,
      engines,
      resyncMs: 200,
    });
    await using _a = await serve.startAgent(engine.url, { objects: atReplicas.objects });
    const id = await serve.train("pirate", adapter);
    const at = { tenant, id };
    const reason = async () => (await bus.last(runWaiting, at))?.data;
    await expect.poll(reason, within).toEqual({ stage: "serve", reason: { code: "STORE_UNAVAILABLE", message } });
    // Two objects are read at once. An error of another kind would have ended in a failed message long before.
    await expect.poll(atGate.refused, within).toBeGreaterThan(2 * (consumers.serveRunTrained.maxDeliver * 2 + 1));
    atGate.cut(false);
    await expect.poll(async () => (await serve.adapter("pirate"))?.versions.length, within).toBe(1);

    // Now the replica waits. Its patience with one adapter ends, and the version is not refused for it.
    await expect.poll(async () => (await serve.replica())?.adapters[0], within).toMatchObject({ state: "quarantined", blame: "replica" });
    await expect.poll(reason, within).toEqual({ stage: "serve", reason: { code: "STORE_UNAVAILABLE", message } });
    expect(await serve.history([runFailed, runServed], id)).toEqual([]);
    atReplicas.cut(false);
    await expect.poll(() => serve.history([runServed], id), within).toHaveLength(1);
    expect(await serve.history([runFailed], id)).toEqual([]);
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
  },
);

test(
  "what an earlier controller told of a wait that is over is taken back",
  { timeout: 60_000 },
  async ({ serve, adapter, nc, tenant }) => {
    const bus = createBus({ nc, log: serve.log, telemetry: serve.telemetry, source: "serve" });
    const first = await serve.startController();
    const id = await serve.train("pirate", adapter);
    await expect.poll(async () => (await serve.adapter("pirate"))?.versions.length, within).toBe(1);
    await first[Symbol.asyncDispose]();
    const at = { tenant, id };
    await tellWaiting(bus, runWaiting, at, { stage: "serve", reason: { code: "STORE_UNAVAILABLE", message } });
    await using _second = await serve.startController();
    await expect.poll(async () => (await bus.last(runWaiting, at))?.data.reason, within).toBeNull();
  },
);
