import { expect, test } from "vitest";
import { judgeRunSpec, parseRunSpec } from "./index.ts";

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

const engine = {
  engine: "local",
  base: { name: "smollm2-135m-instruct", revision: "1", digest: `sha256:${"a".repeat(64)}` as const },
  maxLoraRank: 32,
  maxLoras: 4,
  maxCpuLoras: 16,
  maxModelLen: 2048,
  updatedAt: "2026-11-24T00:00:00.000Z",
};

test.each([
  [{ base: "gpt-9" }, "BASE_UNKNOWN", "base", /smollm2-135m-instruct/],
  [{ lora: { r: 64 } }, "RANK_TOO_HIGH", "lora.r", /up to 32/],
  [{ lora: { rank_pattern: { q_proj: 64 } } }, "RANK_TOO_HIGH", "lora.rank_pattern.q_proj", /up to 32/],
  [{ tokenize: { max_length: 4096 } }, "MAX_LENGTH_TOO_HIGH", "tokenize.max_length", /2048/],
  [{ lora: { target_modules: "(q_proj" } }, "TARGET_MODULES_INVALID", "lora.target_modules", /regular expression/],
])("%j is judged before anything is spent", (change, code, param, message) => {
  expect(judgeRunSpec(specOf({ ...minimal, ...change }), [engine])).toEqual([{ code, param, message: expect.stringMatching(message) }]);
});

test("a run for a base whose files are missing is refused with the reason, unless another engine has it", () => {
  const problem = { code: "BASE_MISSING", message: 'engine "local": base "smollm2-135m-instruct" is not here', param: "base" };
  const broken = { ...engine, problem };
  expect(judgeRunSpec(specOf(minimal), [broken])).toEqual([
    { code: "BASE_UNAVAILABLE", param: "base", message: `base "smollm2-135m-instruct" cannot be used now: ${problem.message}` },
  ]);
  expect(judgeRunSpec(specOf(minimal), [broken, { ...engine, engine: "other" }])).toEqual([]);
});

test("a regular expression that only Python knows is left to the trainer", () => {
  const spec = specOf({ ...minimal, lora: { target_modules: String.raw`(?i).*\.(?P<which>q|v)_proj\Z` } });
  expect(judgeRunSpec(spec, [engine])).toEqual([]);
});

test("what the engine serves has no problems", () => {
  expect(judgeRunSpec(specOf({ ...minimal, lora: { r: 32, target_modules: ".*\\.(q|v)_proj" } }), [engine])).toEqual([]);
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

const layers = "model.layers.{0-29}";
const described = {
  ...engine,
  modules: [
    { names: `${layers}.self_attn.q_proj`, shape: [576, 576] as [number, number] },
    { names: `${layers}.self_attn.v_proj`, shape: [192, 576] as [number, number] },
    { names: `${layers}.mlp.down_proj`, shape: [576, 1536] as [number, number] },
  ],
};
const problemsWith = (lora: object) =>
  judgeRunSpec(specOf({ ...minimal, lora }), [described]).map(({ code, param, message }) => [code, param, message]);

test.each([
  [{ target_modules: ["q_proj", "q_prj"] }, "NO_TARGET_MODULES", "lora.target_modules", /"q_prj".*down_proj, q_proj, v_proj/],
  [{ target_modules: "q_prj" }, "NO_TARGET_MODULES", "lora.target_modules", /matches nothing/],
  [{ target_modules: String.raw`.*\.attn\.(q|v)_proj` }, "NO_TARGET_MODULES", "lora.target_modules", /matches nothing/],
  [{ target_modules: ["lm_head"] }, "NO_TARGET_MODULES", "lora.target_modules", /no linear module/],
  [{ target_modules: ["q_proj"], exclude_modules: ["q_proj"] }, "NO_TARGET_MODULES", "lora.exclude_modules", /leaves out everything/],
  [{ layers_to_transform: [0, 30] }, "LAYERS_UNKNOWN", "lora.layers_to_transform", /no layer 30; its layers are 0 to 29/],
  [{ layers_to_transform: [0], layers_pattern: "blocks" }, "LAYERS_UNKNOWN", "lora.layers_to_transform", /no layer 0/],
  [{ layers_pattern: "layers" }, "LAYERS_NEED_NAMES", "lora.layers_pattern", /together/],
  [{ target_modules: ".*_proj", layers_to_transform: 1 }, "LAYERS_NEED_NAMES", "lora.layers_to_transform", /list of names/],
  [{ rank_pattern: { k_proj: 4 } }, "PATTERN_UNUSED", "lora.rank_pattern.k_proj", /ignored/],
  [{ target_modules: ["q_proj"], alpha_pattern: { v_proj: 4 } }, "PATTERN_UNUSED", "lora.alpha_pattern.v_proj", /ignored/],
  [{ target_modules: "(.+)+_proj" }, "PATTERN_TOO_COSTLY", "lora.target_modules", /repetitions/],
  [{ rank_pattern: { "(a|b)+": 4 } }, "PATTERN_TOO_COSTLY", "lora.rank_pattern.(a|b)+", /repetitions/],
])("%j finds nothing in the base, which is said at once", (lora, code, param, message) => {
  expect(problemsWith(lora)).toEqual([[code, param, expect.stringMatching(message)]]);
});

test.each([
  {},
  { target_modules: "q_proj" },
  { target_modules: ["self_attn.q_proj", "model.layers.3.mlp.down_proj"] },
  { target_modules: String.raw`.*\.(q|v)_proj`, exclude_modules: String.raw`model\.layers\.0\..*` },
  { layers_to_transform: [0, 29], layers_pattern: "layers" },
  { layers_to_transform: 29 },
  { rank_pattern: { "layers.0.self_attn.q_proj": 4, "mlp.*": 8 }, alpha_pattern: { v_proj: 4 } },
  { target_modules: String.raw`(?i).*\.Q_proj`, layers_pattern: "(?i)layers", layers_to_transform: [0] },
])("%j means modules of the base", (lora) => {
  expect(problemsWith(lora).filter(([code]) => code !== "LAYERS_NEED_NAMES")).toEqual([]);
});
