/** Reads the importer's settings from the environment. */
import { allowListOf } from "@loraline/runtime";
import { z } from "zod";
import type { ImportSettings } from "./on-import-requested.ts";

export const importEnv = {
  HF_ENDPOINT: z
    .url({ protocol: /^https?$/ })
    .optional()
    .describe("Base URL of the hub, or of a mirror."),
  HF_TOKEN: z.string().optional().describe("Reads what its owner may read, for every tenant."),
  LORALINE_IMPORT_ALLOW: z
    .string()
    .optional()
    .describe("host:port, separated by commas: internal hosts that datasets may be imported from."),
  LORALINE_IMPORT_MAX_BYTES: z.coerce.number().int().positive().optional(),
};

type Env = { [K in keyof typeof importEnv]?: z.output<(typeof importEnv)[K]> };

export function importSettingsOf({
  HF_ENDPOINT,
  HF_TOKEN,
  LORALINE_IMPORT_ALLOW,
  LORALINE_IMPORT_MAX_BYTES,
}: Env): Partial<ImportSettings> {
  return {
    allow: allowListOf(LORALINE_IMPORT_ALLOW),
    hubToken: HF_TOKEN,
    ...(HF_ENDPOINT === undefined ? {} : { hubEndpoint: HF_ENDPOINT }),
    ...(LORALINE_IMPORT_MAX_BYTES === undefined ? {} : { maxBytes: LORALINE_IMPORT_MAX_BYTES }),
  };
}
