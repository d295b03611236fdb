/**
 * Every field of transformers' `TrainingArguments` and trl's `SFTConfig`: the fields that work, and how the others are treated. A
 * Python test compares the tables with the installed classes.
 */
import { z } from "zod";
import {
  isObject,
  judgedPattern,
  type JudgedFields,
  moved,
  neutral,
  olderFields,
  refused,
  sftFields,
  withoutNeutral,
} from "./judged-fields.ts";

// Reasons that several fields have in common.
const output = "the run has its own folder; adapter and result are in the object store";
const telling = "progress is told through job events, metrics and `loraline show`, whichever API the run came through";
const hub = "adapters are served and exported from here; nothing is pushed to a hub";
const checkpoints = "checkpoints are in the trainer's own layout, to resume from and to ask";
const evaluating =
  "the held-out rows are evaluated after the last step, and every eval_steps when that is set (with load_best_model_at_end ten times when it is not)";
const loading = "packed rows are read from memory, in the trainer's own process";
const speed = "it is about speed or memory, and this trainer has its own way";
const distributed = "gpus and nodes say how many processes train; the trainer sets up the rest";
const device = "gpus and the installation say on what a run trains";
const removeIt = "Remove it";

const judgedTrainingArguments: JudgedFields = {
  output_dir: neutral(output),
  optim_args: refused("optimizers run with their own defaults here, and AdamW's with adam_beta1, adam_beta2, adam_epsilon", removeIt, ""),
  optim_target_modules: refused("it belongs to GaLore and APOLLO, whose libraries are not installed here", removeIt, []),
  average_tokens_across_devices: refused("the loss is always normalised by the tokens of all devices", removeIt, true),
  fp16: refused(
    "fp16 needs loss scaling, and the base is served in bf16",
    "Remove it (bf16 is the default), or write bf16: false for fp32",
    false,
  ),
  bf16_full_eval: neutral("held-out rows are evaluated in what the machine computes in natively", false, true),
  fp16_full_eval: neutral("held-out rows are evaluated in what the machine computes in natively", false),
  tf32: neutral(device),
  gradient_checkpointing_kwargs: neutral("the trainer chooses; the gradients are the same", {}),
  torch_compile: neutral(speed, false),
  torch_compile_backend: neutral(speed),
  torch_compile_mode: neutral(speed),
  use_liger_kernel: neutral(speed, false),
  liger_kernel_config: neutral(speed, {}),
  use_cache: neutral(speed, false, true),
  torch_empty_cache_steps: neutral(speed),
  auto_find_batch_size: neutral("a run that is out of memory fails, and its error says what to lower", false),

  logging_strategy: neutral("the loss is told every logging_steps", "steps"),
  logging_first_step: neutral("the loss is told every logging_steps", false),
  log_on_each_node: neutral(telling, true, false),
  logging_nan_inf_filter: neutral("a loss that is not finite ends the run", true, false),
  include_num_input_tokens_seen: neutral("tokens are always counted", "no", "all", "non_padding", false, true),
  log_level: neutral(telling, "passive"),
  log_level_replica: neutral(telling, "warning"),
  disable_tqdm: neutral(telling, true, false),
  report_to: neutral(telling, "none", [], ["none"]),
  run_name: neutral("a run has an id; put a name of your own into metadata"),
  project: neutral(telling, "huggingface"),
  trackio_space_id: neutral(telling),
  trackio_bucket_id: neutral(telling),
  trackio_static_space_id: neutral(telling, false),

  eval_strategy: neutral(evaluating, "no"),
  eval_delay: neutral(evaluating, 0),
  per_device_eval_batch_size: neutral("evaluation chooses its batches itself; the loss does not depend on them", 8),
  prediction_loss_only: neutral("loss and accuracy are always evaluated", false, true),
  eval_on_start: neutral("the base is always evaluated before the first step", false, true),
  eval_do_concat_batches: neutral(evaluating, true),
  eval_use_gather_object: neutral(evaluating, false),
  eval_accumulation_steps: neutral(evaluating),
  include_for_metrics: neutral("loss and accuracy are always evaluated", []),
  batch_eval_metrics: neutral("loss and accuracy are always evaluated", false),

  save_only_model: neutral(checkpoints, false),
  save_strategy: neutral("checkpoints are taken every save_steps", "steps"),
  save_on_each_node: neutral("checkpoints are in the object store, which every node can read", false),
  enable_jit_checkpoint: neutral("a run that is preempted always saves a checkpoint", false, true),
  push_to_hub: neutral(hub, false),
  hub_token: neutral(`${hub}; remove the token from where you keep this`, "<HUB_TOKEN>"),
  hub_private_repo: neutral(hub, false),
  hub_model_id: neutral(hub),
  hub_strategy: neutral(hub, "every_save"),
  hub_always_push: neutral(hub, false),
  hub_revision: neutral(hub),
  metric_for_best_model: refused(
    "the best step is the one with the lowest held-out loss",
    "Remove it, or write eval_loss",
    "eval_loss",
    "loss",
  ),
  greater_is_better: refused("the best step is the one with the lowest held-out loss", "Remove it, or write false", false),
  ignore_data_skip: neutral("a resumed run goes on with the very next row", false),
  restore_callback_states_from_checkpoint: neutral("a resumed run goes on bit for bit", false, true),
  resume_from_checkpoint: refused(
    "a run resumes by itself from its own checkpoints, and cannot continue one from elsewhere",
    "Remove it; to serve an adapter that was trained elsewhere, import it",
    true,
    false,
    "",
  ),

  use_cpu: neutral(device, false),
  accelerator_config: refused(
    "it decides how batches are cut and in which order rows come",
    removeIt,
    {},
    {
      split_batches: false,
      dispatch_batches: null,
      even_batches: true,
      use_seedable_sampler: true,
      non_blocking: false,
      gradient_accumulation_kwargs: null,
    },
  ),
  parallelism_config: refused("devices share the rows, and with fsdp the base, and nothing else", "Remove it, or write fsdp: true", {}),
  dataloader_drop_last: refused("the last batch of an epoch is trained although it is smaller", removeIt, false),
  dataloader_num_workers: neutral(loading, 0),
  dataloader_pin_memory: neutral(loading, true, false),
  dataloader_persistent_workers: neutral(loading, false),
  dataloader_prefetch_factor: neutral(loading),
  dataloader_multiprocessing_context: neutral(loading),
  dataloader_in_order: neutral(loading, true, false),
  remove_unused_columns: neutral("rows hold tokens and labels only", true, false),
  label_names: neutral("rows hold tokens and labels only", []),
  train_sampling_strategy: refused("rows come in an order that the seed decides", "Remove it", "random", "group_by_length"),
  length_column_name: neutral("rows hold tokens and labels only", "length"),
  ddp_find_unused_parameters: neutral(distributed, false),
  ddp_bucket_cap_mb: neutral(distributed),
  ddp_broadcast_buffers: neutral(distributed),
  ddp_static_graph: neutral(distributed),
  ddp_backend: neutral(distributed),
  ddp_timeout: neutral(distributed, 1800),
  fsdp_config: neutral("it belongs to fsdp", {}),
  deepspeed: refused("a base is shared out among devices by FSDP2 here", "Remove it; to share the base out, write fsdp: true", "", {}),
  debug: neutral(telling, "", []),
  skip_memory_metrics: neutral(telling, true),
  do_train: neutral("a run always trains", true, false),
  do_eval: neutral(evaluating, true, false),
  do_predict: neutral(evaluating, false),
  local_rank: neutral(distributed, -1, 0),
};

/** Fields of transformers before 5 and trl before 1; most published recipes are written for these. */
const judgedOlderFields = olderFields({
  warmup_ratio: moved("training.warmup_steps", "a share of all steps is warmup_steps below 1", 0),
  evaluation_strategy: neutral(evaluating, "no"),
  logging_dir: neutral(output),
  overwrite_output_dir: neutral(output, true, false),
  group_by_length: neutral("packing brings rows of one length already", false),
  no_cuda: neutral(device, false),
  use_mps_device: neutral(device, false),
  tpu_num_cores: neutral(device),
  tpu_metrics_debug: neutral(device, false),
  use_ipex: neutral(speed, false),
  jit_mode_eval: neutral(speed, false),
  torchdynamo: neutral(speed),
  half_precision_backend: neutral("bf16 says it", "auto"),
  fp16_backend: neutral("bf16 says it", "auto"),
  fp16_opt_level: neutral("bf16 says it", "O1"),
  save_safetensors: neutral("adapters are always safetensors", true),
  include_tokens_per_second: neutral("tokens per second are always told", false, true),
  include_inputs_for_metrics: neutral("loss and accuracy are always evaluated", false),
  past_index: neutral("it belongs to models with a memory of their own", -1),
  mp_parameters: neutral(distributed, ""),
  ray_scope: neutral("one run is one training; ask for several runs to search", "last"),
  push_to_hub_token: neutral(`${hub}; remove the token from where you keep this`, "<PUSH_TO_HUB_TOKEN>"),
  push_to_hub_model_id: neutral(hub),
  push_to_hub_organization: neutral(hub),
  fsdp_min_num_params: neutral("it belongs to fsdp", 0),
  fsdp_transformer_layer_cls_to_wrap: neutral("it belongs to fsdp"),
  adafactor: refused("it has another name", "Write optim: adafactor", false),
  split_batches: refused("it decides how batches are cut", removeIt, false),
  dispatch_batches: neutral(loading),
});

const tokensAreMade = "rows are tokenized before training, by the section `tokenize`";

const judgedSftFields = sftFields({
  max_length: moved("tokenize.max_length", "tokenize.too_long says what happens to longer records"),
  packing: moved("tokenize.packing", "rows are packed when they are tokenized"),
  model_init_kwargs: neutral("the base is loaded as it is served, in bf16", {}),
  trust_remote_code: neutral("bases are the installation's; code of a base is never executed", false),
  router_aux_loss_coef: refused("the loss is that of the supervised tokens alone", "Remove it, or write 0", 0),
  chat_template_path: refused(
    "the base's own chat template is used, by which it is also served",
    "Remove it, or serve a base whose files hold the template",
  ),
  dataset_text_field: neutral("which columns are read is found, or said by the dataset's mapping when it is uploaded", "text"),
  dataset_kwargs: neutral(tokensAreMade, {}),
  dataset_num_proc: neutral(tokensAreMade),
  eos_token: refused("a turn ends with the token that the base's chat template writes", removeIt, "<EOS_TOKEN>"),
  pad_token: neutral("rows are not padded", "<PAD_TOKEN>"),
  truncation_mode: neutral("tokenize.too_long says what happens to longer records", "keep_start"),
  shuffle_dataset: neutral("rows are always shuffled, by the seed", false, true),
  packing_strategy: neutral("packed rows hold whole records, best fit first", "bfd"),
  padding_free: neutral("rows are never padded", false, true),
  pad_to_multiple_of: neutral("rows are never padded", "auto"),
  eval_packing: neutral("held-out rows are evaluated one sequence at a time"),
  completion_only_loss: neutral("the answers are supervised, and of raw text all of it", true),
  assistant_only_loss: neutral("the assistant's turns are supervised, and of raw text all of it", true),
  loss_type: refused("the loss is the cross entropy", "Remove it", "nll", "chunked_nll"),
  activation_offloading: neutral(speed, false),
  ...olderFields({
    max_seq_length: moved("tokenize.max_length", "tokenize.too_long says what happens to longer records"),
    dataset_batch_size: neutral(tokensAreMade),
    num_of_sequences: neutral(tokensAreMade),
    chars_per_token: neutral(tokensAreMade),
    use_liger: neutral(speed, false),
  }),
});

export const judgedTrainingFields: JudgedFields = { ...judgedTrainingArguments, ...judgedOlderFields, ...judgedSftFields };

/** Fields whose default here differs from that of TrainingArguments, and why. */
export const ownTrainingDefaults: Readonly<Record<string, string>> = {
  per_device_train_batch_size: "fits a small GPU and a CPU",
  learning_rate: "LoRA learns at higher rates than full fine-tuning",
  logging_steps: "every step is told",
  save_steps: "a preempted run loses little",
  save_total_limit: "two are enough to resume",
  bf16: "the base is served in bf16",
};
/** Fields that TrainingArguments does not have. */
export const ownTrainingFields: Readonly<Record<string, string>> = {
  loraplus_lr_ratio: "an argument of PEFT's create_loraplus_optimizer",
  eval_budget: "keeps evaluation cheap; no library has it",
  early_stopping_patience: "an argument of transformers.EarlyStoppingCallback",
  early_stopping_threshold: "an argument of transformers.EarlyStoppingCallback",
};

/** Arguments of learning rate schedules, with the values by which transformers can compute one. */
export const scheduleArguments = z
  .object({
    num_cycles: z.number().positive().max(10_000),
    min_lr: z.number().min(0).max(10),
    min_lr_rate: z.number().min(0).max(1),
    warmup_lr_rate: z.number().min(0).max(1),
    lr_end: z.number().min(0).max(10),
    power: z.number().positive().max(100),
    timescale: z.number().positive(),
    num_decay_steps: z.int().min(0),
    num_stable_steps: z.int().min(0),
    warmup_type: z.enum(["linear", "cosine", "1-sqrt"]),
    decay_type: z.enum(["linear", "cosine", "1-sqrt"]),
    min_lr_ratio: z.number().min(0).max(1),
  })
  .partial();
type ScheduleArgument = keyof z.output<typeof scheduleArguments>;
/** Where the schedule `polynomial` ends if nobody says so. */
const usualLearningRateEnd = 1e-7;

/** Learning rate schedules, with the arguments that each takes in lr_scheduler_kwargs. */
export const schedules = {
  linear: [],
  cosine: ["num_cycles"],
  cosine_with_restarts: ["num_cycles"],
  cosine_with_min_lr: ["min_lr", "min_lr_rate", "num_cycles"],
  cosine_warmup_with_min_lr: ["min_lr", "min_lr_rate", "num_cycles", "warmup_lr_rate"],
  polynomial: ["lr_end", "power"],
  constant: [],
  constant_with_warmup: [],
  inverse_sqrt: ["timescale"],
  warmup_stable_decay: ["num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"],
} as const satisfies Record<string, readonly ScheduleArgument[]>;
type Schedule = keyof typeof schedules;
const scheduleNames = Object.keys(schedules) as [Schedule, ...Schedule[]];

const optimizers = ["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop"] as const;

/** The message for a value that a field does not accept. */
export const trainingFieldErrors = {
  lr_scheduler_type: `must be one of ${scheduleNames.join(", ")}; the others follow an evaluation metric, which is not known while it trains`,
  optim: `must be one of ${optimizers.join(", ")}: the libraries of the others (bitsandbytes, torchao, galore, apollo, lomo, schedulefree …) are not installed here. For an adapter's few weights AdamW's state is small: use adamw_torch_fused`,
} as const;

export const trainingFields = z
  .strictObject({
    per_device_train_batch_size: z
      .int()
      .min(1)
      .max(4096)
      .default(4)
      .describe("Rows (packed rows when packing is on) per device and forward pass."),
    gradient_accumulation_steps: z.int().min(1).max(4096).default(1).describe("Forward passes per step."),
    num_train_epochs: z.number().positive().max(1000).default(3).describe("Passes over the rows."),
    max_steps: z
      .int()
      .min(-1)
      .refine((steps) => steps !== 0, "must be at least 1, or -1 for as many as num_train_epochs needs")
      .default(-1)
      .describe("-1: as many as num_train_epochs needs."),
    learning_rate: z
      .number()
      .positive()
      .max(10)
      .default(2e-4)
      .describe("Highest learning rate. Of `dpo` the default is 5e-5, of `simpo` and `kto` 1e-5, of `orpo` 8e-5."),
    lr_scheduler_type: z
      .enum(scheduleNames, { error: trainingFieldErrors.lr_scheduler_type })
      .default("linear")
      .describe("How the learning rate falls."),
    // No object of the known arguments: of that, Kubernetes would drop a misspelt one without a word.
    lr_scheduler_kwargs: z
      .record(z.string(), z.union([z.number(), z.string(), z.boolean()]))
      .optional()
      .describe("Arguments of the schedule, such as `num_cycles` or `min_lr_rate`."),
    warmup_steps: z.number().nonnegative().default(0).describe("Steps, or below 1 a share of all steps (`warmup_ratio` is accepted too)."),
    optim: z
      .enum(optimizers, { error: trainingFieldErrors.optim })
      .optional()
      .meta({ default: "adamw_torch_fused" })
      .describe("Optimizer."),
    adam_beta1: z.number().min(0).lt(1).optional().meta({ default: 0.9 }).describe("Of AdamW."),
    adam_beta2: z.number().min(0).lt(1).optional().meta({ default: 0.999 }).describe("Of AdamW."),
    adam_epsilon: z.number().positive().max(1).optional().meta({ default: 1e-8 }).describe("Of AdamW."),
    loraplus_lr_ratio: z
      .number()
      .min(1)
      .max(1000)
      .optional()
      .describe("LoRA+: lora_B learns at so many times the learning rate of lora_A. Absent: at the same."),
    weight_decay: z.number().min(0).max(1).default(0).describe("Weight decay of the optimizer."),
    max_grad_norm: z.number().nonnegative().default(1).describe("Gradients are clipped to this norm; 0: they are not."),
    label_smoothing_factor: z
      .number()
      .min(0)
      .lt(1)
      .optional()
      .meta({ default: 0 })
      .describe("Share of the target that is spread over the whole vocabulary. Evaluation is without it."),
    neftune_noise_alpha: z
      .number()
      .min(0)
      .max(1000)
      .optional()
      .describe(
        "NEFTune: noise on the embeddings in training, uniform up to alpha / sqrt(tokens of the sequence × width). Absent or 0: none.",
      ),
    logging_steps: z.int().min(1).default(1).describe("The loss is told every so many steps."),
    save_steps: z.int().min(1).default(50).describe("A checkpoint every so many steps, to resume from and to ask."),
    save_total_limit: z.int().min(1).default(2).describe("Checkpoints kept."),
    eval_steps: z
      .int()
      .min(1)
      .optional()
      .describe(
        "Evaluate every so many steps. Absent: only the base, and the adapter after the last step (with load_best_model_at_end: ten times).",
      ),
    eval_budget: z
      .union([z.number().positive().max(10), z.literal("all")], {
        error: 'must be a share of the training above 0, such as 0.05, or "all"',
      })
      .optional()
      .meta({ default: 0.05 })
      .describe(
        "Share of the training's computation that all evaluations together may take. Of the held-out rows as many are evaluated as fit, in an order that the seed decides: a power of two, at least 32. `all`: every one.",
      ),
    load_best_model_at_end: z
      .boolean()
      .optional()
      .meta({ default: false })
      .describe("The step with the lowest held-out loss is published, and not the last one. Needs held-out rows."),
    early_stopping_patience: z
      .int()
      .min(1)
      .max(1000)
      .optional()
      .describe("Training stops after so many evaluations in a row without a lower held-out loss. Needs load_best_model_at_end."),
    early_stopping_threshold: z
      .number()
      .min(0)
      .optional()
      .meta({ default: 0 })
      .describe("A held-out loss counts as lower if it is lower by more than this."),
    gradient_checkpointing: z.boolean().default(false).describe("Less memory, more time; the same gradients."),
    fsdp: z
      .union([z.boolean(), z.enum(["", "full_shard", "full_shard auto_wrap"]), z.array(z.enum(["full_shard", "auto_wrap"])).max(2)], {
        error: 'must be true or "full_shard": the base is shared out whole (FSDP2), layer by layer',
      })
      .optional()
      .describe(
        "FSDP2: the base is shared out among the run's GPUs, for one that is larger than a GPU; the same numbers, more transfers. With one GPU it changes nothing.",
      ),
    seed: z
      .int()
      .min(0)
      .max(2 ** 32 - 1)
      .default(42)
      .describe("Of initialisation, dropout and order."),
    data_seed: z
      .int()
      .min(0)
      .max(2 ** 32 - 1)
      .optional()
      .describe("Of the order of the rows. Absent: seed."),
    full_determinism: z
      .boolean()
      .optional()
      .meta({ default: false })
      .describe("Deterministic kernels on a GPU too, which are slower; on a CPU two runs are always the same."),
    bf16: z.boolean().default(true).describe("Mixed precision; false: fp32. On a processor without native bf16 it is fp32 in any case."),
  })
  .meta({ description: "Names and meanings of transformers.TrainingArguments.", ...judgedPattern(judgedTrainingFields) });
type TrainingInput = z.input<typeof trainingFields>;

export const trainingSpec = z.preprocess(
  (input: TrainingInput, context): unknown => {
    const raw: unknown = input;
    if (!isObject(raw)) return raw;
    const { warmup_ratio: ratio, ...rest } = raw;
    const conflict = (message: string): void => context.addIssue({ code: "custom", path: ["warmup_ratio"], message });
    let steps = rest["warmup_steps"];
    if (ratio !== undefined && ratio !== null && ratio !== 0) {
      if (typeof ratio !== "number" || ratio < 0 || ratio >= 1) conflict("must be a share of all steps, from 0 to below 1");
      else if (typeof steps === "number" && steps !== 0 && steps !== ratio)
        conflict("warmup_steps is given too, and says something else; remove one of the two");
      else steps = ratio;
    }
    return withoutNeutral(steps === undefined ? rest : { ...rest, warmup_steps: steps }, judgedTrainingFields);
  },
  trainingFields
    .superRefine(({ lr_scheduler_type: schedule, lr_scheduler_kwargs: given = {}, learning_rate: rate }, context) => {
      const wrong = (message: string): void => context.addIssue({ code: "custom", path: ["lr_scheduler_kwargs"], message });
      const known: readonly string[] = schedules[schedule];
      for (const name of Object.keys(given).filter((one) => !known.includes(one)))
        wrong(`the schedule ${schedule} takes ${known.length === 0 ? "no arguments" : known.join(", ")}, not ${name}`);
      const needsMinimum = schedule === "cosine_with_min_lr" || schedule === "cosine_warmup_with_min_lr";
      if (needsMinimum && "min_lr" in given === "min_lr_rate" in given)
        wrong(`the schedule ${schedule} needs either min_lr or min_lr_rate`);
      if (schedule === "warmup_stable_decay" && !("num_decay_steps" in given))
        wrong("the schedule warmup_stable_decay needs num_decay_steps");
      const { data: values, error } = scheduleArguments.safeParse(given);
      for (const { path, message } of error?.issues ?? [])
        context.addIssue({ code: "custom", path: ["lr_scheduler_kwargs", ...path], message });
      const end = values?.lr_end ?? usualLearningRateEnd;
      if (schedule === "polynomial" && end >= rate)
        wrong(`the schedule polynomial falls to lr_end, which is ${end} and must be below learning_rate, ${rate}`);
    })
    .superRefine(({ early_stopping_patience: patience, load_best_model_at_end: best }, context) => {
      if (patience !== undefined && best !== true)
        context.addIssue({
          code: "custom",
          path: ["early_stopping_patience"],
          message: "needs load_best_model_at_end: true, or what is published would be of a step after the best one",
        });
    }),
);
