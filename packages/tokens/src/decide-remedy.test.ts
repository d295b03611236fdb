import { expect, it } from "vitest";
import { explainTooFew } from "./decide-remedy.ts";

const input = { records: 20, usable: 0, minRecords: 10, tokenize: { max_length: 64 } };
it.each<[string, Record<string, number>, string, string, RegExp]>([
  ["preferences", { KIND_NOT_TRAINED: 20 }, "KIND_NOT_TRAINED", "dataset", /Give rows with one answer each\.$/],
  ["images", { BASE_CANNOT_SEE: 20 }, "BASE_CANNOT_SEE", "dataset", /rows of text only\.$/],
  ["answers that are cut", { TOO_LONG: 20 }, "TOO_FEW_RECORDS", "tokenize.max_length", /Raise tokenize\.max_length \(now 64\)/],
  [
    "the validation's own rows",
    { IN_VALIDATION: 15, TOO_LONG: 3 },
    "TOO_FEW_RECORDS",
    "validation_overlap",
    /set validation_overlap to keep\.$/,
  ],
  ["repetitions", { EXACT_DUPLICATE: 19 }, "TOO_FEW_RECORDS", "dedupe", /set dedupe to none\.$/],
  ["nothing left out", {}, "TOO_FEW_RECORDS", "dataset", /Add records, or lower min_records\.$/],
])("names the remedy that helps against %s", (_, dropped, code, param, message) => {
  expect(explainTooFew({ ...input, dropped: new Map(Object.entries(dropped)) })).toMatchObject({
    code,
    param,
    message: expect.stringMatching(message) as string,
  });
});
