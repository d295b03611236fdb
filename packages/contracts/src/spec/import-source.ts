/** Where a dataset is fetched from. */
import { z } from "zod";

const path = z.string().min(1).max(500);

export const urlSource = z.strictObject({
  url: z.string().min(1).max(4096).describe("https; other addresses only where an operator allows them."),
});
export const hubSource = z.strictObject({
  hub: z
    .string()
    .regex(/^(?:[\w-][\w.-]{0,95}\/)?[\w-][\w.-]{0,95}$/, 'name a dataset of the hub as "organisation/name"')
    .describe("A dataset of the hub."),
  file: path.nullish().describe("One file of it, by its path; absent: the files of the split, when they are plain to see."),
  config: path.nullish().describe("Folder or prefix of the subset."),
  split: z.string().min(1).max(100).nullish().describe("`train` when absent."),
  revision: z.string().min(1).max(200).nullish().describe("Branch, tag or commit; `main` when absent."),
});
export const importSource = z.union([urlSource, hubSource]);
export type ImportSource = z.infer<typeof importSource>;
