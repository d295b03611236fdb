/** A version that its run still evaluates: replicas load and prove it ahead, nobody can ask it, and it goes again if it does not come. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  adapterAccepted,
  adapterLoaded,
  type BaseRef,
  buckets,
  runAttemptEnded,
  runCancelled,
  runCancelRequested,
  runFailed,
  runServed,
} from "@loraline/contracts";
import { createSimulatedEngine, simulatedAdapter, simulatedProbes, test as it } from "@loraline/testkit";
import { expect } from "vitest";
import { serveUnderTest } from "./serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };
const until = { timeout: 60_000, interval: 20 };

const test = it.extend("line", async ({ nc, tenant }, { onCleanup }) => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const dir = await mkdtemp(join(tmpdir(), "loraline-incoming-"));
  owned.defer(() => rm(dir, { recursive: true, force: true, maxRetries: 5 }));
  const engine = owned.use(await createSimulatedEngine({ base: base.name }));
  const serve = owned.use(await serveUnderTest({ nc, tenant, dir, base, maxCpuLoras: 4 }));
  let controller = owned.use(await serve.startController());
  owned.use(await serve.startAgent(engine.url));
  const make = async (seed = 1) => ({
    ...simulatedAdapter({ base: base.name, seed }),
    probes: await simulatedProbes(join(dir, "scratch"), { base: base.name, seed }),
  });
  return {
    engine,
    serve,
    tenant,
    make,
    loads: () => engine.calls.filter((call) => call.startsWith("load ")),
    stateOf: async (version: number) => (await serve.replica())?.adapters.find((each) => each.version === version)?.state,
    async restartController() {
      await controller[Symbol.asyncDispose]();
      controller = owned.use(await serve.startController());
    },
  };
});

test("it is proven ahead, nobody can ask it, and after its gate it needs no other proof", async ({ line }) => {
  const { serve, make, loads, stateOf } = line;
  const { runId, finish } = await serve.write("pirate", await make());
  await expect.poll(() => stateOf(1), until).toBe("proven");
  expect(await serve.adapter("pirate")).toBeUndefined();
  expect(await serve.history([adapterAccepted], "pirate")).toEqual([]);

  const provenAt = async () => (await serve.replica())?.adapters[0]?.proof?.provenAt;
  const before = await provenAt();
  const evaluated = Date.now();
  await finish();
  await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
  expect(await serve.adapter("pirate")).toMatchObject({ alias: 1, versions: [{ runId, version: 1, status: "desired" }] });
  expect(loads()).toHaveLength(1);
  expect(await provenAt()).toBe(before);
  expect(await serve.history([adapterLoaded], "pirate")).toHaveLength(1);
  // It is served since its gate, however early it was proven.
  const [version] = (await serve.adapter("pirate"))?.versions ?? [];
  expect(Date.parse(version?.servedAt ?? "")).toBeGreaterThanOrEqual(evaluated);
});

test("one that the gate refuses goes again", async ({ line }) => {
  const { engine, serve, make, stateOf } = line;
  const { runId, finish } = await serve.write("pirate", await make());
  await expect.poll(() => stateOf(1), until).toBe("proven");
  await finish({ base_loss: 1, adapter_loss: 2, rows: 4, supervised_tokens: 40 });
  await expect.poll(() => serve.history([runFailed], runId), until).toHaveLength(1);
  await expect.poll(() => engine.loaded.size, until).toBe(0);
  expect(await serve.adapter("pirate")).toBeUndefined();
});

test.for(["its attempt ended", "it was cancelled"] as const)("it goes again when %s", async (why, { line }) => {
  const { engine, serve, tenant, make, stateOf } = line;
  const { runId } = await serve.write("pirate", await make());
  await expect.poll(() => stateOf(1), until).toBe("proven");
  const at = { tenant, id: runId };
  if (why === "it was cancelled") await serve.bus.publish(runCancelled, at, {});
  else await serve.bus.publish(runAttemptEnded, at, { attempt: 1, step: 0, code: "TRAINER_KILLED", message: "killed in its evaluation" });
  await expect.poll(() => engine.loaded.size, until).toBe(0);
  const assignments = await serve.bus.bucket(buckets.assignments);
  expect((await assignments.entries(`${serve.engine}.>`)).flatMap(({ value }) => value.versions)).toEqual([]);
});

test("one that is told after its end is not loaded", async ({ line }) => {
  const { loads, serve, tenant, make } = line;
  const bytes = await make();
  await serve.write("pirate", bytes, { before: (id) => serve.bus.publish(runCancelRequested, { tenant, id }, {}) });
  await serve.write("parrot", bytes, {
    before: (id) => serve.bus.publish(runAttemptEnded, { tenant, id }, { attempt: 1, step: 0, code: "PREEMPTED", message: "stopped" }),
  });
  await sleep(300);
  expect(loads()).toEqual([]);
});

test("one that another run of its adapter overtakes comes under its own number", async ({ line }) => {
  const { engine, serve, make, stateOf } = line;
  const slow = await serve.write("pirate", await make(1));
  await expect.poll(() => stateOf(1), until).toBe("proven");
  const fast = await serve.train("pirate", await make(2));
  await expect.poll(() => serve.history([runServed], fast), until).toHaveLength(1);
  await slow.finish();
  await expect.poll(() => serve.history([runServed], slow.runId), until).toHaveLength(1);
  const { versions = [] } = (await serve.adapter("pirate")) ?? {};
  expect(versions.map(({ runId, version }) => [runId, version])).toEqual([
    [fast, 1],
    [slow.runId, 2],
  ]);
  await expect.poll(() => [...engine.loaded.keys()].toSorted(), until).toEqual(versions.map(({ engineName }) => engineName).toSorted());
});

test("it comes only where room is left beside it, and makes room for what is wanted", async ({ line }) => {
  const { engine, serve, make, loads } = line;
  const names = () => [...engine.loaded.keys()].map((name) => name.split(".")[1] ?? "").toSorted((a, b) => (a < b ? -1 : 1));
  const served = async (adapter: string, seed: number) => {
    const runId = await serve.train(adapter, await make(seed));
    await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
  };
  await served("a", 1);
  await served("b", 2);
  await serve.write("incoming", await make(3));
  await expect.poll(names, until).toEqual(["a", "b", "incoming"]);
  await serve.write("too-many", await make(4));
  await served("c", 5);
  expect(names()).toContain("incoming");
  await served("d", 6);
  await expect.poll(names, until).toEqual(["a", "b", "c", "d"]);
  expect(loads().filter((call) => call.includes(".too-many."))).toEqual([]);
});

test("a controller that restarts knows nothing of it, and its run is served all the same", async ({ line }) => {
  const { engine, serve, make, stateOf, restartController } = line;
  const { runId, finish } = await serve.write("pirate", await make());
  await expect.poll(() => stateOf(1), until).toBe("proven");
  await restartController();
  await expect.poll(() => engine.loaded.size, until).toBe(0);
  await finish();
  await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
});
