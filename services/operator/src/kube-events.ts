/** Events of Kubernetes: what `kubectl describe` and `kubectl get events` tell. */
import type { KubernetesObject } from "@kubernetes/client-node";
import { type Kube, KubeError, type Resource } from "@loraline/kube";
import type { Log } from "@loraline/runtime";
import type { Milestone } from "./conditions.ts";
import { shortHash } from "./ids.ts";
import { events, manager } from "./resources.ts";

/** Kubernetes' own limit on an Event's message. */
const longest = 1024;

/** What may pass; anything else that the server says to an Event it would say again. */
const passing: ReadonlySet<number> = new Set([401, 408, 429]);

/**
 * Tells each milestone of an object once: an Event's name follows from what it tells. One that the cluster refuses, as by a quota on
 * Events, is left untold: what it tells stands in the status too, which must not wait for it.
 */
export async function tell(kube: Kube, of: Resource, about: KubernetesObject, milestones: readonly Milestone[], log: Log): Promise<void> {
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
      if (!(error instanceof KubeError) || error.status >= 500 || passing.has(error.status)) throw error;
      if (error.reason !== "AlreadyExists") log.warn({ err: error, kind: of.kind, name, event: reason }, "event refused");
    }
  }
}
