/** Attempts as Kubernetes Jobs. What is known of them comes from watches; what is done to them is named by the attempt, so doing it twice is harmless. */
import type { CoreV1Event, V1Job, V1Pod } from "@kubernetes/client-node";
import { type Kube, KubeError, resource, watch } from "@loraline/kube";
import { type Log, PermanentError, RetryLaterError } from "@loraline/runtime";
import { decideAttempt } from "./decide-attempt.ts";
import { component, jobManifest, labels, type TrainPodSettings } from "./job-manifest.ts";
import { type Attempt, type Launcher, trainJob } from "./launcher.ts";

export interface KubeLauncherOptions {
  kube: Kube;
  settings: TrainPodSettings;
  log: Log;
  /** Ends it, also while it still waits for the API server: what it knows then may be nothing. */
  signal?: AbortSignal;
}

export const jobs = resource<V1Job>("batch/v1", "Job", "jobs");
export const pods = resource<V1Pod>("v1", "Pod", "pods");
const events = resource<CoreV1Event>("v1", "Event", "events");

/** The scheduler's queue is the line: every attempt becomes a Job at once, and waits as a pending pod. */
const unlimited = 1_000_000;
const jobNamePattern = /^train-[0-9a-z]{26}-[1-9]\d*$/;

/** Resolves when every Job, pod and warning that exists has been seen. */
export async function createKubeLauncher({
  kube,
  settings,
  log: parentLog,
  signal,
}: KubeLauncherOptions): Promise<Launcher & AsyncDisposable> {
  const { namespace } = settings;
  const log = parentLog.child({ launcher: "kubernetes", namespace });
  const known = { jobs: new Map<string, V1Job>(), pods: new Map<string, V1Pod>(), events: new Map<string, CoreV1Event>() };
  const listeners = new Set<(run: { tenant: string; runId: string }) => void>();
  const stopping = new AbortController();
  const until = signal === undefined ? stopping.signal : AbortSignal.any([stopping.signal, signal]);

  const changed = (jobName: string): void => {
    const job = known.jobs.get(jobName);
    if (job === undefined) return;
    const run = runOf(job);
    if (run !== undefined) for (const listener of listeners) listener(run);
  };
  const follow = async <T extends V1Job | V1Pod | CoreV1Event>(
    of: typeof jobs | typeof pods | typeof events,
    into: Map<string, T>,
    which: { labelSelector?: string; fieldSelector?: string },
    jobNameOf: (object: T) => string | undefined,
  ): Promise<{ ended: Promise<void> }> => {
    const ready = Promise.withResolvers<void>();
    const watching = watch(kube, of as ReturnType<typeof resource<T>>, {
      namespace,
      ...which,
      signal: until,
      log,
      onChange(_key, object) {
        const name = _key.split("/").at(-1) ?? _key;
        const before = into.get(name);
        const jobName = jobNameOf((object ?? before) as T);
        if (jobName === undefined) return;
        if (object !== undefined) into.set(name, object);
        if (object === undefined && of !== jobs) into.delete(name);
        changed(jobName);
        if (object === undefined) into.delete(name);
      },
      onReady: ready.resolve,
    });
    await Promise.race([ready.promise, watching]);
    return { ended: watching };
  };
  const ours = { labelSelector: `${labels.component}=${component}` };
  const watches = await Promise.all([
    follow<V1Job>(jobs, known.jobs, ours, ({ metadata }) => metadata?.name),
    follow<V1Pod>(pods, known.pods, ours, jobNameOfPod),
    follow<CoreV1Event>(events, known.events, { fieldSelector: "type=Warning" }, ({ involvedObject: { name = "" } }) => {
      const jobName = jobNamePattern.test(name) ? name : name.replace(/-[0-9a-z]{5}$/, "");
      return jobNamePattern.test(jobName) ? jobName : undefined;
    }),
  ]);

  /** By the name of what they are about: a long line has a thousand Jobs, and each is looked at for each. */
  type Seen = { pods: Map<string | undefined, V1Pod[]>; warnings: Map<string | undefined, CoreV1Event[]> };
  const observeJob = (job: V1Job, seen: Seen): Attempt | undefined => {
    const run = runOf(job);
    const jobName = job.metadata?.name;
    if (run === undefined || jobName === undefined) return undefined;
    const its = seen.pods.get(jobName) ?? [];
    const names = new Set([jobName, ...its.map(({ metadata }) => metadata?.name)]);
    const warnings = [...names].flatMap((name) => seen.warnings.get(name) ?? []);
    return {
      ...run,
      attempt: Number(job.metadata?.labels?.[labels.attempt]),
      jobName,
      ...decideAttempt({ job, pods: its, warnings }, Date.now()),
    };
  };

  return {
    async launch(raw) {
      const job = trainJob.parse(raw);
      const manifest = jobManifest(job, settings);
      try {
        const made = await kube.create(jobs, manifest);
        known.jobs.set(job.jobName, made);
        log.info({ jobName: job.jobName, tenant: job.tenant, runId: job.runId, attempt: job.attempt }, "Job created");
        return true;
      } catch (error) {
        if (!(error instanceof KubeError)) throw error;
        if (error.reason === "AlreadyExists") {
          const there = await kube.get(jobs, { namespace, name: job.jobName });
          if (there !== undefined && there.metadata?.labels?.[labels.tenant] !== job.tenant) {
            throw new PermanentError(
              "RUN_ID_TAKEN",
              `the run id ${job.runId} is in use by another tenant. Request the run again under a new ULID.`,
            );
          }
          // One that is being deleted holds the name until its pod is gone.
          if (there?.metadata?.deletionTimestamp !== undefined) return false;
          return true;
        }
        if (error.status === 422 || error.status === 400) {
          throw new PermanentError(
            "JOB_INVALID",
            `Kubernetes refuses the Job ${job.jobName}: ${error.message}. Correct the chart's train values.`,
            {
              cause: error,
            },
          );
        }
        if (error.status === 403) {
          throw new RetryLaterError("JOB_FORBIDDEN", 15_000, `Kubernetes does not allow the Job ${job.jobName}: ${error.message}`, {
            cause: error,
          });
        }
        throw error;
      }
    },

    async observe() {
      const seen = {
        pods: Map.groupBy(known.pods.values(), jobNameOfPod),
        warnings: Map.groupBy(known.events.values(), ({ involvedObject }) => involvedObject.name),
      };
      return [...known.jobs.values()].flatMap((job) => observeJob(job, seen) ?? []);
    },

    async slots() {
      return { total: unlimited, free: unlimited };
    },

    /** Its pod gets SIGTERM and its grace period; the Job stays, as deleted, until the pod is gone. */
    async stop(jobName) {
      await kube.delete(jobs, { namespace, name: jobName }, { propagation: "Foreground", uid: known.jobs.get(jobName)?.metadata?.uid });
    },

    async remove(jobName) {
      await kube.delete(jobs, { namespace, name: jobName }, { uid: known.jobs.get(jobName)?.metadata?.uid });
    },

    watch(onChange) {
      listeners.add(onChange);
      return { [Symbol.dispose]: () => void listeners.delete(onChange) };
    },

    /** Jobs go on: whoever holds the lease next finds them. */
    async [Symbol.asyncDispose]() {
      stopping.abort();
      listeners.clear();
      await Promise.all(watches.map(({ ended }) => ended));
    },
  };
}

const jobNameOfPod = ({ metadata }: V1Pod): string | undefined =>
  metadata?.labels?.["batch.kubernetes.io/job-name"] ?? metadata?.labels?.["job-name"];

function runOf(job: V1Job): { tenant: string; runId: string } | undefined {
  const { [labels.tenant]: tenant, [labels.run]: run } = job.metadata?.labels ?? {};
  return tenant === undefined || run === undefined ? undefined : { tenant, runId: run.toUpperCase() };
}
