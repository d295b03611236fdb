/**
 * Checks what an operator declares: that a quantised base was made of another base's weights, so that adapters of one serve on the other.
 *
 * What can be compared: tokenizer and sizes, all of them; tensors that are not quantised (norms, embeddings), which have to be equal; 4-bit
 * weights of GPTQ and AWQ, of the first, the middle and the last layer, 64 outputs of each module, which have to be the original's as their
 * steps allow. A base that was fine-tuned from the original differs by less than a step: norms and embeddings tell the two apart, where the fine-tuning
 * changed them (a LoRA that was merged did not). In other packings (FP8, compressed-tensors) the quantised weights are not compared.
 *
 * Rounding to nearest differs by 0.29 steps (root mean square), and GPTQ, which makes up in one weight for the error of another, by at most
 * about 1; the weights of another base by 3 and more. The limit is 1.5.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { Problem } from "@loraline/contracts";
import { spellingsOf } from "./architectures.ts";
import { openTensors, type OpenTensors } from "./open-tensors.ts";
import { type PackedModule, type Packing, packingOf, unpackedWeight } from "./quantised-tensors.ts";

const mostSteps = 1.5;
const sampledOutputs = 64;
/** Of a large tensor, so many windows of so many bytes are compared. */
const [windows, windowBytes] = [16, 16 * 1024];

/** Fields of config.json that say what is computed. */
const computed = [
  "architectures",
  "model_type",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "vocab_size",
  "hidden_act",
  "tie_word_embeddings",
] as const;
/** Fields that tools leave out: they are compared where both configs have them. */
const computedIfSaid = ["rms_norm_eps", "rope_theta", "rope's type", "rope's factor"] as const;

/**
 * @param dir - the folder of the quantised base.
 * @param original - the folder of the base that it is said to be made of.
 * @returns TWIN_CONFIG_DIFFERS, TWIN_TOKENIZER_DIFFERS, TWIN_SCALES_FOLDED, TWIN_WEIGHTS_DIFFER; undefined: nothing speaks against it.
 * @throws PermanentError ADAPTER_UNREADABLE for a broken safetensors file
 */
export async function checkTwin(dir: string, original: string): Promise<Problem | undefined> {
  const said = "derivedFrom names the base whose weights were quantised";
  const refuse = (code: string, message: string): Problem => ({ code, param: "derivedFrom", message });
  const [config = {}, theirs = {}] = await Promise.all([dir, original].map((folder) => readJson(join(folder, "config.json"))));
  const [ours, others] = [computingOf(config), computingOf(theirs)];
  const field =
    computed.find((name) => !isDeepStrictEqual(ours[name] ?? null, others[name] ?? null)) ??
    computedIfSaid.find((name) => (ours[name] ?? null) !== null && (others[name] ?? null) !== null && ours[name] !== others[name]);
  if (field !== undefined) {
    const [here, there] = [ours[field], others[field]].map((value) => JSON.stringify(value ?? null));
    return refuse("TWIN_CONFIG_DIFFERS", `${field} is ${here} in ${dir} and ${there} in ${original}: these are two models. ${said}.`);
  }
  const part = await otherTokenizer(dir, original);
  if (part !== undefined) {
    return refuse(
      "TWIN_TOKENIZER_DIFFERS",
      `${part} of tokenizer.json differs between ${dir} and ${original}, so the same text would be other tokens than the adapter was trained on. If the weights are of this base, put its tokenizer.json there; else name their own base.`,
    );
  }
  await using here = await openTensors(dir);
  await using there = await openTensors(original);
  const plain = plainPairs(here, there);
  if (plain.length === 0) {
    return refuse(
      "TWIN_WEIGHTS_DIFFER",
      `no unquantised tensor of ${dir} has a counterpart in ${original}, so nothing can be compared: these are two models. ${said}.`,
    );
  }
  const differing = await differingPlain(here, there, plain);
  const [first] = differing;
  const norms = differing.filter((name) => /norm/.test(name));
  const packing = packingOf(config);
  if (first !== undefined && norms.length === differing.length && packing?.method === "awq") {
    return refuse(
      "TWIN_SCALES_FOLDED",
      `AWQ's tool has moved scales out of the weights of ${dir} into its norms ("${first}" and ${norms.length - 1} more differ from the original's), so the modules get other inputs than those that an adapter of the original was trained on. Train on this base itself, without derivedFrom: the trainer unpacks it.`,
    );
  }
  const compared = first === undefined && packing !== undefined ? await differingPacked(here, there, packing) : undefined;
  const why = first !== undefined ? `"${first}" is not quantised, and it is not the original's` : compared;
  return why === undefined ? undefined : refuse("TWIN_WEIGHTS_DIFFER", `${dir} was not made of ${original}: ${why}. ${said}.`);
}

/** What a config says of its language model, whether that stands in a wrapper, and whichever transformers wrote it. */
function computingOf(config: Record<string, unknown>): Record<string, unknown> {
  const inner = (config["text_config"] ?? {}) as Record<string, unknown>;
  const all: Record<string, unknown> = { ...config, ...inner, architectures: config["architectures"], model_type: config["model_type"] };
  const rope = { ...(all["rope_scaling"] as object | null), ...(all["rope_parameters"] as object | null) } as Record<string, unknown>;
  // One for each kind of layer is not compared.
  const isOne = Object.values(rope).every((value) => typeof value !== "object");
  if (!isOne) return all;
  return {
    ...all,
    rope_theta: rope["rope_theta"] ?? all["rope_theta"],
    "rope's type": rope["rope_type"] ?? rope["type"] ?? "default",
    "rope's factor": rope["factor"],
  };
}

const readJson = async (file: string): Promise<Record<string, unknown>> =>
  JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;

/** The part of tokenizer.json that makes other tokens. Tools write the same tokenizer in several ways. */
async function otherTokenizer(dir: string, original: string): Promise<string | undefined> {
  const files = await Promise.all([dir, original].map((folder) => readFile(join(folder, "tokenizer.json"), "utf8")));
  if (files[0] === files[1]) return undefined;
  const [here, there] = files.map((text) => {
    const {
      model = {},
      added_tokens = [],
      normalizer = null,
      pre_tokenizer = null,
    } = JSON.parse(text) as {
      model?: { vocab?: unknown; merges?: (string | string[])[] };
      added_tokens?: { id: number; content: string }[];
      normalizer?: unknown;
      pre_tokenizer?: unknown;
    };
    return {
      vocab: model.vocab,
      merges: model.merges?.map((merge) => (Array.isArray(merge) ? merge.join(" ") : merge)),
      added_tokens: added_tokens.map(({ id, content }) => [id, content]),
      normalizer,
      pre_tokenizer,
    };
  });
  const parts = ["vocab", "merges", "added_tokens", "normalizer", "pre_tokenizer"] as const;
  return parts.find((part) => !isDeepStrictEqual(here?.[part], there?.[part]));
}

type Pair = readonly [name: string, theirs: string];

/** Tensors that are stored unquantised in both. A language model may have the names of another wrapper in each. */
const plainPairs = (here: OpenTensors, there: OpenTensors): Pair[] =>
  [...here.names()].flatMap((name): Pair[] => {
    const theirs = isPlain(here, name) ? spellingsOf(name).find((each) => isPlain(there, each)) : undefined;
    return theirs === undefined ? [] : [[name, theirs]];
  });

/** Those that differ. */
async function differingPlain(here: OpenTensors, there: OpenTensors, plain: readonly Pair[]): Promise<string[]> {
  const differing: string[] = [];
  for (const [name, theirs] of plain) {
    const [a, b] = [here.tensor(name), there.tensor(theirs)];
    const values = a.shape.reduce((product, size) => product * size, 1);
    let isEqual = isDeepStrictEqual(a.shape, b.shape);
    const most = Math.min(values, windowBytes / 2);
    const starts =
      values <= most * windows ? [0] : Array.from({ length: windows }, (_, i) => Math.floor(((values - most) * i) / (windows - 1)));
    const length = starts.length === 1 ? values : most;
    for (const start of starts) {
      if (!isEqual) break;
      const [x, y] = await Promise.all([here.values(name, start, length), there.values(theirs, start, length)]);
      isEqual = x.every((value, i) => isClose(value, y[i] ?? Number.NaN, a.dtype === b.dtype));
    }
    if (!isEqual) differing.push(name);
  }
  return differing;
}

const isPlain = (tensors: OpenTensors, name: string): boolean =>
  tensors.has(name) && ["BF16", "F16", "F32"].includes(tensors.tensor(name).dtype) && !/\.(?:scales|qzeros|g_idx)$/.test(name);

/** Tools store what they do not quantise in float16 where it was bfloat16, or the other way round: exact to the coarser one's last bit. */
const isClose = (a: number, b: number, exact: boolean): boolean =>
  a === b || (!exact && Math.abs(a - b) <= 2 ** -8 * Math.abs(b) + 2 ** -24);

/** Why the packed weights are not the original's; undefined: they are. */
async function differingPacked(here: OpenTensors, there: OpenTensors, packing: Packing): Promise<string | undefined> {
  const modules = [...here.names()].flatMap((name) => /^(.+)\.qweight$/.exec(name)?.[1] ?? []);
  const layers = [...new Set(modules.map(layerOf))].toSorted((a, b) => a - b);
  const sampled = new Set([layers[0], layers[Math.floor(layers.length / 2)], layers.at(-1)]);
  for (const name of modules.filter((each) => sampled.has(layerOf(each)))) {
    const weight = spellingsOf(`${name}.weight`).find((each) => there.has(each));
    if (weight === undefined) return `it has no "${name}.weight"`;
    const [outputs = 0, inputs = 0] = there.tensor(weight).shape;
    const module: PackedModule = {
      packing,
      inputs,
      outputs,
      qweight: await here.words(`${name}.qweight`),
      qzeros: await here.words(`${name}.qzeros`),
      scales: Float32Array.from(await here.values(`${name}.scales`)),
      groups: here.has(`${name}.g_idx`) ? await here.words(`${name}.g_idx`) : undefined,
    };
    if (module.qweight.length * 8 !== inputs * outputs) return `"${name}" has another size`;
    const rows = Math.min(outputs, sampledOutputs);
    const original = await there.values(weight, 0, rows * inputs);
    let squares = 0;
    for (let output = 0; output < rows; output++) {
      for (let input = 0; input < inputs; input++) {
        const { value, step } = unpackedWeight(module, output, input);
        squares += ((value - (original[output * inputs + input] as number)) / step) ** 2;
      }
    }
    const steps = Math.sqrt(squares / (rows * inputs));
    if (!(steps <= mostSteps))
      return `the weights of "${name}" are ${steps.toFixed(1)} steps of its packing away from the original's (limit ${mostSteps})`;
  }
  return undefined;
}

const layerOf = (module: string): number => Number(/\.(\d+)\./.exec(module)?.[1] ?? -1);
