/**
 * What became of an attempt, from its Job (or JobSet) and pods. Pure.
 *
 *   suspended ──► no pod ──► pending ──► running ──► concluded | failed(code)
 *    ▲  Kueue     quota,     no GPU,        │         exit code of the courier, or what the cluster did to the pod
 *    │            policy     image, volume  │
 *    └──────────── Kueue takes its place back: the same attempt goes on later, in a new pod
 */
import type { CoreV1Event, V1ContainerStatus, V1JobCondition, V1ObjectMeta, V1Pod } from "@kubernetes/client-node";
import { container, trainerContainer } from "./job-manifest.ts";
import { courierExit } from "../attempt/courier-exit.ts";
import type { AttemptPhase } from "./launcher.ts";

/** What holds the pods of an attempt: what a Job and a JobSet have in common. Conditions of all kinds look alike. */
export interface Holder {
  metadata?: V1ObjectMeta | undefined;
  spec?: { suspend?: boolean | undefined; activeDeadlineSeconds?: number | undefined };
  status?: { conditions?: V1JobCondition[] };
}

/** Kueue's object about a Job: whether it gets its place. */
export interface Workload {
  metadata?: V1ObjectMeta;
  status?: { conditions?: V1JobCondition[] };
}

export interface AttemptObjects {
  /** undefined: it was deleted, and there are pods of it still, or their last words. */
  job: Holder | undefined;
  /** Its pods; of those that are gone already, what `lastWordsOf` kept. */
  pods: readonly V1Pod[];
  /** Warnings about the Job and its pods, in any order. */
  warnings: readonly Pick<CoreV1Event, "reason" | "message" | "involvedObject">[];
  workload?: Workload | undefined;
}

/** A Job that has no pod for longer than this will not get one by itself. */
const withoutPodMs = 30_000;
/** A pod that says nothing for so long after it should have ended is on a machine that is gone. */
const withoutEndMs = 30_000;

export function decideAttempt({ job, pods: all, warnings, workload }: AttemptObjects, now: number): AttemptPhase {
  const condition = (...types: string[]) => job?.status?.conditions?.find(({ type, status }) => types.includes(type) && status === "True");
  const pods = newestOfEachNode(all);
  const [first] = pods;

  // Its own last word counts, whatever else happened to the pod or the Job.
  const code = endOf(first)?.exitCode;
  if (code === courierExit.trained || code === courierExit.failed || condition("Complete", "Completed") !== undefined)
    return { phase: "concluded" };

  // Before the pods are looked at: suspending a Job deletes its pods, which is no failure of theirs.
  if (job?.spec?.suspend === true && condition("Failed") === undefined) return pending(...suspended(job, workload, now));

  const silent = pods.find((pod) => !isOver(pod) && now - timeOf(pod.metadata?.deletionTimestamp) > withoutEndMs && isDeleted(pod));
  if (silent !== undefined) {
    const node = silent.spec?.nodeName ?? "its node";
    return { phase: "failed", code: "NODE_LOST", message: `${node} does not answer: the pod should have ended long ago`, endedAt: now };
  }
  const failed = condition("Failed") ?? condition("FailureTarget");
  // A deleted pod ends with a failure, also when Kueue suspended its Job. The Job then goes on, so the end of that pod does not count.
  const endCounts = (pod: V1Pod): boolean =>
    isOver(pod) && (!isDeleted(pod) || failed !== undefined || job === undefined || disruptionOf(pod) !== undefined);
  const over =
    condition("Failed") !== undefined || (pods.length === 1 && pods.every(endCounts)) || (job === undefined && pods.every(isOver));
  if (!over) {
    if (job !== undefined && first === undefined) return pendingWithoutPod(job, warnings, now);
    for (const pod of pods) {
      const started = isOver(pod) || pod.status?.phase === "Running" || courierOf(pod)?.state?.running !== undefined;
      if (!started) return pendingPod(pod, warnings);
    }
    return { phase: "running" };
  }

  // Of several, the first one to end took the others along; where all were only asked to stop, the first node's knows of the checkpoint.
  const [earliest = first] = pods.filter(isOver).sort((a, b) => timeOf(endOf(a)?.finishedAt) - timeOf(endOf(b)?.finishedAt));
  const telling = pods.find((pod) => disruptionOf(pod) !== undefined) ?? (wasStopped(earliest) && wasStopped(first) ? first : earliest);
  // The same at every look: the wait before the next attempt is counted from it.
  const times = [endOf(telling)?.finishedAt, failed?.lastTransitionTime, telling && disruptionOf(telling)?.lastTransitionTime];
  const began = [telling?.metadata?.deletionTimestamp, telling?.status?.startTime, telling?.metadata?.creationTimestamp];
  const endedAt = [...times, ...began].map(timeOf).find((at) => at > 0) ?? now;
  const [failure, message] = failureOf(job, telling, failed);
  return { phase: "failed", code: failure, message, endedAt };
}

type Words = [code: string, message: string];

function failureOf(job: Holder | undefined, pod: V1Pod | undefined, failed: { reason?: string; message?: string } | undefined): Words {
  const ended = endOf(pod);
  const code = ended?.exitCode;
  const outcome = code === courierExit.retry ? outcomeOf(ended?.message) : undefined;
  // What the courier did when it was asked to stop, such as save a checkpoint.
  const then = outcome?.code === "PREEMPTED" ? `; ${outcome.message}` : "";
  const disruption = pod === undefined ? undefined : disruptionOf(pod);
  if (pod?.status?.reason === "Evicted" || disruption?.reason === "TerminationByKubelet") {
    return evictedByKubelet(pod?.status?.message ?? disruption?.message ?? "no reason given", then);
  }
  if (disruption !== undefined) return disrupted(disruption.reason ?? "", disruption.message ?? "", then);
  if (pod?.status?.reason === "NodeLost") return ["NODE_LOST", `node ${pod.spec?.nodeName} was lost: ${pod.status.message ?? ""}`];
  if (failed?.reason === "DeadlineExceeded") {
    const seconds = job?.spec?.activeDeadlineSeconds;
    const limit = seconds === undefined ? "train.pods.activeDeadlineSeconds" : `${seconds} s (train.pods.activeDeadlineSeconds)`;
    return ["DEADLINE_EXCEEDED", `the attempt took longer than ${limit}${then}`];
  }
  // The courier only sees that the trainer is gone: with cgroups of version 2 the kernel kills the whole container for its memory.
  const outOfMemory = (outcome === undefined || outcome.code === "TRAINER_KILLED") && containerOutOfMemory(pod);
  if (outcome !== undefined && outcome.code !== "PREEMPTED" && outOfMemory === false) return [outcome.code, outcome.message];
  if (outOfMemory !== false) {
    const [limit, setting] = outOfMemory;
    return [
      "OUT_OF_MEMORY",
      `the kernel killed the attempt for its memory (limit ${limit ?? "of the node"}). Lower training.per_device_train_batch_size or tokenize.max_length, or raise ${setting}.`,
    ];
  }
  // What the kubelet says of a container that it does not find again, as after a restart of its node.
  if (ended?.reason === "ContainerStatusUnknown" || (ended?.reason === "Unknown" && code === 255)) {
    return ["NODE_LOST", `node ${pod?.spec?.nodeName ?? ""} lost the attempt, as in a restart of the node or of its container runtime`];
  }
  if (job === undefined) return ["JOB_DELETED", `the attempt's Job was deleted${then}`];
  if (code === courierExit.retry) return ["PREEMPTED", outcome?.message ?? "the attempt was asked to stop"];
  if (code !== undefined) return ["COURIER_CRASHED", `the courier ended with exit code ${code}: ${lastLine(ended?.message)}`];
  const init =
    pod === undefined || isDeleted(pod)
      ? undefined
      : initsOf(pod).find(({ name, state }) => name !== trainerContainer && (state?.terminated?.exitCode ?? 0) !== 0);
  if (init !== undefined) {
    const { exitCode, message } = init.state?.terminated ?? {};
    return [
      "INIT_FAILED",
      `container ${init.name}, which comes before the courier, ended with exit code ${exitCode}: ${lastLine(message)}`,
    ];
  }
  // Never started: as when the node's devices were not there any more.
  if (pod?.status?.reason !== undefined) {
    return ["NODE_REFUSED", `node ${pod.spec?.nodeName} refused the pod: ${pod.status.reason}: ${tidy(pod.status.message ?? "")}`];
  }
  const why = failed?.message === undefined ? "" : ` (${failed.message})`;
  return ["ATTEMPT_LOST", `the pod is gone without a word${why}; the next attempt goes on from the last checkpoint`];
}

const pending = (reason: string, message: string): AttemptPhase => ({ phase: "pending", reason, message });

function suspended(job: Holder, workload: Workload | undefined, now: number): Words {
  const queue = job.metadata?.labels?.["kueue.x-k8s.io/queue-name"];
  if (queue === undefined) return ["SUSPENDED", "the Job is suspended"];
  const of = (type: string) => workload?.status?.conditions?.find((one) => one.type === type);
  const admitted = of("Admitted");
  if (admitted?.status === "True" && now - timeOf(admitted.lastTransitionTime) > withoutPodMs) {
    const since = Math.round((now - timeOf(admitted.lastTransitionTime)) / 1000);
    return ["NOT_RESUMED", `Kueue admitted it ${since} s ago, and its Job is suspended still: see the logs of Kueue's controller`];
  }
  const evicted = of("Evicted");
  const reserved = of("QuotaReserved");
  const why =
    evicted?.status === "True" ? evicted.message : reserved !== undefined && reserved.status !== "True" ? reserved.message : undefined;
  return ["SUSPENDED", `waits in queue "${queue}" until Kueue admits it${why === undefined || why === "" ? "" : `: ${tidy(why)}`}`];
}

/** The Job controller tells in events why it cannot make a pod. */
function pendingWithoutPod(job: Holder, warnings: AttemptObjects["warnings"], now: number): AttemptPhase {
  const name = job.metadata?.name ?? "";
  const warning = warnings.findLast(
    ({ reason, involvedObject }) => reason === "FailedCreate" && involvedObject.name?.startsWith(name) === true,
  );
  if (warning === undefined) {
    const resumed = job.status?.conditions?.find(({ type, status }) => type === "Suspended" && status === "False");
    const since = timeOf(resumed?.lastTransitionTime) || timeOf(job.metadata?.creationTimestamp) || now;
    if (now - since < withoutPodMs) return pending("STARTING", "the Job's pod is being made");
    const admitted = resumed === undefined ? "" : "Kueue admitted the Job, and ";
    return pending(
      "NO_POD",
      `${admitted}no pod has been made for more than ${withoutPodMs / 1000} s: see the events of Job ${name} and the cluster's controllers`,
    );
  }
  const message = warning.message ?? "";
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
  CrashLoopBackOff: "POD_CONFIG",
};

function pendingPod(pod: V1Pod, warnings: AttemptObjects["warnings"]): AttemptPhase {
  const scheduled = pod.status?.conditions?.find(({ type }) => type === "PodScheduled");
  if (scheduled?.status === "False") return pending(...unschedulable(scheduled.reason ?? "", scheduled.message ?? ""));
  // The courier's, or one that train.pods.podTemplate adds: it keeps the courier from starting.
  for (const { name, image, state } of [...initsOf(pod), ...(pod.status?.containerStatuses ?? [])]) {
    const { reason = "", message = reason } = state?.waiting ?? {};
    const code = waiting[reason];
    if (code === undefined) continue;
    const from = [...(pod.spec?.initContainers ?? []), ...(pod.spec?.containers ?? [])].find((one) => one.name === name)?.image ?? image;
    return pending(code, `${code === "IMAGE" ? `image ${from} cannot be had` : `container ${name} does not start`}: ${tidy(message)}`);
  }
  const mount = warnings.findLast(
    (warning) =>
      ["FailedMount", "FailedAttachVolume"].includes(warning.reason ?? "") && warning.involvedObject?.name === pod.metadata?.name,
  );
  if (mount !== undefined) return pending("VOLUME", `a volume cannot be mounted: ${tidy(mount.message ?? "")}`);
  return pending("STARTING", "the pod is starting");
}

function unschedulable(reason: string, text: string): Words {
  // The scheduler's remark on preemption (`preemption: 0/3 nodes are available: …`) does not help a person who waits.
  const [message = ""] = text.split(/ (?:no new claims to deallocate, )?preemption: /);
  if (reason === "SchedulingGated") return ["SCHEDULING_GATED", "the pod waits until whoever gated its scheduling lets it go"];
  const gpu = /Insufficient ([\w.-]+\/[\w.-]*(?:gpu|mig)[\w-]*(?:\.[\w-]+)*)/i.exec(message)?.[1];
  if (gpu !== undefined) return ["WAITING_FOR_DEVICE", `no node has enough free ${gpu}: ${tidy(message)}`];
  if (/persistentvolumeclaim/i.test(message)) return ["VOLUME", tidy(message)];
  return ["UNSCHEDULABLE", tidy(message)];
}

/** For its own use of disk space, or because others took too much of the node. */
function evictedByKubelet(message: string, then: string): Words {
  if (/exceeds the (total )?limit|exceeded its local ephemeral storage limit/i.test(message)) {
    return ["DISK_FULL", `the attempt wrote more than train.pods.ephemeralStorage allows: ${tidy(message)} Raise it${then}`];
  }
  return ["EVICTED", `the kubelet evicted the pod: ${tidy(message)}${then}`];
}

function disrupted(reason: string, message: string, then: string): Words {
  switch (reason) {
    case "PreemptionByScheduler":
      return ["PREEMPTED", `a pod of higher priority took its place: ${tidy(message)}${then}`];
    case "DeletionByTaintManager":
    case "DeletionByPodGC":
      return ["NODE_LOST", `its node is gone or not ready: ${tidy(message)}${then}`];
    default:
      return ["EVICTED", `the pod was evicted (${reason}): ${tidy(message)}${then}`];
  }
}

/** One pod for each completion index (a Job without indexes has one), the first node's first; of several the newest. */
function newestOfEachNode(pods: readonly V1Pod[]): V1Pod[] {
  const nodeOf = ({ metadata }: V1Pod): number => Number(metadata?.labels?.["batch.kubernetes.io/job-completion-index"] ?? 0);
  const byNode = new Map<number, V1Pod>();
  for (const pod of pods) {
    const known = byNode.get(nodeOf(pod));
    const newer = timeOf(pod.metadata?.creationTimestamp) - timeOf(known?.metadata?.creationTimestamp);
    if (known === undefined || newer > 0 || (newer === 0 && isOver(known))) byNode.set(nodeOf(pod), pod);
  }
  return [...byNode].sort(([a], [b]) => a - b).map(([, pod]) => pod);
}

const courierOf = (pod: V1Pod | undefined): V1ContainerStatus | undefined =>
  pod?.status?.containerStatuses?.find(({ name }) => name === container);
const initsOf = (pod: V1Pod | undefined): V1ContainerStatus[] => pod?.status?.initContainerStatuses ?? [];
/** Of a container that the kernel killed for its memory: its limit, and the value that sets it. An attempt of before has the courier only. */
function containerOutOfMemory(pod: V1Pod | undefined): [limit: string | undefined, setting: string] | false {
  const limitOf = (name: string) =>
    [...(pod?.spec?.initContainers ?? []), ...(pod?.spec?.containers ?? [])].find((one) => one.name === name)?.resources?.limits?.[
      "memory"
    ];
  const killed = (status: V1ContainerStatus | undefined) =>
    [status?.state, status?.lastState].some((state) => state?.terminated?.reason === "OOMKilled");
  const trainer = initsOf(pod).find(({ name }) => name === trainerContainer);
  if (killed(trainer)) return [limitOf(trainerContainer), "train.pods.memory"];
  if (!killed(courierOf(pod))) return false;
  return [limitOf(container), trainer === undefined ? "train.pods.memory" : "train.pods.courier.resources"];
}
const endOf = (pod: V1Pod | undefined) => courierOf(pod)?.state?.terminated;
const wasStopped = (pod: V1Pod | undefined): boolean => outcomeOf(endOf(pod)?.message)?.code === "PREEMPTED";
const isDeleted = ({ metadata }: V1Pod): boolean => metadata?.deletionTimestamp !== undefined;
const isOver = ({ status }: V1Pod): boolean => status?.phase === "Failed" || status?.phase === "Succeeded";
const disruptionOf = ({ status }: V1Pod) => status?.conditions?.find((one) => one.type === "DisruptionTarget" && one.status === "True");

/**
 * How a pod that is gone ended, which its Job may not say. undefined: it is not known.
 */
export function lastWordsOf(pod: V1Pod): V1Pod | undefined {
  if (isOver(pod)) return pod;
  if (endOf(pod) === undefined && disruptionOf(pod) === undefined) return undefined;
  return Object.assign({}, pod, { status: Object.assign({}, pod.status, { phase: endOf(pod)?.exitCode === 0 ? "Succeeded" : "Failed" }) });
}

/** What the courier wrote to its termination message. */
function outcomeOf(message: string | undefined): { code: string; message: string } | undefined {
  try {
    const outcome = JSON.parse(message ?? "") as { code?: unknown; message?: unknown };
    return typeof outcome.code === "string" && typeof outcome.message === "string"
      ? { code: outcome.code, message: outcome.message }
      : undefined;
  } catch {
    return undefined;
  }
}

/** The message in the last line of a log. The kubelet may have cut off the beginning of the line. */
function lastLine(log: string | undefined): string {
  const line = (log ?? "").trim().split("\n").at(-1) ?? "";
  const message = /"msg":"((?:[^"\\]|\\.)*)"\}$/.exec(line)?.[1]?.replaceAll('\\"', '"');
  return (message ?? line).slice(-300) || "it wrote no log";
}
const tidy = (message: string): string => message.replace(/\s+/g, " ").trim().slice(0, 500);
const timeOf = (time: Date | string | undefined): number => (time === undefined ? 0 : new Date(time).getTime());
