/** Pure: what the replicas' reports settle about the versions of one adapter. */
import type { AdapterState, AdapterVersion, Problem, ReplicaState } from "@loraline/contracts";

/** A report older than this is of an agent that is gone; the TTL of KV `replicas`. */
export const replicaFreshMs = 15_000;

export type Convergence =
  | { kind: "served"; version: number; replicas: number; provenAt: string }
  | { kind: "refused"; version: number; problem: Problem };

/** Replicas of an engine that count now: ready, and heard of lately. */
export const readyReplicas = (engine: string, replicas: Iterable<ReplicaState>, now: number): ReplicaState[] =>
  [...replicas].filter((replica) => replica.engine === engine && replica.ready && now - Date.parse(replica.at) < replicaFreshMs);

/** How many of these replicas have the very bytes proven under the version's name. */
export const provenOn = ({ engineName, digest }: AdapterVersion, replicas: readonly ReplicaState[]): number =>
  replicas.filter(({ adapters }) =>
    adapters.some((held) => held.engineName === engineName && held.digest === digest && held.state === "proven"),
  ).length;

/**
 * What the replicas' reports settle. A version is served when every ready replica has these bytes proven, and refused when one
 * says that it never will; after that it stays served, and a replica that cannot hold it is simply not asked.
 */
export function decideConvergence(state: AdapterState, replicas: Iterable<ReplicaState>, now: number): Convergence[] {
  const ready = readyReplicas(state.engine, replicas, now);
  return state.versions.flatMap((version): Convergence[] => {
    if (version.status !== "desired" || version.servedAt !== null) return [];
    const reports = ready.map(({ adapters }) =>
      adapters.find(({ engineName, digest }) => engineName === version.engineName && digest === version.digest),
    );
    const refusal = reports.find((report) => report?.state === "refused");
    if (refusal !== undefined) {
      const problem = refusal.error ?? { code: "REFUSED", message: "a replica refused it without saying why" };
      return [{ kind: "refused", version: version.version, problem }];
    }
    const proofs = reports.flatMap((report) => (report?.state === "proven" && report.proof !== null ? [report.proof.provenAt] : []));
    if (ready.length === 0 || proofs.length < ready.length) return [];
    return [{ kind: "served", version: version.version, replicas: proofs.length, provenAt: proofs.toSorted().at(-1) ?? "" }];
  });
}
