/** `run.yaml`: the sections of the run spec that are not already said on the command line. */
import { runSpecFields } from "@loraline/contracts";
import type { z } from "zod";
import { parseYaml, readText } from "../yaml-file.ts";

const sections = runSpecFields.pick({
  lora: true,
  training: true,
  tokenize: true,
  holdout: true,
  min_records: true,
  gate: true,
  gate_accuracy: true,
  promote: true,
  canary: true,
  placement: true,
  keep: true,
  max_attempts: true,
});
/** As written: defaults are the line's business. */
export type RunFile = z.input<typeof sections>;

const kind = { code: "RUN_FILE", fields: "sections" } as const;

/** @throws Failure RUN_FILE_UNREADABLE, RUN_FILE_INVALID that names file, line and field. */
export const readRunFile = async (path: string): Promise<RunFile> => parseRunFile(await readText(path, kind), path);

export const parseRunFile = (text: string, path: string): RunFile => parseYaml(text, path, sections, kind).raw;
