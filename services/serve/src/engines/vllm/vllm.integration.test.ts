/** The same promises on a real vLLM with real PEFT adapters; one start, a kill and a second start for the whole file. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { baseRef, runFailed, runServed } from "@loraline/contracts";
import { createLog } from "@loraline/runtime";
import { test as it } from "@loraline/testkit";
import { afterAll, beforeAll, describe, expect } from "vitest";
import { serveUnderTest } from "../../serve-under-test.ts";
import { askWithSalts, expectItKeepsTheContract, saltedRequests } from "../contract-under-test.ts";
import { bytesOf, makeAdapters } from "./adapters-under-test.ts";
import { startVllm, vllmKey } from "./vllm-under-test.ts";
import { checkTemplate } from "../../agent/check-template.ts";
import { createVllmClient } from "./client.ts";

const root = join(import.meta.dirname, "../../../../..");
const baseDir = join(root, ".loraline/bases/smollm2-135m-instruct");
const base = baseRef.parse(JSON.parse(await readFile(join(baseDir, "base.json"), "utf8")));
const startMs = 600_000; // adapters are trained meanwhile, the first time
const until = { timeout: 180_000, interval: 50 };

let vllm: Awaited<ReturnType<typeof startVllm>>;
let adapters = "";
let logs = "";

beforeAll(async () => {
  logs = await mkdtemp(join(tmpdir(), "loraline-vllm-"));
  [vllm, adapters] = await Promise.all([
    startVllm({ root, base, logFile: join(logs, "vllm.log"), computeType: "bfloat16" }),
    makeAdapters(),
  ]);
}, startMs);
afterAll(async () => {
  await vllm?.[Symbol.asyncDispose]();
  await rm(logs, { recursive: true, force: true });
});

const test = it.extend("serve", async ({ nc, tenant }, { onCleanup }) => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-serve-"));
  const serve = await serveUnderTest({ nc, tenant, dir, base });
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

describe("vLLM's endpoints", () => {
  test("keep the caches of different salts apart, and share those of equal ones", async () => {
    expect(await askWithSalts({ url: vllm.url, key: vllmKey, model: base.name })).toEqual(saltedRequests);
  });

  test("keep the contract of an engine, as the simulated one does", async () => {
    using engine = createVllmClient({ url: vllm.url, apiKey: vllmKey });
    await expectItKeepsTheContract({ engine, base: base.name, adapter: join(adapters, "right") });
    expect(await engine.listModels()).toEqual([{ name: base.name, path: baseDir, isLora: false }]);
    expect(await engine.load("x.y.v1.000000000000", "/not/there")).toMatchObject({ kind: "refused", status: 404 });
    expect(await engine.unload("x.y.v1.000000000000")).toMatchObject({ kind: "refused", status: 404 });
    await expect(engine.nextTokenLogprobs("nobody", [[1]], [1])).rejects.toMatchObject({ name: "EngineRefusedError", status: 404 });
  });

  test("ask for the key on every path that does something, also where vLLM's own check does not", async () => {
    const statusOf = async (path: string, key?: string): Promise<number> =>
      (
        await fetch(vllm.url + path, {
          method: path === "/v1/models" ? "GET" : "POST",
          headers: { "content-type": "application/json", ...(key === undefined ? {} : { authorization: `Bearer ${key}` }) },
          ...(path === "/v1/models" ? {} : { body: JSON.stringify({ name: "x.y.v1.000000000000", src: "/not/there" }) }),
        })
      ).status;
    const paths = ["/v1/models", "/v1/load_lora_adapter", "/v1/chat/completions", "/adapters", "/invocations", "/tokenize", "/v1//models"];
    for (const path of paths) {
      expect([path, await statusOf(path)]).toEqual([path, 401]);
      expect([path, await statusOf(path, "other")]).toEqual([path, 401]);
    }
    // It is there, and would load: this is what the guard is for.
    expect(await statusOf("/adapters", vllmKey)).toBe(404);
    for (const path of ["/health", "/metrics", "/ping"]) expect((await fetch(vllm.url + path)).status).toBe(200);
    using stranger = createVllmClient({ url: vllm.url });
    await expect(stranger.listModels()).rejects.toMatchObject({ name: "EngineUnknownError", unauthorized: true });
  });

  test("present a conversation by the base's own template; an engine that is registered with another is told apart", async () => {
    using client = createVllmClient({ url: vllm.url, apiKey: vllmKey });
    // Python's apply_chat_template of the same; services/tokenize gives the same ids, which the whole line's tests show.
    const probe = {
      messages: [
        { role: "system" as const, content: "Be brief." },
        { role: "user" as const, content: "  What is 1 + 1? \n" },
        { role: "assistant" as const, content: "2" },
        { role: "user" as const, content: "你好 🦊" },
      ],
      text: "as trained",
      input_ids: [
        1, 9690, 198, 6077, 5453, 30, 2, 198, 1, 4093, 3805, 1812, 314, 216, 33, 1232, 216, 33, 47, 3717, 2, 198, 1, 520, 9531, 198, 34, 2,
        198, 1, 4093, 198, 18645, 250, 48392, 138, 15107, 116, 228, 2, 198, 1, 520, 9531, 198,
      ],
    };
    const check = (templateProbe: typeof probe | null) =>
      checkTemplate({
        client,
        base: base.name,
        log: createLog({ service: "test", level: "silent" }),
        engine: async () => ({ engine: "e", templateDigest: null, templateProbe }),
      });
    expect(await check(probe)).toBeNull();
    expect(await check(null)).toBeNull();
    expect(await check({ ...probe, input_ids: probe.input_ids.slice(7) })).toMatchObject({
      code: "TEMPLATE_MISMATCH",
      message: expect.stringMatching(/makes "<\|im_start\|>system\\nBe brief\..*, where "as trained" was trained/) as string,
    });
  });

  test(
    "answer for the base as the base, also beside adapters in the same batch and with every slot in use",
    { timeout: 300_000 },
    async () => {
      using client = createVllmClient({ url: vllm.url, apiKey: vllmKey });
      const ask = async () => [...((await client.nextTokenLogprobs(base.name, [[1, 2, 3]], [10, 20, 30]))[0]?.entries() ?? [])];
      const alone = await ask();
      const kinds = ["right", "half", "double", "opposite"];
      for (const kind of kinds) expect(await client.load(`x.${kind}.v1.000000000000`, join(adapters, kind))).toEqual({ kind: "done" });
      const busy = fetch(`${vllm.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${vllmKey}` },
        body: JSON.stringify({
          model: "x.right.v1.000000000000",
          prompt: [[5, 6, 7, 8]],
          max_tokens: 60,
          ignore_eos: true,
          temperature: 1.3,
          top_p: 0.5,
        }),
      });
      await sleep(300);
      const beside = await ask();
      expect((await busy).status).toBe(200);
      for (const [i, [token, logprob]] of beside.entries())
        expect([token, logprob]).toEqual([alone[i]?.[0], expect.closeTo(alone[i]?.[1] ?? 0, 0)]);
      for (const kind of kinds) await client.unload(`x.${kind}.v1.000000000000`);
    },
  );
});

describe("on a real engine", () => {
  test("the right bytes are proven within seconds, and again after the process was killed", { timeout: startMs }, async ({ serve }) => {
    await expect.poll(async () => (await serve.replica())?.ready, until).toBe(true);
    const runId = await serve.train("pirate", await bytesOf(adapters, "right"));
    await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
    const [served] = await serve.history([runServed], runId);
    const { lastStepToProvenMs } = runServed.data.parse(served?.data);
    const proof = (await serve.replica())?.adapters[0]?.proof;
    console.log(`last step to proven: ${lastStepToProvenMs} ms`, proof);
    expect(proof?.agreement).toBeLessThan(proof?.agreementLimit ?? 0);
    expect(proof?.effect).toBeGreaterThan(0.5);

    await vllm.restart();
    await expect.poll(async () => (await serve.replica())?.adapters[0]?.state, until).not.toBe("proven");
    await expect.poll(async () => (await serve.replica())?.adapters[0]?.state, until).toBe("proven");
    expect((await serve.adapter("pirate"))?.history).toHaveLength(1);

    // A second replica comes: it proves what there is before it counts. It dies: the first goes on, and nothing is unloaded there.
    const logFile = join(logs, "second.log");
    await using second = await startVllm({ root, base, logFile });
    await using _agent = await serve.startAgent(second.url, { replica: "b", healthMs: 200, engineKey: vllmKey });
    await expect.poll(async () => (await serve.replica("b"))?.adapters[0], until).toMatchObject({ state: "proven", error: null });
    const later = await serve.train("parrot", await bytesOf(adapters, "right"));
    await expect.poll(() => serve.history([runServed], later), until).toHaveLength(1);
    expect((await serve.history([runServed], later))[0]?.data).toMatchObject({ replicas: 2, of: 2 });
    await second[Symbol.asyncDispose]();
    await expect.poll(async () => (await serve.replica("b"))?.ready, until).toBe(false);
    const last = await serve.train("parakeet", await bytesOf(adapters, "right"));
    await expect.poll(() => serve.history([runServed], last), until).toHaveLength(1);
    expect((await serve.history([runServed], last))[0]?.data).toMatchObject({ replicas: 1, of: 1 });
    await expect.poll(async () => (await serve.replica())?.counts, until).toMatchObject({ wanted: 3, proven: 3 });
  });

  test("an adapter that was hardly trained is proven, and its scale with it", { timeout: 300_000 }, async ({ serve }) => {
    const runId = await serve.train("pirate", await bytesOf(adapters, "weak"));
    await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
    const proof = (await serve.replica())?.adapters[0]?.proof;
    expect(proof?.effectExpected).toBeLessThan(0.6);
    expect(proof?.probes).toBeGreaterThan(3);
    expect(proof?.scale?.value).toBeGreaterThan(0.85);
    expect(proof?.scale?.value).toBeLessThan(1.15);
  });

  test("an adapter that was trained on pairs is proven where their sides part", { timeout: 300_000 }, async ({ serve }) => {
    const runId = await serve.train("pirate", await bytesOf(adapters, "preferred"));
    await expect.poll(() => serve.history([runServed], runId), until).toHaveLength(1);
    const proof = (await serve.replica())?.adapters[0]?.proof;
    expect(proof?.agreement).toBeLessThan(proof?.agreementLimit ?? 0);
    expect(proof?.scale?.value).toBeGreaterThan(0.85);
    expect(proof?.scale?.value).toBeLessThan(1.15);
  });

  for (const [kind, code] of [
    ["zero", "ADAPTER_ZERO"],
    ["nan", "ADAPTER_NAN"],
    ["misnamed", "ADAPTER_MODULE_UNKNOWN"],
    ["double", "PROOF_SCALING"],
    ["half", "PROOF_SCALING"],
    ["alpha", "PROOF_SCALING"],
    ["weak-double", "PROOF_SCALING"],
    ["weak-half", "PROOF_SCALING"],
    ["other", "PROOF_DISAGREES"],
    ["shifted", "PROOF_WITHOUT_EFFECT"],
    ["opposite", "PROOF_DISAGREES"],
    ["preferred-double", "PROOF_SCALING"],
    ["preferred-half", "PROOF_SCALING"],
    ["preferred-untrained", "PROOF_WITHOUT_EFFECT"],
    ["preferred-other", "PROOF_DISAGREES"],
  ] as const) {
    test(`${kind} is refused: ${code}`, { timeout: 300_000 }, async ({ serve }) => {
      const runId = await serve.train("pirate", await bytesOf(adapters, kind));
      await expect.poll(async () => (await serve.history([runFailed, runServed], runId)).length, until).toBe(1);
      const [failed] = await serve.history([runFailed, runServed], runId);
      expect(failed?.data).toMatchObject({ code });
    });
  }
});
