/** A run's chunks divided among replicas, against a real NATS server: whoever does them, and whoever dies, the bytes are the same. */
import { spawn } from "node:child_process";
import { join } from "node:path";
import { buckets, runCancelled, runProgress, runRejected, runTokenized, type TokenManifest, tokenizeSpec } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { baseName, basesDir } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { createChunkWindows } from "./chunk-windows.ts";
import { encodeChunks } from "./encode-chunks.ts";
import { createBases, createEncodeThreads } from "@loraline/tokens";
import {
  dataset,
  type Line,
  rejected,
  request,
  someRecords,
  specOf,
  storeDataset,
  telemetry,
  test,
  tokenized,
} from "./service-under-test.ts";
import { createTokenizeService } from "./service.ts";

/** So many that a replica does not do them by itself. */
const records = someRecords(6000);
const chunkSize = 250;

/** Forgets what is known of the tenant's tokens, so that the same run is work again. */
async function forget({ bus, objects, tenant }: Line, manifest: TokenManifest): Promise<void> {
  const cache = await bus.bucket(buckets.cache);
  for (const { key } of await cache.entries(`tokenize.${tenant}.*`)) await cache.delete(key);
  for (const shard of [...manifest.train, ...manifest.eval]) await objects.delete(tenant, shard.blob);
}

/** What stays behind once a run has its tokens. */
async function leftOver({ bus, objects, tenant }: Line, nc: NatsConnection) {
  const entries = await (await bus.bucket(buckets.cache)).entries(`chunk.${tenant}.*`);
  const blobs = await Array.fromAsync(objects.list(tenant, "encoded"));
  const { state } = await (await jetstreamManager(nc)).streams.info("CHUNKS", { subjects_filter: `loraline.${tenant}.chunk.>` });
  return { entries: entries.length, blobs: blobs.length, messages: Object.keys(state.subjects ?? {}).length };
}

/** A replica as a process of its own. */
function startReplica(natsUrl: string) {
  const main = join(import.meta.dirname, "main.ts");
  const child = spawn(process.execPath, ["--conditions=@loraline/source", main], {
    env: { ...process.env, NATS_URL: natsUrl, LORALINE_BASES_DIR: basesDir, LOG_LEVEL: "error" },
    stdio: ["ignore", "ignore", "inherit"],
  });
  return {
    async kill() {
      const gone = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGKILL");
      await gone;
    },
  };
}

describe("the work queue of chunks", () => {
  test(
    "gives the same bytes whoever does the work, and whoever dies in it",
    { timeout: 240_000 },
    async ({ bus, objects, tenant, nc, nats }) => {
      const line = { bus, objects, tenant };
      const id = await dataset(line, records, chunkSize);
      const spec = specOf(id, { tokenize: { packing: true } });

      // One replica.
      let one;
      {
        await using alone = await createTokenizeService({ bus, objects, telemetry, basesDir, threads: 1, tellEveryMs: 0 });
        expect(alone).toBeDefined();
        const run = await request(line, spec);
        one = await tokenized(line, run);
        const told = (await bus.history([runProgress], { tenant, id: run })).map(({ data }) => data);
        expect(told.length).toBeGreaterThan(0);
        for (const data of told) expect(data).toMatchObject({ attempt: 0, phase: "tokenize", total: records.length });
        expect(told.at(-1)?.done).toBeLessThanOrEqual(records.length);
        expect(one.data).toMatchObject({ cacheHit: false, packed: true });
        expect(one.data.totals.sequences + one.data.totals.evalSequences).toBe(records.length);
      }
      await expect.poll(() => leftOver(line, nc)).toEqual({ entries: 0, blobs: 0, messages: 0 });

      // Three share it.
      await forget(line, one.manifest);
      {
        const done = [0, 0, 0];
        await using stack = new AsyncDisposableStack();
        for (const index of done.keys()) {
          const counted: typeof objects = {
            ...objects,
            put(tenantOf, kind, source, options) {
              if (kind === "encoded") (done[index] as number)++;
              return objects.put(tenantOf, kind, source, options);
            },
          };
          stack.use(await createTokenizeService({ bus, objects: counted, telemetry, basesDir, threads: 1 }));
        }
        const three = await tokenized(line, await request(line, spec));
        expect(three.data).toEqual(one.data);
        expect(done.reduce((sum, count) => sum + count)).toBeGreaterThanOrEqual(records.length / chunkSize);
        expect(done.every((count) => count > 0)).toBe(true);
      }

      // The one that has everything in hand, run and chunks, is killed in the middle; another takes over.
      await forget(line, one.manifest);
      const victim = startReplica(nats.url);
      const run = await request(line, spec);
      const cache = await bus.bucket(buckets.cache);
      await expect.poll(async () => (await cache.entries(`chunk.${tenant}.*`)).length, { timeout: 30_000, interval: 5 }).toBeGreaterThan(2);
      await victim.kill();
      expect(await bus.last(runTokenized, { tenant, id: run })).toBeUndefined();
      const before = (await cache.entries(`chunk.${tenant}.*`)).length;
      expect(before).toBeLessThan(records.length / chunkSize);
      await using heir = await createTokenizeService({ bus, objects, telemetry, basesDir, threads: 1 });
      expect(heir).toBeDefined();
      expect((await tokenized(line, run)).data).toEqual(one.data);
      expect(await bus.history([runTokenized, runRejected], { tenant, id: run })).toHaveLength(1);
      await expect.poll(() => leftOver(line, nc)).toEqual({ entries: 0, blobs: 0, messages: 0 });
    },
  );

  test("serves two runs that want the same at once, and stops for one that is cancelled", async ({ bus, objects, tenant, nc }) => {
    const line = { bus, objects, tenant };
    const id = await dataset(line, records, chunkSize);
    await using first = await createTokenizeService({ bus, objects, telemetry, basesDir, threads: 1 });
    await using second = await createTokenizeService({ bus, objects, telemetry, basesDir, threads: 1 });
    expect([first, second]).toBeDefined();
    const runs = await Promise.all([request(line, specOf(id)), request(line, specOf(id, { adapter: "other" }))]);
    const [a, b] = await Promise.all(runs.map((run) => tokenized(line, run)));
    expect(b?.data).toEqual({ ...a?.data, cacheHit: expect.any(Boolean) as boolean });

    // Another length, so that nothing is known of it.
    const cancelled = await request(line, specOf(id, { tokenize: { max_length: 999 } }));
    const cache = await bus.bucket(buckets.cache);
    await expect.poll(async () => (await cache.entries(`chunk.${tenant}.*`)).length, { timeout: 60_000, interval: 5 }).toBeGreaterThan(0);
    await bus.publish(runCancelled, { tenant, id: cancelled }, {});
    await expect.poll(() => leftOver(line, nc), { timeout: 60_000 }).toEqual({ entries: 0, blobs: 0, messages: 0 });
    expect(await bus.history([runTokenized, runRejected], { tenant, id: cancelled })).toEqual([]);
  });

  test("waits for its chunks however long others stand before them, and asks for few while they wait", async ({
    bus,
    objects,
    tenant,
    nc,
  }) => {
    const line = { bus, objects, tenant };
    const { manifest } = await storeDataset(line, records, 20);
    await using threads = createEncodeThreads(1);
    const loadBase = createBases(basesDir);
    const base = await loadBase(baseName);
    const spec = tokenizeSpec.parse({});
    const stop = new AbortController();
    let looks = 0;
    const isDone = async (): Promise<boolean> => {
      // Nobody takes chunks: it has looked often enough to have given up, and has not.
      if (++looks === 40) stop.abort(new Error("waited long enough"));
      return false;
    };
    const run = {
      run: { tenant, id: ulid() },
      base,
      spec,
      signed: false,
      examples: "answers" as const,
      signal: stop.signal,
      breathe: async () => {},
      delivery: 1,
      lookMs: 50,
      isDone,
    };
    const waiting = encodeChunks(
      { bus, objects, threads, code: "test", loadBase, windows: createChunkWindows() },
      run,
      manifest.chunks,
    ).next();
    await expect(waiting).rejects.toThrow(/waited long enough|aborted/);
    expect(looks).toBe(40);
    // Of three hundred: another tenant's chunks come after these.
    expect((await leftOver(line, nc)).messages).toBe(24);
  });

  test("rejects the run whose chunk cannot be done, saying why", async ({ bus, objects, tenant, nc }) => {
    const line = { bus, objects, tenant };
    const broken: typeof objects = {
      ...objects,
      put: (owner, kind, source, options) =>
        kind === "encoded"
          ? Promise.reject(new PermanentError("DISK_FULL", "the disk is full"))
          : objects.put(owner, kind, source, options),
    };
    await using service = await createTokenizeService({ bus, objects: broken, telemetry, basesDir, threads: 1 });
    expect(service).toBeDefined();
    const run = await request(line, specOf(await dataset(line, records, 2500)));
    expect(await rejected(line, run)).toMatchObject({ code: "DISK_FULL", message: "the disk is full" });
    await expect.poll(async () => (await bus.deadLetters.list(tenant)).map((letter) => letter.code)).toContain("DISK_FULL");
    await expect.poll(async () => (await leftOver(line, nc)).messages, { timeout: 60_000 }).toBe(0);
  });
});
