/** Pure: how the versions of one adapter come, go, and carry its alias. Every function may be applied again to its own result. */
import { type AdapterState, type AdapterVersion, canarySettings, type KeepPolicy, type Placement, type Problem } from "@loraline/contracts";
import { judgeCanaryLoss, moveAlias, refuseCanary, startCanary } from "../aliases/alias-moves.ts";
import { isMove } from "../aliases/history-lines.ts";
import type { Convergence } from "./decide-convergence.ts";
import { loraNameOf } from "../../lora-names.ts";
import { applyKeep } from "./decide-keep.ts";

export type NewVersion = Pick<
  AdapterVersion,
  | "digest"
  | "manifest"
  | "evidence"
  | "runId"
  | "checkpoint"
  | "wanted"
  | "rank"
  | "note"
  | "system"
  | "promote"
  | "canary"
  | "evaluation"
  | "lastStepAt"
  | "createdAt"
  | "trace"
  | "replicas"
> & {
  tenant: string;
  adapter: string;
  engine: string;
  base: string;
  /** Absent: as it is. */
  placement?: Placement | undefined;
  /** Absent: as it is. */
  keep?: KeepPolicy | undefined;
  /** Why it will never be served. Absent: it is to be loaded. */
  refused?: Problem | undefined;
};

/** Adds the version of a run or of a checkpoint, once: what has one keeps it. */
export function addVersion(state: AdapterState | undefined, added: NewVersion): AdapterState {
  const { tenant, adapter, engine, base, placement, keep, refused, ...facts } = added;
  const before: AdapterState = state ?? { tenant, adapter, engine, base, versions: [], alias: null, history: [] };
  const current: AdapterState = { ...before, ...(placement === undefined ? {} : { placement }), ...(keep === undefined ? {} : { keep }) };
  const own = added.checkpoint ? versionOfCheckpoint(before, added.checkpoint) : versionOfRun(before, added.runId);
  if (own !== undefined) return before;
  const version = Math.max(0, ...current.versions.map((known) => known.version)) + 1;
  const entry: AdapterVersion = {
    version,
    ...facts,
    engineName: loraNameOf({ tenant, adapter, version, digest: added.digest }),
    status: refused === undefined ? "desired" : "refused",
    reason: refused ?? null,
    servedAt: null,
  };
  return applyKeep({ ...current, versions: [...current.versions, entry] }, added.createdAt);
}

export const versionOfRun = (state: AdapterState | undefined, runId: string): AdapterVersion | undefined =>
  state?.versions.find((known) => known.runId === runId && !known.checkpoint);

export const versionOfCheckpoint = (
  state: AdapterState | undefined,
  { runId, step }: NonNullable<AdapterVersion["checkpoint"]>,
): AdapterVersion | undefined => state?.versions.find(({ checkpoint }) => checkpoint?.runId === runId && checkpoint.step === step);

/* convergence, as decide-convergence.ts found it */

/**
 * Marks a version as served. If its run asked for that and no later version was there before, the alias moves to it, or its canary
 * begins.
 */
export function applyServed(state: AdapterState, decided: Extract<Convergence, { kind: "served" }>, at: string): AdapterState {
  const found = state.versions.find(({ version }) => version === decided.version);
  if (found === undefined || found.status !== "desired" || found.servedAt !== null) return state;
  const served: AdapterState = {
    ...state,
    versions: state.versions.map((known) =>
      known === found ? { ...known, servedAt: decided.provenAt, servedOn: decided.replicas, servedOf: decided.of } : known,
    ),
  };
  // Not the alias but the highest it ever was: whoever rolled back from 4 to 2 does not want 3, which only took longer.
  const highest = Math.max(0, ...state.history.filter(isMove).map(({ to }) => to));
  if (found.promote === "manual" || found.version <= highest) return applyKeep(served, at, found.version);
  const replicas = `${decided.replicas === decided.of ? "" : `${decided.replicas} of `}${decided.of} ${decided.of === 1 ? "replica" : "replicas"}`;
  const cause = { by: null, reason: `proven on ${replicas}`, at };
  if (found.promote === "auto") return moveAlias(served, found.version, cause);
  const settings = found.canary ?? canarySettings.parse({});
  const problem = judgeCanaryLoss(served, found, settings);
  return problem === undefined
    ? startCanary(served, found.version, settings, cause)
    : applyKeep(refuseCanary(served, found.version, problem, cause), at, found.version);
}

/** Not the promoted one: a person may have moved the alias to it before every replica had it, and users would be left with none. */
export function applyRefused(state: AdapterState, decided: Extract<Convergence, { kind: "refused" }>): AdapterState {
  return {
    ...state,
    versions: state.versions.map((known) =>
      known.version === decided.version && known.status === "desired" && known.servedAt === null && known.version !== state.alias
        ? { ...known, status: "refused", reason: decided.problem }
        : known,
    ),
  };
}
