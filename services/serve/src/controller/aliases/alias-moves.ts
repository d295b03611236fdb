/** Pure: moves of the alias and of its canary, each with its line in the history; and who may go afterwards. */
import { type AdapterState, type AdapterVersion, type CanarySettings, defaultKeep, type Problem } from "@loraline/contracts";
import { sameRows } from "../versions/decide-gate.ts";

type Move = AdapterState["history"][number];

/** Who moved it, why and when. */
export interface Cause {
  by: string | null;
  reason: string;
  /** ISO 8601. */
  at: string;
  /** Sequence of the command's message. */
  command?: number;
}

/**
 * Retires old versions. Stay loaded: the newest that serve, as many as the adapter's `keep` says, the promoted one, the one a rollback would go to, the canary's,
 * and all that have not been served yet, for somebody waits for them.
 */
export function retireOld(state: AdapterState): AdapterState {
  const served = state.versions.filter(({ status, servedAt }) => status === "desired" && servedAt !== null);
  const newest = state.keep === "all" ? served : served.slice(-(state.keep ?? defaultKeep));
  const kept = new Set(newest.map(({ version }) => version));
  for (const version of [state.alias, rollbackTarget(state), state.canary?.version]) if (typeof version === "number") kept.add(version);
  const retired = new Set(served.filter(({ version }) => !kept.has(version)).map(({ version }) => version));
  if (retired.size === 0) return state;
  const versions = state.versions.map((known): AdapterVersion => (retired.has(known.version) ? { ...known, status: "retired" } : known));
  const over = versions.filter(({ status }) => status !== "desired");
  const forgotten = new Set(over.slice(0, Math.max(0, over.length - overKept)));
  return { ...state, versions: versions.filter((known) => !forgotten.has(known)) };
}

/** The version before the promoted one. */
export const rollbackTarget = ({ alias, versions }: AdapterState): number | undefined =>
  alias === null
    ? undefined
    : versions.findLast(({ version, status, servedAt }) => version < alias && status === "desired" && servedAt !== null)?.version;

/** Lines that are kept of the history, and versions that are kept though they are over: an entry must not grow for ever. */
export const linesKept = 300;
export const overKept = 100;

/** Number of the last move, from 1; what was written before moves had numbers has all of them. */
export const lastMove = ({ history }: AdapterState): number => history.at(-1)?.n ?? history.length;

export const withLine = (state: AdapterState, line: Move): AdapterState => ({
  ...state,
  history: [...state.history, { ...line, n: lastMove(state) + 1 }].slice(-linesKept),
});

/** The alias on another version. A canary that is under way is over with that. */
export function moveAlias(state: AdapterState, to: number, cause: Cause): AdapterState {
  const kind: Move["kind"] = state.alias !== null && to < state.alias ? "rolledback" : "promoted";
  const over =
    state.canary?.version === to
      ? endCanary(state, "promoted", cause)
      : endCanary(state, "superseded", { ...cause, reason: `version ${to} was promoted meanwhile` });
  return retireOld(withLine({ ...over, alias: to }, { from: state.alias, to, kind, ...cause }));
}

/**
 * The version gets the first step's share of the alias's users. It takes the place of another canary. Where no version is promoted,
 * there is nothing to compare it with: call `moveAlias` then.
 */
export function startCanary(state: AdapterState, version: number, settings: CanarySettings, cause: Cause): AdapterState {
  const { alias: from } = state;
  if (from === null) return moveAlias(state, version, cause);
  const over = endCanary(state, "superseded", { ...cause, reason: `a canary of version ${version} began` });
  const share = settings.steps[0] ?? 0;
  const { at, by } = cause;
  const canary = { version, from, step: 0, share, since: at, startedAt: at, by, settings, baseline: {}, unprovenSince: null };
  return retireOld(withLine({ ...over, canary }, { from, to: version, kind: "canary-started", share, ...cause }));
}

/** Everybody is back on the promoted version, or will be on the canary's; without a canary nothing changes. */
export function endCanary(
  state: AdapterState,
  outcome: NonNullable<Move["outcome"]>,
  { code, ...cause }: Cause & { code?: string },
): AdapterState {
  const { canary } = state;
  if (!canary) return state;
  const line: Move = {
    from: canary.from,
    to: canary.version,
    kind: "canary-ended",
    outcome,
    ...(code === undefined ? {} : { code }),
    ...cause,
  };
  return withLine({ ...state, canary: null }, line);
}

/** A canary that may not even begin, told as one that ended. */
export const refuseCanary = (
  state: AdapterState,
  version: number,
  { code, message }: Problem,
  cause: Omit<Cause, "reason">,
): AdapterState =>
  withLine(state, { from: state.alias, to: version, kind: "canary-ended", outcome: "rolledback", code, ...cause, reason: message });

/** Held-out loss of a canary's version against the promoted one's, when its settings ask for that. */
export function judgeCanaryLoss(
  { versions, alias }: AdapterState,
  { version, evaluation }: Pick<AdapterVersion, "version" | "evaluation">,
  { max_loss_increase: limit }: CanarySettings,
): Problem | undefined {
  const promoted = versions.find((known) => known.version === alias);
  if (limit === undefined || promoted === undefined) return undefined;
  const param = "canary.max_loss_increase";
  if (!evaluation || !promoted.evaluation || !sameRows(evaluation, promoted.evaluation)) {
    const message = `the canary of version ${version} cannot be judged by held-out loss: it was not evaluated on the same rows as version ${promoted.version}. Give both runs the same validation file, or leave out max_loss_increase.`;
    return { code: "CANARY_LOSS_NOT_COMPARABLE", param, message };
  }
  const increase = evaluation.adapter_loss - promoted.evaluation.adapter_loss;
  if (increase <= limit) return undefined;
  const message = `held-out loss of version ${version} is ${evaluation.adapter_loss.toFixed(4)}, ${increase.toFixed(4)} above that of version ${promoted.version} on the same ${evaluation.rows} rows; at most ${limit} is allowed.`;
  return { code: "CANARY_LOSS", param, message };
}
