import { expect, it } from "vitest";
import { explainTooFew } from "./decide-remedy.ts";

const input = {
  records: 20,
  formats: { instruction: 20 } as Record<string, number>,
  usable: 0,
  minRecords: 10,
  tokenize: { max_length: 64 },
  method: "supervised" as const,
};
it.each<[string, Record<string, number>, string, string, RegExp]>([
  ["preferences", { KIND_NOT_TRAINED: 20 }, "KIND_NOT_TRAINED", "dataset", /Set method to dpo, .* or give rows with one answer each\.$/],
  ["images", { BASE_CANNOT_SEE: 20 }, "BASE_CANNOT_SEE", "dataset", /rows of text only, or take a base that is trained on pictures\.$/],
  ["answers that are cut", { TOO_LONG: 20 }, "TOO_FEW_RECORDS", "tokenize.max_length", /Raise tokenize\.max_length \(now 64\)/],
  [
    "the validation's own rows",
    { IN_VALIDATION: 15, TOO_LONG: 3 },
    "TOO_FEW_RECORDS",
    "validation_overlap",
    /set validation_overlap to keep\.$/,
  ],
  ["repetitions", { EXACT_DUPLICATE: 19 }, "TOO_FEW_RECORDS", "dedupe", /set dedupe to none\.$/],
  [
    "tools that the base cannot see",
    { TOOLS_UNSUPPORTED: 12 },
    "TOOLS_UNSUPPORTED",
    "dataset",
    /Remove the tool calls from the rows, or use/,
  ],
  ["templates that refuse", { TEMPLATE_REFUSES: 11, TOO_LONG: 1 }, "TOO_FEW_RECORDS", "dataset", /the roles must alternate/],
  ["nothing left out", {}, "TOO_FEW_RECORDS", "dataset", /Add records, or lower min_records\.$/],
])("names the remedy that helps against %s", (_, dropped, code, param, message) => {
  expect(explainTooFew({ ...input, dropped: new Map(Object.entries(dropped)) })).toMatchObject({
    code,
    param,
    message: expect.stringMatching(message) as string,
  });
});

it("of a few documents names the setting that makes each paragraph a record", () => {
  const { message } = explainTooFew({ ...input, records: 1, usable: 1, formats: { text: 1 }, dropped: new Map() });
  expect(message).toMatch(/^1 of the 1 records .* mapping `text_rows: paragraph`\.$/);
});

it("names a method that trains what there is, and no cutting of what is compared", () => {
  const of = (method: "dpo" | "kto", code: string) => explainTooFew({ ...input, method, dropped: new Map([[code, 20]]) });
  expect(of("dpo", "KIND_NOT_TRAINED")).toMatchObject({
    code: "KIND_NOT_TRAINED",
    param: "method",
    message: expect.stringMatching(/supervised for single answers, to kto for labelled ones\.$/) as string,
  });
  expect(of("kto", "KIND_NOT_TRAINED").message).toMatch(/labelled good or bad.*Set method to supervised for single answers\.$/);
  expect(of("dpo", "TOO_LONG").message).toMatch(/Raise tokenize\.max_length \(now 64\)\.$/);
  expect(of("dpo", "RANKING_UNKNOWN").message).toMatch(/scores, ranks or a preferred_response\.$/);
});
