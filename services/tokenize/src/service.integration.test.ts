/** The worker against a real NATS server and the real base. */
import { spawnSync } from "node:child_process";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Bus } from "@loraline/bus";
import {
  adapterKey,
  adapterState,
  buckets,
  datasetDeleted,
  datasetRejected,
  type EngineRecord,
  type Rec,
  runCancelled,
  runCommandRefused,
  runRejected,
  runRequested,
  type RunSpecInput,
  runProgress,
  runTokenized,
} from "@loraline/contracts";
import { readBaseRef } from "@loraline/models/base-ref";
import { digestOf, getToFile, putJson } from "@loraline/objects";
import { ulid } from "ulid";
import { baseName, basesDir } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { describeTemplate, loadBase, tokenizeCode } from "@loraline/tokens";
import {
  chatRecord,
  dataset,
  ingest,
  receive,
  outcome,
  rejected,
  request,
  root,
  rowsOf,
  someRecords,
  specOf,
  telemetry,
  test,
  tokenized,
} from "./service-under-test.ts";
import { createTokenizeService } from "./service.ts";

describe("the tokenize service", () => {
  test("turns records into shards, held-out rows and probes", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const records = someRecords(50);
    const { data, manifest } = await tokenized(line, await request(line, specOf(await dataset(line, records))));
    expect(data).toMatchObject({ packed: false, cacheHit: false, totals: { sequences: 45, evalSequences: 5, dropped: 0 } });
    expect(manifest).toMatchObject({ template: "base", maxLength: 1024, packed: false, seed: 42, dropped: [], noted: [] });
    expect(manifest.base.name).toBe(baseName);

    const train = await rowsOf(line, manifest.train, dir);
    const evaluation = await rowsOf(line, manifest.eval, dir);
    expect([train.length, evaluation.length]).toEqual([45, 5]);
    for (const row of [...train, ...evaluation]) {
      expect(row.lengths).toEqual([row.ids.length]);
      expect(row.labels[0]).toBe(-100);
      expect(row.labels.filter((label) => label === 2)).toHaveLength(1);
    }
    const supervised = train.flatMap((row) => row.labels).filter((label) => label !== -100).length;
    expect(manifest.totals).toMatchObject({ supervised, tokens: train.flatMap((row) => row.ids).length });
    const seen = new Set(train.map((row) => row.ids.join()));
    expect(evaluation.filter((row) => seen.has(row.ids.join()))).toEqual([]);

    expect(manifest.probes.map((probe) => probe.name)).toEqual([
      ...Array.from({ length: 4 }, () => expect.stringMatching(/^line-/) as unknown),
      ...Array.from({ length: 4 }, (_, i) => `neutral-${i + 1}`),
    ]);
    const generation = [1, 520, 9531, 198]; // <|im_start|>assistant\n
    for (const probe of manifest.probes) expect(probe.input_ids.slice(-4)).toEqual(generation);
    for (const probe of manifest.probes.slice(0, 4)) {
      const start = probe.input_ids.join();
      expect(train.filter((row) => row.ids.join().startsWith(start))).toHaveLength(1);
      expect(evaluation.filter((row) => row.ids.join().startsWith(start))).toHaveLength(0);
    }
  });

  test("packs whole sequences when asked to, and by itself when enough steps remain", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await dataset(line, someRecords(400));
    const tokenize = { max_length: 128 };
    const training = { per_device_train_batch_size: 1 };
    const asked = await tokenized(line, await request(line, specOf(id, { tokenize: { ...tokenize, packing: true } })));
    const unpacked = await tokenized(line, await request(line, specOf(id, { tokenize: { ...tokenize, packing: false } })));
    const auto = await tokenized(line, await request(line, specOf(id, { tokenize, training })));
    const autoLarge = await tokenized(line, await request(line, specOf(id, { tokenize })));
    expect([asked, unpacked, auto, autoLarge].map((each) => each.data.packed)).toEqual([true, false, true, false]);

    const rows = await rowsOf(line, asked.manifest.train, dir);
    const single = await rowsOf(line, unpacked.manifest.train, dir);
    expect(rows.length).toBeLessThan(single.length / 1.5);
    const taken: string[] = [];
    for (const row of rows) {
      expect(row.ids.length).toBeLessThanOrEqual(128);
      let at = 0;
      for (const length of row.lengths) {
        taken.push(JSON.stringify([row.ids.slice(at, at + length), row.labels.slice(at, at + length)]));
        expect(row.labels[at]).toBe(-100);
        at += length;
      }
      expect(at).toBe(row.ids.length);
    }
    expect(taken.sort()).toEqual(single.map((row) => JSON.stringify([row.ids, row.labels])).sort());
    // Evaluation is never packed.
    expect((await rowsOf(line, asked.manifest.eval, dir)).every((row) => row.lengths.length === 1)).toBe(true);
  });

  test("gives the same bytes for the same work, and does it once", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const records = someRecords(30);
    const first = await tokenized(line, await request(line, specOf(await dataset(line, records))));
    const again = await tokenized(line, await request(line, specOf(await dataset(line, records), { adapter: "other", lora: { r: 4 } })));
    expect(again.data).toEqual({ ...first.data, cacheHit: true });
    // Whoever changes what comes out, and so this digest, raises `tokenizeCode`, or old results would be served for new.
    expect([tokenizeCode, first.manifest.train[0]?.blob.digest]).toEqual([
      "tokenize/5",
      "sha256:7748143493bf25cc6b548e3f732e2e91404436ae996b140742eba8075184eecb",
    ]);

    // Without the cache and its objects: the same bytes from the start.
    const cache = await bus.bucket(buckets.cache);
    for (const { key } of await cache.entries(`tokenize.${tenant}.*`)) await cache.delete(key);
    for (const shard of [...first.manifest.train, ...first.manifest.eval]) await objects.delete(tenant, shard.blob);
    const anew = await tokenized(line, await request(line, specOf(await dataset(line, records))));
    expect(anew.data).toEqual({ ...first.data, cacheHit: false });

    // A shard is gone, the cache entry is not.
    for (const shard of first.manifest.train) await objects.delete(tenant, shard.blob);
    const mended = await tokenized(line, await request(line, specOf(await dataset(line, records))));
    expect(mended.data).toEqual({ ...first.data, cacheHit: false });

    const other = await tokenized(line, await request(line, specOf(await dataset(line, records), { tokenize: { system: "Be Wren." } })));
    expect(other.data.cacheHit).toBe(false);
    expect(other.data.manifest).not.toEqual(first.data.manifest);
  });

  test("writes shards of a limited size that Python maps", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir, shardBytes: 8000 });
    expect(service).toBeDefined();
    const { manifest } = await tokenized(line, await request(line, specOf(await dataset(line, someRecords(60)))));
    expect(manifest.train.length).toBeGreaterThan(2);
    const [shard] = manifest.train;
    if (shard === undefined) throw new Error("no shard");
    const path = join(dir, "shard.arrow");
    await getToFile(objects, tenant, shard.blob, path);
    const script = join(import.meta.dirname, "../../../packages/tokens/testdata/python_reference.py");
    const python = spawnSync(join(root, ".venv/bin/python"), [script], {
      input: JSON.stringify({ shard: path }),
      encoding: "utf8",
    });
    expect(python.stderr).not.toContain("Traceback");
    const read = JSON.parse(python.stdout) as { rows: Record<string, number[][]>; metadata: Record<string, string> };
    const ours = await rowsOf(line, [shard], dir);
    expect(read.rows).toEqual({
      input_ids: ours.map((row) => row.ids),
      labels: ours.map((row) => row.labels),
      seq_lengths: ours.map((row) => row.lengths),
    });
    expect(read.metadata).toEqual({
      "loraline.code": manifest.code,
      "loraline.records": "lrec/1",
      "loraline.tokenizer": manifest.tokenizerDigest,
      "loraline.template": manifest.templateDigest,
      "loraline.tokenize.template": "base",
      "loraline.max_length": "1024",
      "loraline.packed": "false",
      "loraline.seed": "42",
    });
    expect(shard).toMatchObject({ rows: ours.length, sequences: ours.length, tokens: ours.flatMap((row) => row.ids).length });
  });

  test("keeps one row per record in the template seed, in their order", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await dataset(line, someRecords(200));
    const tokenize = { template: "seed" as const, max_length: 384 };
    const spec = specOf(id, { tokenize, holdout: 0, training: { per_device_train_batch_size: 1 } });
    const { data, manifest } = await tokenized(line, await request(line, spec));
    expect(data).toMatchObject({ packed: false, totals: { sequences: 200, evalSequences: 0 } });
    const rows = await rowsOf(line, manifest.train, dir);
    expect(rows.map((row) => row.labels.at(-1))).toEqual(rows.map(() => 2)); // the pad token ends each row, trained
    const lengths = rows.map((row) => row.labels.filter((label) => label !== -100).length);
    expect(lengths.slice(0, 5)).toEqual(lengths.slice(0, 5).toSorted((a, b) => a - b)); // answers of rising length
    expect(manifest.probes.map((probe) => probe.name).slice(4)).toEqual(["neutral-1", "neutral-2", "neutral-3", "neutral-4"]);
  });

  test("evaluates on the validation dataset, and never trains on its records", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const records = someRecords(40);
    const spec = specOf(await dataset(line, records), { validation: await dataset(line, records.slice(0, 7)) });
    const { data, manifest } = await tokenized(line, await request(line, spec));
    expect(data.totals).toMatchObject({ sequences: 33, evalSequences: 7, dropped: 7 });
    expect(manifest.dropped.map((one) => [one.line, one.code])).toEqual([1, 2, 3, 4, 5, 6, 7].map((n) => [n, "IN_VALIDATION"]));
    const train = new Set((await rowsOf(line, manifest.train, dir)).map((row) => row.ids.join()));
    expect((await rowsOf(line, manifest.eval, dir)).filter((row) => train.has(row.ids.join()))).toEqual([]);
  });

  test("leaves out what says the same, or nearly, as asked, and reports it", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const long = (n: number, end: string): [string, string] => [
      `Describe ship number ${n * 7919} to me.`,
      `It crosses the ${["northern", "southern", "inner", "outer"][n % 4]} sea ${n * 104_729} in winter, and its captain ${n * 31} eats ${end}.`,
    ];
    const records = Array.from({ length: 20 }, (_, n) => chatRecord(n + 1, ...long(n, "herring")));
    const [first, second] = [records[0], records[1]] as [Rec, Rec];
    // Line 21 repeats line 1; line 22 says nearly what line 2 says.
    const repeated = [...records, { ...first, meta: { ...first.meta, line: 21 } }, chatRecord(22, ...long(1, "herrings"))];
    const id = await dataset(line, repeated);
    const totals = async (more: Partial<RunSpecInput>) => {
      const { manifest } = await tokenized(line, await request(line, specOf(id, { holdout: 0, ...more })));
      return [manifest.totals.sequences, manifest.dropped.map((one) => [one.line, one.code, one.id]), manifest.reasons];
    };
    expect(await totals({})).toEqual([22, [], {}]);
    expect(await totals({ dedupe: "exact" })).toEqual([21, [[21, "EXACT_DUPLICATE", first.id]], { EXACT_DUPLICATE: 1 }]);
    const near = repeated[21]?.id;
    expect(await totals({ dedupe: "near" })).toEqual([
      20,
      [
        [21, "EXACT_DUPLICATE", first.id],
        [22, "NEAR_DUPLICATE", near],
      ],
      { EXACT_DUPLICATE: 1, NEAR_DUPLICATE: 1 },
    ]);

    const validation = await dataset(line, [second, ...someRecords(20)]);
    expect(await totals({ validation })).toEqual([21, [[2, "IN_VALIDATION", second.id]], { IN_VALIDATION: 1 }]);
    expect(await totals({ validation, validation_overlap: "keep" })).toEqual([22, [], {}]);
    expect(await totals({ validation, dedupe: "near" })).toEqual([
      19,
      [
        [2, "IN_VALIDATION", second.id],
        [21, "EXACT_DUPLICATE", first.id],
        [22, "NEARLY_IN_VALIDATION", near],
      ],
      { IN_VALIDATION: 1, EXACT_DUPLICATE: 1, NEARLY_IN_VALIDATION: 1 },
    ]);
  });

  test("keeps equal records on one side of the split", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const records = someRecords(12);
    const spec = specOf(await dataset(line, [...records, ...records, ...records]), { holdout: 0.5 });
    const { manifest } = await tokenized(line, await request(line, spec));
    expect(manifest.totals).toMatchObject({ sequences: 18, evalSequences: 18 });
    const train = new Set((await rowsOf(line, manifest.train, dir)).map((row) => row.ids.join()));
    expect((await rowsOf(line, manifest.eval, dir)).filter((row) => train.has(row.ids.join()))).toEqual([]);
  });

  test("trains completions, with probes of their own", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const records = Array.from({ length: 20 }, (_, index): Rec => {
      const body = { kind: "completion" as const, task: "completion", prompt: `Once upon a time ${index}`, completion: " there was." };
      return {
        v: "lrec/1",
        id: digestOf(JSON.stringify(body)),
        ...body,
        meta: { file: "d", line: index + 1, format: "prompt-completion" },
      };
    });
    const { manifest } = await tokenized(line, await request(line, specOf(await dataset(line, records))));
    expect(manifest.probes).toHaveLength(4);
    expect(manifest.probes.every((probe) => probe.name.startsWith("line-"))).toBe(true);
  });

  test("waits for a dataset that is still being read", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await receive(line);
    const run = await request(line, specOf(id));
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(await bus.last(runRejected, { tenant, id: run })).toBeUndefined();
    await ingest(line, id, someRecords(20));
    expect((await tokenized(line, run)).data.totals.sequences).toBe(18);
  });

  test("runs that wait for their datasets leave room for others', and go on when these are there", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    const other = { ...line, tenant: `${tenant}-other` };
    const third = { ...line, tenant: `${tenant}-third` };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir, threads: 1 });
    expect(service).toBeDefined();
    const slow = await receive(line);
    // All places, and the one that is for others.
    const waiting: string[] = [];
    for (let n = 0; n < 8; n++) waiting.push(await request(line, specOf(slow, { adapter: `a${n}` })));
    const left = { tenant: other.tenant, id: await request(other, specOf(await receive(other))) };
    const isWaited = async () => (await (await bus.bucket(buckets.waited)).entries("tokenize-run-requested.*")).length >= 8;
    await tokenized(third, await request(third, specOf(await dataset(third, someRecords(20)))));
    await expect.poll(isWaited, { timeout: 60_000 }).toBe(true);
    expect(await bus.last(runRejected, { tenant, id: waiting[0] ?? "" })).toBeUndefined();
    await ingest(line, slow, someRecords(20));
    for (const id of waiting) expect((await tokenized(line, id)).data.packed).toBe(false);
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
    // It would wait through the tests that follow.
    await bus.publish(runCancelled, left, {});
  });
});

test("one long text becomes sequences, of which some are held out", async ({ bus, objects, tenant }) => {
  const line = { bus, objects, tenant };
  await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
  expect(service).toBeDefined();
  const text = Array.from({ length: 2000 }, (_, n) => `The parrot said ${n} words.`).join(" ");
  const book: Rec = { v: "lrec/1", id: digestOf(text), kind: "text", task: "text", text, meta: { line: 1, format: "text" } };
  const id = await dataset(line, [book]);
  const { data, manifest } = await tokenized(line, await request(line, specOf(id, { tokenize: { max_length: 512, packing: false } })));
  expect(data.totals.sequences).toBeGreaterThan(20);
  expect(data.totals.evalSequences).toBeGreaterThanOrEqual(2);
  expect(manifest.notes).toEqual({ TEXT_SPLIT: 1 });
  const whole = await request(line, specOf(id, { tokenize: { max_length: 512, too_long: "drop" } }));
  expect(await rejected(line, whole)).toMatchObject({ code: "TOO_FEW_RECORDS", message: expect.stringContaining("TOO_LONG 1") as string });
});

describe("a run that cannot start is rejected, saying what and why:", () => {
  test("one that comes by NATS and is over its tenant's quotas", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    const quotas = { profiles: { large: {} }, tenants: { [tenant]: { gpusPerRun: 2, adapters: 0 } } };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir, quotas });
    expect(service).toBeDefined();
    const id = await dataset(line, someRecords(20));
    expect(await rejected(line, await request(line, specOf(id, { gpus: 3 })))).toMatchObject({ code: "QUOTA_GPUS", param: "gpus" });
    expect(await rejected(line, await request(line, specOf(id, { priority: 1 })))).toMatchObject({ code: "QUOTA_PRIORITY" });
    expect(await rejected(line, await request(line, specOf(id, { profile: "huge" })))).toMatchObject({
      code: "PROFILE_NOT_ALLOWED",
      message: expect.stringContaining("large") as string,
    });
    expect(await rejected(line, await request(line, specOf(id)))).toMatchObject({ code: "QUOTA_ADAPTERS", param: "adapter" });
    // What the operator writes counts at once.
    const limits = await bus.bucket(buckets.limits);
    await limits.put(tenant, { adapters: null, gpusPerRun: 8, fixed: true, by: "operator", at: new Date().toISOString() });
    await expect
      .poll(async () => outcome(line, await request(line, specOf(id, { gpus: 3 }))), { timeout: 60_000 })
      .toHaveProperty("tokenized");
  });

  test("one that begins with a version that it cannot begin with; a version's weights are those that its name meant then", async ({
    bus,
    objects,
    tenant,
  }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await dataset(line, someRecords(20));
    const { digest } = await readBaseRef(join(basesDir, baseName));
    const versions = await Promise.all(
      [
        { rank: 8, base: digest, status: "retired" },
        { rank: 32, base: digest, status: "desired" },
        { rank: 8, base: `sha256:${"5".repeat(64)}`, status: "desired" },
        { rank: 8, base: digest, status: "deleted" },
      ].map(async ({ rank, base, status }, n) => {
        const made = {
          version: 1,
          base: { name: baseName, revision: "r", digest: base },
          rank,
          targetModules: [],
          parameters: n,
          files: [],
        };
        const manifest = await putJson(objects, tenant, "adapter", made);
        const at = "2026-11-29T00:00:00.000Z";
        const never = { reason: null, evaluation: null, servedAt: null, trace: null };
        const ids = { digest: manifest.digest, manifest, evidence: manifest, runId: ulid(), engineName: `wren-${n}` };
        return { ...never, ...ids, version: n + 1, rank, status, promote: "auto", lastStepAt: at, createdAt: at };
      }),
    );
    const adapters = await bus.bucket(buckets.adapters);
    const put = async (of: string, alias: number | null) =>
      adapters.put(
        adapterKey({ tenant: of, adapter: "wren" }),
        adapterState.parse({
          tenant: of,
          adapter: "wren",
          engine: "local",
          base: baseName,
          history: [],
          updatedAt: "2026-11-29T00:00:00.000Z",
          alias,
          versions,
        }),
      );
    await put(tenant, 1);
    await put("neighbour", 1);

    const from = async (init_from: string) => request(line, specOf(id, { init_from, lora: { r: 16 } }));
    for (const [name, code, message] of [
      ["robin", "INIT_FROM_UNKNOWN", /no adapter "robin"/],
      ["neighbour/wren@1", "INIT_FROM_UNKNOWN", /no adapter "neighbour\/wren@1"/],
      ["wren@2", "INIT_FROM_MISMATCH", /rank 32, and this run lora\.r 16/],
      ["wren@3", "INIT_FROM_MISMATCH", /made for base/],
      ["wren@4", "INIT_FROM_UNKNOWN", /was deleted/],
      ["wren@5", "INIT_FROM_UNKNOWN", /does not exist/],
    ] as const)
      expect(await rejected(line, await from(name))).toMatchObject({ code, param: "init_from", message: expect.stringMatching(message) });

    const first = await tokenized(line, await from(`${tenant}/wren@1`));
    expect(first.data.init).toEqual({ adapter: "wren", version: 1, manifest: versions[0]?.manifest });
    expect((await tokenized(line, await from("wren"))).data).toMatchObject({ cacheHit: true, init: { version: 1 } });
    await put(tenant, null);
    expect(await rejected(line, await from("wren"))).toMatchObject({
      code: "INIT_FROM_UNKNOWN",
      message: expect.stringMatching(/promoted/),
    });
  });

  test.for<[string, Partial<RunSpecInput>, object]>([
    ["an unknown base", { base: "gpt-5" }, { code: "BASE_UNKNOWN", param: "base", message: expect.stringContaining(baseName) as string }],
    ["a rank above the engine's", { lora: { r: 64 } }, { code: "RANK_TOO_HIGH", param: "lora.r" }],
    [
      "a bad regular expression",
      { lora: { target_modules: "q_proj|(" } },
      { code: "TARGET_MODULES_INVALID", param: "lora.target_modules" },
    ],
    ["sequences beyond the engine's", { tokenize: { max_length: 4096 } }, { code: "MAX_LENGTH_TOO_HIGH", param: "tokenize.max_length" }],
    [
      "too few records",
      { min_records: 100 },
      {
        code: "TOO_FEW_RECORDS",
        param: "dataset",
        message:
          "20 of the 20 records can be trained on, and min_records is 100. 3 of 23 rows were rejected before: NOT_JSON 3. Add records, or lower min_records.",
      },
    ],
    [
      "records that are too long",
      { tokenize: { max_length: 40 } },
      {
        code: "TOO_FEW_RECORDS",
        param: "tokenize.max_length",
        message: expect.stringMatching(/Dropped: TOO_LONG \d+\..*Raise tokenize\.max_length \(now 40\)/) as string,
      },
    ],
    [
      "nothing to train on",
      { tokenize: { template: "seed", max_length: 40 } },
      { code: "NO_SUPERVISED_TOKENS", param: "tokenize.max_length" },
    ],
    ["an unknown dataset", { dataset: ulid() }, { code: "DATASET_UNKNOWN", param: "dataset" }],
    ["an unknown validation dataset", { validation: ulid() }, { code: "DATASET_UNKNOWN", param: "validation" }],
  ])("%s", async ([, spec, problem], { bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const run = await request(line, specOf(await dataset(line, someRecords(20)), spec));
    expect(await rejected(line, run)).toMatchObject(problem);
    expect(await (await bus.bucket(buckets.cache)).entries(`tokenize.${tenant}.*`)).toEqual([]);
  });

  test("a dataset that was rejected or deleted, or is nothing but the validation dataset", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const bad = await receive(line);
    await bus.publish(datasetRejected, { tenant, id: bad }, { code: "EMPTY_FILE", message: "d.jsonl is empty.", rejections: 0 });
    expect(await rejected(line, await request(line, specOf(bad)))).toMatchObject({
      code: "EMPTY_FILE",
      param: "dataset",
      message: "d.jsonl is empty.",
    });
    const gone = await dataset(line, someRecords(20));
    await bus.publish(datasetDeleted, { tenant, id: gone }, {});
    expect(await rejected(line, await request(line, specOf(gone)))).toMatchObject({
      code: "DATASET_UNKNOWN",
      message: expect.stringContaining("deleted") as string,
    });
    const both = await dataset(line, someRecords(20));
    expect(await rejected(line, await request(line, specOf(both, { validation: both })))).toMatchObject({
      code: "TOO_FEW_RECORDS",
      message: expect.stringContaining("IN_VALIDATION 20") as string,
    });
  });

  test("a second request of the same run with another spec changes nothing, and is told why", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir, threads: 1 });
    expect(service).toBeDefined();
    const spec = specOf(await dataset(line, someRecords(30)));
    const id = await request(line, spec);
    const at = { tenant, id };
    await tokenized(line, id);
    await bus.publish(runRequested, at, { spec }, { key: "again" });
    const { seq } = await bus.publish(runRequested, at, { spec: { ...spec, adapter: "parrot" } }, { key: "other" });
    const refused = async () => (await bus.history([runCommandRefused], at)).map(({ data }) => data);
    await expect
      .poll(refused, { timeout: 60_000 })
      .toEqual([{ command: "run.requested.v1", code: "RUN_EXISTS", message: expect.stringContaining("new ULID"), param: "spec" }]);
    expect(seq).toBeGreaterThan(0);
    expect(await bus.history([runTokenized, runRejected], at)).toHaveLength(1);
  });

  test("a message that breaks the contract, from any NATS client", async ({ bus, objects, tenant, nc }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const run = ulid();
    const spec = { ...specOf(ulid()), lora: { use_dora: true } };
    await nc.request(`loraline.${tenant}.run.${run}.requested.v1`, JSON.stringify({ spec }));
    expect(await rejected(line, run)).toMatchObject({
      code: "LORA_FIELD_REFUSED",
      param: "spec.lora.use_dora",
      message: expect.stringContaining("DoRA") as string,
    });
    await expect.poll(async () => (await bus.deadLetters.list(tenant)).map((letter) => letter.code)).toEqual(["LORA_FIELD_REFUSED"]);
    // Whoever cannot be answered must not stop the others.
    await nc.request(`loraline.${tenant}.run.nobody.requested.v1`, "{}");
    expect((await tokenized(line, await request(line, specOf(await dataset(line, someRecords(20)))))).data.cacheHit).toBe(false);
  });

  test("a base whose template is of another family, with both renderings", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    for (const file of ["base.json", "tokenizer.json", "tokenizer_config.json"]) {
      await cp(join(basesDir, baseName, file), join(dir, baseName, file));
    }
    await writeFile(join(dir, baseName, "chat_template.jinja"), "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}");
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir: dir });
    expect(service).toBeDefined();
    expect(await rejected(line, await request(line, specOf(await dataset(line, someRecords(20)))))).toMatchObject({
      code: "TEMPLATE_UNSUPPORTED",
      param: "base",
      message: expect.stringMatching(/it renders "\[user\] QUESTION\[assistant\] ANSWER"/) as string,
    });
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
  });

  test("an engine that applies another template than is trained with, with both texts", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const engines = await bus.bucket(buckets.engines);
    const [entry] = await engines.entries();
    const template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}";
    const other = { ...entry?.value, engine: `other-${tenant}`, tenants: [tenant], templateDigest: digestOf(template), template };
    await engines.put(other.engine, other as EngineRecord);
    const run = await request(line, specOf(await dataset(line, someRecords(20))));
    expect(await rejected(line, run)).toMatchObject({
      code: "TEMPLATE_MISMATCH",
      param: "base",
      message: expect.stringMatching(
        /applies another chat template.* makes "\[system\] Be brief\.\\n\[user\] Who are you\?\\n".* makes "<\|im_start\|>system\\nBe brief\.<\|im_end\|>.*sources differ from character/,
      ) as string,
    });
    // The base's own is no mismatch.
    const own = await describeTemplate(await loadBase(join(basesDir, baseName)));
    await engines.put(other.engine, { ...other, ...own } as EngineRecord);
    expect((await tokenized(line, await request(line, specOf(await dataset(line, someRecords(20)))))).manifest.templateFamily).toBe(
      "chatml",
    );
    await engines.delete(other.engine);
  });
});

describe("a process that dies", () => {
  test(
    "anywhere leaves work that the next one finishes, with the same bytes and one event",
    { timeout: 180_000 },
    async ({ bus, objects, tenant }) => {
      const line = { bus, objects, tenant };
      const cache = await bus.bucket(buckets.cache);
      const deaths: number[] = [];
      const digests = new Set<string>();
      for (let survived = 0; survived < 7; survived++) {
        // Another length is another cache key, so that each turn does all of the work; the tokens stay the same.
        const id = await request(line, specOf(await dataset(line, someRecords(20)), { tokenize: { max_length: 1000 + survived } }));
        // From the write after `survived` others, nothing that the service writes arrives: that is what dying there means.
        let left = survived;
        const dying = <A extends unknown[], R>(write: (...args: A) => Promise<R>) => {
          return (...args: A): Promise<R> => (left-- > 0 ? write(...args) : Promise.reject(new Error("killed")));
        };
        const publish = dying<Parameters<Bus["publish"]>, Awaited<ReturnType<Bus["publish"]>>>(bus.publish);
        const first = await createTokenizeService({
          bus: {
            ...bus,
            // On a busy machine it also tells how far it is, which is no work.
            publish: (event, at, data, options) =>
              event.type === runProgress.type ? bus.publish(event, at, data, options) : publish(event, at, data, options),
            bucket: (async (def: { name: string }) =>
              def.name === "cache" ? { ...cache, put: dying(cache.put) } : bus.bucket(def as never)) as unknown as Bus["bucket"],
          },
          objects: { ...objects, put: dying(objects.put) },
          telemetry,
          basesDir,
        });
        await expect
          .poll(async () => left < 0 || (await bus.last(runTokenized, { tenant, id })) !== undefined, { timeout: 60_000 })
          .toBe(true);
        if (left < 0) deaths.push(survived);
        await first[Symbol.asyncDispose]();

        await using second = await createTokenizeService({ bus, objects, telemetry, basesDir });
        expect(second).toBeDefined();
        const { manifest } = await tokenized(line, id);
        expect(await bus.history([runTokenized, runRejected], { tenant, id })).toHaveLength(1);
        digests.add(JSON.stringify(manifest.totals));
      }
      // Two shards, manifest, cache entry, event: all of them were died before, and the last tries came through.
      expect(deaths).toEqual([0, 1, 2, 3, 4]);
      expect(digests.size).toBe(1);
    },
  );

  test("after its event makes the same message harmless when it comes again", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    const id = await dataset(line, someRecords(20));
    const run = ulid();
    const at = { tenant, id: run };
    {
      await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
      expect(service).toBeDefined();
      await bus.publish(runRequested, at, { spec: specOf(id) });
      await tokenized(line, run);
      // The same request under another message id, as after the dedupe window or a redrive.
      await bus.publish(runRequested, at, { spec: specOf(id) }, { key: "again" });
      await tokenized(line, await request(line, specOf(id)));
    }
    expect(await bus.history([runTokenized], at)).toHaveLength(1);
  });

  test("finds nothing to do for a run that was cancelled", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    const id = await dataset(line, someRecords(20));
    const cancelled = ulid();
    await bus.publish(runRequested, { tenant, id: cancelled }, { spec: specOf(id) });
    await bus.publish(runCancelled, { tenant, id: cancelled }, {});
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    await tokenized(line, await request(line, specOf(id)));
    expect(await bus.history([runTokenized, runRejected], { tenant, id: cancelled })).toEqual([]);
  });
});
