/** Pure: what the replicas' reports, sorted into buckets, mean for the versions of one adapter that are not served yet. */
import type { AdapterState, AdapterVersion, EngineRecord, Problem, ReplicaState } from "@loraline/contracts";
import { bucketReplicas, readyReplicas } from "./bucket-replicas.ts";

export type Convergence =
  | {
      kind: "served";
      version: number;
      /** Replicas that have it proven, of so many that should. */
      replicas: number;
      of: number;
      provenAt: string;
    }
  | { kind: "refused"; version: number; problem: Problem };

/** A replica that is not done is not waited for any more, once another had the version proven for this long. */
export const laggardMs = 60_000;

const openVersions = ({ versions }: AdapterState): AdapterVersion[] =>
  versions.filter(({ status, servedAt }) => status === "desired" && servedAt === null);

/**
 * Which open versions are served or refused by now.
 *
 * Served: every ready replica that should hold it has these bytes proven, except those that are in quarantine, that refuse what
 * another has proven (then it is the replica, not the bytes), or that are still not done a minute after the first.
 *
 * Refused: none has it proven, and either one found the fault in the files alone, or every replica that can tell says no. A replica
 * whose own trouble keeps it from telling (disk, network) has no vote.
 */
export function decideConvergence(state: AdapterState, replicas: Iterable<ReplicaState>, now: number): Convergence[] {
  const all = [...replicas];
  return openVersions(state).flatMap((version): Convergence[] => {
    const { holders, proven, pending, refused } = bucketReplicas(version, state.engine, all, now);
    // A version that was proven ahead of its gate counts from its gate on.
    const proofs = proven
      .map(({ report: { proof } }) => [proof.provenAt, version.createdAt].toSorted().at(-1) ?? proof.provenAt)
      .toSorted();
    const [first] = proofs;
    if (first !== undefined) {
      if (pending.length > 0 && now - Date.parse(first) < laggardMs) return [];
      return [{ kind: "served", version: version.version, replicas: proofs.length, of: holders.length, provenAt: proofs.at(-1) ?? first }];
    }
    const no = refused.find(({ report }) => report.blame === "adapter") ?? (pending.length === 0 ? refused[0] : undefined);
    if (no === undefined) return [];
    const problem = no.report.error ?? { code: "REFUSED", message: "a replica refused it without saying why" };
    return [{ kind: "refused", version: version.version, problem }];
  });
}

/**
 * One replica that the adapter's only open version waits for. Until this one reports something else, is not ready any more, or time is
 * up, another replica's report changes nothing, unless it says no. undefined: any report may change something.
 */
export function awaitedReplica(state: AdapterState, replicas: Iterable<ReplicaState>, now: number): string | undefined {
  const [version, another] = openVersions(state);
  if (version === undefined || another !== undefined || state.canary) return undefined;
  return bucketReplicas(version, state.engine, replicas, now).pending[0]?.replica;
}

/**
 * Runs whose version no replica can prove because the store is away from all of them, or because the engine's base is missing and no replica
 * is left, and why; null: nothing of the kind is known of this run.
 */
export function decideWaiting(
  state: AdapterState,
  replicas: Iterable<ReplicaState>,
  now: number,
  engine?: Pick<EngineRecord, "problem">,
): { runId: string; reason: { code: string; message: string } | null }[] {
  const all = [...replicas];
  const isAnyReady = readyReplicas(state.engine, all, now).length > 0;
  const ofRuns = openVersions(state).filter(({ checkpoint }) => !checkpoint);
  return ofRuns.map((version) => {
    const { runId } = version;
    if (!isAnyReady && engine?.problem) return { runId, reason: reasonOf(engine.problem) };
    const errors = bucketReplicas(version, state.engine, all, now).holders.map(({ report }) => report?.error ?? null);
    const [first] = errors;
    const isStoreAway = errors.every((error) => error !== null && storeIsAway.has(error.code));
    return { runId, reason: first && isStoreAway ? reasonOf(first) : null };
  });
}
const reasonOf = ({ code, message }: Problem): { code: string; message: string } => ({ code, message });
const storeIsAway: ReadonlySet<string> = new Set(["STORE_UNAVAILABLE", "STORE_REFUSED"]);
