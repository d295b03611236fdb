import { describe, expect, it } from "vitest";
import { type EngineSettings, engineSettings } from "@loraline/contracts";
import { type BaseConfig, baseConfig } from "../base-config.ts";
import { judgeVllmSettings } from "./judge-settings.ts";

const settings = (over: Partial<EngineSettings> = {}): EngineSettings =>
  engineSettings.parse({ engine: "e", base: "b", maxLoras: 4, maxCpuLoras: 16, maxLoraRank: 32, maxModelLen: 2048, ...over });
const config = (over: Record<string, unknown> = {}): BaseConfig =>
  baseConfig.parse({
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    num_attention_heads: 32,
    num_key_value_heads: 8,
    max_position_embeddings: 8192,
    ...over,
  });
const withAmx = new Set(["avx512f", "amx_tile"]);
const codes = (over: Partial<EngineSettings>, base: Record<string, unknown> = {}, processor = new Set<string>()): string[] =>
  judgeVllmSettings(settings(over), config(base), processor).map(({ code }) => code);

describe("judgeVllmSettings", () => {
  it("finds nothing wrong with what works", () => {
    expect(codes({})).toEqual([]);
    expect(codes({ tensorParallelSize: 4, gpus: 4, kvCacheDtype: "fp8", prefixCaching: false, extraArgs: ["--max-num-seqs=16"] })).toEqual(
      [],
    );
    expect(codes({ gpus: 0, kvCacheDtype: "fp8_e5m2" })).toEqual([]);
    // Key/value heads are copied where there are more shards.
    expect(codes({ tensorParallelSize: 16, gpus: 16 })).toEqual([]);
  });

  it.each<[string, Partial<EngineSettings>, Record<string, unknown>]>([
    ["CPU_LORAS_TOO_FEW", { maxCpuLoras: 3 }, {}],
    ["GPUS_TOO_FEW", { tensorParallelSize: 2, gpus: 1 }, {}],
    ["HEADS_NOT_DIVISIBLE", { tensorParallelSize: 3, gpus: 3 }, {}],
    ["HEADS_NOT_DIVISIBLE", { tensorParallelSize: 2, gpus: 2 }, { num_attention_heads: 14, num_key_value_heads: 3 }],
    ["ARCHITECTURE_WITHOUT_LORA", {}, { architectures: ["FalconMambaForCausalLM"] }],
    ["BASE_MULTIMODAL", {}, { architectures: ["Phi3VForCausalLM"], vision_config: {} }],
    ["BASE_MULTIMODAL", {}, { architectures: ["UltravoxModel"], audio_config: {} }],
    ["BASE_MULTIMODAL", {}, { architectures: ["Llama4ForConditionalGeneration"], vision_config: {} }],
    ["QUANTIZATION_MISMATCH", { quantization: "gptq" }, {}],
    ["QUANTIZATION_MISMATCH", { quantization: "awq" }, { quantization_config: { quant_method: "gptq" } }],
    ["QUANTIZATION_MISMATCH", { quantization: "fp8" }, { quantization_config: { quant_method: "awq" } }],
    ["QUANTIZATION_DTYPE", { dtype: "float32" }, { quantization_config: { quant_method: "gptq" } }],
    ["QUANTIZATION_DTYPE", { dtype: "float", quantization: "awq_marlin" }, { quantization_config: { quant_method: "awq" } }],
    ["QUANTIZATION_DTYPE", { dtype: "float32", quantization: "fp8" }, {}],
    ["QUANTIZATION_DTYPE", { dtype: "float32", quantization: "fp8_per_channel" }, {}],
    ["QUANTIZATION_NEEDS_GPU", { gpus: 0, quantization: "fp8" }, {}],
    ["QUANTIZATION_NEEDS_GPU", { gpus: 0, quantization: "fp8_per_tensor" }, {}],
    ["QUANTIZATION_UNKNOWN", {}, { quantization_config: { quant_method: "bitsandbytes" } }],
    ["KV_CACHE_UNSUPPORTED", { gpus: 0, kvCacheDtype: "nvfp4" }, {}],
    ["MAX_MODEL_LEN_TOO_HIGH", { maxModelLen: 9000 }, {}],
    ["MAX_MODEL_LEN_TOO_HIGH", { maxModelLen: 9000 }, { rope_scaling: { rope_type: "llama3", factor: 8 } }],
    ["ARG_TAKEN", { extraArgs: ["--max_loras", "9"] }, {}],
    ["ARG_TAKEN", { extraArgs: ["--tool-call-parser=hermes"] }, {}],
    ["TOOL_PARSER_UNKNOWN", { toolCallParser: "qwen" }, {}],
    ["API_SERVERS", { extraArgs: ["--api-server-count=2"] }, {}],
    ["API_SERVERS", { extraArgs: ["--data-parallel-size", "2"] }, {}],
  ])("refuses %s: %j with %j", (code, over, base) => {
    const [problem, ...more] = judgeVllmSettings(settings(over), config(base), new Set());
    expect(more).toEqual([]);
    expect(problem).toMatchObject({ code });
    expect(codes({ ...over, ignore: [code] }, base)).toEqual([]);
  });

  it("takes multimodal bases whose adapters are known to work", () => {
    expect(codes({}, { architectures: ["Gemma3ForConditionalGeneration"], vision_config: {}, text_config: {} })).toEqual([]);
    expect(codes({}, { architectures: ["SmolVLMForConditionalGeneration"], vision_config: {}, text_config: {} })).toEqual([]);
  });

  it("takes quantizations that fit the files, and those that are made while loading", () => {
    for (const quantization of ["gptq", "gptq_marlin", "auto_gptq"])
      expect(codes({ quantization }, { quantization_config: { quant_method: "gptq" } })).toEqual([]);
    expect(codes({ quantization: "awq_marlin" }, { quantization_config: { quant_method: "awq" } })).toEqual([]);
    for (const quantization of ["fp8", "fp8_per_channel", "fp8_per_tensor", "fp8_per_block"]) expect(codes({ quantization })).toEqual([]);
    expect(codes({ gpus: 0, quantization: "fp8_per_channel" })).toEqual([]);
    expect(codes({ gpus: 0, quantization: "fp8_per_channel" }, {}, withAmx)).toEqual(["QUANTIZATION_NEEDS_GPU"]);
    expect(codes({ gpus: 0, quantization: "fp8_per_block" })).toEqual(["QUANTIZATION_NEEDS_GPU"]);
    expect(codes({ gpus: 0, quantization: "fp8_per_block" }, {}, withAmx)).toEqual([]);
    for (const quant_method of ["gptq", "awq"]) {
      const onProcessor = (...flags: string[]) => codes({ gpus: 0 }, { quantization_config: { quant_method } }, new Set(flags));
      expect(onProcessor("sse2", "avx2")).toEqual(["QUANTIZATION_NEEDS_GPU"]);
      expect(onProcessor("sse2", "avx2", "avx512f")).toEqual([]);
      expect(onProcessor("asimd", "bf16")).toEqual([]);
    }
    expect(codes({ gpus: 0, kvCacheDtype: "fp8" }, {}, new Set(["sse2", "avx2"]))).toEqual(["KV_CACHE_UNSUPPORTED"]);
    expect(codes({ gpus: 0, kvCacheDtype: "fp8" }, {}, new Set(["sse2", "avx2", "avx512f"]))).toEqual([]);
    expect(codes({ gpus: 1, kvCacheDtype: "fp8" }, {}, new Set(["sse2", "avx2"]))).toEqual([]);
    expect(codes({ gpus: 0, quantization: "fp8" }, { quantization_config: { quant_method: "fp8" } })).toEqual([]);
    expect(codes({ quantization: "fp8" }, { quantization_config: { quant_method: "fp8" } })).toEqual([]);
  });

  it("stretches the longest sequence as RoPE scaling does", () => {
    expect(codes({ maxModelLen: 16_384 }, { rope_scaling: { type: "linear", factor: 2 } })).toEqual([]);
    expect(codes({ maxModelLen: 16_385 }, { rope_scaling: { type: "linear", factor: 2 } })).toEqual(["MAX_MODEL_LEN_TOO_HIGH"]);
  });

  it("takes tool parsers of vLLM, none, and those of a plugin", () => {
    for (const toolCallParser of ["hermes", "granite-20b-fc", "none"]) expect(codes({ toolCallParser })).toEqual([]);
    expect(codes({ toolCallParser: "own", extraArgs: ["--tool-parser-plugin=/plugins/own.py"] })).toEqual([]);
  });

  it("lets one API server speak for several engine processes", () => {
    expect(codes({ extraArgs: ["--data-parallel-size=2", "--api-server-count=1"] })).toEqual([]);
  });
});
