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
      "a GPU",
      { pods: [unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: none.")] },
      "WAITING_FOR_DEVICE",
      /no node has enough free nvidia.com\/gpu: 0\/1 nodes/,
    ],
    ["memory", { pods: [unschedulable("0/1 nodes are available: 1 Insufficient memory.")] }, "UNSCHEDULABLE", /Insufficient memory/],
    ["a claim", { pods: [unschedulable('persistentvolumeclaim "bases" not found')] }, "VOLUME", /bases/],
    ["an image", { pods: [waiting("ImagePullBackOff", "Back-off pulling image")] }, "IMAGE", /loraline\/trainer:1 cannot be had: Back-off/],
    ["a config", { pods: [waiting("CreateContainerConfigError", 'secret "nats" not found')] }, "POD_CONFIG", /secret "nats" not found/],
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
    expect(decide({ pods: [ended(0)] })).toEqual({ phase: "settled" });
    expect(decide({ job: failedJob(), pods: [ended(10)] })).toEqual({ phase: "settled" });
    expect(decide({ job: job({ conditions: [{ type: "Complete", status: "True" }] }) })).toEqual({ phase: "settled" });
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
    ["told why", { pods: [ended(75, '{"code":"STORE_FULL","message":"the store is full"}')] }, "STORE_FULL", /the store is full/],
    ["told to stop", { pods: [ended(75)] }, "PREEMPTED", /asked to stop/],
    ["crashed", { pods: [ended(1, "line one\nTypeError: x is not a function\n")] }, "COURIER_CRASHED", /exit code 1: TypeError: x is not/],
    ["took too long", { job: failedJob("DeadlineExceeded"), pods: [ended(75)] }, "DEADLINE_EXCEEDED", /activeDeadlineSeconds/],
    ["its pod deleted", { job: failedJob() }, "ATTEMPT_LOST", /gone without a word/],
  ])("%s", (_, objects, code, message) => {
    expect(decide(objects)).toEqual({ phase: "failed", code, message: expect.stringMatching(message), endedAt: expect.any(Number) });
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
