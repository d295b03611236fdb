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

const trained = (base: string, lora: RunSpec["lora"], dataset = "", more: [string, string][] = []): MethodWords => ({
  requested: "reading and tokenizing",
  inputs: [["base", `${base}, LoRA r ${lora.r}`], ["dataset", dataset], ...more],
  trains: true,
  since: "the last step",
});

/** A method with its settings: `dpo, beta 0.1, loss_type sigmoid`. What adds nothing is left out. */
const settingsOf = ({ type, ...settings }: RunSpec["method"]): string =>
  [type, ...Object.entries(settings).flatMap(([name, value]) => (value === 0 ? [] : [`${name} ${String(value)}`]))].join(", ");

const learning = (method: RunSpec["method"], { base, lora, dataset }: RunSpec): MethodWords =>
  trained(base, lora, dataset, [["learns by", settingsOf(method)]]);

const methods: MethodTable<[spec: RunSpec], MethodWords> = {
  supervised: (_, { base, lora, dataset }) => trained(base, lora, dataset),
  dpo: learning,
  orpo: learning,
  simpo: learning,
  kto: learning,
  judge: learning,
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
