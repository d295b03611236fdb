/** Replicas as their heartbeats and holdings tell them, in whichever order they come; and reading a bucket leaves nothing behind. */
import { buckets, type ReplicaAdapter, type ReplicaReport } from "@loraline/contracts";
import { jetstreamManager } from "@nats-io/jetstream";
import { createLog, createTelemetry } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { expect } from "vitest";
import { createBus } from "./bus.ts";
import { ensureStreams } from "./ensure-streams.ts";
import { createReplicaTable } from "./replica-table.ts";

const test = testWithNats.extend("fleet", async ({ nc, tenant }, { onCleanup }) => {
  await ensureStreams(nc);
  const bus = createBus({
    nc,
    log: createLog({ service: "test", level: "silent" }),
    telemetry: createTelemetry({ service: "test" }),
    source: "test",
  });
  const [replicas, holdings] = await Promise.all([bus.bucket(buckets.replicas), bus.bucket(buckets.holdings)]);
  const stopping = new AbortController();
  onCleanup(() => stopping.abort());
  const key = `e-${tenant}.r1`;
  const told: string[] = [];
  const adapter = (version: number, state: ReplicaAdapter["state"] = "proven"): ReplicaAdapter => ({
    tenant,
    adapter: "pirate",
    version,
    digest: `sha256:${"d".repeat(64)}`,
    engineName: `${tenant}.pirate.v${version}.dddddddddddd`,
    state,
    proof: null,
    error: null,
    at: new Date().toISOString(),
  });
  const beat = (incarnation: string, agent: string, over: Partial<ReplicaReport> = {}) => {
    const [engine = "", replica = ""] = key.split(".");
    return replicas.put(key, {
      engine,
      base: "b",
      replica,
      incarnation,
      agent,
      url: "http://x",
      ready: true,
      at: new Date().toISOString(),
      ...over,
    });
  };
  return {
    key,
    told,
    adapter,
    beat,
    holdings,
    hold: (incarnation: string, agent: string, adapters: ReplicaAdapter[]) =>
      holdings.put(`${key}.${tenant}.pirate`, { incarnation, agent, adapters }),
    holdingKey: `${key}.${tenant}.pirate`,
    table: () =>
      createReplicaTable({
        bus,
        signal: stopping.signal,
        onReplica: (of, entry) => void (of === key && told.push(entry === undefined ? "gone" : entry.report.ready ? "ready" : "away")),
      }),
    leave: () => replicas.delete(key),
  };
});

test("a holding counts only while heartbeat and holding are of the same engine process and agent", async ({ fleet }) => {
  const { key, hold, beat, adapter, told, leave } = fleet;
  await hold("i1", "a1", [adapter(1), adapter(2, "loading")]);
  const table = await fleet.table();
  const proven = () => [...(table.get(key)?.proven ?? [])].map((name) => name.split(".")[2]);
  expect(table.get(key)).toBeUndefined();
  await beat("i1", "a1");
  await expect.poll(proven).toEqual(["v1"]);
  expect(table.get(key)?.state.adapters).toHaveLength(2);
  const { held } = table.get(key) ?? {};
  expect(held?.(adapter(2).engineName)?.state).toBe("loading");

  await beat("i2", "a1");
  await expect.poll(proven).toEqual([]);
  // The holding of the new process may come before or after.
  await hold("i3", "a1", [adapter(2)]);
  await beat("i3", "a1");
  await expect.poll(proven).toEqual(["v2"]);
  await beat("i3", "a2");
  await expect.poll(proven).toEqual([]);
  await hold("i3", "a2", [adapter(2, "retrying"), adapter(3)]);
  await expect.poll(proven).toEqual(["v3"]);
  await hold("i3", "a2", [adapter(2)]);
  await expect.poll(proven).toEqual(["v2"]);
  await fleet.holdings.delete(fleet.holdingKey);
  await expect.poll(proven).toEqual([]);

  await beat("i3", "a2", { ready: false });
  await expect.poll(() => told.at(-1)).toBe("away");
  await leave();
  await expect.poll(() => told.at(-1)).toBe("gone");
  expect(table.get(key)).toBeUndefined();
});

test("heartbeats alone wake nobody, and what is cleared away leaves nothing", async ({ fleet }) => {
  const { key, hold, beat, adapter, told, holdings } = fleet;
  const table = await fleet.table();
  await hold("i1", "a1", [adapter(1)]);
  await beat("i1", "a1");
  await expect.poll(() => table.get(key)?.proven.size).toBe(1);
  const first = table.get(key)?.heardAt ?? 0;
  await beat("i1", "a1");
  await expect.poll(() => (table.get(key)?.heardAt ?? 0) > first).toBe(true);
  expect(told).toEqual(["ready"]);

  table.forget(key);
  expect(table.orphans().map((each) => each.key)).toContain(key);
  // It was only silent: what it told still stands.
  await beat("i1", "a1");
  await expect.poll(() => table.get(key)?.proven.size).toBe(1);
  table.drop(key);
  await holdings.clear(`${key}.>`);
  expect(table.orphans().map((each) => each.key)).not.toContain(key);
  expect(await holdings.entries(`${key}.>`)).toEqual([]);
});

test("entries are read whole, filtered, without what was deleted, and leave no consumer on the stream", async ({ fleet, nc, tenant }) => {
  const { holdings, adapter } = fleet;
  const value = { incarnation: "i", agent: null, adapters: [adapter(1)] };
  for (let n = 0; n < 50; n++) await holdings.put(`e-${tenant}.x.${tenant}.a${n}`, value);
  await holdings.put(`e-${tenant}.x.${tenant}.a3`, { ...value, incarnation: "newer" });
  await holdings.delete(`e-${tenant}.x.${tenant}.a4`);
  const stream = async () => (await jetstreamManager(nc)).streams.info("KV_holdings");
  const before = (await stream()).state.consumer_count;
  const read = await holdings.entries(`e-${tenant}.x.>`);
  expect(read).toHaveLength(49);
  expect(read.find(({ key }) => key.endsWith(".a3"))?.value.incarnation).toBe("newer");
  expect(await holdings.entries(`e-${tenant}.y.>`)).toEqual([]);
  const { state, config } = await stream();
  expect(state.consumer_count).toBeLessThanOrEqual(before);
  // The server's own limit would be a thousand, and every agent and gateway watches.
  expect(config.max_consumers).toBeGreaterThan(10_000);
});
