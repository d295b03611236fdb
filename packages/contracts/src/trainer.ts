/** The trainer's contract of files: `spec.json` in; `progress.jsonl` and `result.json` out. */
import { z } from "zod";
import { baseRef, computeType } from "./engine.ts";
import { blobRef, digest, fileRef, problem } from "./names.ts";
import { initialAdapter, probePrompt } from "./records.ts";
import { loraSpec } from "./spec/lora-fields.ts";
import { preferenceFields } from "./spec/method.ts";
import { quantization } from "./spec/quantization.ts";
import { trainingSpec } from "./spec/training-fields.ts";

/** The part of the run spec's method that the trainer needs; the method's files are in the trainer's folder. */
const trainerMethod = z.discriminatedUnion("type", [
  z.object({ type: z.literal("supervised") }),
  z.object({ type: z.literal("import") }),
  z.object({ type: z.literal("dpo"), ...preferenceFields.dpo }),
  z.object({ type: z.literal("orpo"), ...preferenceFields.orpo }),
  z.object({ type: z.literal("simpo"), ...preferenceFields.simpo }),
  z.object({ type: z.literal("kto"), ...preferenceFields.kto }),
]);

export const trainerSpec = z.object({
  version: z.literal(1),
  run_id: z.string(),
  attempt: z.int(),
  base: baseRef,
  lora: loraSpec,
  training: trainingSpec,
  method: trainerMethod
    .default({ type: "supervised" })
    .describe(
      "`supervised`: trains on `shards/`. `dpo`, `orpo`, `simpo`: on pairs, which are two adjacent sequences of a row, chosen (`sides` 1) before rejected (0). `kto`: on sequences that are good (1) or bad (0). `import`: nothing is trained; `import/` holds an adapter from elsewhere.",
    ),
  quantization: quantization.nullish(),
  init: z.object({ name: z.string(), digest }).nullish().describe("The adapter in `init/` with which training begins. Absent: none."),
  twins: z
    .array(z.object({ path: z.string(), digest }))
    .default([])
    .describe("Quantised bases made of `base/`, in these folders, on which the probes are recorded, too."),
  probes: z.array(probePrompt),
  device: z.enum(["auto", "cuda", "cpu"]).default("auto").describe("`cuda`: without a GPU it is an error. `auto`: a GPU if there is one."),
});
export type TrainerSpec = z.infer<typeof trainerSpec>;

const at = { time: z.number().describe("Unix seconds.") };
export const progressLine = z.discriminatedUnion("type", [
  z.object({ type: z.literal("phase"), phase: z.string(), state: z.enum(["start", "end"]), ...at }),
  z.object({
    type: z.literal("step"),
    ...at,
    step: z.int(),
    total_steps: z.int(),
    epoch: z.number(),
    loss: z.number(),
    grad_norm: z.number().nullish(),
    learning_rate: z.number(),
    tokens_per_second: z.number(),
    tokens_seen: z.int(),
    examples_seen: z.int(),
    eta_seconds: z.number(),
    rewards_chosen: z.number().nullish().describe("Mean reward of the step's chosen (`kto`: good) answers, as the method defines it."),
    rewards_rejected: z.number().nullish().describe("Of the rejected (`kto`: bad) ones."),
    rewards_margin: z.number().nullish().describe("The first less the second."),
    rewards_accuracy: z
      .number()
      .nullish()
      .describe("Share of the pairs whose chosen answer has the higher reward. `kto`: of the answers whose reward has the label's sign."),
  }),
  z.object({
    type: z.literal("count"),
    ...at,
    phase: z.string().describe("`evaluate` comes in the middle of `train`, too."),
    done: z.int(),
    total: z.int(),
    eta_seconds: z.number(),
  }),
  z.object({ type: z.literal("eval"), ...at, step: z.int(), eval_loss: z.number() }),
  z
    .object({ type: z.literal("adapter"), ...at })
    .describe("`adapter/` and `adapter.json` are complete; what is evaluated now is this adapter."),
  z.object({ type: z.literal("checkpoint"), ...at, step: z.int(), path: z.string() }),
  z.object({ type: z.literal("warning"), ...at, code: z.string(), message: z.string() }),
]);
export type ProgressLine = z.infer<typeof progressLine>;

/** What was measured on the held-out pairs (`kto`: labelled answers) with the adapter as it is published. */
const preferenceEvaluation = z.object({
  pairs: z.int().describe("Held-out pairs; `kto`: answers."),
  accuracy: z
    .number()
    .describe("Share of the pairs whose chosen answer has the higher reward. `kto`: of the answers whose reward has the label's sign."),
  accuracy_low: z.number().describe("Lower end of the 95 % interval of `accuracy` (Wilson)."),
  accuracy_high: z.number(),
  margin: z.number().describe("Mean reward of the chosen answers less that of the rejected ones."),
  chosen_logprob_change: z
    .number()
    .describe("Mean log-probability per token of the chosen answers, with the adapter less without it. Below 0 they became less likely."),
  loss: z.number().describe("The method's own loss. `dpo` with `sigmoid`: ln 2 is what the base alone has."),
});
export type PreferenceEvaluation = z.infer<typeof preferenceEvaluation>;

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

/** In words: `the right side is preferred in 87.5 % of 40 held-out comparisons (95 %: 73.9 % to 94.5 %), margin 0.612`. */
export const preferenceWords = ({ pairs, accuracy, accuracy_low: low, accuracy_high: high, margin }: PreferenceEvaluation): string =>
  `the right side is preferred in ${percent(accuracy)} of ${pairs} held-out comparisons (95 %: ${percent(low)} to ${percent(high)}), margin ${margin.toFixed(3)}`;

/** By so much, in log-probability per token, chosen answers may become less likely before it is told: the known failure of DPO. */
const toldFall = -0.01;

/** @returns what a person should know although it refuses nothing; undefined: there is nothing of the kind. */
export const preferenceDoubt = ({ chosen_logprob_change: change }: PreferenceEvaluation): string | undefined =>
  change < toldFall
    ? `the chosen answers became less likely than they are to the base (${change.toFixed(3)} per token): the adapter learned what to avoid more than what to say. method.sft_weight, a higher beta or a lower learning rate helps.`
    : undefined;

export const evaluation = z.object({
  base_loss: z.number().describe("Mean loss per supervised token. Of pairs: of the chosen answers."),
  adapter_loss: z.number(),
  base_accuracy: z.number().nullish().describe("Share of the supervised tokens that are the likeliest one to the base."),
  adapter_accuracy: z.number().nullish(),
  rows: z.int().describe("Evaluated rows; `held_out_rows` of them are held out."),
  supervised_tokens: z.int(),
  held_out_rows: z
    .int()
    .nullish()
    .describe("All of them, of which `training.eval_budget` allows `rows`. Absent: by an older trainer, which evaluated all."),
  published_step: z
    .int()
    .nullish()
    .describe("The step whose weights are published: the last one, unless `load_best_model_at_end` chose another."),
  stopped_early: z.boolean().nullish().describe("Whether `early_stopping_patience` ended the training before its last step."),
  rows_digest: digest
    .nullish()
    .describe(
      "Of the held-out rows' tokens and labels. Equal: evaluated on the same rows, on whatever machine. Absent: by an older trainer.",
    ),
  preference: preferenceEvaluation.nullish().describe("Of methods that learn from preferences."),
});
export type Evaluation = z.infer<typeof evaluation>;

/** The answers of base and adapter to one probe (test prompt), recorded by the trainer after training. Logprobs are natural logarithms. */
export const probeRecord = z.object({
  name: z.string(),
  input_ids: z.array(z.int()),
  messages: z
    .array(
      z.object({
        role: z.string(),
        content: z.array(
          z.discriminatedUnion("type", [
            z.object({ type: z.literal("text"), text: z.string() }),
            z.object({ type: z.literal("image_url"), image_url: z.object({ url: z.string().startsWith("data:") }) }),
          ]),
        ),
      }),
    )
    .nullish()
    .describe(
      "The prompt as OpenAI's conversation, with its pictures as data URLs, by which a replica is asked; `input_ids` has their tokens. Absent: it has no pictures.",
    ),
  base: z.object({ tokens: z.array(z.int()), logprobs: z.array(z.number()) }).describe("Its likeliest token."),
  adapter: z.object({
    tokens: z.array(z.int()).describe("The likeliest token with the adapter. Older trainers recorded a greedy continuation."),
    logprobs: z.array(z.number()).describe("The adapter's logprobs of these tokens."),
    base_logprobs: z.array(z.number()).describe("The base's logprobs of the same tokens, after the same ones."),
  }),
  first: z
    .object({ tokens: z.array(z.int()).min(1), base: z.array(z.number()), adapter: z.array(z.number()) })
    .describe(
      "The likeliest tokens right after the prompt, those of base and adapter together, with both models' logprobs. This is what a replica is asked: one token of work, and unlike a greedy continuation of a well-trained adapter (logprob near 0 at any scale) it tells a wrong scale.",
    ),
});
export type ProbeRecord = z.infer<typeof probeRecord>;

/** All that decides the last bits of a training, besides its data and settings. */
const trainingEnvironment = z.object({
  compute_type: computeType.describe("Of the base, in training, evaluation and probes; with `bf16: false` training alone is in float32."),
  quantization: quantization
    .nullish()
    .describe("How the base was held in training alone: evaluation and probes are of the base as it is. Absent: as it is."),
  device: z.string().describe("Name of the GPU, or the processor's architecture."),
  instruction_set: z.string().nullable().describe("The processor's, as torch uses it. Null on a GPU."),
  max_instruction_set: z.string().nullable().describe("The limit that oneDNN was given. Null: none."),
  threads: z.int(),
  seed: z.int(),
  libraries: z.record(z.string(), z.string()).describe("Name to version."),
});

/** What base and adapter answer when the base's weights are those of a quantised twin, by its digest. */
const twinRecord = z.object({ base: digest, probes: z.array(probeRecord) });

/** How the trainer describes the adapter that it wrote into a folder. */
const writtenAdapter = z.object({
  rank: z.int(),
  target_modules: z.array(z.string()),
  parameters: z.int(),
  files: z.array(z.object({ path: z.string(), size: z.int(), sha256: z.string() })),
});

/**
 * `published/step-NNNNNNNN.json`, beside the folder of that name: a checkpoint's adapter as it would be served. It is complete before the
 * progress line about its checkpoint is written. `adapter.json` says the same of `adapter/`, while the adapter is still evaluated.
 */
export const writtenCheckpoint = z.object({
  adapter: writtenAdapter,
  probes: z.array(probeRecord).describe("Of the first token after each prompt."),
  environment: trainingEnvironment,
});

export const trainerResult = z.object({
  status: z.enum(["succeeded", "failed", "preempted"]),
  error: problem.nullable(),
  steps: z.int(),
  total_steps: z.int(),
  train_loss: z.number().nullable(),
  tokens_seen: z.int(),
  train_tokens_per_second: z.number().nullable(),
  loss_history: z.array(z.tuple([z.int(), z.number()])),
  eval_history: z
    .array(z.tuple([z.int(), z.number()]))
    .optional()
    .describe(
      "Step and loss on the held-out rows. The last one is of the adapter as it is published, except with `load_best_model_at_end`.",
    ),
  evaluation: evaluation.nullable(),
  probes: z.array(probeRecord),
  twins: z.array(twinRecord).nullish(),
  adapter: writtenAdapter.nullable(),
  environment: trainingEnvironment.nullish(),
  phases: z.record(z.string(), z.number()).describe("Phase to seconds."),
});
export type TrainerResult = z.infer<typeof trainerResult>;

/** The manifest of a checkpoint: JSON object of kind `checkpoint`, written after its files. */
export const checkpointManifest = z.object({
  version: z.literal(1),
  step: z.int(),
  files: z.array(fileRef),
});
export type CheckpointManifest = z.infer<typeof checkpointManifest>;

/** A checkpoint as replicas can serve it. */
export const publishedCheckpoint = z
  .object({ adapter: blobRef.describe("Manifest of the adapter."), evidence: blobRef, rank: z.int() })
  .describe(
    "The adapter as it was at that step, with what proves it. Absent: it cannot be asked; its run is of an older trainer, or it had learned nothing yet.",
  );

export type PublishedCheckpoint = z.infer<typeof publishedCheckpoint>;

/**
 * The manifest of an adapter: JSON object of kind `adapter`. Its own digest is the version's digest. So it contains nothing that differs
 * between two trainings with the same resulting bytes: no run id and no time.
 */
export const adapterManifest = z.object({
  version: z.literal(1),
  base: baseRef,
  rank: z.int(),
  targetModules: z.array(z.string()),
  parameters: z.int(),
  files: z.array(fileRef),
});
export type AdapterManifest = z.infer<typeof adapterManifest>;

/** JSON object of kind `evidence`: the measurements by which an adapter is proven on a replica, and the adapter's origin. */
export const evidence = z.object({
  version: z.literal(1),
  runId: z.string(),
  adapter: digest,
  tokens: blobRef.describe("Manifest of the shards it was trained on."),
  init: initialAdapter.nullish().describe("The version with which the training began. Absent or null: none."),
  templateDigest: digest,
  evaluation: evaluation.nullable(),
  base: digest.nullish().describe("Of the base with which `probes` were recorded. Absent: of before a base could have twins."),
  probes: z.array(probeRecord),
  twins: z.array(twinRecord).nullish().describe("The same on quantised bases on which it is served. Absent: none was known."),
  environment: trainingEnvironment.nullish().describe("Where it was trained. Absent: by an older trainer, which computed in bf16."),
  lossHistory: z.array(z.tuple([z.int(), z.number()])),
  evalHistory: z.array(z.tuple([z.int(), z.number()])).optional(),
});
export type Evidence = z.infer<typeof evidence>;
