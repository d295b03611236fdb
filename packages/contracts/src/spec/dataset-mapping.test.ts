import { expect, it } from "vitest";
import { datasetMapping, problemsOf } from "../index.ts";

const said = (raw: unknown): string[] => {
  const parsed = datasetMapping.safeParse(raw);
  return parsed.success ? [] : problemsOf(parsed.error, "MAPPING_INVALID", "mapping").map(({ param, message }) => `${param} | ${message}`);
};

it("takes what is said, and says what is not", () => {
  expect(datasetMapping.parse({})).toEqual({ language: "auto", on_unknown: "fail" });
  expect(said({ format: "translation", columns: { source: "zh", target: "en" }, instruction_template: "Translate: {source}" })).toEqual([]);
  expect(said({ columns: { question: "Frage" }, roles: { narrator: "user" }, system: "s" })).toEqual([]);
});

it("takes a mapping of 64 KiB and none above, whatever makes it long, and says nothing else of that one", () => {
  const rest = JSON.stringify(datasetMapping.parse({ system: "s" })).length - 1;
  const sized = (length: number) => ({ system: "s".repeat(length - rest) });
  expect(said(sized(65_536))).toEqual([]);
  expect(said(sized(65_537))).toEqual([
    "mapping | mapping: the mapping has 65537 characters as JSON, and at most 65536 are taken. Shorten it.",
  ]);
  const columns = Object.fromEntries(Array.from({ length: 20_000 }, (_, n) => [`no-field-${n}`, `column-${n}`]));
  expect(said({ columns })).toEqual([expect.stringContaining("at most 65536 are taken")]);
});

it.each<[unknown, RegExp]>([
  [{ fromat: "text" }, /^mapping\.fromat \| mapping\.fromat: there is no such field/],
  [{ format: "alpaca" }, /^mapping\.format \| mapping\.format: there is no format "alpaca"\. Known: .*instruction/],
  [
    { format: "translation", columns: { answer: "a" } },
    /^mapping\.columns\.answer \|.*the format translation has no field "answer"\. Fields: source, target/,
  ],
  [{ columns: { foo: "a" } }, /^mapping\.columns\.foo \|.*no format has a field "foo"/],
  [{ columns: { source: "a", target: "a" } }, /^mapping\.columns \|.*the column "a" is two fields/],
  [{ columns: { source: "" } }, /^mapping\.columns\.source/],
  [{ roles: { narrator: "boss" } }, /^mapping\.roles\.narrator/],
  [{ format: "text", system: "s" }, /^mapping\.system \|.*no system prompt/],
  [{ format: "conversation", instruction_template: "{a}" }, /^mapping\.instruction_template \|.*has its own prompt/],
  [{ format: "code", instruction_template: "Write it." }, /^mapping\.instruction_template \|.*names no field/],
  [{ format: "code", instruction_template: "{{description}}" }, /names no field/],
  [{ format: "code", labels: ["a"] }, /^mapping\.labels \|/],
  [{ labels: ["a", "a"] }, /a name stands there twice/],
  [{ language: "de" }, /^mapping\.language/],
  [{ on_unknown: "ignore" }, /^mapping\.on_unknown/],
  ["text", /^null|^mapping \|/],
])("refuses %j", (raw, message) => {
  expect(said(raw)).toContainEqual(expect.stringMatching(message));
});
