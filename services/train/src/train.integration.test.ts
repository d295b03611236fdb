/** The whole of train over a real NATS: controller, process launcher, courier processes; a scripted trainer that has faults on request. */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { type Bus, createBus, ensureStreams } from "@loraline/bus";
import {
  adapterManifest,
  type BaseRef,
  buckets,
  consumers,
  events,
  evidence,
  foldRun,
  type RunEvent,
  runEvents,
  runKey,
  runSpec,
  type RunSpecInput,
  type RunState,
  type TokenManifest,
  tokenManifest,
} from "@loraline/contracts";
import { createJetStreamObjects, createS3Objects, getBytes, getJson, type Objects, putJson } from "@loraline/objects";
import { createLog, createTelemetry, processIdentity, readSpans, traceIdOf } from "@loraline/runtime";
import { spawnNatsServer, spawnS3Server, startProxy } from "@loraline/testkit";
import { Field, Int32, List, Table, tableToIPC, vectorFromArray } from "apache-arrow";
import { ulid } from "ulid";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { courierCommand, createProcessLauncher, type ProcessLauncherOptions } from "./launchers/process-launcher.ts";
import { createTrainService } from "./controller/service.ts";
import { createWarmTrainers } from "./trainer-host/warm-trainers.ts";

const root = join(import.meta.dirname, "../../..");
const python = join(root, ".venv/bin/python");
const log = createLog({ service: "test", level: process.env.TEST_LOG ?? "silent" });
const tenant = "acme";
const base: BaseRef = { name: "tiny", revision: "r1", digest: `sha256:${"b".repeat(64)}` };
const traceparent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01";
const within = { timeout: 30_000, interval: 50 };

interface Script {
  steps?: number;
  save_steps?: number;
  step_ms?: number;
  linger_s?: number;
  simulated?: boolean;
  evaluate_ms?: number;
  faults?: Record<number, { kind: string; at?: number; error?: object }> | undefined;
}

let stack: AsyncDisposableStack;
let dir: string;
let nats: Awaited<ReturnType<typeof spawnNatsServer>>;
let bus: Bus;
let objects: Objects;

beforeEach(async () => {
  stack = new AsyncDisposableStack();
  dir = mkdtempSync(join(tmpdir(), "loraline-train-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  mkdirSync(join(dir, "bases", base.name), { recursive: true });
  writeFileSync(join(dir, "bases", base.name, "base.json"), JSON.stringify(base));
  nats = stack.use(await spawnNatsServer());
  const nc = await nats.connect({ maxReconnectAttempts: -1, reconnectTimeWait: 100 });
  stack.defer(() => nc.close());
  await ensureStreams(nc);
  objects = await createJetStreamObjects(nc);
  bus = createBus({ nc, log, telemetry: stack.use(createTelemetry({ service: "test" })), source: "test" });
  // The projector belongs to the gateway, and services do not import each other.
  const runs = await bus.bucket(buckets.runs);
  const project = async (received: RunEvent): Promise<void> => {
    await runs.change(runKey(received.at), (state) => foldRun(state, received));
  };
  stack.use(await bus.consume({ consumer: consumers.projectorRuns, handlers: project, traced: false }));
});
afterEach(async () => {
  await stack.disposeAsync();
});

const attemptsDir = () => join(dir, "attempts");
const courierEnv = (script: Script, more: Record<string, string> = {}) => ({
  PATH: process.env.PATH,
  NODE_COMPILE_CACHE: join(root, ".cache/node"), // of all tests, each of which has a folder of its own
  NATS_URL: nats.url,
  LORALINE_BASES_DIR: join(dir, "bases"),
  LORALINE_PYTHON: python,
  LORALINE_TRAINER: join(import.meta.dirname, "scripted-trainer.py"),
  LORALINE_SPANS_DIR: join(dir, "spans"),
  TRAINER_SCRIPT: JSON.stringify(script),
  ...more,
});

async function startTrain(script: Script, options: Partial<ProcessLauncherOptions> = {}, more: Record<string, string> = {}) {
  const started = new AsyncDisposableStack();
  const telemetry = started.use(createTelemetry({ service: "train", spansDir: join(dir, "spans") }));
  const launcher = started.use(
    await createProcessLauncher({
      dir: attemptsDir(),
      courierCommand: courierCommand(process.execPath),
      env: courierEnv(script, more),
      log,
      ...options,
    }),
  );
  started.use(await createTrainService({ bus, log, telemetry, launcher, resyncMs: 500 }));
  stack.defer(() => started.disposeAsync());
  return { launcher, stop: () => started.disposeAsync() };
}

async function tokens(
  of: BaseRef = base,
  contents: { train: (string | Uint8Array)[]; eval: (string | Uint8Array)[] } = { train: ["shard-1", "shard-2"], eval: ["shard-eval"] },
): Promise<{ manifest: TokenManifest; ref: Awaited<ReturnType<typeof putJson>> }> {
  const zero = `sha256:${"0".repeat(64)}` as const;
  const shard = async (content: string | Uint8Array) => ({
    blob: await objects.put(tenant, "shard", content),
    rows: 1,
    sequences: 1,
    tokens: 1,
    supervised: 1,
  });
  const manifest = tokenManifest.parse({
    version: 1,
    cacheKey: zero,
    base: of,
    tokenizerDigest: zero,
    templateDigest: `sha256:${"7".repeat(64)}`,
    template: "base",
    maxLength: 128,
    packed: false,
    seed: 1,
    code: "1",
    train: await Promise.all(contents.train.map(shard)),
    eval: await Promise.all(contents.eval.map(shard)),
    totals: { sequences: 3, tokens: 3, supervised: 3, evalSequences: 1, evalSupervised: 1, dropped: 0 },
    dropped: [],
    reasons: {},
    noted: [],
    notes: {},
    templateFamily: null,
    probes: [{ name: "p", input_ids: [1, 2] }],
  });
  return { manifest, ref: await putJson(objects, tenant, "tokens", manifest) };
}

async function request(more: Partial<RunSpecInput> = {}) {
  const at = { tenant, id: ulid() };
  const spec = runSpec.parse({ base: base.name, adapter: "pirate", dataset: ulid(), ...more });
  await bus.publish(events.runRequested, at, { spec }, { traceparent });
  return {
    at,
    tokenized: async (ref?: Awaited<ReturnType<typeof putJson>>) => {
      const { manifest, ref: made } = await tokens();
      const data = { manifest: ref ?? made, totals: manifest.totals, packed: false, cacheHit: false };
      await bus.publish(events.runTokenized, at, data, { traceparent });
    },
  };
}
async function newRun(more: Partial<RunSpecInput> = {}) {
  const { at, tokenized } = await request(more);
  await tokenized();
  return at;
}
type At = { tenant: string; id: string };
const told = (at: At) => bus.history(runEvents, at);
const types = async (at: At) => (await told(at)).map(({ type }) => type.replace(/^run\.|\.v1$/g, ""));
const data = async (at: At, type: string) => (await told(at)).filter((event) => event.type === `run.${type}.v1`).map((event) => event.data);
const state = async (at: At) => (await (await bus.bucket(buckets.runs)).get(`${at.tenant}.${at.id}`))?.value as RunState;
const ended = (at: At, phase: RunState["phase"] = "trained") => expect.poll(async () => (await state(at)).phase, within).toBe(phase);
const progress = async (at: At) => (await bus.history([events.runProgress], at)).map((event) => event.data as Record<string, unknown>);
const steps = async (at: At) =>
  (await progress(at)).filter(({ loss }) => typeof loss === "number").map(({ attempt, step }) => [attempt, step]);
const reachesStep = (at: At, step: number) =>
  expect.poll(async () => Math.max(0, ...(await progress(at)).map((told) => Number(told.step))), within).toBeGreaterThanOrEqual(step);
const attemptFile = (at: At, attempt: number, name: string) => join(attemptsDir(), `train-${at.id.toLowerCase()}-${attempt}`, name);
const pidOf = (at: At, attempt: number, of: "process" | "trainer"): number =>
  (JSON.parse(readFileSync(attemptFile(at, attempt, `${of}.json`), "utf8")) as { pid: number }).pid;
const cleanedUp = () => expect.poll(() => readdirSync(attemptsDir()).filter((name) => !name.startsWith(".")), within).toEqual([]);
const adapterOf = async (at: At) => ((await data(at, "trained"))[0] as { adapter: { digest: string } }).adapter.digest;
const range = (attempt: number, from: number, to: number) => Array.from({ length: to - from + 1 }, (_, n) => [attempt, from + n]);

/** The digest of what a training ends with that nothing interrupts: `scripted-trainer.py` in other words. */
function expectedWeights(count: number): string {
  const hex = (text: string) => createHash("sha256").update(text).digest("hex");
  const lora = runSpec.parse({ base: "b", adapter: "a", dataset: ulid() }).lora;
  // Python's json.dumps puts a space behind colons and commas.
  let chain = hex(`shard-evalshard-1shard-2${JSON.stringify(lora).replaceAll(":", ": ").replaceAll(",", ", ")}`);
  for (let step = 1; step <= count; step++) chain = hex(`${chain}/${step}`);
  return chain;
}

describe("a run that nothing disturbs", () => {
  test("stores with each checkpoint what it takes to serve it; without that the checkpoint is stored all the same", async () => {
    await startTrain({ steps: 7, save_steps: 4, simulated: true });
    const at = await newRun();
    await ended(at);
    await expect.poll(() => data(at, "checkpointed")).toHaveLength(1);
    const { published } = events.runCheckpointed.data.parse((await bus.last(events.runCheckpointed, at))?.data);
    if (!published) throw new Error("the checkpoint has no adapter");
    const [manifest, proof] = [
      await getJson(objects, tenant, published.adapter, adapterManifest),
      await getJson(objects, tenant, published.evidence, evidence),
    ];
    expect(manifest.files.map(({ path }) => path)).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
    for (const { blob } of manifest.files) expect(await objects.head(tenant, blob)).toEqual({ size: blob.size });
    expect(proof).toMatchObject({
      runId: at.id,
      adapter: published.adapter.digest,
      evaluation: null,
      environment: { compute_type: "float32" },
    });
    expect(proof.probes.length).toBeGreaterThan(0);
    const trained = events.runTrained.data.parse((await bus.last(events.runTrained, at))?.data);
    expect(trained.adapter.digest).not.toBe(published.adapter.digest);
  });

  test("has its courier send logs and metrics to the collector, the last ones at its end", async () => {
    const received: { path: string; body: string }[] = [];
    const collector = createServer((asked, response) => {
      void text(asked).then((body) => {
        received.push({ path: asked.url ?? "", body });
        response.writeHead(200, { "content-type": "application/json" }).end("{}");
      });
    });
    await once(collector.listen(0, "127.0.0.1"), "listening");
    stack.defer(() => void collector.close());
    const endpoint = `http://127.0.0.1:${(collector.address() as AddressInfo).port}`;
    await startTrain({ steps: 2 }, {}, { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint });
    const at = await newRun();
    await ended(at);
    await cleanedUp();
    const sent = (path: string) => received.filter((one) => one.path === path && one.body.includes('"stringValue":"courier"'));
    expect(sent("/v1/logs").some(({ body }) => body.includes(at.id))).toBe(true);
    expect(sent("/v1/metrics").some(({ body }) => body.includes("process_resident_memory_bytes"))).toBe(true);
  });

  test("tells everything, stores adapter and evidence, and leaves nothing", async () => {
    await startTrain({ steps: 10, save_steps: 4 });
    const at = await newRun();
    await ended(at);
    await cleanedUp();
    // Checkpoints do not hold up anything, so they come when they come.
    expect((await types(at)).filter((type) => type !== "checkpointed")).toEqual(["requested", "tokenized", "started", "trained"]);
    expect(await data(at, "checkpointed")).toMatchObject([
      { attempt: 1, step: 4, trainLoss: 4 / 5 },
      { attempt: 1, step: 8, trainLoss: 4 / 9 },
    ]);
    expect(await steps(at)).toEqual(range(1, 1, 10));
    expect((await progress(at)).filter(({ loss }) => typeof loss !== "number").map(({ phase }) => phase)).toEqual([
      "load_base",
      "train",
      "save",
    ]);
    expect((await progress(at)).at(-2)).toMatchObject({
      phase: "train",
      step: 10,
      totalSteps: 10,
      epoch: 1,
      loss: 4 / 11,
      tokensPerSecond: 1000,
      tokensSeen: 1000,
      etaSeconds: 0,
    });

    const trained = await bus.last(events.runTrained, at);
    const parsed = events.runTrained.data.parse(trained?.data);
    expect(parsed).toMatchObject({
      attempt: 1,
      rank: 8,
      parameters: 123,
      steps: 10,
      trainLoss: 4 / 11,
      trainedTokens: 1000,
      tokensPerSecond: 1000,
    });
    const manifest = await getJson(objects, tenant, parsed.adapter, adapterManifest);
    expect(manifest).toMatchObject({ version: 1, base, rank: 8, targetModules: ["q_proj", "v_proj"], parameters: 123 });
    expect(manifest.files.map(({ path }) => path)).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
    const weights = await getBytes(objects, tenant, manifest.files[1]?.blob as never);
    expect(Buffer.from(weights).toString()).toBe(expectedWeights(10));
    expect(await getJson(objects, tenant, parsed.evidence, evidence)).toMatchObject({
      runId: at.id,
      adapter: parsed.adapter.digest,
      templateDigest: `sha256:${"7".repeat(64)}`,
      evaluation: { base_loss: 4 },
      lossHistory: Array.from({ length: 10 }, (_, n) => [n + 1, 4 / (n + 2)]),
    });

    const traceId = traceIdOf(traceparent) as string;
    expect(traceIdOf(trained?.trace)).toBe(traceId);
    const spans = () => readSpans(join(dir, "spans"), traceId);
    await expect
      .poll(async () => (await spans()).map(({ service, name }) => `${service} ${name}`).sort(), within)
      .toEqual([
        "courier fetch inputs",
        "courier store adapter",
        "courier train",
        "train launch",
        "trainer load_base",
        "trainer save",
        "trainer train",
      ]);
    const all = await spans();
    const train = all.find(({ name, service }) => name === "train" && service === "courier");
    expect(train?.parentSpanId).toBe(all.find(({ name }) => name === "launch")?.spanId);
    expect(all.filter(({ service }) => service === "trainer").map(({ parentSpanId }) => parentSpanId)).toEqual(
      Array(3).fill(train?.spanId),
    );
    expect(trained?.trace?.split("-")[2]).toBe(train?.spanId);
  });

  test("sends its adapter ahead while it is evaluated, with the probes that its evidence has, too", async () => {
    await startTrain({ steps: 3, simulated: true, evaluate_ms: 1500 });
    const at = await newRun();
    await expect.poll(() => bus.last(events.runAdapterWritten, at), within).toBeDefined();
    expect(await bus.last(events.runTrained, at)).toBeUndefined();
    const ahead = events.runAdapterWritten.data.parse((await bus.last(events.runAdapterWritten, at))?.data);
    const { files } = await getJson(objects, tenant, ahead.adapter, adapterManifest);
    for (const { blob } of files) expect(await objects.head(tenant, blob)).toEqual({ size: blob.size });
    const early = await getJson(objects, tenant, ahead.evidence, evidence);
    expect(early).toMatchObject({ runId: at.id, adapter: ahead.adapter.digest, evaluation: null });

    await ended(at);
    const trained = events.runTrained.data.parse((await bus.last(events.runTrained, at))?.data);
    expect(trained.adapter).toEqual(ahead.adapter);
    const late = await getJson(objects, tenant, trained.evidence, evidence);
    expect(late).toMatchObject({ probes: early.probes, environment: early.environment, evaluation: { base_loss: 4 } });
    expect((await told(at)).filter(({ type }) => type === "run.adapter-written.v1")).toHaveLength(1);
  });

  test("two trainings of the same give the same digest", async () => {
    await startTrain({ steps: 3 }, { slots: 2 });
    const [a, b] = [await newRun(), await newRun()];
    await ended(a);
    await ended(b);
    expect(await adapterOf(a)).toBe(await adapterOf(b));
  });

  test("is trained as soon as the result is there, though Python takes its time to end", async () => {
    await startTrain({ steps: 1, linger_s: 3 });
    const at = await newRun();
    await ended(at);
    const courier = pidOf(at, 1, "process");
    expect(processIdentity(courier)).toBeDefined();
    await cleanedUp();
    expect((await told(at)).map(({ type }) => type)).not.toContain("run.attempt-ended.v1");
  });

  test("survives lines it does not understand, and passes warnings on", async () => {
    await startTrain({ steps: 4, faults: { 1: { kind: "noise", at: 2 } } });
    const at = await newRun();
    await ended(at);
    expect((await progress(at)).filter(({ warning }) => typeof warning === "object" && warning !== null)).toMatchObject([
      { warning: { code: "FEW_ROWS", message: "only a few rows" } },
    ]);
  });
});

describe("in line for a device", () => {
  test("runs go in the order they came, and know their place", async () => {
    await startTrain({ steps: 30, step_ms: 30 });
    const first = await newRun();
    await reachesStep(first, 1);
    const second = await newRun();
    const third = await newRun();
    await expect
      .poll(async () => (await state(third)).queue, within)
      .toEqual({
        reason: "WAITING_FOR_DEVICE",
        message: "1 run waits before this one; the device is busy",
      });
    expect((await state(second)).queue?.message).toBe("next in line; the device is busy");
    for (const at of [first, second, third]) await ended(at);
    const startedAt = async (at: At) => (await state(at)).startedAt as string;
    const [a, b, c] = [(await state(first)).trained?.at as string, await startedAt(second), await startedAt(third)];
    expect([a, b, c].toSorted()).toEqual([a, b, c]);
  });
});

describe("an object store that is away", { timeout: 100_000 }, () => {
  /** From here on blobs are in an S3 whose way can be cut. */
  async function overS3() {
    const s3 = stack.use(await spawnS3Server());
    const proxy = stack.use(await startProxy(s3.endpoint));
    objects = stack.use(createS3Objects(s3));
    const env = {
      S3_BUCKET: s3.bucket,
      S3_ENDPOINT: proxy.url,
      AWS_ACCESS_KEY_ID: s3.credentials.accessKeyId,
      AWS_SECRET_ACCESS_KEY: s3.credentials.secretAccessKey,
    };
    return { proxy, env };
  }
  const queue = async (at: At) => (await state(at)).queue;
  const waits = (at: At, message: RegExp) =>
    expect.poll(() => queue(at), within).toEqual({ reason: "STORE_UNAVAILABLE", message: expect.stringMatching(message) });

  test("before it begins, while it trains and when it has ended: it waits, says so, and nothing is made twice", async () => {
    const { proxy, env } = await overS3();
    await startTrain({ steps: 40, save_steps: 10, step_ms: 50 }, {}, env);
    await proxy.cut("refused");
    const at = await newRun();
    await waits(at, /^to fetch token manifest: the object store does not answer .*ECONNREFUSED/);
    expect((await state(at)).phase).toBe("tokenized");

    await proxy.restore();
    await reachesStep(at, 5);
    expect(await queue(at)).toBeNull();
    await proxy.cut(503);
    const warned = async () => (await progress(at)).filter(({ warning }) => warning !== null && warning !== undefined);
    await expect
      .poll(warned, within)
      .toMatchObject([{ warning: { code: "STORE_UNAVAILABLE", message: expect.stringMatching(/^to upload checkpoint 10: .*HTTP 503/) } }]);
    expect(await queue(at), "training goes on").toBeNull();

    await waits(at, /^to store adapter_\S+: the object store does not answer .*HTTP 503/);
    expect((await state(at)).phase).toBe("running");
    await sleep(3000);
    await proxy.restore();
    await ended(at);
    expect(await state(at)).toMatchObject({ attempt: 1, lostAttempts: 0, queue: null });
    expect(await steps(at)).toEqual(range(1, 1, 40));
    expect(((await data(at, "waiting")) as { reason: object | null }[]).map(({ reason }) => reason !== null)).toEqual([
      true,
      false,
      true,
      false,
    ]);
    const { adapter } = (await data(at, "trained"))[0] as { adapter: never };
    expect(await getJson(objects, tenant, adapter, adapterManifest)).toMatchObject({ version: 1 });
  });

  test("a run that is cancelled while its adapter waits ends at once; one that is cancelled before it begins, too", async () => {
    const { proxy, env } = await overS3();
    await startTrain({ steps: 5, save_steps: 100, step_ms: 100 }, { slots: 2 }, env);
    const trained = await newRun();
    await reachesStep(trained, 2);
    await proxy.cut("refused");
    await waits(trained, /^to store /);
    const early = await newRun();
    await waits(early, /^to fetch /);
    for (const at of [trained, early]) await bus.publish(events.runCancelRequested, at, {});
    for (const at of [trained, early]) await ended(at, "cancelled");
    expect(await data(trained, "trained")).toEqual([]);
    await cleanedUp();
  });

  test("wrong credentials are told apart, and mended without losing the run", async () => {
    const { env } = await overS3();
    const line = await startTrain({}, {}, { ...env, AWS_SECRET_ACCESS_KEY: "wrong" });
    const at = await newRun();
    const refused = { reason: "STORE_REFUSED", message: expect.stringMatching(/refuses this server .*HTTP 403.*mend credentials/) };
    await expect.poll(() => queue(at), within).toEqual(refused);
    await line.stop();
    await startTrain({}, {}, env);
    await ended(at);
    expect((await state(at)).queue).toBeNull();
  });
});

describe("cancelling", () => {
  test("before anything started, while waiting, and while it trains", async () => {
    await startTrain({ steps: 1000, step_ms: 20 });
    const early = (await request()).at;
    await bus.publish(events.runCancelRequested, early, {});
    await ended(early, "cancelled");

    const training = await newRun();
    await reachesStep(training, 7);
    const waiting = await newRun();
    await expect.poll(async () => (await state(waiting)).phase, within).toBe("queued");
    const trainer = pidOf(training, 1, "trainer");
    await bus.publish(events.runCancelRequested, waiting, {});
    await ended(waiting, "cancelled");
    await bus.publish(events.runCancelRequested, training, {});
    await ended(training, "cancelled");
    expect(processIdentity(trainer)).toBeUndefined();
    const said = (await types(training)).filter((type) => type !== "checkpointed");
    expect(said).toEqual(["requested", "tokenized", "started", "cancel-requested", "cancelled"]);
    await cleanedUp();
  });
});

describe("paused and resumed", () => {
  test("it gives its device to the next one, holds none until it is resumed, and goes on from its checkpoint", async () => {
    await startTrain({ steps: 40, step_ms: 50 });
    const at = await newRun();
    await reachesStep(at, 7);
    const trainer = pidOf(at, 1, "trainer");
    await bus.publish(events.runPauseRequested, at, {});
    await expect.poll(async () => (await state(at)).queue?.reason, within).toBe("PAUSED");
    expect(processIdentity(trainer)).toBeUndefined();
    await ended(await newRun());
    const paused = await state(at);
    expect(paused).toMatchObject({ phase: "queued", paused: true, attempt: 1 });
    expect(paused.checkpoints[0]?.step).toBeGreaterThanOrEqual(7);

    await bus.publish(events.runResumeRequested, at, {});
    await ended(at);
    const [started] = ((await data(at, "started")) as { attempt: number; resumedFromStep?: number }[]).filter((one) => one.attempt === 2);
    expect(started?.resumedFromStep).toBe(paused.checkpoints[0]?.step);
    await cleanedUp();
  });
});

describe("what can never work", () => {
  test.each<[string, object, Record<string, string>, string, RegExp]>([
    [
      "the trainer says so",
      {
        faults: {
          1: { kind: "fail", at: 2, error: { code: "TARGET_MODULES_INVALID", message: "none of them", param: "lora.target_modules" } },
        },
      },
      {},
      "TARGET_MODULES_INVALID",
      /none of them/,
    ],
    ["Python is missing", {}, { LORALINE_PYTHON: "/no/such/python" }, "PYTHON_MISSING", /cannot start \/no\/such\/python/],
    ["the trainer is missing", {}, { LORALINE_TRAINER: "/no/such/train.py" }, "TRAINER_MISSING", /\/no\/such\/train\.py is missing/],
    [
      "the base is missing",
      {},
      { LORALINE_BASES_DIR: "/no/bases" },
      "BASE_MISSING",
      /base "tiny" is not here: \/no\/bases\/tiny\/config\.json is missing; \/no\/bases cannot be read/,
    ],
  ])("fails at once: %s", async (_, script, env, code, message) => {
    await startTrain(script, {}, env);
    const at = await newRun();
    await ended(at, "failed");
    expect((await state(at)).error).toMatchObject({ code, message: expect.stringMatching(message) });
    expect(await types(at)).not.toContain("attempt-ended");
    await cleanedUp();
  });

  test("fails at once: another base than the one it was tokenized for, or tokens that are not there", async () => {
    await startTrain({});
    const { manifest } = await tokens();
    const other = await request();
    await other.tokenized(await putJson(objects, tenant, "tokens", { ...manifest, base: { ...base, digest: `sha256:${"c".repeat(64)}` } }));
    const gone = await request();
    await gone.tokenized({ kind: "tokens", digest: `sha256:${"d".repeat(64)}`, size: 5 });
    await ended(other.at, "failed");
    await ended(gone.at, "failed");
    expect((await state(other.at)).error?.code).toBe("BASE_MISMATCH");
    expect((await state(gone.at)).error?.code).toBe("OBJECT_MISSING");
  });
});

describe("faults", () => {
  const script = { steps: 20, save_steps: 4, step_ms: 30, evaluate_ms: 100 };

  test.each<[string, Script["faults"], number, string]>([
    ["killed in the middle", { 1: { kind: "kill", at: 10 } }, 8, "TRAINER_KILLED"],
    ["killed while it writes a checkpoint", { 1: { kind: "kill-in-checkpoint", at: 12 } }, 8, "TRAINER_KILLED"],
    ["killed before it could tell of a checkpoint", { 1: { kind: "kill-after-checkpoint", at: 12 } }, 12, "TRAINER_KILLED"],
    ["killed before the first checkpoint", { 1: { kind: "kill", at: 3 } }, 0, "TRAINER_KILLED"],
    ["killed in its evaluation", { 1: { kind: "kill-in-evaluation" } }, 20, "TRAINER_KILLED"],
    ["crashed", { 1: { kind: "crash", at: 9 } }, 8, "TRAINER_CRASHED"],
    ["out of disk", { 1: { kind: "no-space", at: 9 } }, 8, "DISK_FULL"],
  ])("the trainer is %s: the next attempt goes on, to the same bytes", async (_, faults, from, code) => {
    await startTrain({ ...script, faults });
    const at = await newRun();
    await ended(at);
    expect(await data(at, "attempt-ended")).toMatchObject([{ attempt: 1, step: from, code }]);
    expect(await data(at, "started")).toMatchObject([
      { attempt: 1, resumedFromStep: null },
      { attempt: 2, resumedFromStep: from === 0 ? null : from },
    ]);
    expect((await steps(at)).filter(([attempt]) => attempt === 2)).toEqual(range(2, from + 1, 20));
    const [{ adapter, evidence: proof }] = (await data(at, "trained")) as [{ adapter: never; evidence: never }];
    const manifest = await getJson(objects, tenant, adapter, adapterManifest);
    expect(Buffer.from(await getBytes(objects, tenant, manifest.files[1]?.blob as never)).toString()).toBe(expectedWeights(20));
    expect((await getJson(objects, tenant, proof, evidence)).lossHistory).toEqual(
      Array.from({ length: 20 }, (_, n) => [n + 1, 4 / (n + 2)]),
    );
    await cleanedUp();
  });

  test("attempts are used up: the run fails with the last reason", async () => {
    await startTrain({ ...script, faults: { 1: { kind: "kill", at: 2 }, 2: { kind: "crash", at: 2 } } });
    const at = await newRun({ max_attempts: 2 });
    await ended(at, "failed");
    expect((await state(at)).error).toMatchObject({
      code: "ATTEMPTS_EXHAUSTED",
      message: expect.stringMatching(
        /^all 2 attempts ended without a result; the last reason was TRAINER_CRASHED: .*RuntimeError: as scripted/,
      ),
    });
    await cleanedUp();
  });

  test("the courier is killed: trainer gone, the next attempt goes on", async () => {
    await startTrain(script);
    const at = await newRun();
    await reachesStep(at, 10);
    const trainer = pidOf(at, 1, "trainer");
    process.kill(pidOf(at, 1, "process"), "SIGKILL");
    await ended(at);
    expect(processIdentity(trainer)).toBeUndefined();
    expect(await data(at, "attempt-ended")).toMatchObject([{ attempt: 1, code: "COURIER_CRASHED" }]);
    expect((await steps(at)).at(-1)).toEqual([2, 20]);
  });

  test("the controller's process is killed and started again: the run completes, once, with no process left over", async () => {
    const start = () =>
      spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "main.ts")], {
        env: { ...courierEnv(script), TRAIN_ATTEMPTS_DIR: attemptsDir(), LOG_LEVEL: "warn" },
        stdio: log.level === "silent" ? "ignore" : "inherit",
      });
    const at = await newRun();
    let main = start();
    for (const step of [3, 9, 14]) {
      await reachesStep(at, step);
      const attempt = (await state(at)).attempt;
      const pids = (["process", "trainer"] as const).map((of) => pidOf(at, attempt, of));
      main.kill("SIGKILL");
      await expect.poll(() => pids.map(processIdentity), within).toEqual([undefined, undefined]);
      main = start();
      await expect.poll(async () => (await state(at)).attempt, within).toBe(attempt + 1);
    }
    await ended(at);
    expect(await data(at, "attempt-ended")).toMatchObject([1, 2, 3].map((attempt) => ({ attempt, code: "ATTEMPT_LOST" })));
    expect(await data(at, "trained")).toHaveLength(1);
    await cleanedUp();
    const gone = new Promise((resolve) => main.once("exit", (code) => resolve(code)));
    main.kill("SIGTERM");
    expect(await gone).toBe(0);
  });

  test("an attempt that an older release told as run.preempted counts once, and the run goes on from there", async () => {
    const { at, tokenized } = await request({ max_attempts: 2 });
    const end = { attempt: 1, step: 0, code: "TRAINER_CRASHED", message: "exit code 1" };
    await bus.publish(events.runStarted, at, { attempt: 1, job: "train-1", resumedFromStep: null });
    await bus.publish(events.runPreempted, at, end, { key: "attempt-1" });
    // As when the controller was replaced by a newer one between the end and its telling.
    await bus.publish(events.runAttemptEnded, at, end, { key: "attempt-1" });
    await tokenized();
    await startTrain({ steps: 3 });
    await ended(at);
    expect(await steps(at)).toEqual(range(2, 1, 3));
  });

  test("stopped orderly: it saves a checkpoint where it is, and goes on from there", async () => {
    const { stop } = await startTrain({ ...script, save_steps: 100 });
    const at = await newRun();
    await reachesStep(at, 6);
    await stop();
    const [{ step, code }] = (await data(at, "attempt-ended")) as [{ step: number; code: string }];
    expect(code).toBe("PREEMPTED");
    expect(step).toBeGreaterThanOrEqual(6);
    await startTrain(script);
    await ended(at);
    expect((await steps(at)).filter(([attempt]) => attempt === 2)).toEqual(range(2, step + 1, 20));
    expect((await state(at)).lostAttempts).toBe(1);
  });

  test("stopped, but the trainer does not listen: killed, and it counts as stopped", async () => {
    const { stop } = await startTrain({ ...script, step_ms: 100, faults: { 1: { kind: "deaf" } } }, { stopGraceMs: 500 });
    const at = await newRun({ max_attempts: 1 });
    await reachesStep(at, 5);
    const trainer = pidOf(at, 1, "trainer");
    await stop();
    await expect.poll(() => processIdentity(trainer), within).toBeUndefined();
    await startTrain(script);
    await ended(at);
    expect(await data(at, "attempt-ended")).toMatchObject([{ attempt: 1, code: "PREEMPTED" }]);
  });

  test("a trainer that hangs is ended, and the next attempt goes on", async () => {
    await startTrain({ ...script, faults: { 1: { kind: "hang", at: 7 } } }, {}, { COURIER_HANG_SECONDS: "2" });
    const at = await newRun();
    await ended(at);
    expect(await data(at, "attempt-ended")).toMatchObject([
      { attempt: 1, step: 4, code: "TRAINER_HANGS", message: expect.stringMatching(/for 2 s \(phase train, step 7/) },
    ]);
    expect(await data(at, "started")).toMatchObject([{ resumedFromStep: null }, { resumedFromStep: 4 }]);
  });

  // The container of a pod, with cgroups of version 1: the kernel kills the trainer alone.
  const memoryGroups = "/sys/fs/cgroup/memory";
  const mayMakeGroups = process.getuid?.() === 0 && existsSync(join(memoryGroups, "memory.limit_in_bytes"));
  test.skipIf(!mayMakeGroups)("a trainer that the kernel kills for its memory is told from one that somebody killed", async () => {
    const group = join(memoryGroups, `loraline-test-${process.pid}`);
    mkdirSync(group);
    stack.defer(() => rmdirSync(group));
    writeFileSync(join(group, "memory.limit_in_bytes"), String(400 * 2 ** 20));
    // The courier enters it, as a container's first process is in it.
    const enter = ["/bin/sh", "-c", `echo $$ > ${group}/cgroup.procs; exec "$0" "$@"`] as const;
    await startTrain(
      { ...script, faults: { 1: { kind: "eat", at: 7 } } },
      { courierCommand: [...enter, ...courierCommand(process.execPath)] },
    );
    const at = await newRun();
    await ended(at);
    expect(await data(at, "attempt-ended")).toMatchObject([
      { attempt: 1, code: "OUT_OF_MEMORY", message: expect.stringMatching(/memory of 400Mi was used up/) },
    ]);
  });

  test("NATS is killed and comes back: nothing is lost", { timeout: 100_000 }, async () => {
    await startTrain({ steps: 60, save_steps: 10, step_ms: 50 });
    const at = await newRun();
    await reachesStep(at, 12);
    await nats.kill();
    await sleep(1500);
    await nats.start();
    await ended(at);
    expect(await steps(at)).toEqual(range(1, 1, 60));
    // One of them may have been on its way, and is only given up on after half a minute.
    await expect
      .poll(async () => (await data(at, "checkpointed")) as object[], { timeout: 50_000, interval: 200 })
      .toMatchObject([10, 20, 30, 40, 50, 60].map((step) => ({ step })));
    expect(await types(at)).not.toContain("attempt-ended");
  });

  test("NATS is away when training ends, and for a while: the result waits for it", async () => {
    await startTrain({ steps: 20, save_steps: 100, step_ms: 30 });
    const at = await newRun();
    await reachesStep(at, 12);
    await nats.kill();
    await expect.poll(() => existsSync(attemptFile(at, 1, "work/result.json")), within).toBe(true);
    await sleep(3000);
    await nats.start();
    await ended(at);
    expect(await steps(at)).toEqual(range(1, 1, 20));
    expect((await state(at)).lostAttempts).toBe(0);
    await cleanedUp();
  });

  test("the checkpoint to go on from is gone: it trains again from the start, and says so", async () => {
    await startTrain({ ...script, faults: { 1: { kind: "kill", at: 10 } } }, {}, {});
    const at = await newRun();
    await expect.poll(() => data(at, "checkpointed"), within).toHaveLength(2);
    for (const { checkpoint } of (await data(at, "checkpointed")) as { checkpoint: never }[]) await objects.delete(tenant, checkpoint);
    await ended(at);
    expect((await progress(at)).filter(({ warning }) => typeof warning === "object" && warning !== null)).toMatchObject([
      { attempt: 2, warning: { code: "RESUME_LOST" } },
    ]);
    expect((await steps(at)).filter(([attempt]) => attempt === 2)).toEqual(range(2, 1, 20));
  });

  test("the trainer refuses the checkpoint: it trains again from the start, and says so", async () => {
    await startTrain({ ...script, faults: { 1: { kind: "kill", at: 10 }, 2: { kind: "refuse-resume" } } });
    const at = await newRun();
    await ended(at);
    expect((await progress(at)).filter(({ warning }) => typeof warning === "object" && warning !== null)).toMatchObject([
      { attempt: 2, warning: { code: "RESUME_LOST", message: "training again from the start: another trainer wrote it" } },
    ]);
    expect((await steps(at)).filter(([attempt]) => attempt === 2)).toEqual(range(2, 1, 20));
  });

  test("an attempt of a run that is over already does nothing", async () => {
    const at = (await request()).at;
    await startTrain(script);
    await bus.publish(events.runFailed, at, { code: "X", message: "x" });
    const { manifest, ref } = await tokens();
    // As a controller would that had not heard of it yet.
    const launcher = await createProcessLauncher({
      dir: join(dir, "attempts2"),
      courierCommand: courierCommand(process.execPath),
      env: courierEnv(script),
      log,
    });
    stack.use(launcher);
    const spec = runSpec.parse({ base: base.name, adapter: "pirate", dataset: ulid() });
    await launcher.launch({
      version: 1,
      tenant,
      runId: at.id,
      attempt: 1,
      name: "train-x-1",
      runSpec: spec,
      tokens: ref,
      init: null,
      twins: [],
      resume: null,
      traceparent: null,
    });
    await expect.poll(() => launcher.observe(), within).toMatchObject([{ phase: "concluded" }]);
    expect(await types(at)).toEqual(["requested", "failed"]);
    expect(manifest.version).toBe(1);
  });
});

describe("the real trainer and the real base", () => {
  const bases = join(root, ".loraline/bases");
  const name = "smollm2-135m-instruct";

  /** Sequences that count up: something a model can learn in a few steps. */
  function shardOf(rows: number, from: number): Uint8Array {
    const list = new List(new Field("item", new Int32()));
    const ids = Array.from({ length: rows }, (_, row) => Array.from({ length: 16 }, (__, n) => 1000 + from + row + n));
    const columns = {
      input_ids: vectorFromArray(ids, list),
      labels: vectorFromArray(
        ids.map((row) => row.map((id, n) => (n < 4 ? -100 : id))),
        list,
      ),
      seq_lengths: vectorFromArray(
        ids.map((row) => [row.length]),
        list,
      ),
    };
    return tableToIPC(new Table(columns), "stream");
  }

  test("made by a warm one and killed with SIGKILL in the middle, it goes on to the same loss curve and the same adapter as undisturbed", async () => {
    const real = JSON.parse(readFileSync(join(bases, name, "base.json"), "utf8")) as BaseRef;
    const more = { LORALINE_TRAINER: join(import.meta.dirname, "../trainer/train.py"), LORALINE_BASES_DIR: bases };
    const warm = createWarmTrainers({ env: courierEnv({}, more), idleMs: 600_000, logFile: join(dir, "warm.log"), log });
    stack.use(warm);
    await startTrain({}, { warm }, more);
    const { ref } = await tokens(real, { train: [shardOf(4, 0), shardOf(2, 100)], eval: [shardOf(1, 200)] });
    const training = { per_device_train_batch_size: 2, num_train_epochs: 2, save_steps: 2, learning_rate: 1e-3 };
    const [undisturbed, disturbed] = [await request({ base: name, training }), await request({ base: name, training })];
    const slow = { timeout: 250_000, interval: 50 };

    await undisturbed.tokenized(ref);
    await expect.poll(async () => (await state(undisturbed.at)).phase, slow).toBe("trained");
    await disturbed.tokenized(ref);
    await expect
      .poll(async () => Math.max(0, ...(await progress(disturbed.at)).map((told) => Number(told.step))), slow)
      .toBeGreaterThanOrEqual(3);
    const trainer = pidOf(disturbed.at, 1, "trainer");
    expect(readFileSync(`/proc/${trainer}/cmdline`, "utf8")).toContain("warm.py");
    process.kill(trainer, "SIGKILL");
    await expect.poll(async () => (await state(disturbed.at)).phase, slow).toBe("trained");

    expect(await data(disturbed.at, "attempt-ended")).toMatchObject([{ attempt: 1, code: "TRAINER_KILLED" }]);
    expect(await data(disturbed.at, "started")).toMatchObject([{ attempt: 1 }, { attempt: 2, resumedFromStep: 2 }]);
    const proofOf = async (at: At) => getJson(objects, tenant, (await state(at)).trained?.evidence as never, evidence);
    const [a, b] = [await proofOf(undisturbed.at), await proofOf(disturbed.at)];
    expect(a.lossHistory).toHaveLength(6);
    expect(b.lossHistory).toEqual(a.lossHistory);
    expect(b.evaluation).toEqual(a.evaluation);
    expect(a.evaluation?.adapter_loss).toBeLessThan(a.evaluation?.base_loss ?? 0);
    expect(b.probes).toEqual(a.probes);
    expect(await adapterOf(disturbed.at)).toBe(await adapterOf(undisturbed.at));
    expect((await state(undisturbed.at)).trained?.lastStepAt).toMatch(/^20/);
  }, 600_000);
});
