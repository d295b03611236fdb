/**
 * Loraline as a cluster runs it, for tests of faults: every service is a process of its own over a real NATS. Only engines and trainer are
 * simulated. Tests end any of them with any signal, and start it again on the same ports.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createBus, ensureStreams } from "@loraline/bus";
import { type BaseRef, buckets, type EngineRecord, inboxPrefixOf } from "@loraline/contracts";
import { natsAccounts } from "@loraline/local";
import { natsUserOf } from "@loraline/local/state";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry, processIdentity } from "@loraline/runtime";
import {
  createSimulatedEngine,
  freePort,
  type NatsCluster,
  type SimulatedEngine,
  spawnNatsCluster,
  spawnNatsServer,
} from "@loraline/testkit/servers";
import type { NatsConnection } from "@nats-io/transport-node";
import { base, clientOf, eventually, root } from "./line-under-test.ts";

export const tenant = "acme";
export const bootstrapKey = "ll-only-for-tests-of-faults-0123456789";
/** Name of the one engine. */
const engineName = "local";

const programs = {
  gateway: "services/gateway/src/main.ts",
  ingest: "services/ingest/src/main.ts",
  tokenize: "services/tokenize/src/main.ts",
  train: "services/train/src/main.ts",
  serve: "services/serve/src/main.ts",
  agent: "services/serve/src/agent-main.ts",
} as const;
type ProgramName = keyof typeof programs;

export interface ServiceUnderTest {
  /** `gateway-1`, `train`, … */
  readonly id: string;
  readonly program: ProgramName;
  /** Of the API of a gateway; of the others nothing answers there. */
  readonly url: string;
  /** Of 127.0.0.1: where it answers /metrics. */
  readonly metricsPort: number;
  /** undefined while it does not run. */
  readonly pid: number | undefined;
  /** How often it was started. */
  readonly starts: number;
  /** Which of its starts ended by themselves. */
  readonly endedByItself: readonly number[];
  /** Ends it, by default like a crash; resolves when it is gone. @returns its exit code. */
  kill(signal?: NodeJS.Signals): Promise<number | null>;
  /** SIGSTOP: it stays there and does nothing, until `resume`. */
  pause(): void;
  resume(): void;
  /** Starts the process, unless it runs; resolves when it runs, not when it is ready. */
  spawn(env?: Record<string, string>): Promise<void>;
  /** Its wall clock shows so many milliseconds more than it is, from the next start on and at once if it runs. */
  stepClock(ms: number): Promise<void>;
  /** Text of /readyz: `ok`, or what is missing. */
  readyz(): Promise<string>;
  ready(): Promise<void>;
}

interface ServicesOptions {
  /** Folder for logs, attempts and adapters' files. */
  dir: string;
  /** Where a service of this id finds NATS. The server knows the users of `natsConfig`. */
  natsUrl: (id: string) => string;
  /** Added to the environment of all; a login to NATS here is instead of that of `natsConfig`. */
  env?: Record<string, string>;
  /** What the simulated trainer does: see scripted-trainer.py. */
  script?: object;
}

export interface Services extends AsyncDisposable {
  readonly all: readonly ServiceUnderTest[];
  /** Starts a service; resolves when it is ready, or with `wait: false` when the process runs. */
  start(program: ProgramName, over?: { id?: string; env?: Record<string, string>; wait?: boolean }): Promise<ServiceUnderTest>;
  /** Starts an agent beside an engine. */
  startAgent(id: string, engineUrl: string, over?: { publicUrl?: string; wait?: boolean }): Promise<ServiceUnderTest>;
  client(gateway: ServiceUnderTest): ReturnType<typeof clientOf>;
  /** The end of each service's log, to find out why a test failed: its files go with the test. */
  lastWords(): Promise<string>;
}

/** The engine's entry of KV `engines`, and of the file that the serve controller reads. */
const engineRecord = async (): Promise<EngineRecord> => ({
  engine: engineName,
  base: JSON.parse(await readFile(join(root, ".loraline/bases", base, "base.json"), "utf8")) as BaseRef,
  maxLoraRank: 32,
  maxLoras: 4,
  maxCpuLoras: 64,
  maxModelLen: 2048,
  updatedAt: new Date().toISOString(),
});

/** Says what the engine can do, for lines without a serve controller. */
export async function registerEngine(nc: NatsConnection): Promise<void> {
  const bus = createBus({
    nc,
    log: createLog({ service: "test", level: "silent" }),
    telemetry: createTelemetry({ service: "test" }),
    source: "test",
  });
  await (await bus.bucket(buckets.engines)).put(engineName, await engineRecord());
}

export async function createServices({ dir, natsUrl, env = {}, script = {} }: ServicesOptions): Promise<Services> {
  const all: ServiceUnderTest[] = [];
  let closing = false;
  const killAll = (): void => {
    for (const { pid } of all) if (pid !== undefined) process.kill(pid, "SIGKILL");
  };
  process.on("exit", killAll);
  const enginesFile = join(dir, "engines.json");
  await mkdir(join(dir, "logs"), { recursive: true });
  await mkdir(join(dir, "attempts"), { recursive: true });
  const { updatedAt: _, ...engine } = await engineRecord();
  await writeFile(enginesFile, JSON.stringify([engine]));

  const common = {
    PATH: process.env["PATH"],
    HOME: process.env["HOME"],
    LOG_LEVEL: process.env["LOG_LEVEL"] ?? "warn",
    HOST: "127.0.0.1",
    METRICS_HOST: "127.0.0.1",
    BOOTSTRAP_TENANT: tenant,
    BOOTSTRAP_API_KEY: bootstrapKey,
    LORALINE_BASES_DIR: join(root, ".loraline/bases"),
    LORALINE_PYTHON: join(root, ".venv/bin/python"),
    LORALINE_TRAINER: join(root, "services/train/src/scripted-trainer.py"),
    TRAIN_ATTEMPTS_DIR: join(dir, "attempts"),
    SERVE_ENGINES_FILE: enginesFile,
    TRAINER_SCRIPT: JSON.stringify(script),
    TRAIN_COURIER_ENV: JSON.stringify(loginOf("courier")),
  };

  const create = async (program: ProgramName, id: string, own: Record<string, string>): Promise<ServiceUnderTest> => {
    const [port, healthPort, metricsPort] = [await freePort(), await freePort(), await freePort()];
    const log = join(dir, "logs", `${id}.log`);
    let child: ChildProcess | undefined;
    let expected: ChildProcess | undefined;
    const clockFile = join(dir, `${id}.clock`);
    let starts = 0;
    const endedByItself: number[] = [];
    const readyz = async (): Promise<string> => (await fetch(`http://127.0.0.1:${healthPort}/readyz`)).text();
    const service: ServiceUnderTest = {
      id,
      program,
      url: `http://127.0.0.1:${port}`,
      metricsPort,
      get pid() {
        return child?.pid;
      },
      get starts() {
        return starts;
      },
      endedByItself,
      async kill(signal = "SIGKILL") {
        if (child === undefined) return null;
        const running = child;
        expected = running;
        const gone = once(running, "exit") as Promise<[number | null]>;
        running.kill(signal);
        return (await gone)[0];
      },
      pause: () => void child?.kill("SIGSTOP"),
      resume: () => void child?.kill("SIGCONT"),
      async spawn(more = {}) {
        if (child !== undefined) return;
        const clock = join(root, "tests/faults/stepped-clock.mjs");
        const started = spawn(process.execPath, ["--import", clock, "--conditions=@loraline/source", join(root, programs[program])], {
          env: {
            LORALINE_TEST_CLOCK: clockFile,
            ...common,
            NATS_URL: natsUrl(id),
            ...loginOf(program),
            ...env,
            PORT: String(port),
            HEALTH_PORT: String(healthPort),
            METRICS_PORT: String(metricsPort),
            ...own,
            ...more,
          },
          stdio: ["ignore", "pipe", "pipe"],
        });
        child = started;
        const start = ++starts;
        started.once("exit", () => {
          if (child === started) child = undefined;
          if (expected === started || closing) return;
          // A service that ends by itself is started again, as by Kubernetes.
          endedByItself.push(start);
          setTimeout(() => {
            if (child === undefined && !closing) service.spawn(more).catch(() => {});
          }, 1000);
        });
        for (const output of [started.stdout, started.stderr]) output.pipe(createWriteStream(log, { flags: "a" }));
        await once(started, "spawn");
      },
      stepClock: (ms) => writeFile(clockFile, String(ms)),
      readyz,
      ready: () => eventually(`${id} is ready`, 120_000, async () => ((await readyz()).trim() === "ok" ? true : undefined)).then(() => {}),
    };
    return service;
  };

  const start: Services["start"] = async (program, { id = program, env: own = {}, wait = true } = {}) => {
    const service = await create(program, id, own);
    all.push(service);
    await service.spawn();
    if (wait) await service.ready();
    return service;
  };
  return {
    all,
    start,
    startAgent: (id, engineUrl, { publicUrl = engineUrl, wait = true } = {}) =>
      start("agent", {
        id,
        wait,
        env: {
          AGENT_ENGINE: engineName,
          AGENT_REPLICA: id,
          AGENT_BASE: base,
          AGENT_ENGINE_URL: engineUrl,
          AGENT_PUBLIC_URL: publicUrl,
          AGENT_ADAPTERS_DIR: join(dir, "adapters", id),
        },
      }),
    client: ({ url }) => clientOf({ url, apiKey: bootstrapKey }),
    async lastWords() {
      const words = all.map(async ({ id, pid }) => {
        const log = await readFile(join(dir, "logs", `${id}.log`), "utf8").catch(() => "");
        const lines = log.trimEnd().split("\n").slice(-5);
        return `--- ${id} (${pid === undefined ? "does not run" : "runs"})\n${lines.map((line) => line.slice(0, 500)).join("\n")}`;
      });
      return (await Promise.all(words)).join("\n");
    },
    async [Symbol.asyncDispose]() {
      closing = true;
      await Promise.all(
        all.map(async (service) => {
          service.resume();
          const late = setTimeout(() => void service.kill(), 30_000);
          await service.kill("SIGTERM");
          clearTimeout(late);
        }),
      );
      process.off("exit", killAll);
    },
  };
}

type NatsServer = Awaited<ReturnType<typeof spawnNatsServer>>;

export interface SimulatedLine<Nats = NatsServer> extends AsyncDisposable {
  readonly nats: Nats;
  readonly nc: NatsConnection;
  readonly services: Services;
  readonly engines: readonly SimulatedEngine[];
  /** Gateways and agents are numbered from 1. */
  readonly gateways: readonly ServiceUnderTest[];
}

interface LineOptions extends Omit<ServicesOptions, "natsUrl"> {
  gateways?: number;
  agents?: number;
  /** More arguments of nats-server. */
  natsArgs?: string[];
  /** Tenants whose own programs use NATS: as in an installation, each in an account of its own, through its door (`natsLoginOf`). */
  natsTenants?: readonly string[];
  /** Where a service finds the server at `direct`. */
  natsUrl?: (id: string, direct: string) => Promise<string>;
}

/** What a tenant's own program has in its environment, on a line with `natsTenants`. */
export const natsLoginOf = (name: string, url: string) => ({
  NATS_URL: url,
  NATS_USER: natsUserOf(name),
  NATS_PASS: passwordOf(natsUserOf(name)),
});
/** Fills a state directory as a server on this machine leaves it while it runs, so that the CLI finds a line with `natsTenants` there. */
export async function announceLineIn(dir: string, line: SimulatedLine): Promise<void> {
  const { NATS_URL, NATS_USER, NATS_PASS } = natsLoginOf(tenant, line.nats.url);
  const file = { url: line.gateways[0]?.url, natsUrl: NATS_URL, pid: process.pid, identity: processIdentity(process.pid), tenant };
  await writeFile(join(dir, "line.json"), JSON.stringify(file));
  await writeFile(join(dir, "api-key"), bootstrapKey);
  await writeFile(join(dir, "nats-auth"), JSON.stringify({ [NATS_USER]: NATS_PASS }));
}
const passwordOf = (user: string): string => `p-${user}`;
/** Each service is a user of its own, with the rights that it has in a cluster. */
const loginOf = (user: string) => ({ NATS_USER: user, NATS_PASS: passwordOf(user), NATS_INBOX_PREFIX: inboxPrefixOf(user) });

/**
 * Accounts and users as in an installation, as configuration of nats-server. A test itself needs no password, and may do everything.
 * @param tenants - whose own programs may connect.
 */
function natsConfig(tenants: readonly string[] = []): string {
  const accounts = natsAccounts({ tenants, administrators: ["local"], passwordOf });
  return `no_auth_user: local\naccounts: ${JSON.stringify(accounts)}\n`;
}

/** A NATS server for services that are processes of their own. @param more - arguments of nats-server. */
export async function spawnNatsForServices(
  dir: string,
  { tenants = [], more = [] }: { tenants?: readonly string[]; more?: string[] } = {},
) {
  const file = join(dir, "nats.conf");
  await writeFile(file, natsConfig(tenants));
  return spawnNatsServer({ args: ["-c", file, ...more] });
}

/** A whole line: every service once, and as many gateways, and agents with simulated engines, as are asked for. */
export const startSimulatedLine = (options: LineOptions): Promise<SimulatedLine> =>
  startOn(options, async () => {
    const nats = await spawnNatsForServices(options.dir, { tenants: options.natsTenants ?? [], more: options.natsArgs ?? [] });
    return { nats, url: nats.url, replicas: 1 };
  });

/** The same on three NATS servers. Each process knows all of them: one that starts while a server is away, as an attempt does, asks another. */
export const startReplicatedLine = (options: LineOptions): Promise<SimulatedLine<NatsCluster>> =>
  startOn(options, async () => {
    const nats = await spawnNatsCluster({ config: natsConfig(options.natsTenants) });
    return { nats, url: nats.servers.map(({ url }) => url).join(","), replicas: 3 };
  });

async function startOn<Nats extends NatsServer | NatsCluster>(
  { gateways = 1, agents = 1, natsUrl = async (_id, direct) => direct, natsTenants = [], env, ...rest }: LineOptions,
  startNats: () => Promise<{ nats: Nats; url: string; replicas: number }>,
): Promise<SimulatedLine<Nats>> {
  const owned = new AsyncDisposableStack();
  try {
    const { nats, url, replicas } = await startNats();
    owned.use(nats);
    const nc = await nats.connect({ maxReconnectAttempts: -1, reconnectTimeWait: 250 });
    owned.defer(() => nc.close());
    await eventually("the streams are there", 60_000, () => ensureStreams(nc, { replicas, tenants: natsTenants }).then(() => true));
    await createJetStreamObjects(nc, { replicas });
    const numbered = (name: string, count: number) => Array.from({ length: count }, (_, n) => `${name}-${n + 1}`);
    const ids = [...numbered("gateway", gateways), ...numbered("agent", agents), "ingest", "tokenize", "train", "serve"];
    const urls = new Map(await Promise.all(ids.map(async (id) => [id, await natsUrl(id, url)] as const)));
    const engines = await Promise.all(Array.from({ length: agents }, async () => owned.use(await createSimulatedEngine({ base }))));
    const script = { simulated: true, steps: 12, save_steps: 4, step_ms: 20 };
    const services = owned.use(
      await createServices({ script, ...rest, env: { NATS_TENANTS: natsTenants.join(), ...env }, natsUrl: (id) => urls.get(id) ?? url }),
    );
    for (const id of ["ingest", "tokenize", "train", "serve"] as const) await services.start(id, { wait: false });
    for (const id of numbered("gateway", gateways)) await services.start("gateway", { id, wait: false });
    for (const [n, engine] of engines.entries()) await services.startAgent(`agent-${n + 1}`, engine.url, { wait: false });
    await Promise.all(services.all.map((service) => service.ready()));
    return {
      nats,
      nc,
      services,
      engines,
      gateways: services.all.filter(({ program }) => program === "gateway"),
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  } catch (error) {
    await owned.disposeAsync();
    throw error;
  }
}
