import { describe, expect, it } from "vitest";
import { importSourceOf, requiredSource } from "./import-source.ts";

describe("what stands in place of a file", () => {
  it.each([
    ["https://a.test/b.jsonl?x=1", {}, { url: "https://a.test/b.jsonl?x=1" }],
    ["hub:org/name", {}, { hub: "org/name" }],
    ["hub:org/name@v1.2", { split: "test" }, { hub: "org/name", split: "test", revision: "v1.2" }],
    ["hf://datasets/org/name", { file: "a.csv", revision: "main" }, { hub: "org/name", file: "a.csv", revision: "main" }],
  ])("%s", (given, narrowed, source) => {
    expect(importSourceOf(given, narrowed)).toEqual(source);
  });

  it.each(["a.jsonl", "org/name", "./https:/x"])("%s is a file's name", (given) => {
    expect(importSourceOf(given)).toBeUndefined();
  });

  it("is a dataset's name where only sources are taken", () => {
    expect(requiredSource("org/name", { config: "en" })).toEqual({ hub: "org/name", config: "en" });
    expect(() => requiredSource("./a b", {})).toThrow(/neither a URL nor/);
  });
});
