/** A version is taken to other programs, by CLI and HTTP. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { adapterManifest, datasetReceived, runRequested, parseRunSpec, proof } from "@loraline/contracts";
import { readBaseRef } from "@loraline/models/base-ref";
import { putJson } from "@loraline/objects";
import { test as testWithNats } from "@loraline/testkit";
import { describe, expect } from "vitest";
import {
  adapterOf,
  base,
  digestOf,
  type GatewayUnderTest,
  heldBy,
  playTokenized,
  playTrained,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startGateway,
  versionOf,
} from "../services/gateway/src/gateway-under-test.ts";
import { root } from "./line-process.ts";
import { loraline } from "./run-cli.ts";

const test = testWithNats
  .extend("line", async ({ nc, tenant }, { onCleanup }): Promise<GatewayUnderTest> => {
    const line = await startGateway({ nc, tenant });
    onCleanup(() => line[Symbol.asyncDispose]());
    return line;
  })
  .extend("dir", async ({}, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-take-"));
    onCleanup(() => rm(dir, { recursive: true, force: true }));
    return dir;
  });

const python = async (...args: string[]): Promise<{ adapter: number[]; base?: number[] }> => {
  const { stdout } = await promisify(execFile)(join(root, ".venv/bin/python"), [join(import.meta.dirname, "take-adapter.py"), ...args]);
  return JSON.parse(stdout) as { adapter: number[]; base?: number[] };
};

const runId = "01JD000000000000000000000A";
const datasetId = "01JD000000000000000000000B";
const config = { peft_type: "LORA", r: 4, lora_alpha: 4, target_modules: ["q_proj"], base_model_name_or_path: base, revision: "llm-q4" };

/** An adapter `pirate` with the given files as its first version, and the run and the dataset that it was made of. */
async function played(
  { bus, objects, tenant }: GatewayUnderTest,
  files: Record<string, string | Buffer>,
  baseDigest = digestOf("b"),
): Promise<void> {
  const stored = await Promise.all(
    Object.entries(files).map(async ([path, bytes]) => ({ path, blob: await objects.put(tenant, "adapter-file", bytes) })),
  );
  const manifest = adapterManifest.parse({
    version: 1,
    base: { name: base, revision: "1", digest: baseDigest },
    rank: 4,
    targetModules: ["q_proj"],
    parameters: 1234,
    files: stored,
  });
  const ref = await putJson(objects, tenant, "adapter", manifest);
  const parsed = parseRunSpec({ base, adapter: "pirate", dataset: datasetId, lora: { r: 4 }, training: { learning_rate: 0.0003 } });
  if ("problems" in parsed) throw new Error(JSON.stringify(parsed.problems));
  const blob = { kind: "raw", digest: digestOf("c"), size: 10 } as const;
  await bus.publish(datasetReceived, { tenant, id: datasetId }, { blob, filename: "pirate `talk`.jsonl", by: "test" });
  await bus.publish(runRequested, { tenant, id: runId }, { spec: parsed.spec, by: "test" });
  await playTokenized(bus, tenant, runId);
  await playTrained(bus, tenant, runId);
  const version = versionOf(tenant, "pirate", 1, {
    digest: ref.digest,
    manifest: ref,
    runId,
    rank: 4,
    system: "You are a pirate.",
    evaluation: { base_loss: 3.5, adapter_loss: 1.25, rows: 2, supervised_tokens: 30 },
  });
  const state = adapterOf(tenant, "pirate", [version, versionOf(tenant, "pirate", 2, { status: "deleted" })], { alias: 1 });
  await putAdapter(bus, state);
  const proven = proof.parse({
    probes: 8,
    tokens: 96,
    agreement: 0.0123,
    agreementLimit: 0.1,
    effect: 2.5,
    effectExpected: 2.4,
    provenAt: new Date().toISOString(),
  });
  await putReplica(bus, replicaOf("r1", "http://127.0.0.1:1", [heldBy(state, version, { proof: proven })]));
}

describe("loraline adapters pull", () => {
  test("writes PEFT's layout with the hub's name of the base, and a card that says what is known", async ({ line, dir }) => {
    const at = { url: line.url, apiKey: line.key };
    const made = "Four-bit blocks, dequantised.";
    await registerEngine(line.bus, { origin: { hub: "Org/SmolLM2-135M-Instruct", made } });
    const weights = Buffer.from("weights".repeat(1000));
    await played(line, { "adapter_config.json": JSON.stringify(config), "adapter_model.safetensors": weights });
    const out = join(dir, "deep", "pirate");
    await expect.poll(async () => (await line.fetch(`/v1/loraline/runs/${runId}`)).status).toBe(200);
    const pulled = await loraline(at, ["adapters", "pull", "pirate@1", out]);
    expect(pulled, pulled.err).toMatchObject({ code: 0, out: expect.stringMatching(/^pirate@1 {2}sha256:[0-9a-f]{64}\n/) });
    expect((await readdir(out)).toSorted()).toEqual(["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    expect(await readFile(join(out, "adapter_model.safetensors"))).toEqual(weights);
    const audit = (await (await line.fetch("/v1/loraline/audit?action=adapter.pull")).json()) as { data: object[] };
    expect(audit.data).toMatchObject([{ target: "pirate@1", outcome: "accepted", details: { file: "adapter_model.safetensors" } }]);
    expect(JSON.parse(await readFile(join(out, "adapter_config.json"), "utf8"))).toEqual({
      ...config,
      base_model_name_or_path: "Org/SmolLM2-135M-Instruct",
      revision: null,
    });
    const card = await readFile(join(out, "README.md"), "utf8");
    for (const said of [
      'base_model: "Org/SmolLM2-135M-Instruct"',
      "`pirate talk .jsonl`",
      digestOf("c"),
      '"learning_rate": 0.0003',
      "| loss per token | 3.5000 | 1.2500 |",
      "differ from the trainer's by 0.0123",
      `How it was made: ${made}`,
      "You are a pirate.",
      "--max-lora-rank 8 --lora-modules pirate=DIR",
    ])
      expect(card).toContain(said);

    // Without a version: the promoted one. A folder with something in it is left as it is.
    const again = await loraline(at, ["adapters", "pull", `${line.tenant}/pirate`, join(dir, "promoted"), "--json"]);
    expect(JSON.parse(again.out)).toMatchObject({ adapter: "pirate", version: 1, dir: join(dir, "promoted") });
    const full = join(dir, "full");
    await mkdir(full);
    await writeFile(join(full, "mine"), "mine");
    expect(await loraline(at, ["adapters", "pull", "pirate", full])).toMatchObject({ code: 2, err: expect.stringContaining("mine") });
    for (const merged of [[], ["--merged"]]) {
      const onFile = await loraline(at, ["adapters", "pull", "pirate", join(full, "mine"), ...merged]);
      expect(onFile).toMatchObject({ code: 2, err: expect.stringContaining("is a file") });
    }
    expect(await readFile(join(full, "mine"), "utf8")).toBe("mine");
    expect(await readdir(full)).toEqual(["mine"]);
    await mkdir(join(dir, "empty"));
    expect(await loraline(at, ["adapters", "pull", "pirate", join(dir, "empty")])).toMatchObject({ code: 0 });
    expect(await loraline(at, ["adapters", "pull", "pirate@2", join(dir, "deleted")])).toMatchObject({ code: 4 });
    expect(await loraline(at, ["adapters", "pull", "parrot", join(dir, "parrot")])).toMatchObject({ code: 4 });
    expect((await readdir(dir)).toSorted()).toEqual(["deep", "empty", "full", "promoted"]);
  });

  test("leaves nothing behind when the store has lost the weights", async ({ line, dir }) => {
    await registerEngine(line.bus);
    const weights = Buffer.from("weights");
    await played(line, { "adapter_config.json": JSON.stringify(config), "adapter_model.safetensors": weights });
    const digest = `sha256:${createHash("sha256").update(weights).digest("hex")}` as const;
    await line.objects.delete(line.tenant, { kind: "adapter-file", digest });
    const lost = await loraline({ url: line.url, apiKey: line.key }, ["adapters", "pull", "pirate", join(dir, "lost")]);
    expect(lost.code, lost.err).not.toBe(0);
    expect(await readdir(dir)).toEqual([]);
    // Another tenant's key finds nothing.
    const other = await line.keyFor("other");
    expect(await loraline({ url: line.url, apiKey: other }, ["adapters", "pull", "pirate@1", join(dir, "stolen")])).toMatchObject({
      code: 4,
    });
  });

  // Python, torch and peft are started six times, each for seconds on a busy machine.
  test("gives plain transformers what it needs to load the adapter with its base", { timeout: 180_000 }, async ({ line, dir }) => {
    await registerEngine(line.bus);
    const [tiny, made] = [join(dir, "tiny"), join(dir, "made")];
    const expected = await python("make", tiny, made);
    const names = ["adapter_config.json", "adapter_model.safetensors"];
    const files = await Promise.all(names.map(async (name) => [name, await readFile(join(made, name))] as const));
    await played(line, Object.fromEntries(files), (await readBaseRef(tiny)).digest);
    const out = join(dir, "pulled");
    const pulled = await loraline({ url: line.url, apiKey: line.key }, ["adapters", "pull", "pirate@1", out, "--base-name", tiny]);
    expect(pulled.code, pulled.err).toBe(0);
    const { adapter } = await python("load", out);
    const distance = (values: number[] | undefined): number =>
      Math.max(...adapter.map((value, at) => Math.abs(value - (values?.[at] ?? 99))));
    expect(distance(expected.adapter)).toBeLessThan(1e-3);
    expect(distance(expected.base)).toBeGreaterThan(0.05);

    // Merged on this machine: only into the base that it was trained on.
    const merged = join(dir, "deep", "merged");
    const merge = (...more: string[]) =>
      loraline({ url: line.url, apiKey: line.key }, ["adapters", "pull", "pirate@1", merged, "--merged", ...more]);
    const other = join(dir, "other");
    await cp(tiny, other, { recursive: true });
    await writeFile(join(other, "generation_config.json"), "{}");
    expect(await merge("--base-dir", other)).toMatchObject({ code: 2, err: expect.stringContaining("has other files") });
    expect(await merge("--base-dir", join(dir, "nowhere"))).toMatchObject({ code: 1, err: expect.stringContaining("is not here") });
    const done = await merge("--base-dir", tiny);
    expect(done.code, done.err).toBe(0);
    expect(done.out).toMatch(/compared on \d+ tokens: logprobs differ from base \+ adapter by 0\.0\d+/);
    expect(await readFile(join(merged, "README.md"), "utf8")).toMatch(
      /library_name: transformers[^]*## Use\n\nThe adapter is merged[^]*## System prompt/,
    );
    const of = (await python("merged", merged)).adapter;
    expect(Math.max(...of.map((value, index) => Math.abs(value - (expected.adapter[index] ?? 99))))).toBeLessThan(
      distance(expected.base) / 4,
    );
    expect((await readdir(dir)).toSorted()).toEqual(["deep", "made", "other", "pulled", "tiny"]);
  });
});
