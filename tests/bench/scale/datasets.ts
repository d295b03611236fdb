/**
 * Measures what datasets leave in NATS when their bytes are in S3, and how fast the projector folds their events: real NATS, real
 * projector, the events and cache entries that a gateway and ingest write. BENCH_DATASETS sets how many.
 */
import { readFileSync } from "node:fs";
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, cacheKey, consumers, events, streams } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import { jetstreamManager } from "@nats-io/jetstream";
import { ulid } from "ulid";
import { createProjector } from "../../../services/gateway/src/projector.ts";
import { cpuMsOf } from "../converge-fleet.ts";
import type { ScaleRow } from "../scale.ts";
import { cpuMs } from "../table.ts";

const count = Number(process.env.BENCH_DATASETS ?? 100_000);
const tenants = 1000;
const inFlight = 500;

export async function scaleDatasets(): Promise<ScaleRow[]> {
  await using owned = new AsyncDisposableStack();
  const nats = owned.use(await spawnNatsServer());
  const connect = async () => {
    const nc = await nats.connect();
    const log = createLog({ service: "bench", level: "warn" });
    return { nc, log, bus: createBus({ nc, log, telemetry: createTelemetry({ service: "bench" }), source: "bench" }) };
  };
  const first = await connect();
  await ensureStreams(first.nc);
  const { bus, log } = first;
  const emptyRss = rssOf(nats.pid);

  const cache = await bus.bucket(buckets.cache);
  const blob = (kind: "raw" | "dataset" | "report", n: number) =>
    ({ kind, digest: `sha256:${n.toString(16).padStart(64, "0")}`, size: 100_000 }) as const;
  const make = async (n: number): Promise<void> => {
    const at = { tenant: `tenant-${n % tenants}`, id: ulid() };
    const { digest } = blob("raw", n);
    await bus.publish(events.datasetReceived, at, { blob: blob("raw", n), filename: `support-${n}.jsonl`, mapping: null, by: "key:acme" });
    const manifest = blob("dataset", n);
    const told = { manifest, report: blob("report", n), records: 1000, rejections: 3, formats: { "openai-chat": 1000 }, cacheHit: false };
    await bus.publish(events.datasetIngested, at, told);
    const key = cacheKey({ stage: "ingest", tenant: at.tenant, hex: digest.slice("sha256:".length) });
    await cache.put(key, { manifest, at: new Date().toISOString() });
  };
  let next = 0;
  await Promise.all(
    Array.from({ length: inFlight }, async () => {
      while (next < count) await make(next++);
    }),
  );

  const jsm = await jetstreamManager(first.nc);
  const [from, cpuFrom, natsFrom] = [performance.now(), cpuMs(), cpuMsOf(nats.pid)];
  const projector = await createProjector({ bus, log });
  for (;;) {
    const { num_pending: pending, num_ack_pending: inHand } = await jsm.consumers.info(
      streams.DATASETS.name,
      consumers.projectorDatasets.durable,
    );
    if (pending + inHand === 0) break;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  const [seconds, cpu, natsCpu] = [(performance.now() - from) / 1000, cpuMs() - cpuFrom, cpuMsOf(nats.pid) - natsFrom];
  await projector[Symbol.asyncDispose]();

  const used = { subjects: 0, bytes: 0 };
  for await (const { config, state } of jsm.streams.list()) {
    console.error(`bench: ${config.name}: ${state.num_subjects ?? 0} subjects, ${state.messages} messages, ${state.bytes} bytes`);
    used.subjects += state.num_subjects ?? 0;
    used.bytes += state.bytes;
  }
  const fullRss = rssOf(nats.pid);
  await first.nc.close();
  await nats.kill();
  const restartFrom = performance.now();
  await nats.start();
  const restartMs = performance.now() - restartFrom;
  const again = await connect();
  const freshRss = rssOf(nats.pid);
  await again.nc.close();

  const per = (bytes: number): string => String(Math.round(bytes / count));
  const gb = (bytes: number): string => (bytes / count / 100).toFixed(1); // of 10⁷
  return [
    {
      what: `datasets: what ${count} leave in NATS, bytes in S3`,
      value: `${(used.subjects / count).toFixed(1)} subjects, ${per(used.bytes)} B on disk and ${per(freshRss - emptyRss)} B of memory each`,
      before: "the same; kept for ever",
      limit: "stated",
      detail: `nats-server: ${mib(emptyRss)} MiB empty, ${mib(fullRss)} MiB after, ${mib(freshRss)} MiB after a restart, which took ${(restartMs / 1000).toFixed(1)} s. 10⁷: ${gb(used.bytes)} GB on disk, ${gb(freshRss - emptyRss)} GB of memory`,
    },
    {
      what: "datasets: events a second through one projector",
      value: `${Math.round((2 * count) / seconds)}/s`,
      before: "1,607/s, 284 µs and 263 µs (10,000 datasets, load 11)",
      limit: "-",
      detail: `${((1000 * cpu) / 2 / count).toFixed(0)} µs of CPU for each in the gateway, ${((1000 * natsCpu) / 2 / count).toFixed(0)} µs in nats-server`,
    },
  ];
}

const mib = (bytes: number): number => Math.round(bytes / 2 ** 20);
const rssOf = (pid = 0): number => Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024;
