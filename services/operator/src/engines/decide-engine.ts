/** Pure: whether an Engine can be one, and what its status says. */
import type { V1Deployment, V1Pod } from "@kubernetes/client-node";
import {
  engineKinds,
  type EngineRecord,
  type EngineResourceStatus,
  type EngineSettings,
  type Problem,
  unreadDigest,
} from "@loraline/contracts";
import { conditionsOf, type Said } from "../conditions.ts";
import { defined } from "../decide-fine-tune.ts";

/** Why an engine with these settings cannot be beside the others; undefined: it can. */
export function judgeEngine(
  settings: EngineSettings,
  others: readonly EngineSettings[],
  kind: keyof typeof engineKinds,
): Problem | undefined {
  const { engine, base, maxLoras, maxCpuLoras, tensorParallelSize = 1, gpus = 0, extraArgs = [] } = settings;
  const problem = (code: string, param: string, message: string): Problem => ({ code, param, message });
  if (others.some((other) => other.engine === engine))
    return problem(
      "ENGINE_NAME_TAKEN",
      "metadata.name",
      `the release has an engine "${engine}" already, by the chart's values: give this one another name, or take it out of them.`,
    );
  const mine = settings.tenants ?? [];
  const rival = others.find((other) => {
    const theirs = other.tenants ?? [];
    return other.base === base && (mine.length === 0 || theirs.length === 0 || mine.some((tenant) => theirs.includes(tenant)));
  });
  if (rival !== undefined)
    return problem(
      "ENGINE_BASE_TAKEN",
      "base",
      `engine "${rival.engine}" serves base "${base}" already, and a run could not tell which: give that one more replicas, or each its own tenants.`,
    );
  if (maxCpuLoras < maxLoras)
    return problem(
      "ENGINE_INVALID",
      "maxCpuLoras",
      `maxCpuLoras is ${maxCpuLoras}, but maxLoras is ${maxLoras}: vLLM keeps at least as many adapters in memory as it has slots.`,
    );
  if (tensorParallelSize > Math.max(1, gpus))
    return problem(
      "ENGINE_INVALID",
      "tensorParallelSize",
      `tensorParallelSize is ${tensorParallelSize}, but gpus is ${gpus}: each shard needs a GPU.`,
    );
  for (const arg of extraArgs) {
    const flag = (arg.split("=")[0] ?? "").replaceAll("_", "-");
    const setting = arg.startsWith("-") ? engineKinds[kind].ownFlags.get(flag) : undefined;
    if (setting === undefined) continue;
    return problem(
      "ENGINE_INVALID",
      "extraArgs",
      `extraArgs has ${flag}, which ${setting === "" ? "Loraline sets itself" : `is set by ${setting}`}. Leave it out.`,
    );
  }
  return undefined;
}

interface ObservedEngine {
  generation: number;
  before: EngineResourceStatus | undefined;
  /** Why it is not accepted; undefined: it is. */
  refused: Problem | undefined;
  deployment: V1Deployment | undefined;
  pods: readonly V1Pod[];
  /** What serve has registered; undefined: nothing yet. */
  record: EngineRecord | undefined;
  now: string;
}

export function decideEngine({ generation, before, refused, deployment, pods, record, now }: ObservedEngine): EngineResourceStatus {
  const { replicas = 0, readyReplicas = 0, updatedReplicas = 0 } = deployment?.status ?? {};
  const wanted = deployment?.spec?.replicas ?? 1;
  const settled =
    deployment !== undefined && deployment.status?.observedGeneration === deployment.metadata?.generation && updatedReplicas === replicas;
  const trouble = troubleOf(pods);
  const said = (status: Said["status"], reason: string, message: string): Said => ({ status, reason, message });
  const ready = (): Said => {
    if (refused !== undefined) return said("False", refused.code, refused.message);
    if (record?.problem) return said("False", record.problem.code, record.problem.message);
    if (settled && wanted === 0)
      return record?.wake
        ? said("True", "Asleep", "no replica is asked for, until a request waits for it or a new version is to be proven")
        : said("True", "ScaledToZero", "no replica is asked for");
    if (settled && readyReplicas >= wanted && record !== undefined)
      return said("True", "Serving", `${readyReplicas} of ${wanted} replicas serve`);
    if (trouble !== undefined) return said("False", trouble.code, trouble.message);
    return said(
      "Unknown",
      "Starting",
      record === undefined ? "serve has not read the base yet" : `${Math.min(readyReplicas, wanted)} of ${wanted} replicas serve`,
    );
  };
  const isReady = ready();
  const labels = Object.entries(deployment?.spec?.selector.matchLabels ?? {}).map(([key, value]) => `${key}=${value}`);
  const stalled = refused ?? (trouble?.lasting === true ? trouble : undefined);
  return defined({
    observedGeneration: generation,
    replicas,
    readyReplicas,
    selector: labels.length === 0 ? before?.selector : labels.toSorted().join(","),
    digest: record === undefined || record.base.digest === unreadDigest ? undefined : record.base.digest,
    maxLoraRank: record?.maxLoraRank,
    conditions: conditionsOf(
      {
        Accepted:
          refused === undefined
            ? said("True", "Accepted", "the operator keeps its Deployment")
            : said("False", refused.code, `${refused.message}${deployment === undefined ? "" : " What ran before goes on."}`),
        Ready: isReady,
        Stalled:
          stalled === undefined ? said("False", "Progressing", "nothing has to be changed") : said("True", stalled.code, stalled.message),
      },
      { before: before?.conditions, generation, now },
    ),
  });
}

/** Why a pod does not start, in the words of its own check, of the kubelet or of the scheduler. `lasting`: it takes other settings. */
function troubleOf(pods: readonly V1Pod[]): (Problem & { lasting: boolean }) | undefined {
  for (const { status, metadata } of pods) {
    const containers = [...(status?.initContainerStatuses ?? []), ...(status?.containerStatuses ?? [])];
    for (const { name, state, lastState } of containers) {
      const ended = state?.terminated ?? lastState?.terminated;
      if (ended !== undefined && ended.exitCode !== 0 && state?.running === undefined) {
        const lines = (ended.message ?? "").trim().split("\n");
        const words = lines.at(-1) || `it ended with code ${ended.exitCode}`;
        return {
          code: "ENGINE_START_FAILED",
          message: `pod ${metadata?.name}, container ${name}: ${words}`.slice(0, 2000),
          lasting: name === "check",
        };
      }
      const waiting = state?.waiting;
      if (waiting?.reason !== undefined && !["PodInitializing", "ContainerCreating"].includes(waiting.reason))
        return {
          code: waiting.reason,
          message: `pod ${metadata?.name}, container ${name}: ${waiting.message ?? waiting.reason}`,
          lasting: false,
        };
    }
    const scheduled = status?.conditions?.find(({ type }) => type === "PodScheduled");
    if (scheduled?.status === "False")
      return {
        code: scheduled.reason ?? "Unschedulable",
        message: `pod ${metadata?.name}: ${scheduled.message ?? "it is not scheduled"}`,
        lasting: false,
      };
  }
  return undefined;
}
