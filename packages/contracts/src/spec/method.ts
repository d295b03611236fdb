/**
 * The run spec's `method`: how an adapter comes to be. To add one, add its shape here; the type checker then names every table
 * (`MethodTable`, `Record<MethodType, …>`) that has no entry for it, one for each stage that treats methods differently.
 */
import { z } from "zod";
import { blobRef } from "../names.ts";
import { trainingFields } from "./training-fields.ts";

const adapterFile = blobRef.extend({ kind: z.literal("adapter-file") });

/** An adapter that was trained elsewhere. Its files are in the object store already: the one who makes the request stores them first. */
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
    system: z
      .string()
      .min(1)
      .max(100_000)
      .optional()
      .describe(
        "System prompt that it was trained with: conversations that have none get it. Of a version of one's own, that version's is the default.",
      ),
    any_base: z.boolean().optional().describe("Serve it although its config names another base: the same one under another name."),
  })
  .describe("A LoRA in PEFT's layout, served instead of training one: it is judged, made canonical, and proven by probes made here.");

const weight = z.number().nonnegative().max(1000);
const beta = z.number().positive().max(1000);

const dpoLosses = ["sigmoid", "hinge", "ipo", "robust"] as const;

/** What the trainer needs to know of each method that learns from preferences. Names and defaults are TRL's. */
export const preferenceFields = {
  dpo: {
    beta: beta.default(0.1).describe("How firmly the adapter is held to the base (`ipo`: TRL's tau). Lower lets it move further."),
    label_smoothing: z
      .number()
      .min(0)
      .lt(0.5)
      .default(0)
      .describe("Share of the pairs that may be the wrong way round (cDPO; with `robust`: robust DPO). `hinge` and `ipo` do not use it."),
    loss_type: z
      .enum(dpoLosses)
      .default("sigmoid")
      .describe("`sigmoid`: DPO. `hinge`: SLiC. `ipo`: IPO, which averages over an answer's tokens. `robust`: robust DPO."),
    sft_weight: weight
      .default(0)
      .describe(
        "So many times the supervised loss of the chosen answers is added (RPO; TRL's `rpo_alpha`). It keeps the chosen answers likely.",
      ),
  },
  orpo: { beta: beta.default(0.1).describe("Weight of the odds ratio beside the supervised loss (the paper's lambda).") },
  simpo: {
    beta: beta.default(2).describe("Scale of the rewards, which are mean log-probabilities per token."),
    simpo_gamma: weight.default(0.5).describe("By how much the chosen answer's reward should be above the other's."),
    cpo_alpha: weight.default(0).describe("So many times the supervised loss of the chosen answers is added."),
  },
  kto: {
    beta: beta.default(0.1).describe("How firmly the adapter is held to the base. Lower lets it move further."),
    desirable_weight: weight.default(1).describe("Weight of good answers."),
    undesirable_weight: weight
      .default(1)
      .describe("Weight of bad answers. With many more of one side, weigh the other more, so that the sums are within 1:1 and 4:3."),
  },
} as const;

const pairs = z
  .enum(["best", "all"])
  .default("best")
  .describe(
    "Which pairs a list of answers with scores gives. `best`: its best answer against each other one. `all`: each two answers whose scores differ.",
  );

const supervised = z.strictObject({ type: z.literal("supervised") });
const imported = z.strictObject({ type: z.literal("import"), ...adapterImport.shape });
const dpo = z.strictObject({ type: z.literal("dpo"), ...preferenceFields.dpo, pairs });
const orpo = z.strictObject({ type: z.literal("orpo"), ...preferenceFields.orpo, pairs });
const simpo = z.strictObject({ type: z.literal("simpo"), ...preferenceFields.simpo, pairs });
const kto = z.strictObject({ type: z.literal("kto"), ...preferenceFields.kto });
const judge = z.strictObject({ type: z.literal("judge"), pairs });

const preferenceShapes = { dpo, orpo, simpo, kto } as const;
/** Methods with settings, which a job's body has among its hyperparameters. */
export const shapesWithSettings = { ...preferenceShapes, judge } as const;

export const method = z
  .discriminatedUnion("type", [supervised, imported, dpo, orpo, simpo, kto, judge], {
    error: ({ code, input }) => (code === "invalid_union" ? unknownMethod(input) : undefined),
  })
  .describe(
    "How the adapter comes to be. `supervised`: trained on the answers in `dataset`. `dpo`, `orpo`, `simpo`: on pairs of a chosen and a rejected answer. `kto`: on answers that are labelled good or bad. `judge`: to say which of two answers is better, from the same pairs, each asked in both orders. `import`: trained elsewhere, in PEFT's layout; it is judged, made canonical, and proven by probes made here.",
  );
export type Method = z.infer<typeof method>;
export type MethodType = Method["type"];
export type MethodOf<T extends MethodType> = Extract<Method, { type: T }>;

export const methodTypes: readonly MethodType[] = method.options.map(({ shape }) => shape.type.value);

/** The message for a `method` of an unknown type; it names the known ones, and follows the field's name. */
function unknownMethod(input: unknown): string {
  const type = typeof input === "object" && input !== null ? (input as { type?: unknown }).type : undefined;
  const offered = methodTypes.map((one) => `"${one}"`).join(", ");
  return type === undefined ? `must be one of ${offered}` : `${JSON.stringify(type)} is not offered; use one of ${offered}`;
}

/** An entry for each method: what one stage of the pipeline does for it. */
export type MethodTable<Args extends readonly unknown[], Result> = {
  readonly [T in MethodType]: (method: MethodOf<T>, ...args: Args) => Result;
};

/** Calls the table's entry for this method. */
export const byMethod = <Args extends readonly unknown[], Result>(table: MethodTable<Args, Result>, of: Method, ...args: Args): Result =>
  (table[of.type] as (method: Method, ...args: Args) => Result)(of, ...args);

/** Fields of the run spec that have an effect only if the adapter is trained here. */
export const trainingOnlyFields = [
  "dataset",
  "validation",
  "init_from",
  "holdout",
  "validation_overlap",
  "dedupe",
  "min_records",
  "lora",
  "training",
  "tokenize",
  "quantization",
] as const;

/** Methods that learn from preferences. */
export type PreferenceType = keyof typeof preferenceFields;
export const isPreference = <M extends { type: MethodType }>(of: M): of is Extract<M, { type: PreferenceType }> =>
  of.type in preferenceFields;

/**
 * The learning rate of a run that says none; OpenAI's `learning_rate_multiplier` multiplies it. Those of preferences are low: at
 * a supervised rate both answers soon become unlikely. ORPO's loss is mostly a supervised one.
 */
export const usualLearningRates: Readonly<Record<MethodType, number>> = {
  supervised: trainingFields.parse({}).learning_rate,
  import: trainingFields.parse({}).learning_rate,
  // At 1e-5, TRL's for adapters, a hundred pairs in sixty steps teach nothing that can be measured (samples/preferences.jsonl).
  dpo: 5e-5,
  orpo: 8e-5,
  simpo: 1e-5,
  kto: 1e-5,
  judge: trainingFields.parse({}).learning_rate,
};

const onDataset = { needs: { dataset: "is missing: name the dataset to train on" }, refuses: {} };
/** For each method: the dataset fields that it requires or forbids, each with the message when it is absent or present. */
export const datasetRules: Record<MethodType, { needs: Record<string, string>; refuses: Record<string, string> }> = {
  supervised: onDataset,
  dpo: onDataset,
  orpo: onDataset,
  simpo: onDataset,
  kto: onDataset,
  judge: onDataset,
  import: {
    needs: {},
    refuses: {
      dataset: "an adapter is either trained on `dataset` or imported; remove one of the two",
      validation: "an imported adapter is not evaluated; remove it",
    },
  },
};
