/** `run.yaml`: the fields of the run spec that are not said on the command line. */
import { runSpecFields } from "@loraline/contracts";
import { z } from "zod";
import { parseYaml, readText, type YamlKind } from "../yaml-file.ts";

const sections = runSpecFields.omit({ base: true, adapter: true, dataset: true, import: true }).extend({
  validation: z
    .string()
    .min(1)
    .optional()
    .describe("What to evaluate on: a file, `https://…`, `hub:organisation/name`, or the id of a dataset that is there already."),
});
/** As written: defaults are the server's business. */
export type RunFile = z.input<typeof sections>;

const kind: YamlKind = { unreadable: "RUN_FILE_UNREADABLE", invalid: "RUN_FILE_INVALID", fields: "sections" };

/** @throws Failure RUN_FILE_UNREADABLE, RUN_FILE_INVALID that names file, line and field. */
export const readRunFile = async (path: string): Promise<RunFile> => parseRunFile(await readText(path, kind), path);

export const parseRunFile = (text: string, path: string): RunFile => parseYaml(text, path, sections, kind).raw;
