/**
 * An engine that computes nothing, so that only the proxy in front of it is measured. It answers like vLLM, with the parts of OpenAI's
 * API that the benchmark needs. Settings come with the request, as fields that every proxy passes on:
 *
 *   max_tokens   events of a stream
 *   seed         milliseconds before the answer, and between events
 *
 * Prints its URL and runs until it is killed.
 */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

const words = "Arr, matey";
const usage = { prompt_tokens: 8, completion_tokens: 8, total_tokens: 16 };
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

const server = createServer((request, response) => {
  const parts: Buffer[] = [];
  request.on("data", (part: Buffer) => parts.push(part));
  request.on("end", () => {
    const body = parts.length === 0 ? {} : (JSON.parse(Buffer.concat(parts).toString()) as Record<string, unknown>);
    answer(body).catch(() => response.destroy());
  });
  const answer = async (body: Record<string, unknown>): Promise<void> => {
    const {
      model,
      stream,
      seed: delayMs = 0,
      max_tokens: events = 1,
    } = body as { model: string; stream?: boolean; seed?: number; max_tokens?: number };
    const about = { id: "chatcmpl-1", created: 1, model };
    if (delayMs > 0) await sleep(delayMs);
    if (stream !== true) {
      const choices = [{ index: 0, message: { role: "assistant", content: words }, finish_reason: "stop" }];
      const text = JSON.stringify({ ...about, object: "chat.completion", choices, usage });
      response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(text) }).end(text);
      return;
    }
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    const chunk = { ...about, object: "chat.completion.chunk", choices: [{ index: 0, delta: { content: words }, finish_reason: null }] };
    const event = `data: ${JSON.stringify(chunk)}\n\n`;
    for (let n = 0; n < events; n++) {
      if (n > 0 && delayMs > 0) await sleep(delayMs);
      response.write(event);
    }
    response.end(`data: ${JSON.stringify({ ...chunk, choices: [], usage })}\n\ndata: [DONE]\n\n`);
  };
});
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
