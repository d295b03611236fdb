/** Jobs on a real API server. There is no node: what the Job controller and a kubelet would do, the test does. */
import { execFile } from "node:child_process";
import { homedir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { KubernetesObject, V1Pod } from "@kubernetes/client-node";
import { createKube, type Kube, resource } from "@loraline/kube";
import { createLog } from "@loraline/runtime";
import { type ApiServer, startApiServer } from "@loraline/testkit/api-server";
import { ulid } from "ulid";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { runSpec } from "@loraline/contracts";
import { configMaps, createKubeLauncher, secrets } from "./kube-launcher.ts";
import { jobs, jobSets, pods } from "./watched-attempts.ts";
import { trainPodSettings } from "./job-manifest.ts";
import { attemptNameOf, attemptSpec, type AttemptSpec } from "../attempt/attempt-spec.ts";
import type { Launcher } from "./launcher.ts";

const namespaces = resource<KubernetesObject>("v1", "Namespace", "namespaces", false);
const quotas = resource<KubernetesObject>("v1", "ResourceQuota", "resourcequotas");
const log = createLog({ service: "test", level: "silent" });
const namespace = "default";
const settings = trainPodSettings.parse({
  namespace,
  image: "docker.io/loraline/trainer:dev",
  nodeSelector: { gpu: "h100" },
  tolerations: [{ key: "nvidia.com/gpu", operator: "Exists" }],
  podTemplate: { spec: { containers: [{ name: "courier", env: [{ name: "EXTRA", value: "1" }] }], hostname: "here" } },
});
let api: ApiServer;
let kube: Kube;
let launcher: Launcher & AsyncDisposable;
beforeAll(async () => {
  api = await startApiServer();
  kube = createKube({ kubeconfig: api.kubeconfig });
}, 90_000);
afterAll(() => api[Symbol.asyncDispose]());
beforeEach(async () => {
  launcher = await createKubeLauncher({ kube, settings, log });
});
afterEach(() => launcher[Symbol.asyncDispose]());

const jobFor = (over: Partial<AttemptSpec> & { gpus?: number; nodes?: number } = {}): AttemptSpec => {
  const runId = over.runId ?? ulid();
  const spec = runSpec.parse({ base: "b", adapter: "pirate", dataset: ulid(), gpus: over.gpus, nodes: over.nodes });
  const tokens = { kind: "tokens", digest: `sha256:${"a".repeat(64)}`, size: 1 } as const;
  return attemptSpec.parse({
    version: 1,
    tenant: "acme",
    runId,
    attempt: 1,
    name: attemptNameOf(runId, 1),
    runSpec: spec,
    tokens,
    resume: null,
    traceparent: null,
    ...over,
    gpus: undefined,
    nodes: undefined,
  });
};
const phaseOf = async (job: AttemptSpec) => (await launcher.observe()).find(({ name }) => name === job.name);

/** As the Job controller makes it, with the status that a kubelet would report. */
async function playPod(job: AttemptSpec, status: V1Pod["status"]): Promise<void> {
  const made = await kube.get(jobs, { namespace, name: job.name });
  const name = `${job.name}-abcde`;
  if ((await kube.get(pods, { namespace, name })) === undefined) {
    const template = made?.spec?.template;
    await kube.create(pods, {
      metadata: { name, namespace, labels: { ...template?.metadata?.labels, "batch.kubernetes.io/job-name": job.name } },
      spec: Object.assign({}, template?.spec, { serviceAccountName: undefined }) as never,
    });
  }
  await kube.apply(pods, { metadata: { name, namespace }, status } as V1Pod, { manager: "kubelet", subresource: "status" });
}

describe("kube launcher", () => {
  it("makes one Job per attempt, however often it is asked", async () => {
    const job = jobFor({ gpus: 2 });
    expect(await launcher.launch(job)).toBe(true);
    expect(await launcher.launch(job)).toBe(true);
    const made = await kube.get(jobs, { namespace, name: job.name });
    expect(made?.metadata?.labels).toMatchObject({ "loraline.dev/tenant": "acme", "loraline.dev/attempt": "1" });
    expect(made?.spec).toMatchObject({ backoffLimit: 0, ttlSecondsAfterFinished: 3600 });
    const spec = made?.spec?.template.spec;
    expect(spec).toMatchObject({
      nodeSelector: { gpu: "h100" },
      hostname: "here",
      restartPolicy: "Never",
      securityContext: { runAsNonRoot: true },
    });
    const [courier] = spec?.containers ?? [];
    const [trainer] = spec?.initContainers ?? [];
    expect(trainer?.resources?.limits?.["nvidia.com/gpu"]).toBe("2");
    expect(courier?.resources?.limits).toBeUndefined();
    expect(courier?.env?.map(({ name }) => name)).toEqual(expect.arrayContaining(["COURIER_ATTEMPT", "EXTRA"]));
    expect(JSON.parse(courier?.env?.find(({ name }) => name === "COURIER_ATTEMPT")?.value ?? "")).toMatchObject({
      runId: job.runId,
      runSpec: { gpus: 2 },
    });
    await expect(launcher.launch({ ...job, tenant: "other" })).rejects.toMatchObject({ code: "RUN_ID_TAKEN" });
  });

  it("tells what becomes of it, and whose it is", async () => {
    const job = jobFor();
    const told: string[] = [];
    using _watching = launcher.watch(({ tenant, runId }) => void told.push(`${tenant} ${runId}`));
    await launcher.launch(job);
    await expect
      .poll(() => phaseOf(job))
      .toMatchObject({ phase: "pending", reason: "STARTING", tenant: "acme", runId: job.runId, attempt: 1 });
    await playPod(job, {
      phase: "Pending",
      conditions: [
        {
          type: "PodScheduled",
          status: "False",
          reason: "Unschedulable",
          message: "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        },
      ],
    });
    await expect.poll(() => phaseOf(job)).toMatchObject({ phase: "pending", reason: "WAITING_FOR_DEVICE" });
    await playPod(job, { phase: "Running" });
    await expect.poll(() => phaseOf(job)).toMatchObject({ phase: "running" });
    await playPod(job, {
      phase: "Failed",
      containerStatuses: [
        {
          name: "courier",
          image: "i",
          imageID: "i",
          ready: false,
          restartCount: 0,
          state: { terminated: { exitCode: 75, reason: "Error", message: '{"code":"STORE_FULL","message":"full"}' } },
        },
      ],
    });
    await expect.poll(() => phaseOf(job)).toMatchObject({ phase: "failed", code: "STORE_FULL" });
    expect(new Set(told)).toEqual(new Set([`acme ${job.runId}`]));
    await launcher.remove(job.name);
    await launcher.remove(job.name);
    expect(await phaseOf(job)).toBeUndefined();
    // Job and pod stay for ttlSecondsAfterFinished, so that there is a log to read; also when a later controller comes upon them.
    await using second = await createKubeLauncher({ kube, settings, log });
    await second.remove(job.name);
    expect((await second.observe()).map(({ name }) => name)).not.toContain(job.name);
    expect((await kube.get(jobs, { namespace, name: job.name }))?.metadata?.deletionTimestamp).toBeUndefined();
    expect((await kube.get(pods, { namespace, name: `${job.name}-abcde` }))?.status?.phase).toBe("Failed");
  });

  it("deletes one that still runs when it is removed", async () => {
    const job = jobFor();
    await launcher.launch(job);
    await playPod(job, { phase: "Running" });
    await expect.poll(() => phaseOf(job)).toMatchObject({ phase: "running" });
    await launcher.remove(job.name);
    // Without the garbage collector of a whole cluster the pod stays, but the attempt is gone.
    await expect.poll(() => phaseOf(job)).toBeUndefined();
    expect(await kube.get(jobs, { namespace, name: job.name })).toBeUndefined();
  });

  it("makes a tenant's attempts in the tenant's namespace, where its quota refuses them by name", async () => {
    const of = "acme-runs";
    await kube.create(namespaces, { metadata: { name: of } });
    const hard = { "count/jobs.batch": "0" };
    const quota = { metadata: { name: "gpus", namespace: of }, spec: { hard } };
    await kube.create(quotas, quota);
    // As the quota controller counts.
    await kube.apply(quotas, { metadata: quota.metadata, status: { hard, used: { "count/jobs.batch": "0" } } } as never, {
      manager: "quotas",
      subresource: "status",
    });
    await using confined = await createKubeLauncher({ kube, settings: { ...settings, tenantNamespaces: { acme: of } }, log });
    const job = jobFor();
    // Admission learns of it after a moment; until then it is another Job that is made.
    await expect
      .poll(() => confined.launch(jobFor()).catch((error: unknown) => error), { timeout: 60_000 })
      .toMatchObject({ code: "QUOTA", message: expect.stringMatching(/exceeded quota: gpus, requested: count\/jobs.batch=1/) });
    await kube.delete(quotas, { namespace: of, name: "gpus" });
    await expect.poll(() => confined.launch(job).catch(() => false), { timeout: 60_000 }).toBe(true);
    expect(await kube.get(jobs, { namespace: of, name: job.name })).toBeDefined();
    expect(await kube.get(jobs, { namespace, name: job.name })).toBeUndefined();
    expect((await confined.observe()).map(({ name }) => name)).toContain(job.name);
    const other = jobFor({ tenant: "umbrella" });
    await confined.launch(other);
    expect(await kube.get(jobs, { namespace, name: other.name })).toBeDefined();
  });

  it("finds again what an earlier controller started", async () => {
    const job = jobFor();
    await launcher.launch(job);
    await using second = await createKubeLauncher({ kube, settings, log });
    expect((await second.observe()).map(({ name }) => name)).toContain(job.name);
  });

  it("belongs to its owner as it is now, also to one that was deleted and made anew", async () => {
    const owner = { metadata: { namespace, name: "owner" } };
    await using owned = await createKubeLauncher({ kube, settings: { ...settings, owner: "owner" }, log });
    for (let round = 0; round < 2; round++) {
      const made = await kube.create(configMaps, owner);
      const job = jobFor();
      await owned.launch(job);
      const { metadata } = (await kube.get(jobs, { namespace, name: job.name })) ?? {};
      expect(metadata?.ownerReferences).toMatchObject([{ kind: "ConfigMap", name: "owner", uid: made.metadata?.uid }]);
      await kube.delete(configMaps, { namespace, name: "owner" });
    }
    const orphan = jobFor();
    await expect(owned.launch(orphan)).rejects.toMatchObject({ code: "OWNER_MISSING" });
    expect(await kube.get(jobs, { namespace, name: orphan.name })).toBeUndefined();
  });

  it("writes the courier's credentials beside the attempt, as they are now; they go with the release", async () => {
    const made = await kube.create(configMaps, { metadata: { namespace, name: "owner-of-secret" } });
    let password = "one";
    await using withCredentials = await createKubeLauncher({
      kube,
      settings: { ...settings, owner: "owner-of-secret", credentials: "loraline-courier" },
      readCredentials: async () => ({ "nats-password": Buffer.from(password) }),
      log,
    });
    for (password of ["one", "two"]) {
      const job = jobFor();
      await withCredentials.launch(job);
      const secret = await kube.get(secrets, { namespace, name: "loraline-courier" });
      expect(Buffer.from(secret?.data?.["nats-password"] ?? "", "base64").toString()).toBe(password);
      expect(secret?.metadata?.ownerReferences).toMatchObject([{ name: "owner-of-secret", uid: made.metadata?.uid }]);
      const spec = (await kube.get(jobs, { namespace, name: job.name }))?.spec?.template.spec;
      expect(spec?.volumes).toContainEqual({ name: "credentials", secret: { secretName: "loraline-courier", defaultMode: 0o440 } });
    }
  });

  it("says what the cluster does not allow", async () => {
    const broken = await createKubeLauncher({ kube, settings: { ...settings, podTemplate: { spec: { restartPolicy: "Always" } } }, log });
    await expect(broken.launch(jobFor())).rejects.toMatchObject({ code: "JOB_INVALID", message: expect.stringContaining("restartPolicy") });
    await broken[Symbol.asyncDispose]();
  });
});

/** JobSet's own schema; undefined where Go's modules cannot be had. */
const jobSetCrd = await promisify(execFile)("go", ["mod", "download", "-json", "sigs.k8s.io/jobset@v0.10.1"], { timeout: 60_000 }).then(
  ({ stdout }) => join((JSON.parse(stdout) as { Dir: string }).Dir, "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml"),
  () => undefined,
);

describe("an attempt on several nodes", () => {
  it("is refused where JobSet is not set up, and waits where it is not installed", async () => {
    await expect(launcher.launch(jobFor({ nodes: 2 }))).rejects.toMatchObject({ code: "NODES_UNSUPPORTED", param: "nodes" });
    await using without = await createKubeLauncher({ kube, settings: { ...settings, jobSet: true }, log });
    await expect(without.launch(jobFor({ nodes: 2 }))).rejects.toMatchObject({ code: "JOBSET_MISSING" });
  });

  it.skipIf(jobSetCrd === undefined)("is a JobSet that JobSet's schema accepts, and ends with the first pod that does", async () => {
    const kubectl = join(process.env.LORALINE_CLUSTER_BIN ?? join(homedir(), ".cache/loraline/cluster-bin"), "kubectl");
    const run = promisify(execFile);
    await run(kubectl, ["--kubeconfig", api.kubeconfig, "apply", "--server-side", "-f", jobSetCrd ?? ""]);
    const served = () =>
      kube.list(jobSets, { namespace }).then(
        () => true,
        () => false,
      );
    await expect.poll(served, { timeout: 60_000 }).toBe(true);
    await using several = await createKubeLauncher({ kube, settings: { ...settings, jobSet: true, activeDeadlineSeconds: 60 }, log });
    const job = jobFor({ nodes: 2, gpus: 4 });
    const phase = async () => (await several.observe()).find(({ name }) => name === job.name);
    expect(await several.launch(job)).toBe(true);
    expect(await several.launch(job)).toBe(true);
    const made = await kube.get(jobSets, { namespace, name: job.name });
    expect(made?.spec.replicatedJobs[0]?.template.spec).toMatchObject({
      parallelism: 2,
      completions: 2,
      completionMode: "Indexed",
      backoffLimit: 0,
    });
    await expect.poll(phase).toMatchObject({ phase: "pending", reason: "STARTING", tenant: "acme", runId: job.runId, attempt: 1 });

    // As JobSet's controller and the Job controller make them.
    const template = made?.spec.replicatedJobs[0]?.template.spec.template;
    const status = (node: number, of: V1Pod["status"]) => {
      const name = `${job.name}-node-0-${node}-abcde`;
      return kube.apply(pods, { metadata: { name, namespace }, status: of ?? {} }, { manager: "kubelet", subresource: "status" });
    };
    for (const node of [0, 1]) {
      const labels = {
        ...template?.metadata?.labels,
        "jobset.sigs.k8s.io/jobset-name": job.name,
        "batch.kubernetes.io/job-name": `${job.name}-node-0`,
        "batch.kubernetes.io/job-completion-index": String(node),
      };
      const spec = Object.assign({}, template?.spec, { serviceAccountName: undefined }) as never;
      await kube.create(pods, { metadata: { name: `${job.name}-node-0-${node}-abcde`, namespace, labels }, spec });
    }
    await status(0, { phase: "Running" });
    const message = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu.";
    await status(1, { phase: "Pending", conditions: [{ type: "PodScheduled", status: "False", reason: "Unschedulable", message }] });
    await expect.poll(phase).toMatchObject({ phase: "pending", reason: "WAITING_FOR_DEVICE" });
    await status(1, { phase: "Running" });
    await expect.poll(phase).toMatchObject({ phase: "running" });

    const ended = (exitCode: number, reason: string, finishedAt: string) => ({
      phase: "Failed",
      containerStatuses: [
        {
          name: "courier",
          image: "i",
          imageID: "i",
          ready: false,
          restartCount: 0,
          state: { terminated: { exitCode, reason, finishedAt: finishedAt as never } },
        },
      ],
    });
    await status(0, ended(75, "Error", "2026-11-24T12:00:05Z"));
    await status(1, ended(137, "OOMKilled", "2026-11-24T12:00:01Z"));
    const conditions = [
      { type: "Failed", status: "True", reason: "FailedJobs", message: "jobset failed", lastTransitionTime: "2026-11-24T12:00:06Z" },
    ];
    await kube.apply(jobSets, { metadata: { name: job.name, namespace }, status: { conditions, restarts: 0 } } as never, {
      manager: "jobset",
      subresource: "status",
    });
    await expect.poll(phase).toMatchObject({ phase: "failed", code: "OUT_OF_MEMORY" });
    await several.remove(job.name);
    await expect.poll(phase).toBeUndefined();
    expect((await kube.get(jobSets, { namespace, name: job.name }))?.metadata.deletionTimestamp, "it stays for its log").toBeUndefined();

    // As with JobSet installed and its controller down.
    const webhook = {
      apiVersion: "admissionregistration.k8s.io/v1",
      kind: "MutatingWebhookConfiguration",
      metadata: { name: "jobset" },
      webhooks: [
        {
          name: "mutate.jobset.x-k8s.io",
          admissionReviewVersions: ["v1"],
          sideEffects: "None",
          rules: [{ apiGroups: ["jobset.x-k8s.io"], apiVersions: ["*"], operations: ["CREATE"], resources: ["jobsets"] }],
          clientConfig: { url: "https://127.0.0.1:1/" },
        },
      ],
    };
    const applied = run(kubectl, ["--kubeconfig", api.kubeconfig, "apply", "-f", "-"]);
    applied.child.stdin?.end(JSON.stringify(webhook));
    await applied;
    const launch = () => several.launch(jobFor({ nodes: 2 })).catch(({ code }: { code: string }) => code);
    await expect.poll(launch, { timeout: 60_000 }).toBe("JOBSET_UNAVAILABLE");
  });
});
