/** What a run does, in words, for each method of the run spec. Pure. */
import { byMethod, type MethodTable, type RunSpec } from "@loraline/contracts";

interface MethodWords {
  /** What the run does before it is tokenized. */
  requested: string;
  /** What it works with: pairs of a name and a value. */
  inputs: [string, string][];
  /** Whether it has tokens and training steps of its own to show. */
  trains: boolean;
  /** After what the time until it was served is counted. */
  since: string;
}

const methods: MethodTable<[spec: RunSpec], MethodWords> = {
  supervised: (_, { base, lora, dataset = "" }) => ({
    requested: "reading and tokenizing",
    inputs: [
      ["base", `${base}, LoRA r ${lora.r}`],
      ["dataset", dataset],
    ],
    trains: true,
    since: "the last step",
  }),
  import: ({ source }, { base }) => ({
    requested: "judging the adapter",
    inputs: [
      ["base", base],
      ["imported from", source],
    ],
    trains: false,
    since: "it was adopted",
  }),
};

export const methodWords = (spec: RunSpec): MethodWords => byMethod(methods, spec.method, spec);
