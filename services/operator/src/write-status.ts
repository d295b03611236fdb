/** Writes a resource's status when it has changed, but not more often than a person or etcd can follow. */
import { isDeepStrictEqual } from "node:util";
import type { Condition } from "@loraline/contracts";
import { type Kube, KubeError, type Resource } from "@loraline/kube";
import { manager } from "./resources.ts";
import type { KubernetesObject } from "@kubernetes/client-node";

/** Shortest time between two writes of one object's status, unless its phase or a condition changed. */
const everyMs = 1000;
/** Shortest time between writes of all objects together: at most 100 a second, so that a thousand adapters are no load for etcd. */
const spacingMs = 10;

interface Status {
  phase?: string | undefined;
  conditions?: Condition[] | undefined;
}
type WithStatus<S extends Status> = KubernetesObject & { status?: S };

interface StatusWriter<S extends Status> {
  /** @returns the object as it was written; undefined: it was not written, or is gone. `afterMs`: after which time to try again, if it was too soon. */
  write(object: WithStatus<S>, status: S): Promise<{ written: WithStatus<S> | undefined; afterMs?: number }>;
  forget(uid: string): void;
}

export function createStatusWriter<S extends Status>(kube: Kube, of: Resource<WithStatus<S>>): StatusWriter<S> {
  const writtenAt = new Map<string, number>();
  return {
    async write(object, status) {
      const { uid = "", name = "", namespace } = object.metadata ?? {};
      const before = object.status;
      if (isDeepStrictEqual(before, status)) return { written: undefined };
      const since = performance.now() - (writtenAt.get(uid) ?? Number.NEGATIVE_INFINITY);
      const pauseMs = Math.max(everyMs, writtenAt.size * spacingMs);
      if (since < pauseMs && !isMilestone(before, status)) return { written: undefined, afterMs: pauseMs - since };
      try {
        // The UID is given, so that another object that has taken the name meanwhile is not written.
        const written = await kube.apply(
          of,
          { metadata: { name, namespace: namespace ?? "", uid }, status },
          {
            manager,
            subresource: "status",
          },
        );
        writtenAt.set(uid, performance.now());
        return { written };
      } catch (error) {
        if (error instanceof KubeError && (error.status === 404 || error.status === 409)) return { written: undefined };
        throw error;
      }
    },
    forget: (uid) => void writtenAt.delete(uid),
  };
}

/** Whether the answer of a write is older than the object that the watch has shown meanwhile, such as after an edit. */
export const isOlder = ({ metadata: written }: KubernetesObject, { metadata: known }: KubernetesObject): boolean =>
  written?.uid !== known?.uid || (written?.generation ?? 0) < (known?.generation ?? 0);

const isMilestone = (before: Status | undefined, next: Status): boolean => {
  const told = (status: Status | undefined) => status?.conditions?.map(({ type, status: value, reason }) => `${type} ${value} ${reason}`);
  return before?.phase !== next.phase || !isDeepStrictEqual(told(before), told(next));
};
