/**
 * A vLLM process as a LoraEngine. Measured on vLLM 0.32 (CPU build), two cores, SmolLM2-135M:
 *
 * - Start with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True` and `--enable-lora`, or the load routes do not exist (404
 *   `{"detail":"Not Found"}`). `--api-server-count` must stay 1, or the server refuses to start with it.
 * - vLLM's own LoRA kernels for the CPU: a prompt costs 1.5 ms a token on the base and 8 (`--max-lora-rank 16`) to 12 ms (32) with an
 *   adapter of any rank; with every slot in use, a request to the base that shares a batch with one to an adapter is computed with
 *   the weights of a third; and `prompt_logprobs` (or `echo` with `logprobs`) in a shared batch kills the engine. packages/local/engine.py
 *   replaces them (3 ms a token, and neither fault). Any other CPU engine has these faults: hence the proof asks only for the token after
 *   the prompt, and measures twice before it refuses.
 * - The first request for logprobs compiles a kernel with g++ (23 s, 2.5 s from its cache), unless `TORCHDYNAMO_DISABLE=1` is set.
 * - `OMP_NUM_THREADS` above what is idle makes it several times slower: its threads wait for each other at every small step.
 * - Loading an adapter takes 30–50 ms. `/v1/models` shows the front-end's list, not what is resident; an adapter that was evicted
 *   from memory is read again from its path, so files stay while the name is listed.
 * - When the inner engine dies, `/health` says 503 (or the whole process ends) while `/v1/models` may still answer 200.
 * - SIGTERM with a request in flight hangs unless `--shutdown-timeout` is set.
 */
import { type Dispatcher, Pool } from "undici";
import { engineKinds } from "@loraline/contracts";
import { z } from "zod";
import { type EngineConnection, EngineRefusedError, EngineUnknownError, type LoadOutcome, type LoraEngine } from "../lora-engine.ts";

const loadPath = "/v1/load_lora_adapter";

/** `parent`: the base of an adapter; a base has none. */
const modelList = z.object({
  data: z.array(z.object({ id: z.string(), root: z.string().nullish(), parent: z.string().nullish() })),
});

const completion = z.object({
  choices: z.array(
    z.object({
      index: z.int(),
      // There are hundreds of tokens in it; only those that were asked for are looked at.
      logprobs: z.object({ top_logprobs: z.tuple([z.looseObject({}).nullable()], z.unknown()) }),
    }),
  ),
});

const chatCompletion = z.object({
  prompt_token_ids: z.array(z.int()),
  choices: z.tuple([
    z.object({
      logprobs: z.object({
        content: z.tuple([z.object({ top_logprobs: z.array(z.object({ token: z.string(), logprob: z.number() })) })], z.unknown()),
      }),
    }),
  ]),
});

/** Of a prompt that is only asked for the logprobs of the token after it. */
const ofNextToken = (tokens: readonly number[]) => ({
  max_tokens: 1,
  temperature: 0,
  logprob_token_ids: tokens,
  return_tokens_as_token_ids: true,
});

export function createVllmClient(options: EngineConnection): LoraEngine {
  const { url, apiKey, healthTimeoutMs = 2000, readTimeoutMs = 5000, loadTimeoutMs = 60_000, probeTimeoutMs = 60_000 } = options;
  // The agent has its own connections, so that users' requests never keep a health check waiting.
  const pool = new Pool(new URL(url).origin, { connections: 8, keepAliveTimeout: 4000, headersTimeout: 0, bodyTimeout: 0 });
  let connections = 0;
  pool.on("connect", () => (connections += 1));
  const prefix = new URL(url).pathname.replace(/\/$/, "");
  const headers = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
  const headersWithBody = { ...headers, "content-type": "application/json" };

  const call = async (
    method: "GET" | "POST",
    path: string,
    timeoutMs: number,
    body?: unknown,
  ): Promise<{ status: number; text: string }> => {
    const answer = await send(method, path, timeoutMs, body);
    if (answer.status !== 401 && answer.status !== 403) return answer;
    const sent = apiKey === undefined ? "none was sent" : "it refuses the one that was sent";
    throw new EngineUnknownError(
      `the engine at ${url} asks for a key on ${path} (HTTP ${answer.status}), and ${sent}: the agent's ENGINE_API_KEY must be the engine's VLLM_API_KEY`,
      { unauthorized: true },
    );
  };

  const send = async (
    method: "GET" | "POST",
    path: string,
    timeoutMs: number,
    body?: unknown,
  ): Promise<{ status: number; text: string }> => {
    try {
      return await answerOf(
        pool,
        body === undefined
          ? { method, path: `${prefix}${path}`, headers }
          : { method, path: `${prefix}${path}`, headers: headersWithBody, body: JSON.stringify(body) },
        timeoutMs,
      );
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const gone = code === "ECONNREFUSED" || code === "ECONNRESET" || code === "UND_ERR_SOCKET" || code === "EPIPE";
      throw new EngineUnknownError(
        gone ? `the engine at ${url} does not accept connections (${code})` : `the engine at ${url} gave no answer to ${path}: ${message}`,
        { cause: error, gone },
      );
    }
  };

  const change = async (path: string, body: Record<string, string>): Promise<LoadOutcome> => {
    try {
      const { status, text } = await call("POST", path, loadTimeoutMs, body);
      if (status === 200) return { kind: "done" };
      const problem = parseError(text);
      if (problem === undefined && status === 404) {
        return {
          kind: "feature-off",
          message: "the engine has no route to load adapters. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora.",
        };
      }
      if (path === loadPath && /already been loaded/i.test(problem?.message ?? "")) return { kind: "already-loaded" };
      if (status === 503 || engineKinds.vllm.isDead(problem?.message ?? ""))
        return { kind: "unknown", message: problem?.message ?? `HTTP ${status}` };
      return { kind: "refused", status, message: problem?.message ?? `HTTP ${status}: ${text.slice(0, 300)}` };
    } catch (error) {
      if (error instanceof EngineUnknownError) return { kind: "unknown", message: error.message };
      throw error;
    }
  };

  const read = async (path: string): Promise<string> => {
    const { status, text } = await call("GET", path, readTimeoutMs);
    if (status !== 200) throw new EngineUnknownError(`the engine at ${url} answered ${path} with HTTP ${status}: ${text.slice(0, 300)}`);
    return text;
  };

  const ask = async (path: string, body: unknown): Promise<unknown> => {
    const { status, text } = await call("POST", path, readTimeoutMs, body);
    const message = (): string => parseError(text)?.message ?? `HTTP ${status}: ${text.slice(0, 300)}`;
    if (status >= 500 && status !== 501) throw new EngineUnknownError(`the engine at ${url} failed on ${path}: ${message()}`);
    if (status !== 200) throw new EngineRefusedError(status, message());
    return parseJson(text);
  };
  const understood = <T>(path: string, parsed: z.ZodSafeParseResult<T>): T => {
    if (parsed.success) return parsed.data;
    throw new EngineRefusedError(200, `the engine at ${url} answered ${path} with something else than was asked for`);
  };

  /** @returns the answer of a 200. */
  const probe = async (path: string, body: unknown): Promise<unknown> => {
    const { status, text } = await call("POST", path, probeTimeoutMs, body);
    if (status === 200) return parseJson(text);
    const message = parseError(text)?.message ?? `HTTP ${status}: ${text.slice(0, 300)}`;
    if (status >= 500) throw new EngineUnknownError(`the engine at ${url} failed on a probe: ${message}`);
    throw new EngineRefusedError(status, message);
  };
  const withoutLogprobs = () =>
    new EngineRefusedError(200, "the answer to a probe holds no logprobs for each prompt; this version of vLLM cannot be proven");
  /** The logprob of each token, as `of` finds it in the answer. */
  const all = (tokens: readonly number[], of: (token: number) => unknown): Map<number, number> => {
    const found = new Map<number, number>();
    for (const token of tokens) {
      const logprob = of(token);
      if (typeof logprob === "number") found.set(token, logprob);
    }
    const absent = tokens.filter((token) => !found.has(token));
    if (absent.length === 0) return found;
    throw new EngineRefusedError(
      200,
      `the answer to a probe lacks the logprobs of tokens ${absent.slice(0, 5).join(", ")}; vLLM must know \`logprob_token_ids\``,
    );
  };

  return {
    product: "vLLM",
    // It refuses requests for more.
    maxLogprobTokens: 128,
    async renderTemplate(model, messages) {
      const answer = await ask("/tokenize", { model, messages, add_generation_prompt: true });
      return understood("/tokenize", z.object({ tokens: z.array(z.int()) }).safeParse(answer)).tokens;
    },
    async detokenize(model, ids) {
      const answer = await ask("/detokenize", { model, tokens: ids });
      return understood("/detokenize", z.object({ prompt: z.string() }).safeParse(answer)).prompt;
    },
    async health() {
      try {
        const { status } = await call("GET", "/health", healthTimeoutMs);
        return status === 200 ? "ready" : "away";
      } catch (error) {
        if (error instanceof EngineUnknownError) return error.gone ? "away" : "silent";
        throw error;
      }
    },
    async listModels() {
      const parsed = modelList.safeParse(parseJson(await read("/v1/models")));
      if (!parsed.success)
        throw new EngineUnknownError(`the engine at ${url} answered /v1/models with something else than a list of models`);
      return parsed.data.data.map(({ id, root, parent }) => ({ name: id, path: root ?? null, isLora: typeof parent === "string" }));
    },
    async incarnation() {
      const value = /^process_start_time_seconds (\S+)$/m.exec(await read("/metrics"))?.[1];
      if (value === undefined) {
        throw new EngineUnknownError(
          `the engine at ${url} does not tell its start time: /metrics has no process_start_time_seconds (PROMETHEUS_MULTIPROC_DIR hides it). Give the agent an \`incarnation\`.`,
        );
      }
      return value;
    },
    connections: () => connections,
    load: (name, path) => change(loadPath, { lora_name: name, lora_path: path }),
    unload: (name) => change("/v1/unload_lora_adapter", { lora_name: name }),
    async nextTokenLogprobs(model, prompts, tokens) {
      const answer = await probe("/v1/completions", { model, prompt: prompts, logprobs: 1, ...ofNextToken(tokens) });
      const parsed = completion.safeParse(answer);
      if (!parsed.success || parsed.data.choices.length !== prompts.length) throw withoutLogprobs();
      return parsed.data.choices
        .toSorted((a, b) => a.index - b.index)
        .map(({ logprobs }) => {
          const [answered] = logprobs.top_logprobs;
          return all(tokens, (token) => answered?.[`token_id:${token}`]);
        });
    },
    async nextTokenLogprobsInChat(model, messages, tokens, expected) {
      const asked = { model, messages, logprobs: true, return_token_ids: true, ...ofNextToken(tokens) };
      const parsed = chatCompletion.safeParse(await probe("/v1/chat/completions", asked));
      if (!parsed.success) throw withoutLogprobs();
      const { prompt_token_ids: made, choices } = parsed.data;
      if (made.length !== expected.length || made.some((token, i) => token !== expected[i])) {
        throw new EngineRefusedError(
          200,
          `the engine makes ${made.length} tokens of a conversation with pictures that was trained as ${expected.length}, or others: it applies another chat template, or prepares pictures otherwise`,
        );
      }
      const answered = new Map(choices[0].logprobs.content[0].top_logprobs.map(({ token, logprob }) => [token, logprob]));
      return all(tokens, (token) => answered.get(`token_id:${token}`));
    },
    [Symbol.dispose]() {
      void pool.destroy();
    },
  };
}

/**
 * Reads a whole answer, or rejects after `timeoutMs`. It uses undici's `dispatch`, since `request`, with its stream for the body and a
 * signal to end it, costs more than twice as much as the exchange itself, and every adapter takes several.
 */
function answerOf(pool: Pool, what: Dispatcher.DispatchOptions, timeoutMs: number): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    let request: Dispatcher.DispatchController | undefined;
    let late: Error | undefined;
    let status = 0;
    const chunks: Buffer[] = [];
    const timer = setTimeout(() => {
      late = new Error(`not within ${timeoutMs} ms`);
      request?.abort(late);
      reject(late);
    }, timeoutMs);
    const ended = (): void => clearTimeout(timer);
    pool.dispatch(what, {
      onRequestStart(controller) {
        request = controller;
        // The time was over while the request still waited for a connection.
        if (late !== undefined) controller.abort(late);
      },
      onResponseStart(_controller, code) {
        status = code;
      },
      onResponseData(_controller, chunk) {
        chunks.push(chunk);
      },
      onResponseEnd() {
        ended();
        resolve({ status, text: Buffer.concat(chunks).toString("utf8") });
      },
      onResponseError(_controller, error) {
        ended();
        reject(error);
      },
    });
  });
}

/** An error in either of vLLM's shapes: `{"error": {"message", "type", …}}`, or the older one with the fields at the top. undefined: it is not vLLM's. */
export function parseError(text: string): { message: string; type: string } | undefined {
  const fields = z.object({ message: z.string(), type: z.string().nullish() });
  const body = parseJson(text);
  const parsed = z.union([z.object({ error: fields }).transform(({ error }) => error), fields]).safeParse(body);
  return parsed.success ? { message: parsed.data.message, type: parsed.data.type ?? "" } : undefined;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
