/**
 * Attempts as Kubernetes Jobs, or JobSets: how they are made and deleted. Objects have the attempt's name, so that creating or deleting
 * one twice is harmless. watched-attempts.ts observes them.
 */
import type { KubernetesObject, V1ConfigMap, V1Secret } from "@kubernetes/client-node";
import { type Kube, KubeError, resource } from "@loraline/kube";
import { type Log, PermanentError, RetryLaterError } from "@loraline/runtime";
import { component, jobManifest, labels, namespaceOf, type TrainPodSettings, usesKueue } from "./job-manifest.ts";
import { jobSetManifest } from "./jobset-manifest.ts";
import { attemptSpec } from "../attempt/attempt-spec.ts";
import type { Launcher } from "./launcher.ts";
import { jobs, jobSets, pods, watchAttempts } from "./watched-attempts.ts";

interface KubeLauncherOptions {
  kube: Kube;
  settings: TrainPodSettings;
  /** What the courier gets as files, by name: read for each attempt, so that changed ones hold from the next attempt on. */
  readCredentials?: () => Promise<Record<string, Buffer>>;
  log: Log;
  /** Ends the launcher, also while it still waits for the API server; it may then know no attempts. */
  signal?: AbortSignal;
}

export const configMaps = resource<V1ConfigMap>("v1", "ConfigMap", "configmaps");
export const secrets = resource<V1Secret>("v1", "Secret", "secrets");

/** Attempts then queue in the scheduler, or in Kueue: they become Jobs at once, and wait as pending pods or suspended. */
const unlimited = 1_000_000_000;

/** Resolves when every Job, pod and warning that exists has been seen. */
export async function createKubeLauncher({
  kube,
  settings,
  readCredentials,
  log: parentLog,
  signal,
}: KubeLauncherOptions): Promise<Launcher & AsyncDisposable> {
  const log = parentLog.child({ launcher: "kubernetes", namespace: settings.namespace });
  const attempts = await watchAttempts({ kube, settings, log, signal });

  const end = async (attemptName: string, propagation: "Foreground" | "Background"): Promise<void> => {
    const holder = attempts.holderOf(attemptName);
    if (holder !== undefined)
      await kube.delete(holder.of, { namespace: holder.namespace, name: attemptName }, { propagation, uid: holder.uid });
    else
      for (const { metadata } of attempts.podsOf(attemptName))
        await kube.delete(pods, { namespace: metadata?.namespace, name: metadata?.name ?? "" }, { uid: metadata?.uid });
  };

  /** Read for each attempt: the cluster collects at once what belongs to an owner that was deleted, and made anew since. */
  const withOwner = async (namespace: string): Promise<TrainPodSettings> => {
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

  /** Written before each attempt: the Secret may have been deleted, or may hold what has changed since. */
  const writeCredentials = async (namespace: string, { credentials, owner, ownerUid }: TrainPodSettings): Promise<void> => {
    if (credentials === undefined || readCredentials === undefined) return;
    const files = Object.entries(await readCredentials());
    const secret: V1Secret = {
      metadata: {
        name: credentials,
        namespace,
        labels: { "app.kubernetes.io/name": "loraline", [labels.component]: component.attempt },
        ...(owner === undefined || ownerUid === undefined
          ? {}
          : { ownerReferences: [{ apiVersion: "v1", kind: "ConfigMap", name: owner, uid: ownerUid }] }),
      },
      type: "Opaque",
      data: Object.fromEntries(files.map(([name, bytes]) => [name, bytes.toString("base64")])),
    };
    await kube.apply(secrets, secret, { manager: "loraline-train" });
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
      if (several && !attempts.withJobSets) {
        throw new RetryLaterError(
          "JOBSET_MISSING",
          15_000,
          "train.pods.jobSet is set, and JobSet is not installed or may not be listed by the train controller. Install it, then restart the controller.",
        );
      }
      const namespace = namespaceOf(settings, tenant);
      // In a namespace of before an upgrade: it is followed to its end there.
      const known = attempts.holderOf(name);
      if (known !== undefined && known.namespace !== namespace) return true;
      try {
        const owned = await withOwner(namespace);
        await writeCredentials(namespace, owned);
        if (several) attempts.keepNew({ jobSet: await kube.create(jobSets, jobSetManifest(spec, owned)) });
        else attempts.keepNew({ job: await kube.create(jobs, jobManifest(spec, owned)) });
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
          const code = /exceeded quota/.test(error.message) ? "QUOTA" : "JOB_FORBIDDEN";
          throw new RetryLaterError(code, 15_000, `Kubernetes does not allow the Job ${name}: ${error.message}`, {
            cause: error,
          });
        }
        throw error;
      }
    },

    async observe() {
      return attempts.observe();
    },

    async attemptsOf(run) {
      return attempts.attemptsOf(run);
    },

    async slots() {
      const total = settings.gpusTotal ?? unlimited;
      // Kueue has an order of its own, and no queue that a tenant could fill for others.
      return { total, free: total, ...(usesKueue(settings) ? {} : { pendingPerTenant: settings.pendingPerTenant }) };
    },

    sizeOf({ base, gpus = settings.byBase[base]?.gpus ?? settings.gpus, nodes = 1 }) {
      return { slots: gpus * nodes, gpus: gpus * nodes };
    },

    /** Its pod gets SIGTERM and its grace period; the Job stays, as deleted, until the pod is gone. */
    async stop(attemptName) {
      await end(attemptName, "Foreground");
    },

    /** A Job that has ended stays, with its pod's log, until Kubernetes removes it (`ttlSecondsAfterFinished`). */
    async remove(attemptName) {
      if (attempts.setAside(attemptName)) return;
      attempts.forget(attemptName);
      await end(attemptName, "Background");
    },

    watch: attempts.watch,

    /** Jobs go on: the controller that holds the lease next finds them. */
    [Symbol.asyncDispose]: () => attempts[Symbol.asyncDispose](),
  };
}
