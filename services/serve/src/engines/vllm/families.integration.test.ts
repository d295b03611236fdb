/**
 * Bases of many families on a real vLLM: a tiny random one of each with an adapter that our trainer trained is proven there, and the same
 * adapter under the names of another wrapper is not; and one that was trained on a base in 4 or 8 bits, on the same base as it is. CI tries one of each kind; LORALINE_FAMILIES=all (make test-families) all of them.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { baseRef, computeType, probeRecord } from "@loraline/contracts";
import { judgeAdapter, readBaseModules, readServedParts, scanTensors } from "@loraline/models";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { decideProof } from "../../decide-proof.ts";
import { chooseProbes, measureProbes } from "../../measure-probes.ts";
import { checkEngine } from "../../setup/describe-engines.ts";
import { createVllmClient } from "./client.ts";
import { startVllm, vllmKey } from "./vllm-under-test.ts";

const root = join(import.meta.dirname, "../../../../..");
const tokenizer = join(root, ".loraline/bases/smollm2-135m-instruct");
const script = join(import.meta.dirname, "families-under-test.py");

const inCi = ["gemma3", "smolvlm", "qwen2.5-vl", "qwen3-moe", "llama-nf4"];
const all = [
  ...inCi,
  "qwen2-vl",
  "qwen3-vl",
  "qwen3.5",
  "gemma4",
  "mistral3",
  "ministral3",
  "internvl",
  "llava",
  "llava-next",
  "llama-int8",
];
const asked = process.env["LORALINE_FAMILIES"];
const families = asked === undefined ? inCi : asked === "all" ? all : asked.split(",");

/** Trained and asked with pictures, too. */
const seeing = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "mistral3", "ministral3", "internvl", "llava"];

/** vLLM's CPU build has no other kernel for its linear attention. */
const inBf16 = ["qwen3.5"];

const trained = z.object({ environment: z.object({ compute_type: computeType }), probes: z.array(probeRecord) });

describe.each(families)("%s", (family) => {
  const replica = inBf16.includes(family) ? "bfloat16" : "float32";
  let dir = "";
  let baseDir = "";
  let vllm: Awaited<ReturnType<typeof startVllm>>;
  let base: z.infer<typeof baseRef>;
  let result: z.infer<typeof trained>;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), `loraline-${family}-`));
    await promisify(execFile)(join(root, ".venv/bin/python"), [script, family, tokenizer, dir]);
    baseDir = join(dir, family);
    base = baseRef.parse(JSON.parse(await readFile(join(baseDir, "base.json"), "utf8")));
    result = trained.parse(JSON.parse(await readFile(join(dir, "result.json"), "utf8")));
    const parts = await readServedParts(baseDir);
    vllm = await startVllm({ root, base, baseDir, parts, logFile: join(dir, "vllm.log"), computeType: replica });
    if (replica === "float32") expect(result.environment.compute_type).toBe("float32");
  }, 600_000);
  afterAll(async () => {
    await vllm?.[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  });

  const prove = async (kind: string) => {
    using client = createVllmClient({ url: vllm.url, apiKey: vllmKey });
    const loraName = `x.${kind}.v1.000000000000`;
    const loaded = await client.load(loraName, join(dir, kind));
    if (loaded.kind !== "done") return loaded;
    const measured = await measureProbes(client, { base: base.name, loraName, probes: result.probes });
    return decideProof(measured, new Date().toISOString(), { recorded: result.environment.compute_type, replica });
  };

  it("an adapter of our trainer is proven, and under the names of another wrapper it is not", { timeout: 120_000 }, async () => {
    expect(chooseProbes(result.probes).some(({ messages }) => messages)).toBe(seeing.includes(family));
    const right = await prove("right");
    console.log(family, JSON.stringify(right));
    // The proof allows for what the base alone differs by; in float32 that must be nothing, with pictures, too.
    const exact = seeing.includes(family) && replica === "float32";
    expect(right).toMatchObject({ kind: "proven", proof: { baseAgreement: expect.toSatisfy((nats) => !exact || nats < 1e-4) } });
    expect(await prove("other")).toMatchObject({ kind: "refused", problem: { code: "PROOF_WITHOUT_EFFECT" } });
  });

  it("the engine's settings are accepted, and wrong names are found before the engine is asked", async () => {
    const settings = { engine: "e", base: base.name, maxLoras: 4, maxCpuLoras: 16, maxLoraRank: 32, maxModelLen: 2048, gpus: 0 } as const;
    expect(await checkEngine(settings, baseDir)).toMatchObject({ product: "vLLM" });
    const served = { name: base.name, maxLoraRank: 32, modules: await readBaseModules(baseDir) };
    const judge = async (kind: string) =>
      judgeAdapter(
        {
          config: JSON.parse(await readFile(join(dir, kind, "adapter_config.json"), "utf8")),
          tensors: await scanTensors(join(dir, kind, "adapter_model.safetensors")),
        },
        served,
      );
    expect(await judge("right")).toEqual([]);
    expect(await judge("other")).toMatchObject([{ code: "ADAPTER_MODULE_UNKNOWN" }]);
  });
});
