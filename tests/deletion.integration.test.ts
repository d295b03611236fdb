/**
 * Deletion as users meet it: a gateway, the workers, a controller, a replica and the collector on a real NATS whose files are searched, byte for
 * byte, for what was deleted. The engine is simulated, and training is played.
 */
import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createBus } from "@loraline/bus";
import {
  type BlobRef,
  type BucketDef,
  buckets,
  datasetImportRequested,
  datasetRejected,
  everyKeyOf,
  runCheckpointed,
  runRejected,
  runRequested,
  runServed,
  runTokenized,
  runTrained,
  tokenManifest,
} from "@loraline/contracts";
import { createIngestService } from "@loraline/ingest";
import { readBaseRef } from "@loraline/models/base-ref";
import { getJson, type Objects, putJson } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { createCollector } from "@loraline/storage";
import {
  baseName,
  basesDir,
  createSimulatedEngine,
  simulatedAdapter,
  simulatedProbes,
  spawnNatsServer,
  test as it,
} from "@loraline/testkit";
import { jetstream } from "@nats-io/jetstream";
import { createTokenizeService } from "@loraline/tokenize";
import { toFile } from "openai";
import { ulid } from "ulid";
import { expect } from "vitest";
import { type GatewayUnderTest, startGateway } from "../services/gateway/src/gateway-under-test.ts";
import { type ServeUnderTest, serveUnderTest } from "../services/serve/src/serve-under-test.ts";

const until = { timeout: 120_000, interval: 100 };
/** Short, so that a test need not wait a minute for what was stored a moment ago. */
const collecting = { retention: { untold: 300 }, settleMs: 300, roundMs: 200, sweepMs: 500 };

interface Line {
  gateway: GatewayUnderTest;
  serve: ServeUnderTest;
  objects: Objects;
  tenant: string;
  /** Names of the files below the state directory that hold the text, after what is known of their kind. */
  search(text: string): Promise<string[]>;
  upload(text: string, filename?: string): Promise<string>;
  /** Tokenizes for real, and plays the rest. @returns the run's id. */
  train(adapter: string, dataset: string, seed: number): Promise<string>;
  /** Waits until the deletion is done. */
  gone(what: string, id: string): Promise<void>;
  startCollector(over?: Partial<Parameters<typeof createCollector>[0]>): Promise<AsyncDisposable>;
}

const test = it.extend("line", async ({ tenant }, { onCleanup }): Promise<Line> => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const dir = await mkdtemp(join(tmpdir(), "loraline-deletion-"));
  owned.defer(() => rm(dir, { recursive: true, force: true, maxRetries: 5 }));
  for (const name of ["spool", "traces"]) await mkdir(join(dir, name));
  const nats = owned.use(await spawnNatsServer({ storeDir: join(dir, "nats") }));
  const nc = await nats.connect();
  owned.defer(() => nc.close());
  const base = await readBaseRef(join(basesDir, baseName));
  const engine = owned.use(await createSimulatedEngine({ base: base.name }));
  const serve = owned.use(await serveUnderTest({ nc, tenant, dir, base, spansDir: join(dir, "traces") }));
  const { bus, objects } = serve;
  owned.use(await serve.startController());
  owned.use(await serve.startAgent(engine.url));
  const log = createLog({ service: "test", level: process.env["LOG_LEVEL"] ?? "silent" });
  const telemetry = owned.use(createTelemetry({ service: "test", spansDir: join(dir, "traces") }));
  const worker = createBus({ nc, log, telemetry, source: "test" });
  owned.use(await createIngestService({ bus: worker, objects, telemetry }));
  owned.use(await createTokenizeService({ bus: worker, objects, telemetry, basesDir }));
  const gateway = owned.use(await startGateway({ nc, tenant, spansDir: join(dir, "traces"), spoolDir: join(dir, "spool") }));
  const line: Line = {
    gateway,
    serve,
    objects,
    tenant,
    async search(text) {
      const files = (await readdir(dir, { recursive: true, withFileTypes: true })).filter((file) => file.isFile());
      const found = await Promise.all(
        files.map(async (file) => {
          const path = join(file.parentPath, file.name);
          // A file may go while it is looked for.
          const bytes = await readFile(path).catch(() => Buffer.alloc(0));
          return bytes.includes(text) ? path.slice(dir.length + 1) : undefined;
        }),
      );
      return found.filter((path) => path !== undefined);
    },
    async upload(text, filename = "rows.jsonl") {
      const file = await gateway.openai.files.create({ file: await toFile(Buffer.from(text), filename), purpose: "fine-tune" });
      await expect.poll(async () => (await gateway.openai.files.retrieve(file.id)).status, until).toBe("processed");
      return file.id.replace(/^file-/, "");
    },
    async train(adapter, dataset, seed) {
      const at = { tenant, id: ulid() };
      await bus.publish(runRequested, at, {
        spec: { base: base.name, adapter, dataset, min_records: 1, holdout: 0, metadata: { note: `META-${adapter}` } },
      });
      await expect.poll(() => bus.last(runTokenized, at), until).toBeDefined();
      const files = [{ path: "optimizer.pt", blob: await objects.put(tenant, "checkpoint-file", `optimizer ${seed}`) }];
      const checkpoint = await putJson(objects, tenant, "checkpoint", { version: 1, step: 1, files });
      await bus.publish(runCheckpointed, at, { attempt: 1, step: 1, checkpoint });
      const bytes = simulatedAdapter({ base: base.name, seed });
      const stored = [
        { path: "adapter_config.json", blob: await objects.put(tenant, "adapter-file", bytes.config) },
        { path: "adapter_model.safetensors", blob: await objects.put(tenant, "adapter-file", bytes.weights) },
      ];
      const { r: rank } = JSON.parse(bytes.config.toString()) as { r: number };
      const made = { version: 1, base, rank, targetModules: ["q_proj"], parameters: 1, files: stored };
      const manifest = await putJson(objects, tenant, "adapter", made);
      const { data } = (await bus.last(runTokenized, at)) ?? {};
      const proof = {
        version: 1,
        runId: at.id,
        adapter: manifest.digest,
        tokens: data?.manifest,
        templateDigest: (await tokensOf(data?.manifest)).templateDigest,
        evaluation: null,
        probes: await simulatedProbes(join(dir, "scratch"), { base: base.name, seed }),
        lossHistory: [],
      };
      await bus.publish(runTrained, at, {
        attempt: 1,
        adapter: manifest,
        evidence: await putJson(objects, tenant, "evidence", proof),
        rank,
        targetModules: ["q_proj"],
        parameters: 1,
        steps: 1,
        trainLoss: 1,
        trainedTokens: 1,
        tokensPerSecond: 1,
        evaluation: null,
        lastStepAt: new Date().toISOString(),
      });
      await expect.poll(() => bus.last(runServed, at), until).toBeDefined();
      return at.id;
    },
    async gone(what, id) {
      const key = `${tenant}.${what}.${id}`;
      const deletions = await bus.bucket(buckets.deletions);
      await expect.poll(async () => (await deletions.get(key))?.value, until).toMatchObject({ doneAt: expect.any(String) });
    },
    startCollector: (over = {}) =>
      createCollector({
        nc,
        bus,
        objects,
        log,
        inJetStream: true,
        ...collecting,
        removeTrace: (traceId) => rm(join(dir, "traces", `${traceId}.jsonl`), { force: true }),
        ...over,
      }),
  };
  const tokensOf = async (ref: BlobRef | undefined) => {
    if (ref === undefined) throw new Error("no tokens");
    return getJson(objects, tenant, ref, tokenManifest);
  };
  return line;
});

/** Chats in which each row has the word. */
const rowsWith = (word: string, count = 40): string =>
  Array.from({ length: count }, (_, n) => {
    const messages = [
      { role: "user", content: `What is secret number ${n}? ${word}` },
      { role: "assistant", content: `It is ${word}, and ${n * 7}.` },
    ];
    return `${JSON.stringify({ messages })}\n`;
  }).join("");

/** Kinds of what one dataset has, and one run that used it. */
const ofOneDataset = ["raw", "dataset", "records", "report", "tokens", "shard", "checkpoint", "checkpoint-file"];

const kinds = async (line: Line): Promise<string[]> =>
  (await Array.fromAsync(line.objects.stored(line.tenant))).map(({ kind }) => kind).toSorted();

test("a deleted dataset is nowhere: not in the store, not in any stream, nor in what was made of it", async ({ line }) => {
  await using _collector = await line.startCollector();
  const kept = await line.upload(rowsWith("KEPT-TEXT"));
  const id = await line.upload(`${rowsWith("ZEBRA-TEXT")}{"broken ZEBRA-TEXT\n`, "zebra-names.jsonl");
  await line.train("stripes", id, 1);
  await line.train("plain", kept, 2);
  expect((await line.search("ZEBRA-TEXT")).length).toBeGreaterThan(0);
  const answer = await line.gateway.openai.files.delete(`file-${id}`);
  expect(answer).toMatchObject({
    deleted: true,
    loraline: { stays: [{ what: `${line.tenant}/stripes@1`, why: expect.stringContaining("until the version is deleted") }, {}, {}] },
  });
  await line.gone("dataset", id);
  expect(await line.search("ZEBRA-TEXT")).toEqual([]);
  expect(await line.search("zebra-names")).toEqual([]);
  expect((await line.search("KEPT-TEXT")).length).toBeGreaterThan(0);
  // The other dataset with all of its own, and both versions.
  expect(await kinds(line)).toEqual(
    [...ofOneDataset, "adapter", "adapter", "adapter-file", "adapter-file", "adapter-file", "evidence", "evidence"].toSorted(),
  );
  expect((await line.serve.adapter("stripes"))?.alias).toBe(1);
  await expect(line.gateway.openai.files.retrieve(`file-${id}`)).rejects.toMatchObject({ status: 404 });
  expect((await line.gateway.openai.files.list()).data.map((file) => file.id)).toEqual([`file-${kept}`]);
});

test("a message that failed for good goes with what it was about", async ({ line }) => {
  await using _collector = await line.startCollector();
  const id = await line.upload(rowsWith("KEPT-TEXT"));
  const { nc, bus } = line.gateway;
  await jetstream(nc).publish(`loraline.${line.tenant}.dataset.${id}.import-requested.v1`, '{"source": "GNU-TEXT"}');
  await expect.poll(async () => (await bus.deadLetters.list(line.tenant)).length, until).toBeGreaterThan(0);
  expect(await line.search("GNU-TEXT")).not.toEqual([]);
  await line.gateway.openai.files.delete(`file-${id}`);
  await line.gone("dataset", id);
  expect(await line.search("GNU-TEXT")).toEqual([]);
  expect(await bus.deadLetters.list(line.tenant)).toEqual([]);
});

test("of an adapter that was never made, the runs that failed can be deleted, so that they take no room", async ({ line }) => {
  await using _collector = await line.startCollector();
  const { bus } = line.gateway;
  const at = { tenant: line.tenant, id: ulid() };
  await bus.publish(runRequested, at, { spec: { base: "none", adapter: "never-made", dataset: ulid(), metadata: { note: "NEVER-TEXT" } } });
  await bus.publish(runRejected, at, { code: "BASE_UNKNOWN", message: "NEVER-TEXT", param: null });
  const there = async () => (await line.gateway.fetch(`/v1/loraline/runs/${at.id}`)).status;
  await expect.poll(there).toBe(200);
  const before = await bus.eventBytes(line.tenant);
  expect((await line.gateway.fetch("/v1/loraline/adapters/never-made", { method: "DELETE" })).status).toBe(200);
  await line.gone("adapter", "never-made");
  expect(await there()).toBe(404);
  expect(await line.search("NEVER-TEXT")).toEqual([]);
  expect(await bus.eventBytes(line.tenant, { anew: true })).toBeLessThan(before);
});

test("an adapter goes with its versions, runs, usage and events, and only with them", async ({ line }) => {
  await using _collector = await line.startCollector();
  const dataset = await line.upload(rowsWith("KEPT-TEXT"));
  const runs = [await line.train("doomed-name", dataset, 1), await line.train("doomed-name", dataset, 2)];
  await line.train("spared-name", dataset, 3);
  const usage = await line.serve.bus.bucket(buckets.usage);
  const day = new Date().toISOString().slice(0, 10);
  const row = { model: "m", base: "b", adapter: "doomed-name", version: 1, requests: 1, failed: 0, promptTokens: 1, completionTokens: 1 };
  const counted = { tenant: line.tenant, day, at: new Date().toISOString(), rows: [{ ...row, estimated: 0 }] };
  for (const adapter of ["doomed-name", "spared-name"]) await usage.put(`${line.tenant}.${day}.${adapter}.gateway`, counted);

  const refused = await line.gateway.fetch("/v1/loraline/adapters/nobody", { method: "DELETE" });
  expect(refused.status).toBe(404);
  const answer = await line.gateway.fetch("/v1/loraline/adapters/doomed-name", { method: "DELETE" });
  expect([answer.status, await answer.json()]).toMatchObject([200, { id: "doomed-name", deleted: true, stays: [{ what: "audit log" }] }]);
  await line.gone("adapter", "doomed-name");

  expect(await line.serve.adapter("doomed-name")).toBeUndefined();
  expect((await line.serve.adapter("spared-name"))?.alias).toBe(1);
  expect((await line.serve.replica())?.adapters.map(({ adapter }) => adapter)).toEqual(["spared-name"]);
  expect((await usage.entries(`${line.tenant}.>`)).map(({ key }) => key.split(".")[2])).toEqual(["spared-name"]);
  expect(await kinds(line)).toEqual([...ofOneDataset, "adapter", "adapter-file", "adapter-file", "evidence"].toSorted());
  for (const run of runs) expect((await line.gateway.fetch(`/v1/loraline/runs/${run}`)).status).toBe(404);
  expect(await line.search("META-doomed-name")).toEqual([]);
  expect((await line.search("META-spared-name")).length).toBeGreaterThan(0);
  // A new adapter may have the name.
  await line.train("doomed-name", dataset, 4);
  expect((await line.serve.adapter("doomed-name"))?.versions.map(({ version }) => version)).toEqual([1]);
});

test("a deleted version's bytes go, but not those that another version has too", async ({ line }) => {
  await using _collector = await line.startCollector();
  const dataset = await line.upload(rowsWith("KEPT-TEXT"));
  await line.train("pirate", dataset, 1);
  await line.train("pirate", dataset, 2);
  await line.train("parrot", dataset, 1);
  const before = await kinds(line);
  expect(before.filter((kind) => kind === "adapter-file")).toHaveLength(3); // both configs are the same, and the weights of 1
  const remove = (version: number) => line.gateway.fetch(`/v1/models/${line.tenant}/pirate@${version}`, { method: "DELETE" });
  expect((await remove(1)).status).toBe(200);
  await line.gone("version", "pirate/1");
  const left = [...before];
  left.splice(left.indexOf("evidence"), 1);
  expect(await kinds(line)).toEqual(left);
  expect((await line.serve.adapter("pirate"))?.versions.map(({ erased }) => erased)).toEqual([true, undefined]);
});

test("a tenant goes with everything, its runs are cancelled, and its keys are revoked", async ({ line }) => {
  await using _collector = await line.startCollector();
  const dataset = await line.upload(rowsWith("ZEBRA-TEXT"), "zebra-names.jsonl");
  await line.train("stripes", dataset, 1);
  const { responses } = line.gateway.openai;
  const model = `${line.tenant}/stripes`;
  await expect.poll(async () => (await line.gateway.openai.models.list()).data.map(({ id }) => id), until).toContain(model);
  const said = await responses.create({ model, input: "OKAPI-TEXT" });
  await responses.create({ model, input: "QUAGGA-TEXT" });
  await responses.delete(said.id);
  expect(await line.search("OKAPI-TEXT")).toEqual([]);
  expect(await line.search("QUAGGA-TEXT")).not.toEqual([]);
  // What came later than datasets and adapters: a browser that is signed in, and a file that comes in parts.
  const { status } = await fetch(`${line.gateway.url}/v1/loraline/session`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ api_key: line.gateway.key }),
  });
  expect(status).toBe(200);
  const begun = { bytes: 9000, filename: "begun-names.jsonl", mime_type: "x", purpose: "fine-tune" as const };
  const upload = await line.gateway.openai.uploads.create(begun);
  await line.gateway.openai.uploads.parts.create(upload.id, { data: await toFile(Buffer.from("TAPIR-TEXT"), "p") });
  const ofTenant = async (name: "sessions" | "uploads" | "responses"): Promise<string[]> => {
    const def: BucketDef = buckets[name];
    return (await line.serve.bus.bucket(def)).keys(everyKeyOf(line.tenant));
  };
  expect((await ofTenant("sessions")).length).toBe(1);
  const foreign = await line.gateway.fetch("/v1/loraline/tenants/somebody-else", { method: "DELETE" });
  expect([foreign.status, await foreign.json()]).toMatchObject([400, { error: { code: "tenant_foreign" } }]);
  const answer = await line.gateway.fetch(`/v1/loraline/tenants/${line.tenant}`, { method: "DELETE" });
  expect([answer.status, await answer.json()]).toMatchObject([200, { id: line.tenant, deleted: true }]);
  await expect.poll(async () => (await line.gateway.fetch("/v1/models")).status, until).toBe(401);
  await line.gone("tenant", line.tenant);
  expect(await line.search("ZEBRA-TEXT")).toEqual([]);
  expect(await line.search("QUAGGA-TEXT")).toEqual([]);
  expect(await line.search("zebra-names")).toEqual([]);
  expect(await line.search("META-stripes")).toEqual([]);
  for (const text of ["TAPIR-TEXT", "begun-names"]) expect(await line.search(text), text).toEqual([]);
  for (const bucket of ["sessions", "uploads", "responses"] as const) expect(await ofTenant(bucket), bucket).toEqual([]);
  expect(await kinds(line)).toEqual([]);
  expect(await line.serve.adapter("stripes")).toBeUndefined();
});

test("parts of uploads that ended or expired are removed, and those of open ones stay", async ({ line }) => {
  const { openai, bus } = line.gateway;
  const begin = async (word: string) => {
    const rows = rowsWith(word);
    const upload = await openai.uploads.create({ bytes: rows.length, filename: `${word}.jsonl`, mime_type: "x", purpose: "fine-tune" });
    const halves = [rows.slice(0, 500), rows.slice(500)];
    const part_ids: string[] = [];
    for (const half of halves)
      part_ids.push((await openai.uploads.parts.create(upload.id, { data: await toFile(Buffer.from(half), "p") })).id);
    return { id: upload.id, part_ids };
  };
  const [open, cancelled, expired, whole] = [
    await begin("OPEN-TEXT"),
    await begin("GIVEN-UP"),
    await begin("TOO-LATE"),
    await begin("WHOLE-TEXT"),
  ];
  // Nothing but uploads is there to say that NATS was not lost.
  await using _collector = await line.startCollector({ retention: { untold: 100 }, roundMs: 50, sweepMs: 300 });
  await openai.uploads.cancel(cancelled.id);
  const key = `${line.tenant}.${expired.id.slice("upload_".length)}`;
  await (await bus.bucket(buckets.uploads)).change(key, (state) => state && { ...state, expiresAt: new Date(0).toISOString() });
  for (const word of ["GIVEN-UP", "TOO-LATE"]) await expect.poll(() => line.search(`It is ${word}`), until).toEqual([]);
  expect(await line.search("It is OPEN-TEXT")).not.toEqual([]);
  const { file } = await openai.uploads.complete(whole.id, { part_ids: whole.part_ids });
  const raw = async () => (await kinds(line)).filter((kind) => kind === "raw").length;
  // The file, and two parts of the open upload.
  await expect.poll(raw, until).toBe(3);
  expect(await (await openai.files.content(file?.id ?? "")).text()).toBe(rowsWith("WHOLE-TEXT"));
  await openai.uploads.complete(open.id, { part_ids: open.part_ids });
  await expect.poll(raw, until).toBe(2);
  await openai.files.delete(file?.id ?? "");
  await expect.poll(() => line.search("WHOLE-TEXT"), until).toEqual([]);
});

test("bytes that are uploaded again while they are erased survive, however often", async ({ line }) => {
  await using _collector = await line.startCollector({ retention: { untold: 100 }, roundMs: 20 });
  let id = await line.upload(rowsWith("AGAIN-TEXT"));
  for (let round = 0; round < 8; round++) {
    await new Promise((resolve) => setTimeout(resolve, 150));
    await line.gateway.openai.files.delete(`file-${id}`);
    await new Promise((resolve) => setTimeout(resolve, round * 15));
    id = await line.upload(rowsWith("AGAIN-TEXT"));
  }
  await new Promise((resolve) => setTimeout(resolve, 2000));
  expect(await (await line.gateway.openai.files.content(`file-${id}`)).text()).toBe(rowsWith("AGAIN-TEXT"));
  expect(await kinds(line)).toEqual(["dataset", "raw", "records", "report"]);
});

test("a collector that dies anywhere is followed by one that finishes", async ({ line }) => {
  const id = await line.upload(rowsWith("ZEBRA-TEXT"));
  await line.train("stripes", id, 1);
  await line.gateway.openai.files.delete(`file-${id}`);
  const { objects } = line;
  for (let allowed = 0; allowed < 6; allowed++) {
    let left = allowed;
    const dying: typeof objects = {
      ...objects,
      delete: (...args) => (left-- > 0 ? objects.delete(...args) : Promise.reject(new Error("dead"))),
    };
    // Without a pause for its lease: the next one takes the work over at once.
    await (await line.serve.bus.bucket(buckets.leases)).delete("collector");
    const collector = await line.startCollector({ objects: dying });
    await new Promise((resolve) => setTimeout(resolve, 700));
    await collector[Symbol.asyncDispose]();
  }
  await (await line.serve.bus.bucket(buckets.leases)).delete("collector");
  await using _collector = await line.startCollector();
  await line.gone("dataset", id);
  expect(await line.search("ZEBRA-TEXT")).toEqual([]);
});

test("what a store still has after NATS was lost is left alone", async ({ line }) => {
  const stranger = "lost-and-found";
  const blob = await line.objects.put(stranger, "raw", "the only copy");
  await using _collector = await line.startCollector();
  // Several sweeps, at each of which it is older than anything untold may be.
  const dataset = await line.upload(rowsWith("KEPT-TEXT"));
  await line.gateway.openai.files.delete(`file-${dataset}`);
  await line.gone("dataset", dataset);
  await new Promise((resolve) => setTimeout(resolve, 4 * collecting.sweepMs));
  expect(await line.objects.head(stranger, blob)).toBeDefined();
});

test("what nobody needs goes after a while: abandoned uploads, old checkpoints, tokens that were not used again", async ({ line }) => {
  const id = await line.upload(rowsWith("KEPT-TEXT"));
  await line.train("plain", id, 1);
  await line.objects.put(line.tenant, "raw", "an upload that nobody told of");
  const day = 24 * 60 * 60_000;
  {
    await using _collector = await line.startCollector();
    await expect.poll(() => kinds(line), until).toHaveLength(12);
  }
  await (await line.serve.bus.bucket(buckets.leases)).delete("collector");
  await using _later = await line.startCollector({ retention: { untold: 300, checkpoints: 0, tokens: day } });
  await expect.poll(() => kinds(line), until).not.toContain("checkpoint");
  expect(await kinds(line)).toContain("shard");
  await (await line.serve.bus.bucket(buckets.leases)).delete("collector");
  await _later[Symbol.asyncDispose]();
  await using _last = await line.startCollector({ retention: { untold: 300, checkpoints: 0, tokens: 0 } });
  await expect
    .poll(() => kinds(line), until)
    .toEqual(["adapter", "adapter-file", "adapter-file", "dataset", "evidence", "raw", "records", "report"]);
});

test("what a tenant has is counted as it comes and goes, and bounds what it may upload, import and train", async ({ line }) => {
  const storage = async () =>
    (await (await line.gateway.fetch("/v1/loraline/storage")).json()) as {
      bytes: number;
      quota: number;
      groups: { group: string; bytes: number }[];
    };
  expect(await storage()).toMatchObject({ bytes: 0, quota: 100 * 1024 ** 3 });
  const text = rowsWith("KEPT-TEXT", 400);
  const id = await line.upload(text);
  const actual = async () => (await Array.fromAsync(line.objects.stored(line.tenant))).reduce((sum, { size }) => sum + size, 0);
  const before = await storage();
  expect(before.bytes).toBe(await actual());
  expect(before.groups.find(({ group }) => group === "uploads")?.bytes).toBe(Buffer.byteLength(text));

  const quota = before.bytes + 20_000;
  const set = await line.gateway.fetch("/v1/loraline/limits", {
    method: "PUT",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ storage_bytes: quota }),
  });
  expect(set.status).toBe(200);
  await expect.poll(async () => (await storage()).quota, until).toBe(quota);
  await expect(line.upload(text)).rejects.toMatchObject({ status: 403, code: "QUOTA_STORAGE" });
  expect((await storage()).bytes).toBe(before.bytes);
  const tight = await line.gateway.fetch("/v1/loraline/limits", {
    method: "PUT",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ storage_bytes: before.bytes }),
  });
  expect(tight.status).toBe(200);
  await expect.poll(async () => (await storage()).quota, until).toBe(before.bytes);
  await expect(line.upload("{}")).rejects.toMatchObject({ status: 403, code: "QUOTA_STORAGE" });
  const { bus } = line.serve;
  const run = { tenant: line.tenant, id: ulid() };
  await bus.publish(runRequested, run, { spec: { base: baseName, adapter: "late", dataset: id, min_records: 1, holdout: 0 } });
  await expect.poll(async () => (await bus.last(runRejected, run))?.data.code, until).toBe("QUOTA_STORAGE");
  const wanted = { tenant: line.tenant, id: ulid() };
  await bus.publish(datasetImportRequested, wanted, { source: { url: "https://example.com/rows.jsonl" } });
  await expect.poll(async () => (await bus.last(datasetRejected, wanted))?.data.code, until).toBe("QUOTA_STORAGE");

  await line.gateway.openai.files.delete(`file-${id}`);
  await using _collector = await line.startCollector();
  await line.gone("dataset", id);
  await expect.poll(storage, until).toMatchObject({ bytes: await actual() });
  await line.upload('{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n');
});
