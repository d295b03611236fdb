/** OpenAI's Responses API by OpenAI's own client: answers, streams, conversations that go on, calls of functions, and who may see them. */
import type { ServerResponse } from "node:http";
import { buckets, everyKeyOf } from "@loraline/contracts";
import { test as testWithNats } from "@loraline/testkit";
import type { ResponseStreamEvent } from "openai/resources/responses/responses";
import { describe, expect } from "vitest";
import { createApiKey } from "../access/auth.ts";
import {
  adapterOf,
  base,
  type Engine,
  type GatewayUnderTest,
  heldBy,
  putAdapter,
  putReplica,
  quietLog,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../gateway-under-test.ts";
import { createStoredResponses } from "./stored-responses.ts";

interface Serving {
  line: GatewayUnderTest;
  engine: Engine;
  alias: string;
}

const system = "Talk like a pirate.";
const test = testWithNats.extend("serving", async ({ nc, tenant }, { onCleanup }): Promise<Serving> => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const line = owned.use(await startGateway({ nc, tenant, projector: false }));
  const version = versionOf(tenant, "pirate", 1, { system });
  const adapter = adapterOf(tenant, "pirate", [version]);
  const engine = owned.use(await startEngine(base, version.engineName));
  await registerEngine(line.bus, { toolCallParser: "hermes" });
  await putAdapter(line.bus, adapter);
  await putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(adapter, version)]));
  owned.defer(async () => (await line.bus.bucket(buckets.replicas)).delete("local.r1"));
  const alias = `${tenant}/pirate`;
  await expect.poll(async () => (await line.openai.models.list()).data.map(({ id }) => id)).toContain(alias);
  return { line, engine, alias };
});

const asked = (engine: Engine): Record<string, unknown> => engine.requests.at(-1)?.body ?? {};
const keptOf = async ({ bus, tenant }: GatewayUnderTest) => (await bus.bucket(buckets.responses)).keys(everyKeyOf(tenant));

const weather = {
  type: "function" as const,
  name: "get_weather",
  description: "Says how the weather is.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  strict: true,
};
const call = { id: "chatcmpl-tool-1", type: "function", function: { name: "get_weather", arguments: '{"city": "Paris"}' } };
const usage = { prompt_tokens: 20, completion_tokens: 7, total_tokens: 27 };

/** An engine that calls a tool, as vLLM writes it. */
const callsTool = (body: Record<string, unknown>, response: ServerResponse): void => {
  const about = { id: "chatcmpl-1", created: 1, model: body["model"] };
  if (body["stream"] !== true) {
    const choices = [{ index: 0, message: { role: "assistant", content: null, tool_calls: [call] }, finish_reason: "tool_calls" }];
    response
      .writeHead(200, { "content-type": "application/json" })
      .end(JSON.stringify({ ...about, object: "chat.completion", choices, usage }));
    return;
  }
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
  const event = (choices: object[], more = {}): void =>
    void response.write(`data: ${JSON.stringify({ ...about, object: "chat.completion.chunk", choices, ...more })}\n\n`);
  const delta = (given: object, finish_reason: string | null = null): void => event([{ index: 0, delta: given, finish_reason }]);
  delta({ role: "assistant", content: "" });
  delta({ content: "Let me see." });
  delta({ content: null, tool_calls: [{ id: call.id, type: "function", index: 0, function: { name: "get_weather" } }] });
  for (const piece of ['{"city"', ': "Paris"}']) delta({ content: null, tool_calls: [{ index: 0, function: { arguments: piece } }] });
  delta({}, "tool_calls");
  event([], { usage });
  response.end("data: [DONE]\n\n");
};

describe("a response", () => {
  test("is answered by the promoted version and its system prompt, is counted, kept, shown and deleted", async ({
    serving: { line, engine, alias },
  }) => {
    const { data, response } = await line.openai.responses
      .create({ model: alias, input: "ahoy", max_output_tokens: 9, temperature: 0.5, metadata: { a: "b" } })
      .withResponse();
    expect(data).toMatchObject({
      object: "response",
      status: "completed",
      model: `${alias}@1`,
      output_text: "Arr, matey ☠",
      output: [
        {
          type: "message",
          role: "assistant",
          status: "completed",
          content: [{ type: "output_text", text: "Arr, matey ☠", annotations: [] }],
        },
      ],
      usage: { input_tokens: 3, output_tokens: 3, total_tokens: 6 },
      metadata: { a: "b" },
      temperature: 0.5,
      error: null,
      store: true,
    });
    expect(data.id).toMatch(/^resp_[0-9A-Z]{26}$/);
    expect(response.headers.get("x-loraline-system")).toBe("applied");
    expect(response.headers.get("x-loraline-version")).toBe("1");
    expect(asked(engine)).toMatchObject({
      messages: [
        { role: "system", content: system },
        { role: "user", content: "ahoy" },
      ],
      max_completion_tokens: 9,
      temperature: 0.5,
    });
    const { output_text: _text, ...object } = data;
    expect(await (await line.fetch(`/v1/responses/${data.id}`)).json()).toEqual(object);
    await line.openai.responses.delete(data.id);
    await expect(line.openai.responses.retrieve(data.id)).rejects.toMatchObject({ status: 404 });
    expect(await keptOf(line)).toEqual([]);
    await expect
      .poll(async () => ((await (await line.fetch("/v1/loraline/usage")).json()) as { data: object[] }).data)
      .toMatchObject([{ requests: 1, promptTokens: 3, completionTokens: 3, estimated: 0 }]);
  });

  test("goes on from another one, without its instructions", async ({ serving: { line, engine, alias } }) => {
    const first = await line.openai.responses.create({ model: alias, instructions: "Be brief.", input: "ahoy" });
    expect(asked(engine)["messages"]).toEqual([
      { role: "system", content: "Be brief." },
      { role: "user", content: "ahoy" },
    ]);
    const second = await line.openai.responses.create({
      model: alias,
      previous_response_id: first.id,
      input: "who are you?",
      instructions: "Be long.",
    });
    const soFar = [
      { role: "user", content: "ahoy" },
      { role: "assistant", content: "Arr, matey ☠" },
      { role: "user", content: "who are you?" },
    ];
    expect(asked(engine)["messages"]).toEqual([{ role: "system", content: "Be long." }, ...soFar]);
    // What goes on from it holds what was said, so the first one may go.
    await line.openai.responses.delete(first.id);
    await line.openai.responses.create({ model: alias, previous_response_id: second.id, input: "really?" });
    expect(asked(engine)["messages"]).toEqual([
      { role: "system", content: system },
      ...soFar,
      { role: "assistant", content: "Arr, matey ☠" },
      { role: "user", content: "really?" },
    ]);
    await expect(line.openai.responses.create({ model: alias, previous_response_id: first.id, input: "x" })).rejects.toMatchObject({
      status: 400,
      code: "previous_response_not_found",
      param: "previous_response_id",
    });
  });

  test("with store: false leaves nothing behind", async ({ serving: { line, engine, alias } }) => {
    const { id, ...rest } = await line.openai.responses.create({ model: alias, input: "secret", store: false });
    expect(rest).toMatchObject({ store: false });
    expect(await keptOf(line)).toEqual([]);
    await expect(line.openai.responses.retrieve(id)).rejects.toMatchObject({ status: 404 });
    const large = "x".repeat(600_000);
    await expect(line.openai.responses.create({ model: alias, input: large })).rejects.toMatchObject({
      status: 400,
      code: "response_too_large",
    });
    const before = engine.requests.length;
    await line.openai.responses.create({ model: alias, input: large, store: false });
    expect(engine.requests.length).toBe(before + 1);
  });

  test("of items: system messages are one, references are put in, structured output is asked for", async ({
    serving: { line, engine, alias },
  }) => {
    const first = await line.openai.responses.create({ model: alias, input: "ahoy" });
    const [said] = first.output;
    await line.openai.responses.create({
      model: alias,
      instructions: "Be brief.",
      input: [
        { role: "developer", content: "No oaths." },
        {
          type: "message",
          role: "user",
          content: [
            { type: "input_text", text: "ah" },
            { type: "input_text", text: "oy" },
          ],
        },
        { type: "item_reference", id: said?.id ?? "" },
        { role: "user", content: "again" },
      ],
      text: { format: { type: "json_schema", name: "answer", schema: { type: "object" }, strict: true } },
      top_p: 0.9,
    });
    expect(asked(engine)).toMatchObject({
      messages: [
        { role: "system", content: "Be brief.\n\nNo oaths." },
        { role: "user", content: "ahoy" },
        { role: "assistant", content: "Arr, matey ☠" },
        { role: "user", content: "again" },
      ],
      response_format: { type: "json_schema", json_schema: { name: "answer", schema: { type: "object" }, strict: true } },
      top_p: 0.9,
    });
    const input = [{ type: "item_reference" as const, id: "msg_01JD000000000000000000000A_0" }];
    await expect(line.openai.responses.create({ model: alias, input })).rejects.toMatchObject({
      status: 400,
      code: "item_not_found",
      param: "input[0].id",
    });
  });
});

describe("a streamed response", () => {
  test("has OpenAI's events in their order, and is kept", async ({ serving: { line, engine, alias } }) => {
    const stream = line.openai.responses.stream({ model: alias, input: "ahoy" });
    const events: ResponseStreamEvent[] = [];
    for await (const event of stream) events.push(event);
    expect(events.map(({ type }) => type)).toEqual([
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.content_part.added",
      "response.output_text.delta",
      "response.output_text.delta",
      "response.output_text.delta",
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.completed",
    ]);
    expect(events.map((event) => event.sequence_number)).toEqual(events.keys().toArray());
    const final = await stream.finalResponse();
    expect(final).toMatchObject({
      status: "completed",
      output_text: "Arr, matey ☠",
      model: `${alias}@1`,
      usage: { input_tokens: 3, output_tokens: 3 },
    });
    expect((await line.openai.responses.retrieve(final.id)).output).toEqual(
      JSON.parse(JSON.stringify(final.output, (key, value: unknown) => (key === "parsed" ? undefined : value))),
    );
    await line.openai.responses.create({ model: alias, previous_response_id: final.id, input: "more" });
    expect(asked(engine)["messages"]).toHaveLength(4);
    await expect
      .poll(async () => ((await (await line.fetch("/v1/loraline/usage")).json()) as { data: object[] }).data)
      .toMatchObject([{ requests: 2, promptTokens: 6, completionTokens: 6, estimated: 0 }]);
  });

  test("is told where the engine breaks off, or stops at the most tokens", async ({ serving: { line, engine, alias } }) => {
    const typesOf = async (): Promise<string[]> => {
      const types: string[] = [];
      for await (const { type } of await line.openai.responses.create({ model: alias, input: "ahoy", stream: true })) types.push(type);
      return types;
    };
    const chunk = (model: unknown, delta: object, finish: string | null = null) =>
      `data: ${JSON.stringify({ id: "c", object: "chat.completion.chunk", created: 1, model, choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`;
    engine.answer = ({ model }, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(chunk(model, { content: "Ar" }), () => setTimeout(() => response.destroy(), 20));
    };
    expect((await typesOf()).at(-1)).toBe("response.failed");
    engine.answer = ({ model }, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.end(`${chunk(model, { content: "Ar" })}data: {"error": {"message": "out of memory", "code": 500}}\n\ndata: [DONE]\n\n`);
    };
    expect((await typesOf()).at(-1)).toBe("response.failed");
    expect(await keptOf(line)).toEqual([]);
    engine.answer = ({ model }, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.end(`${chunk(model, { content: "Ar" })}${chunk(model, {}, "length")}data: [DONE]\n\n`);
    };
    expect((await typesOf()).at(-1)).toBe("response.incomplete");
    const [kept] = await keptOf(line);
    expect(await line.openai.responses.retrieve(`resp_${kept?.split(".")[1]}`)).toMatchObject({
      status: "incomplete",
      incomplete_details: { reason: "max_output_tokens" },
    });
  });

  test("whose reader leaves is not kept, and the engine is stopped", async ({ serving: { line, engine, alias } }) => {
    engine.answer = async ({ model }, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      for (let i = 0; i < 2000 && !response.destroyed; i++) {
        response.write(`data: ${JSON.stringify({ model, choices: [{ index: 0, delta: { content: "a" } }] })}\n\n`);
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    };
    for await (const { type } of await line.openai.responses.create({ model: alias, input: "ahoy", stream: true }))
      if (type === "response.output_text.delta") break;
    await expect.poll(() => engine.requests.at(-1)?.aborted).toBe(true);
    expect(await keptOf(line)).toEqual([]);
  });
});

describe("functions", () => {
  test("are called, and their answers go back, whole and streamed", async ({ serving: { line, engine, alias } }) => {
    engine.answer = callsTool;
    const options = {
      model: alias,
      input: "How is the weather in Paris?",
      tools: [weather],
      tool_choice: "required" as const,
      parallel_tool_calls: false,
    };
    const first = await line.openai.responses.create(options);
    expect(first.output).toEqual([
      {
        id: expect.stringMatching(/^fc_/),
        type: "function_call",
        status: "completed",
        call_id: call.id,
        name: "get_weather",
        arguments: call.function.arguments,
      },
    ]);
    const { type, ...definition } = weather;
    expect(asked(engine)).toMatchObject({ tools: [{ type, function: definition }], tool_choice: "required", parallel_tool_calls: false });

    const stream = line.openai.responses.stream({ ...options, tool_choice: { type: "function", name: "get_weather" } });
    const types: string[] = [];
    for await (const event of stream) types.push(event.type);
    expect(asked(engine)["tool_choice"]).toEqual({ type: "function", function: { name: "get_weather" } });
    expect(types.filter((each) => !each.includes("output_text"))).toEqual([
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.content_part.added",
      "response.content_part.done",
      "response.output_item.done",
      "response.output_item.added",
      "response.function_call_arguments.delta",
      "response.function_call_arguments.delta",
      "response.function_call_arguments.done",
      "response.output_item.done",
      "response.completed",
    ]);
    const streamed = await stream.finalResponse();
    expect(streamed.output).toMatchObject([
      { type: "message", content: [{ text: "Let me see." }] },
      { type: "function_call", status: "completed", call_id: call.id, name: "get_weather", arguments: call.function.arguments },
    ]);

    engine.answer = undefined;
    const output = { type: "function_call_output" as const, call_id: call.id, output: "Sunny." };
    const answered = await line.openai.responses.create({
      model: alias,
      previous_response_id: streamed.id,
      input: [output],
      tools: [weather],
    });
    expect(answered.output_text).toBe("Arr, matey ☠");
    const told = [
      { role: "user", content: "How is the weather in Paris?" },
      { role: "assistant", content: "Let me see.", tool_calls: [call] },
      { role: "tool", tool_call_id: call.id, content: "Sunny." },
    ];
    expect(asked(engine)["messages"]).toEqual([{ role: "system", content: system }, ...told]);
    // The same without anything kept: the client sends the items again.
    const items = [{ role: "user" as const, content: "How is the weather in Paris?" }, ...streamed.output, output];
    await line.openai.responses.create({ model: alias, input: items as never, tools: [weather], store: false });
    expect(asked(engine)["messages"]).toEqual([{ role: "system", content: system }, ...told]);
  });
});

test("its input is listed in pages, and it cannot be cancelled, in OpenAI's words", async ({ serving: { line, alias } }) => {
  const { responses } = line.openai;
  const first = await responses.create({ model: alias, input: "ahoy" });
  const second = await responses.create({
    model: alias,
    previous_response_id: first.id,
    input: [
      { role: "developer", content: "Be brief." },
      { role: "user", content: [{ type: "input_text", text: "again" }] },
    ],
  });
  const listed = await Array.fromAsync(responses.inputItems.list(second.id, { limit: 2 }));
  expect(listed).toMatchObject([
    { type: "message", role: "user", content: [{ type: "input_text", text: "again" }] },
    { type: "message", role: "developer", content: [{ type: "input_text", text: "Be brief." }] },
    { type: "message", role: "assistant", id: first.output[0]?.id, content: [{ type: "output_text", text: first.output_text }] },
    { type: "message", role: "user", content: [{ type: "input_text", text: "ahoy" }] },
  ]);
  expect(new Set(listed.map(({ id }) => id)).size).toBe(4);
  expect(await Array.fromAsync(responses.inputItems.list(second.id, { order: "asc" }))).toEqual(listed.toReversed());
  await expect(responses.inputItems.list("resp_nope")).rejects.toMatchObject({ status: 404 });
  await expect(responses.inputItems.list(second.id, { limit: 1000 })).rejects.toMatchObject({ status: 400, param: "limit" });

  await expect(responses.cancel(second.id)).rejects.toMatchObject({
    status: 400,
    type: "invalid_request_error",
    code: "response_not_cancellable",
    message: expect.stringContaining("background: true"),
  });
  await expect(responses.cancel("resp_nope")).rejects.toMatchObject({ status: 404 });
});

/** An engine with a parser of thoughts, as vLLM writes them. */
const thinks = (body: Record<string, unknown>, response: ServerResponse): void => {
  const about = { id: "chatcmpl-1", created: 1, model: body["model"] };
  if (body["stream"] !== true) {
    const message = { role: "assistant", reasoning: "A greeting.", content: "Ahoy!" };
    response
      .writeHead(200, { "content-type": "application/json" })
      .end(JSON.stringify({ ...about, object: "chat.completion", choices: [{ index: 0, message, finish_reason: "stop" }], usage }));
    return;
  }
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
  for (const delta of [{ role: "assistant", content: "" }, { reasoning: "A " }, { reasoning: "greeting." }, { content: "Ahoy!" }])
    response.write(
      `data: ${JSON.stringify({ ...about, object: "chat.completion.chunk", choices: [{ index: 0, delta, finish_reason: null }] })}\n\n`,
    );
  response.write(
    `data: ${JSON.stringify({ ...about, object: "chat.completion.chunk", choices: [{ index: 0, delta: {}, finish_reason: "stop" }], usage })}\n\n`,
  );
  response.end("data: [DONE]\n\n");
};

test("thoughts are items of their own, whole and streamed, and go back with the answer", async ({ serving: { line, engine, alias } }) => {
  const { responses } = line.openai;
  engine.answer = thinks;
  const whole = await responses.create({ model: alias, input: "ahoy" });
  const thought = { type: "reasoning", status: "completed", summary: [], content: [{ type: "reasoning_text", text: "A greeting." }] };
  expect(whole.output).toMatchObject([thought, { type: "message", content: [{ text: "Ahoy!" }] }]);
  expect(whole.output_text).toBe("Ahoy!");

  const stream = responses.stream({ model: alias, input: "ahoy" });
  const types: string[] = [];
  for await (const { type } of stream) types.push(type);
  expect(types.filter((type) => type.startsWith("response.reasoning"))).toEqual([
    "response.reasoning_text.delta",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
  ]);
  expect((await stream.finalResponse()).output).toMatchObject([thought, { type: "message", content: [{ text: "Ahoy!" }] }]);

  // By hand, as the Agents SDK does, and by the response's id.
  const again = { role: "user" as const, content: "again" };
  await responses.create({ model: alias, input: [{ role: "user", content: "ahoy" }, ...whole.output, again] as never });
  const turns = [{ role: "user", content: "ahoy" }, { role: "assistant", content: "Ahoy!", reasoning: "A greeting." }, again];
  expect(asked(engine)["messages"]).toEqual([{ role: "system", content: system }, ...turns]);
  await responses.create({ model: alias, previous_response_id: whole.id, input: "again" });
  expect(asked(engine)["messages"]).toEqual([{ role: "system", content: system }, ...turns]);
});

test("what is not offered is refused by its field", async ({ serving: { line, engine, alias } }) => {
  const before = engine.requests.length;
  const refused: [object, string][] = [
    [{ background: true }, "background"],
    [{ conversation: "conv_1" }, "conversation"],
    [{ prompt: { id: "p" } }, "prompt"],
    [{ include: ["reasoning.encrypted_content"] }, "include"],
    [{ reasoning: { effort: "high" } }, "reasoning"],
    [{ truncation: "auto" }, "truncation"],
    [{ top_logprobs: 3 }, "top_logprobs"],
    [{ text: { verbosity: "low" } }, "text.verbosity"],
    [{ tools: [weather, { type: "web_search" }] }, "tools[1].type"],
    [{ tool_choice: { type: "file_search" } }, "tool_choice.type"],
    [{ input: [{ type: "web_search_call", id: "ws_1" }] }, "input[0].type"],
    [{ input: [{ role: "user", content: [{ type: "input_image", image_url: "https://x" }] }] }, "input[0].content[0].type"],
  ];
  for (const [more, param] of refused) {
    const answer = await line.fetch("/v1/responses", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model: alias, input: "ahoy", ...more }),
    });
    expect([answer.status, await answer.json()]).toEqual([400, { error: expect.objectContaining({ code: "unsupported", param }) }]);
  }
  await expect(line.openai.responses.create({ model: alias, input: "x", colour: "red" } as never)).rejects.toMatchObject({ status: 400 });
  const metadata = Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`k${n}`, "v"]));
  await expect(line.openai.responses.create({ model: alias, input: "x", metadata })).rejects.toMatchObject({ param: "metadata" });
  await expect(line.openai.responses.create({ model: alias, input: "x", user: "u".repeat(2000) })).rejects.toMatchObject({ param: "user" });
  await expect(line.openai.responses.create({ model: alias } as never)).rejects.toMatchObject({ status: 400, param: "input" });
  expect(engine.requests.length).toBe(before);
});

test("lists that nobody could judge in time are refused, and short references do not become more than memory holds", async ({
  serving: { line, engine, alias },
}) => {
  const before = engine.requests.length;
  const many = (count: number, item: object) => Array.from({ length: count }, () => item);
  const functionCall = { type: "function_call", call_id: "a", name: "a", arguments: "" };
  const refused: [object, string, string][] = [
    [{ input: many(10_001, functionCall) }, "too_many_items", "input"],
    [{ input: [{ role: "user", content: many(10_000, { type: "input_text", text: "x" }) }] }, "too_many_items", "input"],
    [{ stop: many(2000, {}) }, "too_many_items", "stop"],
    [{ instructions: "x".repeat(2 * 1024 ** 2) }, "field_too_large", "instructions"],
  ];
  for (const [more, code, param] of refused) {
    const answer = line.openai.responses.create({ model: alias, input: "ahoy", ...more } as never);
    await expect(answer).rejects.toMatchObject({ status: 400, code, param });
  }
  expect(engine.requests.length).toBe(before);

  engine.answer = (body, response) => {
    const message = { role: "assistant", content: "x".repeat(400_000) };
    const choices = [{ index: 0, message, finish_reason: "stop" }];
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ model: body["model"], choices, usage }));
  };
  const { output } = await line.openai.responses.create({ model: alias, input: "ahoy" });
  const references = many(200, { type: "item_reference", id: output[0]?.id });
  await expect(line.openai.responses.create({ model: alias, input: references as never, store: false })).rejects.toMatchObject({
    status: 400,
    code: "too_many_items",
  });
  const fewer = await line.openai.responses.create({ model: alias, input: references.slice(0, 3) as never, store: false });
  expect(fewer.status).toBe("completed");

  // Calls in a row are one message; as many as may be do not hold up others.
  engine.answer = undefined;
  const calls = [{ role: "user", content: "x" }, ...many(9000, functionCall)] as never;
  await line.openai.responses.create({ model: alias, input: calls, store: false });
  expect(asked(engine)["messages"]).toMatchObject([{}, {}, { role: "assistant", tool_calls: { length: 9000 } }]);
});

test("is seen by its tenant only, and by keys that may use its model", async ({ serving: { line, alias } }) => {
  const { id, output } = await line.openai.responses.create({ model: alias, input: "secret" });
  const stranger = line.clientFor(await line.keyFor(`${line.tenant}-other`));
  const bound = async (...models: string[]) =>
    line.clientFor(await createApiKey({ bus: line.bus }, { tenant: line.tenant, name: "bound", scopes: ["infer"], models }));
  for (const [client, status] of [
    [stranger, 404],
    [await bound("parrot", `base:${base}`), 403],
  ] as const) {
    await expect(client.responses.retrieve(id)).rejects.toMatchObject({ status });
    await expect(client.responses.delete(id)).rejects.toMatchObject({ status });
  }
  await expect(stranger.responses.create({ model: base, previous_response_id: id, input: "x" })).rejects.toMatchObject({
    code: "previous_response_not_found",
  });
  const reference = [{ type: "item_reference" as const, id: output[0]?.id ?? "" }];
  await expect(stranger.responses.create({ model: base, input: reference })).rejects.toMatchObject({ code: "item_not_found" });
  await expect((await bound(`base:${base}`)).responses.create({ model: base, previous_response_id: id, input: "x" })).rejects.toMatchObject(
    { code: "model_not_allowed" },
  );
  expect((await (await bound("pirate")).responses.retrieve(id)).id).toBe(id);
});

test("of a tenant, the oldest are erased beyond its bytes, and no other tenant's", async ({ serving: { line } }) => {
  const stored = await createStoredResponses({ bus: line.bus, log: quietLog, bytesOfTenant: 40_000 });
  const ids = Array.from({ length: 20 }, (_, i) => `01JD00000000000000000000${String(i).padStart(2, "0")}`);
  const value = { model: base, sticky: "", input: [{ text: "x".repeat(4000) }], response: { id: "resp_1", output: [] } };
  await stored.put({ tenant: "other-tenant", id: ids[0] ?? "" }, value);
  for (const id of ids) expect(await stored.put({ tenant: line.tenant, id }, value)).toBe(true);
  const newest = ids.slice(-5).map((id) => `${line.tenant}.${id}`);
  await expect.poll(async () => (await keptOf(line)).length).toBeLessThanOrEqual(12);
  expect(await keptOf(line)).toEqual(expect.arrayContaining(newest));
  expect(await stored.get({ tenant: "other-tenant", id: ids[0] ?? "" })).toBeDefined();
  expect(await stored.put({ tenant: line.tenant, id: ids[0] ?? "" }, { ...value, sticky: "x".repeat(600_000) })).toBe(false);
});
