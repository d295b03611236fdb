import { describe, expect, it } from "vitest";
import { lineSettings, localEngines, nameEngines } from "./local-engines.ts";

const of = (over: Partial<Parameters<typeof localEngines>[0]>) =>
  localEngines({ bases: [], flags: {}, file: {}, fallback: "demo", ...over });

describe("the engines of a line", () => {
  it("is one for the demo base, unless somebody says otherwise", () => {
    expect(of({})).toEqual([{ base: "demo", maxLoraRank: 32, maxLoras: 4, maxCpuLoras: 16, maxModelLen: 2048 }]);
    expect(of({ bases: ["a", "b", "a"] }).map(({ base }) => base)).toEqual(["a", "b"]);
  });

  it("are those of loraline.yaml, where flags count more than an engine's own settings, and these more than the defaults", () => {
    const file = lineSettings.parse({
      engineDefaults: { maxLoraRank: 64, maxModelLen: 4096, toolCallParser: "hermes" },
      engines: [{ base: "a" }, { base: "b", maxModelLen: 1024, dtype: "float32" }],
    });
    expect(of({ file })).toMatchObject([
      { base: "a", maxLoraRank: 64, maxModelLen: 4096, toolCallParser: "hermes" },
      { base: "b", maxLoraRank: 64, maxModelLen: 1024, dtype: "float32" },
    ]);
    expect(of({ file, bases: ["b", "c"], flags: { maxModelLen: 512 } })).toMatchObject([
      { base: "b", maxModelLen: 512, dtype: "float32" },
      { base: "c", maxModelLen: 512, maxLoraRank: 64 },
    ]);
  });

  it("have as much memory for adapters as they have slots", () => {
    expect(of({ flags: { maxLoras: 20 } })).toMatchObject([{ maxLoras: 20, maxCpuLoras: 20 }]);
    expect(of({ flags: { maxLoras: 2, maxCpuLoras: 3 } })).toMatchObject([{ maxLoras: 2, maxCpuLoras: 3 }]);
  });
});

describe("an engine's name", () => {
  it("is `local` for the first base of a state directory, and follows from the base for others", () => {
    expect(nameEngines({}, ["Qwen2.5-0.5B", "smol"])).toEqual({ "Qwen2.5-0.5B": "local", smol: "smol" });
    expect(nameEngines({ smol: "local" }, ["Qwen2.5-0.5B", "qwen2-5_0.5b"])).toEqual({
      smol: "local",
      "Qwen2.5-0.5B": "qwen2-5-0-5b",
      "qwen2-5_0.5b": "qwen2-5-0-5b-2",
    });
  });

  it("stays, whatever bases are served", () => {
    const known = nameEngines({}, ["a", "b"]);
    expect(nameEngines(known, ["b"])).toEqual(known);
    expect(nameEngines(known, ["local", "b"])).toEqual({ a: "local", b: "b", local: "local-2" });
  });
});
