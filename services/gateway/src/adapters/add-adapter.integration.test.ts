import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { type BlobRef, buckets, type EngineRecord, runRequested, type RunState, runState } from "@loraline/contracts";
import { putJson } from "@loraline/objects";
import { test as it } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { createApiKey } from "../access/auth.ts";
import { adapterOf, base, digestOf, type GatewayUnderTest, putAdapter, startGateway, versionOf } from "../gateway-under-test.ts";

const module = "model.layers.0.self_attn.q_proj";
const config = { peft_type: "LORA", r: 8, lora_alpha: 16, target_modules: ["q_proj"], base_model_name_or_path: `HuggingFaceTB/${base}` };

/** A safetensors file of these shapes; its values are zeros, as nobody looks at them here. */
function weightsOf(shapes: Record<string, number[]>, dtype = "BF16"): Uint8Array<ArrayBuffer> {
  let at = 0;
  const header = JSON.stringify(
    Object.fromEntries(
      Object.entries(shapes).map(([name, shape]) => {
        const from = at;
        at += shape.reduce((product, size) => product * size, 2);
        return [name, { dtype, shape, data_offsets: [from, at] }];
      }),
    ),
  );
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(header.length));
  return new Uint8Array(Buffer.concat([prefix, Buffer.from(header), Buffer.alloc(at)]));
}
const pair = (rank = 8, of = module, inputs = 64) => ({
  [`base_model.model.${of}.lora_A.weight`]: [rank, inputs],
  [`base_model.model.${of}.lora_B.weight`]: [32, rank],
});
const weights = weightsOf(pair());

const test = it.extend("line", async ({ nc, tenant }, { onCleanup }) => {
  const line = await startGateway({ nc, tenant, uploadLimitBytes: 100_000 });
  const engine: EngineRecord = {
    engine: `engine-${tenant}`,
    base: { name: base, revision: "1", digest: digestOf("b") },
    maxLoraRank: 16,
    maxLoras: 4,
    maxCpuLoras: 4,
    maxModelLen: 2048,
    modules: [{ names: "model.layers.{0-3}.self_attn.q_proj", shape: [32, 64] }],
    tenants: [tenant],
    updatedAt: new Date().toISOString(),
  };
  await (await line.bus.bucket(buckets.engines)).put(engine.engine, engine);
  await expect
    .poll(async () => add(line, {}, {}).then((response) => response.json()))
    .not.toMatchObject({
      error: { code: "NO_ENGINE" },
    });
  onCleanup(() => line[Symbol.asyncDispose]());
  return line;
});

type Sent = { name?: string; bytes: string | Uint8Array<ArrayBuffer> };
function add(
  line: GatewayUnderTest,
  settings: object,
  files: Record<string, Sent>,
  headers: Record<string, string> = {},
): Promise<Response> {
  const form = new FormData();
  form.set("settings", JSON.stringify({ base, name: "pirate", ...settings }));
  for (const [field, { name = field, bytes }] of Object.entries(files)) form.append(field, new Blob([bytes]), name);
  return line.fetch("/v1/loraline/adapters", { method: "POST", body: form, headers });
}
const both = (over: { config?: object; weights?: Uint8Array<ArrayBuffer> } = {}): Record<string, Sent> => ({
  "adapter_config.json": { bytes: JSON.stringify({ ...config, ...over.config }) },
  "adapter_model.safetensors": { bytes: over.weights ?? weights },
});
const json = (line: GatewayUnderTest, body: object) =>
  line.fetch("/v1/loraline/adapters", {
    method: "POST",
    body: JSON.stringify({ base, name: "pirate", ...body }),
    headers: { "content-type": "application/json" },
  });
const storedWeights = ({ spec: { method } }: RunState): BlobRef => {
  if (method.type !== "import") throw new Error(`method ${method.type}`);
  return method.weights;
};

const codeOf = async (response: Response): Promise<unknown> => [
  response.status,
  ((await response.json()) as { error?: { code: string } }).error?.code,
];

describe("POST /v1/loraline/adapters", () => {
  test("takes an adapter that PEFT wrote, and asks for a run that imports it, once for a key", async ({ line, tenant }) => {
    const headers = { "idempotency-key": "one" };
    const answer = await add(line, { probes: ["Ahoy?"], promote: "manual", source: "my-lora" }, both(), headers);
    expect(answer.status).toBe(202);
    const run = runState.parse(await answer.json());
    expect(run).toMatchObject({ phase: "requested", spec: { adapter: "pirate", promote: "manual", gate: "better-than-base" } });
    expect(run.spec.method).toMatchObject({
      source: "my-lora",
      probes: ["Ahoy?"],
      weights: { kind: "adapter-file", size: weights.length },
    });
    const bytes: Uint8Array[] = [];
    for await (const part of await line.objects.get(tenant, storedWeights(run))) bytes.push(part);
    expect(Buffer.concat(bytes).equals(weights)).toBe(true);
    const again = runState.parse(
      await (await add(line, { probes: ["Ahoy?"], promote: "manual", source: "my-lora" }, both(), headers)).json(),
    );
    expect(again.runId).toBe(run.runId);
    expect(await line.bus.history([runRequested], { tenant, id: run.runId })).toHaveLength(1);
  });

  for (const [what, code, files, settings] of [
    ["a pickle", "ADAPTER_PICKLE_REFUSED", { ...both(), "adapter_model.safetensors": { name: "adapter_model.bin", bytes: "\x80\x02}q" } }],
    ["a way out of the folder", "unknown_file", { ...both(), "adapter_config.json": { name: "../../etc/passwd", bytes: "root" } }],
    ["any other file", "unknown_file", { ...both(), "adapter_config.json": { name: "tokenizer.json", bytes: "{}" } }],
    ["no weights", "ADAPTER_FILES_MISSING", { "adapter_config.json": { bytes: JSON.stringify(config) } }],
    ["a config that is no JSON", "ADAPTER_CONFIG_INVALID", { ...both(), "adapter_config.json": { bytes: "r: 8" } }],
    ["a config of another method", "ADAPTER_CONFIG_INVALID", both({ config: { peft_type: "IA3" } })],
    ["a truncated file", "ADAPTER_UNREADABLE", both({ weights: weights.slice(0, weights.length - 10) })],
    [
      "something else by the name of weights",
      "ADAPTER_UNREADABLE",
      both({ weights: new Uint8Array(Buffer.from("PK\x03\x04 a zip, and long enough")) }),
    ],
    ["too high a rank", "ADAPTER_RANK_TOO_HIGH", both({ config: { r: 32 }, weights: weightsOf(pair(32)) })],
    ["DoRA", "ADAPTER_FEATURE_UNSUPPORTED", both({ config: { use_dora: true } })],
    ["whole modules", "ADAPTER_FEATURE_UNSUPPORTED", both({ config: { modules_to_save: ["lm_head"] } })],
    ["PiSSA that was not converted", "ADAPTER_FEATURE_UNSUPPORTED", both({ config: { init_lora_weights: "pissa" } })],
    ["another base by name", "ADAPTER_BASE_MISMATCH", both({ config: { base_model_name_or_path: "org/another-7b" } })],
    ["another base by shapes", "ADAPTER_BASE_MISMATCH", both({ weights: weightsOf(pair(8, module, 128)) })],
    ["modules the base lacks", "ADAPTER_MODULE_UNKNOWN", both({ weights: weightsOf(pair(8, "model.layers.9.self_attn.q_proj")) })],
    ["weights in integers", "ADAPTER_DTYPE", both({ weights: weightsOf(pair(), "I16") })],
    ["an unknown base", "BASE_UNKNOWN", both(), { base: "gpt-9" }],
    ["a misspelt setting", "invalid_body", both(), { prommote: "auto" }],
  ] as [string, string, Record<string, Sent>, object?][]) {
    test(`refuses ${what}: ${code}`, async ({ line }) => {
      expect(await codeOf(await add(line, settings ?? {}, files))).toEqual([400, code]);
    });
  }

  test("serves it under the name of another base when told that they are one", async ({ line }) => {
    const files = both({ config: { base_model_name_or_path: "org/another-7b" } });
    expect((await add(line, { any_base: true }, files)).status).toBe(202);
  });

  test("refuses what is too large, without keeping it", async ({ line }) => {
    const files = { ...both(), "adapter_model.safetensors": { bytes: new Uint8Array(200_000) } };
    expect(await codeOf(await add(line, {}, files))).toEqual([413, "file_too_large"]);
  });

  test("takes a version's files from the tenant's own store, and from no other's", async ({ line, tenant }) => {
    const files = [
      { path: "adapter_config.json", blob: await line.objects.put(tenant, "adapter-file", JSON.stringify(config)) },
      { path: "adapter_model.safetensors", blob: await line.objects.put(tenant, "adapter-file", weights) },
    ];
    const manifest = {
      version: 1,
      base: { name: base, revision: "1", digest: digestOf("b") },
      rank: 8,
      targetModules: [],
      parameters: 1,
      files,
    };
    const { digest: object } = await putJson(line.objects, tenant, "adapter", manifest);
    const run = runState.parse(await (await json(line, { from: { object } })).json());
    expect(run.spec.method).toMatchObject({ source: object, config: files[0]?.blob, weights: files[1]?.blob });
    expect(await codeOf(await json(line, { from: { object: digestOf("c") } }))).toEqual([400, "OBJECT_MISSING"]);

    // Under another name it is served with the system prompt that it was trained with, unless another one is given.
    expect(run.spec.method).not.toHaveProperty("system");
    const version = versionOf(tenant, "parrot", 1, { manifest: { kind: "adapter", digest: object, size: 1 }, system: "You are a pirate." });
    await putAdapter(line.bus, adapterOf(tenant, "parrot", [version]));
    const systemOf = async (settings: object = {}) => {
      const { spec } = runState.parse(await (await json(line, { from: { object }, ...settings })).json());
      return spec.method.type === "import" ? spec.method.system : undefined;
    };
    expect(await systemOf()).toBe("You are a pirate.");
    expect(await systemOf({ system: "You are a parrot." })).toBe("You are a parrot.");
  });

  test("needs both scopes: it takes a trainer's time and changes what answers", async ({ line, tenant }) => {
    for (const scopes of [["train"], ["promote"], ["infer"]] as const) {
      const key = await createApiKey({ bus: line.bus }, { tenant, name: scopes[0], scopes });
      expect(await codeOf(await add(line, {}, both(), { authorization: `Bearer ${key}` }))).toEqual([403, "insufficient_scope"]);
    }
  });

  test("fetches from the hub and from addresses, guarded", async ({ nc, tenant, line }) => {
    const sha = "a".repeat(40);
    const answers: Record<string, string | Uint8Array> = {
      "/api/models/org/lora/revision/v2": JSON.stringify({ sha }),
      [`/api/models/org/lora/tree/${sha}?recursive=true`]: JSON.stringify([
        { type: "file", path: "sub/adapter_config.json", size: 3 },
        { type: "file", path: "sub/adapter_model.safetensors", size: weights.length },
        { type: "file", path: "adapter_config.json", size: 3 },
        { type: "file", path: "adapter_model.bin", size: 9 },
      ]),
      [`/org/lora/resolve/${sha}/sub/adapter_config.json`]: JSON.stringify(config),
      [`/org/lora/resolve/${sha}/adapter_config.json`]: JSON.stringify(config),
      [`/org/lora/resolve/${sha}/sub/adapter_model.safetensors`]: weights,
      "/plain/adapter_config.json": JSON.stringify(config),
      "/plain/adapter_model.safetensors": weights,
    };
    const hub = createServer((request, response) => {
      const answer = answers[request.url ?? ""];
      response.writeHead(answer === undefined ? 404 : 200).end(answer);
    });
    await new Promise<void>((resolve) => hub.listen(0, "127.0.0.1", resolve));
    const { port } = hub.address() as AddressInfo;
    const hubEndpoint = `http://127.0.0.1:${port}`;
    const open = await startGateway({ nc, tenant, imports: { hubEndpoint, allow: [`127.0.0.1:${port}`] } });
    try {
      await expect.poll(async () => (await json(open, { from: { hub: "org/lora", revision: "v2", folder: "sub" } })).status).toBe(202);
      const run = runState.parse(await (await json(open, { from: { hub: "org/lora", revision: "v2", folder: "sub" } })).json());
      expect(run.spec.method).toMatchObject({ source: `org/lora@${sha}/sub`, weights: { size: weights.length } });
      expect(await codeOf(await json(open, { from: { hub: "org/lora", revision: "v2" } }))).toEqual([400, "ADAPTER_PICKLE_REFUSED"]);
      expect((await json(open, { from: { url: `${hubEndpoint}/plain/` } })).status).toBe(202);
      expect(await codeOf(await json(open, { from: { url: `${hubEndpoint}/plain/model.bin` } }))).toEqual([400, "ADAPTER_PICKLE_REFUSED"]);
      // What the gateway fetches for a tenant counts as what the tenant sends.
      const quotas = { default: { uploadBytesPerMinute: weights.length - 1 } };
      await using slow = await startGateway({ nc, tenant: `${tenant}-slow`, quotas, imports: { allow: [`127.0.0.1:${port}`] } });
      expect(await codeOf(await json(slow, { from: { url: `${hubEndpoint}/plain/` } }))).toEqual([expect.any(Number), "QUOTA_UPLOAD_RATE"]);
      // Where nobody allowed it, an internal address is not reached.
      expect(await codeOf(await json(line, { from: { url: `https://127.0.0.1:${port}/plain` } }))).toEqual([422, "ADDRESS_REFUSED"]);
      expect(await codeOf(await json(line, { from: { url: "https://169.254.169.254/latest" } }))).toEqual([422, "ADDRESS_REFUSED"]);
      expect(await codeOf(await json(line, { from: { url: "file:///etc" } }))).toEqual([400, "URL_REFUSED"]);
    } finally {
      await open[Symbol.asyncDispose]();
      hub.closeAllConnections();
      hub.close();
    }
  });
});
