/** A tenant that asks for everything at once, by NATS, beside one that asks for a little: the real controller, with attempts that end when the test says. */
import { createBus, ensureStreams } from "@loraline/bus";
import {
  buckets,
  consumers,
  events,
  foldRun,
  type QuotaSettings,
  type RunEvent,
  runKey,
  runSpec,
  type RunSpecInput,
  type RunState,
} from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { ulid } from "ulid";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Attempt, Launcher } from "../launchers/launcher.ts";
import { createTrainService } from "./service.ts";

const log = createLog({ service: "test", level: "silent" });
const telemetry = createTelemetry({ service: "test" });
const within = { timeout: 60_000, interval: 20 };
const blob = { kind: "tokens", digest: `sha256:${"a".repeat(64)}`, size: 1 } as const;
const totals = { sequences: 1, tokens: 1, supervised: 1, evalSequences: 0, evalSupervised: 0, dropped: 0 };

let stack: AsyncDisposableStack;
let bus: ReturnType<typeof createBus>;
beforeEach(async () => {
  stack = new AsyncDisposableStack();
  const nats = stack.use(await spawnNatsServer());
  const nc = await nats.connect();
  stack.defer(() => nc.close());
  await ensureStreams(nc);
  bus = createBus({ nc, log, telemetry, source: "test" });
  // The projector belongs to the gateway, and services do not import each other.
  const runs = await bus.bucket(buckets.runs);
  const project = async (received: RunEvent): Promise<void> => {
    await runs.change(runKey(received.at), (state) => foldRun(state, received));
  };
  stack.use(await bus.consume({ consumer: consumers.projectorRuns, handlers: project, traced: false }));
});
afterEach(() => stack.disposeAsync());

interface At {
  tenant: string;
  id: string;
}

/** The line with so many slots. `started` has every run of which an attempt began, in that order. */
async function lineOf(slots: number, quotas: QuotaSettings) {
  const known = new Map<string, Attempt>();
  const listeners = new Set<Parameters<Launcher["watch"]>[0]>();
  const started: string[] = [];
  const running = () => [...known.values()].filter(({ phase }) => phase === "running");
  const launcher: Launcher = {
    async launch({ tenant, runId, attempt, name }) {
      if (running().length >= slots) return false;
      known.set(name, { tenant, runId, attempt, name, phase: "running" });
      started.push(`${tenant}.${runId}`);
      await bus.publish(events.runStarted, { tenant, id: runId }, { attempt, job: name });
      return true;
    },
    observe: async () => [...known.values()],
    attemptsOf: async ({ tenant, runId }) => [...known.values()].filter((one) => one.tenant === tenant && one.runId === runId),
    slots: async () => ({ total: slots, free: slots - running().length }),
    sizeOf: ({ gpus = 1 }) => ({ slots: 1, gpus }),
    stop: async () => {},
    remove: async (name) => void known.delete(name),
    watch(onChange) {
      listeners.add(onChange);
      return { [Symbol.dispose]: () => void listeners.delete(onChange) };
    },
  };
  stack.use(await createTrainService({ bus, log, telemetry, launcher, quotas, resyncMs: 500 }));
  return {
    started,
    /** Ends the run, so that its place is free. */
    async fail({ tenant, id }: At) {
      await bus.publish(events.runFailed, { tenant, id }, { attempt: 1, code: "TRAINER_FAILED", message: "m" });
      for (const [name, one] of known) if (one.runId === id) known.set(name, { ...one, phase: "concluded" });
      for (const listener of listeners) listener({ tenant, runId: id });
    },
  };
}

async function ask(tenant: string, more: Partial<RunSpecInput> = {}): Promise<At> {
  const at = { tenant, id: ulid() };
  const spec = runSpec.parse({ base: "tiny", adapter: "pirate", dataset: ulid(), ...more });
  await bus.publish(events.runRequested, at, { spec });
  await bus.publish(events.runTokenized, at, { manifest: blob, totals, packed: false, cacheHit: false });
  return at;
}
const many = async (tenant: string, count: number): Promise<At[]> => {
  const all: At[] = [];
  for (let n = 0; n < count; n++) all.push(await ask(tenant));
  return all;
};
const stateOf = async ({ tenant, id }: At): Promise<RunState | undefined> =>
  (await (await bus.bucket(buckets.runs)).get(runKey({ tenant, id })))?.value;
const keyOf = ({ tenant, id }: At): string => `${tenant}.${id}`;

test("a full house: the tenant that has nothing is next, is told so, and starts when one place is free", async () => {
  const line = await lineOf(2, { default: { runsAtOnce: null, gpusAtOnce: null } });
  const flood = await many("flood", 12);
  await expect.poll(() => line.started.length, within).toBe(2);
  const small = await ask("small");
  await expect.poll(async () => (await stateOf(small))?.queue?.message, within).toBe("next in line; all 2 devices are busy");
  await expect.poll(async () => (await stateOf(flood[2] as At))?.queue?.message, within).toMatch(/^1 run waits before this one/);
  await line.fail(flood[0] as At);
  await expect.poll(() => line.started.at(2), within).toBe(keyOf(small));
});

test("quotas: what is over them waits or is refused, with the quota and the place; the other tenant notices nothing", async () => {
  const quotas = { default: { runsAtOnce: 3, runsWaiting: 8, highestPriority: 0 } };
  const line = await lineOf(4, quotas);
  const flood: At[] = [];
  for (let n = 0; n < 20; n++) flood.push(await ask("flood", { priority: 10 }));
  const codes = async () =>
    (await Promise.all(flood.map(async (at) => (await stateOf(at))?.error?.code))).filter((code) => code === "QUOTA_RUNS_WAITING");
  // Twenty came at once; three train, and eight may wait.
  await expect.poll(async () => (await codes()).length, within).toBeGreaterThanOrEqual(20 - 8 - 3);
  await expect.poll(() => line.started.length, within).toBe(3);
  const waiting = flood.filter((at) => !line.started.includes(keyOf(at)));
  const messages = async () =>
    (await Promise.all(waiting.map(async (at) => stateOf(at)))).flatMap((state) =>
      state?.queue?.reason === "TENANT_QUOTA" ? [state.queue.message] : [],
    );
  await expect.poll(messages, within).toContain("quota runsAtOnce: 3 of this tenant's 3 runs at once are under way; next in line");
  await expect
    .poll(messages, within)
    .toContain("quota runsAtOnce: 3 of this tenant's 3 runs at once are under way; 2 runs of it wait before this one");

  const small = await ask("small");
  await expect.poll(() => line.started.at(3), within).toBe(keyOf(small));
  const training = await bus.bucket(buckets.training);
  await expect.poll(async () => (await training.get("flood"))?.value, within).toMatchObject({ running: 3, gpus: 3, waiting: 8 });
  expect((await training.get("small"))?.value).toMatchObject({ running: 1, waiting: 0 });

  // Lowered, a quota takes no place from those who wait already; raised by the operator, it counts at once.
  const limits = await bus.bucket(buckets.limits);
  await limits.put("flood", { runsWaiting: 1, by: "admin", at: new Date().toISOString() });
  const before = (await codes()).length;
  await line.fail(small);
  await limits.put("flood", { runsAtOnce: 4, runsWaiting: 1, fixed: true, by: "operator", at: new Date().toISOString() });
  await expect.poll(() => line.started.filter((key) => key.startsWith("flood.")).length, within).toBe(4);
  expect((await codes()).length).toBe(before);
});
