/** Pure: how the versions of one adapter come, go, and carry its alias. Every function may be applied again to its own result. */
import type { AdapterState, AdapterVersion, Problem, ReplicaState } from "@loraline/contracts";
import { engineNameOf } from "./engine-names.ts";

/** Newest versions that stay loaded beside the promoted one and the one before it. */
export const versionsKept = 3;
/** A report older than this is of an agent that is gone; the TTL of KV `replicas`. */
export const replicaFreshMs = 15_000;

export type NewVersion = Pick<
  AdapterVersion,
  "digest" | "manifest" | "evidence" | "runId" | "rank" | "promote" | "evaluation" | "lastStepAt" | "createdAt" | "trace"
> & {
  tenant: string;
  adapter: string;
  engine: string;
  base: string;
};

/** Adds the version of a run, once: a run that has one keeps it. */
export function addVersion(state: AdapterState | undefined, added: NewVersion): AdapterState {
  const { tenant, adapter, engine, base, ...facts } = added;
  const current: AdapterState = state ?? { tenant, adapter, engine, base, versions: [], alias: null, history: [] };
  if (versionOfRun(current, added.runId) !== undefined) return current;
  const version = Math.max(0, ...current.versions.map((known) => known.version)) + 1;
  const entry: AdapterVersion = {
    version,
    ...facts,
    engineName: engineNameOf({ tenant, adapter, version, digest: added.digest }),
    status: "desired",
    reason: null,
    servedAt: null,
  };
  return retireOld({ ...current, versions: [...current.versions, entry] });
}

export const versionOfRun = (state: AdapterState | undefined, runId: string): AdapterVersion | undefined =>
  state?.versions.find((known) => known.runId === runId);

/**
 * Lets go of old versions. Stay: the newest three that serve, the promoted one, the one a rollback would go to, and all
 * that have not been served yet, for somebody waits for them.
 */
export function retireOld(state: AdapterState): AdapterState {
  const served = state.versions.filter(({ status, servedAt }) => status === "desired" && servedAt !== null);
  const kept = new Set(served.slice(-versionsKept).map(({ version }) => version));
  if (state.alias !== null) kept.add(state.alias);
  const before = rollbackTarget(state);
  if (before !== undefined) kept.add(before);
  const retired = new Set(served.filter(({ version }) => !kept.has(version)).map(({ version }) => version));
  if (retired.size === 0) return state;
  return { ...state, versions: state.versions.map((known) => (retired.has(known.version) ? { ...known, status: "retired" } : known)) };
}

/** The version before the promoted one. */
export const rollbackTarget = ({ alias, versions }: AdapterState): number | undefined =>
  alias === null
    ? undefined
    : versions.findLast(({ version, status, servedAt }) => version < alias && status === "desired" && servedAt !== null)?.version;

/* convergence */

export type Convergence =
  | { kind: "served"; version: number; replicas: number; provenAt: string }
  | { kind: "refused"; version: number; problem: Problem };

const isFresh = ({ at }: ReplicaState, now: number): boolean => now - Date.parse(at) < replicaFreshMs;

/**
 * What the replicas' reports settle. A version is served when every ready replica has these bytes proven, and refused when one
 * says that it never will; after that it stays served, and a replica that cannot hold it is simply not asked.
 */
export function decideConvergence(state: AdapterState, replicas: Iterable<ReplicaState>, now: number): Convergence[] {
  const ready = [...replicas].filter((replica) => replica.engine === state.engine && replica.ready && isFresh(replica, now));
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

/** Marks a version as served and moves the alias to it, if its run asked for that and no later version was there before. */
export function applyServed(state: AdapterState, settled: Extract<Convergence, { kind: "served" }>, at: string): AdapterState {
  const found = state.versions.find(({ version }) => version === settled.version);
  if (found === undefined || found.status !== "desired" || found.servedAt !== null) return state;
  const served: AdapterState = {
    ...state,
    versions: state.versions.map((known) => (known === found ? { ...known, servedAt: settled.provenAt } : known)),
  };
  // Not the alias but the highest it ever was: whoever rolled back from 4 to 2 does not want 3, which only took longer.
  const highest = Math.max(0, ...state.history.map(({ to }) => to));
  if (found.promote !== "auto" || found.version <= highest) return retireOld(served);
  const replicas = `${settled.replicas} ${settled.replicas === 1 ? "replica" : "replicas"}`;
  return moveAlias(served, { to: found.version, by: null, reason: `proven on ${replicas}`, at });
}

export function applyRefused(state: AdapterState, settled: Extract<Convergence, { kind: "refused" }>): AdapterState {
  return {
    ...state,
    versions: state.versions.map((known) =>
      known.version === settled.version && known.status === "desired" && known.servedAt === null
        ? { ...known, status: "refused", reason: settled.problem }
        : known,
    ),
  };
}

/* the alias */

type Move = AdapterState["history"][number];

const moveAlias = (
  state: AdapterState,
  move: { to: number; by: string | null; reason: string; at: string; command?: number },
): AdapterState => {
  const kind: Move["kind"] = state.alias !== null && move.to < state.alias ? "rolledback" : "promoted";
  return retireOld({ ...state, alias: move.to, history: [...state.history, { from: state.alias, kind, ...move }] });
};

export interface AliasCommand {
  kind: "promote" | "rollback";
  /** null: the version before the promoted one; only for a rollback. */
  version: number | null;
  by: string | null;
  /** Sequence of the message: the same command moves the alias once. */
  seq: number;
}

export type AliasDecision = { kind: "move"; state: AdapterState } | { kind: "nothing"; why: string } | { kind: "reject"; problem: Problem };

/** What a command does to the alias. It only ever goes to a version that some ready replica has proven. */
export function decideAlias(
  state: AdapterState | undefined,
  command: AliasCommand,
  { name, replicas, now }: { name: string; replicas: Iterable<ReplicaState>; now: number },
): AliasDecision {
  const reject = (code: string, message: string, param: string | null = "version"): AliasDecision => ({
    kind: "reject",
    problem: { code, message, param },
  });
  if (state === undefined || state.versions.length === 0) return reject("ADAPTER_UNKNOWN", `there is no adapter "${name}".`, null);
  if (state.history.some((move) => move.command === command.seq))
    return { kind: "nothing", why: "this command has moved the alias already" };

  if (command.kind === "rollback" && state.alias === null)
    return reject("NOTHING_PROMOTED", `no version of "${name}" is promoted, so there is nothing to roll back.`, null);
  const to = command.version ?? rollbackTarget(state);
  if (to === undefined) return reject("NO_EARLIER_VERSION", `"${name}" has no served version before version ${state.alias}.`, null);
  const target = state.versions.find(({ version }) => version === to);
  if (target === undefined) {
    const known = state.versions.map(({ version }) => version).join(", ");
    return reject("VERSION_UNKNOWN", `"${name}" has no version ${to}; it has ${known}.`);
  }
  if (to === state.alias) return { kind: "nothing", why: `version ${to} is promoted already` };
  if (command.kind === "rollback" && state.alias !== null && to > state.alias) {
    return reject("NOT_EARLIER", `version ${to} of "${name}" comes after the promoted version ${state.alias}; promote it instead.`);
  }
  if (target.status === "refused")
    return reject("VERSION_REFUSED", `version ${to} of "${name}" was refused: ${target.reason?.message ?? "no reason is known"}`);
  if (target.status === "retired") {
    return reject(
      "VERSION_RETIRED",
      `version ${to} of "${name}" is not loaded any more: the ${versionsKept} newest, the promoted one and the one before it are kept.`,
    );
  }
  const ready = [...replicas].filter((replica) => replica.engine === state.engine && replica.ready && isFresh(replica, now));
  const holds = (replica: ReplicaState): boolean =>
    replica.adapters.some(
      ({ engineName, digest, state: is }) => engineName === target.engineName && digest === target.digest && is === "proven",
    );
  if (!ready.some(holds)) {
    return reject(
      "VERSION_NOT_PROVEN",
      `version ${to} of "${name}" is not proven on any of ${ready.length} ready replicas of engine "${state.engine}" now. Try again when it is.`,
    );
  }
  const reason = command.kind === "rollback" ? "rollback requested" : "promotion requested";
  return { kind: "move", state: moveAlias(state, { to, by: command.by, reason, at: new Date(now).toISOString(), command: command.seq }) };
}
