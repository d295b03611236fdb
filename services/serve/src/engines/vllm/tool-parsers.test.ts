import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { vllmToolParserOf } from "./tool-parsers.ts";

const templates = join(import.meta.dirname, "../../../../../packages/tokens/testdata/templates");

describe("vllmToolParserOf", () => {
  // As their makers publish them.
  it.each([
    ["qwen2_5", "hermes"],
    ["qwen3", "hermes"],
    ["qwen3_instruct_2507", "hermes"],
    ["llama3_1", "llama3_json"],
    ["llama3_2", "llama3_json"],
    ["llama3", null],
    ["gemma3", null],
    ["phi3", null],
    // It prints calls of earlier turns, and never the tools.
    ["deepseek_v3", null],
  ])("%s: %s", async (name, parser) => {
    expect(vllmToolParserOf(await readFile(join(templates, `${name}.jinja`), "utf8"))).toBe(parser);
  });

  it.each([
    ["{% for t in tools %}{{ t }}{% endfor %}<tool_call>\n<function=example>", "qwen3_coder"],
    ["{% for t in tools %}{{ t }}{% endfor %}<tool_call>{name}<arg_key>k</arg_key>", "glm45"],
    ["{{ tools }}[TOOL_CALLS]", "mistral"],
    ["{{ tools }}", null],
    [null, null],
  ])("%j: %s", (template, parser) => {
    expect(vllmToolParserOf(template)).toBe(parser);
  });
});
