/**
 * Pure: what of an engine's settings vLLM can never do, judged by the base's own config.json before vLLM spends minutes on it.
 * What is said of vLLM is version 0.32's, read in its sources.
 */
import { engineKinds, type EngineSettings, type Problem } from "@loraline/contracts";
import { servedWrappers, wrapperOf } from "@loraline/models";
import type { BaseConfig } from "../base-config.ts";
import { vllmToolParsers } from "./tool-parsers.ts";

/**
 * Pure: what of these settings can never work with this base. Empty: nothing found.
 * @param processor - flags of the processor that the engine is to run on
 */
export function judgeVllmSettings(settings: EngineSettings, base: BaseConfig, processor: ReadonlySet<string>): Problem[] {
  const problems: Problem[] = [];
  const refuse = (code: string, param: string, message: string): void => {
    if (settings.ignore?.includes(code) !== true) problems.push({ code, param, message: `engine "${settings.engine}": ${message}` });
  };
  if (settings.maxCpuLoras < settings.maxLoras) {
    refuse(
      "CPU_LORAS_TOO_FEW",
      "maxCpuLoras",
      `maxCpuLoras is ${settings.maxCpuLoras}, but maxLoras is ${settings.maxLoras}: vLLM keeps at least as many adapters in memory as it has slots. Raise maxCpuLoras.`,
    );
  }
  judgeArchitecture(settings, base, refuse);
  judgeSharding(settings, base, refuse);
  judgeQuantization(settings, base, processor, refuse);
  judgeLength(settings, base, refuse);
  judgeArgs(settings, refuse);
  judgeToolParser(settings, refuse);
  return problems;
}

type Refuse = (code: string, param: string, message: string) => void;

/** Architectures that vLLM generates text with, but without LoRA: classes in its registry that are no SupportsLoRA. */
const withoutLora = new Set(
  (
    "BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM BloomForCausalLM Cohere2MoeForCausalLM DbrxForCausalLM DeepseekV32ForCausalLM " +
    "DeepseekV4ForCausalLM FalconForCausalLM FalconMambaForCausalLM Gemma3nForCausalLM Qwen4ExpForCausalLM GlmMoeDsaForCausalLM " +
    "Glm5NextForCausalLM GPT2LMHeadModel GPTJForCausalLM HrmTextForCausalLM HYV4ForCausalLM HCXVisionV2ForCausalLM IQuestLoopCoderForCausalLM " +
    "KimiLinearForCausalLM MambaForCausalLM Mamba2ForCausalLM MiniMaxM3SparseForCausalLM InklingForCausalLM MiMoV2FlashForCausalLM " +
    "MiMoV2ForCausalLM OrionForCausalLM Step1ForCausalLM Step3TextForCausalLM Step3p5ForCausalLM StableLmForCausalLM Zamba2ForCausalLM"
  ).split(" "),
);

function judgeArchitecture({ base: name }: EngineSettings, base: BaseConfig, refuse: Refuse): void {
  const architecture = base.architectures?.find((each) => withoutLora.has(each));
  if (architecture !== undefined) {
    refuse("ARCHITECTURE_WITHOUT_LORA", "base", `vLLM serves ${architecture} (base "${name}") without LoRA. Choose another base.`);
    return;
  }
  const wrapper = wrapperOf(base);
  if (wrapper === undefined ? base.vision_config === undefined && base.audio_config === undefined : wrapper.refused === undefined) return;
  const own = `base "${name}" (${base.architectures?.join(", ") ?? "no architecture"})`;
  refuse(
    "BASE_MULTIMODAL",
    "base",
    wrapper?.refused === undefined
      ? `${own} is multimodal, and not among those whose adapters are known to work in vLLM: ${servedWrappers.join(", ")}. Choose one of these, or a base of text only.`
      : `${own} is multimodal: ${wrapper.refused}. Choose another base.`,
  );
}

/** Of the language model, where the base has one of its own inside. */
const textOf = (base: BaseConfig) => base.text_config ?? base;

function judgeSharding(settings: EngineSettings, base: BaseConfig, refuse: Refuse): void {
  const size = settings.tensorParallelSize ?? 1;
  const { gpus } = settings;
  if (gpus !== undefined && size > Math.max(1, gpus)) {
    refuse("GPUS_TOO_FEW", "tensorParallelSize", `tensorParallelSize is ${size}, but gpus is ${gpus}: each shard needs a GPU.`);
  }
  const text = textOf(base);
  const heads = text.num_attention_heads ?? text.n_head ?? text.num_heads;
  if (size === 1 || typeof heads !== "number" || heads === 0) return;
  const fitting = Array.from({ length: 64 }, (_, i) => i + 1).filter((n) => heads % n === 0);
  if (heads % size !== 0) {
    refuse(
      "HEADS_NOT_DIVISIBLE",
      "tensorParallelSize",
      `tensorParallelSize is ${size}, but base "${settings.base}" has ${heads} attention heads, which it must divide. Possible: ${fitting.join(", ")}.`,
    );
    return;
  }
  const kvHeads =
    text.n_head_kv ?? text.num_kv_heads ?? text.num_key_value_heads ?? text.multi_query_group_num ?? text.num_attention_groups;
  if (typeof kvHeads !== "number" || kvHeads === 0) return;
  const fits = (n: number): boolean => (kvHeads >= n ? kvHeads % n === 0 : n % kvHeads === 0);
  if (!fits(size)) {
    refuse(
      "HEADS_NOT_DIVISIBLE",
      "tensorParallelSize",
      `tensorParallelSize is ${size}, but base "${settings.base}" has ${kvHeads} key/value heads: one of the two must divide the other. Possible: ${fitting.filter(fits).join(", ")}.`,
    );
  }
}

/** Names of one way to store weights, as `quantization` may ask for it; the first is what config.json calls it. */
const storedWays: readonly (readonly string[])[] = [
  ["gptq", "auto_gptq", "gptq_marlin"],
  ["awq", "auto_awq", "awq_marlin"],
  ["compressed-tensors"],
  ["mxfp4", "gpt_oss_mxfp4"],
  ["modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"],
  ["quark"],
];
/** What vLLM reads besides. */
const otherWays = new Set([
  "fp8",
  "fbgemm_fp8",
  "fp_quant",
  "experts_int8",
  "torchao",
  "inc",
  "auto-round",
  "deepseek_v4_fp8",
  "mxfp8",
  "nvfp4",
  "humming",
]);
/** Ways in which vLLM rounds weights itself that are stored in full, while it loads them. */
export const roundsItself: ReadonlySet<string> = new Set([
  "fp8_per_tensor",
  "fp8_per_channel",
  "fp8_per_block",
  "mxfp8",
  "mxfp4",
  "nvfp4_per_token",
  "int8_per_channel_weight_only",
  "experts_int8",
  "torchao",
  "humming",
  // An older name of fp8_per_tensor; of weights that are stored in FP8 it says only what config.json says.
  "fp8",
]);
/**
 * Of these, those that vLLM's CPU build cannot do, tried on both kinds of processor: it ends as it loads, or an answer
 * takes minutes. `instead`: what it can.
 */
const cpuCannotRound = {
  withAmx: { names: new Set(["fp8", "fp8_per_tensor", "fp8_per_channel"]), instead: "fp8_per_block" },
  withoutAmx: { names: new Set(["fp8", "fp8_per_tensor", "fp8_per_block"]), instead: "fp8_per_channel" },
};
/** These read weights of more than one kind. */
const readsSeveral = new Set(["moe_wna16", "humming", "inc"]);
const wayOf = (name: string): string => storedWays.find((names) => names.includes(name))?.[0] ?? name;

/** Ways that vLLM does not compute with in float32. */
const halfOnly = new Set(["gptq", "awq", "fp8", "fp8_per_tensor", "fp8_per_channel", "fp8_per_block", "mxfp8"]);

const cpuKvCaches = ["auto", "fp8", "fp8_e4m3", "fp8_e5m2"];

function judgeQuantization(settings: EngineSettings, base: BaseConfig, processor: ReadonlySet<string>, refuse: Refuse): void {
  const { quantization: asked, kvCacheDtype, gpus } = settings;
  const config = base.quantization_config ?? base.text_config?.quantization_config ?? base.compression_config;
  const stored = config?.quant_method?.toLowerCase();
  if (stored !== undefined && !otherWays.has(stored) && !storedWays.some(([name]) => name === stored)) {
    refuse(
      "QUANTIZATION_UNKNOWN",
      "base",
      `the weights of base "${settings.base}" are stored as ${stored}, which vLLM does not read. Choose another base, or convert it.`,
    );
  } else if (asked !== undefined && stored !== undefined && wayOf(asked) !== stored && !readsSeveral.has(asked)) {
    refuse(
      "QUANTIZATION_MISMATCH",
      "quantization",
      `quantization is ${asked}, but the weights of base "${settings.base}" are stored as ${stored}. Leave quantization out: vLLM finds it by itself.`,
    );
  } else if (asked !== undefined && (config === null || config === undefined) && storedWays.some((names) => names.includes(asked))) {
    refuse(
      "QUANTIZATION_MISMATCH",
      "quantization",
      `quantization is ${asked}, but the weights of base "${settings.base}" are not quantized (its config.json has no quantization_config). Leave it out, or choose weights that were stored so.`,
    );
  }
  const [kind, cannot] = processor.has("amx_tile") ? ["with", cpuCannotRound.withAmx] : ["without", cpuCannotRound.withoutAmx];
  if (gpus === 0 && asked !== undefined && stored === undefined && cannot.names.has(asked)) {
    refuse(
      "QUANTIZATION_NEEDS_GPU",
      "quantization",
      `quantization is ${asked}, for which vLLM's CPU build (gpus: 0) has no kernel on a processor ${kind} AMX, as this is one. Write ${cannot.instead}, or leave it out.`,
    );
  }
  const isX86 = processor.has("sse2");
  if (gpus === 0 && stored !== undefined && ["gptq", "awq"].includes(stored) && isX86 && !processor.has("avx512f")) {
    refuse(
      "QUANTIZATION_NEEDS_GPU",
      "base",
      `the weights of base "${settings.base}" are stored as ${stored}, for which vLLM's CPU build (gpus: 0) has a kernel on processors with AVX-512 only, and this one has none. Take the base's unquantized weights, or an engine on a GPU.`,
    );
  }
  const way = asked ?? stored;
  if (way !== undefined && (settings.dtype === "float32" || settings.dtype === "float") && halfOnly.has(wayOf(way))) {
    refuse(
      "QUANTIZATION_DTYPE",
      "dtype",
      `dtype is ${settings.dtype}, but vLLM computes with weights in ${way} in bfloat16 or float16 only. Leave dtype out, or choose one of these.`,
    );
  }
  if (gpus === 0 && kvCacheDtype !== undefined && !cpuKvCaches.includes(kvCacheDtype)) {
    refuse(
      "KV_CACHE_UNSUPPORTED",
      "kvCacheDtype",
      `kvCacheDtype is ${kvCacheDtype}, but an engine on the CPU (gpus: 0) keeps only ${cpuKvCaches.join(", ")}.`,
    );
  } else if (gpus === 0 && kvCacheDtype?.startsWith("fp8") === true && isX86 && !processor.has("avx512f")) {
    refuse(
      "KV_CACHE_UNSUPPORTED",
      "kvCacheDtype",
      `kvCacheDtype is ${kvCacheDtype}, which vLLM's CPU build (gpus: 0) keeps on processors with AVX-512 only, and this one has none. Leave it out.`,
    );
  }
}

/** Kinds of RoPE scaling after which max_position_embeddings is the longest already. */
const scaledAlready = new Set(["su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"]);

function judgeLength(settings: EngineSettings, base: BaseConfig, refuse: Refuse): void {
  const text = textOf(base);
  const lengths = [
    text.max_position_embeddings,
    text.n_positions,
    text.max_seq_len,
    text.seq_length,
    text.model_max_length,
    text.max_sequence_length,
    text.max_seq_length,
    text.seq_len,
  ].filter((length) => typeof length === "number");
  if (lengths.length === 0) return;
  const scaling = (base.model_type ?? "").includes("gemma3")
    ? 1
    : Math.max(1, ...ropesOf(text.rope_parameters ?? text.rope_scaling).map(factorOf));
  const longest = Math.max(Math.min(...lengths) * scaling, text.model_max_length ?? 0);
  if (settings.maxModelLen > longest) {
    refuse(
      "MAX_MODEL_LEN_TOO_HIGH",
      "maxModelLen",
      `maxModelLen is ${settings.maxModelLen}, but base "${settings.base}" was made for sequences up to ${longest} tokens. Lower it.`,
    );
  }
}

interface Rope {
  rope_type?: unknown;
  type?: unknown;
  factor?: unknown;
}
/** One set of parameters, or one for each type of layer. */
function ropesOf(value: unknown): Rope[] {
  if (typeof value !== "object" || value === null) return [];
  const own = value as Rope;
  return "rope_type" in own || "type" in own ? [own] : Object.values(value as Record<string, unknown>).flatMap(ropesOf);
}
const factorOf = ({ rope_type, type, factor }: Rope): number =>
  typeof factor === "number" && !scaledAlready.has(String(rope_type ?? type)) ? factor : 1;

function judgeArgs({ extraArgs = [] }: EngineSettings, refuse: Refuse): void {
  const given = new Map<string, string>();
  for (const [i, arg] of extraArgs.entries()) {
    if (!arg.startsWith("-")) continue;
    const [, flag = arg, value = extraArgs[i + 1] ?? ""] = /^([^=]+)=(.*)$/s.exec(arg) ?? [];
    // vLLM reads underscores as dashes.
    given.set(flag.startsWith("--") ? flag.replaceAll("_", "-") : flag, value);
  }
  for (const flag of given.keys()) {
    const key = engineKinds.vllm.ownFlags.get(flag);
    if (key === undefined) continue;
    refuse(
      "ARG_TAKEN",
      "extraArgs",
      `extraArgs has ${flag}, which ${key === "" ? "Loraline sets itself" : `is set by ${key}`}. Leave it out.`,
    );
  }
  const servers = Number(given.get("--api-server-count") ?? Number.NaN);
  const parallel = Number(given.get("--data-parallel-size") ?? given.get("-dp") ?? 1);
  if (servers > 1 || (parallel > 1 && servers !== 1)) {
    refuse(
      "API_SERVERS",
      "extraArgs",
      `vLLM refuses to load adapters at run time with more than one API server, and --data-parallel-size ${parallel} starts ${servers > 1 ? servers : parallel}. Use more replicas instead, or add --api-server-count=1.`,
    );
  }
}

function judgeToolParser({ toolCallParser, extraArgs = [] }: EngineSettings, refuse: Refuse): void {
  if (toolCallParser === undefined || toolCallParser === "none" || vllmToolParsers.has(toolCallParser)) return;
  // A plugin brings parsers of its own.
  if (extraArgs.some((arg) => arg.replaceAll("_", "-").startsWith("--tool-parser-plugin"))) return;
  refuse(
    "TOOL_PARSER_UNKNOWN",
    "toolCallParser",
    `toolCallParser is ${toolCallParser}, which vLLM does not have. Possible: none, ${[...vllmToolParsers].join(", ")}. Leave it out to have it chosen by the base's chat template.`,
  );
}
