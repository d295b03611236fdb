import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createLog } from "./log.ts";
import { createMetrics } from "./metrics.ts";
import { createOtlpLogs, sendMetrics } from "./otlp.ts";
import { createTelemetry, openCollector } from "./telemetry.ts";

/** A collector that keeps what it is sent, by path. */
let received: Map<string, unknown[]>;
let endpoint: string;
let server: ReturnType<typeof createServer>;
beforeEach(async () => {
  received = new Map();
  server = createServer((request: IncomingMessage, response) => {
    const parts: Buffer[] = [];
    request.on("data", (part: Buffer) => parts.push(part));
    request.on("end", () => {
      const path = request.url ?? "";
      received.set(path, [...(received.get(path) ?? []), JSON.parse(Buffer.concat(parts).toString())]);
      response.writeHead(200, { "content-type": "application/json" }).end("{}");
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
});
afterEach(() => void server.close());

test("a line of the log comes to the collector with severity, text, fields and the trace that it belongs to", async () => {
  const shown: string[] = [];
  {
    await using logs = createOtlpLogs({ service: "train", endpoint });
    const log = createLog({ service: "train", level: "debug", destination: { write: (line) => void shown.push(line) }, also: logs.lines });
    await using telemetry = createTelemetry({ service: "train" });
    await telemetry.span("work", { parent: null }, async () => log.child({ runId: "r1", tenant: "acme" }).warn("disk is slow"));
    log.trace("not this one");
  }
  expect(shown).toHaveLength(1);
  const said = JSON.parse(shown[0] ?? "") as Record<string, unknown>;
  expect(said).toMatchObject({ level: 40, severity_text: "WARN", severity_number: 13, service: "train", runId: "r1", tenant: "acme" });
  const [sent] = received.get("/v1/logs") ?? [];
  expect(sent).toMatchObject({
    resourceLogs: [
      {
        resource: { attributes: expect.arrayContaining([{ key: "service.name", value: { stringValue: "train" } }]) as unknown },
        scopeLogs: [
          {
            logRecords: [
              {
                severityNumber: 13,
                severityText: "WARN",
                body: { stringValue: "disk is slow" },
                traceId: said["trace_id"],
                spanId: said["span_id"],
                attributes: expect.arrayContaining([{ key: "tenant", value: { stringValue: "acme" } }]) as unknown,
              },
            ],
          },
        ],
      },
    ],
  });
});

test("metrics come to the collector as counters, gauges and histograms", async () => {
  const metrics = createMetrics();
  metrics.counter({ name: "things_total", help: "Things", labels: ["kind"] }).inc({ kind: "a" }, 3);
  metrics.gauge({ name: "room", help: "Room" }).set(7);
  const seconds = metrics.histogram({ name: "took_seconds", help: "Time", buckets: [1, 2] });
  for (const value of [0.5, 1.5, 5]) seconds.observe({ value, labels: {}, exemplarLabels: {} });
  await metrics.text();
  {
    await using _sending = sendMetrics({ service: "train", endpoint, metrics, everyMs: 60_000 });
  }
  const sent = received.get("/v1/metrics") as { resourceMetrics: { scopeMetrics: { metrics: { name: string }[] }[] }[] }[];
  const found = sent.flatMap(({ resourceMetrics }) =>
    resourceMetrics.flatMap(({ scopeMetrics }) => scopeMetrics.flatMap((one) => one.metrics)),
  );
  const named = (name: string) => found.find((one) => one.name === name);
  expect(named("things")).toMatchObject({
    sum: {
      isMonotonic: true,
      aggregationTemporality: 2,
      dataPoints: [{ asDouble: 3, attributes: [{ key: "kind", value: { stringValue: "a" } }] }],
    },
  });
  expect(named("room")).toMatchObject({ gauge: { dataPoints: [{ asDouble: 7 }] } });
  expect(named("took_seconds")).toMatchObject({
    histogram: { dataPoints: [{ count: 3, sum: 7, bucketCounts: [1, 1, 1], explicitBounds: [1, 2] }] },
  });
  expect(named("process_resident_memory_bytes")).toBeDefined();
});

test("a process that is several services says of each line whose it is, and of all which process", async () => {
  {
    await using collector = await openCollector({ service: "local", endpoint });
    for (const service of ["local", "train"])
      createLog({ service, destination: { write: () => {} }, also: collector?.lines }).info("ready");
    const metrics = createMetrics();
    metrics.counter({ name: "loraline_things_total", help: "Things" }).inc({}, 3);
    collector?.sendMetrics(metrics);
  }
  const logs = JSON.stringify(received.get("/v1/logs"));
  expect(logs.match(/\{"key":"service","value":\{"stringValue":"train"\}\}/g)).toHaveLength(1);
  expect(logs).not.toContain('{"key":"service","value":{"stringValue":"local"}}');
  for (const path of ["/v1/logs", "/v1/metrics"]) expect(JSON.stringify(received.get(path))).toContain('"key":"service.instance.id"');
  expect(JSON.stringify(received.get("/v1/metrics"))).toContain("loraline_things");
  expect(await openCollector({ service: "local", endpoint: "" })).toBeUndefined();
});
