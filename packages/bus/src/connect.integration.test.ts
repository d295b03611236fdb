import { createHealth, createLog, createTelemetry, type SpanSink } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { expect, it } from "vitest";
import { connectService, leave } from "./connect.ts";
import { ensureStreams, readKeptSpans, streamsInPlace } from "./index.ts";

const log = createLog({ service: "test", level: "silent" });
const noSpans = () => {};

it("a service waits for NATS, then for its streams, says so, and follows the connection", async () => {
  await using server = await spawnNatsServer();
  const { url } = server;
  await server.kill();
  await using health = await createHealth();
  health.started();
  const connecting = connectService({ NATS_URL: url }, "test", { log, health, keepSpans: noSpans, stopping: new AbortController().signal });
  await expect.poll(() => health.problems()).toEqual([expect.stringContaining(`cannot reach NATS at ${url}`)]);
  await server.start();
  await expect.poll(() => health.problems(), { timeout: 5000 }).toEqual([expect.stringContaining("there are no streams on")]);
  const other = await server.connect();
  await ensureStreams(other);
  const nc = await connecting;
  expect(health.problems()).toEqual([]);
  expect(await streamsInPlace(nc)).toBeUndefined();

  await server.kill();
  await expect.poll(() => health.problems()).toEqual([expect.stringContaining("is lost; connecting again")]);
  await server.start();
  await expect.poll(() => health.problems(), { timeout: 5000 }).toEqual([]);
  await Promise.all([nc.close(), other.close()]);
});

it("a stop ends the wait", async () => {
  await using server = await spawnNatsServer();
  await using health = await createHealth();
  const stopping = new AbortController();
  const env = { NATS_URL: server.url };
  const waiting = connectService(env, "test", { log, health, keepSpans: noSpans, stopping: stopping.signal });
  await expect.poll(() => health.problems()).toContainEqual(expect.stringContaining("there are no streams"));
  stopping.abort();
  await expect(waiting).rejects.toMatchObject({ code: "STOPPED", message: expect.stringContaining("there are no streams") });
});

it("leaving is no failure, also while the server is away, and sends what was said before", async () => {
  await using server = await spawnNatsServer();
  const [nc, other] = await Promise.all([server.connect(), server.connect()]);
  const heard = other.subscribe("said");
  await other.flush();
  nc.publish("said", "goodbye");
  await leave(nc);
  for await (const message of heard) {
    expect(message.string()).toBe("goodbye");
    break;
  }
  const status = other.status();
  await server.kill();
  for await (const { type } of status) if (type === "disconnect") break;
  await leave(other);
  expect(other.isClosed()).toBe(true);
});

it("spans that ended before NATS was there are kept too, and a trace is read whole", async () => {
  await using server = await spawnNatsServer();
  const other = await server.connect();
  await ensureStreams(other);
  await using health = await createHealth();
  const keeping = Promise.withResolvers<SpanSink>();
  const telemetry = createTelemetry({ service: "test", keep: async (traceId, spans) => (await keeping.promise)(traceId, spans) });
  let traceId = "";
  await telemetry.span("whole", {}, async (span) => {
    traceId = span.spanContext().traceId;
    for (let n = 0; n < 250; n++) telemetry.record(`part ${n}`, { startMs: n, endMs: n + 1 });
  });
  const nc = await connectService({ NATS_URL: server.url }, "test", {
    log,
    health,
    keepSpans: keeping.resolve,
    stopping: new AbortController().signal,
  });
  await telemetry.flush();
  const spans = await readKeptSpans(nc, traceId);
  expect(spans.map(({ name }) => name)).toEqual([...Array.from({ length: 250 }, (_, n) => `part ${n}`), "whole"]);
  expect(spans[0]).toMatchObject({ service: "test", traceId, parentSpanId: spans.at(-1)?.spanId });
  expect(await readKeptSpans(nc, "0".repeat(32))).toEqual([]);
  expect(await readKeptSpans(nc, "../runs")).toEqual([]);
  await Promise.all([nc.close(), other.close()]);
  await telemetry[Symbol.asyncDispose]();
});
