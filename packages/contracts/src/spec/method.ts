/**
 * The run spec's `method`: how an adapter comes to be. To add one, add its shape here; the type checker then names every table
 * (`MethodTable`, `Record<MethodType, …>`) that has no entry for it, one for each stage that treats methods differently.
 */
import { z } from "zod";
import { blobRef } from "../names.ts";

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
    any_base: z.boolean().optional().describe("Serve it although its config names another base: the same one under another name."),
  })
  .describe("A LoRA in PEFT's layout, served instead of training one: it is judged, made canonical, and proven by probes made here.");

const supervised = z.strictObject({ type: z.literal("supervised") });
const imported = z.strictObject({ type: z.literal("import"), ...adapterImport.shape });

export const method = z
  .discriminatedUnion("type", [supervised, imported], {
    error: ({ code, input }) => (code === "invalid_union" ? unknownMethod(input) : undefined),
  })
  .describe(
    "How the adapter comes to be. `supervised`: trained on the answers in `dataset`. `import`: trained elsewhere, in PEFT's layout; it is judged, made canonical, and proven by probes made here.",
  );
export type Method = z.infer<typeof method>;
export type MethodType = Method["type"];
export type MethodOf<T extends MethodType> = Extract<Method, { type: T }>;

export const methodTypes: readonly MethodType[] = method.options.map(({ shape }) => shape.type.value);

/** The message for a `method` of an unknown type; it names the known ones, and follows the field's name. */
function unknownMethod(input: unknown): string {
  const type = typeof input === "object" && input !== null ? (input as { type?: unknown }).type : undefined;
  const offered = methodTypes.map((one) => `"${one}"`).join(" or ");
  return type === undefined ? `must be ${offered}` : `${JSON.stringify(type)} is not offered; use ${offered}`;
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
] as const;

/** For each method: the dataset fields that it requires or forbids, each with the message when it is absent or present. */
export const datasetRules: Record<MethodType, { needs: Record<string, string>; refuses: Record<string, string> }> = {
  supervised: { needs: { dataset: "is missing: name the dataset to train on" }, refuses: {} },
  import: {
    needs: {},
    refuses: {
      dataset: "an adapter is either trained on `dataset` or imported; remove one of the two",
      validation: "an imported adapter is not evaluated; remove it",
    },
  },
};
