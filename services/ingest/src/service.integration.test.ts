import { type Bus, createBus, ensureStreams } from "@loraline/bus";
import {
  buckets,
  datasetIngested,
  datasetManifest,
  datasetProgress,
  type datasetMapping,
  datasetReceived,
  datasetRejected,
  datasetReport,
  record,
} from "@loraline/contracts";
import { createJetStreamObjects, getBytes, getJson, type Objects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { test as base } from "@loraline/testkit";
import { ulid } from "ulid";
import { describe, expect, vi } from "vitest";
import type { z } from "zod";
import { createIngestService } from "./service.ts";

const log = createLog({ service: "ingest", level: "silent" });
const telemetry = createTelemetry({ service: "ingest" });

const test = base
  .extend("bus", async ({ nc }) => {
    await ensureStreams(nc);
    return createBus({ nc, log, telemetry, source: "test" });
  })
  .extend("objects", async ({ nc, bus }) => {
    expect(bus).toBeDefined();
    return createJetStreamObjects(nc);
  });

interface Line {
  bus: Bus;
  objects: Objects;
  tenant: string;
}

async function upload(
  { bus, objects, tenant }: Line,
  content: string,
  { filename = "data.jsonl", mapping }: { filename?: string; mapping?: z.input<typeof datasetMapping> } = {},
): Promise<string> {
  const id = ulid();
  await bus.publish(datasetReceived, { tenant, id }, { blob: await objects.put(tenant, "raw", content), filename, mapping });
  return id;
}

const ingested = ({ bus, tenant }: Line, id: string) =>
  vi.waitFor(async () => (await bus.last(datasetIngested, { tenant, id })) ?? (await Promise.reject(new Error("not yet"))), {
    timeout: 60_000,
    interval: 50,
  });
const rejected = ({ bus, tenant }: Line, id: string) =>
  vi.waitFor(async () => (await bus.last(datasetRejected, { tenant, id })) ?? (await Promise.reject(new Error("not yet"))), {
    timeout: 60_000,
    interval: 50,
  });

const row = (n: number): string => JSON.stringify({ instruction: `question ${n}`, output: `answer ${n}` });
const rows = (n: number): string => Array.from({ length: n }, (_, index) => `${row(index)}\n`).join("");

describe("the ingest service", () => {
  test("stores no more records than the tenant has room for, however small the file is", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry, quotas: { default: { storageBytes: 1_000_000 } } });
    expect(service).toBeDefined();
    const mapping = { format: "instruction", system: "x".repeat(16_000) } as const;
    const id = await upload(line, rows(8000), { mapping });
    expect((await rejected(line, id)).data).toMatchObject({
      code: "QUOTA_STORAGE",
      message: expect.stringMatching(/^data\.jsonl: its records take more than .* quota storageBytes/) as string,
    });
    const kept = await Array.fromAsync(objects.stored(tenant));
    expect(kept.reduce((sum, { size }) => sum + size, 0)).toBeLessThan(64_000_000);
    // What is a little more than the quota is kept: it was let in.
    const other = { ...line, tenant: `${tenant}-b` };
    const fits = await upload(other, rows(500), { mapping });
    expect((await ingested(other, fits)).data.records).toBe(500);
  });

  test("takes the size of an upload from the store, whatever is claimed, and counts a file once that is named often", async ({
    bus,
    objects,
    tenant,
  }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry, quotas: { default: { storageBytes: 1_000_000 } } });
    expect(service).toBeDefined();
    const mapping = { format: "instruction", system: "x".repeat(16_000) } as const;
    const blob = await objects.put(tenant, "raw", rows(8000));
    const part = await objects.put(tenant, "raw", rows(8));
    const claims = [
      { blob: { ...blob, size: Number.MAX_SAFE_INTEGER } },
      { blob, parts: Array.from({ length: 1000 }, () => ({ blob: part, filename: "more.jsonl" })) },
      { blob, parts: [{ blob: { ...blob, digest: `sha256:${"0".repeat(64)}`, size: Number.MAX_SAFE_INTEGER }, filename: "more.jsonl" }] },
    ] as const;
    for (const claim of claims) {
      const id = ulid();
      await bus.publish(
        datasetReceived,
        { tenant, id },
        { ...claim, parts: [...("parts" in claim ? claim.parts : [])], filename: "data.jsonl", mapping },
      );
      expect((await rejected(line, id)).data.code).toBe("QUOTA_STORAGE");
    }
  });

  test("reads what a tenant uploads while another one's files take long", async ({ bus, objects, tenant }) => {
    let begun = 0;
    const over = Promise.withResolvers<void>();
    async function* slowly(bytes: Promise<AsyncIterable<Uint8Array>>): AsyncGenerator<Uint8Array> {
      begun++;
      await over.promise;
      yield* await bytes;
    }
    const slow: Objects = {
      ...objects,
      get: async (of, ref) => (of === tenant ? slowly(objects.get(of, ref)) : objects.get(of, ref)),
    };
    await using running = new AsyncDisposableStack();
    running.use(await createIngestService({ bus, objects: slow, telemetry }));
    running.defer(() => over.resolve());
    for (let n = 1; n <= 3; n++) await upload({ bus, objects, tenant }, rows(n));
    await expect.poll(() => begun, { timeout: 60_000 }).toBe(2);
    const other = { bus, objects, tenant: `${tenant}-other` };
    expect((await ingested(other, await upload(other, rows(5)))).data.records).toBe(5);
    expect(begun).toBe(2);
  });

  test("turns an upload into chunks, rejections, a report and a manifest", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry, settings: { chunkBytes: 1000 } });
    expect(service).toBeDefined();
    const id = await upload(line, `${rows(20)}{"instruction": 1}\n${rows(3)}not json\n`);
    const { data } = await ingested(line, id);
    expect(data).toMatchObject({ records: 23, rejections: 2, formats: { instruction: 23 }, cacheHit: false });

    const manifest = await getJson(objects, tenant, data.manifest, datasetManifest);
    expect(manifest.chunks.length).toBeGreaterThan(2);
    expect(manifest.chunks.reduce((sum, chunk) => sum + chunk.records, 0)).toBe(23);
    const lines: number[] = [];
    for (const chunk of manifest.chunks) {
      const text = new TextDecoder().decode(await getBytes(objects, tenant, chunk.blob));
      for (const each of text.trimEnd().split("\n")) lines.push(record.parse(JSON.parse(each)).meta.line);
    }
    expect(lines).toEqual([...Array.from({ length: 20 }, (_, index) => index + 1), 22, 23, 24]);

    const report = await getJson(objects, tenant, data.report, datasetReport);
    expect(report).toMatchObject({ rows: 25, records: 23, rejections: 2, reasons: { FORMAT_UNKNOWN: 1, NOT_JSON: 1 }, exactDuplicates: 3 });
    expect(report.allRejections).not.toBeNull();
    const all = new TextDecoder().decode(await getBytes(objects, tenant, report.allRejections ?? data.report));
    expect(
      all
        .trimEnd()
        .split("\n")
        .map((each) => JSON.parse(each) as unknown),
    ).toEqual(report.firstRejections);
    expect(report.firstRejections).toMatchObject([
      {
        line: 21,
        code: "FORMAT_UNKNOWN",
        message:
          'line 21: close to the format "instruction", but `instruction` is a number; it must be text, and `output` is missing. Keys found: instruction.',
      },
      { line: 25, code: "NOT_JSON" },
    ]);
  });

  test("tells how many bytes are read while it reads", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry, tellEveryMs: 0 });
    expect(service).toBeDefined();
    const content = rows(20_000);
    const id = await upload(line, content);
    await ingested(line, id);
    const told = (await bus.history([datasetProgress], { tenant, id })).map(({ data }) => data);
    expect(told.length).toBeGreaterThan(0);
    for (const data of told)
      expect(data).toMatchObject({ stage: "read", total: Buffer.byteLength(content), etaSeconds: expect.any(Number) });
    const done = told.map((data) => data.done);
    expect(done).toEqual(done.toSorted((a, b) => a - b));
    expect(done.every((bytes) => bytes > 0 && bytes <= Buffer.byteLength(content))).toBe(true);
  });

  test("answers a second upload of the same bytes from the cache, with the same objects", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry });
    expect(service).toBeDefined();
    const first = await ingested(line, await upload(line, rows(5)));
    const second = await ingested(line, await upload(line, rows(5)));
    expect(second.data).toEqual({ ...first.data, cacheHit: true });
    // A change of the output changes this digest. Then raise `ingestCode`, because otherwise cached old results would be used.
    const { code, chunks } = await getJson(objects, tenant, first.data.manifest, datasetManifest);
    expect([code, chunks[0]?.blob.digest]).toEqual(["ingest/9", "sha256:e62c6d8ec5fbd2b4bee206cdc351b79be8f7bd81feadad8928672d5a89f7b05d"]);
    const renamed = await ingested(line, await upload(line, rows(5), { filename: "other.jsonl" }));
    expect(renamed.data).toEqual(second.data);
    const mapped = await ingested(line, await upload(line, rows(5), { mapping: { system: "s" } }));
    expect(mapped.data.cacheHit).toBe(false);
    expect(mapped.data.manifest).not.toEqual(first.data.manifest);
  });

  test("reads as the mapping says, with the file's classes in the prompts", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry });
    expect(service).toBeDefined();
    const mapping = { format: "classification", columns: { text: "tweet", label: "mood" } } as const;
    const id = await upload(line, '{"tweet":"a","mood":"sad"}\n{"tweet":"b","mood":"glad"}\n', { mapping });
    const { data } = await ingested(line, id);
    const { chunks } = await getJson(objects, tenant, data.manifest, datasetManifest);
    const text = new TextDecoder().decode(await getBytes(objects, tenant, chunks[0]?.blob ?? data.manifest));
    expect(text).toContain("exactly one of: glad, sad.");
  });

  test("rejects a file that it mostly did not understand, unless told to drop those rows", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry });
    expect(service).toBeDefined();
    const content = rows(20) + '{"foo":1}\n'.repeat(21);
    const { data } = await rejected(line, await upload(line, content));
    expect(data).toMatchObject({
      code: "TOO_MANY_UNKNOWN",
      rejections: 21,
      message: expect.stringMatching(/^21 of the 41 rows.*line 21.*on_unknown/) as string,
    });
    expect(data.report).not.toBeNull();
    const kept = await ingested(line, await upload(line, content, { mapping: { on_unknown: "drop" } }));
    expect(kept.data).toMatchObject({ records: 20, rejections: 21 });
  });

  test("does the work again when the cached manifest is gone", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry });
    expect(service).toBeDefined();
    const first = await ingested(line, await upload(line, rows(5)));
    await objects.delete(tenant, first.data.manifest);
    const second = await ingested(line, await upload(line, rows(5)));
    expect(second.data).toEqual(first.data);
    expect(await objects.head(tenant, first.data.manifest)).toBeDefined();
  });

  test.for<[string, string, string, RegExp]>([
    ["an empty file", "", "EMPTY_FILE", /^data\.jsonl is empty/],
    ["a blank file", "\n \n", "EMPTY_FILE", /^data\.jsonl is empty/],
    ["an empty list", "[]", "EMPTY_FILE", /no row in it/],
    ["a CSV of unknown columns", "a,b\n1,2\n", "ALL_ROWS_REJECTED", /line 2: no known format\. Keys found: a, b/],
    ["one object over many lines", '{\n"instruction": "a",\n"output": "b"\n}', "NOT_JSON", /line 1/],
    [
      "only bad rows",
      '{"a":1}\n{"instruction":"a","output":""}\n',
      "ALL_ROWS_REJECTED",
      /none of the 2 rows.*EMPTY_ANSWER: 1, FORMAT_UNKNOWN: 1.*line 1: no known format/,
    ],
    ["a gzip file that is cut off", "\u001f\u008b", "FILE_TRUNCATED", /^data\.jsonl: .*gzip/],
  ])("rejects %s", async ([, content, code, message], { bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry });
    expect(service).toBeDefined();
    const id = ulid();
    // Sent as bytes, because the magic bytes of gzip are not valid UTF-8.
    const blob = await objects.put(tenant, "raw", Buffer.from(content, "latin1"));
    await bus.publish(datasetReceived, { tenant, id }, { blob, filename: "data.jsonl" });
    const { data } = await rejected(line, id);
    expect(data).toMatchObject({ code, param: "file", message: expect.stringMatching(message) as string });
    expect(await bus.last(datasetIngested, { tenant, id })).toBeUndefined();
    expect((await (await bus.bucket(buckets.cache)).entries(`ingest.${tenant}.*`)).length).toBe(0);
  });

  test("says so when the upload is not in the store, and leaves a failed message", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry });
    expect(service).toBeDefined();
    const id = ulid();
    const blob = { kind: "raw", digest: `sha256:${"0".repeat(64)}`, size: 3 } as const;
    await bus.publish(datasetReceived, { tenant, id }, { blob, filename: "gone.jsonl" });
    expect((await rejected(line, id)).data.code).toBe("OBJECT_MISSING");
    await expect.poll(async () => (await bus.deadLetters.list(tenant)).map((letter) => letter.code)).toEqual(["OBJECT_MISSING"]);
  });

  test("answers a message that breaks the contract with dataset.rejected", async ({ bus, objects, tenant, nc }) => {
    const line = { bus, objects, tenant };
    await using service = await createIngestService({ bus, objects, telemetry });
    expect(service).toBeDefined();
    const id = ulid();
    await nc.request(`loraline.${tenant}.dataset.${id}.received.v1`, JSON.stringify({ filename: "x" }));
    expect((await rejected(line, id)).data).toMatchObject({ code: "CONTRACT_VIOLATION", param: "blob" });
    // A message that cannot be answered must not block the next ones.
    await nc.request(`loraline.${tenant}.dataset.nobody.received.v1`, "{}");
    const next = await upload(line, rows(2));
    expect((await ingested(line, next)).data.records).toBe(2);
  });

  test("finishes what a killed process began, with the same bytes and one event", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    const settings = { chunkBytes: 4000 };
    const outcomes = new Set<string>();
    const deaths: number[] = [];
    const cache = await bus.bucket(buckets.cache);
    for (let survived = 0; survived < 8; survived++) {
      const id = await upload(line, rows(30) + "\n".repeat(survived));
      // After `survived` writes no further write arrives, as if the process had died there.
      let left = survived;
      const dying = <A extends unknown[], R>(write: (...args: A) => Promise<R>) => {
        return (...args: A): Promise<R> => (left-- > 0 ? write(...args) : Promise.reject(new Error("killed")));
      };
      const first = await createIngestService({
        bus: {
          ...bus,
          publish: dying<Parameters<Bus["publish"]>, Awaited<ReturnType<Bus["publish"]>>>(bus.publish),
          bucket: (async () => ({ ...cache, put: dying(cache.put) })) as unknown as Bus["bucket"],
        },
        objects: { ...objects, put: dying(objects.put) },
        telemetry,
        settings,
        // A busy machine would also tell how far it is, which is no work.
        tellEveryMs: Infinity,
      });
      await expect.poll(async () => left < 0 || (await bus.last(datasetIngested, { tenant, id })) !== undefined).toBe(true);
      if (left < 0) deaths.push(survived);
      await first[Symbol.asyncDispose]();

      await using second = await createIngestService({ bus, objects, telemetry, settings });
      expect(second).toBeDefined();
      const { data } = await ingested(line, id);
      expect(await bus.history([datasetIngested, datasetRejected], { tenant, id })).toHaveLength(1);
      const manifest = await getJson(objects, tenant, data.manifest, datasetManifest);
      outcomes.add(JSON.stringify({ chunks: manifest.chunks.map((chunk) => chunk.records), records: manifest.records }));
    }
    // Three chunks, report, manifest, cache entry, event: the process died before each of them, and the last try succeeded.
    expect(deaths).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(outcomes.size).toBe(1);
  });
});
