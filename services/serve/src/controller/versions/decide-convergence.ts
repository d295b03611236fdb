/** Pure: what the replicas' reports settle about the versions of one adapter. */
import type { AdapterState, AdapterVersion, EngineRecord, Problem, ReplicaAdapter, ReplicaState } from "@loraline/contracts";

/** A report older than this is of an agent that is gone; the TTL of KV `replicas`. */
export const replicaFreshMs = 15_000;

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

/** Replicas of an engine that count now: ready, and heard of lately. */
export const readyReplicas = (engine: string, replicas: Iterable<ReplicaState>, now: number): ReplicaState[] =>
  [...replicas].filter((replica) => replica.engine === engine && replica.ready && now - Date.parse(replica.at) < replicaFreshMs);

/** How many of these replicas have the very bytes proven under the version's name. */
export const provenOn = ({ engineName, digest }: AdapterVersion, replicas: readonly ReplicaState[]): number =>
  replicas.filter(({ adapters }) =>
    adapters.some((held) => held.engineName === engineName && held.digest === digest && held.state === "proven"),
  ).length;

/** A replica that has not settled is not waited for any more, once another had the version proven for this long. */
export const laggardMs = 60_000;

/** Ready replicas that should hold a version: where placement put it, or all. */
export const holdersOf = ({ replicas: placed }: AdapterVersion, ready: readonly ReplicaState[]): ReplicaState[] =>
  placed === null || placed === undefined ? [...ready] : ready.filter(({ replica }) => placed.includes(replica));

/**
 * What the replicas' reports settle about versions that are not served yet.
 *
 * Served: every ready replica that should hold it has these bytes proven, except those that are in quarantine, that refuse what
 * another has proven (then it is the replica, not the bytes), or that are still at it a minute after the first.
 *
 * Refused: none has it proven, and either one found the fault in the files alone, or every replica that can tell says no. A replica
 * whose own trouble keeps it from telling (disk, network) has no vote.
 */
export function decideConvergence(state: AdapterState, replicas: Iterable<ReplicaState>, now: number): Convergence[] {
  const ready = readyReplicas(state.engine, replicas, now);
  return state.versions.flatMap((version): Convergence[] => {
    if (version.status !== "desired" || version.servedAt !== null) return [];
    const holders = holdersOf(version, ready);
    const reports = holders.map((replica) => reportOf(replica, version));
    const proofs = reports
      .flatMap((report) => (report?.state === "proven" && report.proof !== null ? [report.proof.provenAt] : []))
      .toSorted();
    const pending = reports.filter(isPending);
    const [first] = proofs;
    if (first !== undefined) {
      if (pending.length > 0 && now - Date.parse(first) < laggardMs) return [];
      return [{ kind: "served", version: version.version, replicas: proofs.length, of: holders.length, provenAt: proofs.at(-1) ?? first }];
    }
    const noes = reports.filter((report) => report?.state === "refused" || (report?.state === "quarantined" && report.blame !== "replica"));
    const told = noes.find((report) => report?.blame === "adapter") ?? (pending.length === 0 ? noes[0] : undefined);
    if (told === undefined) return [];
    const problem = told.error ?? { code: "REFUSED", message: "a replica refused it without saying why" };
    return [{ kind: "refused", version: version.version, problem }];
  });
}

/**
 * Pure: a replica of `replicas` that the adapter's one open version waits for. Until this one tells something else, is not ready any more,
 * or time is up, what others have proven settles nothing; only a refusal may. undefined: anything may settle something.
 */
export function awaitedReplica(state: AdapterState, replicas: Iterable<ReplicaState>, now: number): string | undefined {
  const open = state.versions.filter(({ status, servedAt }) => status === "desired" && servedAt === null);
  const [version] = open;
  if (version === undefined || open.length > 1 || state.canary) return undefined;
  return holdersOf(version, readyReplicas(state.engine, replicas, now)).find((replica) => isPending(reportOf(replica, version)))?.replica;
}

/**
 * Runs whose version no replica can prove because the store is away from all of them, or because the engine's base is missing and no replica
 * is left, and why; null: of this one nothing of the kind is known.
 */
export function decideWaiting(
  state: AdapterState,
  replicas: Iterable<ReplicaState>,
  now: number,
  engine?: Pick<EngineRecord, "problem">,
): { runId: string; reason: { code: string; message: string } | null }[] {
  const ready = readyReplicas(state.engine, replicas, now);
  return state.versions.flatMap((version) => {
    if (version.status !== "desired" || version.servedAt !== null) return [];
    const problems = holdersOf(version, ready).map((replica) => reportOf(replica, version)?.error ?? null);
    if (ready.length === 0 && engine?.problem) return [{ runId: version.runId, reason: said(engine.problem) }];
    const [first] = problems;
    const away = first !== null && first !== undefined && problems.every((problem) => problem !== null && storeIsAway.has(problem.code));
    return [{ runId: version.runId, reason: away ? said(first) : null }];
  });
}
const said = ({ code, message }: Problem): { code: string; message: string } => ({ code, message });
const storeIsAway: ReadonlySet<string> = new Set(["STORE_UNAVAILABLE", "STORE_REFUSED"]);

const reportOf = ({ adapters }: ReplicaState, version: AdapterVersion): ReplicaAdapter | undefined =>
  adapters.find(({ engineName, digest }) => engineName === version.engineName && digest === version.digest);

const isPending = (report: ReplicaAdapter | undefined): boolean =>
  report === undefined || report.state === "loading" || report.state === "retrying" || report.state === "draining";
