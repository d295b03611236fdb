/**
 * The whole server in one process. Programs that are not ours run as its children, supervised:
 *
 *   this process ── gateway, projector, ingest, tokenize, train, serve (controller and agent)
 *      ├── nats-server      state/nats
 *      ├── vLLM             one engine for one base; starts for half a minute, and only serving waits for it
 *      └── courier ── trainer    one per attempt, by train's process launcher
 *
 * Every child dies with this process, however it dies. The next start finds and ends those that did not.
 */
import { createWriteStream } from "node:fs";
import { access, constants, mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createBus, ensureStreams, quotasEnv } from "@loraline/bus";
import { type BaseRef, buckets, type EngineRecord } from "@loraline/contracts";
import { createGatewayService, createProjector, hashApiKey } from "@loraline/gateway";
import { createIngestService, importEnv, importSettingsOf } from "@loraline/ingest";
import { createJetStreamObjects } from "@loraline/objects";
import { readBaseOrigin, readBaseRef } from "@loraline/models/base-ref";
import {
  createLog,
  createTelemetry,
  loadEnv,
  type Log,
  nativeComputeType,
  PermanentError,
  processIdentity,
  readSpans,
} from "@loraline/runtime";
import { createAgentService, createServeService, vllmToolParserOf } from "@loraline/serve";
import { describeBase } from "@loraline/models";
import { createCollector } from "@loraline/storage";
import { createTokenizeService } from "@loraline/tokenize";
import { describeTemplate, loadBase, readTemplate } from "@loraline/tokens";
import { courierCommand, createProcessLauncher, createTrainService } from "@loraline/train";
import type { NatsConnection } from "@nats-io/transport-node";
import { z } from "zod";
import { engineLimits, startEngine } from "./engine.ts";
import { freePort, isFree } from "./free-port.ts";
import { localUser, startNats } from "./nats.ts";
import { keepLogsSmall } from "./rotate-logs.ts";
import { keepTracesSwept } from "./sweep-traces.ts";
import { announceLine, ensureApiKey, ensureEngineKey, ensureSecret, killLeftovers, lockStateDir } from "./state-dir.ts";

export interface LineOptions {
  /** Holds everything that the server keeps; belongs to one server at a time. */
  stateDir: string;
  /** Bases in Hugging Face's layout: `<basesDir>/<base>/`. */
  basesDir: string;
  /** Holds what can be made again at any time, such as vLLM's findings about this machine. */
  cacheDir: string;
  base: string;
  host: string;
  /** 0: any free one. */
  port: number;
  tenant: string;
  /** Trainings at once. */
  slots: number;
  /** vLLM's parser of calls of tools; "none": tools are refused. Absent: chosen by the base's chat template. */
  toolCallParser?: string | undefined;
  /** Program paths. */
  node: string;
  python: string;
  nats: string;
  /** Environment of the children. */
  env: Record<string, string | undefined>;
  /** Of this process. */
  pid: number;
  otlpEndpoint?: string | undefined;
  logLevel?: string | undefined;
  /** Gets what a person at the terminal wants to know. */
  onNews(news: LineNews): void;
}

export type LineNews =
  | { kind: "leftovers-killed"; names: string[] }
  | { kind: "up"; url: string }
  | { kind: "engine-ready"; afterMs: number }
  | { kind: "disk-full"; stateDir: string }
  | { kind: "child-ended"; name: "nats-server" | "engine"; why: string; restartInMs: number; logFile: string };

export interface Line extends AsyncDisposable {
  url: string;
  natsUrl: string;
  engineUrl: string;
  apiKey: string;
  tenant: string;
  base: string;
}

const localEngine = "local";
/** Time that a courier has for saving a checkpoint when the server stops. */
const courierGraceMs = 8000;

/** Starts the server. Resolves when its APIs answer; the engine may still be starting. Disposing ends all children. */
export async function startLine(options: LineOptions): Promise<Line> {
  const { stateDir, cacheDir, host, tenant, onNews } = options;
  const env = {
    ...options.env,
    // Says of each child whose it is.
    LORALINE_STATE: stateDir,
    // Trainer and engine share the cores. OpenMP's threads by default spin while they wait for each other, which then blocks
    // the other program: a training step took ten times as long.
    OMP_WAIT_POLICY: options.env.OMP_WAIT_POLICY ?? "PASSIVE",
  };
  const base = await checkInstallation(options);
  const { LORALINE_QUOTAS: quotas } = loadEnv(z.object(quotasEnv), options.env);
  await using starting = new AsyncDisposableStack();
  starting.use(await lockStateDir(stateDir, options.pid));

  const dirs = {
    logs: join(stateDir, "logs"),
    traces: join(stateDir, "traces"),
    spool: join(stateDir, "spool"),
    adapters: join(stateDir, "adapters"),
    train: join(stateDir, "train"),
  };
  await rm(dirs.spool, { recursive: true, force: true });
  for (const dir of [...Object.values(dirs), cacheDir]) await mkdir(dir, { recursive: true });
  const logFile = (name: string): string => join(dirs.logs, `${name}.log`);

  const logStream = createWriteStream(logFile("line"), { flags: "a" });
  logStream.on("error", () => {}); // A full disk must not end the server.
  starting.defer(() => new Promise<void>((resolve) => logStream.end(resolve)));
  const logOf = (service: string): Log =>
    createLog({
      service,
      destination: { write: (line) => void logStream.write(line) },
      ...(options.logLevel === undefined ? {} : { level: options.logLevel }),
    });
  const log = logOf("local");

  starting.use(keepTracesSwept({ dir: dirs.traces, log }));
  starting.use(keepLogsSmall({ dir: dirs.logs, log }));
  const killed = await killLeftovers(stateDir);
  if (killed.length > 0) onNews({ kind: "leftovers-killed", names: killed });
  // The port is asked for before any child starts, so that a refusal comes at once.
  if (!(await isFree(host, options.port))) throw portTaken(host, options.port);

  const childEnded = (name: "nats-server" | "engine", file: string) => (end: { why: string; restartInMs: number }) =>
    onNews({ kind: "child-ended", name, logFile: file, ...end });
  const nats = starting.use(
    await startNats({
      stateDir,
      tenant,
      nats: options.nats,
      env,
      logFile: logFile("nats"),
      log,
      onEnded: childEnded("nats-server", logFile("nats")),
      onDiskFull: () => onNews({ kind: "disk-full", stateDir }),
    }),
  );
  const { url: natsUrl } = nats;
  const connections = starting.use(new AsyncDisposableStack());
  const connect = async (user: string): Promise<NatsConnection> => {
    const nc = await nats.connect(user);
    connections.defer(() => nc.close());
    return nc;
  };
  const nc = await connect(localUser);

  const engineKey = await ensureEngineKey(stateDir);
  const enginePort = await freePort("127.0.0.1", []);
  const engineUrl = `http://127.0.0.1:${enginePort}`;
  const baseDir = join(options.basesDir, options.base);
  const templateText = await readTemplate(baseDir);
  const templateFile = await keepTemplate(stateDir, templateText);
  const toolCallParser = options.toolCallParser === "none" ? null : (options.toolCallParser ?? vllmToolParserOf(templateText));
  // The engine takes longest to start, so it comes first.
  const computeType = nativeComputeType(env);
  const engine = await startEngine({
    stateDir,
    cacheDir,
    python: options.python,
    base: { name: base.name, dir: baseDir, templateFile },
    port: enginePort,
    computeType,
    toolCallParser,
    apiKey: engineKey,
    env,
    logFile: logFile("engine"),
    log,
    onReady: (afterMs) => onNews({ kind: "engine-ready", afterMs }),
    onEnded: childEnded("engine", logFile("engine")),
  });
  const template = loadBase(baseDir, { ref: base }).then(describeTemplate);
  template.catch(() => {}); // Its failure is thrown where it is awaited.
  const telemetries = starting.use(new AsyncDisposableStack());
  /** Services, by name. They are ended side by side, while NATS still runs, because each may need a second or two. */
  const workers = new Map<string, AsyncDisposable>([["engine", engine]]);
  starting.defer(async () => {
    await Promise.all(
      workers.entries().map(async ([name, worker]) => {
        try {
          await worker[Symbol.asyncDispose]();
          log.info({ worker: name }, "stopped");
        } catch (error) {
          log.error({ err: error, worker: name }, "did not stop in order");
        }
      }),
    );
  });
  await ensureStreams(nc, { tenants: [tenant] });
  await createJetStreamObjects(nc, { spoolDir: dirs.spool });

  const lineSecret = await ensureSecret(stateDir);
  /** What every service gets: a connection with the rights that its NATS user has in a cluster, too, and its name in logs, spans and events. */
  const service = async (name: string, user = name) => {
    const telemetry = telemetries.use(createTelemetry({ service: name, spansDir: dirs.traces, otlpEndpoint: options.otlpEndpoint }));
    const serviceLog = logOf(name);
    const connection = user === localUser ? nc : await connect(user);
    const secret = nats.environmentOf(user).NATS_PASS;
    const bus = createBus({ nc: connection, log: serviceLog, telemetry, source: name, secret, lineSecret });
    return { nc: connection, bus, log: serviceLog, telemetry };
  };
  const serviceWithObjects = async (name: string, user = name) => {
    const given = await service(name, user);
    return { ...given, objects: await createJetStreamObjects(given.nc, { spoolDir: dirs.spool }) };
  };

  const local = await service("local", localUser);
  const apiKey = await ensureApiKey(stateDir);
  const keys = await local.bus.bucket(buckets.keys);
  await keys.put(hashApiKey(apiKey), { tenant, name: "local", createdAt: new Date().toISOString() });

  const { bus: projectorBus, log: projectorLog } = await service("projector", "gateway");
  workers.set("projector", await createProjector({ bus: projectorBus, log: projectorLog }));

  const record: EngineRecord = {
    engine: localEngine,
    base,
    origin: await readBaseOrigin(baseDir),
    ...engineLimits,
    computeType,
    toolCallParser,
    // engine.py corrects most of what vLLM does wrong there. But an adapter on the output layer, in one batch with other requests,
    // still stops the engine.
    promptLogprobs: false,
    ...(await template),
    modules: await describeBase(join(options.basesDir, base.name)),
    updatedAt: new Date().toISOString(),
  };
  workers.set("serve", await createServeService({ ...(await serviceWithObjects("serve")), engines: [record], quotas }));
  const removeTrace = (traceId: string): Promise<void> => rm(join(dirs.traces, `${traceId}.jsonl`), { force: true });
  workers.set("collector", await createCollector({ ...(await serviceWithObjects("collector", "serve")), inJetStream: true, removeTrace }));
  workers.set(
    "agent",
    await createAgentService({
      ...(await serviceWithObjects("agent")),
      engine: localEngine,
      base: base.name,
      replica: "local",
      engineUrl,
      engineKey,
      publicUrl: engineUrl,
      adaptersDir: dirs.adapters,
    }),
  );

  const launcher = await createProcessLauncher({
    dir: dirs.train,
    slots: options.slots,
    courierCommand: courierCommand(options.node),
    env: {
      ...env,
      ...nats.environmentOf("courier"),
      LORALINE_SPANS_DIR: dirs.traces,
      LORALINE_BASES_DIR: options.basesDir,
      LORALINE_PYTHON: options.python,
      OTEL_EXPORTER_OTLP_ENDPOINT: options.otlpEndpoint,
    },
    log,
    stopGraceMs: courierGraceMs,
  });
  const train = await createTrainService({ ...(await service("train")), launcher, quotas }).catch(async (error: unknown) => {
    await launcher[Symbol.asyncDispose]();
    throw error;
  });
  workers.set("train", {
    async [Symbol.asyncDispose]() {
      await train[Symbol.asyncDispose]();
      await launcher[Symbol.asyncDispose]();
    },
  });
  workers.set("tokenize", await createTokenizeService({ ...(await serviceWithObjects("tokenize")), basesDir: options.basesDir, quotas }));
  const imports = importSettingsOf(loadEnv(z.object(importEnv), options.env));
  workers.set("ingest", await createIngestService({ ...(await serviceWithObjects("ingest")), imports, quotas }));

  const gateway = starting.use(
    await createGatewayService({
      ...(await serviceWithObjects("gateway")),
      natsTenants: [tenant],
      engineKey,
      host,
      port: options.port,
      quotas,
      imports,
      secret: lineSecret,
      replicaHosts: ["loopback"],
      spoolDir: dirs.spool,
      readTrace: (traceId) => readSpans(dirs.traces, traceId),
      drainMs: 3000,
    }),
  );
  starting.use(
    await announceLine(stateDir, {
      url: gateway.url,
      natsUrl,
      engineUrl,
      pid: options.pid,
      identity: processIdentity(options.pid) ?? "",
      base: base.name,
      tenant,
    }),
  );
  log.info({ url: gateway.url, natsUrl, engineUrl }, "the server is up");
  onNews({ kind: "up", url: gateway.url });

  const running = starting.move();
  return {
    url: gateway.url,
    natsUrl,
    engineUrl,
    apiKey,
    tenant,
    base: base.name,
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}

/** Writes the chat template that is trained with into a file, for the engine to be started with the same. null: the base has none. */
async function keepTemplate(stateDir: string, template: string | null): Promise<string | null> {
  if (template === null) return null;
  const file = join(stateDir, "chat_template.jinja");
  await writeFile(file, template);
  return file;
}

const portTaken = (host: string, port: number): PermanentError =>
  new PermanentError("PORT_TAKEN", `port ${port} on ${host} is taken by another program. Stop it, or choose another port with --port.`, {
    param: "--port",
  });

/** @throws PermanentError PYTHON_MISSING, NATS_MISSING, BASE_MISSING: each says what to run. */
async function checkInstallation({ python, nats, basesDir, base }: LineOptions): Promise<BaseRef> {
  await access(python, constants.X_OK).catch((error: unknown) => {
    throw new PermanentError("PYTHON_MISSING", `there is no Python environment: ${python} is missing. Run \`make setup\`.`, {
      param: "LORALINE_PYTHON",
      cause: error,
    });
  });
  await access(nats, constants.X_OK).catch((error: unknown) => {
    throw new PermanentError("NATS_MISSING", `nats-server is missing: ${nats}. Run \`make setup\`.`, {
      param: "LORALINE_NATS_SERVER",
      cause: error,
    });
  });
  return readBaseRef(join(basesDir, base));
}
