/** Events of Kubernetes: what `kubectl describe` and `kubectl get events` tell. */
import type { KubernetesObject } from "@kubernetes/client-node";
import { type Kube, KubeError, type Resource } from "@loraline/kube";
import type { Milestone } from "./conditions.ts";
import { shortHash } from "./ids.ts";
import { events, manager } from "./resources.ts";

/** Kubernetes' own limit on an Event's message. */
const longest = 1024;

/** Tells each milestone of an object once: an Event's name follows from what it tells. */
export async function tell(kube: Kube, of: Resource, about: KubernetesObject, milestones: readonly Milestone[]): Promise<void> {
  const { namespace = "default", name = "", uid = "", resourceVersion } = about.metadata ?? {};
  const now = new Date();
  for (const { type, reason, message, key } of milestones) {
    try {
      await kube.create(events, {
        metadata: { namespace, name: `${name.slice(0, 200).replace(/[-.]+$/, "")}.${shortHash(uid, reason, key)}` },
        involvedObject: {
          // Of the kind, because the items of a list do not say it.
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
        // Kubernetes' times are text in JSON; the client's types say Date.
        firstTimestamp: now,
        lastTimestamp: now,
        count: 1,
      });
    } catch (error) {
      if (!(error instanceof KubeError) || error.reason !== "AlreadyExists") throw error;
    }
  }
}
