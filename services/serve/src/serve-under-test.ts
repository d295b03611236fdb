/** Serve as tests use it: controller and agents on a real NATS, the stages before it played, engines simulated or real. */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { type Bus, createBus, ensureStreams, type Received } from "@loraline/bus";
import {
  type AdapterState,
  type BaseRef,
  buckets,
  type EngineRecord,
  type Evidence,
  type EventDef,
  type Evaluation,
  type EventInput,
  foldRun,
  type ProbeRecord,
  type ReplicaState,
  runAdapterWritten,
  runCheckpointed,
  runRequested,
  runSpec,
  type RunSpecInput,
  runTrained,
} from "@loraline/contracts";
import { createJetStreamObjects, type Objects, putJson } from "@loraline/objects";
import { createLog, createTelemetry, type Log, type Telemetry } from "@loraline/runtime";
import type { NatsConnection } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { createAgentService, type ServeAgent, type AgentServiceDeps } from "./agent/service.ts";
import { createServeService, type ServeServiceDeps } from "./controller/service.ts";

export interface AdapterBytes {
  config: Buffer;
  weights: Buffer;
  /** What the trainer recorded; not necessarily of these weights. */
  probes: readonly ProbeRecord[];
  /** The same on quantised bases. */
  twins?: Evidence["twins"];
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
  /** Plays everything up to `run.adapter-written`; `finish` plays the rest, up to `run.trained`. `before`: what else is told of the run first. */
  write(
    adapter: string,
    bytes: AdapterBytes,
    over?: { before?: (runId: string) => Promise<unknown> },
  ): Promise<{ runId: string; finish(evaluation?: Evaluation): Promise<void> }>;
  /** A run that trains, with a checkpoint that the projector has seen; returns the run's id. */
  checkpoint(adapter: string, step: number, bytes: AdapterBytes): Promise<string>;
  publishTrained(runId: string, data: EventInput<typeof runTrained>): Promise<void>;
  startController(bus?: Bus, over?: Partial<ServeServiceDeps>): Promise<AsyncDisposable>;
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
  /** The base of what is trained, where the engine's is a quantised copy of it. */
  original?: BaseRef;
  record?: Partial<EngineRecord>;
  spansDir?: string;
  maxLoraRank?: number;
  maxCpuLoras?: number;
}): Promise<ServeUnderTest> {
  const { nc, tenant, dir, base, original = base, spansDir, maxLoraRank = 32, maxCpuLoras = 16 } = given;
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
    derivedFrom: original === base ? undefined : { name: original.name, digest: original.digest },
    ...given.record,
    updatedAt: new Date().toISOString(),
  };
  const replicas = await bus.bucket(buckets.replicas);
  const holdings = await bus.bucket(buckets.holdings);
  const adapters = await bus.bucket(buckets.adapters);
  const runs = await bus.bucket(buckets.runs);
  const store = async (runId: string, { config, weights, probes, twins }: AdapterBytes, evaluation: Evaluation | null) => {
    const files = [
      { path: "adapter_config.json", blob: await objects.put(tenant, "adapter-file", config) },
      { path: "adapter_model.safetensors", blob: await objects.put(tenant, "adapter-file", weights) },
    ];
    const { r: rank } = JSON.parse(config.toString()) as { r: number };
    const about = { version: 1, base: original, rank, targetModules: ["q_proj"], parameters: 1, files };
    const adapter = await putJson(objects, tenant, "adapter", about);
    const evidence = await putJson(objects, tenant, "evidence", {
      version: 1,
      runId,
      adapter: adapter.digest,
      tokens: adapter,
      templateDigest: adapter.digest,
      evaluation,
      base: original.digest,
      probes,
      twins,
      lossHistory: [],
    });
    return { adapter, evidence, rank };
  };
  const better: Evaluation = { base_loss: 3, adapter_loss: 1, rows: 4, supervised_tokens: 40 };
  const finish = async (runId: string, bytes: AdapterBytes, evaluation: Evaluation | null, traceparent?: string): Promise<void> => {
    const { adapter, evidence, rank } = await store(runId, bytes, evaluation);
    const measured = { steps: 1, trainLoss: 1, trainedTokens: 1, tokensPerSecond: 1, evaluation, lastStepAt: new Date().toISOString() };
    const made = { attempt: 1, adapter, evidence, rank, targetModules: ["q_proj"], parameters: 1 };
    await bus.publish(runTrained, { tenant, id: runId }, { ...made, ...measured }, { traceparent });
  };
  return {
    bus,
    objects,
    tenant,
    engine,
    log,
    telemetry,
    async train(adapter, bytes, over = {}) {
      const runId = ulid();
      const { traceparent } = over;
      const spec = { base: original.name, adapter, dataset: ulid(), ...over.spec };
      await bus.publish(runRequested, { tenant, id: runId }, { spec }, { traceparent });
      await finish(runId, bytes, over.evaluation === undefined ? better : over.evaluation, traceparent);
      return runId;
    },
    async write(adapter, bytes, { before } = {}) {
      const runId = ulid();
      const at = { tenant, id: runId };
      await bus.publish(runRequested, at, { spec: { base: original.name, adapter, dataset: ulid() } });
      await before?.(runId);
      const { adapter: manifest, evidence } = await store(runId, bytes, null);
      await bus.publish(runAdapterWritten, at, { attempt: 1, adapter: manifest, evidence });
      return { runId, finish: (evaluation = better) => finish(runId, bytes, evaluation) };
    },
    async checkpoint(adapter, step, bytes) {
      const runId = ulid();
      const at = { tenant, id: runId };
      const spec = runSpec.parse({ base: original.name, adapter, dataset: ulid() });
      await bus.publish(runRequested, at, { spec });
      const published = await store(runId, bytes, null);
      const checkpoint = { kind: "checkpoint", digest: published.adapter.digest, size: 1 } as const;
      // As the projector, which is no part of this, folds them.
      const told = { at, seq: 1, time: new Date().toISOString(), trace: null };
      const requested = foldRun(undefined, { ...told, type: runRequested.type, data: { spec } });
      const state = foldRun(requested, { ...told, seq: 2, type: runCheckpointed.type, data: { attempt: 1, step, checkpoint, published } });
      if (state === undefined) throw new Error("a run that was requested has a state");
      await runs.put(`${tenant}.${runId}`, state);
      return runId;
    },
    async publishTrained(runId, data) {
      await bus.publish(runTrained, { tenant, id: runId }, data, { key: randomBytes(4).toString("hex") });
    },
    startController: (with_ = bus, over = {}) =>
      createServeService({ bus: with_, objects, log, telemetry, engines: [record], resyncMs: 200, replicaAwayMs: 500, ...over }),
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
        drain: { graceMs: 300, unknownMs: 1500, spoiledMs: 1500, pollMs: 100 },
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
