/** What a proof asks the engine for, and when it asks the base anew. */
import { createHash } from "node:crypto";
import type { BlobRef, ProbeRecord } from "@loraline/contracts";
import { createTelemetry } from "@loraline/runtime";
import { expect, it } from "vitest";
import type { LoraEngine } from "../../engines/lora-engine.ts";
import type { EngineObserver } from "../engine-observer.ts";
import { wantedAdapter } from "../agent-under-test.ts";
import type { AdapterFiles } from "./adapter-files.ts";
import { createAdapterSteps } from "./adapter-steps.ts";

it("asks the base once in an engine process, again in another, and again before it refuses", async () => {
  const tokens = Array.from({ length: 12 }, (_, token) => token);
  const ofBase = (token: number): number => -1 - token / 10;
  const ofAdapter = (token: number): number => ofBase(token) + (token % 2 === 0 ? 3 : -3);
  const probes: ProbeRecord[] = [1, 2].map((prompt) => ({
    name: `p-${prompt}`,
    input_ids: [prompt],
    base: { tokens: [], logprobs: [] },
    adapter: { tokens: [], logprobs: [], base_logprobs: [] },
    first: { tokens, base: tokens.map(ofBase), adapter: tokens.map(ofAdapter) },
  }));
  const digest = `sha256:${"a".repeat(64)}`;
  const bytes = Buffer.from(
    JSON.stringify({
      version: 1,
      runId: "01J00000000000000000000000",
      adapter: digest,
      tokens: { kind: "tokens", digest, size: 1 },
      templateDigest: digest,
      evaluation: null,
      probes,
      lossHistory: [],
    }),
  );
  const evidence: BlobRef = { kind: "evidence", digest: `sha256:${createHash("sha256").update(bytes).digest("hex")}`, size: bytes.length };
  const asked: string[] = [];
  let isApplied = true;
  const client = {
    maxLogprobTokens: 128,
    async nextTokenLogprobs(model: string, prompts: readonly unknown[], asks: readonly number[]) {
      asked.push(model === "b" ? "base" : "adapter");
      return prompts.map(() => new Map(asks.map((token) => [token, model !== "b" && isApplied ? ofAdapter(token) : ofBase(token)])));
    },
  } as unknown as LoraEngine;
  const engine = { incarnation: "1", readIncarnation: async () => engine.incarnation } as EngineObserver & { incarnation: string };
  await using telemetry = createTelemetry({ service: "test" });
  const steps = createAdapterSteps({
    client,
    engine,
    files: { isUnchanged: () => true } as unknown as AdapterFiles,
    objects: {
      get: async () =>
        (async function* () {
          yield bytes;
        })(),
    },
    telemetry,
    base: "b",
    limits: async () => ({ maxLoraRank: 32 }),
  });
  const adapter = wantedAdapter("pirate", { evidence });
  const prove = async (): Promise<unknown> => {
    asked.length = 0;
    return [(await steps.prove(adapter)).kind, ...asked];
  };
  expect(await prove()).toEqual(["proven", "base", "adapter"]);
  expect(await prove()).toEqual(["proven", "adapter"]);
  isApplied = false;
  expect(await prove()).toEqual(["refused", "adapter", "base", "adapter"]);
  isApplied = true;
  expect(await prove()).toEqual(["proven", "adapter"]);
  engine.incarnation = "2";
  expect(await prove()).toEqual(["proven", "base", "adapter"]);
});
