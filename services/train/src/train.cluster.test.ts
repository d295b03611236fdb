/**
 * The controller over a real API server with the real Job controller, a real NATS, and the real courier with a scripted trainer. The
 * test plays the kubelet: it runs a pod's containers as processes. It plays Kueue, too, whose controller cannot be had here: it flips
 * `suspend`, and writes what Kueue's Workload says.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { KubernetesObject, V1EnvVar, V1Job, V1Pod } from "@kubernetes/client-node";
import { type Bus, createBus, ensureStreams } from "@loraline/bus";
import {
  type BaseRef,
  buckets,
  consumers,
  events,
  foldRun,
  type RunEvent,
  type runEvents,
  runKey,
  runSpec,
  type RunState,
  tokenManifest,
} from "@loraline/contracts";
import { createKube, type Kube, KubeError, resource, watch, withLease } from "@loraline/kube";
import { createJetStreamObjects, type Objects, putJson } from "@loraline/objects";
import { createLog, createTelemetry, spawnGuarded } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { type ApiServer, startApiServer, startControllers } from "@loraline/testkit/api-server";
import { ulid } from "ulid";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { trainPodSettings } from "./launchers/job-manifest.ts";
import { createKubeLauncher } from "./launchers/kube-launcher.ts";
import { jobs, pods } from "./launchers/watched-attempts.ts";
import { attemptNameOf } from "./attempt/attempt-spec.ts";
import { createTrainService } from "./controller/service.ts";

const python = join(import.meta.dirname, "../../../.venv/bin/python");
const log = createLog({ service: "test", level: process.env.TEST_LOG ?? "silent" });
const namespace = "default";
const tenant = "acme";
const base: BaseRef = { name: "tiny", revision: "r1", digest: `sha256:${"b".repeat(64)}` };
const within = { timeout: 30_000, interval: 50 };

const stack = new AsyncDisposableStack();
let dir: string;
let api: ApiServer;
let kube: Kube;
let nats: Awaited<ReturnType<typeof spawnNatsServer>>;
let bus: Bus;
let objects: Objects;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "loraline-train-kube-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  mkdirSync(join(dir, "bases", base.name), { recursive: true });
  writeFileSync(join(dir, "bases", base.name, "base.json"), JSON.stringify(base));
  api = stack.use(await startApiServer());
  kube = createKube({ kubeconfig: api.kubeconfig });
  stack.use(startControllers(api, "job-controller", "garbage-collector-controller"));
  nats = stack.use(await spawnNatsServer());
  const nc = await nats.connect();
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
  stack.use(playKubelet());
}, 120_000);
afterAll(() => stack.disposeAsync(), 60_000);

/** Runs the containers of every pod as processes; ends them as a kubelet does. */
function playKubelet(): AsyncDisposable {
  const stopping = new AbortController();
  const running = new Map<string, ReturnType<typeof spawnGuarded>>();
  const bindings = resource<KubernetesObject & { target: object }>("v1", "Binding", "bindings");
  const report = (name: string, status: V1Pod["status"]) =>
    kube.apply(pods, { metadata: { name, namespace }, status } as V1Pod, { manager: "kubelet", subresource: "status" });

  const start = async (pod: V1Pod): Promise<void> => {
    const { name = "", uid = "" } = pod.metadata ?? {};
    const folder = join(dir, uid);
    mkdirSync(folder);
    await kube.create(bindings, { metadata: { name, namespace }, target: { kind: "Node", name: "node1" } });
    // The folder of the containers stands for their shared volume.
    const runContainer = (program: string, args: string[], wanted: V1EnvVar[] = []): ReturnType<typeof spawnGuarded> => {
      const env = Object.fromEntries(
        wanted.map((one) => [
          one.name,
          one.valueFrom === undefined
            ? (one.value ?? "").replaceAll("$$", "$").replace(/^\/work\/trainer\.sock$/, join(folder, "trainer.sock"))
            : uid,
        ]),
      );
      return spawnGuarded(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, program), ...args], {
        cwd: folder,
        env: { ...env, HOME: folder, TMPDIR: folder, COURIER_TERMINATION_LOG: join(folder, "termination-log") },
        stdout: join(folder, `${program}.log`),
        stderr: join(folder, `${program}.log`),
      });
    };
    const sidecar = runContainer("trainer-main.ts", [], pod.spec?.initContainers?.[0]?.env);
    const child = runContainer("courier-main.ts", [folder], pod.spec?.containers[0]?.env);
    running.set(name, child);
    const startedAt = new Date().toISOString() as unknown as Date;
    const base = { name: "courier", image: "i", imageID: "i", restartCount: 0 };
    await report(name, { phase: "Running", containerStatuses: [{ ...base, ready: true, state: { running: { startedAt } } }] });
    const { code } = await child.exited;
    running.delete(name);
    sidecar.kill("SIGTERM");
    await sidecar.exited;
    let message = "";
    try {
      message = readFileSync(join(folder, "termination-log"), "utf8");
    } catch {
      // It had nothing to say.
    }
    const terminated = {
      exitCode: code ?? 137,
      reason: code === 0 ? "Completed" : "Error",
      message,
      startedAt,
      finishedAt: new Date().toISOString() as unknown as Date,
    };
    await report(name, {
      phase: code === 0 ? "Succeeded" : "Failed",
      containerStatuses: [{ ...base, ready: false, state: { terminated } }],
    });
    const now = await kube.get(pods, { namespace, name });
    if (now?.metadata?.deletionTimestamp !== undefined) await kube.delete(pods, { namespace, name }, { uid, gracePeriodSeconds: 0 });
  };
  const seen = new Set<string>();
  const watching = watch(kube, pods, {
    namespace,
    signal: stopping.signal,
    log,
    onChange(_key, pod) {
      const { name = "", uid = "", deletionTimestamp } = pod?.metadata ?? {};
      if (pod === undefined) return;
      if (deletionTimestamp !== undefined) running.get(name)?.kill("SIGTERM");
      else if (!seen.has(uid)) {
        seen.add(uid);
        start(pod).catch((error: unknown) => {
          // At the end the API server stops while the last container is reported.
          if (!stopping.signal.aborted && !(error instanceof KubeError && error.status === 404)) throw error;
        });
      }
    },
  });
  return {
    async [Symbol.asyncDispose]() {
      stopping.abort();
      for (const child of running.values()) child.kill("SIGKILL");
      await watching;
    },
  };
}

const variables = (more: Record<string, string>) =>
  Object.entries({ PATH: process.env.PATH ?? "", ...more }).map(([name, value]) => ({ name, value }));
const settingsFor = (script: object, more: object = {}) =>
  trainPodSettings.parse({
    namespace,
    image: "docker.io/loraline/trainer:dev",
    gpus: 0,
    env: variables({
      LORALINE_PYTHON: python,
      LORALINE_TRAINER: join(import.meta.dirname, "scripted-trainer.py"),
      TRAINER_SCRIPT: JSON.stringify(script),
    }),
    courier: { env: variables({ NATS_URL: nats.url, LORALINE_BASES_DIR: join(dir, "bases") }) },
    ...more,
  });

/** A controller as main.ts starts it, under the lease. */
function startController(identity: string, settings: ReturnType<typeof settingsFor>) {
  const stopping = new AbortController();
  let holds = false;
  const ended = withLease(kube, {
    namespace,
    name: "loraline-train",
    identity,
    log,
    signal: stopping.signal,
    durationMs: 4000,
    async work(lost) {
      await using launcher = await createKubeLauncher({ kube, settings, log, signal: lost });
      const telemetry = createTelemetry({ service: "train" });
      await using _service = await createTrainService({ bus, log, telemetry, launcher, resyncMs: 500 });
      holds = true;
      await new Promise<void>((resolve) => lost.addEventListener("abort", () => resolve(), { once: true }));
      holds = false;
    },
  });
  const stop = async (): Promise<void> => {
    stopping.abort();
    await ended;
  };
  return { holds: () => holds, stop, [Symbol.asyncDispose]: stop };
}

async function startRun(): Promise<string> {
  const id = ulid();
  const zero = `sha256:${"0".repeat(64)}` as const;
  const shard = { blob: await objects.put(tenant, "shard", `shard of ${id}`), rows: 1, sequences: 1, tokens: 1, supervised: 1 };
  const totals = { sequences: 1, tokens: 1, supervised: 1, evalSequences: 1, evalSupervised: 1, dropped: 0 };
  const manifest = tokenManifest.parse({
    version: 1,
    cacheKey: zero,
    base,
    tokenizerDigest: zero,
    templateDigest: zero,
    template: "base",
    maxLength: 128,
    packed: false,
    seed: 1,
    code: "1",
    train: [shard],
    eval: [shard],
    totals,
    dropped: [],
    reasons: {},
    noted: [],
    notes: {},
    templateFamily: null,
    probes: [{ name: "p", input_ids: [1, 2] }],
  });
  const at = { tenant, id };
  await bus.publish(events.runRequested, at, { spec: runSpec.parse({ base: base.name, adapter: "pirate", dataset: ulid() }), by: "test" });
  await bus.publish(events.runTokenized, at, {
    manifest: await putJson(objects, tenant, "tokens", manifest),
    totals,
    packed: false,
    cacheHit: false,
  });
  return id;
}
const stateOf = async (id: string): Promise<RunState> => (await (await bus.bucket(buckets.runs)).get(`${tenant}.${id}`))?.value as RunState;
const told = async (id: string, event: (typeof runEvents)[number]) =>
  (await bus.history([event] as never, { tenant, id })) as unknown as { data: Record<string, unknown> }[];
const jobsOf = async (id: string): Promise<V1Job[]> =>
  (await kube.list(jobs, { namespace, labelSelector: `loraline.dev/run=${id.toLowerCase()}` })).items;
/** Those that Kubernetes keeps with their logs until `ttlSecondsAfterFinished` is over, by uid. */
const endedJobsOf = async (id: string): Promise<(string | undefined)[]> =>
  (await jobsOf(id))
    .filter(
      ({ metadata, status }) => metadata?.deletionTimestamp === undefined && status?.conditions?.some(({ type }) => type === "Complete"),
    )
    .map(({ metadata }) => metadata?.uid);
const podsOf = async (id: string): Promise<V1Pod[]> =>
  (await kube.list(pods, { namespace, labelSelector: `loraline.dev/run=${id.toLowerCase()}` })).items;
const suspend = (id: string, value: boolean) =>
  kube.apply(jobs, { metadata: { name: attemptNameOf(id, 1), namespace }, spec: { suspend: value } } as V1Job, { manager: "kueue" });
const stepOf = async (id: string): Promise<number> => (await stateOf(id))?.checkpoints[0]?.step ?? 0;
const script = { steps: 60, save_steps: 5, step_ms: 50 };

describe("Kueue, played", () => {
  it("a run waits in its queue, is admitted, gives its place back after a checkpoint, and goes on in the same Job", async () => {
    await define("workloads", "kueue.x-k8s.io", "v1beta1", "Workload");
    await using _controller = startController("one", settingsFor(script, { queueName: "team-a" }));
    const id = await startRun();
    await expect
      .poll(async () => (await stateOf(id))?.queue, within)
      .toMatchObject({ reason: "SUSPENDED", message: expect.stringMatching(/^waits in queue "team-a"/) });
    const [job] = await jobsOf(id);
    expect(job?.metadata?.labels?.["kueue.x-k8s.io/queue-name"]).toBe("team-a");
    expect(await podsOf(id)).toEqual([]);

    const workloads = resource<KubernetesObject & { status?: object }>("kueue.x-k8s.io/v1beta1", "Workload", "workloads");
    const owner = { apiVersion: "batch/v1", kind: "Job", name: job?.metadata?.name ?? "", uid: job?.metadata?.uid ?? "" };
    const metadata = { name: "job-x", namespace, ownerReferences: [owner] };
    const conditions = [{ type: "QuotaReserved", status: "False", reason: "Pending", message: "1 more nvidia.com/gpu needed" }];
    await kube.apply(workloads, { metadata, status: { conditions } }, { manager: "kueue" });
    await expect
      .poll(async () => (await stateOf(id))?.queue?.message, within)
      .toMatch(/until Kueue admits it: 1 more nvidia.com\/gpu needed$/);
    await kube.delete(workloads, { namespace, name: "job-x" });

    await suspend(id, false);
    await expect.poll(async () => (await stateOf(id))?.phase, within).toBe("running");
    await expect.poll(() => stepOf(id), within).toBeGreaterThanOrEqual(5);

    await suspend(id, true);
    await expect
      .poll(async () => (await stateOf(id))?.queue, within)
      .toMatchObject({ reason: "SUSPENDED", message: expect.stringMatching(/^its place was taken back/) });
    await expect.poll(() => podsOf(id), within).toEqual([]);
    const saved = await stepOf(id);
    expect(saved).toBeLessThan(60);
    await expect.poll(async () => (await stateOf(id))?.queue?.message, within).toContain(`goes on from step ${saved}:`);

    await suspend(id, false);
    await expect.poll(async () => (await stateOf(id))?.phase, within).toBe("running");
    await expect.poll(async () => (await stateOf(id))?.phase, within).toBe("trained");
    // One attempt, started twice; it was never lost.
    expect((await told(id, events.runStarted)).map(({ data }) => [data["attempt"], data["resumedFromStep"]])).toEqual([
      [1, null],
      [1, saved],
    ]);
    expect(await told(id, events.runAttemptEnded)).toEqual([]);
    await expect.poll(() => endedJobsOf(id), within).toEqual([job?.metadata?.uid]);
  });
});

describe("Jobs and their owners", () => {
  it("a second controller waits, takes over what runs when the first is gone, and neither does anything twice", async () => {
    const one = startController("one", settingsFor(script));
    await expect.poll(() => one.holds(), within).toBe(true);
    await using two = startController("two", settingsFor(script));
    const id = await startRun();
    await expect.poll(() => stepOf(id), within).toBeGreaterThanOrEqual(5);
    const [job] = await jobsOf(id);
    expect(two.holds()).toBe(false);
    await one.stop();
    await expect.poll(() => two.holds(), within).toBe(true);
    expect((await jobsOf(id)).map(({ metadata }) => metadata?.uid)).toEqual([job?.metadata?.uid]);
    await expect.poll(async () => (await stateOf(id))?.phase, within).toBe("trained");
    expect(await told(id, events.runStarted)).toHaveLength(1);
    await expect.poll(() => endedJobsOf(id), within).toEqual([job?.metadata?.uid]);
  });

  it("a Job that somebody deletes saves a checkpoint, and only then the next attempt goes on from it", async () => {
    await using _controller = startController("one", settingsFor(script));
    const id = await startRun();
    await expect.poll(() => stepOf(id), within).toBeGreaterThanOrEqual(5);
    await kube.delete(jobs, { namespace, name: attemptNameOf(id, 1) });
    await expect.poll(async () => (await stateOf(id))?.phase, within).toBe("trained");
    const [lost] = await told(id, events.runAttemptEnded);
    expect(lost?.data).toMatchObject({
      attempt: 1,
      code: "JOB_DELETED",
      message: expect.stringMatching(/Job was deleted; .*saved a checkpoint at step \d+/),
    });
    const checkpoint = Number(/at step (\d+)/.exec(String(lost?.data["message"]))?.[1]);
    expect((await told(id, events.runStarted)).map(({ data }) => data["resumedFromStep"])).toEqual([null, checkpoint]);
  });

  it("a pod that the scheduler preempts is told from one that a node loses, and both go on", async () => {
    await using _controller = startController("one", settingsFor(script));
    const id = await startRun();
    await expect.poll(() => stepOf(id), within).toBeGreaterThanOrEqual(5);
    for (const [reason, code] of [
      ["PreemptionByScheduler", "PREEMPTED"],
      ["DeletionByTaintManager", "NODE_LOST"],
    ] as const) {
      const before = (await told(id, events.runAttemptEnded)).length;
      const [pod] = (await podsOf(id)).filter(
        ({ metadata, status }) => metadata?.deletionTimestamp === undefined && status?.phase === "Running",
      );
      const name = pod?.metadata?.name ?? "";
      // As the scheduler and the taint manager do: first they say why, then they delete.
      const conditions = [{ type: "DisruptionTarget", status: "True", reason, message: "says the cluster" }];
      await kube.apply(
        pods,
        { metadata: { name, namespace }, status: { conditions } },
        {
          manager: "cluster",
          subresource: "status",
        },
      );
      await kube.delete(pods, { namespace, name });
      await expect
        .poll(async () => (await told(id, events.runAttemptEnded))[before]?.data, within)
        .toMatchObject({ code, message: expect.stringMatching(/says the cluster; .*saved a checkpoint/) });
      await expect.poll(async () => (await told(id, events.runStarted)).length, within).toBe(before + 2);
    }
    await expect.poll(async () => (await stateOf(id))?.phase, within).toBe("trained");
  });

  it("a run that takes longer than an attempt may goes on in slices", { timeout: 240_000 }, async () => {
    // Longer than a start takes on a slow machine, or no slice would get anywhere; and shorter than all the steps.
    const activeDeadlineSeconds = 8;
    await using _controller = startController(
      "one",
      settingsFor({ ...script, steps: 100, step_ms: 100 }, { activeDeadlineSeconds, terminationGracePeriodSeconds: 10 }),
    );
    const id = await startRun();
    await expect.poll(async () => (await stateOf(id))?.phase, { ...within, timeout: 200_000 }).toBe("trained");
    const lost = (await told(id, events.runAttemptEnded)).map(({ data }) => data);
    expect(new Set(lost.map(({ code }) => code))).toEqual(new Set(["DEADLINE_EXCEEDED"]));
    expect(lost[0]?.["message"]).toMatch(/longer than 8 s \(train.pods.activeDeadlineSeconds\); .*saved a checkpoint/);
    const steps = lost.map(({ step }) => Number(step));
    // On a busy machine a slice may be over before it gets anywhere; none goes back.
    expect(steps).toEqual(steps.toSorted((a, b) => a - b));
    expect(steps.at(-1)).toBeGreaterThan(0);
  });

  it("a cancelled run leaves neither Job nor pod, and an attempt that is alien is left alone", async () => {
    await using _controller = startController("one", settingsFor({ ...script, steps: 2000 }));
    const alien = attemptNameOf(ulid(), 1);
    const labels = {
      "app.kubernetes.io/component": "train-attempt",
      "loraline.dev/tenant": tenant,
      "loraline.dev/run": alien.split("-")[1] ?? "",
      "loraline.dev/attempt": "1",
    };
    await kube.create(jobs, {
      metadata: { name: alien, namespace, labels },
      spec: { suspend: true, template: { spec: { restartPolicy: "Never", containers: [{ name: "courier", image: "i" }] } } },
    });
    const id = await startRun();
    await expect.poll(() => stepOf(id), within).toBeGreaterThanOrEqual(5);
    await bus.publish(events.runCancelRequested, { tenant, id }, { by: "test" });
    await expect.poll(async () => (await stateOf(id))?.phase, within).toBe("cancelled");
    await expect.poll(() => jobsOf(id), within).toEqual([]);
    await expect.poll(() => podsOf(id), within).toEqual([]);
    expect(await kube.get(jobs, { namespace, name: alien })).toBeDefined();
  });
});

/** A resource of somebody else's, with whatever fields. */
async function define(plural: string, group: string, version: string, kind: string): Promise<void> {
  const definitions = resource<KubernetesObject & { spec: object; status?: { conditions?: { type: string; status: string }[] } }>(
    "apiextensions.k8s.io/v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    false,
  );
  const name = `${plural}.${group}`;
  const schema = { openAPIV3Schema: { type: "object", "x-kubernetes-preserve-unknown-fields": true } };
  await kube.create(definitions, {
    metadata: { name },
    spec: { group, scope: "Namespaced", names: { plural, kind }, versions: [{ name: version, served: true, storage: true, schema }] },
  });
  await expect
    .poll(
      async () => (await kube.get(definitions, { name }))?.status?.conditions?.find(({ type }) => type === "Established")?.status,
      within,
    )
    .toBe("True");
}
