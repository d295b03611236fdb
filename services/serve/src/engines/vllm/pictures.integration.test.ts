/**
 * Pictures on a real vLLM: an adapter that our trainer trained on sixty pictures of coloured shapes with captions names shape and colour of
 * unseen ones, where the base does not. It is proven with a picture among its probes, and under another wrapper's names it is not.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { baseRef, probeRecord } from "@loraline/contracts";
import { judgeAdapter, readBaseModules, readServedParts, scanTensors } from "@loraline/models";
import { nativeComputeType } from "@loraline/runtime";
import { afterAll, beforeAll, expect, it } from "vitest";
import { z } from "zod";
import { decideProof } from "../../decide-proof.ts";
import { measureProbes } from "../../measure-probes.ts";
import { createVllmClient } from "./client.ts";
import { startVllm, vllmKey } from "./vllm-under-test.ts";

const root = join(import.meta.dirname, "../../../../..");
const script = join(import.meta.dirname, "pictures-under-test.py");
const baseDir = join(root, ".cache/bases/smollm2-135m-pictures");
const loraName = "acme.shapes.v1.000000000000";

const unseen = z.object({
  question: z.string(),
  pictures: z.array(z.object({ url: z.string(), shape: z.string(), colour: z.string() })),
});

let dir = "";
let vllm: Awaited<ReturnType<typeof startVllm>>;
let base: z.infer<typeof baseRef>;
let probes: z.infer<typeof probeRecord>[];
let asked: z.infer<typeof unseen>;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "loraline-pictures-"));
  await promisify(execFile)(join(root, ".venv/bin/python"), [script, baseDir, dir]);
  base = baseRef.parse(JSON.parse(await readFile(join(baseDir, "base.json"), "utf8")));
  ({ probes } = z.object({ probes: z.array(probeRecord) }).parse(JSON.parse(await readFile(join(dir, "result.json"), "utf8"))));
  asked = unseen.parse(JSON.parse(await readFile(join(dir, "unseen.json"), "utf8")));
  vllm = await startVllm({ root, base, baseDir, parts: await readServedParts(baseDir), logFile: join(dir, "vllm.log") });
}, 900_000);
afterAll(async () => {
  await vllm?.[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

/** @param uuid - the gateway gives each picture one, of its tenant and its bytes. */
const chat = (model: string, url: string, more: object = {}, uuid?: string): Promise<Response> =>
  fetch(`${vllm.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${vllmKey}`, "content-type": "application/json" },
    body: JSON.stringify({
      model,
      messages: [
        {
          role: "user",
          content: [
            { type: "image_url", image_url: { url }, uuid },
            { type: "text", text: asked.question },
          ],
        },
      ],
      max_tokens: 8,
      temperature: 0,
      ...more,
    }),
  });

/** @returns the share of the unseen pictures whose shape and colour the answer names. `salts`: tenants, who ask in turn. */
async function shareNamed(model: string, salts = ["one"]): Promise<number> {
  const named = await Promise.all(
    asked.pictures.map(async ({ url, shape, colour }, i) => {
      const salt = salts[i % salts.length] ?? "";
      const answer = (await (await chat(model, url, { cache_salt: salt }, `${salt}-${i}`)).json()) as {
        choices: { message: { content: string } }[];
      };
      const said = answer.choices[0]?.message.content.toLowerCase() ?? "";
      return said.includes(shape) && said.includes(colour);
    }),
  );
  return named.filter(Boolean).length / named.length;
}

async function prove(kind: string) {
  using client = createVllmClient({ url: vllm.url, apiKey: vllmKey });
  const name = kind === "right" ? loraName : `acme.${kind}.v1.000000000000`;
  expect(await client.load(name, join(dir, kind))).toEqual({ kind: "done" });
  const measured = await measureProbes(client, { base: base.name, loraName: name, probes });
  const computed = nativeComputeType(process.env);
  return decideProof(measured, new Date().toISOString(), { recorded: computed, replica: computed });
}

it("an adapter is proven with pictures, and under another wrapper's names it is refused", { timeout: 300_000 }, async () => {
  expect(probes.filter(({ messages }) => messages)).toHaveLength(2);
  expect(await prove("right")).toMatchObject({ kind: "proven" });
  expect(await prove("other")).toMatchObject({ kind: "refused", problem: { code: "PROOF_WITHOUT_EFFECT" } });
  const judge = async (kind: string) =>
    judgeAdapter(
      {
        config: JSON.parse(await readFile(join(dir, kind, "adapter_config.json"), "utf8")),
        tensors: await scanTensors(join(dir, kind, "adapter_model.safetensors")),
      },
      { name: base.name, maxLoraRank: 32, modules: await readBaseModules(baseDir) },
    );
  expect(await judge("right")).toEqual([]);
  expect(await judge("other")).toMatchObject([{ code: "ADAPTER_MODULE_UNKNOWN" }]);
});

it("names shape and colour of unseen pictures, asked by two tenants at once, where the base does not", { timeout: 600_000 }, async () => {
  const [adapter, alone] = [await shareNamed(loraName, ["one", "other"]), await shareNamed(base.name)];
  console.log(`named: ${adapter} with the adapter, ${alone} without`);
  expect(adapter).toBeGreaterThanOrEqual(0.8);
  expect(alone).toBeLessThanOrEqual(0.2);
});

it.each(["http://127.0.0.1:9/x.png", "file:///etc/passwd"])("the engine fetches nothing: %s", async (url) => {
  const answer = await chat(base.name, url);
  expect(answer.ok).toBe(false);
  expect(await answer.text()).toMatch(/allowed domains|Cannot load local files/);
});
