/**
 * The table of all codes that errors, warnings and waiting states carry: what each means, who can correct it and how. `make generate`
 * writes docs/errors.md from it. tests/error-codes.test.ts checks that the sources raise exactly these codes.
 */
import { fileCodes, importCodes, reportCodes, rowCodes } from "./data.ts";
import type { CodeEntry } from "./define-area.ts";
import { httpCodes } from "./http.ts";
import { attemptCodes, specCodes, tokenizeCodes, trainerCodes } from "./runs.ts";
import { adapterCodes, aliasCodes, engineSettingsCodes, gateCodes, placementCodes } from "./serving.ts";
import { busCodes, commandCodes, operatorCodes, programCodes } from "./system.ts";

/** The areas, in the order of docs/errors.md. Each code is in one area only. */
export const codeAreas = [
  fileCodes,
  rowCodes,
  reportCodes,
  importCodes,
  specCodes,
  tokenizeCodes,
  attemptCodes,
  trainerCodes,
  adapterCodes,
  gateCodes,
  aliasCodes,
  placementCodes,
  engineSettingsCodes,
  busCodes,
  programCodes,
  operatorCodes,
  commandCodes,
  httpCodes,
] as const;

type CodesOf<Area> = Area extends { codes: Readonly<Record<infer Code extends string, CodeEntry>> } ? Code : never;
export type ErrorCode = CodesOf<(typeof codeAreas)[number]>;

/** What a code means; undefined when there is no such code. */
export const explainCode = (code: string): (CodeEntry & { area: string; where: string }) | undefined => {
  for (const { title, where, codes } of codeAreas) {
    const entry = (codes as Readonly<Record<string, CodeEntry>>)[code];
    if (entry !== undefined) return { ...entry, area: title, where };
  }
  return undefined;
};
