/** Calls of functions, as OpenAI, Anthropic, Google, glaive and Salesforce write them, become the same record. */
import { describe, expect, it } from "vitest";
import { parseExact } from "../containers/exact-json.ts";
import { createDetector } from "./detect.ts";

const read = (row: unknown) => {
  const text = JSON.stringify(row);
  return createDetector({ labels: null }).detect(JSON.parse(text), () => parseExact(text));
};
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tool = { type: "function", function: { name: "get_weather", description: "Says the weather.", parameters } };
const told = "It is 20 degrees.";

const openai = {
  tools: [tool],
  messages: [
    { role: "user", content: "How is the weather in Rome?" },
    {
      role: "assistant",
      content: null,
      tool_calls: [{ type: "function", function: { name: "get_weather", arguments: '{"city": "Rome"}' } }],
    },
    { role: "tool", content: '{"t":20}' },
    { role: "assistant", content: told },
  ],
};
const shapes: Record<string, unknown> = {
  "OpenAI's Responses API's tools": { ...openai, tools: [{ type: "function", ...tool.function }] },
  "OpenAI's functions": { ...openai, tools: undefined, functions: [tool.function] },
  "Anthropic's parts": {
    tools: [{ name: "get_weather", description: "Says the weather.", input_schema: parameters }],
    messages: [
      { role: "user", content: "How is the weather in Rome?" },
      { role: "assistant", content: [{ type: "tool_use", id: "t1", name: "get_weather", input: { city: "Rome" } }] },
      { role: "user", content: [{ type: "tool_result", tool_use_id: "t1", content: [{ type: "text", text: '{"t":20}' }] }] },
      { role: "assistant", content: [{ type: "text", text: told }] },
    ],
  },
  "Gemini's parts": {
    tools: [
      {
        functionDeclarations: [
          {
            name: "get_weather",
            description: "Says the weather.",
            parameters: { type: "OBJECT", properties: { city: { type: "STRING" } }, required: ["city"] },
          },
        ],
      },
    ],
    contents: [
      { role: "user", parts: [{ text: "How is the weather in Rome?" }] },
      { role: "model", parts: [{ functionCall: { name: "get_weather", args: { city: "Rome" } } }] },
      { role: "user", parts: [{ functionResponse: { name: "get_weather", response: { t: 20 } } }] },
      { role: "model", parts: [{ text: told }] },
    ],
  },
  "glaive's text": {
    system: `SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n${JSON.stringify(tool.function, undefined, 4)}\n`,
    chat: `USER: How is the weather in Rome?\n\n\nASSISTANT: <functioncall> {"name": "get_weather", "arguments": '{"city": "Rome"}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: {"t":20}\n\n\nASSISTANT: ${told} <|endoftext|>\n\n\n`,
  },
};

/** What a record says, whatever its calls' arguments are written as. */
const meaning = (found: unknown) => {
  expect(found).toHaveProperty("body.kind", "chat");
  const { body } = found as { body: { messages: { role: string; content: string; tool_calls?: string }[]; tools: string } };
  return {
    tools: JSON.parse(body.tools) as unknown,
    turns: body.messages
      .filter(({ role }) => role !== "system")
      .map(({ role, content, tool_calls: calls }) => ({
        role,
        content,
        calls: (JSON.parse(calls ?? "[]") as { function: { name: string; arguments: unknown } }[]).map(
          ({ function: { name, arguments: given } }) => [name, typeof given === "string" ? (JSON.parse(given) as unknown) : given],
        ),
      })),
  };
};

describe("function calling", () => {
  it.each(Object.entries(shapes))("means the same: %s", (_, row) => {
    expect(meaning(read(row))).toEqual(meaning(read(openai)));
  });

  it("of xLAM is a question, the tools, and the calls that answer it", () => {
    const xlam = {
      query: "How is the weather in Rome?",
      tools: JSON.stringify([
        {
          name: "get_weather",
          description: "Says the weather.",
          parameters: { city: { type: "str" }, days: { type: "List[int], optional" } },
        },
      ]),
      answers: JSON.stringify([{ name: "get_weather", arguments: { city: "Rome" } }]),
    };
    const schema = { type: "object", properties: { city: { type: "string" }, days: { type: "array" } }, required: ["city"] };
    expect(read(xlam)).toMatchObject({ format: "tool-calls" });
    expect(meaning(read(xlam))).toEqual({
      tools: [{ type: "function", function: { ...tool.function, parameters: schema } }],
      turns: [
        { role: "user", content: "How is the weather in Rome?", calls: [] },
        { role: "assistant", content: "", calls: [["get_weather", { city: "Rome" }]] },
      ],
    });
  });

  it("keeps what is said beside a call, thoughts, and numbers as they are written", () => {
    const text = `{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"},
      {"type": "text", "text": "Let me see."}, {"type": "tool_use", "id": "t", "name": "f", "input": {"n": 12345678901234567890, "x": 1.0}}]},
      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}, {"type": "text", "text": "And?"}]}, {"role": "assistant", "content": "c"}]}`;
    expect(createDetector({ labels: null }).detect(JSON.parse(text), () => parseExact(text))).toMatchObject({
      body: {
        messages: [
          { role: "user", content: "a" },
          {
            role: "assistant",
            content: "Let me see.",
            reasoning: "hm",
            tool_calls: '[{"id":"t","type":"function","function":{"name":"f","arguments":{"n":12345678901234567890,"x":1.0}}}]',
          },
          { role: "tool", content: "r", tool_call_id: "t" },
          { role: "user", content: "And?" },
          { role: "assistant", content: "c" },
        ],
      },
    });
  });

  it("of glaive may have quotes in its arguments, several functions, or none", () => {
    const two = `SYSTEM: You help, with access to the following functions. Use them if required -\n{"name": "f", "description": "has } and { in it"}\n\n{"name": "g"}`;
    const chat = String.raw`USER: a${"\n\n"}ASSISTANT: Well. <functioncall> {"name": "f", "arguments": '{"text": "I\'m"}'} <|endoftext|>`;
    expect(meaning(read({ system: two, chat }))).toEqual({
      tools: [
        { type: "function", function: { name: "f", description: "has } and { in it" } },
        { type: "function", function: { name: "g" } },
      ],
      turns: [
        { role: "user", content: "a", calls: [] },
        { role: "assistant", content: "Well.", calls: [["f", { text: "I'm" }]] },
      ],
    });
    expect(
      read({ system: "SYSTEM: You help, with no access to external functions.", chat: "USER: a\n\nASSISTANT: b <|endoftext|>" }),
    ).toMatchObject({
      body: {
        messages: [{ role: "system", content: "You help, with no access to external functions." }, { content: "a" }, { content: "b" }],
      },
    });
  });

  it.each([
    [
      "glaive's call is no JSON",
      { chat: "USER: a\nASSISTANT: <functioncall> {name: f}" },
      "MESSAGE_INVALID",
      /message 2: what follows <functioncall>/,
    ],
    ["a chat has no speakers", { chat: "Hello there" }, "MESSAGE_INVALID", /does not begin with `USER:`/],
    ["glaive's functions are cut off", { system: 'x {"name": "f"', chat: "USER: a\nASSISTANT: b" }, "TOOLS_INVALID", /not JSON/],
    ["xLAM's answers are no calls", { query: "a", tools: "[]", answers: "[1]" }, "MESSAGE_INVALID", /`answers` must be a list of calls/],
  ])("is refused where %s", (_, row, code, message) => {
    expect(read(row)).toMatchObject({ code, message: expect.stringMatching(message) as string });
  });
});
