/**
 * The "model" of the simulated engine: hashes. Its logprobs depend on prompt, token and, with an adapter, on the adapter's files: the
 * direction on its lora_A, the size on its lora_B and scaling. Its chat answers depend on base, adapter and the last message, so that
 * whoever has the adapter's bytes knows what a version must say.
 */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { ProbeRecord } from "@loraline/contracts";

export interface SimulatedWeights {
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

/** Remembered answers to probes, since a hundred simulated engines in one process are asked the same of the same adapters. */
const remembered = new Map<string, string>();

/** `choices` of a completion, as JSON: what base or adapter says of these tokens right after each prompt. */
export function simulatedChoices(
  base: string,
  prompts: readonly (readonly number[])[],
  tokens: readonly number[],
  weights: SimulatedWeights | undefined,
): string {
  const key = JSON.stringify([base, weights?.direction, weights?.size, prompts, tokens]);
  const known = remembered.get(key);
  if (known !== undefined) return known;
  const choices = JSON.stringify(
    prompts.map((prompt, index) => ({
      index,
      text: "",
      finish_reason: "length",
      logprobs: {
        top_logprobs: [Object.fromEntries(tokens.map((token) => [`token_id:${token}`, simulatedLogprob(base, prompt, token, weights)]))],
      },
    })),
  );
  if (remembered.size >= 4096) remembered.clear();
  remembered.set(key, choices);
  return choices;
}

interface SimulatedAnswer {
  /** The text, in parts as they are streamed. */
  parts: string[];
  usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number };
}

/** What a chat is answered. Tokens are words. Without weights it is the base's answer. */
export function simulatedAnswer(
  base: string,
  weights: SimulatedWeights | undefined,
  messages: readonly { content: string | null }[],
): SimulatedAnswer {
  const asked = messages.map(({ content }) => content ?? "");
  const said = createHash("sha256")
    .update([base, weights?.direction ?? "", weights?.size ?? 0, asked.at(-1)].join("|"))
    .digest("hex");
  const parts = Array.from({ length: 8 }, (_, word) => `${word === 0 ? "" : " "}${said.slice(word * 4, word * 4 + 4)}`);
  const prompt_tokens = asked.join(" ").split(/\s+/).length;
  return { parts, usage: { prompt_tokens, completion_tokens: parts.length, total_tokens: prompt_tokens + parts.length } };
}

/** Remembered contents of unchanged files, because a hundred simulated engines in one process load the same adapters. */
const readBefore = new Map<string, { stamp: string; weights: SimulatedWeights }>();

export async function readSimulatedWeights(dir: string): Promise<SimulatedWeights> {
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

const readWeights = async (dir: string): Promise<SimulatedWeights> =>
  simulatedWeights({
    config: await readFile(join(dir, "adapter_config.json")),
    weights: await readFile(join(dir, "adapter_model.safetensors")),
  });

/** What the simulated engine makes of an adapter's two files. */
export function simulatedWeights(files: { config: Buffer; weights: Buffer }): SimulatedWeights {
  const config = JSON.parse(files.config.toString("utf8")) as { r: number; lora_alpha: number };
  const file = files.weights;
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
