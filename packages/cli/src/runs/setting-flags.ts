/** Flags of `loraline run` for the settings that everybody changes: short for fields of the run spec, and stronger than run.yaml. */
import { type Command, Option } from "commander";
import { decimal, wholeNumber } from "../command.ts";
import type { RunFile } from "./run-file.ts";

export interface SettingFlags {
  epochs?: number;
  maxSteps?: number;
  learningRate?: number;
  rank?: number;
  maxLength?: number;
}

export const withSettingFlags = (command: Command): Command =>
  command
    .addOption(new Option("--epochs <n>", "passes over the data: training.num_train_epochs").argParser(decimal))
    .addOption(new Option("--max-steps <n>", "steps, whatever the epochs: training.max_steps").argParser(wholeNumber(1)))
    .addOption(new Option("--learning-rate <rate>", "training.learning_rate").argParser(decimal))
    .addOption(new Option("--rank <r>", "lora.r").argParser(wholeNumber(1)))
    .addOption(new Option("--max-length <tokens>", "tokens per sequence: tokenize.max_length").argParser(wholeNumber(1)));

/** Pure: run.yaml, with the flags in place of what it says of the same settings, in whatever spelling. */
export function withFlags(settings: RunFile, { epochs, maxSteps, learningRate, rank, maxLength }: SettingFlags): RunFile {
  const training: Record<string, unknown> = { ...settings.training };
  const said = (field: string, value: number | undefined, ...replaces: readonly string[]): void => {
    if (value === undefined) return;
    for (const other of replaces) delete training[other];
    training[field] = value;
  };
  // A limit of steps in run.yaml would make the flag say nothing.
  said("num_train_epochs", epochs, "max_steps");
  said("max_steps", maxSteps);
  said("learning_rate", learningRate);
  if (maxLength !== undefined) {
    delete training.max_length;
    delete training.max_seq_length;
  }
  return {
    ...settings,
    ...(Object.keys(training).length === 0 && settings.training === undefined ? {} : { training }),
    ...(rank === undefined ? {} : { lora: { ...settings.lora, r: rank } }),
    ...(maxLength === undefined ? {} : { tokenize: { ...settings.tokenize, max_length: maxLength } }),
  };
}
