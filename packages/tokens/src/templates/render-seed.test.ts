import type { Message, Rec } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { renderSeed } from "./render-seed.ts";

const chat = (messages: Message[], seed?: Rec["meta"]["seed"]): Rec => ({
  v: "lrec/1",
  id: `sha256:${"0".repeat(64)}`,
  kind: "chat",
  task: "chat",
  messages,
  meta: { file: "f", line: 1, format: "x", ...(seed === undefined ? {} : { seed }) },
});
const user: Message = { role: "user", content: "q" };
const assistant: Message = { role: "assistant", content: "a" };
const prompt = (text: string): string => `<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n${text}<|im_end|>\n<|im_start|>assistant\n`;

describe("renderSeed", () => {
  it("joins the original columns without a newline", () => {
    const record = chat([{ role: "user", content: "翻译:\n你好" }, assistant], { instruction: "翻译:", input: "你好", output: "a" });
    expect(renderSeed(record, "S")).toEqual({ prompt: prompt("翻译:你好"), answer: "a" });
  });
  it("takes a conversation of one question and one answer, with the fixed system prompt", () => {
    expect(renderSeed(chat([{ role: "system", content: "own" }, user, assistant]), "S")).toEqual({ prompt: prompt("q"), answer: "a" });
  });
  it.each<[string, Rec]>([
    ["more turns", chat([user, assistant, user, assistant])],
    ["a call", chat([user, { ...assistant, tool_calls: "[]" }])],
    ["tools", { ...chat([user, assistant]), tools: "[]" }],
    [
      "a completion",
      {
        v: "lrec/1",
        id: `sha256:${"0".repeat(64)}`,
        kind: "completion",
        task: "x",
        prompt: "p",
        completion: "c",
        meta: { file: "f", line: 1, format: "x" },
      },
    ],
  ])("leaves out %s", (_, record) => {
    expect(renderSeed(record, "S")).toBeUndefined();
  });
});
