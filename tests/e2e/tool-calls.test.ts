/**
 * An adapter that learned calls of tools, in OpenAI's shape and in glaive's, asked through the gateway by OpenAI's client and its Agents SDK, by Vercel's AI SDK and by LangChain. The
 * base is SmolLM2's weights under Qwen's template: it has never seen a call, so all that comes back was trained here. The parser is vLLM's.
 */
import { copyFile, cp, rm } from "node:fs/promises";
import { join } from "node:path";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI } from "@langchain/openai";
import { Agent, OpenAIChatCompletionsModel, run, setTracingDisabled, tool as toolOfAgent } from "@openai/agents";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { expect, it } from "vitest";
import { z } from "zod";
import { base, clientOf, eventually, fileWith, jsonLines, loraline, root, scratchDir, startLineUnderTest } from "../line-under-test.ts";

const parameters = { type: "object" as const, properties: { city: { type: "string" } }, required: ["city"] };
const functions = [
  { name: "get_weather", description: "Weather of a city.", parameters },
  { name: "get_time", description: "Time in a city.", parameters },
];
const tools = functions.map((each) => ({ type: "function" as const, function: each }));
const questions = {
  get_weather: (city: string) => `How is the weather in ${city}?`,
  get_time: (city: string) => `What time is it in ${city}?`,
};
const names = Object.keys(questions) as (keyof typeof questions)[];

const cities =
  "Paris Rome Berlin Madrid Vienna Prague Lisbon Athens Dublin Warsaw Oslo Cairo Tokyo Delhi Lima Quito Bogota Havana Boston Denver Austin Seattle Dallas Miami".split(
    " ",
  );
const rows = cities.flatMap((city, index) =>
  names.map((name) => {
    const [question, call, found, answer] = [questions[name](city), JSON.stringify({ city }), '{"found": "fine"}', `Fine in ${city}.`];
    if (index % 2 === 0) {
      const chat = `USER: ${question}\n\n\nASSISTANT: <functioncall> {"name": "${name}", "arguments": '${call}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: ${found}\n\n\nASSISTANT: ${answer} <|endoftext|>`;
      const said = functions.map((each) => JSON.stringify(each)).join("\n");
      return {
        system: `SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n${said}`,
        chat,
      };
    }
    const made = { id: "call_1", type: "function", function: { name, arguments: call } };
    const messages = [
      { role: "user", content: question },
      { role: "assistant", content: null, tool_calls: [made] },
      { role: "tool", tool_call_id: "call_1", content: found },
      { role: "assistant", content: answer },
    ];
    return { messages, tools };
  }),
);

it("calls the right tool for questions that it has not seen, where the base calls none", async () => {
  await using scratch = await scratchDir();
  const bases = join(scratch.path, "bases");
  const knowing = join(bases, "smollm2-135m-tools");
  await cp(join(root, ".loraline/bases", base), knowing, { recursive: true, dereference: true });
  await rm(join(knowing, "base.json"), { force: true });
  await copyFile(join(root, "packages/tokens/testdata/templates/qwen2_5.jinja"), join(knowing, "chat_template.jinja"));
  await using line = await startLineUnderTest(join(scratch.path, "state"), ["--bases", bases, "--base", "smollm2-135m-tools"]);
  const file = await fileWith(scratch.path, "calls.jsonl", jsonLines(rows));
  const settings = ["--max-steps", "8", "--learning-rate", "3e-3", "--rank", "16"];
  expect(await loraline(line, ["run", file, "--name", "caller", ...settings])).toMatchObject({ code: 0 });
  expect((await clientOf(line).getAdapter({ adapter: "caller" })).adapter.alias).toBe(1);

  const { openai } = clientOf(line);
  const callsOf = async (model: string, question: string) => {
    const messages = [{ role: "user" as const, content: question }];
    const { choices } = await openai.chat.completions.create({ model, messages, tools, temperature: 0, max_tokens: 40 });
    return (choices[0]?.message.tool_calls ?? []).map((call) => (call.type === "function" ? call.function : call));
  };
  const asked = ["London", "Moscow", "Nairobi", "Lyon"].flatMap((city) => names.map((name) => ({ city, name })));
  const told = await Promise.all(asked.map(({ city, name }) => callsOf("local/caller", questions[name](city))));
  expect(told.flat().every((call) => "arguments" in call && typeof JSON.parse(call.arguments) === "object")).toBe(true);
  const right = asked.filter(({ city, name }, index) => {
    const [call] = told[index] ?? [];
    return (
      call !== undefined && "arguments" in call && call.name === name && (JSON.parse(call.arguments) as { city: unknown }).city === city
    );
  });
  expect(right.length, JSON.stringify(told)).toBeGreaterThanOrEqual(6);
  expect(await callsOf("smollm2-135m-tools", questions.get_weather("London"))).toEqual([]);

  const [first] = right;
  if (first === undefined) return;
  const { url, apiKey } = line;
  const model = createOpenAICompatible({ name: "loraline", baseURL: `${url}/v1`, apiKey, includeUsage: true })("local/caller");
  const executed: string[] = [];
  const toolOf = (name: string, description: string) =>
    tool({
      description,
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => {
        executed.push(`${name} ${city}`);
        return { found: "fine" };
      },
    });
  const own = Object.fromEntries(functions.map(({ name, description }) => [name, toolOf(name, description)]));
  const options = { model, tools: own, prompt: questions[first.name](first.city), temperature: 0, maxOutputTokens: 40 };
  const { steps, text, totalUsage } = await generateText({ ...options, stopWhen: stepCountIs(2) });
  expect(steps.map(({ finishReason, toolCalls }) => [finishReason, toolCalls.map(({ toolName }) => toolName)])).toEqual([
    ["tool-calls", [first.name]],
    [expect.any(String), []],
  ]);
  expect(text, "it goes on with what the tool said").toMatch(/\S/);
  expect(totalUsage.outputTokens).toBeGreaterThan(0);
  const streamed = streamText(options);
  const kinds = new Set<string>();
  for await (const part of streamed.fullStream) kinds.add(part.type);
  expect([...kinds]).toEqual(expect.arrayContaining(["tool-input-start", "tool-input-delta", "tool-call", "tool-result", "finish"]));
  expect((await streamed.toolCalls).map(({ toolName, input }) => [toolName, input])).toEqual([[first.name, expect.any(Object)]]);
  expect(executed).toHaveLength(2);
  await eventually("usage is counted", 120_000, async () => ((await streamed.usage).totalTokens ?? 0) > 0 || undefined);

  const question = questions[first.name](first.city);
  const chat = new ChatOpenAI({ model: "local/caller", apiKey, temperature: 0, maxTokens: 40, configuration: { baseURL: `${url}/v1` } });
  const called = await chat.bindTools(tools).invoke(question);
  expect(called.tool_calls?.map((call) => [call.name, call.args])).toEqual([[first.name, { city: first.city }]]);

  setTracingDisabled(true);
  const ofAgent = functions.map(({ name, description }) =>
    toolOfAgent({
      name,
      description,
      strict: false,
      parameters: { ...parameters, additionalProperties: true },
      execute: async (given) => {
        executed.push(`${name} ${(given as { city: string }).city} of an agent`);
        return "fine";
      },
    }),
  );
  const agent = new Agent({
    name: "caller",
    model: new OpenAIChatCompletionsModel(openai, "local/caller"),
    tools: ofAgent,
    modelSettings: { temperature: 0, maxTokens: 40 },
  });
  const { finalOutput } = await run(agent, question);
  expect(finalOutput).toMatch(/\S/);
  expect(executed.at(-1)).toBe(`${first.name} ${first.city} of an agent`);
});
