/** Pure: moves of the alias and of its canary, each with its line in the history. */
import type { AdapterState, AdapterVersion, CanarySettings, Problem } from "@loraline/contracts";
import { applyKeep, dropAwaiting } from "../versions/decide-keep.ts";
import { sameRows } from "../versions/decide-gate.ts";
import { type Cause, type Line, withLine } from "./history-lines.ts";

/** The alias on another version. A canary that is under way is over with that. */
export function moveAlias(state: AdapterState, to: number, cause: Cause): AdapterState {
  // A canary that passed was promoted, also where it is an older version.
  const isCanary = state.canary?.version === to;
  const kind: Line["kind"] = state.alias !== null && to < state.alias && !isCanary ? "rolledback" : "promoted";
  const over = isCanary
    ? endCanary(state, "promoted", cause)
    : endCanary(state, "superseded", { ...cause, reason: `version ${to} was promoted meanwhile` });
  return applyKeep(withLine({ ...withoutAwaiting(over, to, cause), alias: to }, { from: state.alias, to, kind, ...cause }), cause.at, to);
}

/**
 * The version gets the first step's share of the alias's users. It takes the place of another canary. Where no version is promoted,
 * there is nothing to compare it with: call `moveAlias` then.
 */
export function startCanary(state: AdapterState, version: number, settings: CanarySettings, cause: Cause): AdapterState {
  const { alias: from } = state;
  if (from === null) return moveAlias(state, version, cause);
  const ended = endCanary(state, "superseded", { ...cause, reason: `a canary of version ${version} began` });
  const over = withoutAwaiting(ended, version, cause);
  const share = settings.steps[0] ?? 0;
  const { at, by } = cause;
  const canary = { version, from, step: 0, share, since: at, startedAt: at, by, settings, baseline: {}, unprovenSince: null };
  return applyKeep(withLine({ ...over, canary }, { from, to: version, kind: "canary-started", share, ...cause }), at, version);
}

/** The last word counts: a move that waited for another version is over. */
const withoutAwaiting = (state: AdapterState, to: number, { command: _command, ...cause }: Cause): AdapterState =>
  state.awaiting?.version === to
    ? { ...state, awaiting: null }
    : dropAwaiting(state, { ...cause, code: "SUPERSEDED", reason: `version ${to} was asked for, or proven, meanwhile` });

/** Everybody is back on the promoted version, or will be on the canary's; without a canary nothing changes. */
export function endCanary(
  state: AdapterState,
  outcome: NonNullable<Line["outcome"]>,
  { code, ...cause }: Cause & { code?: string },
): AdapterState {
  const { canary } = state;
  if (!canary) return state;
  const line: Line = {
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
