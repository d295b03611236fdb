import { expect, it } from "vitest";
import { judgeDataset } from "./judge-dataset.ts";

const judge = (records: number, reasons: Record<string, number>, mapping?: { on_unknown: "fail" | "drop" }) => {
  const rejections = Object.values(reasons).reduce((sum, count) => sum + count, 0);
  const firstRejections = Object.keys(reasons).map((code, index) => ({ line: index + 1, code, message: `line ${index + 1}: why` }));
  return judgeDataset("f.jsonl", { rows: records + rejections, records, rejections, reasons, firstRejections }, mapping);
};

it.each<[string, number, Record<string, number>, string | undefined]>([
  ["nothing", 0, {}, "EMPTY_FILE"],
  ["no JSON at all", 0, { NOT_JSON: 3 }, "NOT_JSON"],
  ["nothing but rejections", 0, { NOT_JSON: 3, EMPTY_ANSWER: 1 }, "ALL_ROWS_REJECTED"],
  ["one stray row", 9, { FORMAT_UNKNOWN: 1 }, undefined],
  ["stray rows that the report shows all", 110, { FORMAT_UNKNOWN: 60, AMBIGUOUS: 40 }, undefined],
  ["more of them, and more than one in 200", 10_000, { FORMAT_UNKNOWN: 61, AMBIGUOUS: 40 }, "TOO_MANY_UNKNOWN"],
  ["more of them, in a large file", 100_000, { FORMAT_UNKNOWN: 101 }, undefined],
  ["more unknown rows than others", 4, { FORMAT_MISMATCH: 5 }, "TOO_MANY_UNKNOWN"],
  ["bad rows of known formats", 4, { EMPTY_ANSWER: 5000, NOT_JSON: 5000 }, undefined],
])("judges a file of %s", (_, records, reasons, code) => {
  expect(judge(records, reasons)?.code).toBe(code);
});

it("says how many, why, and what to do; and trains on the others when told to", () => {
  expect(judge(1, { EMPTY_ANSWER: 1, FORMAT_UNKNOWN: 2, AMBIGUOUS: 1 })?.message).toBe(
    "3 of the 5 rows of f.jsonl are not understood (FORMAT_UNKNOWN: 2, AMBIGUOUS: 1). The first, line 2: why Say what they are with a mapping, or set its on_unknown to drop, to train on the other rows.",
  );
  expect(judge(1, { FORMAT_UNKNOWN: 3 }, { on_unknown: "drop" })).toBeNull();
});
