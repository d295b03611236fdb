/** Canaries on a real NATS: controllers that come and go, agents with simulated engines, gateways played by what they report. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Bus } from "@loraline/bus";
import {
  adapterCanaryEnded,
  adapterCanaryStarted,
  adapterCanaryStepped,
  adapterPromoted,
  adapterPromoteRequested,
  adapterRollbackRequested,
  adapterRolledBack,
  type AdapterState,
  type BaseRef,
  buckets,
  type CanarySettings,
  canarySettings,
  type Evaluation,
  runCancelled,
  runCancelRequested,
  runFailed,
  runServed,
  trafficKeys,
  type RunSpecInput,
} from "@loraline/contracts";
import { createSimulatedEngine, simulatedAdapter, simulatedProbes, test as it } from "@loraline/testkit";
import { ulid } from "ulid";
import { expect } from "vitest";
import { type ServeUnderTest, serveUnderTest } from "../../serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };
const until = { timeout: 60_000, interval: 20 };
const moveEvents = [adapterCanaryStarted, adapterCanaryStepped, adapterCanaryEnded, adapterPromoted, adapterRolledBack];

interface Line extends AsyncDisposable {
  serve: ServeUnderTest;
  /** Of the gateway that is played. */
  gateway: string;
  engine: Awaited<ReturnType<typeof createSimulatedEngine>>;
  /** Plays a training of `pirate`; returns the run. */
  train(seed: number, spec?: Partial<RunSpecInput>, evaluation?: Evaluation): Promise<string>;
  /** The same, and waits until its version is served. */
  version(seed: number, spec?: Partial<RunSpecInput>, evaluation?: Evaluation): Promise<void>;
  promote(version: number, canary?: Partial<CanarySettings>): Promise<void>;
  /** Plays a gateway: what it has counted of each version until now. */
  count(counts: Record<number, [requests: number, errors: number]>): Promise<void>;
  state(): Promise<AdapterState | undefined>;
  told(): Promise<string[]>;
}

const test = it.extend("line", async ({ nc, tenant }, { onCleanup }): Promise<Line> => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const dir = await mkdtemp(join(tmpdir(), "loraline-canary-"));
  owned.defer(() => rm(dir, { recursive: true, force: true }));
  const engine = owned.use(await createSimulatedEngine({ base: base.name }));
  const serve = owned.use(await serveUnderTest({ nc, tenant, dir, base }));
  owned.use(await serve.startAgent(engine.url));
  const gateway = ulid();
  const traffic = await serve.bus.bucket(buckets.traffic);
  owned.defer(() => traffic.delete(trafficKeys(gateway).canary));
  const startedAt = new Date().toISOString();
  const state = () => serve.adapter("pirate");
  const train = async (seed: number, spec: Partial<RunSpecInput> = {}, evaluation?: Evaluation): Promise<string> => {
    const probes = await simulatedProbes(join(dir, "scratch"), { base: base.name, seed });
    return serve.train(
      "pirate",
      { ...simulatedAdapter({ base: base.name, seed }), probes },
      { spec, ...(evaluation === undefined ? {} : { evaluation }) },
    );
  };
  return {
    serve,
    engine,
    gateway,
    train,
    async version(seed, spec, evaluation) {
      const runId = await train(seed, spec, evaluation);
      await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
    },
    async promote(version, canary) {
      const data = {
        version,
        by: "ann",
        ...(canary === undefined ? {} : { canary: canarySettings.parse({ steps: [10, 50], interval_s: 1, min_requests: 5, ...canary }) }),
      };
      await serve.bus.publish(adapterPromoteRequested, { tenant, id: "pirate" }, data, { key: ulid() });
    },
    async count(counts) {
      const names = new Map((await state())?.versions.map(({ version, engineName }) => [version, engineName]));
      await traffic.put(trafficKeys(gateway).canary, {
        gateway,
        at: new Date().toISOString(),
        windowMs: 60_000,
        engines: Object.entries(counts).map(([version, [requests, errors]]) => ({
          engineName: names.get(Number(version)) ?? "",
          engine: serve.engine,
          inFlight: {},
          total: { requests, errors, firstByteMs: requests, promptTokens: 0, completionTokens: 0, since: startedAt },
          window: { requests, firstByteP50Ms: 1, firstByteP95Ms: 1 },
        })),
      });
    },
    state,
    told: async () =>
      (await serve.history(moveEvents, "pirate")).map(({ type, data }) => {
        const { version, to, share, outcome } = data as Record<string, string | number | undefined>;
        return [type.split(".")[1], version ?? to, share ?? outcome].filter((part) => part !== undefined).join(" ");
      }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
});

test("takes its steps, whoever of several controllers decides, and goes on after a restart", async ({ line }) => {
  const first = await line.serve.startController();
  const second = await line.serve.startController();
  await line.version(1);
  await line.version(2, { promote: "manual" });
  await line.count({ 1: [500, 1], 2: [90, 9] }); // pinned requests, before
  await line.promote(2, {});
  await expect.poll(line.state, until).toMatchObject({ alias: 1, canary: { version: 2, from: 1, step: 0, share: 10, by: "ann" } });
  await expect
    .poll(line.state, until)
    .toMatchObject({ canary: { baseline: { [line.gateway]: { version: { requests: 90 }, from: { requests: 500 } } } } });
  await line.count({ 1: [510, 1], 2: [95, 9] });
  await expect.poll(line.state, until).toMatchObject({ canary: { step: 1, share: 50 } });
  await first[Symbol.asyncDispose]();
  await second[Symbol.asyncDispose]();
  const between = await line.state();
  await line.count({ 1: [520, 1], 2: [100, 9] });
  await using _third = await line.serve.startController();
  await using _fourth = await line.serve.startController();
  await expect.poll(line.state, until).toMatchObject({ alias: 2, canary: null });
  const { history } = (await line.state()) ?? {};
  expect(Date.parse(history?.at(-1)?.at ?? "") - Date.parse(between?.canary?.since ?? "")).toBeGreaterThanOrEqual(1000);
  expect(history?.map(({ kind, by }) => [kind, by])).toEqual([
    ["promoted", null],
    ["canary-started", "ann"],
    ["canary-stepped", "ann"],
    ["canary-ended", "ann"],
    ["promoted", "ann"],
  ]);
  await expect
    .poll(line.told, until)
    .toEqual(["promoted 1", "canary-started 2 10", "canary-stepped 2 50", "canary-ended 2 promoted", "promoted 2"]);
});

test("of a run with promote: canary is rolled back when it fails more often", async ({ line }) => {
  await using _controller = await line.serve.startController();
  await line.version(1, { promote: "canary" });
  expect(await line.state()).toMatchObject({ alias: 1 }); // there was nothing to compare it with
  await line.version(2, { promote: "canary", canary: { steps: [20], interval_s: 60, min_requests: 10, max_error_rate: 0.2 } });
  await expect.poll(line.state, until).toMatchObject({ alias: 1, canary: { version: 2, share: 20, by: null } });
  await line.count({ 1: [50, 0], 2: [0, 0] });
  await expect.poll(line.state, until).toMatchObject({ canary: { baseline: { [line.gateway]: {} } } });
  await line.count({ 1: [60, 0], 2: [4, 3] });
  await expect.poll(line.state, until).toMatchObject({ alias: 1, canary: null });
  await expect.poll(line.told, until).toEqual(["promoted 1", "canary-started 2 20", "canary-ended 2 rolledback"]);
  const [ended] = await line.serve.history([adapterCanaryEnded], "pirate");
  expect(ended?.data).toMatchObject({ code: "CANARY_ERRORS", reason: expect.stringContaining("3 of 4 answers of version 2 failed") });
  expect((await line.state())?.versions[1]).toMatchObject({ status: "desired" }); // to be looked at, pinned
});

test("waits while no replica has its version proven, and a rollback ends it", async ({ line }) => {
  await using _controller = await line.serve.startController();
  await line.version(1);
  await line.version(2, { promote: "manual" });
  await line.promote(2, { interval_s: 600 });
  await expect.poll(line.state, until).toMatchObject({ canary: { version: 2 } });
  await line.engine.stop();
  await expect.poll(line.state, until).toMatchObject({ canary: { unprovenSince: expect.any(String) } });
  await line.engine.start();
  await expect.poll(line.state, until).toMatchObject({ canary: { unprovenSince: null, step: 0 } });
  await line.serve.bus.publish(adapterRollbackRequested, { tenant: line.serve.tenant, id: "pirate" }, { by: "bob" });
  await expect.poll(line.state, until).toMatchObject({ alias: 1, canary: null });
  await expect.poll(line.told, until).toEqual(["promoted 1", "canary-started 2 10", "canary-ended 2 rolledback"]);
  expect((await line.state())?.history.at(-1)).toMatchObject({ by: "bob", reason: "rollback requested" });
});

test("a run that is cancelled after its training is not served, whenever serve hears of it", async ({ line }) => {
  const { serve } = line;
  const ends = [runServed, runCancelled, runFailed];
  const cancel = (runId: string) => serve.bus.publish(runCancelRequested, { tenant: serve.tenant, id: runId }, { by: "ann" });
  const endsOf = async (runId: string) => (await serve.history(ends, runId)).map(({ type }) => type);
  // Before it is taken up: nothing is loaded.
  const early = await line.train(1);
  await cancel(early);
  await using _controller = await serve.startController();
  await expect.poll(() => endsOf(early), until).toEqual(["run.cancelled.v1"]);
  expect(await line.state()).toBeUndefined();
  // While replicas load it: the version is withdrawn.
  line.engine.behaviour.probeDelayMs = 1000;
  const late = await line.train(2);
  await expect.poll(async () => (await line.state())?.versions.length, until).toBe(1);
  await cancel(late);
  await expect.poll(() => endsOf(late), until).toEqual(["run.cancelled.v1"]);
  expect(await line.state()).toMatchObject({ alias: null, versions: [{ status: "refused", reason: { code: "CANCELLED" } }] });
  // When it is served: too late, and nothing is said to the contrary.
  line.engine.behaviour.probeDelayMs = 0;
  await line.version(3);
  const served = (await line.state())?.versions.at(-1)?.runId ?? "";
  await cancel(served);
  await line.version(4);
  expect(await endsOf(served)).toEqual(["run.served.v1"]);
  expect(await line.state()).toMatchObject({ alias: 3, versions: [{}, { status: "desired" }, { status: "desired" }] });
});

test("a version that the gate could not compare with the promoted one is left to a person", async ({ line }) => {
  await using _controller = await line.serve.startController();
  await line.version(1);
  await line.version(2, { gate: "better-than-promoted" }, { base_loss: 3, adapter_loss: 0.5, rows: 7, supervised_tokens: 70 });
  expect(await line.state()).toMatchObject({
    alias: 1,
    versions: [{}, { promote: "manual", note: expect.stringContaining("other rows") }],
  });
  await line.version(3, { gate: "better-than-promoted" }, { base_loss: 3, adapter_loss: 0.5, rows: 4, supervised_tokens: 40 });
  expect(await line.state()).toMatchObject({ alias: 3 });
});

test("a move that was not told is told later, though a later one was, and with the replicas there were", async ({ line }) => {
  await using other = await createSimulatedEngine({ base: base.name });
  await using _agent = await line.serve.startAgent(other.url, { replica: "b" });
  await expect.poll(async () => (await line.serve.replica("b"))?.ready, until).toBe(true);
  const publish: Bus["publish"] = async (...args) => {
    if (args[3]?.key === "move-1") throw new Error("no answer from the bus");
    return line.serve.bus.publish(...args);
  };
  const mute = await line.serve.startController({ ...line.serve.bus, publish });
  const runs = [await line.train(1), await line.train(2, { promote: "manual" })];
  await expect.poll(async () => (await line.state())?.alias, until).toBe(1);
  for (const replica of ["a", "b"]) {
    await expect
      .poll(async () => (await line.serve.replica(replica))?.adapters.map(({ state }) => state), until)
      .toEqual(["proven", "proven"]);
  }
  await line.promote(2);
  await expect.poll(line.told, until).toEqual(["promoted 2"]);
  await mute[Symbol.asyncDispose]();
  await using _controller = await line.serve.startController();
  await expect.poll(line.told, until).toEqual(["promoted 2", "promoted 1"]);
  for (const runId of runs) {
    await expect.poll(() => line.serve.history([runServed], runId), until).toMatchObject([{ data: { replicas: 2 } }]);
  }
});
