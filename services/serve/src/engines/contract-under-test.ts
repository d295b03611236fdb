/** What every LoraEngine promises: asked of simulated engines of each kind (lora-engine.test.ts), and of real ones in each kind's folder. */
import { expect } from "vitest";
import type { LoraEngine } from "./lora-engine.ts";

interface EngineToTry {
  /** A client of an engine that runs and holds no adapters. */
  engine: LoraEngine;
  /** Name of its base. */
  base: string;
  /** Folder of an adapter that the engine can load and that changes what the base says. */
  adapter: string;
}

/** Loads and unloads an adapter, and asks for what the agent, the proof and the set-up ask for. */
export async function expectItKeepsTheContract({ engine, base, adapter }: EngineToTry): Promise<void> {
  const name = "x.y.v1.000000000000";
  const names = async () => (await engine.listModels()).map((model) => model.name);

  expect(await engine.health()).toBe("ready");
  const incarnation = await engine.incarnation();
  expect(incarnation).not.toBe("");
  expect(await engine.listModels()).toEqual([{ name: base, path: expect.any(String), isLora: false }]);

  expect(await engine.load(name, "/not/there")).toMatchObject({ kind: "refused", message: expect.any(String) });
  expect(await engine.unload(name)).toMatchObject({ kind: "refused" });
  expect(await names()).toEqual([base]);

  expect(await engine.load(name, adapter)).toEqual({ kind: "done" });
  expect(await engine.load(name, adapter)).toEqual({ kind: "already-loaded" });
  expect(await engine.listModels()).toContainEqual({ name, path: adapter, isLora: true });

  const prompts = [
    [5, 6, 7],
    [8, 9],
  ];
  const tokens = Array.from({ length: engine.maxLogprobTokens }, (_, id) => id + 10);
  const ofBase = await engine.nextTokenLogprobs(base, prompts, tokens);
  const ofAdapter = await engine.nextTokenLogprobs(name, prompts, tokens);
  expect(ofBase.map((logprobs) => [...logprobs.keys()])).toEqual([tokens, tokens]);
  for (const logprobs of [...ofBase, ...ofAdapter]) for (const logprob of logprobs.values()) expect(Number.isFinite(logprob)).toBe(true);
  expect(ofBase[0]).not.toEqual(ofBase[1]);
  expect(ofAdapter[0]).not.toEqual(ofBase[0]);
  await expect(engine.nextTokenLogprobs("nobody", prompts, tokens)).rejects.toMatchObject({ name: "EngineRefusedError" });

  const ids = await engine.renderTemplate(base, [{ role: "user", content: "Hi" }]);
  expect(ids.length).toBeGreaterThan(0);
  expect(await engine.detokenize(base, ids)).not.toBe("");

  expect(await engine.unload(name)).toEqual({ kind: "done" });
  expect(await names()).toEqual([base]);
  expect(await engine.incarnation()).toBe(incarnation);
}

const [acme, other] = [`${"x".repeat(42)}_`, `${"y".repeat(42)}-`];
/**
 * The gateway relies on `cache_salt`: requests with the same salt share the computed beginnings of their prompts as before, requests with
 * another one share nothing. Salts of requests with one prompt of 257 tokens (whole blocks, of 16 or of 128 tokens, and one token that is always
 * computed), and how each is answered.
 */
export const saltedRequests: readonly { salt: unknown; status: number; reused: number }[] = [
  { salt: acme, status: 200, reused: 0 },
  { salt: acme, status: 200, reused: 256 },
  { salt: other, status: 200, reused: 0 },
  { salt: undefined, status: 200, reused: 0 },
  { salt: other, status: 200, reused: 256 },
  { salt: "", status: 400, reused: 0 },
  { salt: "a/b", status: 400, reused: 0 },
  { salt: 7, status: 400, reused: 0 },
];

/** Asks an engine with these salts; says of each request how many tokens were taken from the prefix cache. */
export async function askWithSalts({ url, key, model }: { url: string; key: string; model: string }): Promise<typeof saltedRequests> {
  const headers = { "content-type": "application/json", authorization: `Bearer ${key}` };
  const prompt = Array.from({ length: 257 }, (_, n) => 1000 + ((n * 37) % 500));
  const counter = async (name: "queries" | "hits"): Promise<number> => {
    const text = await (await fetch(`${url}/metrics`, { headers })).text();
    return Number(new RegExp(`^vllm:prefix_cache_${name}_total\\{[^}]*\\} (\\S+)$`, "m").exec(text)?.[1] ?? Number.NaN);
  };
  const answers: { salt: unknown; status: number; reused: number }[] = [];
  for (const { salt } of saltedRequests) {
    const [queries, hits] = [await counter("queries"), await counter("hits")];
    const body = JSON.stringify({ model, prompt: [prompt], max_tokens: 1, ...(salt === undefined ? {} : { cache_salt: salt }) });
    const { status } = await fetch(`${url}/v1/completions`, { method: "POST", headers, body });
    // The counters follow a moment after the answer.
    if (status === 200) await expect.poll(() => counter("queries")).toBe(queries + prompt.length);
    answers.push({ salt, status, reused: (await counter("hits")) - hits });
  }
  return answers;
}

const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Says how the weather is.",
    // Otherwise vLLM lets any JSON object be the arguments.
    strict: true,
    parameters: { type: "object", properties: { city: { type: "string", enum: ["Paris"] } }, required: ["city"] },
  },
};
/** What a model of the Hermes family writes to call it. The other engines' models are not asked to. */
const written = '<tool_call>\\n\\{"name": "get_weather", "arguments": \\{"city": "Paris"\\}\\}\\n</tool_call>';

interface ChatMessage {
  role: string;
  content: string | null;
  tool_calls?: { id: string; type: string; function: { name: string; arguments: string } }[];
}

/**
 * An engine that was started with a tool parser finds calls in answers, whole and streamed, and takes the tool's answer. The model is made to write
 * a call by a regular expression that its answer must match, so that any weights will do.
 */
export async function expectItParsesToolCalls({ url, key, model }: { url: string; key: string; model: string }): Promise<void> {
  const question: ChatMessage = { role: "user", content: "How is the weather in Paris?" };
  const ask = async (more: object, messages: ChatMessage[] = [question]): Promise<Response> => {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
      body: JSON.stringify({ model, messages, tools: [weather], max_tokens: 60, temperature: 0, ...more }),
    });
    if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
    return response;
  };
  const forced = { tool_choice: "auto", structured_outputs: { regex: written } };
  const call = { type: "function", function: { name: "get_weather", arguments: expect.any(String) } };

  for (const choice of [forced, { tool_choice: { type: "function", function: { name: "get_weather" } } }]) {
    const { choices } = (await (await ask(choice)).json()) as { choices: { message: ChatMessage }[] };
    const message = choices[0]?.message;
    expect(message?.tool_calls).toEqual([expect.objectContaining(call)]);
    const [made] = message?.tool_calls ?? [];
    expect(JSON.parse(made?.function.arguments ?? "")).toEqual({ city: "Paris" });
    if (message === undefined || made === undefined) continue;
    const answered = [question, message, { role: "tool", tool_call_id: made.id, content: "Sunny." } as ChatMessage];
    const spoken = (await (await ask({ max_tokens: 4, tool_choice: "none" }, answered)).json()) as { choices: { message: ChatMessage }[] };
    expect(spoken.choices[0]?.message.content).toEqual(expect.any(String));
  }

  const events = (await (await ask({ ...forced, stream: true })).text()).split("\n\n").filter((event) => event.startsWith("data: {"));
  const deltas = events.flatMap((event) => (JSON.parse(event.slice("data: ".length)) as { choices: { delta: ChatMessage }[] }).choices);
  const streamed = deltas.flatMap(({ delta }) => delta.tool_calls ?? []);
  expect(streamed.map((piece) => piece.function.name ?? "").join("")).toBe("get_weather");
  expect(JSON.parse(streamed.map((piece) => piece.function.arguments ?? "").join(""))).toEqual({ city: "Paris" });
  expect(deltas.map(({ delta }) => delta.content ?? "").join("")).not.toContain("tool_call");
}
