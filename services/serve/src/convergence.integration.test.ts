/** Several replicas of one engine, and what happens when one of them, or one adapter, is trouble. */
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { adapterPlaceRequested, type BaseRef, buckets, type Placement, runFailed, runServed, replicaKey } from "@loraline/contracts";
import {
  createSimulatedEngine,
  simulatedAdapter,
  type SimulatedAdapterOptions,
  type SimulatedEngine,
  simulatedProbes,
  test as it,
} from "@loraline/testkit";
import { describe, expect } from "vitest";
import type { AgentServiceDeps } from "./agent/service.ts";
import { createServeService } from "./controller/service.ts";
import { type AdapterBytes, type ServeUnderTest, serveUnderTest } from "./serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };
const until = { timeout: 60_000, interval: 20 };

interface Fleet extends AsyncDisposable {
  serve: ServeUnderTest;
  engines: Record<string, SimulatedEngine>;
  agents: Record<string, AsyncDisposable>;
  add(replica: string, over?: Partial<AgentServiceDeps>): Promise<SimulatedEngine>;
  bytes(over?: Partial<SimulatedAdapterOptions>): Promise<AdapterBytes>;
  /** Short names, `pirate.v1`, that an engine has loaded. */
  loaded(replica: string): string[];
  /** What a replica says about the only version of an adapter. */
  held(replica: string, adapter: string): Promise<{ state: string; error: { code: string } | null } | undefined>;
  served(runId: string): Promise<Record<string, unknown>>;
  place(adapter: string, placement: Placement): Promise<void>;
  dir: string;
}

const test = it.extend("fleet", async ({ nc, tenant }, { onCleanup }) => {
  return async (names: readonly string[], options: { maxCpuLoras?: number; agent?: Partial<AgentServiceDeps> } = {}): Promise<Fleet> => {
    const owned = new AsyncDisposableStack();
    const dir = await mkdtemp(join(tmpdir(), "loraline-fleet-"));
    owned.defer(() => rm(dir, { recursive: true, force: true }));
    const serve = owned.use(await serveUnderTest({ nc, tenant, dir, base, ...options }));
    owned.use(await serve.startController());
    const engines: Fleet["engines"] = {};
    const agents: Fleet["agents"] = {};
    const fleet: Fleet = {
      serve,
      engines,
      agents,
      dir,
      async add(replica, over = {}) {
        const engine = owned.use(await createSimulatedEngine({ base: base.name }));
        engines[replica] = engine;
        agents[replica] = owned.use(await serve.startAgent(engine.url, { replica, ...options.agent, ...over }));
        await expect.poll(async () => (await serve.replica(replica))?.ready, until).toBe(true);
        return engine;
      },
      bytes: async (over = {}) => ({
        ...simulatedAdapter({ base: base.name, ...over }),
        probes: await simulatedProbes(join(dir, "scratch"), { base: base.name, ...over }),
      }),
      loaded: (replica) => [...(engines[replica]?.loaded.keys() ?? [])].map((name) => name.split(".").slice(1, 3).join(".")).toSorted(),
      held: async (replica, adapter) => (await serve.replica(replica))?.adapters.find((each) => each.adapter === adapter),
      async served(runId) {
        await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
        return (await serve.history([runServed], runId))[0]?.data as Record<string, unknown>;
      },
      async place(adapter, placement) {
        await serve.bus.publish(adapterPlaceRequested, { tenant, id: adapter }, { placement }, { key: JSON.stringify(placement) });
      },
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
    onCleanup(() => fleet[Symbol.asyncDispose]());
    for (const name of names) await fleet.add(name);
    return fleet;
  };
});

describe("one replica's trouble", () => {
  test("is its own: the version is served on the others, and the reason can be read", { timeout: 30_000 }, async ({ fleet }) => {
    const { engines, serve, bytes, served, held } = await fleet(["a", "b"]);
    engines["b"]!.behaviour.refuseLoad = () => "CPU out of memory";
    const runId = await serve.train("pirate", await bytes());
    expect(await served(runId)).toMatchObject({ replicas: 1, of: 2 });
    expect(await held("b", "pirate")).toMatchObject({
      state: "quarantined",
      error: { code: "ENGINE_REFUSED", message: expect.stringContaining("CPU out of memory") },
    });
    await expect.poll(async () => (await serve.replica("b"))?.counts, until).toMatchObject({ wanted: 1, quarantined: 1 });
    // A new process is a new chance.
    engines["b"]!.behaviour.refuseLoad = undefined;
    await engines["b"]!.stop();
    await engines["b"]!.start();
    await expect.poll(async () => (await held("b", "pirate"))?.state, until).toBe("proven");
  });

  test("an engine that applies nothing refuses for itself, not for those that do", async ({ fleet }) => {
    const { engines, serve, bytes, served, held } = await fleet(["a", "b"]);
    engines["b"]!.behaviour.lies = true;
    expect(await served(await serve.train("pirate", await bytes()))).toMatchObject({ replicas: 1, of: 2 });
    expect(await held("b", "pirate")).toMatchObject({ state: "refused", error: { code: "PROOF_WITHOUT_EFFECT" } });
    await expect.poll(() => engines["b"]!.loaded.size, until).toBe(0);
  });

  test("what the files say is refused at once, while another replica is still at it", async ({ fleet }) => {
    const { engines, serve, bytes } = await fleet(["a", "b"]);
    engines["b"]!.behaviour.hangLoad = () => true;
    const { config, weights } = simulatedAdapter({ base: base.name, size: Number.NaN });
    const runId = await serve.train("pirate", { ...(await bytes()), config, weights });
    await expect.poll(async () => (await serve.history([runFailed], runId))[0]?.data, until).toMatchObject({ code: "ADAPTER_NAN" });
  });
});

describe("one adapter's trouble", () => {
  test("does not delay others, even when it takes every place at work", { timeout: 30_000 }, async ({ fleet }) => {
    const { engines, serve, bytes, served } = await fleet(["a"]);
    engines["a"]!.behaviour.hangLoad = (name) => name.includes(".hangs");
    for (let n = 0; n < 6; n++) await serve.train(`hangs-${n}`, await bytes({ seed: 10 + n }));
    await expect.poll(() => engines["a"]!.calls.length, until).toBe(4);
    await served(await serve.train("pirate", await bytes()));
  });

  test("a load without an answer is looked for before it is tried again", async ({ fleet }) => {
    const { engines, serve, bytes, served } = await fleet(["a"], { agent: { loadTimeoutMs: 300 } });
    engines["a"]!.behaviour.loadDelayMs = 900;
    await served(await serve.train("pirate", await bytes()));
    expect(engines["a"]!.calls).toHaveLength(1);
  });

  test("an unload that the engine refuses is told, tried again, and keeps nothing else waiting", { timeout: 30_000 }, async ({ fleet }) => {
    const { engines, serve, bytes, served, held, place, loaded } = await fleet(["a", "b"]);
    await served(await serve.train("pirate", await bytes()));
    engines["b"]!.behaviour.refuseUnload = () => "Failed to remove the adapter from the engine";
    await place("pirate", { mode: "pinned", pins: ["a"] });
    await expect.poll(() => held("b", "pirate"), until).toMatchObject({ state: "draining", error: { code: "UNLOAD_FAILED" } });
    await served(await serve.train("parrot", await bytes({ seed: 2 })));
    engines["b"]!.behaviour.refuseUnload = undefined;
    await expect.poll(() => loaded("b"), until).toEqual(["parrot.v1"]);
    expect(await held("b", "pirate")).toBeUndefined();
  });
});

describe("an unload", () => {
  test("waits for requests in flight on this replica, as gateways tell them", { timeout: 30_000 }, async ({ fleet }) => {
    const { engines, serve, bytes, served, held, place, dir } = await fleet(["a", "b"]);
    await served(await serve.train("pirate", await bytes()));
    const [version] = (await serve.adapter("pirate"))?.versions ?? [];
    const traffic = await serve.bus.bucket(buckets.traffic);
    const total = { requests: 1, errors: 0, firstByteMs: 1, promptTokens: 1, completionTokens: 1 };
    const window = { requests: 1, firstByteP50Ms: 1, firstByteP95Ms: 1 };
    const gateway = `gateway-${serve.tenant}`;
    let inFlight: Record<string, number> = { b: 1 };
    const engineName = version?.engineName ?? "";
    const tell = setInterval(() => {
      const engines_ = [{ engineName, engine: serve.engine, inFlight, total, window }];
      void traffic.put(gateway, { gateway, at: new Date().toISOString(), windowMs: 60_000, engines: engines_ });
    }, 200);
    try {
      await place("pirate", { mode: "pinned", pins: ["a"] });
      await expect.poll(async () => (await held("b", "pirate"))?.state, until).toBe("draining");
      // Longer than a replica waits where no gateway is known.
      await sleep(2500);
      expect(engines["b"]!.loaded.size).toBe(1);
      inFlight = {};
      await expect.poll(() => engines["b"]!.loaded.size, until).toBe(0);
      expect(engines["a"]!.loaded.size).toBe(1);
      // Its files stay for a while: the engine may still read them.
      expect(await readdir(join(dir, "b"))).toHaveLength(1);
    } finally {
      clearInterval(tell);
      await traffic.delete(gateway);
    }
  });
});

describe("an unload by a new agent", () => {
  test("waits for requests that were sent while another agent was there", { timeout: 30_000 }, async ({ fleet }) => {
    const { engines, serve, bytes, served, place, agents } = await fleet(["a", "b"]);
    await served(await serve.train("pirate", await bytes()));
    const [version] = (await serve.adapter("pirate"))?.versions ?? [];
    const traffic = await serve.bus.bucket(buckets.traffic);
    const total = { requests: 1, errors: 0, firstByteMs: 1, promptTokens: 1, completionTokens: 1 };
    const window = { requests: 1, firstByteP50Ms: 1, firstByteP95Ms: 1 };
    const gateway = `gateway-${serve.tenant}`;
    let inFlight: Record<string, number> = { b: 1 };
    const tell = setInterval(() => {
      const engines_ = [{ engineName: version?.engineName ?? "", engine: serve.engine, inFlight, total, window }];
      void traffic.put(gateway, { gateway, at: new Date().toISOString(), windowMs: 60_000, engines: engines_ });
    }, 200);
    try {
      await agents["b"]![Symbol.asyncDispose]();
      // It cannot prove anything before the version is taken away from it.
      engines["b"]!.behaviour.probeDelayMs = 1000;
      await using _next = await serve.startAgent(engines["b"]!.url, { replica: "b" });
      await expect.poll(async () => (await serve.replica("b"))?.ready, until).toBe(true);
      await place("pirate", { mode: "pinned", pins: ["a"] });
      await expect.poll(async () => (await serve.adapter("pirate"))?.versions[0]?.replicas, until).toEqual(["a"]);
      await sleep(4000);
      expect(engines["b"]!.loaded.size).toBe(1);
      inFlight = {};
      await expect.poll(() => engines["b"]!.loaded.size, until).toBe(0);
    } finally {
      clearInterval(tell);
      await traffic.delete(gateway);
    }
  });
});

describe("what is told", () => {
  test("an adapter that somebody else unloaded is not proven any more, however long it takes to load it anew", async ({ fleet }) => {
    const { engines, serve, bytes, served, held } = await fleet(["a"]);
    await served(await serve.train("pirate", await bytes()));
    engines["a"]!.behaviour.hangLoad = () => true;
    const [name] = [...engines["a"]!.loaded.keys()];
    await fetch(`${engines["a"]!.url}/v1/unload_lora_adapter`, { method: "POST", body: JSON.stringify({ lora_name: name }) });
    await expect.poll(async () => (await held("a", "pirate"))?.state, { timeout: 60_000 }).not.toBe("proven");
  });

  test("stays when an agent ends whose place another has taken already", async ({ fleet }) => {
    const { engines, serve, bytes, served, held, agents } = await fleet(["a"]);
    await served(await serve.train("pirate", await bytes()));
    const lastHeartbeat = async (): Promise<string | null | undefined> =>
      (await (await serve.bus.bucket(buckets.replicas)).get(replicaKey({ engine: serve.engine, replica: "a" })))?.value.agent;
    const first = await lastHeartbeat();
    await using _next = await serve.startAgent(engines["a"]!.url, { replica: "a" });
    await expect.poll(lastHeartbeat, until).not.toBe(first);
    await expect.poll(async () => (await held("a", "pirate"))?.state, until).toBe("proven");
    // The first one sees it, and writes no heartbeat any more.
    const heartbeats = async (): Promise<Set<string | null | undefined>> => {
      const seen = new Set<string | null | undefined>();
      for (let looked = 0; looked < 20; looked++) {
        seen.add(await lastHeartbeat());
        await sleep(20);
      }
      return seen;
    };
    await expect.poll(async () => (await heartbeats()).has(first), until).toBe(false);
    await agents["a"]![Symbol.asyncDispose]();
    expect((await held("a", "pirate"))?.state).toBe("proven");
  });

  test("is not cleared away by a controller that was cut off itself", async ({ fleet }) => {
    const { serve, bytes, served, held } = await fleet(["a"]);
    await served(await serve.train("pirate", await bytes()));
    // Its watch of the heartbeats has brought nothing.
    const deaf = {
      ...serve.bus,
      bucket: async (def: Parameters<typeof serve.bus.bucket>[0]) => {
        const bucket = await serve.bus.bucket(def);
        return def !== buckets.replicas ? bucket : { ...bucket, watch: async ({ onReady }: { onReady?(): void }) => onReady?.() };
      },
    } as typeof serve.bus;
    const { objects, log, telemetry } = serve;
    await using _cutOff = await createServeService({
      bus: deaf,
      objects,
      log,
      telemetry,
      engines: [],
      resyncMs: 50,
      replicaGoneMs: 100,
    });
    await sleep(1000);
    expect((await held("a", "pirate"))?.state).toBe("proven");
  });
});

describe("one adapter more", () => {
  test("is told in the same messages, however many there are, and none is about another", { timeout: 60_000 }, async ({ fleet, nc }) => {
    const { serve, bytes, served } = await fleet(["a", "b"], { maxCpuLoras: 64 });
    /** What is stored of the line's state and events meanwhile. */
    const toldOf = async (adapter: string, seed: number): Promise<string[]> => {
      const told = new Set<string>();
      const subscriptions = ["$KV.>", "loraline.>"].map((subject) =>
        nc.subscribe(subject, {
          callback(_error, { subject: of }) {
            // Heartbeats come by themselves, and others use this server, too.
            if (of.includes(serve.tenant) && !of.startsWith(`$KV.${buckets.replicas.name}.`)) told.add(of);
          },
        }),
      );
      const runId = await serve.train(adapter, await bytes({ seed }));
      await served(runId);
      for (const last of ["loaded", "promoted"]) {
        const subject = `loraline.${serve.tenant}.adapter.${adapter}.${last}.v1`;
        await expect.poll(() => [...told], until).toContain(subject);
      }
      for (const subscription of subscriptions) await subscription.drain();
      return [...told].map((subject) => subject.replace(runId, "<run>").replace(adapter, "<adapter>")).toSorted();
    };
    const first = await toldOf("first", 1);
    expect(first.filter((subject) => subject.startsWith(`$KV.${buckets.holdings.name}.`))).toHaveLength(2);
    for (let n = 0; n < 20; n++) await served(await serve.train(`more-${n}`, await bytes({ seed: 2 + n })));
    expect(await toldOf("last", 30)).toEqual(first);
  });
});

describe("more versions than a replica has room for", () => {
  const placed = async (serve: ServeUnderTest, adapters: readonly string[]) =>
    Promise.all(adapters.map(async (name) => (await serve.adapter(name))?.versions[0]));

  test("are spread, served where they are, and move when a replica goes", { timeout: 40_000 }, async ({ fleet }) => {
    const { serve, bytes, served, loaded, agents, add } = await fleet(["a", "b"], { maxCpuLoras: 2 });
    const names = ["one", "two", "three"];
    for (const [seed, name] of names.entries()) await served(await serve.train(name, await bytes({ seed })));
    await expect.poll(async () => (await placed(serve, names)).every((version) => version?.replicas?.length === 1), until).toBe(true);
    await expect.poll(() => [...loaded("a"), ...loaded("b")].toSorted(), until).toEqual(["one.v1", "three.v1", "two.v1"]);

    await add("c");
    await agents["b"]![Symbol.asyncDispose]();
    await expect
      .poll(async () => (await placed(serve, names)).flatMap((version) => version?.replicas ?? []).toSorted(), until)
      .not.toContain("b");
    await expect.poll(() => [...new Set([...loaded("a"), ...loaded("c")])].toSorted(), until).toEqual(["one.v1", "three.v1", "two.v1"]);
    // Until it is let go, a replica has one that moves away beside one that came.
    await expect.poll(() => Math.max(loaded("a").length, loaded("c").length), until).toBe(2);
  });

  test("what fits nowhere says so, and comes when there is room", { timeout: 40_000 }, async ({ fleet }) => {
    const { serve, bytes, served, loaded, add } = await fleet(["a"], { maxCpuLoras: 2 });
    for (const [seed, name] of ["one", "two"].entries()) await served(await serve.train(name, await bytes({ seed })));
    const runId = await serve.train("three", await bytes({ seed: 3 }));
    await expect
      .poll(async () => (await placed(serve, ["three"]))[0], until)
      .toMatchObject({ replicas: [], unplaced: { code: "NO_ROOM", message: expect.stringContaining("max_cpu_loras") } });
    expect(loaded("a")).toEqual(["one.v1", "two.v1"]);
    await add("b");
    await served(runId);
    expect((await placed(serve, ["three"]))[0]).toMatchObject({ replicas: ["b"], unplaced: null });
  });
});
