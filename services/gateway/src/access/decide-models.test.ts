import { describe, expect, it, test } from "vitest";
import { boundModels, boundNameOf } from "./decide-models.ts";

describe("a key bound to models", () => {
  it.each([
    ["pirate", "pirate", true],
    ["pirate", "pirate@1", false],
    ["pirate", "pirates", false],
    ["pirate@2", "pirate@2", true],
    ["pirate@2", "pirate", false],
    ["pirate@2", "pirate@22", false],
    ["pirate@*", "pirate@7", true],
    ["pirate@*", "pirate", false],
    ["team-*", "team-a", true],
    ["team-*", "team-", true],
    ["team-*", "team-a@1", false],
    ["team-*@*", "team-a@1", true],
    ["*", "anything", true],
    ["*", "base:qwen", false],
    ["*", "pirate@1", false],
    ["a*b*c", "a-b-c", true],
    ["a*b*c", "a-c-b", false],
    ["a*bc*c", "abc", false],
    ["base:qwen", "base:qwen", true],
    ["base:qwen", "qwen", false],
    ["base:qwen*", "base:qwen2.5-0.5b", true],
    ["base:*", "base:org/model", true],
    ["base:*", "pirate", false],
    ["base:*", "base:a@b", false],
  ])("%s on %s: %s", (pattern, name, allows) => {
    expect(boundModels([pattern]).allows(name)).toBe(allows);
  });

  test("is not slowed down by a pattern of many stars", () => {
    expect(boundModels([`${"a*".repeat(100)}b`]).allows("a".repeat(100_000))).toBe(false);
  });

  it.each([
    ["acme/pirate", "pirate"],
    ["acme/pirate@2", "pirate@2"],
    ["ft:qwen:acme:pirate:2", "pirate@2"],
    ["other/pirate", "base:other/pirate"],
    ["qwen", "base:qwen"],
  ])("%s is called %s in its patterns", (model, name) => {
    expect(boundNameOf(model, { tenant: "acme", isBase: false })).toBe(name);
  });

  test("a base with the name of an adapter is judged as what answers", () => {
    expect(boundNameOf("acme/pirate", { tenant: "acme", isBase: true })).toBe("base:acme/pirate");
  });
});
