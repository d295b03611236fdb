/** Pure: one pass that sorts the replicas of an engine by what each of them says of one version. Deciders look at the buckets only. */
import type { AdapterVersion, ReplicaAdapter, ReplicaState } from "@loraline/contracts";

/** A report older than this is of an agent that is gone; the TTL of KV `replicas`. */
export const replicaFreshMs = 15_000;

/** A replica that should hold the version. `report`: what it says of these very bytes under the version's name. */
interface Holder {
  replica: string;
  report: ReplicaAdapter | undefined;
}

export interface VersionBuckets {
  /** Ready replicas that should hold the version, in the order they were given; each is in one of the next four buckets, too. */
  holders: Holder[];
  /** Has proven it. */
  proven: (Holder & { report: ReplicaAdapter & { proof: NonNullable<ReplicaAdapter["proof"]> } })[];
  /** Is not done with it: said nothing yet, loads it, tries again, or has to unload something first. */
  pending: Holder[];
  /** Says no to it, and the fault may be the version's. */
  refused: (Holder & { report: ReplicaAdapter })[];
  /** Cannot tell, for its own trouble: a full disk, no way to the store. */
  troubled: Holder[];
  /** Replicas of the engine that are ready, and that placement did not choose. */
  elsewhere: string[];
  /** Replicas of the engine that do not count now: not ready, or silent. */
  away: string[];
}

export function bucketReplicas(version: AdapterVersion, engine: string, replicas: Iterable<ReplicaState>, now: number): VersionBuckets {
  const buckets: VersionBuckets = { holders: [], proven: [], pending: [], refused: [], troubled: [], elsewhere: [], away: [] };
  for (const state of replicas) {
    const { replica } = state;
    if (state.engine !== engine) continue;
    if (!isReady(state, now)) {
      buckets.away.push(replica);
      continue;
    }
    if (!(version.replicas?.includes(replica) ?? true)) {
      buckets.elsewhere.push(replica);
      continue;
    }
    const report = state.adapters.find(({ engineName, digest }) => engineName === version.engineName && digest === version.digest);
    buckets.holders.push({ replica, report });
    if (report === undefined || report.state === "loading" || report.state === "retrying" || report.state === "draining")
      buckets.pending.push({ replica, report });
    else if (report.state === "proven" && report.proof !== null)
      buckets.proven.push({ replica, report: { ...report, proof: report.proof } });
    else if (report.state === "refused" || (report.state === "quarantined" && report.blame !== "replica"))
      buckets.refused.push({ replica, report });
    else buckets.troubled.push({ replica, report });
  }
  return buckets;
}

const isReady = ({ ready, at }: ReplicaState, now: number): boolean => ready && now - Date.parse(at) < replicaFreshMs;

/** Replicas of an engine that count now: ready, and heard of lately. */
export const readyReplicas = (engine: string, replicas: Iterable<ReplicaState>, now: number): ReplicaState[] =>
  [...replicas].filter((replica) => replica.engine === engine && isReady(replica, now));

/** How many of these replicas have the very bytes proven under the version's name. */
export const provenOn = ({ engineName, digest }: AdapterVersion, replicas: readonly ReplicaState[]): number =>
  replicas.filter(({ adapters }) =>
    adapters.some((held) => held.engineName === engineName && held.digest === digest && held.state === "proven"),
  ).length;
