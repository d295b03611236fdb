import { expect, it } from "vitest";
import { parseMapping } from "./mapping-file.ts";

it("takes YAML and JSON, and names file, line and field of what is wrong", () => {
  const mapping = { format: "question-answer", columns: { question: "Frage" }, language: "auto", on_unknown: "fail" };
  expect(parseMapping("format: question-answer\ncolumns:\n  question: Frage\n", "m.yaml")).toEqual(mapping);
  expect(parseMapping(JSON.stringify(mapping), "m.json")).toEqual(mapping);
  expect(() => parseMapping("format: code\ncolumns:\n  answer: a\n", "m.yaml")).toThrow(
    /^m\.yaml:3: columns\.answer: the format code has no field "answer"/,
  );
  expect(() => parseMapping("fromat: code\n", "m.yaml")).toThrow(
    /^m\.yaml:1: fromat: there is no such field.* Known fields: format, columns/,
  );
});
