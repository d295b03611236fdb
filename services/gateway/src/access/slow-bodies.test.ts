import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import Fastify from "fastify";
import { expect, onTestFinished, test } from "vitest";
import { cutOffSlowBodies, type SlowBodyLimits } from "./slow-bodies.ts";

/** A server that begins to read bodies after `waitMs`, and answers with their length. */
async function startSlow(limits: SlowBodyLimits, waitMs: number) {
  const app = Fastify();
  cutOffSlowBodies(app, limits);
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("*", (_request, _payload, done) => done(null));
  app.post("/", async ({ raw }) => {
    await sleep(waitMs);
    let bytes = 0;
    for await (const chunk of raw) bytes += (chunk as Buffer).length;
    return { bytes };
  });
  app.get("/", async () => "ok");
  const url = new URL(await app.listen({ host: "127.0.0.1", port: 0 }));
  onTestFinished(() => app.close());
  const socket = connect(Number(url.port), url.hostname);
  let answer = "";
  socket.on("data", (data) => (answer += String(data)));
  socket.on("error", () => undefined);
  onTestFinished(() => void socket.destroy());
  return { socket, answer: () => answer };
}

test("a body that had to wait for us is not blamed for that time afterwards", async () => {
  const { socket, answer } = await startSlow({ graceMs: 200, bytesPerSecond: 150_000 }, 2500);
  const burst = Buffer.alloc(200_000);
  const rest = Buffer.alloc(50_000);
  const pieces = 20;
  socket.write(`POST / HTTP/1.1\r\nhost: x\r\ncontent-type: a/b\r\ncontent-length: ${burst.length + pieces * rest.length}\r\n\r\n`);
  socket.write(burst);
  await sleep(2600);
  for (let n = 0; n < pieces && !socket.destroyed; n++) {
    socket.write(rest);
    await sleep(50);
  }
  await expect.poll(answer).toMatch(/200 OK[^]*"bytes":1200000/);
});

test("a body that drips after its request was answered is cut off, too", async () => {
  const { socket, answer } = await startSlow({ graceMs: 200, bytesPerSecond: 10_000 }, 0);
  socket.write("GET / HTTP/1.1\r\nhost: x\r\ncontent-type: a/b\r\ncontent-length: 100000\r\n\r\n");
  const drip = setInterval(() => socket.writable && socket.write("x"), 20);
  onTestFinished(() => clearInterval(drip));
  await expect.poll(answer).toContain("200 OK");
  await expect.poll(() => socket.destroyed || socket.readableEnded, { timeout: 60_000 }).toBe(true);
});
