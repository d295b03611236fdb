/**
 * A simulated engine. It answers like vLLM 0.32 (endpoints, error shapes, plain-text successes, no adapters after a restart) but computes
 * hashes instead of a model. So tests can start a hundred of them, and can make them slow, wrong or broken.
 * What it "computes" is in simulated-model.ts: zeroed, misnamed, swapped and wrongly scaled adapters behave as they do in the real one.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { readSimulatedWeights, simulatedAnswer, simulatedChoices, type SimulatedWeights } from "./simulated-model.ts";

interface SimulatedEngineOptions {
  base: string;
  maxLoraRank?: number;
  /** Key that is required below /v1, as vLLM does when it is started with VLLM_API_KEY. */
  apiKey?: string;
  /** As vLLM started with --enable-auto-tool-choice: calls the first tool of a chat that has no answer of a tool yet. Absent: tools are refused. */
  toolCallParser?: string;
}

/** Settings that a test may change at any time. */
interface SimulatedBehaviour {
  loadDelayMs: number;
  probeDelayMs: number;
  healthDelayMs: number;
  /** Before a chat's answer, and between the events of a stream. */
  chatDelayMs: number;
  /** Adapters are loaded with 200 and listed, but answers are the base's. */
  lies: boolean;
  /** Number of the next probes of an adapter that get the base's answer. */
  glitches: number;
  /** Errors have their fields at the top level, as in older versions. */
  oldErrors: boolean;
  /** The engine was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING. */
  loadingOff: boolean;
  /** The inner engine died: /health says 503, /v1/models still answers. */
  coreDead: boolean;
  /** Ids that every conversation gets; undefined: the engine does not report ids. */
  presents?: readonly number[] | undefined;
  /** Message of the HTTP 500 that a load of this name gets. */
  refuseLoad?: ((name: string) => string | undefined) | undefined;
  /** The same for an unload. */
  refuseUnload?: ((name: string) => string | undefined) | undefined;
  /** A chat with this name gets an HTTP 500. */
  failChat?: ((name: string) => boolean) | undefined;
  /** A load of this name never gets an answer, and loads nothing. */
  hangLoad?: ((name: string) => boolean) | undefined;
}

export interface SimulatedEngine extends AsyncDisposable {
  readonly url: string;
  readonly behaviour: SimulatedBehaviour;
  /** Names that are loaded now, with their paths. */
  readonly loaded: ReadonlyMap<string, string>;
  /** `POST /v1/load_lora_adapter <name>` and the like, oldest first. */
  readonly calls: readonly string[];
  stop(): Promise<void>;
  /** Simulates a new process on the same port: no adapter is loaded. */
  start(): Promise<void>;
}

interface Adapter {
  path: string;
  weights: SimulatedWeights | undefined;
}

export async function createSimulatedEngine(options: SimulatedEngineOptions): Promise<SimulatedEngine> {
  const { base, maxLoraRank = 32 } = options;
  const behaviour: SimulatedBehaviour = {
    loadDelayMs: 0,
    probeDelayMs: 0,
    healthDelayMs: 0,
    chatDelayMs: 0,
    lies: false,
    glitches: 0,
    oldErrors: false,
    loadingOff: false,
    coreDead: false,
  };
  const calls: string[] = [];
  let adapters = new Map<string, Adapter>();
  let startTime = 0;
  let prefixes = createPrefixCache();
  let server: Server | undefined;
  let port = 0;

  const fail = (response: ServerResponse, status: number, type: string, message: string): void => {
    const fields = { message, type, param: null, code: status };
    json(response, status, behaviour.oldErrors ? { object: "error", ...fields } : { error: fields });
  };

  const load = async (body: Record<string, unknown>, response: ServerResponse): Promise<void> => {
    const name = body["lora_name"];
    const path = body["lora_path"];
    calls.push(`load ${String(name)}`);
    if (typeof name !== "string" || typeof path !== "string" || name === "" || path === "") {
      return fail(response, 400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.");
    }
    if (adapters.has(name)) return fail(response, 400, "InvalidUserInput", `The lora adapter '${name}' has already been loaded.`);
    const refusal = behaviour.refuseLoad?.(name);
    if (refusal !== undefined) return fail(response, 500, "InternalServerError", refusal);
    if (behaviour.hangLoad?.(name) === true) return;
    const process = adapters;
    await pause(behaviour.loadDelayMs);
    let weights: SimulatedWeights;
    try {
      weights = await readSimulatedWeights(path);
    } catch (error) {
      return (error as NodeJS.ErrnoException).code === "ENOENT"
        ? fail(response, 404, "NotFoundError", `Loading lora ${name} failed: No adapter found for ${path}`)
        : fail(response, 500, "InternalServerError", String(error));
    }
    if (weights.rank > maxLoraRank) {
      return fail(response, 500, "InternalServerError", `LoRA rank ${weights.rank} is greater than max_lora_rank ${maxLoraRank}.`);
    }
    process.set(name, { path, weights: behaviour.lies ? undefined : weights });
    response.end(`Success: LoRA adapter '${name}' added successfully.`);
  };

  const complete = async (body: Record<string, unknown>, response: ServerResponse): Promise<void> => {
    const model = String(body["model"]);
    const adapter = adapters.get(model);
    if (model !== base && adapter === undefined) return fail(response, 404, "NotFoundError", `The model \`${model}\` does not exist.`);
    const salt = body["cache_salt"] ?? undefined;
    if (salt !== undefined && !isCacheSalt(salt)) {
      return fail(response, 400, "BadRequestError", "Parameter 'cache_salt' must be a non-empty string if provided.");
    }
    for (const prompt of body["prompt"] as number[][]) prefixes.ask(model === base ? "" : model, salt, prompt);
    if (body["prompt_logprobs"] !== undefined) behaviour.coreDead = true; // vLLM on the CPU stops at such a request
    if (behaviour.coreDead)
      return fail(response, 500, "InternalServerError", "EngineCore encountered an issue. See stack trace (above) for the root cause.");
    await pause(behaviour.probeDelayMs);
    const glitch = adapter !== undefined && behaviour.glitches > 0;
    if (glitch) behaviour.glitches -= 1;
    const tokens = (body["logprob_token_ids"] ?? []) as number[];
    const prompts = body["prompt"] as number[][];
    const choices = simulatedChoices(base, prompts, tokens, glitch ? undefined : adapter?.weights);
    text(response, 200, `{"object":"text_completion","model":${JSON.stringify(model)},"choices":${choices}}`);
  };

  const chat = async (body: Record<string, unknown>, response: ServerResponse): Promise<void> => {
    const model = String(body["model"]);
    const adapter = adapters.get(model);
    if (model !== base && adapter === undefined) return fail(response, 404, "NotFoundError", `The model \`${model}\` does not exist.`);
    if (behaviour.failChat?.(model) === true) return fail(response, 500, "InternalServerError", "as the test asked");
    const called = calledTool(body);
    if (called !== undefined && options.toolCallParser === undefined) {
      const message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set';
      return fail(response, 400, "BadRequestError", message);
    }
    await pause(behaviour.chatDelayMs);
    const { parts, usage } = simulatedAnswer(base, adapter?.weights, body["messages"] as { content: string }[]);
    const about = { id: "chatcmpl-1", created: 1, model };
    const call = called === undefined ? undefined : { id: "chatcmpl-tool-1", type: "function", function: called };
    if (body["stream"] !== true) {
      const message =
        call === undefined ? { role: "assistant", content: parts.join("") } : { role: "assistant", content: null, tool_calls: [call] };
      const finish_reason = call === undefined ? "stop" : "tool_calls";
      return json(response, 200, { ...about, object: "chat.completion", choices: [{ index: 0, message, finish_reason }], usage });
    }
    const event = (choices: object[], more = {}): boolean =>
      response.write(`data: ${JSON.stringify({ ...about, object: "chat.completion.chunk", choices, ...more })}\n\n`);
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    if (call !== undefined) {
      const { name, arguments: text } = call.function;
      const half = Math.ceil(text.length / 2);
      event([{ index: 0, delta: { tool_calls: [{ index: 0, ...call, function: { name, arguments: "" } }] }, finish_reason: null }]);
      for (const piece of [text.slice(0, half), text.slice(half)])
        event([{ index: 0, delta: { tool_calls: [{ index: 0, function: { arguments: piece } }] }, finish_reason: null }]);
      event([{ index: 0, delta: {}, finish_reason: "tool_calls" }]);
    }
    for (const [index, content] of call === undefined ? parts.entries() : []) {
      if (index > 0) await sleep(behaviour.chatDelayMs);
      event([{ index: 0, delta: { content }, finish_reason: index === parts.length - 1 ? "stop" : null }]);
    }
    event([], { usage });
    response.end("data: [DONE]\n\n");
  };

  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { method = "GET", url: path = "/" } = request;
    if (options.apiKey !== undefined && path.startsWith("/v1") && request.headers.authorization !== `Bearer ${options.apiKey}`)
      return json(response, 401, { error: "Unauthorized" });
    if (method === "GET" && path === "/health") {
      await pause(behaviour.healthDelayMs);
      response.statusCode = behaviour.coreDead ? 503 : 200;
      response.end();
      return;
    }
    if (method === "GET" && path === "/metrics") {
      const { asked, hits } = prefixes;
      response.end(
        `# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds ${startTime}\n` +
          `vllm:prefix_cache_queries_total{engine="0",model_name="${base}"} ${asked()}\nvllm:prefix_cache_hits_total{engine="0",model_name="${base}"} ${hits()}\n`,
      );
      return;
    }
    if (method === "GET" && path === "/v1/models") {
      const card = (id: string, root: string, parent: string | null) => ({ id, object: "model", root, parent });
      return json(response, 200, {
        object: "list",
        data: [card(base, `/bases/${base}`, null), ...[...adapters].map(([id, at]) => card(id, at.path, base))],
      });
    }
    const body = JSON.parse((await readBody(request)) || "{}") as Record<string, unknown>;
    if (path === "/v1/completions") return complete(body, response);
    if (path === "/v1/chat/completions") return chat(body, response);
    if (path === "/tokenize" && behaviour.presents !== undefined) return json(response, 200, { tokens: behaviour.presents });
    if (path === "/detokenize" && behaviour.presents !== undefined) {
      return json(response, 200, { prompt: (body["tokens"] as number[]).map((id) => `<${id}>`).join("") });
    }
    if (behaviour.loadingOff) return json(response, 404, { detail: "Not Found" });
    if (path === "/v1/load_lora_adapter") return load(body, response);
    if (path === "/v1/unload_lora_adapter") {
      const name = String(body["lora_name"]);
      calls.push(`unload ${name}`);
      const refusal = behaviour.refuseUnload?.(name);
      if (refusal !== undefined) return fail(response, 500, "InternalServerError", refusal);
      if (!adapters.delete(name)) return fail(response, 404, "NotFoundError", `The lora adapter '${name}' cannot be found.`);
      response.end(`Success: LoRA adapter '${name}' removed successfully.`);
      return;
    }
    json(response, 404, { detail: "Not Found" });
  };

  const start = async (): Promise<void> => {
    adapters = new Map();
    prefixes = createPrefixCache();
    behaviour.coreDead = false;
    startTime = Math.max(startTime + 0.01, Date.now() / 1000);
    const started = createServer((request, response) => {
      response.sendDate = false;
      handle(request, response).catch((error: unknown) => fail(response, 500, "InternalServerError", String(error)));
    });
    await new Promise<void>((resolve, reject) => {
      started.once("error", reject);
      started.listen(port, "127.0.0.1", resolve);
    });
    port = (started.address() as AddressInfo).port;
    server = started;
  };
  const stop = async (): Promise<void> => {
    const running = server;
    server = undefined;
    if (running === undefined) return;
    running.closeAllConnections();
    await new Promise((resolve) => running.close(resolve));
  };

  await start();
  return {
    url: `http://127.0.0.1:${port}`,
    behaviour,
    calls,
    get loaded() {
      return new Map([...adapters].map(([name, { path }]) => [name, path]));
    },
    start,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

const json = (response: ServerResponse, status: number, body: unknown): void => text(response, status, JSON.stringify(body));

function text(response: ServerResponse, status: number, body: string): void {
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
  response.end(body);
}

/** None at all without a time: the least that a timer takes is a millisecond, and the work of setting it. */
const pause = (ms: number): Promise<void> | undefined => (ms > 0 ? sleep(ms) : undefined);

/** By its events, which cost less than the iterator over a stream: a hundred engines of one process read many thousands. */
function readBody(request: IncomingMessage): Promise<string> {
  return new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    request.on("data", (part: Buffer) => parts.push(part));
    request.once("end", () => resolve(Buffer.concat(parts).toString("utf8")));
    request.once("error", reject);
  });
}

interface ToolToCall {
  function: { name: string; parameters?: { properties?: Record<string, { enum?: unknown[] }> } };
}

/** The call that a chat gets as its answer, with the first allowed value of each argument; undefined: words. */
function calledTool({ tools, tool_choice, messages }: Record<string, unknown>): { name: string; arguments: string } | undefined {
  if (tool_choice === "none" || !Array.isArray(tools)) return undefined;
  if ((messages as { role?: string }[]).at(-1)?.role === "tool") return undefined;
  const [tool] = tools as ToolToCall[];
  if (tool === undefined) return undefined;
  const { name, parameters } = tool.function;
  const given = Object.entries(parameters?.properties ?? {}).map(([key, schema]) => [key, schema.enum?.[0] ?? ""]);
  return { name, arguments: JSON.stringify(Object.fromEntries(given)) };
}

/** What vLLM accepts (`validate_cache_salt`). */
const isCacheSalt = (salt: unknown): salt is string =>
  typeof salt === "string" && salt !== "" && salt.length <= 128 && !/[@/\\\0]/.test(salt);

/** Tokens in a block of vLLM's prefix cache. Only whole blocks are shared, and the last token of a prompt is always computed. */
const blockTokens = 16;

/** Counts tokens as vLLM's prefix cache does: what a block is found by includes the LoRA's name, and the first block's the salt. */
function createPrefixCache() {
  const blocks = new Set<string>();
  let asked = 0;
  let hits = 0;
  return {
    asked: () => asked,
    hits: () => hits,
    ask(lora: string, salt: string | undefined, prompt: readonly number[]): void {
      asked += prompt.length;
      let isHit = true;
      for (let end = blockTokens; end <= prompt.length; end += blockTokens) {
        const block = JSON.stringify([lora, salt, prompt.slice(0, end)]);
        isHit &&= blocks.has(block) && end < prompt.length;
        if (isHit) hits += blockTokens;
        blocks.add(block);
      }
    },
  };
}
