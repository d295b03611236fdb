import { createTelemetry } from "@loraline/runtime";
import { ensureStreams, mostSpansRead, readKeptSpans, spanSink } from "@loraline/bus";
import { spawnNatsServer } from "@loraline/testkit";
import { expect, it } from "vitest";
import { eraseSpansOf } from "./erase-spans.ts";

it("of a trace that another tenant joined, only one's own spans are erased", async () => {
  await using server = await spawnNatsServer();
  const nc = await server.connect();
  await ensureStreams(nc);
  const telemetry = createTelemetry({ service: "test", keep: spanSink(nc) });
  let traceId = "";
  await telemetry.span("victim", { attributes: { "loraline.tenant": "acme" } }, async (span) => {
    traceId = span.spanContext().traceId;
    await telemetry.span("step of the victim", {}, async () => undefined);
    await telemetry.span("intruder", { attributes: { "loraline.tenant": "mallory" } }, async () => {
      await telemetry.span("step of the intruder", {}, async () => undefined);
    });
  });
  await telemetry.flush();
  const names = async () => (await readKeptSpans(nc, traceId)).map(({ name }) => name).toSorted();
  expect(await names()).toHaveLength(4);
  await eraseSpansOf(nc, "mallory", traceId);
  expect(await names()).toEqual(["step of the victim", "victim"]);
  await eraseSpansOf(nc, "acme", traceId);
  expect(await names()).toEqual([]);
  await telemetry[Symbol.asyncDispose]();
  await nc.close();
});

it("of a trace with more spans than anybody reads, the first are shown, and all are erased", async () => {
  await using server = await spawnNatsServer();
  const nc = await server.connect();
  await ensureStreams(nc);
  const traceId = "d".repeat(32);
  const spans = Array.from({ length: mostSpansRead + 2000 }, (_, n) => ({
    traceId,
    spanId: String(n).padStart(16, "0"),
    parentSpanId: null,
    service: "gateway",
    name: `ask ${n}`,
    startMs: n,
    durationMs: 1,
    status: "ok" as const,
    attributes: { "loraline.tenant": n < 10 ? "acme" : "mallory" },
    links: [],
  }));
  await spanSink(nc)(traceId, spans);
  const read = await readKeptSpans(nc, traceId);
  expect([read.length, read[0]?.name]).toEqual([mostSpansRead, "ask 0"]);
  await eraseSpansOf(nc, "mallory", traceId);
  expect((await readKeptSpans(nc, traceId)).map(({ name }) => name)).toEqual(spans.slice(0, 10).map(({ name }) => name));
  await nc.close();
});
