/** Adapters of the small base on real engines whose bases are 4-bit copies of it, or that round it to FP8 themselves: proven there, and faults found there. */
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { type BaseRef, baseRef, runFailed, runServed } from "@loraline/contracts";
import { readBaseRef } from "@loraline/models/base-ref";
import { processorFlags } from "@loraline/runtime";
import { test } from "@loraline/testkit";
import { quantisedBase, smollm2Dir } from "@loraline/testkit/servers";
import { afterAll, beforeAll, describe, expect } from "vitest";
import { type AdapterBytes, serveUnderTest } from "../../serve-under-test.ts";
import { bytesOf, makeAdapters, probesIn, probeTwin } from "./adapters-under-test.ts";
import { judgeVllmSettings } from "./judge-settings.ts";
import { startVllm, vllmKey } from "./vllm-under-test.ts";

const root = join(import.meta.dirname, "../../../../..");
const hasAmx = processorFlags().has("amx_tile");
const hasAvx512 = processorFlags().has("avx512f");
const startMs = 600_000;
const until = { timeout: 180_000, interval: 50 };

test("4-bit weights are refused on a CPU if, and only if, this processor's vLLM has no kernel for them", async () => {
  const script =
    "import torch; from vllm.platforms import current_platform as p; p.import_kernels(); print(hasattr(torch.ops._C, 'cpu_gemm_wna16'))";
  const { stdout } = await promisify(execFile)(join(root, ".venv/bin/python"), ["-c", script]);
  const base = { architectures: ["LlamaForCausalLM"], quantization_config: { quant_method: "gptq" } };
  const problems = judgeVllmSettings(
    { engine: "e", base: "b", maxLoraRank: 8, maxLoras: 1, maxCpuLoras: 1, maxModelLen: 2048, gpus: 0 },
    base,
    processorFlags(),
  );
  expect(problems.map(({ code }) => code)).toEqual(stdout.trim().endsWith("True") ? [] : ["QUANTIZATION_NEEDS_GPU"]);
});

// Without AVX-512 such engines are refused before their start.
describe.each(hasAvx512 ? (["gptq", "awq"] as const) : [])("vLLM with a base in %s", (kind) => {
  let original: BaseRef;
  let base: BaseRef;
  let vllm: Awaited<ReturnType<typeof startVllm>>;
  let adapters = "";
  let recorded = "";
  let logs = "";
  beforeAll(async () => {
    logs = await mkdtemp(join(tmpdir(), "loraline-vllm-"));
    const dir = await quantisedBase(kind);
    original = baseRef.parse(await readBaseRef(smollm2Dir));
    base = { ...(await readBaseRef(dir)), name: `smollm2-${kind}` };
    const prepare = async () => {
      adapters = await makeAdapters();
      recorded = await probeTwin(dir, adapters);
    };
    [vllm] = await Promise.all([
      startVllm({ root, base, baseDir: dir, logFile: join(logs, "vllm.log"), computeType: "bfloat16" }),
      prepare(),
    ]);
  }, startMs);
  afterAll(async () => {
    await vllm?.[Symbol.asyncDispose]();
    await rm(logs, { recursive: true, force: true });
  });

  /** With what the trainer records where it has the quantised base, too. */
  const onTwin = async (name: string): Promise<AdapterBytes> => ({
    ...(await bytesOf(adapters, name, name === "layer-zero" ? recorded : adapters)),
    twins: [{ base: base.digest, probes: await probesIn(join(recorded, name.startsWith("weak") ? "weak.json" : "right.json")) }],
  });

  const onEngine = test.extend("serve", async ({ nc, tenant }, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-serve-"));
    const serve = await serveUnderTest({ nc, tenant, dir, base, original, record: { computeType: "bfloat16" } });
    const controller = await serve.startController();
    const agent = await serve.startAgent(vllm.url, { healthMs: 200, engineKey: vllmKey });
    onCleanup(async () => {
      await agent[Symbol.asyncDispose]();
      await controller[Symbol.asyncDispose]();
      await serve[Symbol.asyncDispose]();
      await rm(dir, { recursive: true, force: true });
    });
    return serve;
  });

  onEngine("an adapter of the unquantised base is proven as strictly as on that base", { timeout: 300_000 }, async ({ serve }) => {
    for (const [name, least] of [
      ["right", 2],
      ["weak", 0.1],
    ] as const) {
      const runId = await serve.train(name, await onTwin(name));
      await expect.poll(() => serve.history([runServed, runFailed], runId), until).toHaveLength(1);
      const proof = (await serve.replica())?.adapters.find(({ adapter }) => adapter === name)?.proof;
      console.log(kind, name, proof);
      expect(await serve.history([runServed], runId)).toHaveLength(1);
      expect(proof?.effect).toBeGreaterThan(least);
      // As between two programs with the same weights, and not as between two bases.
      expect(proof?.baseAgreement).toBeLessThan(0.2);
      expect(proof?.agreementLimit).toBeLessThan(0.5);
    }
  });

  for (const [name, code] of [
    ["double", "PROOF_SCALING"],
    ["half", "PROOF_SCALING"],
    ["layer-zero", "PROOF_SCALING"],
    ["weak-double", "PROOF_SCALING"],
    ["other", "PROOF_DISAGREES"],
    ["shifted", "PROOF_WITHOUT_EFFECT"],
    ["misnamed", "ADAPTER_MODULE_UNKNOWN"],
  ] as const) {
    onEngine(`${name} is refused there, too: ${code}`, { timeout: 300_000 }, async ({ serve }) => {
      const runId = await serve.train("pirate", await onTwin(name));
      await expect.poll(async () => (await serve.history([runFailed, runServed], runId)).length, until).toBe(1);
      const [failed] = await serve.history([runFailed, runServed], runId);
      expect(failed?.data).toMatchObject({ code });
    });
  }

  onEngine(
    "with a record of the unquantised base alone, its presence is proven; another adapter's is not",
    { timeout: 300_000 },
    async ({ serve }) => {
      const runId = await serve.train("pirate", await bytesOf(adapters, "right"));
      await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
      const proof = (await serve.replica())?.adapters[0]?.proof;
      console.log(kind, "recorded elsewhere", proof);
      expect(proof?.baseAgreement).toBeGreaterThan(0.5);
      expect(proof?.scale).toBeNull();
      const other = await serve.train("robot", await bytesOf(adapters, "other"));
      await expect.poll(async () => (await serve.history([runFailed, runServed], other)).length, until).toBe(1);
      const [failed] = await serve.history([runFailed, runServed], other);
      expect(failed?.data).toMatchObject({ code: "PROOF_DISAGREES" });
    },
  );
});

describe.each(hasAvx512 ? [true] : [])("vLLM that rounds weights and cache to FP8 itself", () => {
  let base: BaseRef;
  let vllm: Awaited<ReturnType<typeof startVllm>>;
  let adapters = "";
  let logs = "";
  beforeAll(async () => {
    logs = await mkdtemp(join(tmpdir(), "loraline-vllm-"));
    base = baseRef.parse(await readBaseRef(smollm2Dir));
    const args = [`--quantization=${hasAmx ? "fp8_per_block" : "fp8_per_channel"}`, "--kv-cache-dtype=fp8"];
    [vllm, adapters] = await Promise.all([
      startVllm({ root, base, logFile: join(logs, "vllm.log"), computeType: "bfloat16", args }),
      makeAdapters(),
    ]);
  }, startMs);
  afterAll(async () => {
    await vllm?.[Symbol.asyncDispose]();
    await rm(logs, { recursive: true, force: true });
  });

  const onEngine = test.extend("serve", async ({ nc, tenant }, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-serve-"));
    const serve = await serveUnderTest({ nc, tenant, dir, base, record: { computeType: "bfloat16", rounded: true } });
    const controller = await serve.startController();
    const agent = await serve.startAgent(vllm.url, { healthMs: 200, engineKey: vllmKey });
    onCleanup(async () => {
      await agent[Symbol.asyncDispose]();
      await controller[Symbol.asyncDispose]();
      await serve[Symbol.asyncDispose]();
      await rm(dir, { recursive: true, force: true });
    });
    return serve;
  });

  for (const [name, code] of [
    ["right", undefined],
    ["double", "PROOF_SCALING"],
    ["half", "PROOF_SCALING"],
    ["other", "PROOF_DISAGREES"],
    ["shifted", "PROOF_WITHOUT_EFFECT"],
  ] as const) {
    onEngine(`${name} is ${code === undefined ? "proven" : `refused: ${code}`}`, { timeout: 300_000 }, async ({ serve }) => {
      const runId = await serve.train("pirate", await bytesOf(adapters, name));
      await expect.poll(async () => (await serve.history([runFailed, runServed], runId)).length, until).toBe(1);
      const [ended] = await serve.history([runFailed, runServed], runId);
      expect(ended?.data).toMatchObject(code === undefined ? { adapter: "pirate" } : { code });
    });
  }
});
