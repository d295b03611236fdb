/** Measures events per second through one connection: published and acknowledged, then consumed and acknowledged. */
import { type ConsumerDef, consumers, events, streams } from "@loraline/contracts";
import { connectBus, createBus, ensureStreams } from "@loraline/bus";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import { ulid } from "ulid";
import { percentile, type Row } from "./table.ts";

const count = 20_000;
const inFlight = 500;

export async function benchBus(): Promise<Row[]> {
  await using server = await spawnNatsServer();
  const nc = await connectBus({ servers: server.url, name: "bench" });
  await ensureStreams(nc);
  const bus = createBus({
    nc,
    log: createLog({ service: "bench", level: "silent" }),
    telemetry: createTelemetry({ service: "bench" }),
    source: "bench",
  });

  const data = { blob: { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 1 }, filename: "bench.jsonl" } as const;
  const publishMs: number[] = [];
  const publishStart = performance.now();
  let next = 0;
  await Promise.all(
    Array.from({ length: inFlight }, async () => {
      while (next++ < count) {
        const start = performance.now();
        await bus.publish(events.datasetReceived, { tenant: "bench", id: ulid() }, data);
        publishMs.push(performance.now() - start);
      }
    }),
  );
  const publishSeconds = (performance.now() - publishStart) / 1000;

  // One event at a time, as a service publishes, which is the latency of a run.
  const singleMs: number[] = [];
  for (let index = 0; index < 1000; index++) {
    const start = performance.now();
    await bus.publish(events.datasetReceived, { tenant: "bench", id: ulid() }, data);
    singleMs.push(performance.now() - start);
  }

  const consumer: ConsumerDef & { events: readonly [typeof events.datasetReceived] } = {
    ...consumers.ingestDatasetReceived,
    stream: streams.DATASETS,
    events: [events.datasetReceived],
    concurrency: 64,
    maxAckPending: 64,
  };
  let consumed = 0;
  const arrivals: number[] = [];
  const consumeStart = performance.now();
  const done = Promise.withResolvers<void>();
  const consuming = await bus.consume({
    consumer,
    traced: false,
    handlers: {
      "dataset.received.v1": async ({ time }) => {
        consumed++;
        if (consumed === count + 1000) done.resolve();
        if (consumed > count + 1000) arrivals.push(Date.now() - Date.parse(time));
      },
    },
  });
  await done.promise;
  const consumeSeconds = (performance.now() - consumeStart) / 1000;
  for (let index = 0; index < 500; index++) {
    await bus.publish(events.datasetReceived, { tenant: "bench", id: ulid() }, data);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  await consuming[Symbol.asyncDispose]();
  await nc.close();
  return [
    {
      what: `bus: publish, ${inFlight} in flight`,
      value: `${Math.round(count / publishSeconds)} events/s`,
      detail: `p50 ${percentile(publishMs, 50)} ms, p99 ${percentile(publishMs, 99)} ms`,
    },
    {
      what: "bus: publish, one at a time",
      value: `${Math.round(1000 / (singleMs.reduce((a, b) => a + b, 0) / 1000))} events/s`,
      detail: `p50 ${percentile(singleMs, 50)} ms, p99 ${percentile(singleMs, 99)} ms`,
    },
    {
      what: "bus: consume and acknowledge, 64 at once",
      value: `${Math.round((count + 1000) / consumeSeconds)} events/s`,
      detail: `publish → handler: p50 ${percentile(arrivals, 50)} ms, p99 ${percentile(arrivals, 99)} ms`,
    },
  ];
}
