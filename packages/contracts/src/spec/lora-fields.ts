/** Every field of PEFT's `LoraConfig`: the fields that work, and how the others are treated. A Python test compares the table with the installed class. */
import { z } from "zod";
import { isObject, judgedPattern, type JudgedField, type JudgedFields, neutral, refused, withoutNeutral } from "./judged-fields.ts";

/** Features that vLLM cannot serve: the values by which PEFT switches each off, and what to do if one is on. */
const unserved = (why: string, remedy = "Remove it", ...silent: unknown[]): JudgedField =>
  refused(why, remedy, false, "none", [], {}, ...silent);

const plainLora = "vLLM serves plain LoRA only";

export const judgedLoraFields: JudgedFields = {
  task_type: refused("only causal language models are trained here", "Write CAUSAL_LM, or remove it", "CAUSAL_LM", "TaskType.CAUSAL_LM"),
  peft_type: refused("only LoRA is trained here", "Write LORA, or remove it", "LORA", "PeftType.LORA"),
  auto_mapping: neutral("PEFT notes the base's class in it", {}),
  peft_version: neutral("it says which PEFT wrote the configuration"),
  base_model_name_or_path: neutral("the run's own field `base` chooses the base"),
  revision: neutral("the base is the installation's, in the revision that it has"),
  inference_mode: neutral("the trainer sets it", true, false),
  fan_in_fan_out: neutral("PEFT sets it by itself for layers that need it", false),
  ensure_weight_tying: neutral("adapters are trained on linear layers inside the model, none of which is tied", false),
  qalora_group_size: neutral("it belongs to use_qalora", 16),
  megatron_core: neutral("it belongs to megatron_config", "megatron.core"),
  runtime_config: neutral("ephemeral offload is a property of the machine, not of the adapter", {}, { ephemeral_gpu_offload: false }),

  use_dora: unserved("vLLM cannot serve DoRA (it raises NotImplementedError on magnitude vectors)"),
  modules_to_save: unserved("vLLM refuses adapters that carry whole modules", "Train low-rank weights with target_modules instead"),
  bias: unserved("vLLM refuses adapters with trained biases"),
  lora_bias: unserved("vLLM refuses adapters with LoRA biases"),
  trainable_token_indices: unserved("vLLM ignores or refuses trained token embeddings"),
  target_parameters: unserved(
    "these are the weights of experts, and engines are started without LoRA on experts",
    "Name linear layers in target_modules instead",
  ),
  layer_replication: unserved("vLLM serves the base as it is; replicated layers do not exist there"),
  loftq_config: unserved("LoftQ changes the base's weights; the adapter would be wrong on the served base"),
  eva_config: unserved("EVA's data-driven ranks need passes over the data that the trainer does not make"),
  corda_config: unserved("CorDA changes the base's weights; the adapter would be wrong on the served base"),
  lora_ga_config: unserved("LoRA-GA changes the base's weights; the adapter would be wrong on the served base"),
  arrow_config: unserved("Arrow routes between adapters inside PEFT; vLLM applies one adapter per request"),
  alora_invocation_tokens: unserved("vLLM applies an adapter to the whole sequence; activated LoRA would answer differently"),
  use_qalora: unserved("QALoRA pools the input; vLLM has no such kernel"),
  use_bdlora: unserved("vLLM has no loader for block-diagonal LoRA"),
  velora_config: unserved(plainLora),
  monteclora_config: unserved(plainLora),
  kasa_config: unserved(plainLora),
  megatron_config: unserved("Megatron layers do not exist in the served model"),
};

/** Fields whose default here differs from PEFT's, and why. */
export const ownLoraDefaults: Readonly<Record<string, string>> = {
  lora_alpha: "twice the default rank, as in most published recipes",
  target_modules: "PEFT chooses by the kind of model; all linear layers learn best",
};

/** The message for a value that a field does not accept. */
export const loraFieldErrors = {
  init_lora_weights:
    'must be true, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16" or "olora": the other initialisations (corda, eva, loftq, lora_ga, mica) change the base\'s weights in ways that no plain LoRA undoes, or need passes over the data, so the adapter would be wrong on the served base; false starts from noise',
} as const;

/** Values of init_lora_weights that begin with a part of the base; the adapter that is published has twice the rank. */
const initsFromTheBase = ["pissa", "pissa_niter_4", "pissa_niter_16", "olora"] as const;

/** The rank of the adapter that a run publishes, from that of its training. */
export const publishedRank = (trained: number, init: unknown): number => (beginsWithTheBase(init) ? 2 * trained : trained);
export const beginsWithTheBase = (init: unknown): boolean => (initsFromTheBase as readonly unknown[]).includes(init);

/** Most items in a list of modules or layers. No model needs more; a longer list is a mistake or an attack. */
const most = 1000;
const moduleName = z.string().min(1).max(1000);
const moduleNames = z.union([moduleName, z.array(moduleName).min(1).max(most)], {
  error: `must be a name or an expression as a text, or a list of 1 to ${most} names`,
});
const byPattern = <T extends z.ZodType>(value: T) =>
  z.record(moduleName, value).refine((patterns) => Object.keys(patterns).length <= most, `has more than ${most} entries`);

export const loraFields = z
  .strictObject({
    r: z.int().min(1).max(512).default(8).describe("Rank. At most what the engine was started for (`maxLoraRank`, 32 on one machine)."),
    lora_alpha: z.number().positive().default(16).describe("Scaling is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."),
    lora_dropout: z.number().min(0).lt(1).default(0).describe("Share of a LoRA layer's inputs that are dropped in training."),
    target_modules: moduleNames
      .default("all-linear")
      .describe("Module names as a list, one name or a regular expression as a string, or `all-linear`."),
    exclude_modules: moduleNames.optional().describe("Modules that get no adapter although target_modules matches them."),
    use_rslora: z.boolean().default(false).describe("Rank-stabilised scaling, see lora_alpha."),
    layers_to_transform: z
      .union([z.int().nonnegative(), z.array(z.int().nonnegative()).min(1).max(most)], {
        error: `must be a layer's number, counted from 0, or a list of 1 to ${most} of them`,
      })
      .optional()
      .describe("Numbers of the layers that get an adapter. Absent: all."),
    layers_pattern: moduleNames.optional().describe("Name of the list of layers, where it is an unusual one."),
    rank_pattern: byPattern(z.int().min(1).max(512)).optional().describe("Rank of some modules, by name or pattern."),
    alpha_pattern: byPattern(z.number().positive()).optional().describe("lora_alpha of some modules, by name or pattern."),
    init_lora_weights: z
      .union([z.literal(true), z.enum(["gaussian", "orthogonal", ...initsFromTheBase])], { error: loraFieldErrors.init_lora_weights })
      .default(true)
      .describe(
        "How lora_A is drawn; lora_B begins at zero. `pissa` (`pissa_niter_4`, `pissa_niter_16`: faster) and `olora` begin with a part of the base and train it on; what is published is what was learned, exactly, as a plain LoRA of rank 2 r.",
      ),
  })
  .meta({ description: "Fields of PEFT's LoraConfig that vLLM can serve.", ...judgedPattern(judgedLoraFields) });
type LoraInput = z.input<typeof loraFields>;

export const loraSpec = z.preprocess(
  (raw: LoraInput): unknown => (isObject(raw) ? withoutNeutral(raw, judgedLoraFields) : raw),
  loraFields,
);
