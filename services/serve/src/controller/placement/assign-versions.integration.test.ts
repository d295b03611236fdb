/** Agents read what their own replica should hold, and nothing of what others should; and do nothing before they know all of it. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Bus } from "@loraline/bus";
import { adapterPlaceRequested, assignmentsComplete, type BaseRef, buckets, type BucketDef } from "@loraline/contracts";
import { createSimulatedEngine, simulatedAdapter, simulatedProbes, test as it } from "@loraline/testkit";
import { expect } from "vitest";
import { serveUnderTest } from "../../serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };
const until = { timeout: 60_000, interval: 20 };

const test = it.extend("line", async ({ nc, tenant }, { onCleanup }) => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const dir = await mkdtemp(join(tmpdir(), "loraline-assign-"));
  owned.defer(() => rm(dir, { recursive: true, force: true }));
  const serve = owned.use(await serveUnderTest({ nc, tenant, dir, base }));
  const engineOf = async () => owned.use(await createSimulatedEngine({ base: base.name }));
  const bytes = { ...simulatedAdapter({ base: base.name }), probes: await simulatedProbes(join(dir, "scratch"), { base: base.name }) };
  const assignments = await serve.bus.bucket(buckets.assignments);
  return { owned, serve, tenant, engineOf, bytes, assignments };
});

/** A bus that notes the keys that are read from KV `assignments`. */
function reading(bus: Bus): { bus: Bus; read: Set<string> } {
  const read = new Set<string>();
  const bucket = async (def: BucketDef) => {
    const of = await bus.bucket(def);
    if (def.name !== buckets.assignments.name) return of;
    const watch: typeof of.watch = (options) =>
      of.watch({
        ...options,
        onChange(key, value, revision) {
          read.add(key);
          options.onChange(key, value, revision);
        },
      });
    return { ...of, watch };
  };
  return { bus: { ...bus, bucket: bucket as Bus["bucket"] }, read };
}

test("an agent is told of what it should hold alone, and a version that moves is let go of where it was", async ({ line }) => {
  const { owned, serve, tenant, engineOf, bytes, assignments } = line;
  let controller = await serve.startController();
  const [a, b] = [await engineOf(), await engineOf()];
  const seen = reading(serve.bus);
  owned.use(await serve.startAgent(a.url, { replica: "a", bus: seen.bus }));
  owned.use(await serve.startAgent(b.url, { replica: "b" }));
  await expect.poll(async () => [(await serve.replica("a"))?.ready, (await serve.replica("b"))?.ready], until).toEqual([true, true]);
  const place = (adapter: string, pins: string[]) =>
    serve.bus.publish(adapterPlaceRequested, { tenant, id: adapter }, { placement: { mode: "pinned", pins } }, { key: pins.join() });
  const loaded = () => [a, b].map((engine) => [...engine.loaded.keys()].map((name) => name.split(".")[1] ?? "").toSorted());

  await serve.train("everywhere", bytes);
  await serve.train("there", bytes, { spec: { placement: { mode: "pinned", pins: ["b"] } } });
  await expect.poll(loaded, until).toEqual([["everywhere"], ["everywhere", "there"]]);
  const keys = [...seen.read].map((key) => key.split(".").slice(1).join("."));
  expect(keys.toSorted()).toEqual(["", `-.${tenant}.everywhere`]);

  await place("there", ["a"]);
  await expect.poll(loaded, until).toEqual([["everywhere", "there"], ["everywhere"]]);
  expect((await assignments.entries(`${serve.engine}.b.>`)).length).toBe(0);

  // A controller that comes after another finds everything as it should be, and takes away what nobody wants any more.
  const entries = async () => (await assignments.entries(`${serve.engine}.>`)).map(({ key, revision }) => `${key} ${revision}`).toSorted();
  await controller[Symbol.asyncDispose]();
  const before = await entries();
  const stale = `${serve.engine}.b.${tenant}.forgotten`;
  await assignments.put(stale, { versions: [] });
  controller = owned.use(await serve.startController());
  await expect.poll(() => assignments.get(stale), until).toBeUndefined();
  expect(await entries()).toEqual(before);
});

test("entries that cannot be read are written again, or deleted, by a controller that starts", async ({ line, nc }) => {
  const { owned, serve, tenant, engineOf, bytes, assignments } = line;
  const controller = await serve.startController();
  const engine = await engineOf();
  owned.use(await serve.startAgent(engine.url));
  await serve.train("pirate", bytes);
  await expect.poll(async () => (await serve.replica())?.adapters.map(({ state }) => state), until).toEqual(["proven"]);
  await controller[Symbol.asyncDispose]();

  const [known, stale] = [`${serve.engine}.-.${tenant}.pirate`, `${serve.engine}.-.${tenant}.nobodys`];
  const before = await assignments.get(known);
  for (const key of [known, stale]) await nc.request(`$KV.${buckets.assignments.name}.${key}`, "{ no entry");
  owned.use(await serve.startController());
  await expect.poll(() => assignments.get(known).catch(() => undefined), until).toMatchObject({ value: before?.value });
  await expect.poll(() => assignments.get(stale), until).toBeUndefined();
  expect(engine.calls.filter((call) => call.startsWith("unload"))).toEqual([]);
});

test("an agent that does not know yet what is wanted unloads nothing, is not ready, and says why", async ({ line }) => {
  const { owned, serve, tenant, engineOf, bytes, assignments } = line;
  const controller = await serve.startController();
  const engine = await engineOf();
  const first = await serve.startAgent(engine.url);
  await serve.train("pirate", bytes);
  await expect.poll(async () => (await serve.replica())?.adapters.map(({ state }) => state), until).toEqual(["proven"]);
  await controller[Symbol.asyncDispose]();
  await first[Symbol.asyncDispose]();

  // As after an upgrade, before the controller of the new release has started.
  await assignments.delete(assignmentsComplete(serve.engine));
  await assignments.delete(`${serve.engine}.-.${tenant}.pirate`);
  const agent = owned.use(await serve.startAgent(engine.url));
  await expect.poll(async () => (await serve.replica())?.ready, until).toBe(true);
  await sleep(1500);
  expect([...engine.loaded.keys()]).toHaveLength(1);
  expect(agent.unready()).toMatch(/not known yet which adapters/);
  owned.use(await serve.startController());
  await expect.poll(() => agent.unready(), until).toBeUndefined();
  await expect.poll(async () => (await serve.replica())?.adapters.map(({ state }) => state), until).toEqual(["proven"]);
  expect(engine.calls.filter((call) => call.startsWith("unload"))).toEqual([]);
});
