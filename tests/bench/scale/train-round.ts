/**
 * Measures a round of the train controller over many runs that wait for a slot: real NATS, real projector, a launcher whose slots are all
 * taken. BENCH_RUNS sets how many; a tenth of them have had an attempt that was lost.
 */
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, events, foldRun, runKey, runSpec, type RunState } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import { ulid } from "ulid";
import { createProjector } from "../../../services/gateway/src/projector.ts";
import { createTrainService } from "../../../services/train/src/controller/service.ts";
import type { Attempt, Launcher } from "../../../services/train/src/launchers/launcher.ts";
import type { ScaleRow } from "../scale.ts";
import { cpuMs } from "../table.ts";

const count = Number(process.env.BENCH_RUNS ?? 10_000);
const slots = 8;
const tenants = 20;

export async function scaleTrain(): Promise<ScaleRow[]> {
  await using owned = new AsyncDisposableStack();
  const nats = owned.use(await spawnNatsServer());
  const nc = await nats.connect();
  owned.defer(() => nc.close());
  await ensureStreams(nc);
  const log = createLog({ service: "bench", level: "warn" });
  const telemetry = owned.use(createTelemetry({ service: "bench" }));
  const bus = createBus({ nc, log, telemetry, source: "bench" });
  const runs = await bus.bucket(buckets.runs);

  const taken: Attempt[] = [];
  const blob = { kind: "tokens", digest: `sha256:${"a".repeat(64)}`, size: 1 } as const;
  const totals = { sequences: 1, tokens: 1, supervised: 1, evalSequences: 0, evalSupervised: 0, dropped: 0 };
  const spec = runSpec.parse({ base: "bench", adapter: "bench", dataset: ulid() });
  const make = async (n: number): Promise<void> => {
    const at = { tenant: `tenant-${n % tenants}`, id: ulid(Date.now() + n) };
    let state: RunState | undefined;
    const say = async (event: Parameters<typeof bus.publish>[0], data: never, key?: string): Promise<void> => {
      const { seq } = await bus.publish(event, at, data, key === undefined ? {} : { key });
      const told = { type: event.type, data, at, time: new Date().toISOString(), seq, trace: null };
      state = foldRun(state, told as unknown as Parameters<typeof foldRun>[1]);
    };
    await say(events.runRequested, { spec } as never);
    await say(events.runTokenized, { manifest: blob, totals, packed: false, cacheHit: false } as never);
    if (n < slots) taken.push({ tenant: at.tenant, runId: at.id, attempt: 1, name: `train-${at.id.toLowerCase()}-1`, phase: "running" });
    else if (n % 10 === 0) {
      const attempt = { attempt: 1, step: 0, code: "ATTEMPT_LOST", message: "the machine was lost" };
      await say(events.runAttemptEnded, attempt as never, "attempt-1");
    }
    if (state !== undefined) await runs.put(runKey(at), state);
  };
  for (let n = 0; n < count; n += 200) await Promise.all(Array.from({ length: Math.min(200, count - n) }, (_, index) => make(n + index)));
  owned.use(await createProjector({ bus, log }));

  const listeners = new Set<(run: { tenant: string; runId: string }) => void>();
  const launcher: Launcher = {
    launch: async () => false,
    observe: async () => taken,
    attemptsOf: async ({ runId }) => taken.filter((one) => one.runId === runId),
    slots: async () => ({ total: slots, free: 0 }),
    sizeOf: () => ({ slots: 1, gpus: 1 }),
    stop: async () => {},
    remove: async () => {},
    watch(onChange) {
      listeners.add(onChange);
      return { [Symbol.dispose]: () => void listeners.delete(onChange) };
    },
  };
  const first = await untilIdle(async () => {
    owned.use(await createTrainService({ bus, log, telemetry, launcher, resyncMs: 3_600_000 }));
  });
  console.error(`bench: ${count} runs have been told their place after ${(first.ms / 1000).toFixed(1)} s …`);
  const rounds: { ms: number; cpuMs: number }[] = [];
  for (let n = 0; n < 3; n++) {
    const [one] = taken;
    rounds.push(await untilIdle(async () => listeners.forEach((listener) => one !== undefined && listener(one))));
  }
  const { rss } = process.memoryUsage();
  const median = rounds.toSorted((a, b) => a.cpuMs - b.cpuMs)[1] ?? first;
  return [
    {
      what: `train: a round over ${count} unfinished runs`,
      value: `${(median.ms / 1000).toFixed(2)} s`,
      before: "7.6 s at 5,000 runs (2.4 s of CPU, load 15), growing with the square; 48 s in a review",
      limit: "0.2 s",
      detail: `${(median.cpuMs / 1000).toFixed(2)} s of CPU; every run waits, a tenth have lost an attempt; ${Math.round(rss / 2 ** 20)} MiB`,
    },
    {
      what: `train: from its start until ${count} runs have been told their place`,
      value: `${(first.ms / 1000).toFixed(1)} s`,
      before: "18.7 s for 5,000 runs (11.2 s of CPU, load 15)",
      limit: "-",
      detail: `${(first.cpuMs / 1000).toFixed(1)} s of CPU, the projector's included; an event for each run`,
    },
  ];
}

/** Until the process has been idle for a second. */
async function untilIdle(work: () => Promise<void>): Promise<{ ms: number; cpuMs: number }> {
  const from = performance.now();
  const cpuFrom = cpuMs();
  await work();
  let busyUntil = performance.now();
  let busyCpu = cpuMs();
  for (;;) {
    const before = performance.eventLoopUtilization();
    await new Promise((resolve) => setTimeout(resolve, 20));
    const now = performance.now();
    if (performance.eventLoopUtilization(before).utilization > 0.1) {
      busyUntil = now;
      busyCpu = cpuMs();
    }
    if (now - busyUntil > 1000) return { ms: busyUntil - from, cpuMs: busyCpu - cpuFrom };
  }
}
