import { createHash } from "node:crypto";
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Bus } from "@loraline/bus";
import {
  adapterAccepted,
  adapterCheckpointWanted,
  adapterDeleteRequested,
  adapterKeepRequested,
  adapterLoaded,
  adapterPromoted,
  adapterPromoteRequested,
  adapterRefused,
  adapterRollbackRequested,
  adapterRolledBack,
  adapterUnloaded,
  adapterVersionDeleted,
  adapterVersionDeleteRequested,
  adapterVersionRecalled,
  adapterVersionRetired,
  adapterVersionWanted,
  type BaseRef,
  buckets,
  foldRun,
  runCancelled,
  runFailed,
  runRequested,
  runServed,
  runSpec,
  runTrained,
} from "@loraline/contracts";
import { readSpans } from "@loraline/runtime";
import { createSimulatedEngine, simulatedAdapter, type SimulatedAdapterOptions, simulatedProbes, test as it } from "@loraline/testkit";
import { ulid } from "ulid";
import { describe, expect } from "vitest";
import { z } from "zod";
import { type AdapterBytes, type ServeUnderTest, serveUnderTest } from "./serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };

const test = it
  .extend("dir", async ({}, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-serve-"));
    onCleanup(() => rm(dir, { recursive: true, force: true, maxRetries: 5 }));
    return dir;
  })
  .extend("engine", async ({}, { onCleanup }) => {
    const engine = await createSimulatedEngine({ base: base.name });
    onCleanup(() => engine[Symbol.asyncDispose]());
    return engine;
  })
  .extend("serve", async ({ nc, tenant, dir }, { onCleanup }) => {
    const serve = await serveUnderTest({ nc, tenant, dir, base, spansDir: join(dir, "spans") });
    onCleanup(() => serve[Symbol.asyncDispose]());
    return serve;
  })
  .extend("start", async ({ serve, engine }, { onCleanup }) => {
    const running: AsyncDisposable[] = [];
    onCleanup(async () => {
      for (const each of running.reverse()) await each[Symbol.asyncDispose]();
    });
    return async () => {
      running.push(await serve.startController(), await serve.startAgent(engine.url));
    };
  })
  .extend(
    "make",
    ({ dir }) =>
      async (over: Partial<SimulatedAdapterOptions> = {}, record: Partial<SimulatedAdapterOptions> = over): Promise<AdapterBytes> => ({
        ...simulatedAdapter({ base: base.name, ...over }),
        probes: await simulatedProbes(join(dir, "scratch"), { base: base.name, ...record }),
      }),
  );

const until = { timeout: 60_000, interval: 20 };
const codeOf = async (serve: ServeUnderTest, runId: string): Promise<string | undefined> => {
  const [failed] = await serve.history([runFailed], runId);
  return (failed?.data as { code?: string } | undefined)?.code;
};
const servedBy = async (serve: ServeUnderTest, runId: string) => {
  await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
  const [event] = await serve.history([runServed], runId);
  return event?.data as Record<string, unknown>;
};
const held = async (serve: ServeUnderTest, version: number, replica?: string) =>
  (await serve.replica(replica))?.adapters.find((each) => each.version === version)?.state;

describe("a trained run", () => {
  test("becomes a proven version with the alias on it, in one trace, at once", async ({ serve, engine, start, make, dir }) => {
    await start();
    const traceId = "0af7651916cd43dd8448eb211c80319c";
    const runId = await serve.train("pirate", await make(), { traceparent: `00-${traceId}-b7ad6b7169203331-01` });
    const served = await servedBy(serve, runId);
    expect(served).toMatchObject({ adapter: "pirate", version: 1, replicas: 1, promoted: true });
    expect(served["lastStepToProvenMs"]).toBeLessThan(2000);

    const state = await serve.adapter("pirate");
    const [version] = state?.versions ?? [];
    expect(state).toMatchObject({ engine: serve.engine, base: base.name, alias: 1, history: [{ from: null, to: 1, kind: "promoted" }] });
    expect(version?.engineName).toMatch(new RegExp(`^${serve.tenant}\\.pirate\\.v1\\.[0-9a-f]{12}$`));
    expect(engine.loaded.get(version?.engineName ?? "")).toBe(join(dir, "a", (version?.digest ?? "").slice(7)));

    const told = await serve.history([adapterAccepted, adapterLoaded, adapterPromoted, adapterRefused], "pirate");
    expect(told.map(({ type }) => type)).toEqual(["adapter.accepted.v1", "adapter.loaded.v1", "adapter.promoted.v1"]);
    expect(told[1]?.data).toMatchObject({ version: 1, replica: "a", proof: { agreement: 0, effect: expect.any(Number) } });
    const trace = [...told, ...(await serve.history([runServed], runId))].map((event) => event.trace?.slice(3, 35));
    expect(new Set(trace)).toEqual(new Set([traceId]));
    await serve.telemetry.flush();
    const spans = (await readSpans(join(dir, "spans"), traceId)).map(({ name }) => name);
    for (const name of ["gate", "load", "proof", "promote"]) expect(spans).toContain(name);
  });

  test("keeps its files whole and read-only under their digest", async ({ serve, start, make, dir }) => {
    await start();
    await servedBy(serve, await serve.train("pirate", await make()));
    const [version] = (await serve.adapter("pirate"))?.versions ?? [];
    const path = join(dir, "a", (version?.digest ?? "").slice(7));
    expect((await readdir(join(dir, "a"))).length).toBe(1);
    expect(await readdir(path)).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
    expect((await stat(join(path, "adapter_model.safetensors"))).mode & 0o777).toBe(0o444);
  });

  test("delivered again, it is the same version", async ({ serve, start, make }) => {
    await start();
    const runId = await serve.train("pirate", await make());
    await servedBy(serve, runId);
    const [event] = await serve.history([runTrained], runId);
    await serve.publishTrained(runId, runTrained.data.parse(event?.data));
    const next = await serve.train("pirate", await make({ seed: 2 }));
    await servedBy(serve, next);
    expect((await serve.adapter("pirate"))?.versions.map(({ runId: of }) => of)).toEqual([runId, next]);
    expect(await serve.history([adapterAccepted], "pirate")).toHaveLength(2);
  });

  test("that was cancelled meanwhile is left alone", async ({ serve, engine, start, make }) => {
    const cancelled = await serve.train("pirate", await make());
    await serve.bus.publish(runCancelled, { tenant: serve.tenant, id: cancelled }, {});
    await start();
    await servedBy(serve, await serve.train("parrot", await make()));
    expect(await serve.adapter("pirate")).toBeUndefined();
    expect(engine.calls.filter((call) => call.includes("pirate"))).toEqual([]);
  });

  test("that nobody requested becomes a dead letter", async ({ serve, start, make }) => {
    await start();
    const runId = await serve.train("pirate", await make());
    const [event] = await serve.history([runTrained], runId);
    const stray = "01JZZZZZZZZZZZZZZZZZZZZZZZ";
    await serve.publishTrained(stray, runTrained.data.parse(event?.data));
    await expect.poll(() => codeOf(serve, stray), until).toBe("RUN_UNKNOWN");
    await expect.poll(async () => (await serve.bus.deadLetters.list(serve.tenant)).map(({ code }) => code), until).toEqual(["RUN_UNKNOWN"]);
  });

  test("with promote: manual is served, and the alias waits for a person", async ({ serve, start, make }) => {
    await start();
    const runId = await serve.train("pirate", await make(), { spec: { promote: "manual" } });
    expect(await servedBy(serve, runId)).toMatchObject({ promoted: false });
    expect(await serve.adapter("pirate")).toMatchObject({ alias: null });
    await serve.bus.publish(adapterPromoteRequested, { tenant: serve.tenant, id: "pirate" }, { version: 1, by: "ann" });
    await expect.poll(async () => (await serve.adapter("pirate"))?.alias, until).toBe(1);
    await expect.poll(() => serve.history([adapterPromoted], "pirate"), until).toMatchObject([{ data: { from: null, to: 1, by: "ann" } }]);
  });
});

describe("what is not served", () => {
  test("a version that the gate refuses is never loaded", async ({ serve, engine, start, make }) => {
    await start();
    const runId = await serve.train("pirate", await make(), {
      evaluation: { base_loss: 2, adapter_loss: 2.5, rows: 4, supervised_tokens: 40 },
    });
    await expect.poll(() => codeOf(serve, runId), until).toBe("NOT_BETTER_THAN_BASE");
    expect(await serve.history([adapterRefused], "pirate")).toMatchObject([{ data: { code: "NOT_BETTER_THAN_BASE", runId } }]);
    expect(engine.calls).toEqual([]);
  });

  test("a new adapter over its tenant's quota; a new version of one that exists is free", async ({ serve, tenant, make }) => {
    await using controller = await serve.startController(serve.bus, { quotas: { tenants: { [tenant]: { adapters: 1 } } } });
    expect(controller).toBeDefined();
    await serve.train("pirate", await make());
    await expect.poll(async () => (await serve.adapter("pirate"))?.versions.length, until).toBe(1);
    // Requested when there was room still.
    const runId = await serve.train("parrot", await make({ seed: 2 }));
    await expect.poll(() => codeOf(serve, runId), until).toBe("QUOTA_ADAPTERS");
    expect(await serve.adapter("parrot")).toBeUndefined();
    await serve.train("pirate", await make({ seed: 3 }));
    await expect.poll(async () => (await serve.adapter("pirate"))?.versions.length, until).toBe(2);
  });

  const q = "model.layers.0.self_attn.q_proj";
  const faults: [string, Partial<SimulatedAdapterOptions>, Partial<SimulatedAdapterOptions>, string][] = [
    ["only zeros", { size: 0 }, {}, "ADAPTER_ZERO"],
    ["not-a-number", { size: Number.NaN }, {}, "ADAPTER_NAN"],
    ["modules that the model does not have", { modules: ["model.blocks.0.q_proj"] }, { modules: [q] }, "PROOF_WITHOUT_EFFECT"],
    ["twice the scaling", { alpha: 8 }, { alpha: 4 }, "PROOF_SCALING"],
    ["half the scaling", { alpha: 2 }, { alpha: 4 }, "PROOF_SCALING"],
    ["other weights", { seed: 2 }, { seed: 1 }, "PROOF_DISAGREES"],
    ["another base's name", { config: { base_model_name_or_path: "huge" } }, {}, "ADAPTER_BASE_MISMATCH"],
    ["DoRA", { config: { use_dora: true } }, {}, "ADAPTER_FEATURE_UNSUPPORTED"],
    ["a rank above the engine's", { rank: 64 }, {}, "ADAPTER_RANK_TOO_HIGH"],
  ];
  for (const [what, bytes, record, code] of faults) {
    test(`an adapter with ${what} is refused with its own reason: ${code}`, async ({ serve, engine, start, make }) => {
      await start();
      const runId = await serve.train("pirate", await make(bytes, record));
      await expect.poll(() => codeOf(serve, runId), until).toBe(code);
      await expect.poll(() => [...engine.loaded], until).toEqual([]);
      expect(await serve.history([runServed, adapterPromoted], runId)).toEqual([]);
      await expect.poll(() => serve.history([adapterRefused], "pirate"), until).toMatchObject([{ data: { code } }]);
    });
  }

  test("an adapter whose file is cut off, by the header that it no longer keeps", async ({ serve, engine, start, make }) => {
    await start();
    const bytes = await make();
    const runId = await serve.train("pirate", { ...bytes, weights: bytes.weights.subarray(0, -6) });
    await expect.poll(() => codeOf(serve, runId), until).toBe("ADAPTER_UNREADABLE");
    expect(engine.calls).toEqual([]);
  });

  test("an adapter of a base that goes by the same name and answers otherwise", async ({ serve, start, make }) => {
    await start();
    const bytes = await make();
    const probes = bytes.probes.map((probe) => ({
      ...probe,
      first: { ...probe.first, base: probe.first.base.map((logprob, i) => logprob + (i % 2 === 0 ? 1 : -1)) },
    }));
    const runId = await serve.train("pirate", { ...bytes, probes });
    await expect.poll(() => codeOf(serve, runId), until).toBe("PROOF_BASE_DIFFERS");
  });

  test("an engine that says 200 and applies nothing", async ({ serve, engine, start, make }) => {
    engine.behaviour.lies = true;
    await start();
    const runId = await serve.train("pirate", await make());
    await expect.poll(() => codeOf(serve, runId), until).toBe("PROOF_WITHOUT_EFFECT");
    await expect.poll(() => [...engine.loaded], until).toEqual([]);
    expect(await serve.adapter("pirate")).toMatchObject({
      alias: null,
      versions: [{ status: "refused", reason: { code: "PROOF_WITHOUT_EFFECT" } }],
    });
  });

  test("one wrong answer is not enough to refuse an adapter for good", async ({ serve, engine, start, make }) => {
    engine.behaviour.glitches = 1;
    await start();
    await servedBy(serve, await serve.train("pirate", await make()));
    expect(engine.behaviour.glitches).toBe(0);
  });

  for (const oldErrors of [false, true]) {
    test(
      `an adapter that the engine refuses to load, said in ${oldErrors ? "old" : "new"} words`,
      { timeout: 30_000 },
      async ({ serve, engine, start, make }) => {
        Object.assign(engine.behaviour, { oldErrors, refuseLoad: () => "no room" });
        await start();
        const runId = await serve.train("pirate", await make());
        await expect.poll(() => codeOf(serve, runId), { timeout: 60_000 }).toBe("ENGINE_REFUSED");
        const [failed] = await serve.history([runFailed], runId);
        expect(failed?.data).toMatchObject({ message: expect.stringContaining("no room") });
        expect(engine.calls.length).toBe(5);
      },
    );
  }

  test("an engine started without run-time loading is waited for, not blamed on the adapter", async ({ serve, engine, start, make }) => {
    engine.behaviour.loadingOff = true;
    await start();
    await serve.train("pirate", await make());
    await expect
      .poll(async () => (await serve.replica())?.adapters[0], until)
      .toMatchObject({ state: "retrying", error: { code: "ENGINE_WITHOUT_RUNTIME_LORA" } });
  });
});

describe("an engine", () => {
  test("that restarts has everything proven again before it counts", async ({ serve, engine, start, make }) => {
    await start();
    await servedBy(serve, await serve.train("pirate", await make()));
    const before = (await serve.replica())?.incarnation;
    await engine.stop();
    await expect.poll(async () => (await serve.replica())?.ready, until).toBe(false);
    engine.behaviour.probeDelayMs = 300;
    await engine.start();
    await expect.poll(async () => (await serve.replica())?.ready, until).toBe(true);
    expect(await held(serve, 1)).not.toBe("proven");
    await expect.poll(() => held(serve, 1), until).toBe("proven");
    expect((await serve.replica())?.incarnation).not.toBe(before);
    expect(await serve.history([adapterLoaded], "pirate")).toHaveLength(2);
    expect((await serve.adapter("pirate"))?.history).toHaveLength(1);
  });

  test("whose core died is away although it still lists its models", async ({ serve, engine, start, make }) => {
    await start();
    await servedBy(serve, await serve.train("pirate", await make()));
    engine.behaviour.coreDead = true;
    await expect.poll(async () => (await serve.replica())?.ready, until).toBe(false);
    expect(engine.calls.filter((call) => call.startsWith("unload"))).toEqual([]);
  });

  test("that restarts between two health checks is noticed by its start time", async ({ serve, engine, make }) => {
    await using _controller = await serve.startController();
    await using _agent = await serve.startAgent(engine.url, { healthMs: 60_000 });
    await servedBy(serve, await serve.train("pirate", await make()));
    await engine.stop();
    await engine.start();
    await expect.poll(() => engine.loaded.size, until).toBe(1);
    await expect.poll(() => held(serve, 1), until).toBe("proven");
  });

  test("is not unloaded by an agent that cannot read what is wanted, and one that starts anew proves without loading", async ({
    serve,
    engine,
    make,
  }) => {
    await using _controller = await serve.startController();
    const first = await serve.startAgent(engine.url);
    await servedBy(serve, await serve.train("pirate", await make()));
    await first[Symbol.asyncDispose]();
    expect(await serve.replica()).toBeUndefined();
    await using _second = await serve.startAgent(engine.url);
    await expect.poll(() => held(serve, 1), until).toBe("proven");
    expect(engine.calls).toHaveLength(1);
  });

  test("with one bad and one slow adapter serves the others at once", async ({ serve, engine, start, make }) => {
    await start();
    engine.behaviour.refuseLoad = (name) => (name.includes(".bad.") ? "broken" : undefined);
    await serve.train("bad", await make({ seed: 9 }));
    await expect.poll(() => engine.calls.some((call) => call.includes(".bad.")), until).toBe(true);
    const started = performance.now();
    await servedBy(serve, await serve.train("pirate", await make()));
    expect(performance.now() - started).toBeLessThan(2000);
  });

  test("whose adapter files are swapped loads them anew from what was published", async ({ serve, engine, start, make, dir }) => {
    await start();
    await servedBy(serve, await serve.train("pirate", await make()));
    const [version] = (await serve.adapter("pirate"))?.versions ?? [];
    const file = join(dir, "a", (version?.digest ?? "").slice(7), "adapter_model.safetensors");
    const bytes = await readFile(file);
    const digest = createHash("sha256").update(bytes).digest("hex");
    await chmod(file, 0o644);
    bytes.writeUInt8(bytes.readUInt8(bytes.length - 2) ^ 0x40, bytes.length - 2);
    await writeFile(file, bytes);
    await expect.poll(() => engine.calls.length, until).toBe(3);
    await expect.poll(() => held(serve, 1), until).toBe("proven");
    expect(engine.calls.map((call) => call.split(" ")[0])).toEqual(["load", "unload", "load"]);
    expect(
      createHash("sha256")
        .update(await readFile(file))
        .digest("hex"),
    ).toBe(digest);
  });

  test("beside another: a version is served when both have it proven", async ({ serve, engine, start, make }) => {
    await using other = await createSimulatedEngine({ base: base.name });
    other.behaviour.probeDelayMs = 700;
    await start();
    await using _agent = await serve.startAgent(other.url, { replica: "b" });
    await expect.poll(async () => (await serve.replica("b"))?.ready, until).toBe(true);
    const runId = await serve.train("pirate", await make());
    await expect.poll(() => held(serve, 1), until).toBe("proven");
    expect(await held(serve, 1, "b")).not.toBe("proven");
    expect((await serve.adapter("pirate"))?.alias).toBeNull();
    expect(await servedBy(serve, runId)).toMatchObject({ replicas: 2 });
    expect(engine.loaded.size + other.loaded.size).toBe(2);
  });
});

describe("aliases and versions", () => {
  const versions = async (
    serve: ServeUnderTest,
    make: (over?: Partial<SimulatedAdapterOptions>) => Promise<AdapterBytes>,
    count: number,
  ): Promise<void> => {
    for (let seed = 1; seed <= count; seed++) await servedBy(serve, await serve.train("pirate", await make({ seed })));
  };

  test("promote and roll back, once per command", async ({ serve, start, make }) => {
    await start();
    await versions(serve, make, 3);
    const at = { tenant: serve.tenant, id: "pirate" };
    await serve.bus.publish(adapterRollbackRequested, at, { by: "ann" }, { key: "1" });
    await expect.poll(async () => (await serve.adapter("pirate"))?.alias, until).toBe(2);
    await serve.bus.publish(adapterRollbackRequested, at, { by: "ann" }, { key: "2" });
    await expect.poll(async () => (await serve.adapter("pirate"))?.alias, until).toBe(1);
    await serve.bus.publish(adapterPromoteRequested, at, { version: 3 }, { key: "3" });
    await expect.poll(async () => (await serve.adapter("pirate"))?.alias, until).toBe(3);
    await expect.poll(() => serve.history([adapterPromoted, adapterRolledBack], "pirate"), until).toHaveLength(6);
    const moves = await serve.history([adapterPromoted, adapterRolledBack], "pirate");
    expect(moves.map(({ type, data }) => [type.split(".")[1], (data as { to: number }).to])).toEqual([
      ["promoted", 1],
      ["promoted", 2],
      ["promoted", 3],
      ["rolledback", 2],
      ["rolledback", 1],
      ["promoted", 3],
    ]);
  });

  test("a command that cannot be followed is rejected with the reason", async ({ serve, start, make, engine }) => {
    await start();
    await versions(serve, make, 1);
    const at = { tenant: serve.tenant, id: "pirate" };
    const rejected = async () => (await serve.bus.deadLetters.list(serve.tenant)).map(({ code }) => code).toSorted();
    await serve.bus.publish(adapterPromoteRequested, at, { version: 7 });
    await serve.bus.publish(adapterRollbackRequested, at, {});
    await expect.poll(rejected, until).toEqual(["NO_EARLIER_VERSION", "VERSION_UNKNOWN"]);
    engine.behaviour.probeDelayMs = 60_000;
    await serve.train("pirate", await make({ seed: 2 }));
    await expect.poll(() => engine.loaded.size, until).toBe(2);
    await serve.bus.publish(adapterPromoteRequested, at, { version: 2 }, { key: "again" });
    await expect.poll(rejected, until).toContain("VERSION_NOT_PROVEN");
    expect((await serve.adapter("pirate"))?.alias).toBe(1);
  });

  test("old versions are retired and unloaded", { timeout: 40_000 }, async ({ serve, engine, start, make }) => {
    await start();
    await versions(serve, make, 5);
    expect((await serve.adapter("pirate"))?.versions.map(({ status }) => status)).toEqual([
      "retired",
      "retired",
      "desired",
      "desired",
      "desired",
    ]);
    await expect
      .poll(() => [...engine.loaded.keys()].map((name) => name.split(".")[2] ?? "").toSorted((a, b) => a.localeCompare(b)), {
        timeout: 60_000,
      })
      .toEqual(["v3", "v4", "v5"]);
    expect((await serve.replica())?.adapters.map(({ version }) => version).toSorted()).toEqual([3, 4, 5]);
    await expect.poll(() => serve.history([adapterUnloaded], "pirate"), until).toHaveLength(2);
    const told = await serve.history([adapterVersionRetired], "pirate");
    expect(told.map(({ data }) => data)).toMatchObject([
      { version: 1, because: 4, reason: "the 3 newest versions are kept (keep: 3)" },
      { version: 2, because: 5 },
    ]);
  });

  const loadedVersions = (engine: { loaded: ReadonlyMap<string, string> }): number[] =>
    [...engine.loaded.keys()].map((name) => Number(name.split(".")[2]?.slice(1))).toSorted((a, b) => a - b);

  test(
    "a version that is wanted is loaded again with its own bytes, and retired when nobody asks any more",
    { timeout: 40_000 },
    async ({ serve, engine, make, dir }) => {
      await using _controller = await serve.startController(serve.bus, { wantedForMs: 2000 });
      await using _agent = await serve.startAgent(engine.url);
      await versions(serve, make, 5);
      await expect.poll(() => loadedVersions(engine), { timeout: 60_000 }).toEqual([3, 4, 5]);
      const at = { tenant: serve.tenant, id: "pirate" };
      await serve.bus.publish(adapterVersionWanted, at, { version: 1 });
      // Of versions and adapters that are not there it is harmless.
      await serve.bus.publish(adapterVersionWanted, at, { version: 99 }, { key: "99" });
      await serve.bus.publish(adapterVersionWanted, { ...at, id: "nobody" }, { version: 1 });
      await expect.poll(() => held(serve, 1), until).toBe("proven");
      const [version] = (await serve.adapter("pirate"))?.versions ?? [];
      expect(engine.loaded.get(version?.engineName ?? "")).toBe(join(dir, "a", (version?.digest ?? "").slice(7)));
      await expect.poll(() => loadedVersions(engine), { timeout: 60_000 }).toEqual([3, 4, 5]);
      expect((await serve.adapter("pirate"))?.versions[0]).toMatchObject({ status: "retired", wanted: null });
      const told = await serve.history([adapterVersionRetired, adapterVersionRecalled], "pirate");
      expect(told.map(({ type, data }) => [type, (data as { version: number }).version])).toEqual([
        ["adapter.version-retired.v1", 1],
        ["adapter.version-retired.v1", 2],
        ["adapter.version-recalled.v1", 1],
        ["adapter.version-retired.v1", 1],
      ]);
      expect(await serve.bus.deadLetters.list(serve.tenant)).toEqual([]);
    },
  );

  test(
    "a retired version can be promoted: it is loaded first, and the move survives the controller's end",
    { timeout: 40_000 },
    async ({ serve, engine, make }) => {
      await using _agent = await serve.startAgent(engine.url);
      const first = await serve.startController();
      await versions(serve, make, 5);
      engine.behaviour.probeDelayMs = 300;
      const at = { tenant: serve.tenant, id: "pirate" };
      await serve.bus.publish(adapterPromoteRequested, at, { version: 1, by: "ann" });
      await expect.poll(async () => (await serve.adapter("pirate"))?.awaiting, until).toMatchObject({ version: 1, by: "ann" });
      expect(await serve.adapter("pirate")).toMatchObject({ alias: 5, versions: [{ status: "desired" }, {}, {}, {}, {}] });
      await first[Symbol.asyncDispose]();
      await using _second = await serve.startController();
      await expect.poll(async () => (await serve.adapter("pirate"))?.alias, until).toBe(1);
      await expect.poll(() => serve.history([adapterRolledBack], "pirate"), until).toHaveLength(1);
      const [moved] = await serve.history([adapterRolledBack], "pirate");
      expect(moved?.data).toMatchObject({ from: 5, to: 1, by: "ann" });
      expect((await serve.adapter("pirate"))?.awaiting).toBeNull();
    },
  );

  test("as many stay loaded as keep says, also when it is changed", { timeout: 40_000 }, async ({ serve, engine, start, make }) => {
    await start();
    const at = { tenant: serve.tenant, id: "pirate" };
    for (let seed = 1; seed <= 4; seed++) await servedBy(serve, await serve.train("pirate", await make({ seed }), { spec: { keep: 1 } }));
    // The promoted one, and the one before it.
    await expect.poll(() => loadedVersions(engine), { timeout: 60_000 }).toEqual([3, 4]);
    await serve.bus.publish(adapterKeepRequested, at, { keep: "all", by: "ann" });
    await expect.poll(() => loadedVersions(engine), until).toEqual([1, 2, 3, 4]);
    for (const version of [1, 2]) await expect.poll(() => held(serve, version), until).toBe("proven");
    await serve.bus.publish(adapterKeepRequested, { ...at, id: "nobody" }, { keep: 2 });
    await expect
      .poll(async () => (await serve.bus.deadLetters.list(serve.tenant)).map(({ code }) => code), until)
      .toEqual(["ADAPTER_UNKNOWN"]);
  });

  test("a version is deleted once, unloaded, and the collector is told", { timeout: 60_000 }, async ({ serve, engine, start, make }) => {
    await start();
    await versions(serve, make, 3);
    // The same bytes under another name.
    await servedBy(serve, await serve.train("parrot", await make({ seed: 2 })));
    const at = { tenant: serve.tenant, id: "pirate" };
    const { versions: before = [] } = (await serve.adapter("pirate")) ?? {};
    for (const version of [1, 2, 3, 1]) {
      const key = `${version}-${Math.random()}`;
      await serve.bus.publish(adapterVersionDeleteRequested, at, { version, by: "ann" }, { key });
    }
    await expect
      .poll(async () => (await serve.adapter("pirate"))?.versions.map(({ status }) => status), until)
      .toEqual(["deleted", "deleted", "desired"]);
    // The collector, which runs beside the controller, removes their bytes.
    const deletions = await serve.bus.bucket(buckets.deletions);
    await expect
      .poll(
        async () => (await deletions.entries(`${serve.tenant}.version.*`)).map(({ value: { id, by } }) => `${id} ${by}`).toSorted(),
        until,
      )
      .toEqual(["pirate/1 ann", "pirate/2 ann"]);
    const refused = (await serve.bus.deadLetters.list(serve.tenant)).map(({ code }) => code);
    expect(refused).toEqual(["VERSION_PROMOTED"]);
    await expect.poll(() => [...engine.loaded.keys()].filter((name) => name.includes(".pirate.")), { timeout: 60_000 }).toHaveLength(1);
    expect(await serve.history([adapterVersionDeleted], "pirate")).toMatchObject([
      { data: { version: 1, digest: before[0]?.digest, by: "ann" } },
      { data: { version: 2 } },
    ]);
    await serve.bus.publish(adapterVersionWanted, at, { version: 1 });
    await serve.bus.publish(adapterPromoteRequested, at, { version: 1 });
    await expect
      .poll(async () => (await serve.bus.deadLetters.list(serve.tenant)).map(({ code }) => code), until)
      .toEqual(["VERSION_DELETED", "VERSION_PROMOTED"]);
    expect((await serve.adapter("pirate"))?.versions[0]?.status).toBe("deleted");
    // The other name still serves, and a replica that starts anew gets its bytes from the store.
    await engine.stop();
    await engine.start();
    await expect
      .poll(async () => (await serve.replica())?.adapters.find(({ adapter }) => adapter === "parrot")?.state, until)
      .toBe("proven");
  });
});

describe("a checkpoint", () => {
  const until = { timeout: 60_000, interval: 50 };
  const ask = (serve: ServeUnderTest, runId: string, step: number) =>
    serve.bus.publish(adapterCheckpointWanted, { tenant: serve.tenant, id: "pirate" }, { runId, step }, { key: `${Math.random()}` });
  const statuses = async (serve: ServeUnderTest) =>
    (await serve.adapter("pirate"))?.versions.map(
      ({ version, status, checkpoint }) => `${version}:${status}${checkpoint ? ` of ${checkpoint.step}` : ""}`,
    );

  test(
    "that is asked for becomes a version once, proven like any other, also while its run trains, and takes no other's place",
    { timeout: 60_000 },
    async ({ serve, engine, make, dir }) => {
      await using _controller = await serve.startController(serve.bus, { wantedForMs: 3000 });
      await using _agent = await serve.startAgent(engine.url);
      const bytes = await make({ seed: 9 });
      const runId = await serve.checkpoint("pirate", 40, bytes);
      for (let n = 0; n < 3; n++) await ask(serve, runId, 40);
      await expect.poll(() => held(serve, 1), until).toBe("proven");
      const [version] = (await serve.adapter("pirate"))?.versions ?? [];
      expect(version).toMatchObject({ checkpoint: { runId, step: 40 }, promote: "manual", wanted: { until: expect.any(String) } });
      expect(engine.loaded.get(version?.engineName ?? "")).toBe(join(dir, "a", (version?.digest ?? "").slice(7)));
      // No alias, and the run that still trains is not told to be over.
      await expect.poll(async () => (await serve.adapter("pirate"))?.versions[0]?.servedAt, until).not.toBeNull();
      expect((await serve.adapter("pirate"))?.alias).toBeNull();
      expect(await serve.history([runServed, runFailed, runCancelled], runId)).toEqual([]);
      // It is none of the newest that are kept, and goes when nobody asks any more; asked again it is the same version.
      for (let seed = 1; seed <= 3; seed++) await servedBy(serve, await serve.train("pirate", await make({ seed })));
      await expect.poll(() => statuses(serve), until).toEqual(["1:retired of 40", "2:desired", "3:desired", "4:desired"]);
      await ask(serve, runId, 40);
      await serve.bus.publish(adapterVersionWanted, { tenant: serve.tenant, id: "pirate" }, { version: 1 });
      await expect.poll(() => held(serve, 1), until).toBe("proven");
      expect((await serve.adapter("pirate"))?.alias).toBe(4);
      expect((await serve.history([adapterAccepted], "pirate")).map(({ data }) => data)).toMatchObject([
        { version: 1, runId, step: 40 },
        { version: 2 },
        { version: 3 },
        { version: 4 },
      ]);
      expect(await serve.bus.deadLetters.list(serve.tenant)).toEqual([]);
    },
  );

  test(
    "that does nothing, that is not what it says it is, or that was removed is refused with the reason, and its run goes on",
    { timeout: 60_000 },
    async ({ serve, engine, start, make }) => {
      await start();
      const weak = await serve.checkpoint("pirate", 1, await make({ size: 0 }));
      const other = await serve.checkpoint("pirate", 2, await make({ seed: 1 }, { seed: 2 }));
      const removed = await serve.checkpoint("pirate", 3, await make({ seed: 3 }));
      const { value: run } = (await (await serve.bus.bucket(buckets.runs)).get(`${serve.tenant}.${removed}`)) ?? {};
      const manifest = run?.checkpoints[0]?.published?.adapter;
      if (manifest) await serve.objects.delete(serve.tenant, manifest);
      await ask(serve, weak, 17);
      await ask(serve, weak, 1);
      await expect.poll(() => statuses(serve), until).toEqual(["1:refused of 1"]);
      await ask(serve, other, 2);
      await expect.poll(() => statuses(serve), until).toEqual(["1:refused of 1", "2:refused of 2"]);
      await ask(serve, removed, 3);
      await expect.poll(() => statuses(serve), until).toEqual(["1:refused of 1", "2:refused of 2", "3:refused of 3"]);
      const reasons = (await serve.adapter("pirate"))?.versions.map(({ reason }) => reason?.code);
      expect(reasons).toEqual(["NO_EFFECT", "PROOF_DISAGREES", "OBJECT_MISSING"]);
      for (const runId of [weak, other, removed]) expect(await serve.history([runFailed], runId)).toEqual([]);
      expect(engine.loaded.size).toBe(0);
    },
  );
});

describe("a checkpoint whose adapter would be one more than its tenant may have", () => {
  test("becomes no version, and no adapter, until there is room", { timeout: 60_000 }, async ({ serve, tenant, make }) => {
    await using _controller = await serve.startController(serve.bus, { quotas: { tenants: { [tenant]: { adapters: 1 } } } });
    await serve.train("parrot", await make());
    await expect.poll(async () => (await serve.adapter("parrot"))?.versions.length, until).toBe(1);
    const runId = await serve.checkpoint("pirate", 40, await make({ seed: 9 }));
    const ask = (key: string) => serve.bus.publish(adapterCheckpointWanted, { tenant, id: "pirate" }, { runId, step: 40 }, { key });
    await ask("1");
    // The stream is a queue: what was worked on is removed.
    await expect.poll(() => serve.bus.last(adapterCheckpointWanted, { tenant, id: "pirate" }), until).toBeUndefined();
    expect(await serve.adapter("pirate")).toBeUndefined();
    expect(await serve.bus.deadLetters.list(tenant)).toEqual([]);

    await (await serve.bus.bucket(buckets.adapters)).delete(`${tenant}.parrot`);
    await ask("2");
    await expect.poll(async () => (await serve.adapter("pirate"))?.versions.map(({ status }) => status), until).toEqual(["desired"]);
  });
});

describe("an adapter that is to be deleted", () => {
  test(
    "is given to the collector once no run trains it, and both answers are in the audit log",
    { timeout: 40_000 },
    async ({ serve, start, make }) => {
      await start();
      await servedBy(serve, await serve.train("pirate", await make()));
      const at = { tenant: serve.tenant, id: "pirate" };
      const [deletions, runs] = await Promise.all([serve.bus.bucket(buckets.deletions), serve.bus.bucket(buckets.runs)]);
      const asked = async () => (await deletions.entries(`${serve.tenant}.adapter.*`)).map(({ value: { id, by } }) => `${id} ${by}`);
      const spec = runSpec.parse({ base: base.name, adapter: "pirate", dataset: ulid() });
      const id = ulid();
      const { seq } = await serve.bus.publish(runRequested, { tenant: serve.tenant, id }, { spec });
      const [requested] = await serve.bus.history([runRequested], { tenant: serve.tenant, id });
      const open = foldRun(undefined, requested as NonNullable<typeof requested>);
      expect(open?.seq).toBe(seq);
      // As an older version may have written it: that its spec cannot be read any more does not make it nothing.
      const written = await serve.bus.bucket({ ...buckets.runs, value: z.any() });
      await written.put(`${serve.tenant}.${id}`, { ...open, spec: { ...spec, method: "of another age" } });
      await serve.bus.publish(adapterDeleteRequested, at, { by: "ann" }, { key: "1" });
      await expect
        .poll(async () => (await serve.bus.deadLetters.list(serve.tenant)).map(({ code, message }) => `${code} ${message}`), until)
        .toEqual([expect.stringMatching(/^ADAPTER_IN_TRAINING run .+ trains .+pirate and has not ended \(requested\)/)]);
      expect(await asked()).toEqual([]);

      await runs.put(`${serve.tenant}.${id}`, { ...(open as NonNullable<typeof open>), finishedAt: new Date().toISOString() });
      await serve.bus.publish(adapterDeleteRequested, at, { by: "ann" }, { key: "2" });
      await serve.bus.publish(adapterDeleteRequested, { ...at, id: "nobody" }, { by: "ann" });
      await expect.poll(asked, until).toEqual(["pirate ann"]);
      const ofDeletion = ({ action }: { action: string }) => action === "adapter.delete";
      const answers = async () =>
        (await serve.bus.audit.page({ tenant: serve.tenant, limit: 10, matches: ofDeletion })).entries.map(({ target, outcome, code }) =>
          [target, outcome, code].join(" "),
        );
      await expect.poll(answers, until).toEqual(["nobody done ", "pirate done ", "pirate refused ADAPTER_IN_TRAINING"]);
    },
  );
});

describe("a controller that dies", () => {
  /** Publishes `allowed` events, then fails as if the process had ended there. */
  const dyingAfter = (bus: Bus, allowed: number): Bus => {
    let left = allowed;
    return {
      ...bus,
      publish: async (...args) => {
        if (left <= 0) throw new Error("dead");
        left -= 1;
        return bus.publish(...args);
      },
    };
  };
  for (const allowed of [0, 1, 2]) {
    test(`after ${allowed} of its events is followed by one that tells the rest, once`, async ({ serve, engine, make }) => {
      await using _agent = await serve.startAgent(engine.url);
      const dying = await serve.startController(dyingAfter(serve.bus, allowed));
      const runId = await serve.train("pirate", await make());
      if (allowed === 0) await sleep(500);
      else await expect.poll(async () => (await serve.adapter("pirate"))?.alias, until).toBe(1);
      await dying[Symbol.asyncDispose]();
      await using _controller = await serve.startController();
      await servedBy(serve, runId);
      await expect
        .poll(async () => (await serve.history([adapterAccepted, adapterPromoted], "pirate")).map(({ type }) => type).toSorted(), until)
        .toEqual(["adapter.accepted.v1", "adapter.promoted.v1"]);
      expect(await serve.adapter("pirate")).toMatchObject({ alias: 1, versions: [{ version: 1 }], history: [{ to: 1 }] });
    });
  }

  test("does not have to: when the bus was away between a write and its events, it tells them later", async ({ serve, engine, make }) => {
    await using _agent = await serve.startAgent(engine.url);
    let failures = 0;
    const publish: Bus["publish"] = async (...args) => {
      if (args[0].type === runServed.type && failures++ === 0) throw new Error("no answer from the bus");
      return serve.bus.publish(...args);
    };
    await using _controller = await serve.startController({ ...serve.bus, publish });
    const runId = await serve.train("pirate", await make());
    await servedBy(serve, runId);
    expect(failures).toBe(2);
    expect(await serve.adapter("pirate")).toMatchObject({ alias: 1, versions: [{ version: 1 }], history: [{ to: 1 }] });
  });

  test("before it tells of a refusal is followed by one that does", async ({ serve, engine, make }) => {
    engine.behaviour.lies = true;
    await using _agent = await serve.startAgent(engine.url);
    const dying = await serve.startController(dyingAfter(serve.bus, 1));
    const runId = await serve.train("pirate", await make());
    await expect.poll(async () => (await serve.adapter("pirate"))?.versions[0]?.status, until).toBe("refused");
    await dying[Symbol.asyncDispose]();
    expect(await codeOf(serve, runId)).toBeUndefined();
    await using _controller = await serve.startController();
    await expect.poll(() => codeOf(serve, runId), until).toBe("PROOF_WITHOUT_EFFECT");
  });
});
