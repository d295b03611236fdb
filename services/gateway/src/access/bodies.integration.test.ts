/** Bodies in the gateway's memory: one tenant's do not fill it. */
import { connect } from "node:net";
import type { RetryLaterError } from "@loraline/runtime";
import { test } from "@loraline/testkit";
import Fastify from "fastify";
import { expect, onTestFinished } from "vitest";
import { startGateway } from "../gateway-under-test.ts";
import type { Caller } from "./auth.ts";
import { createBodies, holdBodies, weightOf } from "./bodies.ts";

const MiB = 1024 ** 2;

test("a tenant that begins many large bodies is refused more of them, and others are not", async ({ nc, tenant }) => {
  await using line = await startGateway({ nc, tenant, projector: false });
  const { hostname, port } = new URL(line.url);
  /** Begins a request, and lets its body wait. */
  const begin = (key: string, headers: string) => {
    const socket = connect(Number(port), hostname);
    let answer = "";
    socket.on("data", (data) => (answer += String(data))).on("error", () => undefined);
    onTestFinished(() => void socket.destroy());
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${key}\r\ncontent-type: application/json\r\n${headers}\r\n\r\n{`,
    );
    return { socket, answer: () => answer };
  };
  const large = `content-length: ${30 * MiB}`;
  const first = [begin(line.key, large), begin(line.key, large)];
  const third = begin(line.key, large);
  await expect.poll(third.answer).toMatch(/^HTTP\/1\.1 503 [^]*retry-after: 1[^]*too_many_bodies/);
  expect(first.map(({ answer }) => answer())).toEqual(["", ""]);

  const chat = (key: string, content: string) =>
    fetch(`${line.url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify({ model: "nothing", messages: [{ role: "user", content }] }),
    }).then(async (answer) => ((await answer.json()) as { error: { code: string } }).error.code);
  const other = await line.keyFor(`${tenant}-b`);
  expect(await chat(line.key, "ahoy")).toBe("model_not_found");
  expect(await chat(other, "x".repeat(8 * MiB))).toBe("model_not_found");
  expect(await chat(line.key, "x".repeat(8 * MiB))).toBe("too_many_bodies");

  for (const { socket } of first) socket.destroy();
  await expect.poll(() => chat(line.key, "x".repeat(8 * MiB))).toBe("model_not_found");
});

test("a body whose length is not announced is counted as it comes", async () => {
  const bodies = createBodies(300_000);
  const app = Fastify();
  app.decorateRequest("caller").addHook("onRequest", async (request) => void (request.caller = { tenant: "a" } as Caller));
  app.setErrorHandler(async (error, _request, reply) => reply.code(503).send((error as RetryLaterError).code));
  holdBodies(app, bodies, MiB);
  app.post("/", async ({ body }) => String(JSON.stringify(body).length));
  const url = await app.listen({ host: "127.0.0.1", port: 0 });
  onTestFinished(() => app.close());
  const send = async (pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>) => {
    const headers = { "content-type": "application/json" };
    return (await fetch(url, { method: "POST", headers, body: ReadableStream.from(pieces), duplex: "half" })).text();
  };
  const { promise, resolve } = Promise.withResolvers<void>();
  const waits = async function* (): AsyncGenerator<Uint8Array> {
    yield Buffer.from(`"${"x".repeat(200_000)}`);
    await promise;
    yield Buffer.from(`"`);
  };
  const open = send(waits());
  const isHeld = (): boolean => {
    try {
      bodies.begin("a", 150_000)[Symbol.dispose]();
      return false;
    } catch {
      return true;
    }
  };
  await expect.poll(isHeld).toBe(true);
  expect(await send([Buffer.from(`"${"x".repeat(150_000)}"`)])).toBe("too_many_bodies");
  expect(await send([Buffer.from(`"${"x".repeat(50_000)}"`)])).toBe("50002");
  resolve();
  expect(await open).toBe("200002");
  await expect.poll(isHeld).toBe(false);
});

test("what is held is given back, whatever happened to it", () => {
  const bodies = createBodies(10 * MiB);
  {
    using a = bodies.begin("a", 4 * MiB);
    a.settle(9 * MiB);
    expect(() => bodies.begin("a", 2 * MiB)).toThrow(/of this tenant/);
    using _b = bodies.begin("b", 10 * MiB);
    // The gateway is nearly full; who has little here may still ask.
    expect(() => bodies.begin("c", 2 * MiB)).toThrow(/at this gateway/);
    using c = bodies.begin("c", 60 * 1024);
    expect(() => c.grow(2 * MiB)).toThrow(/at this gateway/);
    a.settle(MiB);
    c.grow(2 * MiB);
  }
  using _all = bodies.begin("a", 10 * MiB);
  using _others = bodies.begin("b", 10 * MiB);
  // Values take more than their text.
  expect([weightOf("x".repeat(100), () => 50), weightOf("x".repeat(100_000), () => 50_000)]).toEqual([100, 3_300_000]);
});
