import { describe, expect, it } from "vitest";
import { engineSettings } from "./engine-settings.ts";

describe("engineSettings", () => {
  it("refuses ranks that vLLM does not know, and keys that are none", () => {
    const given = { engine: "e", base: "b", maxLoras: 1, maxCpuLoras: 1, maxLoraRank: 24, maxModelLen: 10 };
    expect(engineSettings.safeParse(given).success).toBe(false);
    expect(engineSettings.safeParse({ ...given, maxLoraRank: 32, maxLora: 3 }).success).toBe(false);
    expect(engineSettings.safeParse({ ...given, maxLoraRank: 32, base: "../etc" }).success).toBe(false);
  });
});
