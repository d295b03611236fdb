/** One pass over a tenant on a real NATS: what goes, what stays, and how much of its entries is held meanwhile. */
import { type Bus, createBus, ensureStreams, type KvBucket } from "@loraline/bus";
import { type BlobKind, buckets, datasetKey, foldRun, runKey, runRequested, runSpec } from "@loraline/contracts";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { jetstream } from "@nats-io/jetstream";
import { expect, it } from "vitest";
import { collectTenant } from "./collect-tenant.ts";
import { usualRetention } from "./decide-garbage.ts";
import { createManifestReferences } from "./manifest-references.ts";

const tenant = "acme";
const log = createLog({ service: "test", level: "silent" });
const idOf = (n: number): string => `01J9ZZZZZZZZZZZZZZZZZZZZ${String(n).padStart(2, "0")}`;

it("holds of a tenant's entries only what it decides by, however large they are, and is stopped by nothing else in them", async () => {
  await using server = await spawnNatsServer();
  const nc = await server.connect();
  await ensureStreams(nc);
  const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "test" }), source: "test" });
  const objects = await createJetStreamObjects(nc);
  const put = (kind: BlobKind, text: string) => objects.put(tenant, kind, text);
  const at = new Date().toISOString();

  const datasets = await bus.bucket(buckets.datasets);
  const nothingYet = { settledAt: null, manifest: null, report: null, records: null, rejections: null, error: null, trace: null, seq: 1 };
  for (let n = 0; n < 20; n++) {
    const state = {
      ...({ tenant, datasetId: idOf(n), status: "received", filename: "a.jsonl", source: null, receivedAt: at, waiting: null } as const),
      ...nothingYet,
      mapping: { language: "auto", on_unknown: "fail", system: "s".repeat(60_000) } as const,
      blob: await put("raw", `rows ${n}`),
      parts: await Promise.all([1, 2].map(async (part) => ({ filename: "f".repeat(500), blob: await put("raw", `rows ${n} ${part}`) }))),
    };
    await datasets.put(datasetKey({ tenant, id: state.datasetId }), state);
    // As a release that took any mapping has left it.
    const larger = JSON.stringify({ ...state, mapping: { ...state.mapping, system: "s".repeat(442_000) } });
    if (n === 0) await jetstream(nc).publish(`$KV.datasets.${datasetKey({ tenant, id: state.datasetId })}`, larger);
  }
  const runs = await bus.bucket(buckets.runs);
  for (let n = 0; n < 5; n++) {
    const [config, weights] = [await put("adapter-file", `config ${n}`), await put("adapter-file", `weights ${n}`)];
    const method = { type: "import", source: "elsewhere", config, weights, system: "s".repeat(100_000) };
    const spec = runSpec.parse({ base: "b", adapter: "pirate", method });
    const run = { tenant, id: idOf(n) };
    const state = foldRun(undefined, { type: runRequested.type, at: run, data: { spec }, time: at, seq: n + 1, trace: null });
    if (state !== undefined) await runs.put(runKey(run), state);
  }
  await put("raw", "left behind");

  let held = 0;
  const bucket = (async (def: (typeof buckets)["runs"]) => {
    const opened: KvBucket<unknown> = await bus.bucket(def);
    const entries: typeof opened.entries = async (...of) => {
      const all = await opened.entries(...of);
      held += JSON.stringify(all).length;
      return all;
    };
    return { ...opened, entries };
  }) as unknown as Bus["bucket"];
  const collected = await collectTenant(tenant, {
    nc,
    bus: { ...bus, bucket },
    objects,
    references: createManifestReferences({ objects }),
    retention: { ...usualRetention, untold: 0 },
    settleMs: 0,
    log,
  });
  expect(collected).toMatchObject({ blobs: 1, bytes: "left behind".length });
  const kept = (await Array.fromAsync(objects.stored(tenant))).map(({ kind }) => kind);
  expect([kept.length, kept.filter((kind) => kind === "raw").length]).toEqual([70, 60]);
  // Twice, for it looks again after it has erased what was deleted.
  expect(held).toBeLessThan(2 * 25 * 1500);
  await nc.close();
});
