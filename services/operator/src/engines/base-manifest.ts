/** Pure: the Job of a Base, and what its status says. */
import type { V1Job, V1Pod } from "@kubernetes/client-node";
import { baseRef, type BaseResourceStatus, crdGroup, crdVersion, fnv1a, type Problem } from "@loraline/contracts";
import { conditionsOf, type Said } from "../conditions.ts";
import { madeBy } from "../decide-adapter.ts";
import { defined } from "../decide-fine-tune.ts";
import type { Base } from "../resources.ts";

export const baseLabel = `${crdGroup}/base`;

/** @param template - the Job that the chart renders, in which `__BASE__` stands for the name */
export function baseJob(base: Base, template: V1Job, namespace: string): V1Job {
  const { name = "", uid = "" } = base.metadata ?? {};
  const job = JSON.parse(JSON.stringify(template).replaceAll("__BASE__", name)) as V1Job;
  const metadata = job.metadata ?? {};
  const { "helm.sh/chart": _chart, ...labels } = metadata.labels ?? {};
  const long = `${metadata.name}-${name}`;
  metadata.name = long.length <= 63 && !name.includes(".") ? long : `${metadata.name}-${(fnv1a(name) >>> 0).toString(16)}`;
  metadata.namespace = namespace;
  metadata.labels = { ...labels, "app.kubernetes.io/managed-by": madeBy["app.kubernetes.io/managed-by"] };
  // With the Base its Job goes, too.
  metadata.ownerReferences = [{ apiVersion: `${crdGroup}/${crdVersion}`, kind: "Base", name, uid, controller: true }];
  const { hub, revision } = base.spec ?? {};
  const given = { BASE_HUB: hub, BASE_REVISION: revision };
  for (const container of job.spec?.template.spec?.containers ?? [])
    container.env = [
      ...(container.env ?? []),
      ...Object.entries(given).flatMap(([key, value]) => (value === undefined ? [] : [{ name: key, value }])),
    ];
  return job;
}

interface ObservedBase {
  generation: number;
  before: BaseResourceStatus | undefined;
  /** Why it has no Job; undefined: it has one. */
  refused: Problem | undefined;
  hub: string | undefined;
  pods: readonly V1Pod[];
  now: string;
}

export function decideBase({ generation, before, refused, hub, pods, now }: ObservedBase): BaseResourceStatus {
  const ends = pods.flatMap(({ status, metadata }) =>
    (status?.containerStatuses ?? []).map(({ state, lastState }) => ({
      pod: metadata?.name,
      ended: state?.terminated ?? lastState?.terminated,
      isRunning: state?.running !== undefined,
    })),
  );
  const done = ends.find(({ ended }) => ended?.exitCode === 0)?.ended?.message;
  const ref = done === undefined ? undefined : baseRef.safeParse(parsed(done)).data;
  const failed = ends.find(({ ended }) => ended !== undefined && ended.exitCode !== 0);
  const unscheduled = pods
    .flatMap(({ status }) => status?.conditions ?? [])
    .find(({ type, status }) => type === "PodScheduled" && status === "False");
  const said = (status: Said["status"], reason: string, message: string): Said => ({ status, reason, message });
  const ready = (): Said => {
    if (ref !== undefined) return said("True", "OnVolume", `its files are ${ref.digest}`);
    if (refused !== undefined) return said("False", refused.code, refused.message);
    if (failed !== undefined)
      return said(
        "False",
        "BASE_NOT_READY",
        `pod ${failed.pod}: ${(failed.ended?.message ?? "").trim() || `it ended with code ${failed.ended?.exitCode}`}. It is tried again.`,
      );
    if (unscheduled !== undefined)
      return said("Unknown", unscheduled.reason ?? "Unschedulable", unscheduled.message ?? "its pod is not scheduled");
    return hub === undefined
      ? said("Unknown", "Reading", "its files are read")
      : said("Unknown", "Fetching", `it comes from ${hub}, unless it is there`);
  };
  return defined({
    observedGeneration: generation,
    digest: ref?.digest ?? before?.digest,
    revision: ref?.revision ?? before?.revision,
    conditions: conditionsOf({ Ready: ready() }, { before: before?.conditions, generation, now }),
  });
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
