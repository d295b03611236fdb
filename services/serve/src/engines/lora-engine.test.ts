/** The port's promises, on a simulated engine of each kind. Real engines keep the same ones: see the kind's own folder. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EngineKindName } from "@loraline/contracts";
import { createSimulatedEngine, simulatedAdapter, type SimulatedEngine } from "@loraline/testkit";
import { describe, expect, it as base } from "vitest";
import { askWithSalts, expectItKeepsTheContract, expectItParsesToolCalls, saltedRequests } from "./contract-under-test.ts";
import { engines } from "./table.ts";

const key = "between-agent-and-engine";
/** A kind of engine comes with a simulated one that speaks as it does. */
const simulated: Record<EngineKindName, (more?: { toolCallParser: string }) => Promise<SimulatedEngine>> = {
  vllm: (more) => createSimulatedEngine({ base: "tiny", apiKey: key, ...more }),
};

const it = base.extend<{ adapter: string }>({
  adapter: async ({}, use) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-contract-"));
    const adapter = join(dir, "adapter");
    const { config, weights } = simulatedAdapter({ base: "tiny", seed: 1 });
    await mkdir(adapter);
    await writeFile(join(adapter, "adapter_config.json"), config);
    await writeFile(join(adapter, "adapter_model.safetensors"), weights);
    await use(adapter);
    await rm(dir, { recursive: true, force: true });
  },
});

describe.each(Object.keys(engines) as EngineKindName[])("an engine of kind %s", (kind) => {
  it("keeps the contract", async ({ adapter }) => {
    await using process = await simulated[kind]();
    process.behaviour.presents = [1, 2, 3];
    using engine = engines[kind].connect({ url: process.url, apiKey: key });
    expect(engine.product).toBe(engines[kind].product);
    await expectItKeepsTheContract({ engine, base: "tiny", adapter });
  });

  it("keeps the caches of different salts apart, and shares those of equal ones", async () => {
    await using process = await simulated[kind]();
    expect(await askWithSalts({ url: process.url, key, model: "tiny" })).toEqual(saltedRequests);
  });

  it("finds calls of tools in answers where it was started with a parser, and refuses tools otherwise", async () => {
    await using process = await simulated[kind]({ toolCallParser: "hermes" });
    await expectItParsesToolCalls({ url: process.url, key, model: "tiny" });
    await using other = await simulated[kind]();
    await expect(expectItParsesToolCalls({ url: other.url, key, model: "tiny" })).rejects.toThrow("400");
  });

  it("is another incarnation after a restart, and holds nothing", async ({ adapter }) => {
    await using process = await simulated[kind]();
    using engine = engines[kind].connect({ url: process.url, apiKey: key });
    const before = await engine.incarnation();
    await engine.load("x.y.v1.000000000000", adapter);
    const connections = engine.connections();
    expect(await engine.incarnation()).toBe(before);
    expect(engine.connections()).toBe(connections);
    await process.stop();
    expect(await engine.health()).toBe("away");
    await expect(engine.listModels()).rejects.toMatchObject({ name: "EngineUnknownError", gone: true });
    expect(await engine.load("x.y.v1.000000000000", adapter)).toMatchObject({ kind: "unknown" });
    await process.start();
    expect(await engine.incarnation()).not.toBe(before);
    expect(engine.connections()).toBeGreaterThan(connections);
    expect((await engine.listModels()).map(({ name }) => name)).toEqual(["tiny"]);
  });

  it("says how it has to be started when it cannot load adapters", async ({ adapter }) => {
    await using process = await simulated[kind]();
    process.behaviour.loadingOff = true;
    using engine = engines[kind].connect({ url: process.url, apiKey: key });
    expect(await engine.load("x.y.v1.000000000000", adapter)).toMatchObject({ kind: "feature-off", message: /Start it with/ });
  });

  it("tells that it asks for another key, which says nothing about what it holds", async ({ adapter }) => {
    await using process = await simulated[kind]();
    using engine = engines[kind].connect({ url: process.url });
    await expect(engine.listModels()).rejects.toMatchObject({ name: "EngineUnknownError", unauthorized: true });
    expect(await engine.load("x.y.v1.000000000000", adapter)).toMatchObject({ kind: "unknown" });
  });
});
