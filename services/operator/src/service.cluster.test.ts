/** FineTunes and Adapters on a real API server and a real NATS; ingest, tokenize, train, serve and the projector are played. */
import { execFile, spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import type { CoreV1Event, V1Namespace } from "@kubernetes/client-node";
import { type Bus, createBus, ensureStreams, type Received } from "@loraline/bus";
import {
  type AdapterState,
  type AdapterVersion,
  buckets,
  type Condition,
  consumers,
  type Digest,
  events,
  foldRun,
  type RunEvent,
  runKey,
} from "@loraline/contracts";
import { createKube, type Kube } from "@loraline/kube";
import { createJetStreamObjects, getBytes, type Objects } from "@loraline/objects";
import { createLog, createTelemetry, PermanentError, type Telemetry, traceIdOf } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { type ApiServer, startApiServer } from "@loraline/testkit/api-server";
import { parse as parseYaml } from "yaml";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { idsOf } from "./ids.ts";
import { createOperatorService, type OperatorServiceDeps } from "./service.ts";
import { type Adapter, adapters, configMaps, events as kubeEvents, type FineTune, fineTunes, namespaces } from "./resources.ts";

const root = join(import.meta.dirname, "../../..");
const kubectlPath = join(process.env["LORALINE_CLUSTER_BIN"] ?? join(homedir(), ".cache/loraline/cluster-bin"), "kubectl");
const log = createLog({ service: "test", level: process.env["TEST_LOG"] ?? "silent" });
const within = { timeout: 60_000, interval: 50 };
const base = "smollm2-135m-instruct";
const digest: Digest = `sha256:${"d".repeat(64)}`;

let api: ApiServer;
let kube: Kube;
let nats: Awaited<ReturnType<typeof spawnNatsServer>>;
let nc: Awaited<ReturnType<typeof nats.connect>>;
let bus: Bus;
let objects: Objects;
let telemetry: Telemetry;
const servers = new AsyncDisposableStack();

beforeAll(async () => {
  api = servers.use(await startApiServer());
  kube = createKube({ kubeconfig: api.kubeconfig });
  const kubectl = promisify(execFile);
  await kubectl(kubectlPath, ["--kubeconfig", api.kubeconfig, "apply", "--server-side", "-f", join(root, "helm/loraline/crds")]);
  nats = servers.use(await spawnNatsServer());
  nc = await nats.connect({ maxReconnectAttempts: -1, reconnectTimeWait: 100 });
  servers.defer(() => nc.close());
  await ensureStreams(nc);
  telemetry = servers.use(createTelemetry({ service: "test" }));
  objects = await createJetStreamObjects(nc);
  bus = createBus({ nc, log, telemetry, source: "test" });
  // The projector belongs to the gateway, and services do not import each other.
  const runs = await bus.bucket(buckets.runs);
  const fold = async (received: RunEvent | Received<typeof events.datasetProgress>): Promise<void> => {
    if (received.type === "dataset.progress.v1") return;
    await runs.change(runKey(received.at), (state) => foldRun(state, received));
  };
  servers.use(await bus.consume({ consumer: consumers.projectorRuns, handlers: fold, traced: false }));
  servers.use(await bus.consume({ consumer: consumers.projectorProgress, handlers: fold, traced: false }));
}, 120_000);
afterAll(() => servers.disposeAsync());

let namespace: string;
let tenant: string;
let stack: AsyncDisposableStack;
let count = 0;
beforeEach(async () => {
  stack = new AsyncDisposableStack();
  namespace = `team-${++count}`;
  tenant = `acme-${count}`;
  await kube.create(namespaces, { metadata: { name: namespace } } satisfies V1Namespace);
});
afterEach(() => stack.disposeAsync());

const operator = (over: Partial<OperatorServiceDeps> = {}): Promise<AsyncDisposable> =>
  createOperatorService({
    kube,
    bus,
    objects,
    log,
    telemetry,
    identity: "one",
    tenants: new Map([[namespace, tenant]]),
    leaseMs: 2000,
    ...over,
  });
/** One that ends with the test. */
const start = async (over: Partial<OperatorServiceDeps> = {}): Promise<void> => void stack.use(await operator(over));

const registerEngine = async (over: object = {}): Promise<void> => {
  const record = {
    engine: "local",
    base: { name: base, revision: "1", digest },
    maxLoraRank: 32,
    maxLoras: 4,
    maxCpuLoras: 16,
    maxModelLen: 2048,
    updatedAt: new Date().toISOString(),
    ...over,
  };
  await (await bus.bucket(buckets.engines)).put(record.engine, record);
};
beforeEach(() => registerEngine());

const made = (name: string, spec: Record<string, unknown> = {}, annotations: Record<string, string> = {}): Promise<FineTune> =>
  kube.create(fineTunes, {
    metadata: { namespace, name, annotations },
    spec: { base, adapter: "pirate", dataset: { id: "01KB0000000000000000000DS1" }, ...spec },
  });
const read = async (name: string): Promise<FineTune> => {
  const found = await kube.get(fineTunes, { namespace, name });
  if (found === undefined) throw new Error(`no FineTune ${name}`);
  return found;
};
const conditionOf = ({ status }: { status?: { conditions?: Condition[] | undefined } }, type: string) =>
  status?.conditions?.find((one) => one.type === type);
const condition = async (name: string, type: string) => {
  const found = conditionOf(await read(name), type);
  return found && { status: found.status, reason: found.reason, message: found.message };
};
const told = async (name: string): Promise<string[]> => {
  const { items } = await kube.list<CoreV1Event>(kubeEvents, { namespace });
  return items.filter(({ involvedObject }) => involvedObject.name === name).map(({ reason }) => reason ?? "");
};
const stored = (id: string) => bus.history([events.runRequested, events.runCancelRequested], { tenant, id });
const ref = (kind: "tokens" | "adapter" | "evidence") => ({ kind, digest, size: 1 });

/* tokenize, train and serve, played */

const tokenized = (id: string) =>
  bus.publish(
    events.runTokenized,
    { tenant, id },
    {
      manifest: ref("tokens"),
      totals: { sequences: 12, tokens: 600, supervised: 200, evalSequences: 2, evalSupervised: 30, dropped: 0 },
      packed: false,
      cacheHit: false,
    },
  );
const started = (id: string, attempt = 1) =>
  bus.publish(events.runStarted, { tenant, id }, { attempt, job: "train-x" }, { key: String(attempt) });
const step = (id: string, n: number) =>
  bus.publish(
    events.runProgress,
    { tenant, id },
    { attempt: 1, phase: "train", step: n, totalSteps: 100, loss: 3 / n, etaSeconds: 100 - n },
    { key: `1/${n}` },
  );
const trained = (id: string) =>
  bus.publish(
    events.runTrained,
    { tenant, id },
    {
      attempt: 1,
      adapter: ref("adapter"),
      evidence: ref("evidence"),
      rank: 8,
      targetModules: ["q_proj"],
      parameters: 1000,
      steps: 100,
      trainLoss: 0.5,
      trainedTokens: 600,
      tokensPerSecond: 100,
      evaluation: { base_loss: 3.5, adapter_loss: 1.25, rows: 2, supervised_tokens: 30 },
      lastStepAt: new Date().toISOString(),
    },
  );
const served = (id: string, version = 1) =>
  bus.publish(
    events.runServed,
    { tenant, id },
    { adapter: "pirate", version, digest, replicas: 2, of: 2, promoted: true, lastStepToProvenMs: 900 },
  );

const versionOf = (version: number, over: Partial<AdapterVersion> = {}): AdapterVersion => ({
  version,
  digest,
  manifest: ref("adapter"),
  evidence: ref("evidence"),
  runId: "01JD000000000000000000000A",
  rank: 8,
  engineName: `${tenant}.pirate.v${version}.dddddddddddd`,
  status: "desired",
  reason: null,
  promote: "auto",
  evaluation: null,
  lastStepAt: new Date().toISOString(),
  createdAt: new Date().toISOString(),
  servedAt: null,
  trace: null,
  ...over,
});
const putAdapter = async (over: Partial<AdapterState> = {}): Promise<void> => {
  const state: AdapterState = {
    tenant,
    adapter: "pirate",
    engine: "local",
    base,
    versions: [versionOf(1)],
    alias: null,
    history: [],
    ...over,
  };
  await (await bus.bucket(buckets.adapters)).put(`${tenant}.pirate`, state);
};
/** A replica of the engine that holds these versions. */
const playReplica = async (
  replica: string,
  proven: number[],
  over: { error?: { code: string; message: string }; engine?: string } = {},
): Promise<void> => {
  const { engine = "local", error } = over;
  const at = new Date().toISOString();
  const own = `${engine}.${replica}`;
  await (
    await bus.bucket(buckets.replicas)
  ).put(own, { engine, base, replica, incarnation: "1", url: "http://127.0.0.1:1", ready: true, at });
  const proof = { probes: 1, tokens: 1, agreement: 0, agreementLimit: 1, effect: 1, effectExpected: 1, provenAt: at };
  const held = (version: number) => ({ tenant, adapter: "pirate", version, digest, engineName: versionOf(version).engineName, at });
  await (
    await bus.bucket(buckets.holdings)
  ).put(`${own}.${tenant}.pirate`, {
    incarnation: "1",
    adapters: [
      ...proven.map((version) => ({ ...held(version), state: "proven" as const, proof, error: null })),
      ...(error === undefined ? [] : [{ ...held(1), state: "retrying" as const, proof: null, error }]),
    ],
  });
};

describe("a FineTune", () => {
  it("is one run, from request to served, with what happens on the way in its status", async () => {
    await start();
    const parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01";
    const object = await made("tune", {}, { "loraline.dev/traceparent": parent });
    const id = idsOf(object).run;
    await expect.poll(() => condition("tune", "Accepted"), within).toMatchObject({ status: "True", reason: "Requested" });
    const [request] = await stored(id);
    expect(request).toMatchObject({ data: { by: `finetune/${namespace}/tune`, spec: { adapter: "pirate", lora: { r: 8 } } } });
    expect(traceIdOf(request?.trace)).toBe("0123456789abcdef0123456789abcdef");
    expect((await read("tune")).status).toMatchObject({ observedGeneration: 1, runId: id, traceId: "0123456789abcdef0123456789abcdef" });
    expect(await condition("tune", "Served")).toMatchObject({ status: "Unknown" });

    await tokenized(id);
    await expect.poll(() => condition("tune", "Tokenized"), within).toMatchObject({ status: "True", message: "12 sequences, 600 tokens" });
    const why = "no node has enough free nvidia.com/gpu: 0/1 nodes are available";
    await bus.publish(events.runQueued, { tenant, id }, { attempt: 1, reason: "WAITING_FOR_DEVICE", message: why }, { key: "1" });
    await expect
      .poll(() => condition("tune", "Trained"), within)
      .toEqual({ status: "Unknown", reason: "WAITING_FOR_DEVICE", message: why });
    expect((await read("tune")).status).toMatchObject({ phase: "Queued", message: why });
    await started(id);
    await step(id, 40);
    await expect
      .poll(async () => (await read("tune")).status, within)
      .toMatchObject({ phase: "Running", step: "40/100", loss: "0.0750", eta: "1m00s", attempt: 1 });
    const { stdout } = await promisify(execFile)(kubectlPath, ["--kubeconfig", api.kubeconfig, "-n", namespace, "get", "ft", "tune"]);
    expect(stdout).toMatch(/tune +pirate +Running +40\/100 +0\.0750 +1m00s/);

    await trained(id);
    await expect
      .poll(() => condition("tune", "Trained"), within)
      .toMatchObject({ status: "True", message: "100 steps; held-out loss 3.5000 → 1.2500" });
    await putAdapter({ versions: [versionOf(1, { runId: id })] });
    await playReplica("a", [1]);
    await playReplica("b", []);
    await expect.poll(async () => (await read("tune")).status, within).toMatchObject({ version: 1, converged: "1/2" });
    expect(await condition("tune", "Served")).toMatchObject({ status: "Unknown", reason: "Converging" });
    await playReplica("b", [1]);
    const waiting = promisify(execFile)(kubectlPath, [
      "--kubeconfig",
      api.kubeconfig,
      "-n",
      namespace,
      "wait",
      "ft/tune",
      "--for=condition=Served",
      "--timeout=20s",
    ]);
    await served(id);
    expect((await waiting).stdout).toContain("condition met");
    const done = await read("tune");
    expect(done.status).toMatchObject({
      phase: "Served",
      version: 1,
      converged: "2/2",
      promoted: true,
      model: `${tenant}/pirate@1`,
      heldOutLoss: { base: "3.5000", adapter: "1.2500" },
    });
    expect(conditionOf(done, "Finished")).toMatchObject({ status: "True", reason: "Served" });
    expect(done.status).not.toHaveProperty("eta");
    await expect
      .poll(() => told("tune"), within)
      .toEqual(expect.arrayContaining(["Requested", "Tokenized", "WAITING_FOR_DEVICE", "Started", "Trained", "Served"]));
    const all = await told("tune");
    expect(new Set(all).size).toBe(all.length);
  });

  it("tells of each end of an attempt, however soon the next one starts", async () => {
    await start();
    const id = idsOf(await made("moved")).run;
    await expect.poll(() => condition("moved", "Accepted"), within).toMatchObject({ status: "True" });
    await tokenized(id);
    const codes = ["EVICTED", "PREEMPTED", "NODE_LOST"];
    for (const [before, code] of codes.entries()) {
      const attempt = before + 1;
      await started(id, attempt);
      await bus.publish(events.runAttemptEnded, { tenant, id }, { attempt, step: 0, code, message: `because of ${code}` }, { key: code });
      const waiting = { attempt: attempt + 1, reason: "WAITING_FOR_DEVICE", message: "no GPU is free" };
      await bus.publish(events.runQueued, { tenant, id }, waiting, { key: `${attempt}` });
    }
    await started(id, codes.length + 1);
    await expect.poll(() => told("moved"), within).toEqual(expect.arrayContaining([...codes, "WAITING_FOR_DEVICE"]));
  });

  it("brings its data in a ConfigMap, which may come later", async () => {
    await start();
    const raw = parseYaml(await readFile(join(root, "samples/kubernetes/persona.yaml"), "utf8")) as FineTune;
    const object = await kube.create(fineTunes, { ...raw, metadata: { name: raw.metadata?.name ?? "", namespace } });
    const ids = idsOf(object);
    await expect.poll(() => condition("persona", "Accepted"), within).toMatchObject({ status: "False", reason: "CONFIGMAP_UNKNOWN" });
    expect((await read("persona")).status?.phase).toBe("Pending");
    expect(await stored(ids.run)).toEqual([]);
    const text = await readFile(join(root, "samples/persona.jsonl"), "utf8");
    await kube.create(configMaps, { metadata: { namespace, name: "persona" }, data: { "persona.jsonl": text } });
    await expect.poll(() => condition("persona", "Accepted"), within).toMatchObject({ status: "True" });
    const received = await bus.last(events.datasetReceived, { tenant, id: ids.dataset });
    if (received === undefined) throw new Error("no dataset.received");
    expect(received.data).toMatchObject({ filename: "persona.jsonl" });
    expect(Buffer.from(await getBytes(objects, tenant, received.data.blob)).toString()).toBe(text);
    const [request] = await stored(ids.run);
    expect(request?.data).toMatchObject({ spec: { dataset: ids.dataset, lora: { lora_alpha: 32 } } });
    expect(traceIdOf(request?.trace)).toBe(traceIdOf(received.trace));
  });

  it("has its data fetched", async () => {
    await start();
    const object = await made("fetched", { dataset: { source: { url: "https://example.com/a.jsonl" }, mapping: { format: "text" } } });
    await expect.poll(() => condition("fetched", "Accepted"), within).toMatchObject({ status: "True" });
    const asked = await bus.last(events.datasetImportRequested, { tenant, id: idsOf(object).dataset });
    expect(asked?.data).toMatchObject({ source: { url: "https://example.com/a.jsonl" }, mapping: { format: "text" } });
    await made("local-file", { dataset: { source: { url: "file:///etc/passwd" } } });
    await expect.poll(() => condition("local-file", "Finished"), within).toMatchObject({ status: "True" });
    expect((await read("local-file")).status?.phase).toBe("Rejected");
  });

  it("is refused as at every other door, in words, and for good", async () => {
    await start();
    const object = await made("refused", { lora: { r: 64, init_lora_weights: true } });
    await expect
      .poll(() => condition("refused", "Accepted"), within)
      .toMatchObject({ status: "False", reason: "RANK_TOO_HIGH", message: expect.stringContaining("up to 32") as string });
    expect((await read("refused")).status).toMatchObject({ phase: "Rejected", error: { code: "RANK_TOO_HIGH", param: "lora.r" } });
    expect(await condition("refused", "Finished")).toMatchObject({ status: "True", reason: "RANK_TOO_HIGH" });
    expect(await condition("refused", "Served")).toMatchObject({ status: "False" });
    await made("pissa", { lora: { init_lora_weights: "corda" } });
    await expect
      .poll(() => condition("pissa", "Accepted"), within)
      .toMatchObject({ status: "False", reason: "SPEC_INVALID", message: expect.stringContaining("lora.init_lora_weights") as string });
    expect(await stored(idsOf(object).run)).toEqual([]);
    // And by whoever finds out later.
    const late = idsOf(await made("late")).run;
    await expect.poll(() => condition("late", "Accepted"), within).toMatchObject({ status: "True" });
    await bus.publish(events.runRejected, { tenant, id: late }, { code: "TOO_FEW_RECORDS", message: "3 records are usable" });
    await expect
      .poll(() => condition("late", "Accepted"), within)
      .toEqual({ status: "False", reason: "TOO_FEW_RECORDS", message: "3 records are usable" });
    await expect.poll(() => told("late"), within).toContain("TOO_FEW_RECORDS");
  });

  it("waits for a base that no engine serves yet", async () => {
    await start();
    const object = await made("early", { base: `later-${tenant}` });
    await expect
      .poll(() => condition("early", "Accepted"), within)
      .toMatchObject({ status: "False", reason: "BASE_UNKNOWN", message: expect.stringContaining(base) as string });
    expect((await read("early")).status?.phase).toBe("Pending");
    expect(await condition("early", "Finished")).toMatchObject({ status: "False" });
    // An engine of other tenants does not help.
    await registerEngine({ engine: "other", base: { name: `later-${tenant}`, revision: "1", digest }, tenants: ["somebody"] });
    await sleep(500);
    expect(await stored(idsOf(object).run)).toEqual([]);
    await registerEngine({ engine: "other", base: { name: `later-${tenant}`, revision: "1", digest } });
    await expect.poll(() => condition("early", "Accepted"), within).toMatchObject({ status: "True" });
  });

  it("waits while its tenant has all that it may have, and goes on when there is room", async () => {
    const training = await bus.bucket(buckets.training);
    const at = new Date().toISOString();
    await training.put(tenant, { running: 0, gpus: 0, waiting: 5, at });
    await start({ quotas: { default: { runsWaiting: 5 } } });
    const ids = idsOf(await made("one-too-many"));
    await expect
      .poll(() => condition("one-too-many", "Accepted"), within)
      .toMatchObject({
        status: "False",
        reason: "QUOTA_RUNS_WAITING",
        message: expect.stringContaining("its quota runsWaiting is 5") as string,
      });
    expect(await stored(ids.run)).toEqual([]);
    await training.put(tenant, { running: 0, gpus: 0, waiting: 4, at });
    await expect.poll(() => condition("one-too-many", "Accepted"), within).toMatchObject({ status: "True" });
    expect(await stored(ids.run)).toHaveLength(1);

    // As the tenant's admins set it, at the gateway.
    await (await bus.bucket(buckets.limits)).put(tenant, { historyBytes: 1, by: null, at });
    await made("after-it");
    await expect.poll(() => condition("after-it", "Accepted"), within).toMatchObject({ status: "False", reason: "QUOTA_HISTORY" });
    expect((await read("after-it")).status?.phase).toBe("Pending");
  });

  it("fails visibly", async () => {
    await start();
    const id = idsOf(await made("failing")).run;
    await expect.poll(() => condition("failing", "Accepted"), within).toMatchObject({ status: "True" });
    await bus.publish(events.runFailed, { tenant, id }, { code: "OUT_OF_MEMORY", message: "the kernel killed it", attempt: 5 });
    await expect
      .poll(() => condition("failing", "Finished"), within)
      .toEqual({ status: "True", reason: "OUT_OF_MEMORY", message: "the kernel killed it" });
    expect(await condition("failing", "Served")).toMatchObject({ status: "False", reason: "OUT_OF_MEMORY" });
    expect((await read("failing")).status).toMatchObject({ phase: "Failed", message: "the kernel killed it" });
    const waited = promisify(execFile)(kubectlPath, [
      "--kubeconfig",
      api.kubeconfig,
      "-n",
      namespace,
      "wait",
      "ft/failing",
      "--for=condition=Served=false",
      "--timeout=5s",
    ]);
    expect((await waited).stdout).toContain("condition met");
  });

  it("cancels its run when it is deleted, also while no operator runs; one that has ended leaves things alone", async () => {
    const first = await operator();
    const ids = await Promise.all(["gone", "gone-unseen", "ended", "stays"].map(async (name) => idsOf(await made(name)).run));
    const [gone = "", unseen = "", ended = "", stays = ""] = ids;
    for (const name of ["gone", "gone-unseen", "ended", "stays"])
      await expect.poll(() => condition(name, "Accepted"), within).toMatchObject({ status: "True" });
    await served(ended);
    await expect.poll(() => condition("ended", "Served"), within).toMatchObject({ status: "True" });
    await kube.delete(fineTunes, { namespace, name: "gone" });
    await expect
      .poll(async () => (await stored(gone)).map(({ type }) => type), within)
      .toEqual(["run.requested.v1", "run.cancel-requested.v1"]);
    await first[Symbol.asyncDispose]();
    await kube.delete(fineTunes, { namespace, name: "gone-unseen" });
    await kube.delete(fineTunes, { namespace, name: "ended" });
    // Nothing of ours keeps it from going.
    expect(await kube.get(fineTunes, { namespace, name: "gone-unseen" })).toBeUndefined();
    await start({ identity: "two" });
    await expect
      .poll(async () => (await stored(unseen)).map(({ type }) => type), within)
      .toEqual(["run.requested.v1", "run.cancel-requested.v1"]);
    await sleep(500);
    for (const id of [ended, stays]) expect((await stored(id)).map(({ type }) => type)).toEqual(["run.requested.v1"]);
    await bus.publish(events.runCancelled, { tenant, id: stays }, {});
    await expect.poll(() => condition("stays", "Finished"), within).toMatchObject({ status: "True", reason: "CANCELLED" });
  });

  it("leaves runs of other doors and other clusters alone", async () => {
    const spec = (metadata: Record<string, string>) => ({ base, adapter: "pirate", dataset: "01KB0000000000000000000DS1", metadata });
    const [other, elsewhere] = ["01KB00000000000000000000R1", "01KB00000000000000000000R2"] as const;
    await bus.publish(events.runRequested, { tenant, id: other }, { spec: spec({ team: "a" }) });
    const marks = {
      "loraline.dev/finetune": `${namespace}/x`,
      "loraline.dev/finetune-uid": "u",
      "loraline.dev/namespace-uid": "of-another-cluster",
    };
    await bus.publish(events.runRequested, { tenant, id: elsewhere }, { spec: spec(marks) });
    await start();
    await sleep(1500);
    for (const id of [other, elsewhere]) expect((await stored(id)).map(({ type }) => type)).toEqual(["run.requested.v1"]);
  });

  it("is asked for once, whatever dies, and its namesake is another run", async () => {
    const first = await operator();
    const object = await made("again");
    const id = idsOf(object).run;
    await expect.poll(() => condition("again", "Accepted"), within).toMatchObject({ status: "True" });
    await first[Symbol.asyncDispose]();
    // As if it had died before it wrote anything down, with the projector behind.
    await kube.apply(
      fineTunes,
      { metadata: { namespace, name: "again" }, status: { observedGeneration: 0 } },
      {
        manager: "loraline-operator",
        subresource: "status",
      },
    );
    await (await bus.bucket(buckets.runs)).delete(`${tenant}.${id}`);
    await tokenized(id);
    const second = await operator({ identity: "two" });
    await expect.poll(() => condition("again", "Accepted"), within).toMatchObject({ status: "True" });
    expect((await stored(id)).map(({ type }) => type)).toEqual(["run.requested.v1"]);
    expect((await told("again")).filter((reason) => reason === "Requested")).toHaveLength(1);

    await kube.delete(fineTunes, { namespace, name: "again" });
    const namesake = idsOf(await made("again")).run;
    expect(namesake).not.toBe(id);
    await expect.poll(async () => (await read("again")).status?.runId, within).toBe(namesake);
    await second[Symbol.asyncDispose]();
  });

  it("may have a name as long as Kubernetes allows", async () => {
    await start();
    const name = "n".repeat(253);
    const id = idsOf(await made(name)).run;
    await expect.poll(() => condition(name, "Accepted"), within).toMatchObject({ status: "True" });
    await kube.delete(fineTunes, { namespace, name });
    await expect
      .poll(async () => (await stored(id)).map(({ type }) => type), within)
      .toEqual(["run.requested.v1", "run.cancel-requested.v1"]);
  });

  it("goes on after the API server and NATS were killed", async () => {
    await start();
    const before = idsOf(await made("before")).run;
    await expect.poll(() => condition("before", "Accepted"), within).toMatchObject({ status: "True" });
    await api.kill();
    await tokenized(before);
    await sleep(300);
    api.start();
    await api.ready();
    await expect
      .poll(() => condition("before", "Tokenized").catch(() => undefined), { timeout: 40_000, interval: 200 })
      .toMatchObject({ status: "True" });
    await nats.kill();
    const after = await made("after");
    await sleep(300);
    await nats.start();
    await expect.poll(() => condition("after", "Accepted"), { timeout: 40_000, interval: 200 }).toMatchObject({ status: "True" });
    expect((await stored(idsOf(after).run)).map(({ type }) => type)).toEqual(["run.requested.v1"]);
  }, 120_000);

  it("does not write more often than a person can read", async () => {
    await start();
    const id = idsOf(await made("busy")).run;
    await expect.poll(() => condition("busy", "Accepted"), within).toMatchObject({ status: "True" });
    await tokenized(id);
    await started(id);
    await expect.poll(async () => (await read("busy")).status?.phase, within).toBe("Running");
    const versions = new Set<string>();
    const until = performance.now() + 2500;
    for (let n = 1; performance.now() < until; n++) {
      await step(id, n % 100 || 1);
      versions.add((await read("busy")).metadata?.resourceVersion ?? "");
    }
    expect(versions.size).toBeGreaterThan(1);
    expect(versions.size).toBeLessThan(6);
  });
});

describe("an Adapter", () => {
  const show = async (): Promise<Adapter | undefined> => kube.get(adapters, { namespace, name: "pirate" });
  const state = async (type: string) => {
    const object = await show();
    const found = object && conditionOf(object, type);
    return found && { status: found.status, reason: found.reason };
  };
  const edit = async (spec: object): Promise<void> => {
    const object = await show();
    if (object === undefined) throw new Error("no Adapter");
    await kube.replace(adapters, { ...object, spec });
  };
  const commands = () =>
    bus.history([events.adapterPromoteRequested, events.adapterRollbackRequested, events.adapterPlaceRequested], { tenant, id: "pirate" });
  const moved = (from: number | null, to: number, command: number | null, n: number) => ({
    from,
    to,
    kind: "promoted" as const,
    n,
    by: null,
    reason: "promotion requested",
    command,
    at: new Date().toISOString(),
  });

  it("is made for each adapter, and says where its versions are", async () => {
    await start();
    await putAdapter({
      versions: [
        versionOf(1),
        versionOf(2, { status: "refused", reason: { code: "NOT_BETTER", message: "loss 4.1 is not below the base's 3.5" } }),
      ],
      alias: 1,
    });
    await playReplica("a", [1]);
    await playReplica("b", [], { error: { code: "DISK_FULL", message: "the disk is full" } });
    await expect
      .poll(async () => (await show())?.status, within)
      .toMatchObject({
        base,
        promoted: 1,
        versionCount: 2,
        converged: "1/2",
        model: `${tenant}/pirate`,
        versions: [
          { version: 2, status: "refused", reason: "NOT_BETTER" },
          { version: 1, proven: "1/2", reason: "DISK_FULL" },
        ],
      });
    expect(await state("Ready")).toEqual({ status: "True", reason: "Serving" });
    expect(await state("Converged")).toEqual({ status: "False", reason: "DISK_FULL" });
    await expect.poll(() => told("pirate"), within).toEqual(expect.arrayContaining(["Promoted", "NOT_BETTER"]));
    await playReplica("b", [1]);
    await expect.poll(() => state("Converged"), within).toEqual({ status: "True", reason: "Converged" });
    const { stdout } = await promisify(execFile)(kubectlPath, ["--kubeconfig", api.kubeconfig, "-n", namespace, "get", "lora"]);
    expect(stdout).toMatch(/pirate +smollm2-135m-instruct +1 +2 +2\/2/);
  });

  it("takes its adapter along when it is deleted, is made again where that is refused, and goes when the adapter goes", async () => {
    await start();
    const state = { versions: [versionOf(1)], alias: 1 };
    await putAdapter(state);
    await expect.poll(async () => (await show())?.status?.promoted, within).toBe(1);
    // Serve is played: it refuses the first deletion.
    let refuses = true;
    stack.use(
      await bus.consume({
        consumer: consumers.serveAdapterCommands,
        handlers: async ({ type }) => {
          if (type !== "adapter.delete-requested.v1") return;
          if (refuses) throw new PermanentError("ADAPTER_IN_TRAINING", "run R trains pirate");
          await (await bus.bucket(buckets.adapters)).delete(`${tenant}.pirate`);
        },
      }),
    );
    const deletions = async () => (await bus.history([events.adapterDeleteRequested], { tenant, id: "pirate" })).map(({ data }) => data);
    await kube.delete(adapters, { namespace, name: "pirate" });
    expect(await show()).toBeUndefined();
    await expect.poll(async () => (await show())?.status?.promoted, within).toBe(1);
    expect(await deletions()).toEqual([{ by: `adapter/${namespace}/pirate` }]);
    await expect.poll(() => told("pirate"), within).toEqual(expect.arrayContaining(["ADAPTER_IN_TRAINING"]));

    refuses = false;
    await kube.delete(adapters, { namespace, name: "pirate" });
    await expect.poll(async () => (await deletions()).length, within).toBe(2);
    await sleep(3000);
    expect(await show()).toBeUndefined();

    // The name is free again.
    await putAdapter(state);
    await expect.poll(async () => (await show())?.status?.promoted, within).toBe(1);
    await (await bus.bucket(buckets.adapters)).delete(`${tenant}.pirate`);
    await expect.poll(show, within).toBeUndefined();
  });

  it("asks once for the version that its spec names, and does not fight other doors", async () => {
    await start();
    await playReplica("a", [1, 2]);
    const versions = [versionOf(1), versionOf(2)];
    await putAdapter({ versions, alias: 1 });
    await expect.poll(() => state("Promoted"), within).toEqual({ status: "True", reason: "Following" });
    await edit({ version: 2 });
    await expect
      .poll(async () => (await commands()).map(({ type, data }) => ({ type, data })), within)
      .toEqual([{ type: "adapter.promote-requested.v1", data: { version: 2, by: `adapter/${namespace}/pirate` } }]);
    const [command] = await commands();
    await expect.poll(async () => (await show())?.status?.asked, within).toEqual({ version: 2, versionSeq: command?.seq });
    await putAdapter({ versions, alias: 2, history: [moved(1, 2, command?.seq ?? 0, 1)] });
    await expect.poll(() => state("Promoted"), within).toEqual({ status: "True", reason: "Promoted" });
    // Another door moves it back: the last word counts.
    await putAdapter({ versions, alias: 1, history: [moved(1, 2, command?.seq ?? 0, 1), moved(2, 1, null, 2)] });
    await expect.poll(() => state("Promoted"), within).toEqual({ status: "False", reason: "MOVED_ELSEWHERE" });
    await sleep(2000);
    expect(await commands()).toHaveLength(1);
    // Removed, it follows; set again, it is asked for again.
    await edit({});
    await expect.poll(() => state("Promoted"), within).toEqual({ status: "True", reason: "Following" });
    await edit({ version: 2, canary: { steps: [10] } });
    await expect.poll(async () => (await commands()).at(-1)?.data, within).toMatchObject({ version: 2, canary: { steps: [10] } });
  });

  it("waits with a version that is not there yet, and says why one is refused", async () => {
    await start();
    await putAdapter({ alias: 1 });
    await playReplica("a", [1]);
    await expect.poll(() => state("Ready"), within).toMatchObject({ status: "True" });
    await edit({ version: 2 });
    await expect.poll(() => state("Promoted"), within).toEqual({ status: "False", reason: "VERSION_UNKNOWN" });
    const versions = [versionOf(1), versionOf(2)];
    await putAdapter({ versions, alias: 1 });
    await expect.poll(() => state("Promoted"), within).toEqual({ status: "False", reason: "VERSION_NOT_PROVEN" });
    expect(await commands()).toEqual([]);
    // Serve is played: it refuses.
    stack.use(
      await bus.consume({
        consumer: consumers.serveAdapterCommands,
        handlers: Object.fromEntries(
          consumers.serveAdapterCommands.events.map(({ type }) => [
            type,
            () => Promise.reject(new PermanentError("CANARY_LOSS_UNKNOWN", "it cannot be judged")),
          ]),
        ) as never,
      }),
    );
    await playReplica("a", [1, 2]);
    await expect.poll(() => state("Promoted"), within).toEqual({ status: "False", reason: "CANARY_LOSS_UNKNOWN" });
    await edit({ version: 1, placement: { mode: "spread", replicas: 1 } });
    await expect.poll(() => state("Placed"), within).toEqual({ status: "False", reason: "CANARY_LOSS_UNKNOWN" });
    await putAdapter({ versions, alias: 1, placement: { mode: "spread", replicas: 1 } });
    await expect.poll(() => state("Placed"), within).toEqual({ status: "True", reason: "Placed" });
    expect(await state("Promoted")).toEqual({ status: "True", reason: "Promoted" });
  });

  it("is asked for once although the operator died before it wrote that down", async () => {
    const first = await operator();
    await playReplica("a", [1, 2]);
    await putAdapter({ versions: [versionOf(1), versionOf(2)], alias: 2 });
    await expect.poll(() => state("Promoted"), within).toMatchObject({ status: "True" });
    await edit({ version: 1 });
    await expect.poll(async () => (await commands()).map(({ type }) => type), within).toEqual(["adapter.rollback-requested.v1"]);
    await first[Symbol.asyncDispose]();
    await kube.apply(
      adapters,
      { metadata: { namespace, name: "pirate" }, status: { observedGeneration: 0 } },
      {
        manager: "loraline-operator",
        subresource: "status",
      },
    );
    await start({ identity: "two" });
    await expect.poll(async () => (await show())?.status?.asked?.version, within).toBe(1);
    expect(await commands()).toHaveLength(1);
  });
});

describe("operators", () => {
  it("act one at a time; the other says so and takes over", async () => {
    const first = await operator();
    await made("one");
    await expect.poll(() => condition("one", "Accepted"), within).toMatchObject({ status: "True" });
    await start({ identity: "two" });
    await expect.poll(() => told("loraline-operator"), within).toEqual(["HeldByAnother"]);
    await first[Symbol.asyncDispose]();
    await made("two");
    await expect.poll(() => condition("two", "Accepted"), within).toMatchObject({ status: "True" });
  });

  it("run as processes of their own", async () => {
    const { NODE_OPTIONS: _options, ...env } = process.env;
    const port = 20_000 + (process.pid % 10_000);
    const settings = { KUBECONFIG: api.kubeconfig, NATS_URL: nats.url, OPERATOR_NAMESPACES: namespace, HEALTH_PORT: String(port) };
    const child = spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "main.ts")], {
      env: { ...env, ...settings, OPERATOR_TENANTS: JSON.stringify({ [namespace]: tenant }), LOG_LEVEL: "warn" },
      stdio: ["ignore", "inherit", "inherit"],
    });
    const ended = new Promise((resolve) => child.once("exit", resolve));
    stack.defer(async () => {
      child.kill("SIGKILL");
      await ended;
    });
    const ready = () =>
      fetch(`http://127.0.0.1:${port}/readyz`).then(
        ({ status }) => status,
        () => 0,
      );
    await expect.poll(ready, within).toBe(200);
    await made("by-process");
    await expect.poll(() => condition("by-process", "Accepted"), within).toMatchObject({ status: "True" });
    child.kill("SIGTERM");
    expect(await ended).toBe(0);
  });

  it("say what keeps them from serving a namespace", async () => {
    const problems: (string | undefined)[] = [];
    stack.use(await operator({ tenants: new Map([["nowhere", tenant]]), onProblem: (_namespace, problem) => problems.push(problem) }));
    await expect.poll(() => problems.at(-1) ?? "", within).toContain("there is no namespace nowhere");
    await kube.create(namespaces, { metadata: { name: "nowhere" } });
    await expect.poll(() => problems.at(-1) ?? "none", within).toBe("none");
  });
});
