import { describe, expect, it } from "vitest";
import { judgeInferenceBody, mostTokensOf } from "./judge-inference-body.ts";

describe("judgeInferenceBody", () => {
  const judge = (body: object, path: "chat/completions" | "completions" = "chat/completions") =>
    judgeInferenceBody(path, { model: "m", ...body }, undefined);

  // vLLM takes "8" for 8: what is counted here and what is made there would differ.
  it.each([
    { n: "8" },
    { best_of: "8" },
    { max_tokens: "4096" },
    { max_completion_tokens: "4096" },
    { max_tokens: true },
    { stream: "true" },
    { stream: 1 },
  ])("refuses what it could not count: %j", (body) => {
    const [field] = Object.keys(body);
    expect(() => judge(body)).toThrow(expect.objectContaining({ status: 400, code: "invalid_type", param: field }));
    expect(() => judge({ ...body, [field ?? ""]: null })).not.toThrow();
  });

  describe("of an engine without a tool parser", () => {
    const ask = (body: object, engine: { toolCallParser?: string | null } = { toolCallParser: null }) =>
      judgeInferenceBody("chat/completions", { model: "m", messages: [], ...body }, { promptLogprobs: true, ...engine });
    const tools = [{ type: "function", function: { name: "f" } }];
    const named = { type: "function", function: { name: "f" } };
    it.each([{ tools }, { tools, tool_choice: "auto" }, { tools, tool_choice: "required" }, { tools, tool_choice: named }])(
      "refuses %j",
      (body) => {
        expect(() => ask(body)).toThrow(expect.objectContaining({ status: 400, code: "tools_unsupported", param: "tools" }));
        expect(() => ask(body, { toolCallParser: "hermes" })).not.toThrow();
        // Not known: the engine may say.
        expect(() => ask(body, {})).not.toThrow();
      },
    );
    it.each([{}, { tools: [] }, { tools: null }, { tools, tool_choice: "none" }])("takes %j", (body) => {
      expect(() => ask(body)).not.toThrow();
    });
  });

  it("leaves everything else to the engine", () => {
    expect(() => judge({ n: 2, max_tokens: -1, max_completion_tokens: 5, stream: true, temperature: "0.5", foo: {} })).not.toThrow();
  });
});

describe("mostTokensOf", () => {
  const limits = { bytes: 100, maxModelLen: 2048 };
  it.each([
    ["completions", { prompt: "a", max_tokens: 500 }, 500],
    ["completions", { prompt: "a" }, 16],
    // No field of completions: the engine passes over it.
    ["completions", { prompt: "a", max_completion_tokens: 1 }, 16],
    ["completions", { prompt: "a", max_completion_tokens: 1, max_tokens: 500 }, 500],
    ["completions", { prompt: ["a", "b"], max_tokens: 500, n: 2 }, 2000],
    ["chat/completions", { messages: [], max_tokens: 500, max_completion_tokens: 20 }, 20],
    ["chat/completions", { messages: [], max_tokens: 500 }, 500],
  ] as const)("%s %j", (path, body, answer) => {
    expect(mostTokensOf(path, body, limits)).toBe(100 + 64 + answer);
  });
  it("is a whole context for who sets no end", () => {
    expect(mostTokensOf("chat/completions", { messages: [] }, limits)).toBe(2048);
  });
});
