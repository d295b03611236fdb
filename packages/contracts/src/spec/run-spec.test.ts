import { expect, test } from "vitest";
import { parseRunSpec } from "../index.ts";

const minimal = { base: "smollm2-135m-instruct", adapter: "pirate", dataset: "01KB0000000000000000000DS1" };
const specOf = (raw: unknown) => {
  const parsed = parseRunSpec(raw);
  if ("problems" in parsed) throw new Error(JSON.stringify(parsed.problems));
  return parsed.spec;
};
const problemsOfSpec = (raw: unknown) => {
  const parsed = parseRunSpec(raw);
  return "problems" in parsed ? parsed.problems.map(({ code, param, message }) => [code, param, message]) : [];
};

test("three fields are enough; the rest is filled in", () => {
  const spec = specOf(minimal);
  expect(spec.lora).toMatchObject({ r: 8, lora_alpha: 16, target_modules: "all-linear", use_rslora: false });
  expect(spec.training).toMatchObject({ per_device_train_batch_size: 4, num_train_epochs: 3, seed: 42 });
  expect(spec).toMatchObject({ promote: "auto", gate: "better-than-base", min_records: 10 });
});

test("a config that PEFT wrote can be pasted as it is", () => {
  const written = {
    task_type: "CAUSAL_LM",
    peft_type: "LORA",
    auto_mapping: null,
    base_model_name_or_path: "x",
    inference_mode: true,
    r: 16,
    target_modules: ["q_proj"],
    exclude_modules: null,
    lora_alpha: 32,
    lora_dropout: 0.1,
    fan_in_fan_out: false,
    bias: "none",
    use_rslora: true,
    modules_to_save: null,
    init_lora_weights: true,
    layers_to_transform: null,
    layers_pattern: null,
    rank_pattern: {},
    alpha_pattern: {},
    megatron_config: null,
    megatron_core: "megatron.core",
    loftq_config: {},
    use_dora: false,
    layer_replication: null,
    lora_bias: false,
  };
  expect(specOf({ ...minimal, lora: written }).lora).toEqual({
    r: 16,
    target_modules: ["q_proj"],
    lora_alpha: 32,
    lora_dropout: 0.1,
    use_rslora: true,
    init_lora_weights: true,
    rank_pattern: {},
    alpha_pattern: {},
  });
});

test.each([
  ["use_dora", true, /DoRA/],
  ["modules_to_save", ["lm_head"], /whole modules/],
  ["bias", "all", /biases/],
  ["lora_bias", true, /LoRA biases/],
  ["trainable_token_indices", [1, 2], /token embeddings/],
  ["layer_replication", [[0, 4]], /replicated layers/],
  ["loftq_config", { bits: 4 }, /LoftQ/],
])("lora.%s is refused by name, with the reason", (field, value, reason) => {
  const problems = problemsOfSpec({ ...minimal, lora: { [field]: value } });
  expect(problems).toEqual([["LORA_FIELD_REFUSED", `lora.${field}`, expect.stringMatching(reason)]]);
});

test("initialisations that change the base are refused, naming the ones that do not", () => {
  expect(problemsOfSpec({ ...minimal, lora: { init_lora_weights: "pissa" } })).toEqual([
    ["SPEC_INVALID", "lora.init_lora_weights", expect.stringMatching(/gaussian.*change the base/)],
  ]);
});

test("a typo names the field; several problems come together", () => {
  const problems = problemsOfSpec({ ...minimal, lora: { rank: 8, r: 0 }, training: { learning_rat: 1 }, dataset: "nope" });
  expect(problems.map(([code, param]) => [code, param])).toEqual(
    expect.arrayContaining([
      ["SPEC_INVALID", "lora.rank"],
      ["SPEC_INVALID", "lora.r"],
      ["SPEC_INVALID", "training.learning_rat"],
      ["SPEC_INVALID", "dataset"],
    ]),
  );
});

const file = (letter: string) => ({ kind: "adapter-file", digest: `sha256:${letter.repeat(64)}`, size: 3 });
const imported = {
  base: "smollm2-135m-instruct",
  adapter: "pirate",
  import: { source: "./pirate", config: file("a"), weights: file("b") },
};

test("an adapter is trained on a dataset or imported, and nothing else", () => {
  expect(specOf(imported)).toMatchObject({ import: { source: "./pirate" }, promote: "auto" });
  expect(problemsOfSpec({ base: "b", adapter: "a" })).toEqual([["SPEC_INVALID", "dataset", expect.stringMatching(/missing/)]]);
  expect(problemsOfSpec({ ...imported, dataset: minimal.dataset })).toEqual([
    ["SPEC_INVALID", "import", expect.stringMatching(/remove one/)],
  ]);
  expect(problemsOfSpec({ ...imported, validation: minimal.dataset })).toEqual([["SPEC_INVALID", "validation", expect.anything()]]);
  expect(problemsOfSpec({ ...imported, import: { ...imported.import, weights: { ...file("b"), kind: "raw" } } })).toEqual([
    ["SPEC_INVALID", "import.weights.kind", expect.anything()],
  ]);
});
