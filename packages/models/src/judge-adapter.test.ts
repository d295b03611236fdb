import { describe, expect, it } from "vitest";
import { type AdapterParts, judgeAdapter, type JudgedTensor, type JudgeOptions, type ServedBase } from "./judge-adapter.ts";

const q = "model.layers.0.self_attn.q_proj";
const base: ServedBase = { name: "small", maxLoraRank: 16, modules: new Map([[q, [32, 64]]]) };
const tensor = (name: string, shape: number[], over: Partial<JudgedTensor> = {}): JudgedTensor => ({
  name,
  dtype: "BF16",
  shape,
  notFinite: 0,
  allZero: false,
  ...over,
});
const a = (over: Partial<JudgedTensor> = {}, shape = [8, 64]) => tensor(`base_model.model.${q}.lora_A.weight`, shape, over);
const b = (over: Partial<JudgedTensor> = {}, shape = [32, 8]) => tensor(`base_model.model.${q}.lora_B.weight`, shape, over);
const good = {
  peft_type: "LORA",
  r: 8,
  lora_alpha: 8,
  target_modules: ["q_proj"],
  base_model_name_or_path: "small",
  bias: "none",
  use_dora: false,
  modules_to_save: null,
  rank_pattern: {},
  alpha_pattern: {},
};
const judge = (over: Partial<AdapterParts> & { config?: Record<string, unknown> } = {}, served = base, options?: JudgeOptions) =>
  judgeAdapter({ tensors: over.tensors ?? [a(), b()], config: { ...good, ...over.config } }, served, options).map(({ code, param }) => [
    code,
    param,
  ]);

describe("judgeAdapter", () => {
  it("finds nothing wrong with what the trainer publishes", () => {
    expect(judge()).toEqual([]);
    expect(judge({}, { name: "small", maxLoraRank: 8 })).toEqual([]);
  });

  it.each([
    ["another base by name", { base_model_name_or_path: "large" }, "ADAPTER_BASE_MISMATCH", "base_model_name_or_path"],
    ["a rank above the engine's", { r: 32 }, "ADAPTER_RANK_TOO_HIGH", "r"],
    ["DoRA", { use_dora: true }, "ADAPTER_FEATURE_UNSUPPORTED", "use_dora"],
    ["whole modules", { modules_to_save: ["lm_head"] }, "ADAPTER_FEATURE_UNSUPPORTED", "modules_to_save"],
    ["a beginning that changes the base", { init_lora_weights: "pissa_niter_4" }, "ADAPTER_FEATURE_UNSUPPORTED", "init_lora_weights"],
    ["biases", { bias: "all" }, "ADAPTER_FEATURE_UNSUPPORTED", "bias"],
    ["scalings per module", { alpha_pattern: { q_proj: 4 } }, "ADAPTER_NOT_CANONICAL", "alpha_pattern"],
    ["no rank", { r: undefined }, "ADAPTER_CONFIG_INVALID", "adapter_config.json: r"],
    ["another method", { peft_type: "IA3" }, "ADAPTER_CONFIG_INVALID", "adapter_config.json: peft_type"],
  ])("refuses %s in the config", (_what, config, code, param) => {
    expect(judge({ config })[0]).toEqual([code, param]);
  });

  it.each([
    ["NaN", [a({ notFinite: 3 }), b()], "ADAPTER_NAN"],
    ["only zeros in lora_B", [a(), b({ allZero: true })], "ADAPTER_ZERO"],
    ["no weights", [], "ADAPTER_EMPTY"],
    ["half a pair", [a()], "ADAPTER_TENSOR_MISSING"],
    ["another rank than its config", [a({}, [4, 64]), b({}, [32, 4])], "ADAPTER_SHAPE_MISMATCH"],
    ["other inputs than the base has", [a({}, [8, 128]), b()], "ADAPTER_BASE_MISMATCH"],
    ["a type that is no float", [a({ dtype: "I8" }), b()], "ADAPTER_DTYPE"],
    [
      "a module the base lacks",
      [
        a(),
        b(),
        tensor("base_model.model.model.layers.9.mlp.lora_A.weight", [8, 64]),
        tensor("base_model.model.model.layers.9.mlp.lora_B.weight", [64, 8]),
      ],
      "ADAPTER_MODULE_UNKNOWN",
    ],
    [
      "experts, in vLLM's layout of one pair for each",
      [
        a(),
        b(),
        tensor("base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight", [8, 64]),
        tensor("base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_B.weight", [16, 8]),
      ],
      "ADAPTER_FEATURE_UNSUPPORTED",
    ],
    [
      "experts, in PEFT's layout of one pair for all",
      [
        a(),
        b(),
        tensor("base_model.model.model.layers.0.mlp.experts.lora_A.weight", [32, 16]),
        tensor("base_model.model.model.layers.0.mlp.experts.lora_B.weight", [64, 32]),
      ],
      "ADAPTER_FEATURE_UNSUPPORTED",
    ],
    ["a DoRA magnitude", [a(), b(), tensor(`base_model.model.${q}.lora_magnitude_vector`, [32])], "ADAPTER_TENSOR_UNKNOWN"],
    ["a whole embedding", [a(), b(), tensor("base_model.model.model.embed_tokens.weight", [100, 64])], "ADAPTER_TENSOR_UNKNOWN"],
  ])("refuses tensors with %s", (_what, tensors, code) => {
    expect(judge({ tensors }).map(([found]) => found)).toContain(code);
  });

  it("names the tensor, and says each kind of problem once", () => {
    const many = Array.from({ length: 40 }, (_, i) =>
      tensor(`base_model.model.model.layers.${i}.x.lora_A.weight`, [8, 64], { notFinite: 1 }),
    );
    const problems = judgeAdapter({ tensors: many, config: good }, { name: "small", maxLoraRank: 16 });
    expect(problems.map(({ code }) => code)).toEqual(["ADAPTER_NAN", "ADAPTER_TENSOR_MISSING"]);
    expect(problems[0]?.message).toContain("layers.0.x.lora_A");
  });

  it("takes from elsewhere what can be made canonical, and nothing else", () => {
    const imported = { imported: true };
    const patterns = { rank_pattern: { q_proj: 4 }, alpha_pattern: { q_proj: 4 }, use_rslora: true };
    expect(judge({ config: patterns, tensors: [a({}, [4, 64]), b({}, [32, 4])] }, base, imported)).toEqual([]);
    const named = (name: string, options: JudgeOptions) => judge({ config: { base_model_name_or_path: name } }, base, options);
    expect(named("Some-Org/Small", imported)).toEqual([]);
    expect(named("/models/small/", imported)).toEqual([]);
    expect(named("Some-Org/Small", {})).toEqual([["ADAPTER_BASE_MISMATCH", "base_model_name_or_path"]]);
    expect(named("Some-Org/Small-Instruct", imported)).toEqual([["ADAPTER_BASE_MISMATCH", "base_model_name_or_path"]]);
    expect(named("Some-Org/Small-Instruct", { imported: true, anyBase: true })).toEqual([]);
    expect(judge({ config: { r: 32 }, tensors: [a({}, [32, 64]), b({}, [32, 32])] }, base, imported)).toEqual([
      ["ADAPTER_RANK_TOO_HIGH", "r"],
    ]);
    // A header may hold any number of tensors.
    const many = Array.from({ length: 200_000 }, (_, n) => tensor(`base_model.model.m${n}.lora_A.weight`, [8, 64]));
    expect(judge({ tensors: many }, base, imported)).toContainEqual(["ADAPTER_TENSOR_MISSING", "m0"]);
    expect(judge({ config: { use_dora: true } }, base, imported)).toEqual([["ADAPTER_FEATURE_UNSUPPORTED", "use_dora"]]);
    expect(judge({ tensors: [a({}, [8, 63]), b()] }, base, imported)).toEqual([["ADAPTER_BASE_MISMATCH", q]]);
  });

  it("knows the modules of a wrapped base by the names that older transformers gave them, in an adapter from elsewhere", () => {
    const wrapped: ServedBase = { ...base, modules: new Map([["model.language_model.layers.0.self_attn.q_proj", [32, 64]]]) };
    for (const beginning of ["language_model.model", "model", "model.text_model", "model.language_model"]) {
      const tensors = [a(), b()].map((each) => ({ ...each, name: each.name.replace("model.layers", `${beginning}.layers`) }));
      expect(judge({ tensors }, wrapped, { imported: true })).toEqual([]);
      const own = beginning === "model.language_model";
      expect(judge({ tensors }, wrapped)).toEqual(own ? [] : [["ADAPTER_MODULE_UNKNOWN", `${beginning}.layers.0.self_attn.q_proj`]]);
    }
    const tower = [a(), b()].map((each) => ({ ...each, name: each.name.replace("model.layers", "model.vision_tower.encoder.layers") }));
    expect(judge({ tensors: tower }, wrapped, { imported: true })[0]?.[0]).toBe("ADAPTER_MODULE_UNKNOWN");
  });
});
