/**
 * A simulated engine. It answers like vLLM 0.32 (endpoints, error shapes, plain-text successes, no adapters after a restart) but computes
 * hashes instead of a model. So tests can start a hundred of them, and can make them slow, wrong or broken.
 *
 * Its "logprobs" depend on prompt, token and, with an adapter, on the adapter's files: the direction on its lora_A, the size on its
 * lora_B and scaling. So zeroed, misnamed, swapped and wrongly scaled adapters behave as they do in the real one.
 */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { ProbeRecord } from "@loraline/contracts";

interface SimulatedEngineOptions {
  base: string;
  maxLoraRank?: number;
  /** Key that is required below /v1, as vLLM does when it is started with VLLM_API_KEY. */
  apiKey?: string;
}

/** Settings that a test may change at any time. */
interface SimulatedBehaviour {
  loadDelayMs: number;
  probeDelayMs: number;
  healthDelayMs: number;
  /** Adapters are loaded with 200 and listed, but answers are the base's. */
  lies: boolean;
  /** Number of the next probes of an adapter that get the base's answer. */
  glitches: number;
  /** Errors have their fields at the top level, as in older versions. */
  oldErrors: boolean;
  /** The engine was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING. */
  loadingOff: boolean;
  /** The inner engine died: /health says 503, /v1/models still answers. */
  coreDead: boolean;
  /** Ids that every conversation gets; undefined: the engine does not report ids. */
  presents?: readonly number[] | undefined;
  /** Message of the HTTP 500 that a load of this name gets. */
  refuseLoad?: ((name: string) => string | undefined) | undefined;
  /** The same for an unload. */
  refuseUnload?: ((name: string) => string | undefined) | undefined;
  /** A load of this name never gets an answer, and loads nothing. */
  hangLoad?: ((name: string) => boolean) | undefined;
}

export interface SimulatedEngine extends AsyncDisposable {
  readonly url: string;
  readonly behaviour: SimulatedBehaviour;
  /** Names that are loaded now, with their paths. */
  readonly loaded: ReadonlyMap<string, string>;
  /** `POST /v1/load_lora_adapter <name>` and the like, oldest first. */
  readonly calls: readonly string[];
  stop(): Promise<void>;
  /** Simulates a new process on the same port: no adapter is loaded. */
  start(): Promise<void>;
}

interface Adapter {
  path: string;
  weights: SimulatedWeights | undefined;
}

export async function createSimulatedEngine(options: SimulatedEngineOptions): Promise<SimulatedEngine> {
  const { base, maxLoraRank = 32 } = options;
  const behaviour: SimulatedBehaviour = {
    loadDelayMs: 0,
    probeDelayMs: 0,
    healthDelayMs: 0,
    lies: false,
    glitches: 0,
    oldErrors: false,
    loadingOff: false,
    coreDead: false,
  };
  const calls: string[] = [];
  let adapters = new Map<string, Adapter>();
  let startTime = 0;
  let server: Server | undefined;
  let port = 0;

  const fail = (response: ServerResponse, status: number, type: string, message: string): void => {
    const fields = { message, type, param: null, code: status };
    json(response, status, behaviour.oldErrors ? { object: "error", ...fields } : { error: fields });
  };

  const load = async (body: Record<string, unknown>, response: ServerResponse): Promise<void> => {
    const name = body["lora_name"];
    const path = body["lora_path"];
    calls.push(`load ${String(name)}`);
    if (typeof name !== "string" || typeof path !== "string" || name === "" || path === "") {
      return fail(response, 400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.");
    }
    if (adapters.has(name)) return fail(response, 400, "InvalidUserInput", `The lora adapter '${name}' has already been loaded.`);
    const refusal = behaviour.refuseLoad?.(name);
    if (refusal !== undefined) return fail(response, 500, "InternalServerError", refusal);
    if (behaviour.hangLoad?.(name) === true) return;
    const process = adapters;
    await sleep(behaviour.loadDelayMs);
    let weights: SimulatedWeights;
    try {
      weights = await readSimulatedWeights(path);
    } catch (error) {
      return (error as NodeJS.ErrnoException).code === "ENOENT"
        ? fail(response, 404, "NotFoundError", `Loading lora ${name} failed: No adapter found for ${path}`)
        : fail(response, 500, "InternalServerError", String(error));
    }
    if (weights.rank > maxLoraRank) {
      return fail(response, 500, "InternalServerError", `LoRA rank ${weights.rank} is greater than max_lora_rank ${maxLoraRank}.`);
    }
    process.set(name, { path, weights: behaviour.lies ? undefined : weights });
    response.end(`Success: LoRA adapter '${name}' added successfully.`);
  };

  const complete = async (body: Record<string, unknown>, response: ServerResponse): Promise<void> => {
    const model = String(body["model"]);
    const adapter = adapters.get(model);
    if (model !== base && adapter === undefined) return fail(response, 404, "NotFoundError", `The model \`${model}\` does not exist.`);
    if (body["prompt_logprobs"] !== undefined) behaviour.coreDead = true; // vLLM on the CPU stops at such a request
    if (behaviour.coreDead)
      return fail(response, 500, "InternalServerError", "EngineCore encountered an issue. See stack trace (above) for the root cause.");
    await sleep(behaviour.probeDelayMs);
    const glitch = adapter !== undefined && behaviour.glitches > 0;
    if (glitch) behaviour.glitches -= 1;
    const tokens = (body["logprob_token_ids"] ?? []) as number[];
    const prompts = body["prompt"] as number[][];
    json(response, 200, {
      object: "text_completion",
      model,
      choices: prompts.map((prompt, index) => ({
        index,
        text: "",
        finish_reason: "length",
        logprobs: {
          top_logprobs: [
            Object.fromEntries(
              tokens.map((token) => [`token_id:${token}`, simulatedLogprob(base, prompt, token, glitch ? undefined : adapter?.weights)]),
            ),
          ],
        },
      })),
    });
  };

  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { method = "GET", url: path = "/" } = request;
    if (options.apiKey !== undefined && path.startsWith("/v1") && request.headers.authorization !== `Bearer ${options.apiKey}`)
      return json(response, 401, { error: "Unauthorized" });
    if (method === "GET" && path === "/health") {
      await sleep(behaviour.healthDelayMs);
      response.statusCode = behaviour.coreDead ? 503 : 200;
      response.end();
      return;
    }
    if (method === "GET" && path === "/metrics") {
      response.end(`# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds ${startTime}\n`);
      return;
    }
    if (method === "GET" && path === "/v1/models") {
      const card = (id: string, root: string, parent: string | null) => ({ id, object: "model", root, parent });
      return json(response, 200, {
        object: "list",
        data: [card(base, `/bases/${base}`, null), ...[...adapters].map(([id, at]) => card(id, at.path, base))],
      });
    }
    const body = JSON.parse((await readBody(request)) || "{}") as Record<string, unknown>;
    if (path === "/v1/completions") return complete(body, response);
    if (path === "/tokenize" && behaviour.presents !== undefined) return json(response, 200, { tokens: behaviour.presents });
    if (path === "/detokenize" && behaviour.presents !== undefined) {
      return json(response, 200, { prompt: (body["tokens"] as number[]).map((id) => `<${id}>`).join("") });
    }
    if (behaviour.loadingOff) return json(response, 404, { detail: "Not Found" });
    if (path === "/v1/load_lora_adapter") return load(body, response);
    if (path === "/v1/unload_lora_adapter") {
      const name = String(body["lora_name"]);
      calls.push(`unload ${name}`);
      const refusal = behaviour.refuseUnload?.(name);
      if (refusal !== undefined) return fail(response, 500, "InternalServerError", refusal);
      if (!adapters.delete(name)) return fail(response, 404, "NotFoundError", `The lora adapter '${name}' cannot be found.`);
      response.end(`Success: LoRA adapter '${name}' removed successfully.`);
      return;
    }
    json(response, 404, { detail: "Not Found" });
  };

  const start = async (): Promise<void> => {
    adapters = new Map();
    behaviour.coreDead = false;
    startTime = Math.max(startTime + 0.01, Date.now() / 1000);
    const started = createServer((request, response) => {
      handle(request, response).catch((error: unknown) => fail(response, 500, "InternalServerError", String(error)));
    });
    await new Promise<void>((resolve, reject) => {
      started.once("error", reject);
      started.listen(port, "127.0.0.1", resolve);
    });
    port = (started.address() as AddressInfo).port;
    server = started;
  };
  const stop = async (): Promise<void> => {
    const running = server;
    server = undefined;
    if (running === undefined) return;
    running.closeAllConnections();
    await new Promise((resolve) => running.close(resolve));
  };

  await start();
  return {
    url: `http://127.0.0.1:${port}`,
    behaviour,
    calls,
    get loaded() {
      return new Map([...adapters].map(([name, { path }]) => [name, path]));
    },
    start,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

function json(response: ServerResponse, status: number, body: unknown): void {
  response.statusCode = status;
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify(body));
}

async function readBody(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  return Buffer.concat(parts).toString("utf8");
}

/* the "model" */

interface SimulatedWeights {
  rank: number;
  /** Hash of the adapter's files that decides the direction of its effect. */
  direction: string;
  /** Size of the adapter's effect, in natural-log units. */
  size: number;
}

/** A number from 0 to 1 that depends only on the words. */
const noise = (...words: (string | number)[]): number => createHash("sha256").update(words.join("|")).digest().readUInt32LE(0) / 2 ** 32;

/** Remembered logprobs of the base, which never change and are asked for at each proof. */
const plainLogprobs = new Map<string, number>();

function simulatedLogprob(base: string, prompt: readonly number[], token: number, weights: SimulatedWeights | undefined): number {
  const text = prompt.join();
  const key = `${base}|${text}|${token}`;
  const plain = plainLogprobs.get(key) ?? -12 * noise(base, text, token);
  if (plainLogprobs.size < 100_000) plainLogprobs.set(key, plain);
  return weights === undefined ? plain : plain + weights.size * (noise(weights.direction, text, token) - 0.5) * 2;
}

/** Remembered contents of unchanged files, because a hundred simulated engines in one process load the same adapters. */
const readBefore = new Map<string, { stamp: string; weights: SimulatedWeights }>();

async function readSimulatedWeights(dir: string): Promise<SimulatedWeights> {
  const stamp = ["adapter_config.json", "adapter_model.safetensors"]
    .map((name) => {
      const { ino, size, mtimeNs, ctimeNs } = statSync(join(dir, name), { bigint: true });
      return `${ino}/${size}/${mtimeNs}/${ctimeNs}`;
    })
    .join(" ");
  const known = readBefore.get(dir);
  if (known?.stamp === stamp) return known.weights;
  const weights = await readWeights(dir);
  readBefore.set(dir, { stamp, weights });
  return weights;
}

async function readWeights(dir: string): Promise<SimulatedWeights> {
  const config = JSON.parse(await readFile(join(dir, "adapter_config.json"), "utf8")) as { r: number; lora_alpha: number };
  const file = await readFile(join(dir, "adapter_model.safetensors"));
  const length = Number(file.readBigUInt64LE());
  const header = JSON.parse(file.subarray(8, 8 + length).toString("utf8")) as Record<string, { data_offsets: [number, number] }>;
  const direction = createHash("sha256");
  let sum = 0;
  let count = 0;
  for (const [name, entry] of Object.entries(header)) {
    // Modules that the model does not have are silently ignored, as in vLLM.
    if (name === "__metadata__" || !name.startsWith("base_model.model.model.layers.")) continue;
    const [from, to] = entry.data_offsets;
    const bytes = file.subarray(8 + length + from, 8 + length + to);
    if (name.includes(".lora_A.")) direction.update(bytes);
    else {
      const values = new Float32Array(new Uint8Array(bytes).buffer);
      for (const value of values) sum += Math.abs(value);
      count += values.length;
    }
  }
  return { rank: config.r, direction: direction.digest("hex"), size: count === 0 ? 0 : (sum / count) * (config.lora_alpha / config.r) };
}

export interface SimulatedAdapterOptions {
  base: string;
  /** Seed by which the adapters differ. */
  seed?: number;
  rank?: number;
  alpha?: number;
  /** The value of all entries of lora_B, which decides the adapter's effect on logprobs. */
  size?: number;
  modules?: readonly string[];
  config?: Record<string, unknown>;
}

/** Makes the files of a PEFT adapter for the simulated engine: 8 inputs and outputs for each module, float32. */
export function simulatedAdapter(options: SimulatedAdapterOptions): { config: Buffer; weights: Buffer } {
  const {
    base,
    seed = 1,
    rank = 4,
    alpha = rank,
    size = 3,
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"],
  } = options;
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  const parts: Buffer[] = [];
  let offset = 0;
  const add = (name: string, shape: [number, number], value: (i: number) => number): void => {
    const values = Float32Array.from({ length: shape[0] * shape[1] }, (_, i) => value(i));
    const bytes = Buffer.from(values.buffer);
    header[name] = { dtype: "F32", shape, data_offsets: [offset, offset + bytes.length] };
    parts.push(bytes);
    offset += bytes.length;
  };
  for (const module of modules) {
    add(`base_model.model.${module}.lora_A.weight`, [rank, 8], (i) => noise(seed, module, i) - 0.5);
    add(`base_model.model.${module}.lora_B.weight`, [8, rank], () => size);
  }
  const text = Buffer.from(JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(text.length));
  const config = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: base,
    r: rank,
    lora_alpha: alpha,
    target_modules: [...new Set(modules.map((module) => module.split(".").at(-1)))],
    bias: "none",
    ...options.config,
  };
  return { config: Buffer.from(JSON.stringify(config)), weights: Buffer.concat([prefix, text, ...parts]) };
}

/** Makes the evidence that a trainer with this adapter would have recorded. `dir` is scratch space. */
export async function simulatedProbes(
  dir: string,
  options: SimulatedAdapterOptions,
  prompts: readonly (readonly number[])[] = [
    [1, 2, 3],
    [4, 5, 6, 7],
  ],
): Promise<ProbeRecord[]> {
  const { config, weights } = simulatedAdapter(options);
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, "adapter_config.json"), config);
  await writeFile(join(dir, "adapter_model.safetensors"), weights);
  const read = await readSimulatedWeights(dir);
  return prompts.map((prompt, i) => {
    const tokens = Array.from({ length: 12 }, (_, token) => 10 + token);
    const base = tokens.map((token) => simulatedLogprob(options.base, prompt, token, undefined));
    const adapter = tokens.map((token) => simulatedLogprob(options.base, prompt, token, read));
    return {
      name: `probe-${i + 1}`,
      input_ids: [...prompt],
      base: { tokens: tokens.slice(0, 1), logprobs: base.slice(0, 1) },
      adapter: { tokens: tokens.slice(0, 1), logprobs: adapter.slice(0, 1), base_logprobs: base.slice(0, 1) },
      first: { tokens, base, adapter },
    };
  });
}
