/** NATS' numbers as they are read from a real server's monitor. */
import { buckets, consumers, events } from "@loraline/contracts";
import { createLog, createMetrics, createTelemetry } from "@loraline/runtime";
import { freePort, spawnNatsServer } from "@loraline/testkit/servers";
import { ulid } from "ulid";
import { expect, test } from "vitest";
import { createBus } from "../bus.ts";
import { ensureStreams } from "../ensure-streams.ts";
import { followNats } from "./nats-metrics.ts";

test("lag of consumers, sizes and limits of streams, the store; a server that does not answer is down", async () => {
  const port = await freePort();
  await using server = await spawnNatsServer({ args: ["-m", String(port)] });
  const nc = await server.connect();
  await ensureStreams(nc, { limits: { KV_runs: 8 * 1024 ** 2 } });
  const log = createLog({ service: "test", level: "silent" });
  const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "test" }), source: "test" });
  const metrics = createMetrics();
  using _following = followNats({ metrics, monitors: [`http://127.0.0.1:${port}`] });
  const value = async (series: string): Promise<number | undefined> => {
    const line = (await metrics.text()).split("\n").find((text) => text.startsWith(`${series} `));
    return line === undefined ? undefined : Number(line.slice(series.length));
  };
  const blob = { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 3 } as const;
  for (let n = 0; n < 3; n++) await bus.publish(events.datasetReceived, { tenant: "acme", id: ulid() }, { blob, filename: "a.jsonl" });
  await (await bus.bucket(buckets.leases)).put("x", { holder: "y" });
  const { durable } = consumers.ingestDatasetReceived;
  expect(await value(`loraline_nats_consumer_pending{stream="DATASETS",consumer="${durable}"}`)).toBe(3);
  expect(await value('loraline_nats_stream_messages{stream="DATASETS"}')).toBe(3);
  expect(await value('loraline_nats_stream_messages{stream="DLQ"}')).toBe(0);
  expect(await value('loraline_nats_stream_bytes{stream="KV_leases"}')).toBeGreaterThan(0);
  expect(await value('loraline_nats_stream_limit_bytes{stream="KV_runs"}')).toBe(8 * 1024 ** 2);
  const text = await metrics.text();
  const [, name = ""] = /loraline_nats_up\{server="([^"]+)"\} 1/.exec(text) ?? [];
  expect(await value(`loraline_nats_store_bytes{server="${name}"}`)).toBeGreaterThan(0);
  expect(await value(`loraline_nats_store_limit_bytes{server="${name}"}`)).toBeGreaterThan(0);
  expect(await value(`loraline_nats_connections{server="${name}"}`)).toBe(1);

  await nc.close();
  await server.kill();
  expect(await value(`loraline_nats_up{server="127.0.0.1:${port}"}`)).toBe(0);
  expect(await value('loraline_nats_stream_messages{stream="DLQ"}')).toBeUndefined();
});
