/**
 * Runs on several nodes, with JobSet's own controller and chart. The node pretends to have two GPUs, so two pods of one run fit on it
 * and behave as if they were on two nodes.
 */
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  base,
  binDir,
  type ClusterNamespace,
  component,
  conditionOf,
  createNamespace,
  eventually,
  helm,
  isOwnNode,
  type Json,
  kubectl,
  stepOf,
} from "../cluster-under-test.ts";

/** Only trains. line.test.ts tests that adapters are proven on replicas. */
const values = {
  engines: [{ name: "smollm2", base, replicas: 0 }],
  gateway: { replicas: 1 },
  train: {
    // Each pod gets one core, because there are two pods and two cores.
    pods: {
      jobSet: true,
      ttlSecondsAfterFinished: 10,
      podTemplate: { spec: { initContainers: [{ name: "trainer", env: [{ name: "OMP_NUM_THREADS", value: "1" }] }] } },
    },
  },
};
/** JobSet with the node's image and otherwise its own defaults: it makes its webhook's certificate itself. */
const jobSetValues =
  "image.repository=docker.io/loraline/jobset,image.tag=dev,image.pullPolicy=Never,controller.resources.requests.cpu=10m";

let line: ClusterNamespace;
beforeAll(async () => {
  if (!isOwnNode) return;
  line = await createNamespace("jobset-test");
  await line.addSample();
  // JobSet is installed in the same namespace, so that it is removed with it.
  await helm("upgrade", "--install", "jobset", join(binDir, "jobset-chart"), "--namespace", line.name, "--set", jobSetValues);
  await line.helmInstall(values);
  await line.ready();
}, 900_000);
afterAll(async () => {
  if (!isOwnNode) return;
  await line[Symbol.asyncDispose]();
  await kubectl("delete", "customresourcedefinition", "jobsets.jobset.x-k8s.io"); // Helm leaves it
}, 900_000);

const spec = {
  nodes: 2,
  gpus: 1,
  training: { num_train_epochs: 1, per_device_train_batch_size: 4, learning_rate: 0.002, logging_steps: 1, save_steps: 2 },
};

/** The pods, in the order of their node's number. */
async function podsOf(attempt: number): Promise<Json[]> {
  const pods = await line.runs.pods(`${component("train-attempt")},loraline.dev/attempt=${attempt}`);
  return pods.sort((a, b) => nodeOf(a) - nodeOf(b));
}
const nodeOf = ({ metadata }: Json): number => Number(metadata.labels["batch.kubernetes.io/job-completion-index"]);
const nothingLeft = () =>
  eventually(
    "no JobSet is left, and nothing of one",
    async () => {
      const sets = await line.runs.get("jobsets");
      const { items } = await line.runs.get("jobs,pods,services", "-l", "jobset.sigs.k8s.io/jobset-name");
      return sets.items.length + items.length === 0;
    },
    { timeoutMs: 120_000 },
  );

it.runIf(isOwnNode)(
  "two pods train one adapter; the second is deleted in the middle, and the next two go on from the checkpoint",
  async () => {
    await line.fineTune("persona", { adapter: "persona", ...spec });
    const training = await line.until("persona", "training", (status) => stepOf(status) >= 1);
    // 81 rows with four rows for each of two pods in a step: one pod alone would need 21 steps.
    expect(training.step).toMatch(/\/11$/);
    const pods = await podsOf(1);
    expect(pods.map(nodeOf)).toEqual([0, 1]);
    const [set] = (await line.runs.get("jobsets")).items;
    for (const { metadata, spec } of pods) {
      expect(metadata.labels["jobset.sigs.k8s.io/jobset-name"]).toBe(set.metadata.name);
      expect(spec.initContainers[0].resources.limits["nvidia.com/gpu"]).toBe("1");
    }

    await line.until("persona", "past its first checkpoint", (status) => stepOf(status) >= 3);
    await line.runs.kubectl("delete", "pod", pods[1].metadata.name as string, "--wait=false");
    await line.until("persona", "in its second attempt", ({ attempt }) => attempt === 2);
    const resumes = (await podsOf(2)).map(({ spec }) => {
      const job = spec.containers[0].env.find((variable: Json) => variable.name === "COURIER_ATTEMPT");
      return JSON.parse(job.value as string).resume?.step;
    });
    // The resume is from the checkpoint that all saved when the second pod was stopped, not from that of step 2.
    expect(resumes[0]).toBeGreaterThanOrEqual(3);
    expect(resumes).toEqual([resumes[0], resumes[0]]);
    const told = await line.kubectl("get", "events", "--field-selector", "involvedObject.name=persona,reason=PREEMPTED");
    expect(told).toContain(`saved a checkpoint at step ${resumes[0] as number}`);

    const status = await line.until("persona", "trained", (now) => conditionOf(now, "Trained")?.status === "True");
    expect(status).toMatchObject({ attempt: 2, step: "11/11" });
    expect(Number(status.loss)).toBeLessThan(Number(training.loss));
    expect(Number(status.heldOutLoss.adapter)).toBeLessThan(Number(status.heldOutLoss.base));
    const adapter = await eventually("the adapter", () => line.get("adapter", "persona").then((one) => one.status?.versions && one));
    expect(adapter.status.versions).toHaveLength(1);
    await nothingLeft();
  },
);

it.runIf(isOwnNode)("says which node has no GPU, begins when it has one; cancelled, its pods are gone", async () => {
  await line.apply({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "has-a-gpu" },
    spec: {
      terminationGracePeriodSeconds: 0,
      securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } },
      containers: [
        {
          name: "main",
          image: "registry.k8s.io/pause:3.10",
          securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ["ALL"] } },
          resources: { limits: { "nvidia.com/gpu": "1" } },
        },
      ],
    },
  });
  await line.fineTune("waits", { adapter: "waits", ...spec });
  const waiting = await line.until("waits", "waiting", ({ message }) => /Insufficient nvidia.com\/gpu/.test(message ?? ""));
  expect(waiting.phase).toBe("Queued");
  expect(conditionOf(waiting, "Trained")).toMatchObject({ status: "Unknown", reason: "WAITING_FOR_DEVICE" });
  const first = await eventually("the first one's trainer", async () => {
    const [pod] = await podsOf(1);
    const log = await line.runs.kubectl("logs", pod.metadata.name as string, "--container", "trainer");
    return log.includes("trainer started") && pod;
  });
  expect(nodeOf(first)).toBe(0);

  await line.kubectl("delete", "pod", "has-a-gpu");
  const { runId, startedAt } = await line.until("waits", "training", (status) => stepOf(status) >= 1);
  // The pod with a GPU only waited for the other one, which does not count as a start.
  const [, second] = await podsOf(1);
  expect(Date.parse(startedAt as string)).toBeGreaterThan(Date.parse(second.status.startTime as string));
  await line.kubectl("delete", "finetune", "waits");
  await nothingLeft();
  expect((await line.ask(`/v1/loraline/runs/${runId as string}`)).phase).toBe("cancelled");
});
