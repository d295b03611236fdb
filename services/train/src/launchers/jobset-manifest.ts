/** One attempt on several nodes as a JobSet (jobset.x-k8s.io): one pod on each, which find each other by name. Pure. */
import type { KubernetesObject, V1JobSpec, V1ObjectMeta } from "@kubernetes/client-node";
import type { Holder } from "./decide-attempt.ts";
import { component, jobManifest, labels, type TrainPodSettings } from "./job-manifest.ts";
import type { AttemptRequest } from "../attempt/attempt-spec.ts";

/** The part of a JobSet that matters here. */
export interface JobSet extends KubernetesObject {
  metadata: V1ObjectMeta;
  spec: Holder["spec"] & {
    ttlSecondsAfterFinished?: number;
    failurePolicy: { maxRestarts: number };
    network: { enableDNSHostnames: boolean; subdomain: string; publishNotReadyAddresses: boolean };
    replicatedJobs: { name: string; replicas: number; template: { metadata: V1ObjectMeta; spec: V1JobSpec } }[];
  };
  status?: Holder["status"] & object;
}

/** Pods of a JobSet bear its name in this label. */
export const jobSetLabel = "jobset.sigs.k8s.io/jobset-name";
/** Of the one replicated Job; names of pods are made of it, see `firstNodeOf` in trainer-command.ts. */
const replicated = "node";

/** The same pod as of an attempt on one node, `spec.nodes` times. `maxRestarts: 0`: it is one attempt. */
export function jobSetManifest(attempt: AttemptRequest, settings: TrainPodSettings): JobSet {
  const { metadata = {}, spec } = jobManifest(attempt, settings);
  const { suspend, ttlSecondsAfterFinished, activeDeadlineSeconds, template = {} } = spec ?? {};
  const nodes = attempt.runSpec.nodes ?? 1;
  return {
    metadata,
    spec: {
      ...(suspend === undefined ? {} : { suspend }),
      ...(ttlSecondsAfterFinished === undefined ? {} : { ttlSecondsAfterFinished }),
      failurePolicy: { maxRestarts: 0 },
      // Known by name before they are ready: they look for each other in order to become so.
      network: { enableDNSHostnames: true, subdomain: attempt.name, publishNotReadyAddresses: true },
      // No `coordinator`: JobSet makes a label of its name, which is too long for one with ours.
      replicatedJobs: [
        {
          name: replicated,
          replicas: 1,
          template: {
            metadata: { labels: { ...metadata.labels, [labels.component]: component.part } },
            spec: {
              backoffLimit: 0,
              completionMode: "Indexed",
              parallelism: nodes,
              completions: nodes,
              ...(activeDeadlineSeconds === undefined ? {} : { activeDeadlineSeconds }),
              template,
            },
          },
        },
      ],
    },
  };
}
