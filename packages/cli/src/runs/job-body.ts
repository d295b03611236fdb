/** Pure: the body of `POST /v1/fine_tuning/jobs` for a run file. */
import { type CreateJobBodyInput, openAiFields, type RunSpecInput } from "@loraline/contracts";
import type { RunFile } from "./run-file.ts";

/**
 * @param of.training - id of the training file.
 * @param of.validation - id of the validation file; undefined: rows are held out.
 */
export function jobBodyOf(of: {
  base: string;
  adapter: string;
  training: string;
  validation: string | undefined;
  settings: RunFile;
}): CreateJobBodyInput {
  const fields: Partial<RunSpecInput> = { ...of.settings, base: of.base, adapter: of.adapter, dataset: of.training };
  if (of.validation !== undefined) fields.validation = of.validation;
  const own: Record<string, unknown> = {};
  const extension: Record<string, unknown> = {};
  for (const [field, value] of Object.entries(fields)) {
    const name = openAiFields[field as keyof typeof openAiFields] as string | undefined;
    if (name === undefined) extension[field] = value;
    else own[name] = value;
  }
  if (fields.method !== undefined) own["method"] = jobMethodOf(fields.method);
  return { ...own, loraline: extension } as CreateJobBodyInput;
}

/** OpenAI's spelling of a run's method, whose settings stand in its `hyperparameters`. */
export const jobMethodOf = ({ type, ...settings }: NonNullable<RunSpecInput["method"]>) => ({
  type,
  ...(Object.keys(settings).length === 0 ? {} : { [type]: { hyperparameters: settings } }),
});

/** The file's id, when a dataset is named that is there already: by its own id, or by its file's. */
export const fileIdIn = (given: string): string | undefined =>
  /^(?:file-)?[0-9A-HJKMNP-TV-Z]{26}$/.test(given) ? `file-${given.replace(/^file-/, "")}` : undefined;
