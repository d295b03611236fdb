/** When a replica counts as ready for Kubernetes, how it leaves, and the key between agent and engine. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type BaseRef, buckets } from "@loraline/contracts";
import { createSimulatedEngine, simulatedAdapter, simulatedProbes, test as it } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { serveUnderTest } from "../serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };
const until = { timeout: 60_000, interval: 20 };

const test = it.extend("line", async ({ nc, tenant }, { onCleanup }) => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const dir = await mkdtemp(join(tmpdir(), "loraline-leaving-"));
  owned.defer(() => rm(dir, { recursive: true, force: true }));
  const serve = owned.use(await serveUnderTest({ nc, tenant, dir, base }));
  owned.use(await serve.startController());
  const traffic = await serve.bus.bucket(buckets.traffic);
  const gateways: string[] = [];
  owned.defer(async () => {
    for (const gateway of gateways) await traffic.delete(gateway);
  });
  return {
    serve,
    use: <T extends AsyncDisposable>(resource: T): T => owned.use(resource),
    async train(adapter: string, seed: number) {
      const options = { base: base.name, seed };
      await serve.train(adapter, { ...simulatedAdapter(options), probes: await simulatedProbes(join(dir, "scratch"), options) });
    },
    /** What a gateway says. */
    async report(gateway: string, inFlight: Record<string, number>) {
      gateways.push(gateway);
      await traffic.put(gateway, {
        gateway,
        at: new Date().toISOString(),
        windowMs: 60_000,
        engines: [
          {
            engineName: base.name,
            engine: serve.engine,
            inFlight,
            total: { requests: 1, errors: 0, firstByteMs: 1, promptTokens: 1, completionTokens: 1 },
            window: { requests: 1, firstByteP50Ms: 1, firstByteP95Ms: 1 },
          },
        ],
      });
    },
  };
});

describe("a replica is ready", () => {
  test("once everything is proven that was wanted when its engine began; what comes later takes nobody out", async ({ line }) => {
    const { serve } = line;
    const first = line.use(await createSimulatedEngine({ base: base.name }));
    const a = line.use(await serve.startAgent(first.url, { replica: "a" }));
    await expect.poll(() => a.unready(), until).toBeUndefined(); // nothing is wanted
    await line.train("pirate", 1);
    await expect.poll(() => first.loaded.size, until).toBe(1);

    const second = line.use(await createSimulatedEngine({ base: base.name }));
    second.behaviour.loadDelayMs = 700;
    const b = line.use(await serve.startAgent(second.url, { replica: "b" }));
    await expect.poll(async () => (await serve.replica("b"))?.ready, until).toBe(true); // it may be asked for the base
    expect(b.unready()).toMatch(/1 of 1 adapters are not proven yet: \S+\.pirate\.v1/);
    await expect.poll(() => b.unready(), until).toBeUndefined();
    expect((await serve.replica("b"))?.adapters).toMatchObject([{ state: "proven" }]);

    await line.train("poet", 2);
    for (let seen = false; !seen; await sleep(20)) {
      expect(b.unready()).toBeUndefined();
      seen = second.loaded.size === 2;
    }

    // The process died in its container: another one begins with nothing.
    await second.stop();
    await expect.poll(() => b.unready(), until).toBe("vLLM does not answer yet");
    await expect.poll(async () => (await serve.replica("b"))?.ready, until).toBe(false);
    await second.start();
    await expect.poll(() => b.unready(), until).toMatch(/2 of 2 adapters/);
    await expect.poll(() => b.unready(), until).toBeUndefined();
  });

  test("although one adapter cannot be loaded there: it is told, and the others are served", async ({ line }) => {
    const { serve } = line;
    await line.train("pirate", 1);
    const good = line.use(await createSimulatedEngine({ base: base.name }));
    const a = line.use(await serve.startAgent(good.url, { replica: "a" }));
    await expect.poll(async () => (await serve.adapter("pirate"))?.alias, until).toBe(1);
    expect(a.unready()).toBeUndefined();
    const engine = line.use(await createSimulatedEngine({ base: base.name }));
    engine.behaviour.lies = true;
    const b = line.use(await serve.startAgent(engine.url, { replica: "b" }));
    await expect.poll(() => b.unready(), until).toBeUndefined();
    await expect.poll(async () => (await serve.replica("b"))?.adapters, until).toMatchObject([{ state: "refused" }]);
  });
});

describe("a replica that is about to end", () => {
  test("takes no more requests at once, and waits until every gateway says that none is in flight", async ({ line }) => {
    const { serve } = line;
    const engine = line.use(await createSimulatedEngine({ base: base.name }));
    const agent = line.use(await serve.startAgent(engine.url));
    await expect.poll(() => agent.unready(), until).toBeUndefined();
    await line.report("g1", { a: 1 });
    await line.report("g2", {});
    let what: string | undefined;
    void agent.drain().then((said) => (what = said));
    await expect.poll(async () => (await serve.replica())?.ready, until).toBe(false);
    expect(await serve.replica()).toMatchObject({ problem: { code: "LEAVING" } });
    expect(agent.unready()).toBe("it is about to end");
    await sleep(1100);
    await line.report("g1", { a: 1 });
    await line.report("g2", {});
    await sleep(300);
    expect(what).toBeUndefined();
    await line.report("g1", { other: 3 });
    await expect.poll(() => what, until).toMatch(/^no request is in flight/);

    // The probe of a hung engine ended only the container: what comes up in it is served from again.
    await engine.stop();
    await engine.start();
    await expect.poll(() => agent.unready(), until).toBeUndefined();
    await expect.poll(async () => (await serve.replica())?.ready, until).toBe(true);
  });

  test("does not wait for ever, neither for a request nor for a gateway that says nothing", async ({ line }) => {
    const engine = line.use(await createSimulatedEngine({ base: base.name }));
    const agent = line.use(await line.serve.startAgent(engine.url, { leave: { unknownMs: 400, mostMs: 1500 } }));
    await expect.poll(() => agent.unready(), until).toBeUndefined();
    await line.report("g1", { a: 1 });
    expect(await agent.drain()).toMatch(/says nothing/);

    const second = line.use(await line.serve.startAgent(engine.url, { replica: "b", leave: { unknownMs: 5000, mostMs: 1500 } }));
    await expect.poll(() => second.unready(), until).toBeUndefined();
    const saying = setInterval(() => void line.report("g1", { b: 1 }), 200);
    expect(await second.drain()).toMatch(/still in flight/);
    clearInterval(saying);
  });

  test("does not keep an engine waiting that answers nobody", async ({ line }) => {
    const engine = line.use(await createSimulatedEngine({ base: base.name }));
    const agent = line.use(await line.serve.startAgent(engine.url));
    await expect.poll(() => agent.unready(), until).toBeUndefined();
    await line.report("g1", { a: 1 });
    engine.behaviour.coreDead = true;
    await expect.poll(() => agent.unready(), until).toBeDefined();
    expect(await agent.drain()).toBe("the engine does not answer");
  });
});

describe("the engine's key", () => {
  test("missing or wrong is told as the replica's problem; the right one loads and proves", async ({ line }) => {
    const { serve } = line;
    const engine = line.use(await createSimulatedEngine({ base: base.name, apiKey: "secret" }));
    await line.train("pirate", 1);
    for (const [engineKey, why] of [
      [undefined, /none was sent/],
      ["other", /refuses the one that was sent/],
    ] as const) {
      await using agent = await serve.startAgent(engine.url, { engineKey });
      const problem = async () => (await serve.replica())?.problem;
      await expect.poll(problem, until).toMatchObject({ code: "ENGINE_KEY_REFUSED", message: expect.stringMatching(why) });
      expect((await serve.replica())?.ready).toBe(false);
      expect(agent.unready()).toMatch(/VLLM_API_KEY/);
    }
    const agent = line.use(await serve.startAgent(engine.url, { engineKey: "secret" }));
    await expect.poll(() => agent.unready(), until).toBeUndefined();
    expect(await serve.replica()).toMatchObject({ ready: true, problem: null, adapters: [{ state: "proven" }] });
  });
});
