/**
 * The whole server in one process. Programs that are not ours run as its children, supervised:
 *
 *   this process ── gateway, projector, ingest, tokenize, train, serve (controller and agent)
 *      ├── nats-server      state/nats
 *      ├── vLLM             an engine for each base; starts for half a minute, and only serving waits for it
 *      ├── courier ── trainer    one per attempt, by train's process launcher
 *      └── warm trainer     forks the trainers of one base
 *
 * Every child dies with this process, however it dies. The next start finds and ends those that did not.
 */
import { createWriteStream } from "node:fs";
import { access, constants, mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createBus, ensureStreams, followNats, quotasEnv } from "@loraline/bus";
import { buckets, version } from "@loraline/contracts";
import { createGatewayService, createProjector, hashApiKey } from "@loraline/gateway";
import { createIngestService, importEnv, importSettingsOf } from "@loraline/ingest";
import { createJetStreamObjects } from "@loraline/objects";
import {
  createLog,
  openCollector,
  createMetrics,
  createTelemetry,
  loadEnv,
  type Log,
  PermanentError,
  processIdentity,
  readSpans,
  serveMetrics,
} from "@loraline/runtime";
import { createAgentService, createServeService } from "@loraline/serve";
import { createCollector } from "@loraline/storage";
import { createTokenizeService } from "@loraline/tokenize";
import { courierCommand, createProcessLauncher, createTrainService, createWarmTrainers, warmEnv } from "@loraline/train";
import type { NatsConnection } from "@nats-io/transport-node";
import { z } from "zod";
import { firstEngine, type LocalEngine, nameEngines } from "./engines/local-engines.ts";
import { checkEngines, type StartedEngine, startLocalEngine } from "./engines/start-engines.ts";
import { freePort, isFree } from "./free-port.ts";
import { localUser, startNats } from "./nats.ts";
import { keepLogsSmall } from "./state/rotate-logs.ts";
import {
  announceLine,
  ensureApiKey,
  ensureEngineKey,
  ensureSecret,
  keepEngineNames,
  keepStateVersion,
  killLeftovers,
  lockStateDir,
  readEngineNames,
} from "./state/state-dir.ts";
import { keepTracesSwept } from "./state/sweep-traces.ts";

export interface LineOptions {
  /** Holds everything that the server keeps; belongs to one server at a time. */
  stateDir: string;
  /** Bases in Hugging Face's layout: `<basesDir>/<base>/`. */
  basesDir: string;
  /** Holds what can be made again at any time, such as vLLM's findings about this machine. */
  cacheDir: string;
  /** One for each base that is served. */
  engines: readonly [LocalEngine, ...LocalEngine[]];
  host: string;
  /** 0: any free one. */
  port: number;
  tenant: string;
  /** Trainings at once. */
  slots: number;
  /** Program paths. */
  node: string;
  python: string;
  nats: string;
  /** Environment of the children. */
  env: Record<string, string | undefined>;
  /** Of this process. */
  pid: number;
  otlpEndpoint?: string | undefined;
  /** Where Prometheus finds the metrics of all services and of NATS, on loopback. Absent: nowhere. */
  metricsPort?: number | undefined;
  logLevel?: string | undefined;
  /** Gets what a person at the terminal wants to know. */
  onNews(news: LineNews): void;
}

export type LineNews =
  | { kind: "leftovers-killed"; names: string[] }
  | { kind: "up"; url: string }
  | { kind: "engine-ready"; base: string; afterMs: number }
  | { kind: "disk-full"; stateDir: string }
  | { kind: "nats-slow"; logFile: string }
  | { kind: "child-ended"; name: "nats-server"; why: string; restartInMs: number; logFile: string }
  | { kind: "child-ended"; name: "engine"; base: string; why: string; restartInMs: number; logFile: string };

export interface Line extends AsyncDisposable {
  url: string;
  natsUrl: string;
  apiKey: string;
  tenant: string;
  /** At least one. */
  bases: readonly [string, ...string[]];
}

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
  await checkInstallation(options);
  const checked = await checkEngines(options.engines, options.basesDir);
  const { LORALINE_QUOTAS: quotas, LORALINE_WARM_SECONDS: warmSeconds } = loadEnv(z.object({ ...quotasEnv, ...warmEnv }), options.env);
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
  const collector = await openCollector({ service: "local", endpoint: options.otlpEndpoint });
  // One that hangs does not hold up the end.
  if (collector !== undefined) starting.defer(() => Promise.race([collector[Symbol.asyncDispose](), sleep(2000)]));
  const logOf = (service: string): Log =>
    createLog({
      service,
      also: collector?.lines,
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

  /** Of all services: they are one process. */
  const metrics = createMetrics();
  collector?.sendMetrics(metrics);
  const monitorPort = options.metricsPort === undefined ? undefined : await freePort("127.0.0.1", []);
  const nats = starting.use(
    await startNats({
      stateDir,
      tenant,
      nats: options.nats,
      env,
      logFile: logFile("nats"),
      log,
      monitorPort,
      onEnded: (end) => onNews({ kind: "child-ended", name: "nats-server", logFile: logFile("nats"), ...end }),
      onDiskFull: () => onNews({ kind: "disk-full", stateDir }),
      onSlow: () => onNews({ kind: "nats-slow", logFile: logFile("nats") }),
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
  const telemetries = starting.use(new AsyncDisposableStack());
  /** Services, by name. They are ended side by side, while NATS still runs, because each may need a second or two. */
  const workers = new Map<string, AsyncDisposable>();
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
    const telemetry = telemetries.use(
      createTelemetry({ service: name, spansDir: dirs.traces, otlpEndpoint: options.otlpEndpoint, metrics }),
    );
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
  const known = await local.bus.bucket(buckets.engines);
  // A state directory of before there could be several has one engine, and no file of their names.
  const before = (await known.entries(">", { skipUnreadable: true })).map(({ value }) => [value.base.name, value.engine] as const);
  const names = nameEngines(
    { ...Object.fromEntries(before), ...(await readEngineNames(stateDir)) },
    options.engines.map(({ base }) => base),
  );
  await keepEngineNames(stateDir, names);
  await keepStateVersion(stateDir, version);
  // They take longest to start, so they come before the services.
  const engines: StartedEngine[] = [];
  for (const each of checked) {
    const engine = await startLocalEngine(names[each.settings.base] as string, each, {
      stateDir,
      cacheDir,
      python: options.python,
      engineKey,
      env,
      log,
      logFile,
      onReady: (base, afterMs) => onNews({ kind: "engine-ready", base, afterMs }),
      onEnded: (base, file, end) => onNews({ kind: "child-ended", name: "engine", base, logFile: file, ...end }),
    });
    workers.set(engine.child, engine.worker);
    engines.push(engine);
  }
  const apiKey = await ensureApiKey(stateDir);
  const keys = await local.bus.bucket(buckets.keys);
  await keys.put(hashApiKey(apiKey), { tenant, name: "local", createdAt: new Date().toISOString() });

  const { bus: projectorBus, log: projectorLog } = await service("projector", "gateway");
  workers.set("projector", await createProjector({ bus: projectorBus, log: projectorLog, metrics }));

  const records = await Promise.all(engines.map(({ record }) => record()));
  // A base that is not served any more is not offered to runs.
  for (const engine of await known.keys(">")) if (!engines.some((own) => own.engine === engine)) await known.delete(engine);
  workers.set("serve", await createServeService({ ...(await serviceWithObjects("serve")), engines: records, quotas }));
  const removeTrace = (traceId: string): Promise<void> => rm(join(dirs.traces, `${traceId}.jsonl`), { force: true });
  workers.set("collector", await createCollector({ ...(await serviceWithObjects("collector", "serve")), inJetStream: true, removeTrace }));
  for (const { engine, base, url } of engines) {
    workers.set(
      `agent of ${engine}`,
      await createAgentService({
        ...(await serviceWithObjects("agent")),
        engine,
        base: base.name,
        replica: "local",
        engineUrl: url,
        engineKey,
        publicUrl: url,
        // Each has a folder of its own; the first one's was there before there could be several.
        adaptersDir: engine === firstEngine ? dirs.adapters : `${dirs.adapters}-${engine}`,
      }),
    );
  }

  const courierEnv = {
    ...env,
    ...nats.environmentOf("courier"),
    LORALINE_SPANS_DIR: dirs.traces,
    LORALINE_BASES_DIR: options.basesDir,
    LORALINE_PYTHON: options.python,
    OTEL_EXPORTER_OTLP_ENDPOINT: options.otlpEndpoint,
  };
  const warm = createWarmTrainers({ env: courierEnv, idleMs: warmSeconds * 1000, logFile: logFile("warm-trainer"), log });
  const launcher = await createProcessLauncher({
    dir: dirs.train,
    slots: options.slots,
    courierCommand: courierCommand(options.node),
    env: courierEnv,
    warm,
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
      await warm[Symbol.asyncDispose]();
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
  if (options.metricsPort !== undefined) {
    followNats({ metrics, monitors: [`http://127.0.0.1:${monitorPort}`] });
    const { url } = starting.use(await serveMetrics(metrics, { host: "127.0.0.1", port: options.metricsPort }));
    log.info({ url }, "metrics are served");
  }
  const served = engines.map(({ engine, base, url }) => ({ engine, base: base.name, url }));
  starting.use(
    await announceLine(stateDir, {
      url: gateway.url,
      natsUrl,
      pid: options.pid,
      identity: processIdentity(options.pid) ?? "",
      startedAt: new Date().toISOString(),
      version,
      engines: served,
      tenant,
    }),
  );
  log.info({ url: gateway.url, natsUrl, engines: served }, "the server is up");
  onNews({ kind: "up", url: gateway.url });

  const running = starting.move();
  return {
    url: gateway.url,
    natsUrl,
    apiKey,
    tenant,
    bases: served.map(({ base }) => base) as [string, ...string[]],
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}

const portTaken = (host: string, port: number): PermanentError =>
  new PermanentError("PORT_TAKEN", `port ${port} on ${host} is taken by another program. Stop it, or choose another port with --port.`, {
    param: "--port",
  });

/** @throws PermanentError PYTHON_MISSING, NATS_MISSING: each says what to run. */
async function checkInstallation({ python, nats }: LineOptions): Promise<void> {
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
}
