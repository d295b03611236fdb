/**
 * The attempts that there are, by watches on their Jobs, JobSets and pods, on warnings, and on Kueue's Workloads. Pods that are
 * gone are remembered for as long as their attempt is there, because how they ended decides what becomes of it.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { CoreV1Event, KubernetesObject, V1Job, V1Pod } from "@kubernetes/client-node";
import { type Kube, KubeError, type Resource, resource, watch } from "@loraline/kube";
import type { Log } from "@loraline/runtime";
import { decideAttempt, type Holder, lastWordsOf, type Workload } from "./decide-attempt.ts";
import { component, labels, namespacesOf, type TrainPodSettings, usesKueue } from "./job-manifest.ts";
import { type JobSet, jobSetLabel } from "./jobset-manifest.ts";
import type { Attempt, Launcher } from "./launcher.ts";

export const jobs = resource<V1Job>("batch/v1", "Job", "jobs");
export const jobSets = resource<JobSet>("jobset.x-k8s.io/v1alpha2", "JobSet", "jobsets");
export const pods = resource<V1Pod>("v1", "Pod", "pods");
const events = resource<CoreV1Event>("v1", "Event", "events");
/** Kueue's; served in both versions, for as long as Kueue says. */
const workloads = ["v1beta2", "v1beta1"].map((version) =>
  resource<Workload & KubernetesObject>(`kueue.x-k8s.io/${version}`, "Workload", "workloads"),
);

/** What was seen of an attempt is judged again after so long, because some ends are recognised by the time that has passed. */
const viewMs = 500;
/** Matches names of a Job or JobSet, of the Job inside a JobSet, and of their pods. The group is the attempt's name. */
const attemptNamePattern = /^(train-[0-9a-z]{26}-[1-9]\d*)(?:-node-0)?(?:-\d+)?(?:-[0-9a-z]{5})?$/;

interface WatchedAttempts extends AsyncDisposable, Pick<Launcher, "watch"> {
  /** Whether the cluster has JobSets, and lets us list them. */
  withJobSets: boolean;
  /** Every attempt that is there: by its Job or JobSet, or by pods whose Job somebody deleted. */
  observe(): Attempt[];
  /** Those of one run. */
  attemptsOf(run: { tenant: string; runId: string }): Attempt[];
  /** The attempt's JobSet, or else its Job. */
  holderOf(
    attemptName: string,
  ): { of: Resource<V1Job> | Resource<JobSet>; namespace: string | undefined; uid: string | undefined } | undefined;
  /** Its pods, those that are gone and remembered included. */
  podsOf(attemptName: string): V1Pod[];
  /** Keeps what was just created, so that it is observed before the watch delivers it. */
  keepNew(made: { job: V1Job } | { jobSet: JobSet }): void;
  /** An attempt whose Job or JobSet has ended by itself is observed no more, though it is still there. false: it has not ended so. */
  setAside(attemptName: string): boolean;
  /** Forgets an attempt that is about to be deleted; its pods count no more, though they need time to end. */
  forget(attemptName: string): void;
}

/** Resolves when every Job, pod and warning that exists has been seen. */
export async function watchAttempts({
  kube,
  settings,
  log,
  signal,
}: {
  kube: Kube;
  settings: TrainPodSettings;
  log: Log;
  /** Ends the watches, also while the API server is still waited for. */
  signal: AbortSignal | undefined;
}): Promise<WatchedAttempts> {
  /** By the attempt's name, because there may be ten thousand attempts and each change is of one. */
  const known = new Map<string, Parts>();
  /** Names of the attempts of each run, by its id in small letters. */
  const namesOfRun = new Map<string, Set<string>>();
  /** Attempts that were removed while they had pods. The cluster deletes these pods, and how they ended is not kept. */
  const removed = new Set<string>();
  /** Attempts that have ended and were dealt with; their objects stay for people to look at. */
  const aside = new Set<string>();
  const listeners = new Set<(run: { tenant: string; runId: string }) => void>();
  const stopping = new AbortController();
  const until = signal === undefined ? stopping.signal : AbortSignal.any([stopping.signal, signal]);

  const partsOf = (attemptName: string): Parts => {
    const parts: Parts = known.get(attemptName) ?? { pods: new Map(), warnings: new Map() };
    if (!known.has(attemptName)) {
      known.set(attemptName, parts);
      const runId = runIdOfName(attemptName);
      namesOfRun.set(runId, (namesOfRun.get(runId) ?? new Set()).add(attemptName));
    }
    parts.view = undefined;
    return parts;
  };
  /** Forgets attempts of which nothing is left. */
  const tidyUp = (attemptName: string): void => {
    const parts = known.get(attemptName);
    if (parts === undefined || (parts.job ?? parts.jobSet ?? parts.inside ?? parts.workload) !== undefined) return;
    if (parts.pods.size > 0 || parts.warnings.size > 0) return;
    known.delete(attemptName);
    aside.delete(attemptName);
    const runId = runIdOfName(attemptName);
    const names = namesOfRun.get(runId);
    names?.delete(attemptName);
    if (names?.size === 0) namesOfRun.delete(runId);
  };
  const holderOf = (attemptName: string): V1Job | JobSet | undefined => {
    const parts = known.get(attemptName);
    return parts?.jobSet ?? parts?.job;
  };
  const podsOf = (attemptName: string): V1Pod[] => [...(known.get(attemptName)?.pods.values() ?? [])];
  const changed = (attemptName: string): void => {
    const run = runOf(holderOf(attemptName) ?? podsOf(attemptName)[0]);
    if (run !== undefined) for (const listener of listeners) listener(run);
  };
  const follow = async <T extends KubernetesObject>(
    namespace: string,
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
        tidyUp(attemptName);
        if (object !== undefined) changed(attemptName);
      },
      onReady: ready.resolve,
    });
    await Promise.race([ready.promise, watching]);
    return { ended: watching };
  };
  const keepIn = <T>(map: Map<string, T>, name: string, object: T | undefined): void => {
    if (object === undefined) map.delete(name);
    else map.set(name, object);
  };
  const keepPod = (name: string, pod: V1Pod | undefined, attemptName: string): void => {
    const { pods: its } = partsOf(attemptName);
    const before = its.get(name);
    const last = pod ?? (before === undefined || removed.has(attemptName) ? undefined : lastWordsOf(before));
    keepIn(its, name, last);
    if (pod === undefined && its.size === 0) removed.delete(attemptName);
  };
  /** Forgets what pods of an attempt said that are gone: it has ended and was dealt with, or it goes on in a new one. */
  const forgetGone = (attemptName: string): void => {
    const { pods: its } = partsOf(attemptName);
    for (const name of its.keys()) if (!alive.has(name)) its.delete(name);
  };
  const alive = new Set<string>();

  const asking = { namespace: settings.namespace, log, signal: until };
  const [withJobSets, workload, lookedInto] = await Promise.all([
    settings.jobSet ? served(kube, jobSets, asking) : false,
    usesKueue(settings) ? firstServed(kube, workloads, asking) : undefined,
    // Where an earlier release made attempts, this one may look only until those have ended.
    Promise.all(
      [...new Set([...namespacesOf(settings), ...settings.formerNamespaces])].map(async (namespace) =>
        namespacesOf(settings).includes(namespace) || (await served(kube, jobs, { ...asking, namespace })) ? [namespace] : [],
      ),
    ),
  ]);
  const ours = { labelSelector: `${labels.component} in (${component.attempt},${component.part})` };
  const followIn = (namespace: string): Promise<{ ended: Promise<void> }>[] => [
    follow(namespace, jobs, ours, attemptOfJob, (name, job, attemptName) => {
      if (name !== attemptName) {
        partsOf(attemptName).inside = job;
        return;
      }
      partsOf(attemptName).job = job;
      // A new life begins with the next pod.
      if (job?.spec?.suspend === true) forgetGone(name);
    }),
    ...(withJobSets
      ? [
          follow(namespace, jobSets, ours, nameOf, (name, jobSet) => {
            partsOf(name).jobSet = jobSet;
            if (jobSet?.spec.suspend === true) forgetGone(name);
          }),
        ]
      : []),
    follow(namespace, pods, ours, attemptOfPod, (name, pod, attemptName) => {
      if (pod === undefined) alive.delete(name);
      else alive.add(name);
      keepPod(name, pod, attemptName);
    }),
    follow(
      namespace,
      events,
      { fieldSelector: "type=Warning" },
      ({ involvedObject: { name = "" } }) => attemptNamePattern.exec(name)?.[1],
      (name, event, attemptName) => keepIn(partsOf(attemptName).warnings, name, event),
    ),
    ...(workload === undefined
      ? []
      : [
          follow(namespace, workload, {}, attemptOfWorkload, (_name, object, attemptName) => void (partsOf(attemptName).workload = object)),
        ]),
  ];
  const watches = await Promise.all(lookedInto.flat().flatMap(followIn));

  const judge = (attemptName: string, { job, jobSet, inside, workload: queued, pods: pieces, warnings }: Parts): Attempt | undefined => {
    if (aside.has(attemptName)) return undefined;
    const its = [...pieces.values()];
    const holder = jobSet ?? (job !== undefined && isAttempt(job) ? job : undefined);
    const about = holder ?? its[0];
    const run = runOf(about);
    if (run === undefined || (holder === undefined && removed.has(attemptName))) return undefined;
    // A JobSet only says that a Job failed; the Job inside says why.
    const why = inside?.status?.conditions?.filter(({ reason }) => reason === "DeadlineExceeded") ?? [];
    const held: Holder | undefined = holder && {
      metadata: holder.metadata,
      spec: { suspend: holder.spec?.suspend, activeDeadlineSeconds: (jobSet === undefined ? job : inside)?.spec?.activeDeadlineSeconds },
      status: { conditions: [...why, ...(holder.status?.conditions ?? [])] },
    };
    return {
      ...run,
      attempt: Number(about?.metadata?.labels?.[labels.attempt]),
      name: attemptName,
      ...decideAttempt({ job: held, pods: its, warnings: [...warnings.values()], workload: queued }, Date.now()),
    };
  };
  /** A Job that somebody deleted is an attempt for as long as its pods are there: they save a checkpoint. */
  const observeAll = (names: Iterable<string>): Attempt[] => {
    const now = performance.now();
    const attempts: Attempt[] = [];
    for (const name of names) {
      const parts = known.get(name);
      if (parts === undefined) continue;
      if (parts.view === undefined || now - parts.view.at >= viewMs) parts.view = { attempt: judge(name, parts), at: now };
      if (parts.view.attempt !== undefined) attempts.push(parts.view.attempt);
    }
    return attempts;
  };

  return {
    withJobSets,
    observe: () => observeAll(known.keys()),
    attemptsOf: ({ tenant, runId }) => observeAll(namesOfRun.get(runId.toLowerCase()) ?? []).filter((one) => one.tenant === tenant),

    holderOf(attemptName) {
      const holder = holderOf(attemptName);
      const { namespace, uid } = holder?.metadata ?? {};
      return holder && { of: known.get(attemptName)?.jobSet === undefined ? jobs : jobSets, namespace, uid };
    },
    podsOf,

    keepNew(made) {
      const parts = partsOf(nameOf("job" in made ? made.job : made.jobSet) ?? "");
      if ("job" in made) parts.job = newest(parts.job, made.job);
      else parts.jobSet = newest(parts.jobSet, made.jobSet);
    },

    setAside(attemptName) {
      const holder = holderOf(attemptName);
      const saysSo = holder?.status?.conditions?.some(
        ({ type, status }) => status === "True" && ["Complete", "Completed", "Failed"].includes(type),
      );
      const its = podsOf(attemptName);
      // The Job's own word may come a moment after its pods'.
      const ended = saysSo === true || (its.length > 0 && its.every((pod) => lastWordsOf(pod) !== undefined));
      if (holder === undefined || !ended || holder.metadata?.deletionTimestamp !== undefined) return false;
      aside.add(attemptName);
      partsOf(attemptName);
      return true;
    },

    forget(attemptName) {
      forgetGone(attemptName);
      if (podsOf(attemptName).length > 0) removed.add(attemptName);
      tidyUp(attemptName);
    },

    watch(onChange) {
      listeners.add(onChange);
      return { [Symbol.dispose]: () => void listeners.delete(onChange) };
    },

    async [Symbol.asyncDispose]() {
      stopping.abort();
      listeners.clear();
      await Promise.all(watches.map(({ ended }) => ended));
    },
  };
}

/** What is known of one attempt. */
interface Parts {
  job?: V1Job | undefined;
  jobSet?: JobSet | undefined;
  /** The Job that a JobSet has made. */
  inside?: V1Job | undefined;
  workload?: Workload | undefined;
  /** By name. */
  pods: Map<string, V1Pod>;
  warnings: Map<string, CoreV1Event>;
  /** What was made of all this; undefined: something changed since. */
  view?: { attempt: Attempt | undefined; at: number } | undefined;
}

const nameOf = ({ metadata }: KubernetesObject): string | undefined => metadata?.name;
const isAttempt = ({ metadata }: KubernetesObject): boolean => metadata?.labels?.[labels.component] === component.attempt;
const attemptOfPod = ({ metadata }: V1Pod): string | undefined =>
  metadata?.labels?.[jobSetLabel] ?? metadata?.labels?.["batch.kubernetes.io/job-name"] ?? metadata?.labels?.["job-name"];
const attemptOfJob = ({ metadata }: V1Job): string | undefined => attemptNamePattern.exec(metadata?.name ?? "")?.[1];
const runIdOfName = (attemptName: string): string => attemptName.split("-")[1] ?? "";
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

/** What was just created, unless the watch has already delivered it, perhaps in a newer state. */
const newest = <T extends KubernetesObject>(known: T | undefined, made: T): T =>
  known?.metadata?.uid === made.metadata?.uid && known !== undefined ? known : made;
