/** For tests: a gateway and projector over a real bus, the other services played by publishing their events, and an engine. */
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Writable } from "node:stream";
import { type Bus, createBus, ensureStreams } from "@loraline/bus";
import {
  type AdapterState,
  type AdapterVersion,
  type BlobRef,
  buckets,
  type Digest,
  type EngineRecord,
  events,
  type ReplicaAdapter,
  type ReplicaState,
} from "@loraline/contracts";
import { createJetStreamObjects, type Objects } from "@loraline/objects";
import { createLog, createTelemetry, readSpans, serveMetrics, type StoredSpan } from "@loraline/runtime";
import OpenAI from "openai";
import { ulid } from "ulid";
import { createApiKey } from "./access/auth.ts";
import { createProjector } from "./projector.ts";
import { createGatewayService, type Gateway, type GatewayServiceOptions } from "./service.ts";

type Connection = Parameters<typeof createBus>[0]["nc"];

export const base = "smollm2-135m-instruct";
export const digestOf = (letter: string): Digest => `sha256:${letter.repeat(64)}`;
export const refOf = (kind: BlobRef["kind"], letter = "a"): BlobRef => ({ kind, digest: digestOf(letter), size: 1 });

export const quietLog = createLog({ service: "test", level: "silent" });

export interface GatewayUnderTest extends AsyncDisposable {
  url: string;
  metricsUrl: string;
  routes: Gateway["routes"];
  tenant: string;
  key: string;
  nc: Connection;
  bus: Bus;
  objects: Objects;
  openai: OpenAI;
  /** Lines that the gateway logged. */
  logged: Record<string, unknown>[];
  /** Another tenant's view of the same gateway. */
  keyFor(tenant: string): Promise<string>;
  clientFor(key: string): OpenAI;
  /** The gateway's spans of a trace, once they are written. */
  spans(traceId: string): Promise<StoredSpan[]>;
  /** Sends a request without an SDK. */
  fetch(path: string, init?: RequestInit): Promise<Response>;
}

export async function startGateway(
  given: { nc: Connection; tenant: string; spansDir?: string; projector?: boolean } & Partial<GatewayServiceOptions>,
): Promise<GatewayUnderTest> {
  const { nc, tenant, spansDir, projector = true, ...options } = given;
  const owned = new AsyncDisposableStack();
  const logged: Record<string, unknown>[] = [];
  const destination = new Writable({
    write(line: Buffer, _encoding, done) {
      logged.push(JSON.parse(line.toString()) as Record<string, unknown>);
      done();
    },
  });
  const log = createLog({ service: "gateway", level: "debug", destination });
  const telemetry = createTelemetry({ service: "gateway", spansDir });
  owned.use(telemetry);
  await ensureStreams(nc);
  const bus = createBus({ nc, log, telemetry, source: "gateway" });
  const objects = await createJetStreamObjects(nc);
  if (projector) owned.use(await createProjector({ bus, log, metrics: telemetry.metrics }));
  const spans = async (traceId: string): Promise<StoredSpan[]> => {
    await telemetry.flush();
    return readSpans(spansDir ?? "", traceId);
  };
  const gateway = await createGatewayService({
    bus,
    objects,
    log,
    telemetry,
    host: "127.0.0.1",
    port: 0,
    drainMs: 500,
    ...(spansDir === undefined ? {} : { readTrace: spans }),
    ...options,
  });
  owned.use(gateway);
  const keyFor = (of: string) => createApiKey({ bus }, { tenant: of, name: "test" });
  const key = await keyFor(tenant);
  const clientFor = (apiKey: string) => new OpenAI({ apiKey, baseURL: `${gateway.url}/v1`, maxRetries: 0 });
  return {
    url: gateway.url,
    metricsUrl: owned.use(await serveMetrics(telemetry.metrics, { host: "127.0.0.1", port: 0 })).url,
    routes: gateway.routes,
    tenant,
    key,
    nc,
    bus,
    objects,
    openai: clientFor(key),
    logged,
    keyFor,
    clientFor,
    spans,
    fetch: (path, init = {}) =>
      fetch(`${gateway.url}${path}`, { ...init, headers: { authorization: `Bearer ${key}`, ...(init.headers as Record<string, string>) } }),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/* ingest, tokenize, train and serve, played */

export const engineRecord = (over: Partial<EngineRecord> = {}): EngineRecord => ({
  engine: "local",
  base: { name: base, revision: "1", digest: digestOf("b") },
  maxLoraRank: 32,
  maxLoras: 4,
  maxCpuLoras: 16,
  maxModelLen: 2048,
  updatedAt: new Date().toISOString(),
  ...over,
});

export async function registerEngine(bus: Bus, over: Partial<EngineRecord> = {}): Promise<EngineRecord> {
  const record = engineRecord(over);
  await (await bus.bucket(buckets.engines)).put(record.engine, record);
  return record;
}

export async function playIngested(bus: Bus, tenant: string, id: string): Promise<void> {
  const data = {
    manifest: refOf("dataset"),
    report: refOf("report"),
    records: 12,
    rejections: 1,
    formats: { messages: 12 },
    cacheHit: false,
  };
  await bus.publish(events.datasetIngested, { tenant, id }, data);
}

export async function playTokenized(bus: Bus, tenant: string, id: string): Promise<void> {
  const totals = { sequences: 12, tokens: 600, supervised: 200, evalSequences: 2, evalSupervised: 30, dropped: 0 };
  await bus.publish(events.runTokenized, { tenant, id }, { manifest: refOf("tokens"), totals, packed: false, cacheHit: false });
}

export async function playStep(bus: Bus, tenant: string, id: string, step: number, totalSteps: number): Promise<void> {
  const data = {
    attempt: 1,
    phase: "train",
    step,
    totalSteps,
    epoch: step / totalSteps,
    loss: 3 / step,
    learningRate: 1e-4,
    tokensPerSecond: 100,
    etaSeconds: totalSteps - step,
  };
  await bus.publish(events.runProgress, { tenant, id }, data, { key: `attempt-1/step-${step}` });
}

export async function playTrained(bus: Bus, tenant: string, id: string): Promise<void> {
  const at = { tenant, id };
  await bus.publish(events.runStarted, at, { attempt: 1, job: `train-${id.toLowerCase()}-1` }, { key: "1" });
  for (const step of [1, 2, 3]) await playStep(bus, tenant, id, step, 3);
  const checkpoint = { attempt: 1, step: 2, checkpoint: refOf("checkpoint"), trainLoss: 1.5 };
  await bus.publish(events.runCheckpointed, at, checkpoint, { key: "1/2" });
  await bus.publish(events.runTrained, at, {
    attempt: 1,
    adapter: refOf("adapter", "d"),
    evidence: refOf("evidence", "e"),
    rank: 8,
    targetModules: ["q_proj"],
    parameters: 1000,
    steps: 3,
    trainLoss: 1,
    trainedTokens: 600,
    tokensPerSecond: 100,
    evaluation: { base_loss: 3.5, adapter_loss: 1.2, rows: 2, supervised_tokens: 30 },
    lastStepAt: new Date().toISOString(),
  });
}

export async function playServed(bus: Bus, tenant: string, id: string, adapter: string, version = 1): Promise<void> {
  const data = { adapter, version, digest: digestOf("d"), replicas: 1, promoted: true, lastStepToProvenMs: 900 };
  await bus.publish(events.runServed, { tenant, id }, data);
}

export const versionOf = (tenant: string, adapter: string, version: number, over: Partial<AdapterVersion> = {}): AdapterVersion => ({
  version,
  digest: digestOf("d"),
  manifest: refOf("adapter", "d"),
  evidence: refOf("evidence", "e"),
  runId: "01JD000000000000000000000A",
  rank: 8,
  engineName: `${tenant}.${adapter}.v${version}.dddddddddddd`,
  status: "desired",
  reason: null,
  promote: "auto",
  evaluation: null,
  lastStepAt: new Date().toISOString(),
  createdAt: new Date().toISOString(),
  servedAt: new Date().toISOString(),
  trace: null,
  ...over,
});

export const adapterOf = (tenant: string, adapter: string, versions: AdapterVersion[], over: Partial<AdapterState> = {}): AdapterState => ({
  tenant,
  adapter,
  engine: "local",
  base,
  versions,
  alias: versions.at(-1)?.version ?? null,
  history: [],
  ...over,
});

export const heldBy = (state: AdapterState, version: AdapterVersion, over: Partial<ReplicaAdapter> = {}): ReplicaAdapter => ({
  tenant: state.tenant,
  adapter: state.adapter,
  version: version.version,
  digest: version.digest,
  engineName: version.engineName,
  state: "proven",
  proof: null,
  error: null,
  at: new Date().toISOString(),
  ...over,
});

export const replicaOf = (
  replica: string,
  url: string,
  adapters: ReplicaAdapter[] = [],
  over: Partial<ReplicaState> = {},
): ReplicaState => ({
  engine: "local",
  base,
  replica,
  incarnation: "1",
  url,
  ready: true,
  adapters,
  at: new Date().toISOString(),
  ...over,
});

export async function putAdapter(bus: Bus, state: AdapterState): Promise<void> {
  await (await bus.bucket(buckets.adapters)).put(`${state.tenant}.${state.adapter}`, state);
}

/** Reports a replica. Its agent is a new one each time, so that the replica holds exactly these adapters. */
export async function putReplica(bus: Bus, { adapters, ...report }: ReplicaState): Promise<void> {
  const key = `${report.engine}.${report.replica}`;
  const agent = ulid();
  const holdings = await bus.bucket(buckets.holdings);
  const byAdapter = Map.groupBy(adapters, ({ tenant, adapter }) => `${tenant}.${adapter}`);
  for (const [adapter, held] of byAdapter) {
    await holdings.put(`${key}.${adapter}`, { incarnation: report.incarnation, agent, adapters: held });
  }
  await (await bus.bucket(buckets.replicas)).put(key, { ...report, agent });
}

/* an engine that answers as vLLM does */

interface SimulatedRequest {
  path: string;
  headers: IncomingHttpHeaders;
  body: Record<string, unknown>;
  /** Set when the gateway went away before the answer was complete. */
  aborted: boolean;
  bytesSent: number;
}

export interface Engine extends AsyncDisposable {
  url: string;
  /** The models that the engine knows; it answers 404 for others, as vLLM does. */
  models: Set<string>;
  requests: SimulatedRequest[];
  /** Answers a request instead of the engine. */
  answer: ((body: Record<string, unknown>, response: ServerResponse, request: SimulatedRequest) => void | Promise<void>) | undefined;
  words: string[];
}

export const chunkOf = (model: string, content: string, finish: string | null = null): string =>
  `data: ${JSON.stringify({
    id: "chatcmpl-1",
    object: "chat.completion.chunk",
    created: 1,
    model,
    choices: [{ index: 0, delta: { content }, finish_reason: finish }],
  })}\n\n`;

export async function startEngine(...models: string[]): Promise<Engine> {
  const engine: Omit<Engine, "url" | keyof AsyncDisposable> = {
    models: new Set(models),
    requests: [],
    answer: undefined,
    words: ["Arr", ", mat", "ey ☠"],
  };
  const server = createServer((incoming, response) => {
    const parts: Buffer[] = [];
    incoming.on("data", (part: Buffer) => parts.push(part));
    incoming.on("end", () => {
      const body = JSON.parse(Buffer.concat(parts).toString()) as Record<string, unknown>;
      const request: SimulatedRequest = { path: incoming.url ?? "", headers: incoming.headers, body, aborted: false, bytesSent: 0 };
      engine.requests.push(request);
      response.once("close", () => {
        request.aborted = !response.writableFinished;
      });
      void (async () => {
        if (engine.answer !== undefined) return engine.answer(body, response, request);
        const model = String(body["model"]);
        const json = (status: number, value: unknown): void => {
          response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
        };
        if (!engine.models.has(model)) {
          const message = `The model \`${model}\` does not exist.`;
          return json(404, { error: { message, type: "NotFoundError", param: "model", code: 404 } });
        }
        if (Number(body["max_tokens"]) < 0) {
          const message = `max_tokens must be at least 1, got ${String(body["max_tokens"])} for ${model}.`;
          return json(400, { error: { message, type: "BadRequestError", param: "max_tokens", code: 400 } });
        }
        if (body["stream"] === true) {
          response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
          for (const word of engine.words) {
            response.write(chunkOf(model, word));
            await new Promise((resolve) => setTimeout(resolve, 5));
          }
          const { include_usage: counts = false } = (body["stream_options"] ?? {}) as { include_usage?: boolean };
          const count = {
            ...JSON.parse(chunkOf(model, "").slice("data: ".length)),
            choices: [],
            usage: { prompt_tokens: 3, total_tokens: 6, completion_tokens: 3 },
          };
          response.end(`${chunkOf(model, "", "stop")}${counts ? `data: ${JSON.stringify(count)}\n\n` : ""}data: [DONE]\n\n`);
          return;
        }
        const content = engine.words.join("");
        const usage = { prompt_tokens: 3, completion_tokens: 3, total_tokens: 6 };
        if (request.path === "/v1/completions") {
          return json(200, {
            id: "cmpl-1",
            object: "text_completion",
            created: 1,
            model,
            choices: [{ index: 0, text: content, finish_reason: "stop" }],
            usage,
          });
        }
        const message = { role: "assistant", content };
        return json(200, {
          id: "chatcmpl-1",
          object: "chat.completion",
          created: 1,
          model,
          choices: [{ index: 0, message, finish_reason: "stop" }],
          usage,
        });
      })();
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  return Object.assign(engine, {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => {
        server.close(resolve);
      });
    },
  });
}
