/**
 * Engines and Bases on a real API server, with the chart's own template, roles and service account: what is made is the pod that the chart would make. The
 * Deployment controller, the kubelet and serve are played.
 */
import { execFile, spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import type { V1Deployment, V1Job, V1Pod } from "@kubernetes/client-node";
import { type Bus, createBus, ensureStreams } from "@loraline/bus";
import { type AdapterVersion, buckets, type Condition, type EngineRecord, engineSettingsList, trafficKeys } from "@loraline/contracts";
import { createKube, type Kube } from "@loraline/kube";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry, type Telemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { type ApiServer, startApiServer } from "@loraline/testkit/api-server";
import { parseAllDocuments } from "yaml";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bases, configMaps, deployments, disruptionBudgets, type Engine, engines, jobs, pods, services } from "../resources.ts";
import { createOperatorService } from "../service.ts";
import { acceptEngines } from "./accept-engines.ts";

const root = join(import.meta.dirname, "../../../..");
const bin = process.env["LORALINE_CLUSTER_BIN"] ?? join(homedir(), ".cache/loraline/cluster-bin");
const log = createLog({ service: "test", level: process.env["TEST_LOG"] ?? "silent" });
const within = { timeout: 60_000, interval: 50 };
const namespace = "line";
const digest = `sha256:${"d".repeat(64)}` as const;

let api: ApiServer;
let kube: Kube;
let bus: Bus;
let telemetry: Telemetry;
const running = new AsyncDisposableStack();
/** So far the operator's clock has been set forward, for engines that nobody asks. */
let later = 0;

const kubectl = (args: string[], input = ""): Promise<{ code: number | null; out: string }> =>
  new Promise((resolve, reject) => {
    const child = spawn(join(bin, "kubectl"), ["--kubeconfig", api.kubeconfig, "-n", namespace, ...args]);
    let out = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (part: Buffer) => (out += part.toString()));
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, out }));
    child.stdin.end(input);
  });
const applied = async (objects: unknown[]): Promise<void> => {
  const { code, out } = await kubectl(
    ["apply", "--server-side", "-f", "-"],
    objects.map((object) => JSON.stringify(object)).join("\n---\n"),
  );
  expect(code, out).toBe(0);
};

interface Rendered {
  kind: string;
  metadata: { name: string; namespace?: string };
}
/** What the chart makes; `engine` is one of its values' engines. */
async function chartOf(...more: string[]): Promise<Rendered[]> {
  const chart = join(root, "helm/loraline");
  const set = [
    "--set",
    "bases.volume.persistentVolumeClaim.claimName=bases,bases.volume.persistentVolumeClaim.readOnly=true",
    "--set-json",
    'engineDefaults.tolerations=[{"key":"gpu"}]',
  ];
  const { stdout } = await promisify(execFile)(join(bin, "helm"), ["template", "loraline", chart, "-n", namespace, ...set, ...more], {
    env: { PATH: process.env["PATH"], HOME: homedir() },
    maxBuffer: 2 ** 26,
  });
  return parseAllDocuments(stdout)
    .map((document) => document.toJS() as Rendered | null)
    .filter((object) => object !== null);
}
const chartEngine = (engine: object) => ["--set-json", `engines=${JSON.stringify([engine])}`];
/** An engine of the release itself. */
const ofRelease = { name: "own", base: "llama", gpus: 0 };

const spec = {
  base: "qwen3-8b",
  replicas: 2,
  maxLoras: 8,
  maxCpuLoras: 32,
  maxLoraRank: 64 as const,
  gpus: 2,
  tensorParallelSize: 2,
  dtype: "bfloat16" as const,
  prefixCaching: false,
  kvCacheDtype: "fp8",
  extraArgs: ["--enforce-eager"],
  resources: { requests: { cpu: "8", memory: "64Gi" }, limits: { memory: "96Gi" } },
  nodeSelector: { gpu: "h100" },
};
const make = (name: string, given: object): Promise<Engine> =>
  kube.create(engines, { metadata: { namespace, name }, spec: given as never });
const read = async (name: string): Promise<Engine | undefined> => kube.get(engines, { namespace, name });
const condition = async (name: string, type: string) => {
  const found = (await read(name))?.status?.conditions?.find((one: Condition) => one.type === type);
  return found && { status: found.status, reason: found.reason, message: found.message };
};
const deployment = (name: string) => kube.get(deployments, { namespace, name: `loraline-engine-${name}` });
const settings = async () =>
  engineSettingsList.parse(
    JSON.parse((await kube.get(configMaps, { namespace, name: "loraline-engines-of-resources" }))?.data?.["engines.json"] ?? "[]"),
  );
const missing = (what: string): never => {
  throw new Error(`${what} is missing`);
};
/** As the Deployment's controller does, when so many pods are ready. */
const playReady = async (name: string, ready: number, of = ready): Promise<void> => {
  const { metadata } = (await deployment(name)) as V1Deployment;
  const status = {
    observedGeneration: metadata?.generation,
    replicas: of,
    updatedReplicas: of,
    readyReplicas: ready,
    unavailableReplicas: of - ready,
  };
  await kube.apply(deployments, { metadata: { namespace, name: metadata?.name ?? "" }, status } as V1Deployment, {
    manager: "controller",
    subresource: "status",
  });
};
/** As serve does when it has read the settings and the base. */
const playServe = async (engine: string, base: string, wake?: EngineRecord["wake"]): Promise<void> => {
  const record = {
    engine,
    base: { name: base, revision: "1", digest },
    wake,
    maxLoraRank: 64,
    maxLoras: 8,
    maxCpuLoras: 32,
    maxModelLen: 4096,
  };
  await (await bus.bucket(buckets.engines)).put(engine, { ...record, updatedAt: new Date().toISOString() });
};
/** What a pod of the two has in common, whoever made it. */
const podOf = (object: V1Deployment | undefined) =>
  JSON.parse(
    JSON.stringify(object?.spec?.template ?? null)
      .replace(/"checksum\/engine":"[0-9a-f]+"/, '"checksum/engine":"…"')
      .replace('"name":"loraline-engines-of-resources"', '"name":"loraline-engines"'),
  ) as unknown;

beforeAll(async () => {
  api = running.use(await startApiServer());
  kube = createKube({ kubeconfig: api.kubeconfig });
  await applied([{ apiVersion: "v1", kind: "Namespace", metadata: { name: namespace } }]);
  const crds = await kubectl(["apply", "--server-side", "-f", join(root, "helm/loraline/crds")]);
  expect(crds.code, crds.out).toBe(0);
  const objects = await chartOf(...chartEngine(ofRelease));
  const needed = objects.filter(
    ({ kind, metadata }) => ["ServiceAccount", "Role", "RoleBinding"].includes(kind) && (metadata.namespace ?? namespace) === namespace,
  );
  const template = objects.filter(({ kind, metadata }) => kind === "ConfigMap" && metadata.name === "loraline-engine-template");
  expect(template).toHaveLength(1);
  await applied([...needed, ...template]);
  const nats = running.use(await spawnNatsServer());
  const nc = await nats.connect();
  running.defer(() => nc.close());
  await ensureStreams(nc);
  telemetry = running.use(createTelemetry({ service: "test" }));
  bus = createBus({ nc, log, telemetry, source: "test" });
  // As the chart's operator: with its own account and no more rights than the chart gives.
  const token = (await kubectl(["create", "token", "loraline-operator"])).out.trim();
  const conf = JSON.parse((await kubectl(["config", "view", "--raw", "-o", "json"])).out) as { users: unknown[] };
  const own = join(dirname(api.kubeconfig), "operator.conf");
  await writeFile(own, JSON.stringify({ ...conf, users: [{ name: "u", user: { token } }] }));
  running.use(
    await createOperatorService({
      kube: createKube({ kubeconfig: own }),
      bus,
      objects: await createJetStreamObjects(nc),
      log,
      telemetry,
      identity: "one",
      tenants: new Map([[namespace, "acme"]]),
      engines: { namespace, templateName: "loraline-engine-template" },
      now: () => performance.now() + later,
    }),
  );
}, 120_000);
afterAll(() => running.disposeAsync());

describe("an Engine", () => {
  it("is the Deployment that the chart's values would make, is told to serve, and is Ready when all of it serves", async () => {
    await make("qwen", spec);
    await expect.poll(() => deployment("qwen"), within).toBeDefined();
    const { replicas, ...same } = spec;
    const byChart = (await chartOf(...chartEngine({ name: "qwen", replicas, ...same }))) as unknown as V1Deployment[];
    const rendered = byChart.find(({ kind, metadata }) => kind === "Deployment" && metadata?.name === "loraline-engine-qwen");
    const found = (await deployment("qwen")) as V1Deployment;
    // The API server fills in what the chart leaves to it, so both go through it.
    await kube.create(deployments, {
      spec: rendered?.spec ?? missing("the chart's Deployment"),
      metadata: { namespace, name: "by-chart" },
    });
    expect(podOf(found)).toEqual(podOf((await kube.get(deployments, { namespace, name: "by-chart" })) as V1Deployment));
    expect(found.spec?.replicas).toBe(2);
    expect(found.spec?.strategy).toEqual((await kube.get(deployments, { namespace, name: "by-chart" }))?.spec?.strategy);
    expect(found.metadata?.labels).toMatchObject({ "app.kubernetes.io/managed-by": "loraline-operator", "loraline.dev/engine": "qwen" });
    // With the release it goes, too.
    expect(found.metadata?.ownerReferences).toMatchObject([{ kind: "ConfigMap", name: "loraline-engine-template" }]);
    await kube.delete(deployments, { namespace, name: "by-chart" });
    expect((await kube.get(services, { namespace, name: "loraline-engine-qwen" }))?.spec).toMatchObject({
      clusterIP: "None",
      selector: { "loraline.dev/engine": "qwen" },
    });
    expect(await settings()).toMatchObject([{ engine: "qwen", base: "qwen3-8b", maxLoraRank: 64, kind: "vllm", tasks: ["generate"] }]);
    expect(await condition("qwen", "Accepted")).toMatchObject({ status: "True" });
    expect(await condition("qwen", "Ready")).toMatchObject({ status: "Unknown", reason: "Starting" });

    await playServe("qwen", "qwen3-8b");
    await playReady("qwen", 1, 2);
    await expect
      .poll(() => condition("qwen", "Ready"), within)
      .toEqual({ status: "Unknown", reason: "Starting", message: "1 of 2 replicas serve" });
    await playReady("qwen", 2);
    await expect.poll(() => condition("qwen", "Ready"), within).toMatchObject({ status: "True", reason: "Serving" });
    expect((await read("qwen"))?.status).toMatchObject({ observedGeneration: 1, replicas: 2, readyReplicas: 2, digest, maxLoraRank: 64 });
    const listed = await kubectl(["get", "eng"]);
    expect(listed.out).toMatch(/qwen +qwen3-8b +2 +2 +True +Serving/);
  });

  it("is scaled as Deployments are, by kubectl and by autoscalers", async () => {
    const scaleTo = async (replicas: number): Promise<void> => {
      const { code, out } = await kubectl(["scale", "engine/qwen", `--replicas=${replicas}`]);
      expect(code, out).toBe(0);
      await expect.poll(async () => (await deployment("qwen"))?.spec?.replicas, within).toBe(replicas);
    };
    const budget = async () => (await kube.get(disruptionBudgets, { namespace, name: "loraline-engine-qwen" }))?.spec;
    const oneAtATime = { maxUnavailable: 1, selector: { matchLabels: { "loraline.dev/engine": "qwen" } } };
    expect(await budget()).toMatchObject(oneAtATime);
    // Of a single replica it would forbid nothing, or every drain.
    await scaleTo(1);
    await expect.poll(budget, within).toBeUndefined();
    await scaleTo(3);
    await expect.poll(budget, within).toMatchObject(oneAtATime);
    const scale = JSON.parse(
      (await kubectl(["get", "--raw", `/apis/loraline.dev/v1alpha1/namespaces/${namespace}/engines/qwen/scale`])).out,
    ) as { status: object };
    expect(scale.status).toMatchObject({ replicas: 2, selector: expect.stringContaining("loraline.dev/engine=qwen") });
    await expect.poll(() => condition("qwen", "Ready"), within).toMatchObject({ status: "Unknown" });
    await playReady("qwen", 3);
    await expect.poll(() => condition("qwen", "Ready"), within).toMatchObject({ status: "True", message: "3 of 3 replicas serve" });
  });

  it("says in a pod's own words why it does not start", async () => {
    await make("small", { base: "small", gpus: 0 });
    await expect.poll(() => deployment("small"), within).toBeDefined();
    const { metadata, spec: ofPod = missing("a pod") } = (await deployment("small"))?.spec?.template ?? missing("a template");
    await kube.create(pods, { metadata: { labels: metadata?.labels ?? {}, namespace, name: "small-1" }, spec: ofPod } satisfies V1Pod);
    const message = 'engine "small": RANK_IMPOSSIBLE: no';
    const check = {
      name: "check",
      image: "i",
      imageID: "i",
      ready: false,
      restartCount: 1,
      state: { waiting: { reason: "CrashLoopBackOff" } },
      lastState: { terminated: { exitCode: 1, message } },
    };
    await kube.apply(
      pods,
      { metadata: { namespace, name: "small-1" }, status: { initContainerStatuses: [check] } },
      {
        manager: "kubelet",
        subresource: "status",
      },
    );
    await expect
      .poll(() => condition("small", "Ready"), within)
      .toEqual({ status: "False", reason: "ENGINE_START_FAILED", message: `pod small-1, container check: ${message}` });
    expect(await condition("small", "Stalled")).toMatchObject({ status: "True" });
    // What serve cannot read of the base comes first.
    const record = {
      engine: "small",
      base: { name: "small", revision: "unknown", digest: `sha256:${"0".repeat(64)}` as const },
      maxLoraRank: 32,
      maxLoras: 4,
      maxCpuLoras: 16,
      maxModelLen: 4096,
    };
    const problem = { code: "BASE_MISSING", message: 'base "small" is not there', param: "base" };
    await (await bus.bucket(buckets.engines)).put("small", { ...record, problem, updatedAt: new Date().toISOString() });
    await expect.poll(() => condition("small", "Ready"), within).toMatchObject({ status: "False", reason: "BASE_MISSING" });
  });

  it.each<[string, string, object, string]>([
    ["a name of the release's engine", "own", { base: "other" }, "ENGINE_NAME_TAKEN"],
    ["a base of the release's engine", "twice", { base: "llama" }, "ENGINE_BASE_TAKEN"],
    ["a base of an older Engine", "again", { base: "qwen3-8b" }, "ENGINE_BASE_TAKEN"],
    ["more shards than GPUs", "shards", { base: "b1", tensorParallelSize: 4 }, "ENGINE_INVALID"],
    ["a flag that Loraline sets", "flag", { base: "b2", extraArgs: ["--max_loras=9"] }, "ENGINE_INVALID"],
  ])("is not made with %s", async (_, name, given, code) => {
    await make(name, given);
    await expect.poll(() => condition(name, "Accepted"), within).toMatchObject({ status: "False", reason: code });
    expect(await condition(name, "Ready")).toMatchObject({ status: "False", reason: code });
    expect(await deployment(name)).toBeUndefined();
    await kube.delete(engines, { namespace, name });
  });

  it("that becomes wrong goes on as it was, and one that is free again is made", async () => {
    const { code } = await kubectl(["patch", "engine", "qwen", "--type=merge", "-p", '{"spec":{"extraArgs":["--port=1"]}}']);
    expect(code).toBe(0);
    await expect
      .poll(() => condition("qwen", "Accepted"), within)
      .toMatchObject({ status: "False", reason: "ENGINE_INVALID", message: expect.stringContaining("What ran before goes on") });
    expect((await settings()).find(({ engine }) => engine === "qwen")?.extraArgs).toEqual(["--enforce-eager"]);
    expect((await deployment("qwen"))?.spec?.template.spec?.containers[0]?.args).toContain("--enforce-eager");
    await make("next", { base: "qwen3-8b" });
    await expect.poll(() => condition("next", "Accepted"), within).toMatchObject({ status: "False", reason: "ENGINE_BASE_TAKEN" });
    await kube.delete(engines, { namespace, name: "qwen" });
    await expect.poll(() => deployment("qwen"), within).toBeUndefined();
    await expect.poll(() => condition("next", "Accepted"), within).toMatchObject({ status: "True" });
    expect(await kube.get(services, { namespace, name: "loraline-engine-qwen" })).toBeUndefined();
    expect(await kube.get(disruptionBudgets, { namespace, name: "loraline-engine-qwen" })).toBeUndefined();
    expect((await settings()).map(({ engine }) => engine)).toEqual(["small", "next"]);
  });

  describe("that may be scaled to zero, or an engine of the values", () => {
    const wake = { waitSeconds: 60, idleAfterSeconds: 600 };
    const replicasOf = async (name: string) => (await deployment(name))?.spec?.replicas;
    const tell = async (gateway: string, demand?: Record<string, number>): Promise<void> => {
      const bucket = await bus.bucket(buckets.traffic);
      const entry = { gateway, at: new Date().toISOString(), windowMs: 60_000, engines: [] };
      await bucket.put(trafficKeys(gateway).inFlight, entry);
      if (demand !== undefined) await bucket.put(trafficKeys(gateway).demand, { ...entry, demand });
    };
    const twoLooks = () => new Promise((resolve) => setTimeout(resolve, 1200));
    const begin = async (name: string, kind: "Engine" | "values"): Promise<void> => {
      if (kind === "Engine") {
        await make(name, { base: name, gpus: 0, replicas: 2, wake });
        await expect
          .poll(async () => (await settings()).find(({ engine }) => engine === name), within)
          .toMatchObject({ wake, replicas: 2 });
      } else {
        const objects = (await chartOf(
          ...chartEngine({ name, base: name, gpus: 0, replicas: 2, wake: { enabled: true, idleAfterSeconds: 600 } }),
        )) as unknown as (V1Deployment & { data?: Record<string, string> })[];
        const rendered = objects.find(({ kind: of, metadata }) => of === "Deployment" && metadata?.name === `loraline-engine-${name}`);
        expect(rendered?.spec).not.toHaveProperty("replicas");
        const list = objects.find(({ data }) => data?.["engines.json"] !== undefined)?.data?.["engines.json"] ?? "";
        expect(engineSettingsList.parse(JSON.parse(list))).toMatchObject([{ engine: name, replicas: 2, wake: { waitSeconds: 240 } }]);
        await applied([rendered]);
      }
      await playServe(name, name, { ...wake, replicas: 2 });
      await expect.poll(() => replicasOf(name), within).toBe(2);
      await playReady(name, 2);
    };

    it.each(["Engine", "values"] as const)(
      "sleeps when nobody asks it, and is started by a request or a new version (%s)",
      async (kind) => {
        const name = `sleepy-${kind.toLowerCase()}`;
        await begin(name, kind);
        await twoLooks();
        later += 590_000;
        await tell("g1");
        await tell("g2");
        await twoLooks();
        // Ten minutes are over, and one of two gateways says nothing, and may be answering.
        later += 16_000;
        await tell("g1");
        await twoLooks();
        expect(await replicasOf(name)).toBe(2);
        await tell("g2");
        await expect.poll(() => replicasOf(name), within).toBe(0);
        await playReady(name, 0);
        const asleep = { status: "True", reason: "Asleep" };
        // An engine of the values has no resource that could say so.
        await expect.poll(async () => (kind === "Engine" ? condition(name, "Ready") : asleep), within).toMatchObject(asleep);

        await tell("g2", { [name]: 3 });
        await expect.poll(() => replicasOf(name), within).toBe(2);
        await playReady(name, 2);
        await tell("g2", {});
        await twoLooks();
        later += 601_000;
        await tell("g1");
        await tell("g2");
        await expect.poll(() => replicasOf(name), within).toBe(0);
        await playReady(name, 0);

        const adapters = await bus.bucket(buckets.adapters);
        const blob = <K extends "adapter" | "evidence">(kind: K) => ({ kind, digest, size: 1 });
        const version: AdapterVersion = {
          version: 1,
          engineName: "acme.pirate.v1.0123456789ab",
          digest,
          manifest: blob("adapter"),
          evidence: blob("evidence"),
          runId: "01JD0000000000000000000001",
          rank: 8,
          promote: "auto",
          evaluation: null,
          status: "desired",
          reason: null,
          lastStepAt: new Date().toISOString(),
          createdAt: new Date().toISOString(),
          servedAt: null,
          trace: null,
        };
        const state = { tenant: "acme", adapter: `a-${name}`, engine: name, base: name, versions: [version], alias: null, history: [] };
        await adapters.put(`acme.a-${name}`, state);
        await expect.poll(() => replicasOf(name), within).toBe(2);
        await adapters.delete(`acme.a-${name}`);
        if (kind === "Engine") await kube.delete(engines, { namespace, name });
        await (await bus.bucket(buckets.engines)).delete(name);
      },
    );
  });

  it("is one only where the release may make engines: without a volume of bases the operator has no right to", async () => {
    const { stdout } = await promisify(execFile)(join(bin, "helm"), ["template", "loraline", join(root, "helm/loraline"), "-n", namespace]);
    const bare = parseAllDocuments(stdout).map(
      (document) => document.toJS() as Rendered & { rules?: { resources: string[]; verbs: string[] }[] },
    );
    const role = bare.find(({ kind, metadata }) => kind === "Role" && metadata.name === "loraline-operator-engines");
    expect(role?.rules?.filter(({ resources, verbs }) => resources.includes("deployments") && verbs.includes("create"))).toEqual([]);
    expect(bare.some(({ metadata }) => metadata.name === "loraline-engine-template")).toBe(false);
    const made: Engine = { metadata: { namespace, name: "e" }, spec: { base: "b" } };
    expect(acceptEngines([made], undefined, new Map()).refused.get("e")).toMatchObject({
      code: "ENGINES_OFF",
      message: expect.stringContaining("bases.volume"),
    });
  });

  it("follows the release: another image is another pod", async () => {
    await applied(
      (await chartOf(...chartEngine(ofRelease), "--set", "engineDefaults.image=example.com/vllm:next")).filter(
        ({ metadata }) => metadata.name === "loraline-engine-template",
      ),
    );
    await expect
      .poll(async () => (await deployment("next"))?.spec?.template.spec?.containers[0]?.image, within)
      .toBe("example.com/vllm:next");
  });
});

describe("a Base", () => {
  const ref = { name: "mistral", revision: "c0ffee", digest };
  const ready = async (name: string) => {
    const found = (await kube.get(bases, { namespace, name }))?.status?.conditions?.find(({ type }) => type === "Ready");
    return found && { status: found.status, reason: found.reason, message: found.message };
  };
  /** As the Job's controller and the kubelet do. */
  const playPod = async (job: V1Job, terminated: { exitCode: number; message: string }): Promise<void> => {
    const { name = "", uid = "", labels = {} } = job.metadata ?? {};
    const owner = { apiVersion: "batch/v1", kind: "Job", name, uid, controller: true };
    await kube
      .create(pods, {
        metadata: { namespace, name: `${name}-x`, labels, ownerReferences: [owner] },
        spec: job.spec?.template.spec ?? missing("a pod"),
      } satisfies V1Pod)
      .catch(() => {});
    const state = { terminated };
    const status = { containerStatuses: [{ name: "base", image: "i", imageID: "i", ready: false, restartCount: 1, state }] };
    await kube.apply(pods, { metadata: { namespace, name: `${name}-x` }, status }, { manager: "kubelet", subresource: "status" });
  };

  it("is fetched by a Job that may write to the volume and has no credentials of the line, and is Ready when its digest is known", async () => {
    await kube.create(bases, { metadata: { namespace, name: "mistral" }, spec: { hub: "mistralai/Mistral-7B", revision: "main" } });
    const name = "loraline-base-mistral";
    await expect.poll(() => kube.get(jobs, { namespace, name }), within).toBeDefined();
    const job = (await kube.get(jobs, { namespace, name })) as V1Job;
    const pod = job.spec?.template.spec;
    expect(pod?.containers[0]?.env).toEqual(
      expect.arrayContaining([
        { name: "BASE_NAME", value: "mistral" },
        { name: "BASE_HUB", value: "mistralai/Mistral-7B" },
        { name: "BASE_REVISION", value: "main" },
      ]),
    );
    expect(pod?.volumes?.map((volume) => [volume.name, volume.persistentVolumeClaim])).toEqual([
      ["tmp", undefined],
      ["bases", { claimName: "bases" }],
    ]);
    expect(pod?.automountServiceAccountToken).toBe(false);
    await expect.poll(() => ready("mistral"), within).toMatchObject({ status: "Unknown", reason: "Fetching" });
    await playPod(job, { exitCode: 1, message: "mistralai/Mistral-7B@main did not come from the hub" });
    await expect
      .poll(() => ready("mistral"), within)
      .toMatchObject({ status: "False", reason: "BASE_NOT_READY", message: expect.stringContaining("did not come from the hub") });
    await playPod(job, { exitCode: 0, message: JSON.stringify(ref) });
    await expect.poll(() => ready("mistral"), within).toMatchObject({ status: "True", reason: "OnVolume" });
    expect((await kube.get(bases, { namespace, name: "mistral" }))?.status).toMatchObject({
      observedGeneration: 1,
      digest,
      revision: "c0ffee",
    });
    expect((await kubectl(["get", "base"])).out).toMatch(/mistral +mistralai\/Mistral-7B +True +OnVolume +sha256:d/);
    // Its Job goes some time later, and is not made again.
    await kube.delete(jobs, { namespace, name }, { propagation: "Background" });
    await kubectl(["annotate", "base", "mistral", "seen=1"]);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    expect(await kube.get(jobs, { namespace, name })).toBeUndefined();
    const { code, out } = await kubectl(["patch", "base", "mistral", "--type=merge", "-p", '{"spec":{"revision":"next"}}']);
    expect([code, out]).toEqual([1, expect.stringContaining("make a new one with another name")]);
  });

  it("without a hub is waited for, and one with a name that no Job can have gets one all the same", async () => {
    await kube.create(bases, { metadata: { namespace, name: "by.hand" }, spec: {} });
    await expect
      .poll(async () => (await kube.list(jobs, { namespace })).items.map(({ metadata }) => metadata?.labels?.["loraline.dev/base"]), within)
      .toContain("by.hand");
    await expect.poll(() => ready("by.hand"), within).toMatchObject({ status: "Unknown", reason: "Reading" });
    const refused = await kubectl(
      ["create", "-f", "-"],
      JSON.stringify({ apiVersion: "loraline.dev/v1alpha1", kind: "Base", metadata: { name: "x" }, spec: { revision: "main" } }),
    );
    expect([refused.code, refused.out]).toEqual([1, expect.stringContaining("revision goes with hub")]);
  });
});

describe("at the door", () => {
  const object = (name: string, given: object) =>
    JSON.stringify({ apiVersion: "loraline.dev/v1alpha1", kind: "Engine", metadata: { name }, spec: given });
  it.each<[string, string, object, RegExp]>([
    ["no base", "e", {}, /spec\.base/],
    ["a field that is misspelt", "e", { base: "b", maxLora: 1 }, /maxLora/],
    ["a rank that vLLM does not have", "e", { base: "b", maxLoraRank: 24 }, /spec\.maxLoraRank/],
    [
      "fewer adapters in memory than in a batch",
      "e",
      { base: "b", maxLoras: 8, maxCpuLoras: 4 },
      /as many adapters in memory as it has slots/,
    ],
    ["more shards than GPUs", "e", { base: "b", gpus: 1, tensorParallelSize: 2 }, /each shard needs a GPU/],
    ["a quantity that is none", "e", { base: "b", resources: { limits: { memory: "16 GB" } } }, /memory/],
    ["a name with a dot", "e.f", { base: "b" }, /lower-case letters, digits and dashes, at most 40/],
  ])("%s is refused", async (_, name, given, words) => {
    const { code, out } = await kubectl(["create", "--dry-run=server", "-f", "-"], object(name, given));
    expect([code, out]).toEqual([1, expect.stringMatching(words)]);
  });

  it("the base cannot be changed, and it is said what to do", async () => {
    const { code, out } = await kubectl(["patch", "engine", "next", "--type=merge", "-p", '{"spec":{"base":"other"}}']);
    expect([code, out]).toEqual([1, expect.stringMatching(/spec\.base: Invalid value: .*make another Engine, and delete this one/)]);
  });

  it.each([
    ["engine", 18],
    ["base", 2],
  ])("kubectl explain has a sentence for every field of %s", async (kind, most) => {
    const { out } = await kubectl(["explain", `${kind}.spec`, "--recursive=false"]);
    const fields = out
      .slice(out.indexOf("FIELDS:"))
      .split(/\n(?= {2}\w+\t)/)
      .slice(1)
      .map((part) => [/^ +(\w+)/.exec(part)?.[1], part] as const);
    expect(fields.length).toBeGreaterThanOrEqual(most);
    expect(fields.filter(([, text]) => !/\n {4}[^\n]*[.;:]/.test(text) || text.includes("<no description>")).map(([name]) => name)).toEqual(
      [],
    );
  });
});
