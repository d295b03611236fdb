/**
 * Measures what one tenant notices of another that asks for all it can: uploads, jobs, chats and lists at once. Real NATS, gateway, ingest
 * and tokenize, each a process of its own; an engine that answers after a fixed time. BENCH_SECONDS sets how long each part takes.
 */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, type EngineRecord, parseSubject } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import { createApiKey } from "../../../services/gateway/src/access/auth.ts";
import { root } from "../../line-under-test.ts";
import { node } from "../gateway.ts";
import type { ScaleRow } from "../scale.ts";
import { percentile } from "../table.ts";
import { benchTenant } from "./bench-tenant.ts";
import { report } from "./tables.ts";

const seconds = Number(process.env.BENCH_SECONDS ?? 30);
const bases = join(root, ".loraline/bases");
const base = "smollm2-135m-instruct";
const kinds = [
  "chat, first byte",
  "chat, whole",
  "upload answered",
  "upload → ingested",
  "job answered",
  "job → tokenized",
  "list of jobs",
] as const;
type Kind = (typeof kinds)[number];
type Times = Record<Kind, number[]>;

export async function scaleNeighbour(): Promise<ScaleRow[]> {
  await using owned = new AsyncDisposableStack();
  const nats = owned.use(await spawnNatsServer());
  const nc = await nats.connect();
  owned.defer(() => nc.close());
  await ensureStreams(nc);
  const log = createLog({ service: "bench", level: "error" });
  const bus = createBus({ nc, log, telemetry: owned.use(createTelemetry({ service: "bench" })), source: "bench" });
  const engine = owned.use(await node("tests/bench/null-engine.ts", {}, (line) => line));
  const about = JSON.parse(await readFile(join(bases, base, "base.json"), "utf8")) as EngineRecord["base"];
  const record: EngineRecord = {
    engine: "bench",
    base: about,
    maxLoraRank: 32,
    maxLoras: 8,
    maxCpuLoras: 400,
    maxModelLen: 2048,
    updatedAt: new Date().toISOString(),
  };
  await (await bus.bucket(buckets.engines)).put("bench", record);
  const replicas = await bus.bucket(buckets.replicas);
  const beat = () => replicas.put("bench.r0", { ...report(0, engine.said), engine: "bench", base, at: new Date().toISOString() });
  await beat();
  const beating = setInterval(() => void beat(), 3000);
  owned.defer(() => clearInterval(beating));
  const env = { NATS_URL: nats.url, HOST: "127.0.0.1", PORT: "0", METRICS_PORT: "0", LORALINE_BASES_DIR: bases };
  const gateway = owned.use(
    await node("services/gateway/src/main.ts", env, (line) =>
      line.includes("gateway is listening") ? (JSON.parse(line) as { url: string }).url : undefined,
    ),
  );
  const pids: Record<string, number | undefined> = {
    nats: nats.pid,
    engine: engine.process.pid,
    gateway: gateway.process.pid,
    bench: process.pid,
  };
  for (const service of ["ingest", "tokenize"]) {
    const { process: child } = owned.use(
      await node(`services/${service}/src/main.ts`, env, (line) => (/ready|started|serving/i.test(line) ? line : undefined)),
    );
    pids[service] = child.pid;
  }

  /** When each event of the quiet tenant was seen, by type and id. */
  const seen = new Map<string, number>();
  const events = nc.subscribe("loraline.quiet.>", {
    callback(_error, { subject }) {
      const event = parseSubject(subject);
      if (event !== undefined) seen.set(`${event.type} ${event.id}`, performance.now());
    },
  });
  owned.defer(() => events.unsubscribe());
  const happened = async (type: string, id: string): Promise<number> => {
    for (const until = performance.now() + 120_000; ;) {
      const at = seen.get(`${type} ${id}`);
      if (at !== undefined) return at;
      if (performance.now() > until) throw new Error(`no ${type} of ${id} in two minutes`);
      await sleep(2);
    }
  };

  const keyOf = (tenant: string) => createApiKey({ bus }, { tenant, name: "bench" });
  const quiet = benchTenant({ tenant: "quiet", url: gateway.said, key: await keyOf("quiet"), base });

  const measure = async (): Promise<Times> => {
    const times = Object.fromEntries(kinds.map((kind) => [kind, [] as number[]])) as Times;
    const until = performance.now() + seconds * 1000;
    const every = async (ms: number, work: () => Promise<void>): Promise<void> => {
      while (performance.now() < until) {
        const from = performance.now();
        await work();
        await sleep(Math.max(0, ms - (performance.now() - from)));
      }
    };
    await Promise.all([
      every(100, async () => {
        const { first, whole } = await quiet.chat();
        times["chat, first byte"].push(first);
        times["chat, whole"].push(whole);
      }),
      every(500, async () => {
        const from = performance.now();
        const file = await quiet.upload(20);
        times["upload answered"].push(performance.now() - from);
        times["upload → ingested"].push((await happened("dataset.ingested.v1", file.replace("file-", ""))) - from);
        const jobFrom = performance.now();
        const job = await quiet.job(file);
        times["job answered"].push(performance.now() - jobFrom);
        times["job → tokenized"].push((await happened("run.tokenized.v1", job.replace("ftjob-", ""))) - jobFrom);
      }),
      every(200, async () => {
        const from = performance.now();
        await (await quiet.ask("/v1/fine_tuning/jobs")).arrayBuffer();
        times["list of jobs"].push(performance.now() - from);
      }),
    ]);
    return times;
  };

  await quiet.chat();
  await happened("dataset.ingested.v1", (await quiet.upload(20)).replace("file-", ""));
  console.error("bench: neighbour: alone …");
  const aloneUse = await watchProcessors(pids);
  const alone = await measure();
  const usedAlone = await aloneUse();
  console.error("bench: neighbour: with a loud one …");
  let done = "nothing";
  const loudEnv = { GATEWAY: gateway.said, KEY: await keyOf("loud"), BASE: base };
  const loud = await node("tests/bench/scale/loud-tenant.ts", loudEnv, (line) => (done = line));
  await sleep(3000);
  const bothUse = await watchProcessors({ ...pids, "the loud one": loud.process.pid });
  const both = await measure();
  const used = await bothUse();
  console.error(`bench: neighbour: cores used + waited for: alone ${usedAlone}; beside the loud one ${used}`);
  await loud[Symbol.asyncDispose]();

  return kinds.map((kind) => {
    const ratio = Number(percentile(both[kind], 99)) / Number(percentile(alone[kind], 99));
    return {
      what: `neighbour: ${kind}, p99 beside a tenant at full load, over alone`,
      value: `${ratio.toFixed(1)} ×`,
      before: before[kind],
      limit: "2 ×",
      detail: `p50 · p99 alone ${percentile(alone[kind], 50)} · ${percentile(alone[kind], 99)} ms, beside it ${percentile(both[kind], 50)} · ${percentile(both[kind], 99)} ms (${both[kind].length} times); the loud one: ${done.replaceAll(/[{}"]/g, "").replaceAll(",", ", ")}; cores used + waited for: ${used}`,
    };
  });
}

/** At a load of 41 from other work, before consumers worked in turns; the loud one ran in the process of the quiet one. */
const before: Record<Kind, string> = {
  "chat, first byte": "9.1 ×",
  "chat, whole": "5.1 ×",
  "upload answered": "23 ×",
  "upload → ingested": "127 ×",
  "job answered": "11 ×",
  "job → tokenized": "7.4 ×, 35 s",
  "list of jobs": "9.2 ×",
};

/**
 * Watches how much of a core each process uses, and how long its threads wait for one although they could run (of their sum, in cores). What is
 * waited for there no order of work inside a process can shorten.
 */
async function watchProcessors(pids: Readonly<Record<string, number | undefined>>): Promise<() => Promise<string>> {
  const look = async (pid: number | undefined): Promise<[ran: number, waited: number]> => {
    let [ran, waited] = [0, 0];
    for (const task of await readdir(`/proc/${pid}/task`)) {
      const [one = 0, other = 0] = (await readFile(`/proc/${pid}/task/${task}/schedstat`, "utf8").catch(() => "")).split(" ").map(Number);
      ran += one / 1e9;
      waited += other / 1e9;
    }
    return [ran, waited];
  };
  const from = performance.now();
  const before = await Promise.all(Object.values(pids).map(look));
  return async () => {
    const seconds = (performance.now() - from) / 1000;
    const after = await Promise.all(Object.values(pids).map(look));
    return Object.keys(pids)
      .map((name, at) => {
        const [ran, waited] = [0, 1].map((which) => ((after[at]?.[which] ?? 0) - (before[at]?.[which] ?? 0)) / seconds);
        return `${name} ${ran?.toFixed(2)} + ${waited?.toFixed(2)}`;
      })
      .join(", ");
  };
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
