/** What every LoraEngine promises: asked of simulated engines of each kind (lora-engine.test.ts), and of real ones in each kind's folder. */
import { expect } from "vitest";
import type { LoraEngine } from "./lora-engine.ts";

interface EngineToTry {
  /** A client of an engine that runs and holds no adapters. */
  engine: LoraEngine;
  /** Name of its base. */
  base: string;
  /** Folder of an adapter that the engine can load and that changes what the base says. */
  adapter: string;
}

/** Loads and unloads an adapter, and asks for what the agent, the proof and the set-up ask for. */
export async function expectItKeepsTheContract({ engine, base, adapter }: EngineToTry): Promise<void> {
  const name = "x.y.v1.000000000000";
  const names = async () => (await engine.listModels()).map((model) => model.name);

  expect(await engine.health()).toBe("ready");
  const incarnation = await engine.incarnation();
  expect(incarnation).not.toBe("");
  expect(await engine.listModels()).toEqual([{ name: base, path: expect.any(String), isLora: false }]);

  expect(await engine.load(name, "/not/there")).toMatchObject({ kind: "refused", message: expect.any(String) });
  expect(await engine.unload(name)).toMatchObject({ kind: "refused" });
  expect(await names()).toEqual([base]);

  expect(await engine.load(name, adapter)).toEqual({ kind: "done" });
  expect(await engine.load(name, adapter)).toEqual({ kind: "already-loaded" });
  expect(await engine.listModels()).toContainEqual({ name, path: adapter, isLora: true });

  const prompts = [
    [5, 6, 7],
    [8, 9],
  ];
  const tokens = Array.from({ length: engine.maxLogprobTokens }, (_, id) => id + 10);
  const ofBase = await engine.nextTokenLogprobs(base, prompts, tokens);
  const ofAdapter = await engine.nextTokenLogprobs(name, prompts, tokens);
  expect(ofBase.map((logprobs) => [...logprobs.keys()])).toEqual([tokens, tokens]);
  for (const logprobs of [...ofBase, ...ofAdapter]) for (const logprob of logprobs.values()) expect(Number.isFinite(logprob)).toBe(true);
  expect(ofBase[0]).not.toEqual(ofBase[1]);
  expect(ofAdapter[0]).not.toEqual(ofBase[0]);
  await expect(engine.nextTokenLogprobs("nobody", prompts, tokens)).rejects.toMatchObject({ name: "EngineRefusedError" });

  const ids = await engine.renderTemplate(base, [{ role: "user", content: "Hi" }]);
  expect(ids.length).toBeGreaterThan(0);
  expect(await engine.detokenize(base, ids)).not.toBe("");

  expect(await engine.unload(name)).toEqual({ kind: "done" });
  expect(await names()).toEqual([base]);
  expect(await engine.incarnation()).toBe(incarnation);
}
