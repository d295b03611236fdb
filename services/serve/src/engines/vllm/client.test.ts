/** What an engine's answers mean, in the words of old and new versions of vLLM, and without words. */
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, it as base } from "vitest";
import type { LoraEngine } from "../lora-engine.ts";
import { createVllmClient, parseError } from "./client.ts";

const silent: RequestListener = () => {};
const it = base.extend<{ engine: (answer: RequestListener) => Promise<LoraEngine> }>({
  engine: async ({}, use) => {
    const owned = new AsyncDisposableStack();
    await use(async (answer) => {
      const server = createServer(answer);
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      owned.defer(async () => {
        server.closeAllConnections();
        await new Promise((resolve) => server.close(resolve));
      });
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const waitMs = answer === silent ? 150 : 60_000;
      const waits = { loadTimeoutMs: waitMs, readTimeoutMs: waitMs, healthTimeoutMs: waitMs, probeTimeoutMs: waitMs };
      return owned.use(createVllmClient({ url, ...waits }));
    });
    await owned.disposeAsync();
  },
});
const says =
  (status: number, body: unknown): RequestListener =>
  (_request, response) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(typeof body === "string" ? body : JSON.stringify(body));
  };
const newShape = (status: number, message: string, type = "BadRequestError") =>
  says(status, { error: { message, type, param: null, code: status } });
const oldShape = (status: number, message: string, type = "BadRequestError") =>
  says(status, { object: "error", message, type, param: null, code: status });

describe("a load or unload", () => {
  for (const [words, shape] of [
    ["new", newShape],
    ["old", oldShape],
  ] as const) {
    it(`that is refused is told so, in ${words} words`, async ({ engine }) => {
      const message = "Loading lora x failed: rank 64 is greater than max_lora_rank 32.";
      expect(await (await engine(shape(400, message))).load("x", "/x")).toEqual({ kind: "refused", status: 400, message });
      const loaded = "The lora adapter 'x' has already been loaded.";
      expect(await (await engine(shape(400, loaded))).load("x", "/x")).toEqual({ kind: "already-loaded" });
      const missing = "The lora adapter 'x' cannot be found.";
      expect(await (await engine(shape(404, missing, "NotFoundError"))).unload("x")).toEqual({
        kind: "refused",
        status: 404,
        message: missing,
      });
      const failed = "Failed to remove LoRA adapter 'x' from the engine.";
      expect(await (await engine(shape(500, failed, "InternalServerError"))).unload("x")).toMatchObject({ kind: "refused", status: 500 });
    });
    it(`says nothing about the adapter when the inner engine is dead, in ${words} words`, async ({ engine }) => {
      const dead = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
      expect(await (await engine(shape(500, dead))).load("x", "/x")).toMatchObject({ kind: "unknown" });
      expect(await (await engine(shape(503, "Service Unavailable"))).load("x", "/x")).toMatchObject({ kind: "unknown" });
    });
  }

  it("is done when vLLM says so, in plain text", async ({ engine }) => {
    expect(await (await engine(says(200, "Success: LoRA adapter 'x' added successfully."))).load("x", "/x")).toEqual({ kind: "done" });
  });

  it("that has no route tells that the engine was started without run-time loading", async ({ engine }) => {
    expect(await (await engine(says(404, { detail: "Not Found" }))).load("x", "/x")).toEqual({
      kind: "feature-off",
      message: expect.stringContaining("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    });
  });

  it("without an answer is unknown, whether it timed out, broke off, or nobody listens", async ({ engine }) => {
    expect(await (await engine(silent)).load("x", "/x")).toMatchObject({
      kind: "unknown",
      message: expect.stringContaining("gave no answer"),
    });
    expect(await (await engine((request) => request.socket.destroy())).unload("x")).toMatchObject({ kind: "unknown" });
    using gone = createVllmClient({ url: "http://127.0.0.1:9" });
    expect(await gone.load("x", "/x")).toMatchObject({ kind: "unknown", message: expect.stringContaining("does not accept connections") });
  });

  it("refused without words still says what came", async ({ engine }) => {
    expect(await (await engine(says(500, "<html>boom</html>"))).load("x", "/x")).toEqual({
      kind: "refused",
      status: 500,
      message: "HTTP 500: <html>boom</html>",
    });
  });
});

describe("what is read", () => {
  it("never becomes an empty list by mistake", async ({ engine }) => {
    for (const answer of [says(500, "x"), says(200, "not json"), says(200, { data: "x" }), says(200, {}), silent]) {
      await expect((await engine(answer)).listModels()).rejects.toMatchObject({ name: "EngineUnknownError", gone: false });
    }
    expect(await (await engine(says(200, { data: [{ id: "b", object: "model" }] }))).listModels()).toEqual([
      { name: "b", path: null, isLora: false },
    ]);
  });

  it("tells a busy engine from one that is away", async ({ engine }) => {
    expect(await (await engine(says(200, ""))).health()).toBe("ready");
    expect(await (await engine(says(503, ""))).health()).toBe("away");
    expect(await (await engine(silent)).health()).toBe("silent");
    using gone = createVllmClient({ url: "http://127.0.0.1:9" });
    expect(await gone.health()).toBe("away");
  });

  it("of a probe is a refusal only when the engine understood the question", async ({ engine }) => {
    const ask = async (answer: RequestListener) => (await engine(answer)).nextTokenLogprobs("m", [[1]], [5]);
    await expect(ask(newShape(404, "The model `m` does not exist."))).rejects.toMatchObject({ name: "EngineRefusedError", status: 404 });
    await expect(ask(oldShape(500, "oops"))).rejects.toMatchObject({ name: "EngineUnknownError" });
    await expect(ask(silent)).rejects.toMatchObject({ name: "EngineUnknownError" });
    const lacking = { choices: [{ index: 0, logprobs: { top_logprobs: [{ "token_id:4": -1 }] } }] };
    await expect(ask(says(200, lacking))).rejects.toMatchObject({
      name: "EngineRefusedError",
      message: expect.stringContaining("tokens 5"),
    });
  });

  it("parseError knows only vLLM's own errors", () => {
    expect(parseError('{"error":{"message":"m","type":"t"}}')).toEqual({ message: "m", type: "t" });
    expect(parseError('{"object":"error","message":"m","type":"t"}')).toEqual({ message: "m", type: "t" });
    for (const text of ["", "x", "[]", '{"detail":"Not Found"}', '{"error":"x"}']) expect(parseError(text)).toBeUndefined();
  });
});
