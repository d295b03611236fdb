import { describe, expect, it } from "vitest";
import { createDetector, signatures } from "./detect.ts";

const { detect } = createDetector({ labels: null });
const read = (row: unknown) => detect(row, () => row);
const turn = (role: string, content: string) => ({ role, content });

describe("detect", () => {
  it("joins instruction and input with a newline, and keeps the columns for the template `seed`", () => {
    expect(read({ instruction: "回答以下用户问题,仅输出答案。", input: "1+1等于几?", output: "2" })).toEqual({
      format: "instruction",
      body: {
        kind: "chat",
        task: "instruct",
        messages: [turn("user", "回答以下用户问题,仅输出答案。\n1+1等于几?"), turn("assistant", "2")],
      },
      unusedKeys: [],
      seed: { instruction: "回答以下用户问题,仅输出答案。", input: "1+1等于几?", output: "2" },
    });
  });

  it.each([
    ["no input", { instruction: "Hi", output: "Ho" }, "Hi"],
    ["an empty input", { instruction: "Hi", input: "", output: "Ho" }, "Hi"],
    ["a null input", { instruction: "Hi", input: null, output: "Ho" }, "Hi"],
    ["only an input", { instruction: "", input: "Hi", output: "Ho" }, "\nHi"],
  ])("takes %s", (_, row, user) => {
    expect(read(row)).toMatchObject({ body: { messages: [turn("user", user), turn("assistant", "Ho")] } });
  });

  it.each([
    ["role and content", { messages: [turn("user", "a"), turn("assistant", "b")] }],
    ["the spelling `conversation`", { conversation: [turn("user", "a"), turn("assistant", "b")] }],
    [
      "from and value",
      {
        conversations: [
          { from: "human", value: "a" },
          { from: "gpt", value: "b" },
        ],
      },
    ],
    ["a pair per object", { conversation: [{ human: "a", assistant: "b" }] }],
    ["roles in capitals", { messages: [turn("User", "a"), turn("Assistant", "b")] }],
    ["keys with blanks, capitals and a byte order mark", { "\uFEFF Messages ": [turn("user", "a"), turn("assistant", "b")] }],
  ])("reads conversations with %s", (_, row) => {
    expect(read(row)).toMatchObject({
      format: "conversation",
      body: { kind: "chat", task: "chat", messages: [turn("user", "a"), turn("assistant", "b")] },
      unusedKeys: [],
    });
  });

  it("puts a system column first, and refuses a second, different one", () => {
    const messages = [turn("user", "a"), turn("assistant", "b")];
    expect(read({ system: "s", messages })).toMatchObject({ body: { messages: [turn("system", "s"), ...messages] } });
    expect(read({ system: "s", messages: [turn("system", "s"), ...messages] })).toMatchObject({
      body: { messages: [turn("system", "s"), ...messages] },
    });
    expect(read({ system: "s", messages: [turn("system", "t"), ...messages] })).toMatchObject({ code: "SYSTEM_TWICE" });
  });

  it("keeps which turns are trained", () => {
    const row = {
      messages: [
        turn("user", "a"),
        { ...turn("assistant", "b"), weight: 0 },
        turn("user", "c"),
        { ...turn("assistant", "d"), train: true },
      ],
    };
    expect(read(row)).toMatchObject({ body: { messages: row.messages } });
  });

  it("keeps calls and tools as the JSON they were written as", () => {
    const source =
      '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":[{"x":1.0,"id":12345678901234567890}]},{"role":"tool","content":"r","tool_call_id":"t"},{"role":"assistant","content":"b"}],"tools":[{"max":2.50}]}';
    const exact = () =>
      JSON.parse(source, ((_k: string, v: unknown, c: { source: string }) =>
        typeof v === "number" ? (JSON as unknown as { rawJSON(s: string): unknown }).rawJSON(c.source) : v) as never) as Record<
        string,
        unknown
      >;
    expect(detect(JSON.parse(source), exact)).toMatchObject({
      body: {
        tools: '[{"max":2.50}]',
        messages: [
          {},
          { role: "assistant", content: "", tool_calls: '[{"x":1.0,"id":12345678901234567890}]' },
          { role: "tool", content: "r", tool_call_id: "t" },
          {},
        ],
      },
    });
  });

  it.each([
    ["as lists", (messages: unknown) => messages],
    ["as JSON text", (messages: unknown) => JSON.stringify(messages)],
  ])("reads a row's numbers once, however many of its turns call tools, %s", (_, written) => {
    const call = { role: "assistant", content: null, tool_calls: [{ x: 1 }] };
    const messages = [turn("user", "a"), ...Array.from({ length: 4000 }, () => call), turn("assistant", "b")];
    const row = { messages: written(messages) };
    let reads = 0;
    const begun = performance.now();
    expect(
      detect(row, () => {
        reads++;
        return row;
      }),
    ).toMatchObject({ format: "conversation" });
    expect(reads).toBeLessThanOrEqual(1);
    // Each turn by itself takes a minute.
    expect(performance.now() - begun).toBeLessThan(5000);
  });

  it("takes a prompt and its completion raw", () => {
    expect(read({ prompt: "从前有一只小狐狸,它", completion: "在森林中快乐地生活着。" })).toMatchObject({
      format: "prompt-completion",
      body: { kind: "completion", prompt: "从前有一只小狐狸,它", completion: "在森林中快乐地生活着。" },
    });
  });

  it("names what no record keeps", () => {
    expect(read({ instruction: "a", output: "b", id: 7, note: null })).toMatchObject({ unusedKeys: ["id"] });
    expect(read({ messages: [{ ...turn("user", "a"), mood: 1 }, turn("assistant", "b")] })).toMatchObject({
      unusedKeys: ["messages[].mood"],
    });
  });

  it("takes the earlier of two formats of one kind, and refuses two of different kinds", () => {
    const messages = [turn("user", "a"), turn("assistant", "b")];
    expect(read({ messages, instruction: "a", output: "b" })).toMatchObject({
      format: "conversation",
      unusedKeys: ["instruction", "output"],
    });
    expect(read({ messages, prompt: "a", completion: "b" })).toMatchObject({ code: "AMBIGUOUS" });
    expect(read({ instruction: "a", output: "b", prompt: "a", completion: "b" })).toMatchObject({ code: "AMBIGUOUS" });
  });

  it.each<[string, Record<string, unknown>, string]>([
    ["names the usual formats to somebody who is close to none", { foo: 1, bar: 2 }, "Usual are messages; instruction + output;"],
    [
      "writes the mapping that other names of columns need",
      { id: "1", Frage: "a", Antwort: "b" },
      '{"format": "question-answer", "columns": {"question": "Frage", "answer": "Antwort"}}',
    ],
    ["does not call one field of three close", { custom_id: "1", request: { body: {} }, response: { body: {} } }, "no known format"],
    ["says that a first line without names is missing", { "How do I reset the oven?": "a", "Press reset.": "b" }, "put a line above it"],
    ["knows a table that was written by columns", { question: ["a", "b"], answer: ["c", "d"] }, 'orient="records"'],
    ["knows a table that was written by columns and numbers", { question: { 0: "a", 1: "b" }, answer: { 0: "c", 1: "d" } }, "lines=True"],
    [
      "does not learn the letter of a choice that it does not show",
      { question: "a", choices: ["b", "c"], answer: "B" },
      "`choices` stands beside it",
    ],
    ["does not learn the letter of a choice in columns", { question: "a", A: "b", B: "c", answer: "B" }, "`b` stands beside it"],
    ["does not learn the turns of a conversation as texts", { text: "a", role: "prompter", message_id: "1" }, "belong into one row"],
  ])("%s", (_, row, said) => {
    expect(read(row)).toMatchObject({ code: "FORMAT_UNKNOWN", message: expect.stringContaining(said) as string });
  });

  it("shows choices where a mapping asks for it", () => {
    const mapping = { format: "question-answer" as const, instruction_template: "{question} {choices}" };
    const { detect: detectMapped } = createDetector({ labels: null, mapping: { language: "auto", on_unknown: "fail", ...mapping } });
    const row = { question: "a", choices: ["b", "c"], answer: "B" };
    expect(detectMapped(row, () => row)).toMatchObject({
      body: { messages: [turn("user", "a b\nc"), turn("assistant", "B")] },
    });
  });

  const user = turn("user", "a");
  const assistant = turn("assistant", "b");
  it.each<[string, unknown, string, RegExp]>([
    ["a number", 5, "NOT_AN_OBJECT", /a number/],
    ["null", null, "NOT_AN_OBJECT", /null/],
    ["a list", [], "NOT_AN_OBJECT", /a list/],
    ["unknown keys", { foo: 1, bar: 2 }, "FORMAT_UNKNOWN", /foo, bar.*instruction \+ output/],
    [
      "a missing answer",
      { instruction: "a" },
      "FORMAT_UNKNOWN",
      /close to the format "instruction", but `output` is missing\. Keys found: instruction/,
    ],
    ["an answer that is a number", { instruction: "a", output: 2 }, "FORMAT_UNKNOWN", /`output` is a number; it must be text/],
    ["an input that is a number", { instruction: "a", input: 1, output: "2" }, "FORMAT_UNKNOWN", /`input` is a number/],
    ["messages that are text", { messages: "a" }, "FORMAT_UNKNOWN", /`messages` is text; it must be a list/],
    ["an empty answer", { instruction: "a", output: " \n" }, "EMPTY_ANSWER", /output/],
    ["an empty prompt", { instruction: " ", output: "a" }, "EMPTY_PROMPT", /instruction/],
    ["an empty completion", { prompt: "a", completion: "" }, "EMPTY_ANSWER", /completion/],
    ["a message that is text", { messages: ["a"] }, "MESSAGE_INVALID", /message 1 is text/],
    ["a message without a role", { messages: [{ content: "a" }] }, "MESSAGE_INVALID", /message 1 has no role/],
    ["an unknown role", { messages: [turn("narrator", "a")] }, "ROLE_UNKNOWN", /"narrator"/],
    ["a role from the prototype", { messages: [turn("constructor", "a")] }, "ROLE_UNKNOWN", /"constructor"/],
    [
      "content in parts that are no text",
      { messages: [{ role: "user", content: [{ type: "input_audio", input_audio: {} }] }, assistant] },
      "CONTENT_NOT_TEXT",
      /message 1 holds a part of type "input_audio"/,
    ],
    ["content null", { messages: [user, { role: "assistant", content: null }] }, "CONTENT_NOT_TEXT", /message 2/],
    ["no user", { messages: [assistant] }, "NO_USER_TURN", /user/],
    ["no assistant", { messages: [user] }, "NO_ASSISTANT_TURN", /assistant/],
    ["nothing to say", { messages: [] }, "NO_USER_TURN", /user/],
    ["nothing trained", { messages: [user, { ...assistant, train: false }] }, "NOTHING_TRAINED", /nothing/],
    ["an empty last answer", { messages: [user, assistant, user, turn("assistant", "")] }, "EMPTY_ANSWER", /last assistant/],
    ["only empty users", { messages: [turn("user", " "), assistant] }, "EMPTY_PROMPT", /user/],
    ["a trained user", { messages: [{ ...user, train: true }, assistant] }, "MESSAGE_INVALID", /message 1 is not the assistant's/],
    ["a weight of 0.5", { messages: [user, { ...assistant, weight: 0.5 }] }, "MESSAGE_INVALID", /weight/],
    ["a function call that is no JSON", { conversations: [{ from: "function_call", value: "{" }] }, "MESSAGE_INVALID", /not the JSON/],
    ["tools that are no JSON", { messages: [user, assistant], tools: "search" }, "TOOLS_INVALID", /not JSON/],
    ["half a character", { instruction: "a", output: "b\ud83d" }, "LONE_SURROGATE", /half of a character/],
    ["one key twice", { Output: "a", output: "b", instruction: "c" }, "KEY_TWICE", /`output`/],
  ])("refuses %s", (_, row, code, message) => {
    expect(read(row)).toEqual({ code, message: expect.stringMatching(message) as string });
  });

  it("has one name per format", () => {
    const names = signatures.map((entry) => entry.format);
    expect(new Set(names).size).toBe(names.length);
  });
});
