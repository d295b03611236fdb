import { expect, it } from "vitest";
import { systemFor, withSystem } from "./served-system.ts";

const question = { role: "user", content: "Who are you?" };
const version = { system: "You are a pirate." };
const body = { model: "acme/pirate", messages: [question] };

it("puts the version's system prompt before a conversation that has none", () => {
  const system = systemFor("chat/completions", body, version, undefined);
  expect(withSystem(body, system)).toEqual({
    model: "acme/pirate",
    messages: [{ role: "system", content: "You are a pirate." }, question],
  });
});

it.each<[string, Parameters<typeof systemFor>]>([
  [
    "has a system prompt",
    ["chat/completions", { model: "m", messages: [{ role: "system", content: "Be brief." }, question] }, version, undefined],
  ],
  [
    "has a developer's prompt",
    ["chat/completions", { model: "m", messages: [{ role: "developer", content: "" }, question] }, version, undefined],
  ],
  ["says so", ["chat/completions", body, version, "off"]],
  ["asks a base", ["chat/completions", body, null, undefined]],
  ["asks a version that was trained without", ["chat/completions", body, { system: null }, undefined]],
  ["is no conversation", ["completions", { model: "m", prompt: "a" }, version, undefined]],
  ["is not well formed, which the engine says better", ["chat/completions", { model: "m", messages: "hi" }, version, undefined]],
])("leaves a request as it is that %s", (_, given) => {
  expect(systemFor(...given)).toBeUndefined();
  expect(withSystem(given[1], undefined)).toBe(given[1]);
});
