/** The projector against a real bus: what it keeps equals the pure fold of the streams, whatever happens to it. */
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, events, foldRun, runEvents, runSpec, type RunState } from "@loraline/contracts";
import { createTelemetry } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
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
      await expect.poll(async () => (await runs.get(`${tenant}.${id}`))?.value.progress?.step, { timeout: 10_000 }).toBe(7);
    }
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
      await expect.poll(async () => (await runs.get(`${tenant}.${id}`))?.value, { timeout: 10_000 }).toMatchObject(expected);
      expect(expected).toMatchObject({ phase: "served", checkpoints: [{ step: 2 }] });
    }
    await Promise.all(projectors.slice(1).map((projector) => projector[Symbol.asyncDispose]()));
  });
});
