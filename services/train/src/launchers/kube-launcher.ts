/**
 * Attempts as Kubernetes Jobs, or JobSets. They are observed by watches. Objects have the attempt's name, so that creating or deleting one
 * twice is harmless.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { CoreV1Event, KubernetesObject, V1ConfigMap, V1Job, V1Pod } from "@kubernetes/client-node";
import { type Kube, KubeError, type Resource, resource, watch } from "@loraline/kube";
import { type Log, PermanentError, RetryLaterError } from "@loraline/runtime";
import { decideAttempt, type Holder, lastWordsOf, type Workload } from "./decide-attempt.ts";
import { component, jobManifest, labels, type TrainPodSettings } from "./job-manifest.ts";
import { type JobSet, jobSetLabel, jobSetManifest } from "./jobset-manifest.ts";
import { attemptSpec } from "../attempt/attempt-spec.ts";
import type { Attempt, Launcher } from "./launcher.ts";

export interface KubeLauncherOptions {
  kube: Kube;
  settings: TrainPodSettings;
  log: Log;
  /** Ends the launcher, also while it still waits for the API server; it may then know no attempts. */
  signal?: AbortSignal;
}

export const jobs = resource<V1Job>("batch/v1", "Job", "jobs");
export const jobSets = resource<JobSet>("jobset.x-k8s.io/v1alpha2", "JobSet", "jobsets");
export const pods = resource<V1Pod>("v1", "Pod", "pods");
export const configMaps = resource<V1ConfigMap>("v1", "ConfigMap", "configmaps");
const events = resource<CoreV1Event>("v1", "Event", "events");
/** Kueue's; served in both versions, for as long as Kueue says. */
const workloads = ["v1beta2", "v1beta1"].map((version) =>
  resource<Workload & KubernetesObject>(`kueue.x-k8s.io/${version}`, "Workload", "workloads"),
);

/** Attempts queue in the scheduler: every attempt becomes a Job at once, and waits as a pending pod. */
const unlimited = 1_000_000;
/** The view is made again after so long, because some ends are recognised by the time that has passed. */
const viewMs = 500;
/** Matches names of a Job or JobSet, of the Job inside a JobSet, and of their pods. The group is the attempt's name. */
const attemptNamePattern = /^(train-[0-9a-z]{26}-[1-9]\d*)(?:-node-0)?(?:-\d+)?(?:-[0-9a-z]{5})?$/;

/** Resolves when every Job, pod and warning that exists has been seen. */
export async function createKubeLauncher({
  kube,
  settings,
  log: parentLog,
  signal,
}: KubeLauncherOptions): Promise<Launcher & AsyncDisposable> {
  const { namespace } = settings;
  const log = parentLog.child({ launcher: "kubernetes", namespace });
  /** By name. Workloads by that of their Job. */
  const known = {
    jobs: new Map<string, V1Job>(),
    jobSets: new Map<string, JobSet>(),
    pods: new Map<string, V1Pod>(),
    events: new Map<string, CoreV1Event>(),
    workloads: new Map<string, Workload>(),
  };
  /** Attempts that were removed while they had pods. The cluster deletes these pods, and how they ended is not kept. */
  const removed = new Set<string>();
  /** The last result of `observe`, until something changes: with many runs waiting, each asks for it in every round. */
  let view: { attempts: Attempt[]; at: number } | undefined;
  const listeners = new Set<(run: { tenant: string; runId: string }) => void>();
  const stopping = new AbortController();
  const until = signal === undefined ? stopping.signal : AbortSignal.any([stopping.signal, signal]);

  const holderOf = (attemptName: string): V1Job | JobSet | undefined => known.jobSets.get(attemptName) ?? known.jobs.get(attemptName);
  const podsOf = (attemptName: string): V1Pod[] => [...known.pods.values()].filter((pod) => attemptOfPod(pod) === attemptName);
  const changed = (attemptName: string): void => {
    const run = runOf(holderOf(attemptName) ?? podsOf(attemptName)[0]);
    if (run !== undefined) for (const listener of listeners) listener(run);
  };
  const follow = async <T extends KubernetesObject>(
    of: Resource<T>,
    which: { labelSelector?: string; fieldSelector?: string },
    attemptOf: (object: T) => string | undefined,
    keep: (name: string, object: T | undefined, attemptName: string) => void,
  ): Promise<{ ended: Promise<void> }> => {
    const ready = Promise.withResolvers<void>();
    const names = new Map<string, string>();
    const watching = watch(kube, of, {
      namespace,
      ...which,
      signal: until,
      log,
      onChange(key, object) {
        const name = key.split("/").at(-1) ?? key;
        const attemptName = object === undefined ? names.get(name) : attemptOf(object);
        if (attemptName === undefined) return;
        if (object === undefined) names.delete(name);
        else names.set(name, attemptName);
        // For an object that is gone, before it is forgotten, because its run is then still known; else after it is kept.
        if (object === undefined) changed(attemptName);
        keep(name, object, attemptName);
        view = undefined;
        if (object !== undefined) changed(attemptName);
      },
      onReady: ready.resolve,
    });
    await Promise.race([ready.promise, watching]);
    return { ended: watching };
  };
  const into =
    <T>(map: Map<string, T>) =>
    (name: string, object: T | undefined): void => {
      if (object === undefined) map.delete(name);
      else map.set(name, object);
    };
  const keepPod = (name: string, pod: V1Pod | undefined, attemptName: string): void => {
    const before = known.pods.get(name);
    const last = pod ?? (before === undefined || removed.has(attemptName) ? undefined : lastWordsOf(before));
    if (last === undefined) known.pods.delete(name);
    else known.pods.set(name, last);
    if (pod === undefined && podsOf(attemptName).length === 0) removed.delete(attemptName);
  };
  /** Forgets what pods of an attempt said that are gone: it has ended and was dealt with, or it goes on in a new one. */
  const forgetGone = (attemptName: string): void => {
    for (const pod of podsOf(attemptName)) {
      const name = pod.metadata?.name ?? "";
      if (!alive.has(name)) known.pods.delete(name);
    }
  };
  const alive = new Set<string>();

  const installed = await Promise.all([
    settings.jobSet ? served(kube, jobSets, { namespace, log, signal: until }) : false,
    settings.queueName === undefined ? undefined : firstServed(kube, workloads, { namespace, log, signal: until }),
  ]);
  const [withJobSets, workload] = installed;
  const ours = { labelSelector: `${labels.component} in (${component.attempt},${component.part})` };
  const watches = await Promise.all([
    follow(jobs, ours, nameOf, (name, job) => {
      into(known.jobs)(name, job);
      // A new life begins with the next pod.
      if (job?.spec?.suspend === true) forgetGone(name);
    }),
    ...(withJobSets
      ? [
          follow(jobSets, ours, nameOf, (name, jobSet) => {
            into(known.jobSets)(name, jobSet);
            if (jobSet?.spec.suspend === true) forgetGone(name);
          }),
        ]
      : []),
    follow(pods, ours, attemptOfPod, (name, pod, attemptName) => {
      if (pod === undefined) alive.delete(name);
      else alive.add(name);
      keepPod(name, pod, attemptName);
    }),
    follow(
      events,
      { fieldSelector: "type=Warning" },
      ({ involvedObject: { name = "" } }) => attemptNamePattern.exec(name)?.[1],
      into(known.events),
    ),
    ...(workload === undefined
      ? []
      : [follow(workload, {}, attemptOfWorkload, (_name, object, attemptName) => into(known.workloads)(attemptName, object))]),
  ]);

  /** By the attempt they are about: a long line has a thousand Jobs, and each is looked at for each. */
  type Seen = { pods: Map<string | undefined, V1Pod[]>; warnings: Map<string | undefined, CoreV1Event[]> };
  const observeAttempt = (attemptName: string, seen: Seen): Attempt | undefined => {
    const its = seen.pods.get(attemptName) ?? [];
    const holder = holderOf(attemptName);
    const about = holder ?? its[0];
    const run = runOf(about);
    if (run === undefined || (holder === undefined && removed.has(attemptName))) return undefined;
    // A JobSet only says that a Job failed; the Job inside says why.
    const inside = known.jobs.get(`${attemptName}-node-0`)?.status?.conditions?.filter(({ reason }) => reason === "DeadlineExceeded") ?? [];
    const job: Holder | undefined = holder && {
      metadata: holder.metadata,
      spec: { suspend: holder.spec?.suspend, activeDeadlineSeconds: settings.activeDeadlineSeconds },
      status: { conditions: [...inside, ...(holder.status?.conditions ?? [])] },
    };
    const warnings = seen.warnings.get(attemptName) ?? [];
    return {
      ...run,
      attempt: Number(about?.metadata?.labels?.[labels.attempt]),
      name: attemptName,
      ...decideAttempt({ job, pods: its, warnings, workload: known.workloads.get(attemptName) }, Date.now()),
    };
  };

  const end = async (attemptName: string, propagation: "Foreground" | "Background"): Promise<void> => {
    const holder = holderOf(attemptName);
    const at = { namespace, name: attemptName };
    const uid = holder?.metadata?.uid;
    if (holder !== undefined) await kube.delete(known.jobSets.has(attemptName) ? jobSets : jobs, at, { propagation, uid });
    else
      for (const { metadata } of podsOf(attemptName))
        await kube.delete(pods, { namespace, name: metadata?.name ?? "" }, { uid: metadata?.uid });
  };

  /** Read for each attempt: the cluster collects at once what belongs to an owner that was deleted, and made anew since. */
  const withOwner = async (): Promise<TrainPodSettings> => {
    const { owner } = settings;
    if (owner === undefined) return settings;
    const found = await kube.get(configMaps, { namespace, name: owner });
    if (found === undefined) {
      throw new RetryLaterError(
        "OWNER_MISSING",
        15_000,
        `ConfigMap ${owner}, to which attempts belong so that they end with the release, is gone. Install the release again.`,
      );
    }
    return { ...settings, ownerUid: found.metadata?.uid };
  };

  return {
    async launch(request) {
      const spec = attemptSpec.parse(request);
      const { tenant, runId, attempt, name } = spec;
      const several = (spec.runSpec.nodes ?? 1) > 1;
      if (several && !settings.jobSet) {
        throw new PermanentError(
          "NODES_UNSUPPORTED",
          "nodes: this installation trains on one node at a time. Ask for fewer, or install JobSet and set train.pods.jobSet.",
          { param: "nodes" },
        );
      }
      if (several && !withJobSets) {
        throw new RetryLaterError(
          "JOBSET_MISSING",
          15_000,
          "train.pods.jobSet is set, and JobSet is not installed or may not be listed by the train controller. Install it, then restart the controller.",
        );
      }
      try {
        const owned = await withOwner();
        if (several) keepNew(known.jobSets, await kube.create(jobSets, jobSetManifest(spec, owned)));
        else keepNew(known.jobs, await kube.create(jobs, jobManifest(spec, owned)));
        view = undefined;
        log.info({ name, tenant, runId, attempt }, "Job created");
        return true;
      } catch (error) {
        if (!(error instanceof KubeError)) throw error;
        if (error.reason === "AlreadyExists") {
          const there = await kube.get<KubernetesObject>(several ? jobSets : jobs, { namespace, name });
          if (there !== undefined && there.metadata?.labels?.[labels.tenant] !== tenant) {
            throw new PermanentError(
              "RUN_ID_TAKEN",
              `the run id ${runId} is in use by another tenant. Request the run again under a new ULID.`,
            );
          }
          // One that is being deleted holds the name until its pod is gone.
          if (there?.metadata?.deletionTimestamp !== undefined) return false;
          return true;
        }
        if (error.status === 422 || error.status === 400) {
          throw new PermanentError(
            "JOB_INVALID",
            `Kubernetes refuses the Job ${name}: ${error.message}. Correct the chart's train values.`,
            {
              cause: error,
            },
          );
        }
        if (several && /failed calling webhook/.test(error.message)) {
          const message = `JobSet's controller does not answer, and without it no JobSet can be made: ${error.message}`;
          throw new RetryLaterError("JOBSET_UNAVAILABLE", 5000, message, { cause: error });
        }
        if (error.status === 403) {
          throw new RetryLaterError("JOB_FORBIDDEN", 15_000, `Kubernetes does not allow the Job ${name}: ${error.message}`, {
            cause: error,
          });
        }
        throw error;
      }
    },

    async observe() {
      if (view !== undefined && performance.now() - view.at < viewMs) return view.attempts;
      const seen = {
        pods: Map.groupBy(known.pods.values(), attemptOfPod),
        warnings: Map.groupBy(known.events.values(), ({ involvedObject: { name = "" } }) => attemptNamePattern.exec(name)?.[1]),
      };
      const holders = [...known.jobs.values(), ...known.jobSets.values()].filter(isAttempt).map(nameOf);
      // A Job that somebody deleted is an attempt for as long as its pods are there: they save a checkpoint.
      const names = new Set([...holders, ...seen.pods.keys()]);
      const attempts = [...names].flatMap((name) => (name === undefined ? [] : (observeAttempt(name, seen) ?? [])));
      view = { attempts, at: performance.now() };
      return attempts;
    },

    async slots() {
      return { total: unlimited, free: unlimited };
    },

    /** Its pod gets SIGTERM and its grace period; the Job stays, as deleted, until the pod is gone. */
    async stop(attemptName) {
      await end(attemptName, "Foreground");
    },

    async remove(attemptName) {
      forgetGone(attemptName);
      if (podsOf(attemptName).length > 0) removed.add(attemptName);
      view = undefined;
      await end(attemptName, "Background");
    },

    watch(onChange) {
      listeners.add(onChange);
      return { [Symbol.dispose]: () => void listeners.delete(onChange) };
    },

    /** Jobs go on: the controller that holds the lease next finds them. */
    async [Symbol.asyncDispose]() {
      stopping.abort();
      listeners.clear();
      await Promise.all(watches.map(({ ended }) => ended));
    },
  };
}

const nameOf = ({ metadata }: KubernetesObject): string | undefined => metadata?.name;
const isAttempt = ({ metadata }: KubernetesObject): boolean => metadata?.labels?.[labels.component] === component.attempt;
const attemptOfPod = ({ metadata }: V1Pod): string | undefined =>
  metadata?.labels?.[jobSetLabel] ?? metadata?.labels?.["batch.kubernetes.io/job-name"] ?? metadata?.labels?.["job-name"];
const attemptOfWorkload = ({ metadata }: Workload): string | undefined =>
  metadata?.ownerReferences?.map(({ name }) => name).find((name) => attemptNamePattern.test(name));

function runOf(object: KubernetesObject | undefined): { tenant: string; runId: string } | undefined {
  const { [labels.tenant]: tenant, [labels.run]: run } = object?.metadata?.labels ?? {};
  return tenant === undefined || run === undefined ? undefined : { tenant, runId: run.toUpperCase() };
}

interface Asking {
  namespace: string;
  log: Log;
  signal: AbortSignal;
}

/** Whether the cluster has this kind of object, and lets us list it. Waits for an API server that does not answer. */
async function served<T extends KubernetesObject>(kube: Kube, of: Resource<T>, { namespace, log, signal }: Asking): Promise<boolean> {
  for (; !signal.aborted; await sleep(1000, undefined, { signal }).catch(() => {})) {
    try {
      await kube.list(of, { namespace });
      return true;
    } catch (error) {
      if (!(error instanceof KubeError) || ![403, 404].includes(error.status)) continue;
      log.warn({ kind: of.kind, apiVersion: of.apiVersion, status: error.status }, "not to be had here; going on without it");
      return false;
    }
  }
  return false;
}

async function firstServed<T extends KubernetesObject>(
  kube: Kube,
  versions: readonly Resource<T>[],
  asking: Asking,
): Promise<Resource<T> | undefined> {
  for (const version of versions) if (await served(kube, version, asking)) return version;
  return undefined;
}

/** Keeps an object that was just created, unless the watch has already delivered it, perhaps in a newer state. */
function keepNew<T extends KubernetesObject>(known: Map<string, T>, made: T): void {
  const name = made.metadata?.name ?? "";
  if (known.get(name)?.metadata?.uid !== made.metadata?.uid) known.set(name, made);
}
