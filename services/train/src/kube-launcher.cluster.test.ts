/** Jobs on a real API server. There is no node: what the Job controller and a kubelet would do, the test does. */
import type { V1Pod } from "@kubernetes/client-node";
import { createKube, type Kube } from "@loraline/kube";
import { createLog } from "@loraline/runtime";
import { type ApiServer, startApiServer } from "@loraline/testkit/api-server";
import { ulid } from "ulid";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { runSpec } from "@loraline/contracts";
import { createKubeLauncher, jobs, pods } from "./kube-launcher.ts";
import { trainPodSettings } from "./job-manifest.ts";
import { jobNameOf, type Launcher, trainJob, type TrainJob } from "./launcher.ts";

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

const jobFor = (over: Partial<TrainJob> & { gpus?: number } = {}): TrainJob => {
  const runId = over.runId ?? ulid();
  const spec = runSpec.parse({ base: "b", adapter: "pirate", dataset: ulid(), ...(over.gpus === undefined ? {} : { gpus: over.gpus }) });
  const tokens = { kind: "tokens", digest: `sha256:${"a".repeat(64)}`, size: 1 } as const;
  return trainJob.parse({
    version: 1,
    tenant: "acme",
    runId,
    attempt: 1,
    jobName: jobNameOf(runId, 1),
    spec,
    tokens,
    resume: null,
    traceparent: null,
    ...over,
    gpus: undefined,
  });
};
const phaseOf = async (job: TrainJob) => (await launcher.observe()).find(({ jobName }) => jobName === job.jobName);

/** As the Job controller makes it, with the status that a kubelet would report. */
async function playPod(job: TrainJob, status: V1Pod["status"]): Promise<void> {
  const made = await kube.get(jobs, { namespace, name: job.jobName });
  const name = `${job.jobName}-abcde`;
  if ((await kube.get(pods, { namespace, name })) === undefined) {
    const template = made?.spec?.template;
    await kube.create(pods, {
      metadata: { name, namespace, labels: { ...template?.metadata?.labels, "batch.kubernetes.io/job-name": job.jobName } },
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
    const made = await kube.get(jobs, { namespace, name: job.jobName });
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
    expect(courier?.resources?.limits?.["nvidia.com/gpu"]).toBe("2");
    expect(courier?.env?.map(({ name }) => name)).toEqual(expect.arrayContaining(["COURIER_JOB", "EXTRA"]));
    expect(JSON.parse(courier?.env?.find(({ name }) => name === "COURIER_JOB")?.value ?? "")).toMatchObject({
      runId: job.runId,
      spec: { gpus: 2 },
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
    await launcher.remove(job.jobName);
    await launcher.remove(job.jobName);
    // Without the garbage collector of a whole cluster the pod stays, but the attempt is gone.
    await expect.poll(() => phaseOf(job)).toBeUndefined();
  });

  it("finds again what an earlier controller started", async () => {
    const job = jobFor();
    await launcher.launch(job);
    await using second = await createKubeLauncher({ kube, settings, log });
    expect((await second.observe()).map(({ jobName }) => jobName)).toContain(job.jobName);
  });

  it("says what the cluster does not allow", async () => {
    const broken = await createKubeLauncher({ kube, settings: { ...settings, podTemplate: { spec: { restartPolicy: "Always" } } }, log });
    await expect(broken.launch(jobFor())).rejects.toMatchObject({ code: "JOB_INVALID", message: expect.stringContaining("restartPolicy") });
    await broken[Symbol.asyncDispose]();
  });
});
