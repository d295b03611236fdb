import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { expect, onTestFinished, test } from "vitest";
import { ApiError, createApiClient } from "./index.ts";

interface Asked {
  method: string | undefined;
  url: string | undefined;
  headers: IncomingMessage["headers"];
  body: string;
}

/** A server whose answers are given by the test, one for each request; the last one for all further ones. */
async function serve(...answers: ((response: ServerResponse) => void)[]) {
  const asked: Asked[] = [];
  const server = createServer((request, response) => {
    void (async () => {
      const chunks = await Array.fromAsync(request as AsyncIterable<Buffer>);
      asked.push({ method: request.method, url: request.url, headers: request.headers, body: Buffer.concat(chunks).toString() });
      answers[Math.min(asked.length, answers.length) - 1]?.(response);
    })();
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { asked, url, client: createApiClient({ url, apiKey: "ll-1" }) };
}
const json =
  (status: number, value: unknown, headers: Record<string, string> = {}) =>
  (response: ServerResponse): void =>
    void response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(value));
const refusal = (message: string, code: string, param: string | null = null) => ({
  error: { message, type: "invalid_request_error", param, code },
});
const failureOf = async (promise: Promise<unknown>): Promise<ApiError> => {
  const error: unknown = await promise.then(
    () => undefined,
    (failed: unknown) => failed,
  );
  expect(error).toBeInstanceOf(ApiError);
  return error as ApiError;
};

test("fields of the path, the query and the body go where the table of routes says, with the key", async () => {
  const { client, asked } = await serve(
    json(200, { from: "2026-11-01", to: "2026-11-02", data: [] }),
    json(200, { id: "a/b", deleted: true }),
  );
  expect(await client.getUsage({ query: { from: "2026-11-01" } })).toEqual({ from: "2026-11-01", to: "2026-11-02", data: [] });
  expect(await client.deleteKey({ key_id: "a/b" })).toEqual({ id: "a/b", deleted: true });
  expect(asked.map(({ method, url, headers }) => [method, url, headers.authorization])).toEqual([
    ["GET", "/v1/loraline/usage?from=2026-11-01", "Bearer ll-1"],
    ["DELETE", "/v1/loraline/keys/a%2Fb", "Bearer ll-1"],
  ]);
});

test("a refusal says code, message, field, status and when to ask again", async () => {
  const { client } = await serve(json(409, refusal("Version 2 is retired.", "version_retired", "version"), { "retry-after": "3" }));
  const { code, message, param, status, retryAfter } = await failureOf(client.promoteAdapter({ adapter: "pirate", body: { version: 2 } }));
  expect({ code, message, param, status, retryAfter }).toEqual({
    code: "version_retired",
    message: "Version 2 is retired.",
    param: "version",
    status: 409,
    retryAfter: 3,
  });
});

test("what is no answer of this server is an error that says so", async () => {
  const { client } = await serve(
    json(200, { data: "nothing" }),
    (response) => void response.writeHead(502, { "content-type": "text/html" }).end("<h1>Bad Gateway</h1>"),
  );
  expect(await failureOf(client.listRuns())).toMatchObject({ code: "UNEXPECTED_ANSWER", status: 200 });
  expect(await failureOf(client.listRuns())).toMatchObject({ code: "HTTP_ERROR", status: 502, message: "502 <h1>Bad Gateway</h1>" });
});

test("a server that is not there is named, with the reason", async () => {
  const client = createApiClient({ url: "http://127.0.0.1:1", apiKey: "ll-1", retries: 0 });
  const failure = await failureOf(client.listRuns());
  expect(failure).toMatchObject({ code: "UNREACHABLE", status: null });
  expect(failure.message).toMatch(/http:\/\/127\.0\.0\.1:1 does not answer: .*(ECONNREFUSED|bad port)/);
});

test("OpenAI's operations are tried again, with the same Idempotency-Key; the others are not", async () => {
  const busy = json(503, refusal("The gateway is shutting down.", "shutting_down"), { "retry-after": "0" });
  const file = { id: "file-1", object: "file", bytes: 1, created_at: 1, filename: "a", purpose: "fine-tune", status: "uploaded" };
  const { client, asked } = await serve(busy, busy, json(200, file), busy);
  const form = new FormData();
  form.set("file", new Blob(["{}"]), "a.jsonl");
  expect((await client.createFile({ body: form })).id).toBe("file-1");
  expect(asked).toHaveLength(3);
  expect(new Set(asked.map(({ headers }) => headers["idempotency-key"])).size).toBe(1);
  expect(asked.every(({ body }) => body.includes("a.jsonl"))).toBe(true);
  expect(await failureOf(client.rollbackAdapter({ adapter: "pirate" }))).toMatchObject({ status: 503, retryAfter: 0 });
  expect(asked).toHaveLength(4);
});

const chunkOf = (content: string) => ({
  id: "1",
  created: 1,
  model: "acme/pirate@1",
  object: "chat.completion.chunk",
  choices: [{ index: 0, delta: { content }, finish_reason: null }],
});
const chat = { model: "acme/pirate", messages: [{ role: "user", content: "Ahoy?" }] };

test("a streamed answer comes piece by piece, also when an event is cut in two", async () => {
  const { client, asked } = await serve((response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    const text = `data: ${JSON.stringify(chunkOf("Arr "))}\n\ndata: ${JSON.stringify(chunkOf("☠"))}\n\ndata: [DONE]\n\n`;
    const bytes = Buffer.from(text);
    const middle = bytes.indexOf(0xe2) + 1;
    response.write(bytes.subarray(0, middle), () => setImmediate(() => response.end(bytes.subarray(middle))));
  });
  const events = await Array.fromAsync(client.stream("createChatCompletion", { body: chat }));
  expect(events.map(({ choices }) => choices[0]?.delta.content)).toEqual(["Arr ", "☠"]);
  expect(JSON.parse(asked[0]!.body)).toEqual({ ...chat, stream: true });
});

test("a stream that the engine breaks off ends with its reason", async () => {
  const { client } = await serve((response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end(
      `data: ${JSON.stringify(chunkOf("Arr"))}\n\ndata: ${JSON.stringify(refusal("The engine broke off.", "engine_broke_off"))}\n\n`,
    );
  });
  const got: unknown[] = [];
  const failure = await failureOf(
    (async () => {
      for await (const event of client.stream("createChatCompletion", { body: chat })) got.push(event);
    })(),
  );
  expect(got).toHaveLength(1);
  expect(failure).toMatchObject({ code: "engine_broke_off", message: "The engine broke off." });
});

test("who is not interested any more stops it, also between two tries", async () => {
  const { client } = await serve(json(503, refusal("Not ready.", "model_not_ready"), { "retry-after": "30" }));
  const stop = new AbortController();
  const asking = client.createChatCompletion({ body: chat, signal: stop.signal });
  setTimeout(() => stop.abort(new Error("enough")), 50);
  await expect(asking).rejects.toThrow("enough");
});
