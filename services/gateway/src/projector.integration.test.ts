/** The projector against a real bus: what it keeps equals the pure fold of the streams, whatever happens to it. */
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, type ConsumerDef, consumers, events, foldRun, runEvents, runSpec, type RunState } from "@loraline/contracts";
import { createTelemetry } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { ulid } from "ulid";
import { describe, expect } from "vitest";
import { base, playServed, playStep, playTokenized, playTrained, quietLog } from "./gateway-under-test.ts";
import { createProjector } from "./projector.ts";

const test = testWithNats.extend("bus", async ({ nc }) => {
  await ensureStreams(nc);
  return createBus({ nc, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
});
type TestBus = ReturnType<typeof createBus>;

async function playWholeRun(bus: TestBus, tenant: string): Promise<string> {
  const id = ulid();
  const spec = runSpec.parse({ base, adapter: "pirate", dataset: ulid() });
  await bus.publish(events.runRequested, { tenant, id }, { spec });
  await playTokenized(bus, tenant, id);
  await playTrained(bus, tenant, id);
  await playServed(bus, tenant, id, "pirate");
  return id;
}

/** What the fold of the run's own stream gives; progress is beside it. */
async function foldOf(bus: TestBus, tenant: string, id: string): Promise<Partial<RunState>> {
  const history = await bus.history(runEvents, { tenant, id });
  const folded = history.reduce<RunState | undefined>((state, event) => foldRun(state, event), undefined);
  if (folded === undefined) throw new Error("no history");
  const { progress: _progress, updatedAt: _updatedAt, ...rest } = folded;
  return rest;
}

describe("the projector", () => {
  test("catches up with both streams, also when progress is read first", async ({ bus, tenant }) => {
    const ids: string[] = [];
    for (let n = 0; n < 5; n++) {
      const id = ulid();
      const spec = runSpec.parse({ base, adapter: "pirate", dataset: ulid() });
      await bus.publish(events.runRequested, { tenant, id }, { spec });
      await playStep(bus, tenant, id, 7, 10);
      ids.push(id);
    }
    await using _projector = await createProjector({ bus, log: quietLog });
    const runs = await bus.bucket(buckets.runs);
    for (const id of ids) {
      await expect.poll(async () => (await runs.get(`${tenant}.${id}`))?.value.progress?.step, { timeout: 60_000 }).toBe(7);
    }
  });

  test("shows how far a dataset is, also when that is read before the dataset", async ({ bus, tenant }) => {
    const at = { tenant, id: ulid() };
    await bus.publish(events.datasetProgress, at, { stage: "read", done: 2, total: 3, etaSeconds: 1 });
    await bus.publish(events.datasetReceived, at, {
      blob: { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 3 },
      filename: "a.jsonl",
    });
    await using _projector = await createProjector({ bus, log: quietLog });
    const datasets = await bus.bucket(buckets.datasets);
    const progress = async () => (await datasets.get(`${tenant}.${at.id}`))?.value.progress;
    await expect.poll(progress, { timeout: 60_000 }).toMatchObject({ stage: "read", done: 2, total: 3, etaSeconds: 1 });
  });

  test("answers commands about runs that are unknown or over, and no others", async ({ bus, tenant }) => {
    await using _projector = await createProjector({ bus, log: quietLog });
    const refused = async (id: string) =>
      (await bus.history([events.runCommandRefused], { tenant, id })).map(({ data }) => `${data.command} ${data.code} ${data.message}`);
    const unknown = ulid();
    await bus.publish(events.runCancelRequested, { tenant, id: unknown }, { by: "ann" });
    await bus.publish(events.runPauseRequested, { tenant, id: unknown }, { by: "ann" });
    await expect
      .poll(async () => (await refused(unknown)).toSorted(), { timeout: 60_000 })
      .toEqual([
        expect.stringMatching(/^run.cancel-requested.v1 RUN_UNKNOWN there is no run .+ nothing is cancelled/),
        expect.stringMatching(/^run.pause-requested.v1 RUN_UNKNOWN there is no run .+ nothing is paused/),
      ]);

    const over = await playWholeRun(bus, tenant);
    await bus.publish(events.runCancelRequested, { tenant, id: over }, { by: "ann" });
    await expect
      .poll(() => refused(over), { timeout: 60_000 })
      .toEqual([expect.stringContaining("RUN_OVER run " + over + " has ended (served)")]);

    const open = ulid();
    const spec = runSpec.parse({ base, adapter: "pirate", dataset: ulid() });
    await bus.publish(events.runRequested, { tenant, id: open }, { spec });
    await bus.publish(events.runCancelRequested, { tenant, id: open }, { by: "ann" });
    const runs = await bus.bucket(buckets.runs);
    await expect.poll(async () => (await runs.get(`${tenant}.${open}`))?.value.cancelRequested, { timeout: 60_000 }).toBe(true);
    expect(await refused(open)).toEqual([]);
  });

  test("folds an event that comes after later ones, as when another gateway had it in hand", async ({ nc, bus, tenant }) => {
    const runs = await bus.bucket(buckets.runs);
    const datasets = await bus.bucket(buckets.datasets);
    /** Plays it while another client holds the first `held` messages that come; gives them back when the rest is folded. */
    const withHeld = async (consumer: ConsumerDef, held: number, play: () => Promise<void>, folded: () => Promise<void>): Promise<void> => {
      const other = await jetstream(nc).consumers.get(consumer.stream.name, consumer.durable);
      await play();
      const messages = await Array.fromAsync(await other.fetch({ max_messages: held, expires: 5000 }));
      // All but the last are given back at once.
      for (const message of messages.slice(0, -1)) message.nak();
      await using _projector = await createProjector({ bus, log: quietLog });
      await folded();
      messages.at(-1)!.nak();
      const jsm = await jetstreamManager(nc);
      const inHand = async () => (await jsm.consumers.info(consumer.stream.name, consumer.durable)).num_ack_pending;
      await expect.poll(inHand, { timeout: 60_000 }).toBe(0);
    };
    // The first event of a run, its second, and the third of a dataset.
    for (const held of [1, 2]) {
      let id = "";
      const state = async () => (await runs.get(`${tenant}.${id}`))?.value;
      await withHeld(
        consumers.projectorRuns,
        held,
        async () => void (id = await playWholeRun(bus, tenant)),
        () => expect.poll(async () => (await state())?.phase, { timeout: 60_000 }).toBe("served"),
      );
      const expected = await foldOf(bus, tenant, id);
      expect(expected).toMatchObject({ tokens: expect.anything(), trained: expect.anything() });
      expect(await state()).toMatchObject(expected);
    }
    const at = { tenant, id: ulid() };
    const blob = { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 3 } as const;
    const state = async () => (await datasets.get(`${tenant}.${at.id}`))?.value;
    await withHeld(
      consumers.projectorDatasets,
      2,
      async () => {
        await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
        const manifest = { ...blob, kind: "dataset" } as const;
        const report = { ...blob, kind: "report" } as const;
        const ingested = { manifest, report, records: 3, rejections: 0, formats: {}, cacheHit: false };
        await bus.publish(events.datasetIngested, at, ingested);
        await bus.publish(events.datasetWaiting, at, { stage: "ingest", reason: null });
      },
      () => expect.poll(async () => (await state())?.seq, { timeout: 60_000 }).toBeGreaterThan(0),
    );
    expect(await state()).toMatchObject({ status: "ingested", records: 3 });
  });

  test("gives the same when several fold at once and when one starts again", async ({ bus, tenant }) => {
    const runs = await bus.bucket(buckets.runs);
    const projectors = await Promise.all([1, 2, 3].map(() => createProjector({ bus, log: quietLog })));
    const ids = await Promise.all(Array.from({ length: 5 }, () => playWholeRun(bus, tenant)));
    await projectors[0]?.[Symbol.asyncDispose]();
    ids.push(await playWholeRun(bus, tenant));
    projectors.push(await createProjector({ bus, log: quietLog }));
    for (const id of ids) {
      const expected = await foldOf(bus, tenant, id);
      await expect.poll(async () => (await runs.get(`${tenant}.${id}`))?.value, { timeout: 60_000 }).toMatchObject(expected);
      expect(expected).toMatchObject({ phase: "served", checkpoints: [{ step: 2 }] });
    }
    await Promise.all(projectors.slice(1).map((projector) => projector[Symbol.asyncDispose]()));
  });
});
