import { expect, test } from "vitest";
import { compactModules, expandModules, modulesOfBase } from "./base-modules.ts";

const tensors = [0, 1, 2].flatMap((layer) => [
  { name: `model.layers.${layer}.self_attn.q_proj.weight`, shape: [32, 64] },
  { name: `model.layers.${layer}.mlp.up_proj.weight`, shape: [128, layer === 1 ? 32 : 64] },
  { name: `model.layers.${layer}.input_layernorm.weight`, shape: [64] },
  { name: `model.layers.${layer}.self_attn.q_proj.bias`, shape: [32] },
]);
const others = [
  { name: "model.embed_tokens.weight", shape: [1000, 64] },
  { name: "lm_head.weight", shape: [1000, 64] },
];

test("a base's linear modules fit in a few lines, and come back as they were", () => {
  const compact = modulesOfBase([...tensors, ...others], { model_type: "llama" });
  expect(compact).toEqual([
    { names: "model.layers.{0-2}.self_attn.q_proj", shape: [32, 64] },
    { names: "model.layers.{0,2}.mlp.up_proj", shape: [128, 64] },
    { names: "model.layers.{1}.mlp.up_proj", shape: [128, 32] },
  ]);
  const expanded = expandModules(compact ?? []);
  expect(expanded.size).toBe(6);
  expect(expanded.get("model.layers.1.mlp.up_proj")).toEqual([128, 32]);
  expect(compactModules(expanded)).toEqual(compact);
  const odd = new Map<string, readonly [number, number]>([
    ["layers.0.experts.1.w", [1, 2]],
    ["layers.0.experts.2.w", [1, 2]],
    ["layers.3.experts.1.w", [1, 2]],
    ["head", [3, 4]],
  ]);
  expect(Object.fromEntries(expandModules(compactModules(odd)))).toEqual(Object.fromEntries(odd));
});

test("where files do not say what modules there are, none are claimed", () => {
  for (const field of ["quantization_config", "vision_config", "text_config"])
    expect(modulesOfBase(tensors, { [field]: 4 })).toBeUndefined();
  expect(modulesOfBase(others, {})).toBeUndefined();
});

test.each([
  ["Gemma3ForConditionalGeneration", "language_model.model", "model.language_model"],
  ["Qwen2VLForConditionalGeneration", "model", "model.language_model"],
  ["SmolVLMForConditionalGeneration", "model.text_model", "model.text_model"],
])("the language model of %s is found under %s, and named as the whole model names it", (architecture, inFiles, named) => {
  const wrapped = tensors.map(({ name, shape }) => ({ name: name.replace(/^model/, inFiles), shape }));
  const tower = { name: "vision_tower.encoder.layers.0.self_attn.q_proj.weight", shape: [32, 32] };
  const config = { architectures: [architecture], vision_config: {}, text_config: {} };
  const names = [...expandModules(modulesOfBase([...wrapped, ...others, tower], config) ?? []).keys()];
  expect(names).toHaveLength(6);
  expect(names).toContain(`${named}.layers.2.self_attn.q_proj`);
});

test("of a mixture of experts those modules are known that are no experts", () => {
  const experts = ["experts.0.up_proj", "experts.1.up_proj", "gate", "shared_expert_gate"].map((name) => ({
    name: `model.layers.0.mlp.${name}.weight`,
    shape: [8, 64],
  }));
  const shared = { name: "model.layers.0.mlp.shared_expert.up_proj.weight", shape: [128, 64] };
  expect(modulesOfBase([...experts, shared], { num_experts: 2 })).toEqual([
    { names: "model.layers.{0}.mlp.shared_expert.up_proj", shape: [128, 64] },
  ]);
});
