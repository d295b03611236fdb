/** Pure: how the versions of one adapter come, go, and carry its alias. Every function may be applied again to its own result. */
import type { AdapterState, AdapterVersion } from "@loraline/contracts";
import type { Convergence } from "./decide-convergence.ts";
import { engineNameOf } from "./engine-names.ts";

/** Newest versions that stay loaded beside the promoted one and the one before it. */
export const versionsKept = 3;

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

/* convergence, as decide-convergence.ts found it */

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

/** The alias on another version, with the move in the history; what nobody needs any more is let go of. */
export const moveAlias = (
  state: AdapterState,
  move: { to: number; by: string | null; reason: string; at: string; command?: number },
): AdapterState => {
  const kind: Move["kind"] = state.alias !== null && move.to < state.alias ? "rolledback" : "promoted";
  return retireOld({ ...state, alias: move.to, history: [...state.history, { from: state.alias, kind, ...move }] });
};
