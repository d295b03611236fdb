/** Serve as tests use it: controller and agents on a real NATS, the stages before it played, engines simulated or real. */
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Bus, createBus, ensureStreams, type Received } from "@loraline/bus";
import {
  type AdapterState,
  type BaseRef,
  buckets,
  type EngineRecord,
  type EventDef,
  type Evaluation,
  type EventInput,
  type ProbeRecord,
  type ReplicaState,
  runRequested,
  type RunSpecInput,
  runTrained,
} from "@loraline/contracts";
import { createJetStreamObjects, type Objects, putJson } from "@loraline/objects";
import { createLog, createTelemetry, type Log, spawnGuarded, type Telemetry } from "@loraline/runtime";
import type { NatsConnection } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { createAgentService, type ServeAgent, type AgentServiceDeps } from "./agent/service.ts";
import { createServeService } from "./controller/service.ts";

export interface AdapterBytes {
  config: Buffer;
  weights: Buffer;
  /** What the trainer recorded; not necessarily of these weights. */
  probes: readonly ProbeRecord[];
}

export interface ServeUnderTest extends AsyncDisposable {
  bus: Bus;
  objects: Objects;
  tenant: string;
  engine: string;
  /** Plays everything up to `run.trained`; returns the run's id. */
  train(
    adapter: string,
    bytes: AdapterBytes,
    over?: { spec?: Partial<RunSpecInput>; evaluation?: Evaluation | null; traceparent?: string },
  ): Promise<string>;
  publishTrained(runId: string, data: EventInput<typeof runTrained>): Promise<void>;
  startController(bus?: Bus): Promise<AsyncDisposable>;
  startAgent(url: string, over?: Partial<AgentServiceDeps>): Promise<ServeAgent>;
  adapter(name: string): Promise<AdapterState | undefined>;
  replica(name?: string): Promise<ReplicaState | undefined>;
  /** Every stored event of these kinds about one entity, oldest first. */
  history(events: readonly EventDef[], id: string): Promise<Received[]>;
  log: Log;
  telemetry: Telemetry;
}

export async function serveUnderTest(given: {
  nc: NatsConnection;
  tenant: string;
  dir: string;
  base: BaseRef;
  spansDir?: string;
  maxLoraRank?: number;
  maxCpuLoras?: number;
}): Promise<ServeUnderTest> {
  const { nc, tenant, dir, base, spansDir, maxLoraRank = 32, maxCpuLoras = 16 } = given;
  const owned = new AsyncDisposableStack();
  const log = createLog({ service: "serve", level: process.env["LOG_LEVEL"] ?? "silent" });
  const telemetry = owned.use(createTelemetry({ service: "serve", spansDir }));
  await ensureStreams(nc);
  const bus = createBus({ nc, log, telemetry, source: "serve" });
  const objects = await createJetStreamObjects(nc);
  const engine = `engine-${tenant}`;
  const record: EngineRecord = {
    engine,
    base,
    maxLoraRank,
    maxLoras: 4,
    maxCpuLoras,
    maxModelLen: 2048,
    // Other tests on this server have engines for the same base.
    tenants: [tenant],
    updatedAt: new Date().toISOString(),
  };
  const replicas = await bus.bucket(buckets.replicas);
  const holdings = await bus.bucket(buckets.holdings);
  const adapters = await bus.bucket(buckets.adapters);
  return {
    bus,
    objects,
    tenant,
    engine,
    log,
    telemetry,
    async train(adapter, { config, weights, probes }, over = {}) {
      const runId = ulid();
      const at = { tenant, id: runId };
      const { traceparent } = over;
      await bus.publish(runRequested, at, { spec: { base: base.name, adapter, dataset: ulid(), ...over.spec } }, { traceparent });
      const files = [
        { path: "adapter_config.json", blob: await objects.put(tenant, "adapter-file", config) },
        { path: "adapter_model.safetensors", blob: await objects.put(tenant, "adapter-file", weights) },
      ];
      const { r: rank } = JSON.parse(config.toString()) as { r: number };
      const manifest = await putJson(objects, tenant, "adapter", {
        version: 1,
        base,
        rank,
        targetModules: ["q_proj"],
        parameters: 1,
        files,
      });
      const evaluation =
        over.evaluation === undefined ? { base_loss: 3, adapter_loss: 1, rows: 4, supervised_tokens: 40 } : over.evaluation;
      const evidence = await putJson(objects, tenant, "evidence", {
        version: 1,
        runId,
        adapter: manifest.digest,
        tokens: manifest,
        templateDigest: manifest.digest,
        evaluation,
        probes,
        lossHistory: [],
      });
      await bus.publish(
        runTrained,
        at,
        {
          attempt: 1,
          adapter: manifest,
          evidence,
          rank,
          targetModules: ["q_proj"],
          parameters: 1,
          steps: 1,
          trainLoss: 1,
          trainedTokens: 1,
          tokensPerSecond: 1,
          evaluation,
          lastStepAt: new Date().toISOString(),
        },
        { traceparent },
      );
      return runId;
    },
    async publishTrained(runId, data) {
      await bus.publish(runTrained, { tenant, id: runId }, data, { key: randomBytes(4).toString("hex") });
    },
    startController: (with_ = bus) =>
      createServeService({ bus: with_, objects, log, telemetry, engines: [record], resyncMs: 200, replicaAwayMs: 500 }),
    startAgent: (url, over = {}) =>
      createAgentService({
        bus,
        objects,
        log,
        telemetry,
        engine,
        base: base.name,
        replica: "a",
        engineUrl: url,
        publicUrl: url,
        adaptersDir: join(dir, over.replica ?? "a"),
        healthMs: 50,
        heartbeatMs: 300,
        drain: { graceMs: 300, unknownMs: 1500, pollMs: 100 },
        ...over,
      }),
    adapter: async (name) => (await adapters.get(`${tenant}.${name}`))?.value,
    async replica(name = "a") {
      const report = (await replicas.get(`${engine}.${name}`))?.value;
      if (report === undefined) return undefined;
      const found = await holdings.entries(`${engine}.${name}.>`);
      const current = found.filter(({ value }) => value.incarnation === report.incarnation && value.agent === report.agent);
      return { ...report, adapters: current.flatMap(({ value }) => value.adapters) };
    },
    history: (events, id) => bus.history(events, { tenant, id }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** What `startVllm` asks for. */
export const vllmKey = "between-agent-and-engine";

/** A real vLLM on the CPU, with the flags of the local line, and guarded as in a cluster. */
export async function startVllm({
  root,
  base,
  logFile,
}: {
  root: string;
  base: BaseRef;
  logFile: string;
}): Promise<{ url: string; restart(): Promise<void> } & AsyncDisposable> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const start = () =>
    spawnGuarded(
      join(root, ".venv/bin/python"),
      [
        join(root, "packages/local/engine.py"),
        `--model=${join(root, ".loraline/bases", base.name)}`,
        `--served-model-name=${base.name}`,
        "--host=127.0.0.1",
        `--port=${port}`,
        "--enable-lora",
        "--max-lora-rank=32",
        "--max-loras=4",
        "--max-cpu-loras=16",
        "--max-model-len=2048",
        "--max-num-seqs=16",
        "--dtype=bfloat16",
        "--enforce-eager",
        "--distributed-executor-backend=uni",
        "--middleware=loraline_guard.RequireKey",
        "--shutdown-timeout=30",
      ],
      {
        env: {
          PATH: process.env["PATH"],
          HOME: process.env["HOME"],
          OMP_NUM_THREADS: "1",
          VLLM_CPU_OMP_THREADS_BIND: "nobind",
          VLLM_CPU_KVCACHE_SPACE: "1",
          VLLM_ENABLE_V1_MULTIPROCESSING: "0",
          VLLM_ALLOW_RUNTIME_LORA_UPDATING: "True",
          VLLM_API_KEY: vllmKey,
          PYTHONPATH: join(root, "services/serve/src/setup"),
          TORCHDYNAMO_DISABLE: "1",
          VLLM_NO_USAGE_STATS: "1",
          HF_HUB_OFFLINE: "1",
        },
        stdout: logFile,
        stderr: logFile,
      },
    );
  let child = start();
  const healthy = async (): Promise<void> => {
    for (const started = child; ;) {
      const ended = await Promise.race([started.exited, sleep(250)]);
      if (ended !== undefined) throw new Error(`vLLM ended: ${(await readFile(logFile, "utf8")).slice(-2000)}`);
      if (
        await fetch(`${url}/health`).then(
          (response) => response.ok,
          () => false,
        )
      )
        return;
    }
  };
  await healthy();
  return {
    url,
    async restart() {
      child.kill("SIGKILL");
      await child.exited;
      child = start();
      await healthy();
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}
