/** Writes Kubernetes Events, which `kubectl describe` and `kubectl get events` show. */
import type { KubernetesObject } from "@kubernetes/client-node";
import { type Kube, KubeError, type Resource } from "@loraline/kube";
import type { Log } from "@loraline/runtime";
import type { Milestone } from "./conditions.ts";
import { shortHash } from "./ids.ts";
import { events, manager } from "./resources.ts";

/** Kubernetes' own limit on an Event's message. */
const longest = 1024;

/** HTTP statuses after which trying again may help; with any other the API server would refuse the Event again. */
const passing: ReadonlySet<number> = new Set([401, 408, 429]);

/**
 * Writes an Event for each milestone of an object, once: the Event's name is derived from the milestone. An Event that the cluster refuses,
 * such as by a quota, is given up: the status has the same information and must not wait for it.
 */
export async function tell(kube: Kube, of: Resource, about: KubernetesObject, milestones: readonly Milestone[], log: Log): Promise<void> {
  const { namespace = "default", name = "", uid = "", resourceVersion } = about.metadata ?? {};
  const now = new Date();
  for (const { type, reason, message, key } of milestones) {
    try {
      await kube.create(events, {
        metadata: { namespace, name: `${name.slice(0, 200).replace(/[-.]+$/, "")}.${shortHash(uid, reason, key)}` },
        involvedObject: {
          // Taken from the resource definition, because the items of a list do not have it.
          apiVersion: of.apiVersion,
          kind: of.kind,
          namespace,
          name,
          uid,
          ...(resourceVersion === undefined ? {} : { resourceVersion }),
        },
        type,
        reason,
        message: message.length > longest ? `${message.slice(0, longest - 1)}…` : message,
        source: { component: manager },
        reportingComponent: manager,
        reportingInstance: manager,
        // In JSON these times are texts, although the client's types say Date.
        firstTimestamp: now,
        lastTimestamp: now,
        count: 1,
      });
    } catch (error) {
      if (!(error instanceof KubeError) || error.status >= 500 || passing.has(error.status)) throw error;
      if (error.reason !== "AlreadyExists") log.warn({ err: error, kind: of.kind, name, event: reason }, "event refused");
    }
  }
}
