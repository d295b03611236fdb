/** Writes a status when it says something else than before, and not more often than a watcher can read. */
import { isDeepStrictEqual } from "node:util";
import type { Condition } from "@loraline/contracts";
import { type Kube, KubeError, type Resource } from "@loraline/kube";
import { manager } from "./resources.ts";
import type { KubernetesObject } from "@kubernetes/client-node";

/** Of one object, unless its phase or a condition changed. */
const everyMs = 1000;
/** Of all of them together it is a hundred a second: a thousand adapters that converge on a hundred replicas are no load for etcd. */
const spacingMs = 10;

interface Status {
  phase?: string | undefined;
  conditions?: Condition[] | undefined;
}
type WithStatus<S extends Status> = KubernetesObject & { status?: S };

interface StatusWriter<S extends Status> {
  /** The object as it is now; undefined: not now, or it is gone. `afterMs`: when it may be written, where it was too soon. */
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
        // With the UID: an object that took the name meanwhile is another one.
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

/** `written` answers a write: the watch may have told of an edit since, which counts. */
export const isOlder = ({ metadata: written }: KubernetesObject, { metadata: known }: KubernetesObject): boolean =>
  written?.uid !== known?.uid || (written?.generation ?? 0) < (known?.generation ?? 0);

const isMilestone = (before: Status | undefined, next: Status): boolean => {
  const told = (status: Status | undefined) => status?.conditions?.map(({ type, status: value, reason }) => `${type} ${value} ${reason}`);
  return before?.phase !== next.phase || !isDeepStrictEqual(told(before), told(next));
};
