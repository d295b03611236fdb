/**
 * Measures the gateway and what it is compared with, in one run:
 *
 *   null engine   added latency; requests per second of a core and memory beside LiteLLM's proxy
 *   vLLM          added latency; tokens per second with many adapters, through the gateway and direct (skipped where it cannot start)
 *   simulation    affinity against random routing, with more adapters than an engine holds at once
 *
 * The load of the comparison comes from autocannon. CPU time is read for each process (/proc), so that others on the same cores do not
 * count.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type Bus, createBus, ensureStreams } from "@loraline/bus";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import type { NatsConnection } from "@nats-io/transport-node";
import { Agent, request } from "undici";
import { createApiKey } from "../../services/gateway/src/access/auth.ts";
import {
  adapterOf,
  heldBy,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  versionOf,
} from "../../services/gateway/src/gateway-under-test.ts";
import { eventually, root, scratchDir } from "../line-under-test.ts";
import { measureAffinity } from "./gateway-affinity.ts";
import { drawThroughput } from "./gateway-plot.ts";
import { startRealEngine } from "./gateway-vllm.ts";
import { percentile, type Row } from "./table.ts";

const tenant = "bench";
const nullBase = "null-base";
/** Seconds of load for each point of the comparison. */
export const loadSeconds = 6;
const require = createRequire(import.meta.url);

interface Child extends AsyncDisposable {
  process: ChildProcess;
  /** @returns the CPU seconds so far. */
  cpu(): Promise<number>;
  /** @returns the resident memory, in MiB. */
  rss(): Promise<number>;
}

/** Starts a process that ends with the benchmark; `ready` gets each line that it prints. */
async function startChild<T>(
  command: string,
  args: readonly string[],
  env: Record<string, string | undefined>,
  ready: ((line: string) => T | undefined) | T,
): Promise<Child & { said: T }> {
  const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"], cwd: root });
  const tail: string[] = [];
  const said = await new Promise<T>((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface(stream).on("line", (line) => {
        tail.push(line);
        if (tail.length > 20) tail.shift();
        const found = ready instanceof Function ? ready(line) : undefined;
        if (found !== undefined) resolve(found);
      });
    }
    if (!(ready instanceof Function)) resolve(ready);
    child.once("exit", (code) => reject(new Error(`${command} ended with ${code}:\n${tail.join("\n")}`)));
    child.once("error", reject);
  });
  return {
    process: child,
    said,
    async cpu() {
      const fields = (await readFile(`/proc/${child.pid}/stat`, "utf8")).split(") ")[1]?.split(" ") ?? [];
      return (Number(fields[11]) + Number(fields[12])) / 100;
    },
    async rss() {
      return Number(/VmRSS:\s+(\d+) kB/.exec(await readFile(`/proc/${child.pid}/status`, "utf8"))?.[1]) / 1024;
    },
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null) return;
      const ended = new Promise((resolve) => {
        child.once("exit", resolve);
      });
      child.kill("SIGKILL");
      await ended;
    },
  };
}

export const node = (script: string, env: Record<string, string | undefined>, ready: (line: string) => string | undefined) =>
  startChild(process.execPath, ["--conditions=@loraline/source", join(root, script)], { NODE_ENV: "production", ...env }, ready);

/**
 * A gateway process of its own, with NATS, and the engines that are put into its KV.
 * @param prepare - runs before the gateway starts.
 */
export async function startStack(prepare: (of: { nc: NatsConnection; bus: Bus }) => Promise<void> = async () => {}) {
  await using starting = new AsyncDisposableStack();
  const nats = starting.use(await spawnNatsServer());
  const nc = await nats.connect();
  starting.defer(() => nc.close());
  await ensureStreams(nc);
  const log = createLog({ service: "bench", level: "error" });
  const bus = createBus({ nc, log, telemetry: starting.use(createTelemetry({ service: "bench" })), source: "bench" });
  await prepare({ nc, bus });
  const gateway = starting.use(
    await node(
      "services/gateway/src/main.ts",
      // As the chart starts it.
      { NATS_URL: nats.url, HOST: "127.0.0.1", PORT: "0", METRICS_PORT: "0", NODE_OPTIONS: "--max-semi-space-size=16" },
      (line) => (line.includes("gateway is listening") ? (JSON.parse(line) as { url: string }).url : undefined),
    ),
  );
  const key = await createApiKey({ bus }, { tenant, name: "bench" });
  /** Writes heartbeats, because there are no agents here that do. */
  const beats = new Map<string, () => Promise<void>>();
  const timer = setInterval(() => {
    for (const beat of beats.values()) void beat();
  }, 3000);
  starting.defer(() => clearInterval(timer));
  const owned = starting.move();
  return {
    bus,
    gateway,
    key,
    async replica(name: string, beat: () => Promise<void>) {
      beats.set(name, beat);
      await beat();
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
type Stack = Awaited<ReturnType<typeof startStack>>;

interface Target {
  name: string;
  url: string;
  headers: Record<string, string>;
  /** Name of the model in requests to it. */
  model: string;
}

const agent = new Agent({ pipelining: 1, connections: 256 });

/** Milliseconds to the first byte of the body, and to its end. */
async function askOnce({ url, headers, model }: Target, body: object): Promise<{ first: number; last: number }> {
  const began = performance.now();
  const answer = await request(`${url}/v1/chat/completions`, {
    method: "POST",
    dispatcher: agent,
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ ...body, model }),
  });
  let first = 0;
  for await (const _part of answer.body) if (first === 0) first = performance.now() - began;
  if (answer.statusCode !== 200) throw new Error(`${url} answered ${answer.statusCode}`);
  return { first, last: performance.now() - began };
}

/**
 * Sends the same requests to both, in turns, so that other load of the machine affects both alike. The time that the null engine waits on
 * purpose is subtracted.
 * @param load.delayMs - about how long the engine waits; each request has another time, so that answers do not come in the same millisecond.
 */
async function measureLatency(
  targets: readonly [Target, Target],
  body: object,
  { streams, rounds, each, delayMs }: { streams: number; rounds: number; each: number; delayMs: number },
) {
  const times: [number[], number[]] = [[], []];
  for (let round = -1; round < rounds; round++) {
    for (const index of [0, 1] as const) {
      await Promise.all(
        Array.from({ length: streams }, async (_, stream) => {
          for (let n = 0; n < each; n++) {
            const wait = Math.round(delayMs * (0.5 + ((stream * 37 + n * 61 + round * 17) % 100) / 100));
            const { first } = await askOnce(targets[index], wait === 0 ? body : { ...body, seed: wait });
            if (round >= 0) times[index].push(first - wait); // the first round is to warm up
          }
        }),
      );
    }
  }
  const [direct, through] = times;
  const added = (rank: number) => Number(percentile(through, rank)) - Number(percentile(direct, rank));
  return { p50: added(50), p99: added(99), direct50: Number(percentile(direct, 50)), count: through.length };
}

/** Runs autocannon in a process of its own. */
export async function cannon(
  { url, headers, model }: Target,
  connections: number,
  body: object,
): Promise<{ perSecond: number; p50: number; p99: number; failed: number }> {
  const args = ["-j", "-c", String(connections), "-d", String(loadSeconds), "-m", "POST", "-H", "content-type: application/json"];
  for (const [name, value] of Object.entries(headers)) args.push("-H", `${name}: ${value}`);
  args.push("-b", JSON.stringify({ ...body, model }), `${url}/v1/chat/completions`);
  const child = spawn(process.execPath, [require.resolve("autocannon"), ...args], { stdio: ["ignore", "pipe", "ignore"] });
  let out = "";
  for await (const part of child.stdout) out += String(part);
  const result = JSON.parse(out) as {
    requests: { average: number };
    latency: { p50: number; p99: number };
    non2xx: number;
    errors: number;
  };
  return { perSecond: result.requests.average, p50: result.latency.p50, p99: result.latency.p99, failed: result.non2xx + result.errors };
}

const say = (what: string): void => console.error(`bench: gateway: ${what} …`);
const ms = (value: number): string => `${value.toFixed(2)} ms`;
const messages = [{ role: "user", content: "Who are you?" }];

async function nullStack(stack: Stack, engineUrl: string): Promise<[Target, Target]> {
  await registerEngine(stack.bus, { engine: "null", base: { name: nullBase, revision: "1", digest: `sha256:${"0".repeat(64)}` } });
  await stack.replica("null", () => putReplica(stack.bus, replicaOf("n1", engineUrl, [], { engine: "null", base: nullBase })));
  const direct: Target = { name: "direct", url: engineUrl, headers: {}, model: nullBase };
  const through: Target = { name: "gateway", url: stack.gateway.said, headers: { authorization: `Bearer ${stack.key}` }, model: nullBase };
  await eventually("the gateway answers", 20_000, () => askOnce(through, { messages }));
  return [direct, through];
}

async function addedLatency(pair: readonly [Target, Target]): Promise<Row[]> {
  const rows: Row[] = [];
  // With 16 and 64 streams the engine waits, as real engines do. Otherwise the figure would show how long a saturated core takes.
  say("added latency");
  for (const { streams, delayMs, rounds, each } of [
    { streams: 1, delayMs: 0, rounds: 6, each: 150 },
    { streams: 16, delayMs: 50, rounds: 5, each: 12 },
    { streams: 64, delayMs: 150, rounds: 4, each: 6 },
  ]) {
    for (const stream of [false, true]) {
      const body = { messages, stream, max_tokens: stream ? 8 : 1 };
      const { p50, p99, direct50, count } = await measureLatency(pair, body, {
        streams,
        rounds,
        delayMs,
        each: stream && delayMs > 0 ? Math.ceil(each / 4) : each,
      });
      rows.push({
        what: `Gateway: added latency, ${streams} at once, ${stream ? "streamed, first byte" : "whole answers"}`,
        value: `p50 ${ms(p50)}, p99 ${ms(p99)}`,
        detail: `null engine that answers ${delayMs === 0 ? "at once" : `after ${delayMs / 2} to ${delayMs * 1.5} ms, which do not count`}; ${count} requests each, in turns; direct p50 ${ms(direct50)}`,
      });
    }
  }
  return rows;
}

/** Starts LiteLLM's proxy with one model, the same engine, and its own check of keys (the master key, which needs no database). */
async function startLiteLlm(scratch: string, engineUrl: string): Promise<{ child: Child; target: Target } | undefined> {
  const bin = join(root, ".cache/bench-litellm/bin/litellm");
  if (!existsSync(bin)) return undefined;
  const key = "sk-bench";
  const config = {
    model_list: [{ model_name: nullBase, litellm_params: { model: `openai/${nullBase}`, api_base: `${engineUrl}/v1`, api_key: "none" } }],
    general_settings: { master_key: key },
    litellm_settings: { telemetry: false, num_retries: 0 },
  };
  const file = join(scratch, "litellm.json");
  await writeFile(file, JSON.stringify(config)); // JSON is YAML
  const port = 20_000 + Math.floor(Math.random() * 20_000);
  const env = { LITELLM_LOG: "ERROR", LITELLM_LOCAL_MODEL_COST_MAP: "True", DO_NOT_TRACK: "1", DATABASE_URL: undefined };
  const args = ["--config", file, "--host", "127.0.0.1", "--port", String(port), "--num_workers", "1"];
  const child = await startChild(bin, args, env, "asked below");
  const target: Target = { name: "LiteLLM", url: `http://127.0.0.1:${port}`, headers: { authorization: `Bearer ${key}` }, model: nullBase };
  await eventually("LiteLLM answers", 120_000, () => askOnce(target, { messages }));
  return { child, target };
}

async function sideBySide(stack: Stack, engineUrl: string, through: Target): Promise<Row[]> {
  await using scratch = await scratchDir();
  await using owned = new AsyncDisposableStack();
  say("beside LiteLLM, which starts");
  const other = await startLiteLlm(scratch.path, engineUrl);
  if (other === undefined) {
    return [{ what: "Gateway beside LiteLLM", value: "skipped", detail: "LiteLLM is not installed here: `sh tests/bench/litellm-env.sh`" }];
  }
  owned.use(other.child);
  const rows: Row[] = [];
  for (const stream of [false, true]) {
    const body = { messages, stream, max_tokens: 8 };
    const perCore: number[] = [];
    for (const { child, target } of [{ child: stack.gateway, target: through }, other]) {
      say(`${target.name}${stream ? ", streams" : ""}`);
      await cannon(target, 16, body); // warm
      const before = await child.cpu();
      const { perSecond, p50, p99, failed } = await cannon(target, 16, body);
      const cpu = (await child.cpu()) - before;
      const figure = (perSecond * loadSeconds) / cpu;
      perCore.push(figure);
      rows.push({
        what: `${target.name}: ${stream ? "streams of 8 events" : "requests"} per second of one core`,
        value: `${Math.round(figure)}`,
        detail: `autocannon, 16 connections, ${loadSeconds} s, null engine, key checked: ${Math.round(perSecond)}/s, p50 ${p50} ms, p99 ${p99} ms, ${cpu.toFixed(1)} s CPU, ${Math.round(await child.rss())} MiB resident${failed > 0 ? `, ${failed} failed` : ""}`,
      });
    }
    rows.push({
      what: `Gateway over LiteLLM, ${stream ? "streams" : "requests"}`,
      value: `${((perCore[0] ?? 0) / (perCore[1] ?? 1)).toFixed(1)} ×`,
      detail: "per second of one core; one run, one machine, the same job",
    });
  }
  return rows;
}

/** The load of one point of the throughput measurement. */
const throughputLoad = { atOnce: 8, requests: 32, tokens: 16 };

export async function benchGatewayOnVllm(): Promise<Row[]> {
  await using scratch = await scratchDir();
  say("vLLM starts");
  const engine = await startRealEngine(scratch.path, 32);
  if (engine === undefined)
    return [{ what: "Gateway on vLLM", value: "skipped", detail: "no Python environment or base here: `make setup`" }];
  await using _engine = engine;
  await using stack = await startStack();
  const { bus, gateway, key } = stack;
  await registerEngine(bus, { base: { name: engine.base, revision: "1", digest: `sha256:${"0".repeat(64)}` } });
  const adapters = Array.from({ length: 32 }, (_, index) => {
    const version = versionOf(tenant, `a${index}`, 1, { engineName: engine.adapters[index] ?? "" });
    return { version, state: adapterOf(tenant, `a${index}`, [version], { base: engine.base }) };
  });
  for (const { state } of adapters) await putAdapter(bus, state);
  const held = adapters.map(({ state, version }) => heldBy(state, version));
  await stack.replica("vllm", () => putReplica(bus, replicaOf("v1", engine.url, held, { base: engine.base })));
  const through: Target = { name: "gateway", url: gateway.said, headers: { authorization: `Bearer ${key}` }, model: engine.base };
  const direct: Target = { name: "direct", url: engine.url, headers: {}, model: engine.base };
  await eventually("the gateway answers for the last adapter", 60_000, () =>
    askOnce({ ...through, model: `${tenant}/a31` }, { messages, max_tokens: 1 }),
  );

  const rows: Row[] = [];
  for (const { streams, rounds, each } of [
    { streams: 1, rounds: 12, each: 4 },
    { streams: 16, rounds: 3, each: 1 },
    { streams: 64, rounds: 2, each: 1 },
  ]) {
    const { p50, p99, direct50, count } = await measureLatency(
      [direct, through],
      { messages, stream: true, max_tokens: 1, temperature: 0 },
      { streams, rounds, each, delayMs: 0 },
    );
    rows.push({
      what: `Gateway on vLLM: added latency to the first token, ${streams} at once`,
      value: `p50 ${ms(p50)}, p99 ${ms(p99)}`,
      detail: `${count} requests each, in turns; direct p50 ${ms(direct50)}: differences far below it are the engine's own spread`,
    });
  }

  const { atOnce, requests, tokens } = throughputLoad;
  /** @returns tokens per second; requests go to the adapters in turn. */
  const speedOf = async (target: Target, models: readonly string[]): Promise<number> => {
    let next = 0;
    const began = performance.now();
    await Promise.all(
      Array.from({ length: atOnce }, async () => {
        while (next < requests) {
          const model = models[next++ % models.length] ?? "";
          await askOnce({ ...target, model }, { messages, max_tokens: tokens, ignore_eos: true, stream: true, temperature: 0 });
        }
      }),
    );
    return (requests * tokens * 1000) / (performance.now() - began);
  };
  const points: { adapters: number; path: string; tokensPerSecond: number }[] = [];
  for (const count of [0, 1, 4, 8, 32]) {
    say(`vLLM with ${count} adapters`);
    const own = adapters.slice(0, count);
    const names = { direct: own.map(({ version }) => version.engineName), gateway: own.map(({ state }) => `${tenant}/${state.adapter}`) };
    const asked = count === 0 ? { direct: [engine.base], gateway: [engine.base] } : names;
    const speeds = { direct: [] as number[], gateway: [] as number[] };
    await speedOf(direct, asked.direct);
    // In turns, and each is first once, so that neither has the warmer engine.
    for (const path of ["direct", "gateway", "gateway", "direct"] as const) {
      speeds[path].push(await speedOf(path === "direct" ? direct : through, asked[path]));
    }
    const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const [own50, through50] = [mean(speeds.direct), mean(speeds.gateway)];
    points.push(
      { adapters: count, path: "direct", tokensPerSecond: own50 },
      { adapters: count, path: "gateway", tokensPerSecond: through50 },
    );
    rows.push({
      what: `vLLM's tokens per second, ${count === 0 ? "base alone" : `${count} adapter${count === 1 ? "" : "s"}`}`,
      value: `gateway ${through50.toFixed(1)}, direct ${own50.toFixed(1)}: ${(through50 / own50).toFixed(3)}`,
      detail: `${atOnce} at once, ${requests} requests of ${tokens} tokens, twice each in turns; max_loras ${engine.maxLoras}`,
    });
  }
  await mkdir(".cache", { recursive: true });
  await writeFile(".cache/gateway-throughput.svg", await drawThroughput(points));
  rows.push({
    what: "Plot of these",
    value: ".cache/gateway-throughput.svg",
    detail: "tokens per second over adapters, gateway and direct",
  });
  return rows;
}

export async function benchGateway(): Promise<Row[]> {
  const rows: Row[] = [];
  {
    await using engine = await node("tests/bench/null-engine.ts", {}, (line) => line);
    await using stack = await startStack();
    const pair = await nullStack(stack, engine.said);
    rows.push(...(await addedLatency(pair)));
    rows.push(...(await sideBySide(stack, engine.said, pair[1])));
  }
  say("affinity");
  rows.push(...(await measureAffinity()));
  return rows;
}
