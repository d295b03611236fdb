import { expect, test } from "vitest";
import { judgedLoraFields, judgedTrainingFields, loraFields, parseRunSpec, trainingFields } from "../index.ts";

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

/** LoraConfig and TrainingArguments of the recipe that this project began with, as they stand there. */
const recipe = {
  lora: {
    task_type: "CAUSAL_LM",
    target_modules: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    inference_mode: false,
    r: 8,
    lora_alpha: 32,
    lora_dropout: 0.1,
  },
  training: {
    output_dir: "./output/Qwen2_instruct_lora",
    per_device_train_batch_size: 4,
    gradient_accumulation_steps: 4,
    logging_steps: 10,
    num_train_epochs: 3,
    save_steps: 100,
    learning_rate: 1e-4,
    save_on_each_node: true,
    gradient_checkpointing: true,
    fp16: false,
  },
};

test("a recipe can be pasted; what changes nothing is dropped and told once, however often the spec is parsed", () => {
  const parsed = parseRunSpec({ ...minimal, ...recipe });
  if ("problems" in parsed) throw new Error(JSON.stringify(parsed.problems));
  expect(parsed.spec.training).toMatchObject({ gradient_accumulation_steps: 4, logging_steps: 10, gradient_checkpointing: true });
  expect(parsed.spec.training).not.toHaveProperty("output_dir");
  expect(parsed.spec.lora).toMatchObject({ lora_alpha: 32, lora_dropout: 0.1 });
  expect(parsed.notices.map(({ param }) => param)).toEqual(["training.output_dir", "training.save_on_each_node"]);
  expect(parsed.notices[0]?.message).toMatch(/^training\.output_dir changes nothing here: .+\.$/);
  expect(specOf(JSON.parse(JSON.stringify(parsed.spec)))).toEqual(parsed.spec);
});

test("fields of SFTConfig that another section has go there, and are told", () => {
  const parsed = parseRunSpec({ ...minimal, training: { max_seq_length: 2048, packing: false, dataset_text_field: "text" } });
  if ("problems" in parsed) throw new Error(JSON.stringify(parsed.problems));
  expect(parsed.spec.tokenize).toMatchObject({ max_length: 2048, packing: false });
  expect(parsed.notices.map(({ param }) => param)).toEqual(["training.max_seq_length", "training.packing"]);
  const both = { training: { max_length: 512 }, tokenize: { max_length: 1024 } };
  expect(problemsOfSpec({ ...minimal, ...both })).toEqual([
    ["SPEC_INVALID", "training.max_length", expect.stringMatching(/tokenize\.max_length/)],
  ]);
});

test("warmup_ratio of transformers 4 is warmup_steps below 1", () => {
  expect(specOf({ ...minimal, training: { warmup_ratio: 0.03 } }).training.warmup_steps).toBe(0.03);
  expect(specOf({ ...minimal, training: { warmup_ratio: 0, warmup_steps: 5 } }).training.warmup_steps).toBe(5);
  for (const training of [{ warmup_ratio: 0.1, warmup_steps: 5 }, { warmup_ratio: 1 }, { warmup_ratio: "0.1" }])
    expect(problemsOfSpec({ ...minimal, training })).toEqual([["SPEC_INVALID", "training.warmup_ratio", expect.anything()]]);
});

test.each([
  ["fp16", true, /bf16/],
  ["metric_for_best_model", "eval_accuracy", /eval_loss/],
  ["greater_is_better", true, /false/],
  ["deepspeed", { zero_optimization: { stage: 3 } }, /fsdp: true/],
  ["loss_type", "dft", /cross entropy/],
  ["resume_from_checkpoint", "./checkpoint-100", /import/],
])("training.%s is refused by name, with reason and remedy", (field, value, reason) => {
  expect(problemsOfSpec({ ...minimal, training: { [field]: value } })).toEqual([
    ["TRAINING_FIELD_REFUSED", `training.${field}`, expect.stringMatching(reason)],
  ]);
});

test.each([
  [{ optim: "paged_adamw_8bit" }, "optim", /bitsandbytes.*adamw_torch_fused/],
  [{ lr_scheduler_type: "cosine", lr_scheduler_kwargs: { min_lr: 1e-5 } }, "lr_scheduler_kwargs", /num_cycles, not min_lr/],
  [{ lr_scheduler_type: "cosine_with_min_lr" }, "lr_scheduler_kwargs", /min_lr or min_lr_rate/],
  [{ lr_scheduler_type: "cosine", lr_scheduler_kwargs: { num_cycles: "2" } }, "lr_scheduler_kwargs.num_cycles", /number/],
  [{ lr_scheduler_type: "inverse_sqrt", lr_scheduler_kwargs: { timescale: 0 } }, "lr_scheduler_kwargs.timescale", />0/],
  [{ lr_scheduler_type: "cosine", lr_scheduler_kwargs: { cycles: 2 } }, "lr_scheduler_kwargs", /num_cycles, not cycles/],
  [{ lr_scheduler_type: "polynomial", lr_scheduler_kwargs: { lr_end: 1 } }, "lr_scheduler_kwargs", /below learning_rate, 0.0002/],
  [
    { lr_scheduler_type: "warmup_stable_decay", lr_scheduler_kwargs: { num_decay_steps: 3, decay_type: "exp" } },
    "lr_scheduler_kwargs.decay_type",
    /1-sqrt/,
  ],
  [{ label_smoothing_factor: 1 }, "label_smoothing_factor", /./],
  [{ max_steps: 0 }, "max_steps", /-1/],
])("training %j is an error of its field", (training, field, reason) => {
  expect(problemsOfSpec({ ...minimal, training })).toEqual([["SPEC_INVALID", `training.${field}`, expect.stringMatching(reason)]]);
});

test("every judged field says why, and none is a field of ours", () => {
  for (const [section, judged] of [
    [loraFields, judgedLoraFields],
    [trainingFields, judgedTrainingFields],
  ] as const) {
    for (const [name, field] of Object.entries(judged)) {
      expect(section.shape, name).not.toHaveProperty(name);
      // Sentences are made of them: "x is refused: <why>. <remedy>."
      for (const text of field.as === "refused" ? [field.why, field.remedy] : [field.why]) expect(text, name).toMatch(/[^.]$/);
    }
  }
});

test("initialisations that change the base are refused, naming the ones that do not", () => {
  expect(problemsOfSpec({ ...minimal, lora: { init_lora_weights: "corda" } })).toEqual([
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
  expect(specOf(imported)).toMatchObject({ method: { type: "import", source: "./pirate" }, promote: "auto" });
  expect(specOf({ ...imported, import: undefined, method: { type: "import", ...imported.import } })).toEqual(specOf(imported));
  expect(specOf(specOf(imported))).toEqual(specOf(imported));
  expect(specOf(minimal).method).toEqual({ type: "supervised" });
  expect(specOf(imported)).not.toHaveProperty("import");
  expect(problemsOfSpec({ base: "b", adapter: "a" })).toEqual([["SPEC_INVALID", "dataset", expect.stringMatching(/missing/)]]);
  expect(problemsOfSpec({ ...imported, dataset: minimal.dataset })).toEqual([
    ["SPEC_INVALID", "dataset", expect.stringMatching(/remove one/)],
  ]);
  expect(problemsOfSpec({ ...imported, validation: minimal.dataset })).toEqual([["SPEC_INVALID", "validation", expect.anything()]]);
  expect(problemsOfSpec({ ...imported, import: { ...imported.import, weights: { ...file("b"), kind: "raw" } } })).toEqual([
    ["SPEC_INVALID", "import.weights.kind", expect.anything()],
  ]);
});

test("a method that is not offered is refused, naming those that are", () => {
  expect(problemsOfSpec({ ...minimal, method: { type: "telepathy" } })).toEqual([
    [
      "SPEC_INVALID",
      "method.type",
      'method.type: "telepathy" is not offered; use one of "supervised", "import", "dpo", "orpo", "simpo", "kto", "judge"',
    ],
  ]);
  expect(problemsOfSpec({ ...minimal, method: {} })).toEqual([
    ["SPEC_INVALID", "method.type", 'method.type: must be one of "supervised", "import", "dpo", "orpo", "simpo", "kto", "judge"'],
  ]);
  expect(problemsOfSpec({ ...imported, method: { type: "supervised" } })).toEqual([
    ["SPEC_INVALID", "import", expect.stringMatching(/remove it/)],
  ]);
});

test("profile, the older word for template, is still read", () => {
  const templateBy = (tokenize: object): string => specOf({ ...minimal, tokenize }).tokenize.template;
  expect([{}, { profile: "chatml" }, { profile: "seed" }, { template: "base" }, { template: "seed" }].map(templateBy)).toEqual([
    "base",
    "base",
    "seed",
    "base",
    "seed",
  ]);
  expect(specOf({ ...minimal, tokenize: { profile: "seed" } }).tokenize).not.toHaveProperty("profile");
});

test("a spec of megabytes is refused, whichever field makes it so", () => {
  const zeros = Array.from({ length: 1_000_000 }, () => 0);
  expect(problemsOfSpec({ ...minimal, lora: { layers_to_transform: zeros } })).toEqual([
    ["SPEC_INVALID", "lora.layers_to_transform", expect.stringMatching(/1000/)],
  ]);
  const metadata = Object.fromEntries(zeros.slice(0, 5000).map((_, n) => [`key-${n}`, "v".repeat(100)]));
  expect(problemsOfSpec({ ...minimal, metadata })).toEqual([["SPEC_INVALID", null, expect.stringMatching(/at most 196608/)]]);
});

test.each([
  [
    "early stopping alone",
    { training: { early_stopping_patience: 3 } },
    "training.early_stopping_patience",
    /needs load_best_model_at_end/,
  ],
  ["no held-out rows", { holdout: 0, training: { load_best_model_at_end: true } }, "training.load_best_model_at_end", /holdout above 0/],
  ["no budget", { training: { eval_budget: 0 } }, "training.eval_budget", /expected number to be >0/],
])("the best step cannot be published with %s", (_, fields, param, message) => {
  expect(problemsOfSpec({ ...minimal, ...fields })).toEqual([["SPEC_INVALID", param, expect.stringMatching(message)]]);
});
