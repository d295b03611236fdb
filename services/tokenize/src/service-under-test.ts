/** What the tests of the service share: a line of NATS and objects, datasets as ingest leaves them, and what becomes of runs. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Bus, createBus, ensureStreams } from "@loraline/bus";
import {
  buckets,
  type DatasetManifest,
  datasetIngested,
  datasetReceived,
  type DatasetReport,
  type EngineRecord,
  type Rec,
  runRejected,
  runRequested,
  type RunSpecInput,
  runTokenized,
  type TokenManifest,
  tokenManifest,
} from "@loraline/contracts";
import { createJetStreamObjects, digestOf, getJson, getToFile, type Objects, putJson } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { baseName, test as base } from "@loraline/testkit";
import { tableFromIPC } from "apache-arrow";
import { ulid } from "ulid";
import { expect, vi } from "vitest";

export const root = join(import.meta.dirname, "../../..");
export const log = createLog({ service: "tokenize", level: "silent" });
export const telemetry = createTelemetry({ service: "tokenize" });

const engine: EngineRecord = {
  engine: "local",
  base: { name: baseName, revision: "r", digest: `sha256:${"0".repeat(64)}` },
  maxLoraRank: 32,
  maxLoras: 4,
  maxCpuLoras: 16,
  maxModelLen: 2048,
  updatedAt: "2026-11-24T00:00:00.000Z",
};

export const test = base
  .extend("bus", async ({ nc }) => {
    await ensureStreams(nc);
    const bus = createBus({ nc, log, telemetry, source: "test" });
    await (await bus.bucket(buckets.engines)).put(engine.engine, engine);
    return bus;
  })
  .extend("objects", async ({ nc, bus }) => {
    expect(bus).toBeDefined();
    return createJetStreamObjects(nc);
  })
  .extend("dir", async ({}, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "tokenize-test-"));
    onCleanup(() => rm(dir, { recursive: true }));
    return dir;
  });

export interface Line {
  bus: Bus;
  objects: Objects;
  tenant: string;
}

export const chatRecord = (line: number, question: string, answer: string): Rec => {
  const messages = [
    { role: "user" as const, content: question },
    { role: "assistant" as const, content: answer },
  ];
  return {
    v: "lrec/1",
    id: digestOf(JSON.stringify(messages)),
    kind: "chat",
    task: "instruct",
    messages,
    meta: { file: "d.jsonl", line, format: "instruction", seed: { instruction: question, input: "", output: answer } },
  };
};
export const someRecords = (n: number): Rec[] =>
  Array.from({ length: n }, (_, index) =>
    chatRecord(index + 1, `Question number ${index}: 你好?`, `Answer ${index} 🙂. `.repeat(1 + (index % 5))),
  );

/** As ingest leaves a dataset behind. */
export async function storeDataset({ objects, tenant }: Line, records: readonly Rec[], chunkSize = 20) {
  const reasons = { NOT_JSON: 3 };
  const report: DatasetReport = {
    rows: records.length + 3,
    records: records.length,
    rejections: 3,
    formats: {},
    kinds: {},
    reasons,
    exactDuplicates: 0,
    warnings: [],
    firstRejections: [],
    allRejections: null,
  };
  const chunks: DatasetManifest["chunks"] = [];
  for (let start = 0; start < records.length; start += chunkSize) {
    const part = records.slice(start, start + chunkSize);
    chunks.push({
      blob: await objects.put(tenant, "records", part.map((one) => `${JSON.stringify(one)}\n`).join("")),
      records: part.length,
    });
  }
  const manifest: DatasetManifest = {
    version: 1,
    source: await objects.put(tenant, "raw", "x"),
    filename: "d.jsonl",
    records: records.length,
    rejections: 3,
    formats: {},
    chunks,
    report: await putJson(objects, tenant, "report", report),
    code: "test",
  };
  return { ref: await putJson(objects, tenant, "dataset", manifest), manifest };
}

export async function receive({ bus, objects, tenant }: Line): Promise<string> {
  const id = ulid();
  await bus.publish(datasetReceived, { tenant, id }, { blob: await objects.put(tenant, "raw", "x"), filename: "d.jsonl" });
  return id;
}
export async function ingest(line: Line, id: string, records: readonly Rec[], chunkSize?: number): Promise<void> {
  const { ref, manifest } = await storeDataset(line, records, chunkSize);
  await line.bus.publish(
    datasetIngested,
    { tenant: line.tenant, id },
    { manifest: ref, report: manifest.report, records: records.length, rejections: 3, formats: {}, cacheHit: false },
  );
}
export async function dataset(line: Line, records: readonly Rec[], chunkSize?: number): Promise<string> {
  const id = await receive(line);
  await ingest(line, id, records, chunkSize);
  return id;
}

export const specOf = (datasetId: string, more: Partial<RunSpecInput> = {}): RunSpecInput => ({
  base: baseName,
  adapter: "wren",
  dataset: datasetId,
  ...more,
});
export async function request({ bus, tenant }: Line, spec: RunSpecInput): Promise<string> {
  const id = ulid();
  await bus.publish(runRequested, { tenant, id }, { spec });
  return id;
}
export async function outcome({ bus, tenant }: Line, id: string) {
  return vi.waitFor(
    async () => {
      const [tokenized, rejected] = await Promise.all([bus.last(runTokenized, { tenant, id }), bus.last(runRejected, { tenant, id })]);
      if (tokenized !== undefined) return { tokenized: tokenized.data };
      if (rejected !== undefined) return { rejected: rejected.data };
      throw new Error("not yet");
    },
    { timeout: 90_000, interval: 50 },
  );
}
export async function tokenized(line: Line, id: string) {
  const result = await outcome(line, id);
  expect(result).toHaveProperty("tokenized");
  const data = result.tokenized as NonNullable<typeof result.tokenized>;
  return { data, manifest: await getJson(line.objects, line.tenant, data.manifest, tokenManifest) };
}
export const rejected = async (line: Line, id: string) => {
  const result = await outcome(line, id);
  expect(result).toHaveProperty("rejected");
  return result.rejected;
};

/** Every row of the shards: its sequences' ids and labels, as numbers. */
export async function rowsOf({ objects, tenant }: Line, shards: TokenManifest["train"], dir: string) {
  const rows: { ids: number[]; labels: number[]; lengths: number[]; sides?: number[] }[] = [];
  for (const [index, shard] of shards.entries()) {
    const path = join(dir, `${ulid()}-${index}.arrow`);
    await getToFile(objects, tenant, shard.blob, path);
    const table = tableFromIPC(await readFile(path));
    const isSided = table.schema.fields.some(({ name }) => name === "sides");
    for (const row of table) {
      const list = (name: string): number[] => [...(row[name] as Iterable<number>)];
      rows.push({ ids: list("input_ids"), labels: list("labels"), lengths: list("seq_lengths"), ...(isSided && { sides: list("sides") }) });
    }
  }
  return rows;
}
