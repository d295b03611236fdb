import type { V1Job, V1Pod } from "@kubernetes/client-node";
import { describe, expect, it } from "vitest";
import { type AttemptObjects, decideAttempt } from "./decide-attempt.ts";

const now = Date.parse("2026-11-24T12:00:00Z");
const jobName = "train-x-1";
const job = (status: V1Job["status"] = {}, spec: object = {}, labels: Record<string, string> = {}): V1Job => ({
  metadata: { name: jobName, labels },
  spec: { template: {}, ...spec },
  status,
});
const failedJob = (reason = "BackoffLimitExceeded", message = "Job has reached the specified backoff limit"): V1Job =>
  job({ conditions: [{ type: "Failed", status: "True", reason, message, lastTransitionTime: new Date(now - 1000) }] });
const pod = (status: NonNullable<V1Pod["status"]>): V1Pod => ({
  metadata: { name: `${jobName}-abcde` },
  spec: { nodeName: "node1", containers: [{ name: "courier", image: "loraline/trainer:1", resources: { limits: { memory: "32Gi" } } }] },
  status,
});
const ended = (exitCode: number, message?: string, reason = "Error"): V1Pod =>
  pod({
    phase: exitCode === 0 ? "Succeeded" : "Failed",
    containerStatuses: [
      {
        name: "courier",
        image: "",
        imageID: "",
        ready: false,
        restartCount: 0,
        state: { terminated: { exitCode, reason, finishedAt: new Date(now - 5000), ...(message === undefined ? {} : { message }) } },
      },
    ],
  });
const waiting = (reason: string, message: string): V1Pod =>
  pod({
    phase: "Pending",
    conditions: [{ type: "PodScheduled", status: "True" }],
    containerStatuses: [
      { name: "courier", image: "", imageID: "", ready: false, restartCount: 0, state: { waiting: { reason, message } } },
    ],
  });
/** With a container before the courier, as train.pods.podTemplate may add it. */
const withInit = (one: V1Pod, state: object): V1Pod => {
  const init = { name: "proxy", image: "mesh/proxy:2", imageID: "", ready: false, restartCount: 0, state };
  return Object.assign({}, one, { status: Object.assign({}, one.status, { initContainerStatuses: [init] }) });
};
/** With the trainer's container beside the courier, which was killed for its memory and has begun again. */
const withTrainer = (one: V1Pod, last: object = {}): V1Pod => {
  const trainer = {
    name: "trainer",
    image: "loraline/trainer:1",
    imageID: "",
    ready: true,
    restartCount: 1,
    state: { terminated: { exitCode: 137 } },
  };
  const spec = Object.assign({}, one.spec, {
    initContainers: [{ name: "trainer", image: "loraline/trainer:1", resources: { limits: { memory: "64Gi" } } }],
  });
  return Object.assign({}, one, {
    spec,
    status: Object.assign({}, one.status, { initContainerStatuses: [{ ...trainer, lastState: last }] }),
  });
};
const trainerKilled = '{"code":"TRAINER_KILLED","message":"the trainer was killed with SIGKILL"}';
const unschedulable = (message: string): V1Pod =>
  pod({ phase: "Pending", conditions: [{ type: "PodScheduled", status: "False", reason: "Unschedulable", message }] });
const disrupted = (reason: string): V1Pod => {
  const one = ended(75, JSON.stringify({ code: "PREEMPTED", message: "asked" }));
  return Object.assign(one, {
    status: Object.assign(one.status ?? {}, {
      conditions: [{ type: "DisruptionTarget", status: "True", reason, message: "node1 says so" }],
    }),
  });
};
const saved = (one: V1Pod): V1Pod => {
  const [courier] = one.status?.containerStatuses ?? [];
  if (courier?.state?.terminated !== undefined)
    courier.state.terminated.message = JSON.stringify({ code: "PREEMPTED", message: "saved a checkpoint" });
  return one;
};
const named = (one: V1Pod, metadata: V1Pod["metadata"] & object): V1Pod =>
  Object.assign({}, one, { metadata: Object.assign({}, one.metadata, metadata) });
const deleted = (one: V1Pod, at: number): V1Pod => named(one, { deletionTimestamp: new Date(at) });
const node = (index: number, one: V1Pod, shiftMs = 0): V1Pod => {
  const end = one.status?.containerStatuses?.[0]?.state?.terminated;
  if (end?.finishedAt !== undefined) end.finishedAt = new Date(end.finishedAt.getTime() + shiftMs);
  return named(one, { labels: { "batch.kubernetes.io/job-completion-index": String(index) } });
};
const kueue = (conditions: object[]): AttemptObjects["workload"] => ({ status: { conditions: conditions as never[] } });
const queued = (more: object = {}) => job({}, { suspend: true, ...more }, { "kueue.x-k8s.io/queue-name": "team-a" });
const warning = (reason: string, message: string, name = jobName): AttemptObjects["warnings"][number] => ({
  reason,
  message,
  involvedObject: { name },
});
const decide = (over: Partial<AttemptObjects>) => decideAttempt({ job: job(), pods: [], warnings: [], ...over }, now);

describe("an attempt that waits says for what", () => {
  it.each<[string, Partial<AttemptObjects>, string, RegExp]>([
    ["nothing yet", {}, "STARTING", /being made/],
    [
      "quota",
      { warnings: [warning("FailedCreate", 'pods "x" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=1')] },
      "QUOTA",
      /quota is used up: .*exceeded quota: gpus/,
    ],
    [
      "policy",
      { warnings: [warning("FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted"')] },
      "POD_REFUSED",
      /violates PodSecurity/,
    ],
    ["another Job's trouble", { warnings: [warning("FailedCreate", "exceeded quota", "train-y-1")] }, "STARTING", /being made/],
    ["Kueue", { job: job({}, { suspend: true }, { "kueue.x-k8s.io/queue-name": "team-a" }) }, "SUSPENDED", /queue "team-a"/],
    [
      "Kueue's own words",
      { job: queued(), workload: kueue([{ type: "QuotaReserved", status: "False", message: "1 more nvidia.com/gpu needed" }]) },
      "SUSPENDED",
      /queue "team-a" until Kueue admits it: 1 more nvidia.com\/gpu needed/,
    ],
    [
      "a Kueue that admits and does not resume",
      { job: queued(), workload: kueue([{ type: "Admitted", status: "True", lastTransitionTime: new Date(now - 90_000) }]) },
      "NOT_RESUMED",
      /admitted it 90 s ago/,
    ],
    [
      "a pod that nobody makes",
      { job: job({ conditions: [{ type: "Suspended", status: "False", lastTransitionTime: new Date(now - 60_000) }] }) },
      "NO_POD",
      /Kueue admitted the Job, and no pod has been made/,
    ],
    [
      "a GPU",
      {
        pods: [
          unschedulable(
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
          ),
        ],
      },
      "WAITING_FOR_DEVICE",
      /^no node has enough free nvidia.com\/gpu: 0\/1 nodes are available: 1 Insufficient nvidia.com\/gpu\.$/,
    ],
    ["memory", { pods: [unschedulable("0/1 nodes are available: 1 Insufficient memory.")] }, "UNSCHEDULABLE", /Insufficient memory/],
    ["a claim", { pods: [unschedulable('persistentvolumeclaim "bases" not found')] }, "VOLUME", /bases/],
    ["an image", { pods: [waiting("ImagePullBackOff", "Back-off pulling image")] }, "IMAGE", /loraline\/trainer:1 cannot be had: Back-off/],
    ["a config", { pods: [waiting("CreateContainerConfigError", 'secret "nats" not found')] }, "POD_CONFIG", /secret "nats" not found/],
    [
      "a container that the pod template adds",
      { pods: [withInit(waiting("PodInitializing", ""), { waiting: { reason: "ImagePullBackOff", message: "Back-off pulling image" } })] },
      "IMAGE",
      /proxy:2 cannot be had: Back-off/,
    ],
    [
      "one of these that crashes",
      { pods: [withInit(waiting("PodInitializing", ""), { waiting: { reason: "CrashLoopBackOff", message: "back-off 10s restarting" } })] },
      "POD_CONFIG",
      /container proxy does not start: back-off 10s restarting/,
    ],
    [
      "a mount",
      {
        pods: [waiting("ContainerCreating", "")],
        warnings: [warning("FailedMount", "MountVolume.SetUp failed: timeout", `${jobName}-abcde`)],
      },
      "VOLUME",
      /SetUp failed/,
    ],
    ["its start", { pods: [waiting("ContainerCreating", "")] }, "STARTING", /starting/],
  ])("%s", (_, objects, reason, message) => {
    expect(decide(objects)).toEqual({ phase: "pending", reason, message: expect.stringMatching(message) });
  });
});

describe("an attempt that is over", () => {
  it("is settled when the courier said the last word, whatever happened then", () => {
    expect(decide({ pods: [ended(0)] })).toEqual({ phase: "concluded" });
    expect(decide({ job: failedJob(), pods: [ended(10)] })).toEqual({ phase: "concluded" });
    expect(decide({ job: job({ conditions: [{ type: "Complete", status: "True" }] }) })).toEqual({ phase: "concluded" });
  });

  it.each<[string, Partial<AttemptObjects>, string, RegExp]>([
    ["preempted by the scheduler", { pods: [disrupted("PreemptionByScheduler")] }, "PREEMPTED", /higher priority/],
    ["drained", { pods: [disrupted("EvictionByEvictionAPI")] }, "EVICTED", /EvictionByEvictionAPI.*node1 says so/],
    ["node not ready", { pods: [disrupted("DeletionByTaintManager")] }, "NODE_LOST", /not ready/],
    [
      "evicted for disk",
      { pods: [pod({ phase: "Failed", reason: "Evicted", message: "low on ephemeral-storage" })] },
      "EVICTED",
      /ephemeral-storage/,
    ],
    ["out of memory", { pods: [ended(137, undefined, "OOMKilled")] }, "OUT_OF_MEMORY", /limit 32Gi.*per_device_train_batch_size/],
    [
      "the trainer's whole container out of memory",
      { pods: [withTrainer(ended(75, trainerKilled), { terminated: { exitCode: 137, reason: "OOMKilled" } })] },
      "OUT_OF_MEMORY",
      /limit 64Gi.*train\.pods\.memory/,
    ],
    ["the trainer killed otherwise", { pods: [withTrainer(ended(75, trainerKilled))] }, "TRAINER_KILLED", /SIGKILL/],
    ["the courier out of memory", { pods: [withTrainer(ended(137, undefined, "OOMKilled"))] }, "OUT_OF_MEMORY", /train\.pods\.courier/],
    [
      "nothing but the sidecar's end",
      { job: failedJob(), pods: [withTrainer(pod({ phase: "Failed" }))] },
      "ATTEMPT_LOST",
      /without a word/,
    ],
    ["told why", { pods: [ended(75, '{"code":"STORE_FULL","message":"the store is full"}')] }, "STORE_FULL", /the store is full/],
    ["told to stop", { pods: [ended(75)] }, "PREEMPTED", /asked to stop/],
    ["crashed", { pods: [ended(1, "line one\nTypeError: x is not a function\n")] }, "COURIER_CRASHED", /exit code 1: TypeError: x is not/],
    [
      "crashed, with a line of its log that is cut off",
      { pods: [ended(1, 'rnal/x:104:5)","code":"X"},"msg":"NATS refused the credentials of \\"courier\\": no."}\n')] },
      "COURIER_CRASHED",
      /^the courier ended with exit code 1: NATS refused the credentials of "courier": no\.$/,
    ],
    ["took too long", { job: failedJob("DeadlineExceeded"), pods: [ended(75)] }, "DEADLINE_EXCEEDED", /activeDeadlineSeconds/],
    ["its pod deleted", { job: failedJob() }, "ATTEMPT_LOST", /gone without a word/],
  ])("%s", (_, objects, code, message) => {
    expect(decide(objects)).toEqual({ phase: "failed", code, message: expect.stringMatching(message), endedAt: expect.any(Number) });
  });

  it.each<[string, Partial<AttemptObjects>, string, RegExp]>([
    [
      "what it did when it was told to go",
      { pods: [saved(disrupted("EvictionByEvictionAPI"))] },
      "EVICTED",
      /node1 says so; saved a checkpoint/,
    ],
    [
      "its own use of the disk",
      {
        pods: [
          pod({
            phase: "Failed",
            reason: "Evicted",
            message: "Pod ephemeral local storage usage exceeds the total limit of containers 50Gi.",
          }),
        ],
      },
      "DISK_FULL",
      /train.pods.ephemeralStorage.*50Gi/,
    ],
    [
      "the deadline, by its length",
      { job: Object.assign(failedJob("DeadlineExceeded"), { spec: { activeDeadlineSeconds: 60 } }), pods: [saved(ended(75))] },
      "DEADLINE_EXCEEDED",
      /longer than 60 s .*; saved a checkpoint/,
    ],
    ["a Job that somebody deleted", { job: undefined, pods: [saved(ended(75))] }, "JOB_DELETED", /Job was deleted; saved a checkpoint/],
    [
      "a node that would not have it",
      { pods: [pod({ phase: "Failed", reason: "UnexpectedAdmissionError", message: "Allocate failed" })] },
      "NODE_REFUSED",
      /node1 refused the pod: UnexpectedAdmissionError: Allocate failed/,
    ],
    [
      "a container before the courier",
      {
        job: failedJob(),
        pods: [withInit(pod({ phase: "Failed" }), { terminated: { exitCode: 2, message: "starting\nno route to the mesh\n" } })],
      },
      "INIT_FAILED",
      /container proxy, which comes before the courier, ended with exit code 2: no route to the mesh/,
    ],
    [
      "a pod deleted before the courier began",
      { job: failedJob(), pods: [deleted(withInit(pod({ phase: "Failed" }), { terminated: { exitCode: 143 } }), now)] },
      "ATTEMPT_LOST",
      /gone without a word/,
    ],
    ["silence", { pods: [deleted(pod({ phase: "Running" }), now - 60_000)] }, "NODE_LOST", /node1 does not answer/],
    [
      "the first of several nodes that ended",
      { job: failedJob("FailedJobs"), pods: [node(0, saved(ended(75))), node(1, ended(137, undefined, "OOMKilled"), -9000)] },
      "OUT_OF_MEMORY",
      /limit 32Gi/,
    ],
    [
      "what the first of several nodes saved when another one was deleted",
      {
        job: failedJob("FailedJobs"),
        pods: [node(0, saved(ended(75))), node(1, ended(75, JSON.stringify({ code: "PREEMPTED", message: "asked" })), -9000)],
      },
      "PREEMPTED",
      /^saved a checkpoint$/,
    ],
  ])("says %s", (_, objects, code, message) => {
    expect(decide(objects)).toEqual({ phase: "failed", code, message: expect.stringMatching(message), endedAt: expect.any(Number) });
  });

  it("is not over while its pod saves a checkpoint, nor when Kueue ended the pod", () => {
    expect(decide({ pods: [deleted(pod({ phase: "Running" }), now + 60_000)] })).toEqual({ phase: "running" });
    expect(decide({ job: undefined, pods: [deleted(pod({ phase: "Running" }), now + 60_000)] })).toEqual({ phase: "running" });
    expect(
      decide({ job: job({}, { suspend: true }, { "kueue.x-k8s.io/queue-name": "q" }), pods: [deleted(ended(75), now)] }),
    ).toMatchObject({ phase: "pending", reason: "SUSPENDED" });
    expect(decide({ pods: [deleted(ended(75), now)] })).toEqual({ phase: "running" });
  });

  it("ended when its container did", () => {
    expect(decide({ job: failedJob(), pods: [ended(1)] })).toMatchObject({ endedAt: now - 5000 });
    expect(decide({ job: failedJob() })).toMatchObject({ endedAt: now - 1000 });
  });
});

it("runs while its pod does, and the newest pod counts", () => {
  expect(decide({ pods: [pod({ phase: "Running" })] })).toEqual({ phase: "running" });
  const old = Object.assign(ended(1), { metadata: { name: "a", creationTimestamp: new Date(now - 60_000) } });
  const young = Object.assign(pod({ phase: "Running" }), { metadata: { name: "b", creationTimestamp: new Date(now) } });
  expect(decide({ pods: [old, young] })).toEqual({ phase: "running" });
});

it.each([
  ["ContainerStatusUnknown", 137],
  ["Unknown", 255],
])("a container that its kubelet does not find again (%s) is the node's doing", (reason, exitCode) => {
  expect(decideAttempt({ job: failedJob(), pods: [ended(exitCode, undefined, reason)], warnings: [] }, now)).toMatchObject({
    phase: "failed",
    code: "NODE_LOST",
  });
});

it("an end without a time of its own is the same at every look, or the next attempt would wait for ever", () => {
  const evicted = pod({ phase: "Failed", reason: "Evicted", message: "used more", startTime: new Date(now - 60_000) });
  const looks = [now, now + 90_000].map((at) => decideAttempt({ job: undefined, pods: [evicted], warnings: [] }, at));
  expect(looks[0]).toMatchObject({ phase: "failed", endedAt: now - 60_000 });
  expect(looks[1]).toEqual(looks[0]);
});
