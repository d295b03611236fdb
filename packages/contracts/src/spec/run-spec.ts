/** The run spec: what a user asks for. One schema for HTTP, NATS, `run.yaml` and the `FineTune` resource. */
import { z } from "zod";
import { adapterName, blobRef, type Problem, ulid } from "../names.ts";

/**
 * Fields of PEFT's `LoraConfig` that Loraline refuses, with the reason. A value that changes nothing
 * (`false`, `null`, `"none"`, an empty list or object) is dropped instead, so that a config
 * that PEFT wrote can be pasted as it is.
 */
export const refusedLoraFields: Readonly<Record<string, string>> = {
  use_dora: "vLLM cannot serve DoRA (it raises NotImplementedError on magnitude vectors)",
  modules_to_save: "vLLM refuses adapters that carry whole modules; train low-rank weights with target_modules instead",
  bias: "vLLM refuses adapters with trained biases",
  lora_bias: "vLLM refuses adapters with LoRA biases",
  trainable_token_indices: "vLLM ignores or refuses trained token embeddings",
  target_parameters: "vLLM has no loader for adapters on bare parameters",
  layer_replication: "vLLM serves the base as it is; replicated layers do not exist there",
  loftq_config: "LoftQ changes the base's weights; the adapter would be wrong on the served base",
  eva_config: "EVA's data-driven ranks need passes over the data that the trainer does not make",
  corda_config: "CorDA changes the base's weights; the adapter would be wrong on the served base",
  lora_ga_config: "LoRA-GA changes the base's weights; the adapter would be wrong on the served base",
  arrow_config: "Arrow routes between adapters inside PEFT; vLLM applies one adapter per request",
  alora_invocation_tokens: "vLLM applies an adapter to the whole sequence; activated LoRA would answer differently",
  use_qalora: "QALoRA pools the input; vLLM has no such kernel",
  use_bdlora: "block-diagonal LoRA has no loader in vLLM",
  megatron_config: "Megatron layers do not exist in the served model",
  megatron_core: "Megatron layers do not exist in the served model",
  runtime_config: "ephemeral offload is a property of the machine, not of the adapter",
};

/** Fields that PEFT writes into every config and that say nothing we could change. */
const impliedLoraFields: Readonly<Record<string, readonly unknown[]>> = {
  task_type: ["CAUSAL_LM"],
  peft_type: ["LORA"],
  inference_mode: [true, false],
  fan_in_fan_out: [false],
};

const alwaysIgnoredLoraFields = new Set([
  "auto_mapping",
  "base_model_name_or_path",
  "revision",
  "peft_version",
  "ensure_weight_tying",
  "qalora_group_size",
]);

/** Fields that may stand in a config and say nothing. */
export const ignoredLoraFields: readonly string[] = [...Object.keys(impliedLoraFields), ...alwaysIgnoredLoraFields];

const isNeutral = (value: unknown): boolean =>
  value === null ||
  value === undefined ||
  value === false ||
  value === "none" ||
  (typeof value === "object" && Object.keys(value).length === 0);

/** Drops what changes nothing; leaves everything else for the strict schema to judge. */
function dropNeutralLoraFields(raw: unknown): unknown {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw)) return raw;
  return Object.fromEntries(
    Object.entries(raw).filter(([key, value]) => {
      if (alwaysIgnoredLoraFields.has(key)) return false;
      if (key in refusedLoraFields && (isNeutral(value) || key === "megatron_core")) return false;
      if (impliedLoraFields[key]?.includes(value)) return false;
      return value !== null;
    }),
  );
}

const moduleNames = z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]);
const positivePattern = z.record(z.string().min(1), z.number().positive());

export const loraSpec = z.preprocess(
  dropNeutralLoraFields,
  z
    .strictObject({
      r: z.int().min(1).max(512).default(8).describe("Rank. At most the engine's `max_lora_rank`."),
      lora_alpha: z.number().positive().default(16).describe("Scaling is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."),
      lora_dropout: z.number().min(0).lt(1).default(0),
      target_modules: moduleNames
        .default("all-linear")
        .describe("Module names as a list, one name or a regular expression as a string, or `all-linear`."),
      exclude_modules: moduleNames.optional(),
      use_rslora: z.boolean().default(false),
      layers_to_transform: z.union([z.int().nonnegative(), z.array(z.int().nonnegative()).min(1)]).optional(),
      layers_pattern: moduleNames.optional(),
      rank_pattern: z.record(z.string().min(1), z.int().min(1).max(512)).optional(),
      alpha_pattern: positivePattern.optional(),
      init_lora_weights: z
        .union([z.literal(true), z.enum(["gaussian", "orthogonal"])], {
          error:
            'must be true, "gaussian" or "orthogonal": the other initialisations (pissa, olora, corda, eva, loftq, lora_ga) change the base\'s weights, so the adapter would be wrong on the served base; false starts from noise',
        })
        .default(true),
    })
    .describe("Fields of PEFT's LoraConfig that vLLM can serve."),
);

const schedulers = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"] as const;

export const trainingSpec = z
  .strictObject({
    per_device_train_batch_size: z
      .int()
      .min(1)
      .max(4096)
      .default(4)
      .describe("Rows (packed rows when packing is on) per device and forward pass."),
    gradient_accumulation_steps: z.int().min(1).max(4096).default(1),
    num_train_epochs: z.number().positive().max(1000).default(3),
    max_steps: z.int().min(-1).default(-1).describe("-1: as many as num_train_epochs needs."),
    learning_rate: z.number().positive().max(10).default(2e-4),
    lr_scheduler_type: z.enum(schedulers).default("linear"),
    warmup_steps: z.number().nonnegative().default(0).describe("Steps, or below 1 a share of all steps."),
    weight_decay: z.number().min(0).max(1).default(0),
    max_grad_norm: z.number().positive().default(1),
    logging_steps: z.int().min(1).default(1),
    save_steps: z.int().min(1).default(50),
    save_total_limit: z.int().min(1).default(2),
    eval_steps: z.int().min(1).optional().describe("Absent: evaluate once, after the last step."),
    gradient_checkpointing: z.boolean().default(false),
    seed: z
      .int()
      .min(0)
      .max(2 ** 32 - 1)
      .default(42),
    bf16: z.boolean().default(true),
  })
  .describe("Names and meanings of transformers.TrainingArguments.");

export const tokenizeSpec = z
  .strictObject({
    profile: z
      .enum(["chatml", "seed"])
      .default("chatml")
      .describe(
        "`chatml`: the base's own chat template, of whatever family; the end-of-turn token is trained. `seed`: the well-known process_func, bit for bit.",
      ),
    system: z.string().max(100_000).optional().describe("System prompt for records that have none; `seed` puts it on every record."),
    max_length: z.int().min(8).max(1_048_576).default(1024).describe("Tokens per sequence."),
    too_long: z
      .enum(["drop", "trim-prompt", "split"])
      .default("drop")
      .describe(
        "What happens to a longer record. `drop` reports it; `trim-prompt` removes the oldest turns first; `split` makes several sequences of raw text and drops anything else. (`seed` always cuts on the right.)",
      ),
    packing: z
      .union([z.literal("auto"), z.boolean()])
      .default("auto")
      .describe(
        "`auto` packs when at least 64 optimizer steps per epoch remain afterwards (`seed` only when asked to); packing changes the effective batch.",
      ),
  })
  .describe("How records become tokens.");

const percent = z.number().gt(0).lt(100);

/** How a version takes over step by step. Times in seconds; what is compared is measured since the step began. */
export const canarySettings = z
  .strictObject({
    steps: z
      .array(percent)
      .min(1)
      .max(20)
      .refine((steps) => steps.every((share, i) => i === 0 || share > (steps[i - 1] ?? 0)), "each step must be above the one before it")
      .default([5, 25, 50])
      .describe("Percent of the alias's users that get the new version, ascending. After the last step the alias moves."),
    interval_s: z.number().min(1).max(604_800).default(60).describe("Shortest time of a step."),
    min_requests: z.int().min(0).max(1_000_000).default(50).describe("Answers of the new version that a step takes at least."),
    max_error_rate: z
      .number()
      .min(0)
      .max(1)
      .default(0.02)
      .describe("Failed answers per answer, at most this much above the current version's; more rolls back."),
    max_latency_ratio: z
      .number()
      .min(1)
      .max(1000)
      .default(2)
      .describe("95th percentile of the time to the first byte, at most this many times the current version's; more rolls back."),
    max_loss_increase: z
      .number()
      .min(0)
      .optional()
      .describe(
        "Held-out loss, at most this much above the current version's on the same rows, in nats per token. A canary that cannot be judged so does not begin. Absent: not asked.",
      ),
  })
  .describe("Canary: the new version gets a growing share of the alias's users, and loses it again when it does worse.");
export type CanarySettings = z.infer<typeof canarySettings>;

export const placement = z
  .discriminatedUnion("mode", [
    z.strictObject({ mode: z.literal("all") }),
    z.strictObject({ mode: z.literal("spread"), replicas: z.int().min(1).max(10_000).describe("On so many replicas.") }),
    z.strictObject({
      mode: z.literal("pinned"),
      pins: z.array(z.string().min(1).max(253)).min(1).max(1000).describe("On these replicas and no others."),
    }),
  ])
  .describe("Which replicas hold an adapter. `all` means as many as have room, which is all of them until max_cpu_loras is reached.");
export type Placement = z.infer<typeof placement>;

/** What a line does with the older versions of an adapter whose owner has not said. */
export const defaultKeep = 3;

export const keepPolicy = z
  .union([z.int().min(1).max(1000), z.literal("all")], { error: 'must be a whole number from 1 to 1000, or "all"' })
  .describe(
    "How many of the newest served versions stay loaded on replicas, besides the promoted one, the one before it, a canary, and those that were asked for by name lately. The others are retired: their bytes stay in the object store, and they are loaded again when somebody asks for them. `all`: none is retired.",
  );
export type KeepPolicy = z.infer<typeof keepPolicy>;

const adapterFile = blobRef.extend({ kind: z.literal("adapter-file") });

/** An adapter that was trained elsewhere. Its files are in the object store already: whoever asks has put them there. */
export const adapterImport = z
  .strictObject({
    source: z.string().min(1).max(2000).describe("Where it came from, for a person to read: a folder, a hub id, a URL."),
    config: adapterFile.describe("PEFT's `adapter_config.json`."),
    weights: adapterFile.describe("PEFT's `adapter_model.safetensors`."),
    probes: z
      .array(z.string().min(1).max(4000))
      .max(16)
      .optional()
      .describe("Prompts on which the adapter is expected to show; it is proven by these and by neutral ones."),
    any_base: z.boolean().optional().describe("Serve it although its config names another base: the same one under another name."),
  })
  .describe("A LoRA in PEFT's layout, served instead of training one: it is judged, made canonical, and proven by probes made here.");
export type AdapterImport = z.infer<typeof adapterImport>;

/** Every field of a run spec, without the rule that spans two of them. */
export const runSpecFields = z
  .strictObject({
    base: z.string().min(1).max(200).describe("Name of the base, as `GET /v1/models` shows it."),
    adapter: adapterName,
    dataset: ulid.optional().describe("Dataset to train on."),
    import: adapterImport.optional().describe("Instead of `dataset`: nothing is trained."),
    validation: ulid.optional().describe("Dataset to evaluate on. Without it `holdout` rows are held out."),
    holdout: z
      .number()
      .min(0)
      .max(0.5)
      .default(0.1)
      .describe("Share of the records held out for evaluation when there is no validation dataset."),
    validation_overlap: z
      .enum(["drop", "keep"])
      .optional()
      .describe(
        "What happens to training records that the validation dataset holds too: `drop` (default) leaves them out and reports them.",
      ),
    dedupe: z
      .enum(["none", "exact", "near"])
      .optional()
      .describe(
        "`none` is the default; `exact` keeps the first of records that say the same; `near` also leaves out those that say nearly what an earlier one says, and looks for overlap with the validation dataset in the same way. What is left out is reported.",
      ),
    min_records: z.int().min(1).default(10).describe("Fewer usable records than this reject the run."),
    lora: loraSpec.prefault({}),
    training: trainingSpec.prefault({}),
    tokenize: tokenizeSpec.prefault({}),
    gate: z
      .enum(["better-than-base", "better-than-promoted", "none"])
      .default("better-than-base")
      .describe(
        "`better-than-base` refuses a version whose held-out loss is not below the base's; `better-than-promoted` also one that does worse on the same held-out rows than the version it would replace.",
      ),
    gate_accuracy: z
      .boolean()
      .optional()
      .describe("The gate also asks that the share of held-out tokens that are the likeliest one is no lower; against the same as `gate`."),
    promote: z
      .enum(["auto", "manual", "canary"])
      .default("auto")
      .describe(
        "When the version is proven on every replica: `auto` moves the alias, `canary` moves it step by step and back when the version does worse, `manual` leaves it.",
      ),
    canary: canarySettings.optional().describe("Settings of `promote: canary`."),
    placement: placement.optional().describe("Sets the adapter's placement; absent: as it is (at first: all replicas)."),
    keep: keepPolicy
      .optional()
      .meta({ description: `${keepPolicy.description} Absent: as the adapter is set (at first: ${defaultKeep}).` }),
    gpus: z
      .int()
      .min(0)
      .max(64)
      .optional()
      .describe("GPUs of an attempt, on Kubernetes; of each of its `nodes`. Absent: as the installation says."),
    nodes: z
      .int()
      .min(1)
      .max(64)
      .optional()
      .describe("Machines of an attempt, on a Kubernetes with JobSet: one training over the GPUs of all of them. Absent: one."),
    max_attempts: z
      .int()
      .min(1)
      .max(20)
      .default(5)
      .describe("Attempts that may end by a fault of their own before the run fails. Preemption and a killed machine do not count."),
    metadata: z.record(z.string().max(64), z.string().max(512)).optional(),
  })
  .describe("What a user asks for: one fine-tuning run, or the import of an adapter.");

export const runSpec = runSpecFields
  .superRefine((spec, context) => {
    const wrong = (path: string, message: string): void => context.addIssue({ code: "custom", path: [path], message });
    if (spec.dataset === undefined && spec.import === undefined) wrong("dataset", "is missing: name the dataset to train on");
    if (spec.import === undefined) return;
    if (spec.dataset !== undefined) wrong("import", "an adapter is either trained on `dataset` or imported; remove one of the two");
    if (spec.validation !== undefined) wrong("validation", "an imported adapter is not evaluated; remove it");
  })
  .meta({ oneOf: [{ required: ["dataset"] }, { required: ["import"] }] });
export type RunSpec = z.infer<typeof runSpec>;
export type RunSpecInput = z.input<typeof runSpec>;

/** Turns zod's issues into problems a user can act on; `prefix` is put before each path. */
export function problemsOf(error: z.core.$ZodError, code = "SPEC_INVALID", prefix = ""): Problem[] {
  return error.issues.flatMap((issue) => problemsOfIssue(issue, code, prefix));
}

function problemsOfIssue(issue: z.core.$ZodIssue, code: string, prefix: string): Problem[] {
  const path = [...(prefix === "" ? [] : [prefix]), ...issue.path.map(String)].join(".");
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => {
      const param = path === "" ? key : `${path}.${key}`;
      const reason = issue.path.at(-1) === "lora" ? refusedLoraFields[key] : undefined;
      return reason === undefined
        ? { code, param, message: `${param}: there is no such field. Check the spelling, or remove it.` }
        : { code: "LORA_FIELD_REFUSED", param, message: `${param} is refused: ${reason}. Remove it.` };
    });
  }
  const param = path === "" ? null : path;
  return [{ code, param, message: `${param === null ? "" : `${param}: `}${issue.message}` }];
}

/** Parses a run spec from any door. Never throws; the first problem is the one to show when only one fits. */
export function parseRunSpec(raw: unknown): { spec: RunSpec } | { problems: [Problem, ...Problem[]] } {
  const parsed = runSpec.safeParse(raw);
  if (parsed.success) return { spec: parsed.data };
  return { problems: problemsOf(parsed.error) as [Problem, ...Problem[]] };
}
