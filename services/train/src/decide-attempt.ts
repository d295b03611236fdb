/**
 * What became of an attempt, from its Job and pods. Pure.
 *
 *   suspended ──► no pod ──► pending ──► running ──► settled | failed(code)
 *                 quota,     no GPU,                 exit code of the courier, or what the cluster did to the pod
 *                 policy     image, volume
 */
import type { CoreV1Event, V1ContainerStatus, V1Job, V1Pod } from "@kubernetes/client-node";
import { container } from "./job-manifest.ts";
import { type AttemptPhase, courierExit } from "./launcher.ts";

export interface AttemptObjects {
  job: V1Job;
  /** Of this Job. */
  pods: readonly V1Pod[];
  /** Warnings about the Job and its pods, in any order. */
  warnings: readonly Pick<CoreV1Event, "reason" | "message" | "involvedObject">[];
}

export function decideAttempt({ job, pods, warnings }: AttemptObjects, now: number): AttemptPhase {
  const condition = (type: string) => job.status?.conditions?.find((one) => one.type === type && one.status === "True");
  const newest = [...pods].sort((a, b) => timeOf(b.metadata?.creationTimestamp) - timeOf(a.metadata?.creationTimestamp))[0];
  const courier = newest?.status?.containerStatuses?.find(({ name }) => name === container);
  const ended = courier?.state?.terminated;
  const code = ended?.exitCode;

  // Its own last word counts, whatever else happened to the pod or the Job.
  if (code === courierExit.trained || code === courierExit.failed || condition("Complete") !== undefined) return { phase: "settled" };

  const failed = condition("Failed");
  const podFailed = newest?.status?.phase === "Failed";
  if (failed === undefined && !podFailed) {
    if (job.spec?.suspend === true) return pending("SUSPENDED", suspendedMessage(job));
    if (newest === undefined) return pendingWithoutPod(job, warnings);
    if (newest.status?.phase === "Running" || courier?.state?.running !== undefined) return { phase: "running" };
    return pendingPod(newest, courier, warnings);
  }

  const endedAt = timeOf(ended?.finishedAt) || timeOf(failed?.lastTransitionTime) || now;
  const fail = (failure: string, message: string): AttemptPhase => ({ phase: "failed", code: failure, message, endedAt });
  const disruption = newest?.status?.conditions?.find(({ type, status }) => type === "DisruptionTarget" && status === "True");
  const outcome = code === courierExit.retry ? outcomeOf(ended?.message) : undefined;
  if (disruption !== undefined) return fail(...disrupted(disruption.reason ?? "", disruption.message ?? ""));
  if (newest?.status?.reason === "Evicted")
    return fail("EVICTED", `the kubelet evicted the pod: ${newest.status.message ?? "no reason given"}`);
  if (newest?.status?.reason === "NodeLost")
    return fail("NODE_LOST", `node ${newest.spec?.nodeName} was lost: ${newest.status.message ?? ""}`);
  if (failed?.reason === "DeadlineExceeded") {
    return fail(
      "DEADLINE_EXCEEDED",
      "the attempt took longer than train.activeDeadlineSeconds; the next one goes on from the last checkpoint.",
    );
  }
  if (outcome !== undefined) return fail(outcome.code, outcome.message);
  if (ended?.reason === "OOMKilled") {
    const limit = newest?.spec?.containers.find(({ name }) => name === container)?.resources?.limits?.memory;
    return fail(
      "OUT_OF_MEMORY",
      `the kernel killed the attempt for its memory (limit ${limit ?? "of the node"}). Lower training.per_device_train_batch_size or tokenize.max_length, or raise train.memory.`,
    );
  }
  if (code === courierExit.retry) return fail("PREEMPTED", "the attempt was asked to stop");
  if (code !== undefined) return fail("COURIER_CRASHED", `the courier ended with exit code ${code}: ${lastLine(ended?.message)}`);
  return fail(
    "ATTEMPT_LOST",
    `the pod is gone without a word${failed?.message === undefined ? "" : ` (${failed.message})`}; the next attempt goes on from the last checkpoint`,
  );
}

const pending = (reason: string, message: string): AttemptPhase => ({ phase: "pending", reason, message });

function suspendedMessage(job: V1Job): string {
  const queue = job.metadata?.labels?.["kueue.x-k8s.io/queue-name"];
  return queue === undefined ? "the Job is suspended" : `waits in queue "${queue}" until Kueue admits it`;
}

/** The Job controller tells in events why it cannot make a pod. */
function pendingWithoutPod(job: V1Job, warnings: AttemptObjects["warnings"]): AttemptPhase {
  const said = warnings.findLast(({ reason, involvedObject }) => reason === "FailedCreate" && involvedObject?.name === job.metadata?.name);
  if (said === undefined) return pending("STARTING", "the Job's pod is being made");
  const message = said.message ?? "";
  if (/exceeded quota/.test(message)) return pending("QUOTA", `the namespace's quota is used up: ${tidy(message)}`);
  return pending("POD_REFUSED", `the cluster refuses the pod: ${tidy(message)}`);
}

/** Reasons for which a container does not start, in our words. */
const waiting: Readonly<Record<string, string>> = {
  ErrImagePull: "IMAGE",
  ImagePullBackOff: "IMAGE",
  ErrImageNeverPull: "IMAGE",
  InvalidImageName: "IMAGE",
  CreateContainerConfigError: "POD_CONFIG",
  CreateContainerError: "POD_CONFIG",
  RunContainerError: "POD_CONFIG",
};

function pendingPod(pod: V1Pod, courier: V1ContainerStatus | undefined, warnings: AttemptObjects["warnings"]): AttemptPhase {
  const scheduled = pod.status?.conditions?.find(({ type }) => type === "PodScheduled");
  if (scheduled?.status === "False") return pending(...unschedulable(scheduled.message ?? ""));
  const reason = courier?.state?.waiting?.reason ?? "";
  const code = waiting[reason];
  if (code !== undefined) {
    const image = pod.spec?.containers.find(({ name }) => name === container)?.image;
    const what = code === "IMAGE" ? `image ${image} cannot be had` : "the container cannot be made";
    return pending(code, `${what}: ${tidy(courier?.state?.waiting?.message ?? reason)}`);
  }
  const mount = warnings.findLast(
    (warning) =>
      ["FailedMount", "FailedAttachVolume"].includes(warning.reason ?? "") && warning.involvedObject?.name === pod.metadata?.name,
  );
  if (mount !== undefined) return pending("VOLUME", `a volume cannot be mounted: ${tidy(mount.message ?? "")}`);
  return pending("STARTING", "the pod is starting");
}

function unschedulable(message: string): [code: string, message: string] {
  const gpu = /Insufficient ([\w.-]+\/[\w.-]*(?:gpu|mig)[\w-]*(?:\.[\w-]+)*)/i.exec(message)?.[1];
  if (gpu !== undefined) return ["WAITING_FOR_DEVICE", `no node has enough free ${gpu}: ${tidy(message)}`];
  if (/persistentvolumeclaim/i.test(message)) return ["VOLUME", tidy(message)];
  return ["UNSCHEDULABLE", tidy(message)];
}

function disrupted(reason: string, message: string): [code: string, message: string] {
  switch (reason) {
    case "PreemptionByScheduler":
      return ["PREEMPTED", `a pod of higher priority took its place: ${tidy(message)}`];
    case "DeletionByTaintManager":
    case "DeletionByPodGC":
      return ["NODE_LOST", `its node is gone or not ready: ${tidy(message)}`];
    default:
      return ["EVICTED", `the pod was evicted (${reason}): ${tidy(message)}`];
  }
}

/** What the courier wrote to its termination message. */
function outcomeOf(message: string | undefined): { code: string; message: string } | undefined {
  try {
    const said = JSON.parse(message ?? "") as { code?: unknown; message?: unknown };
    return typeof said.code === "string" && typeof said.message === "string" ? { code: said.code, message: said.message } : undefined;
  } catch {
    return undefined;
  }
}

const lastLine = (message: string | undefined): string => (message ?? "").trim().split("\n").at(-1)?.slice(-300) || "it wrote no log";
const tidy = (message: string): string => message.replace(/\s+/g, " ").trim().slice(0, 500);
const timeOf = (time: Date | string | undefined): number => (time === undefined ? 0 : new Date(time).getTime());
