/** Pure: what a command does to the alias of an adapter, and to its canary. */
import type { AdapterState, CanarySettings, Problem, ReplicaState } from "@loraline/contracts";
import { endCanary, judgeCanaryLoss, moveAlias, startCanary } from "./alias-moves.ts";
import { isMove } from "./history-lines.ts";
import { provenOn, readyReplicas } from "../versions/bucket-replicas.ts";
import { applyKeep, dropAwaiting, rollbackTarget, wantVersion } from "../versions/decide-keep.ts";

export interface AliasCommand {
  kind: "promote" | "rollback";
  /** null: only for a rollback. With a canary under way, an end of the canary; else the version before the promoted one. */
  version: number | null;
  /** Step by step; only for a promotion. */
  canary?: CanarySettings | null | undefined;
  by: string | null;
  /** Sequence of the message: the same command moves the alias once. */
  seq: number;
}

type AliasDecision =
  | { kind: "move"; state: AdapterState }
  /** The version was retired: it is loaded again first, and `decideAwaiting` moves the alias when it is proven. */
  | { kind: "await"; state: AdapterState }
  | { kind: "nothing"; why: string }
  | { kind: "reject"; problem: Problem };

/**
 * What a command does to the alias. It only ever goes to a version that some ready replica has proven; one that was retired is loaded
 * again first. While a canary is under way,
 * any move of the alias ends it, and so does what would leave the alias where it is: a rollback without a version, and a
 * promotion of the version that is promoted.
 */
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
  if (state.awaiting?.command === command.seq) return { kind: "nothing", why: "this command waits for its version already" };
  // Another process may have carried out a later command while this one was tried again.
  const later = Math.max(state.awaiting?.command ?? 0, ...state.history.filter(isMove).map((move) => move.command ?? 0));
  if (later > command.seq) return { kind: "nothing", why: "a later command was followed already" };

  if (command.kind === "rollback" && state.alias === null)
    return reject("NOTHING_PROMOTED", `no version of "${name}" is promoted, so there is nothing to roll back.`, null);
  const { at, by, seq } = { at: new Date(now).toISOString(), ...command };
  const to = command.version ?? (state.canary ? state.alias : rollbackTarget(state)) ?? undefined;
  if (to === undefined) return reject("NO_EARLIER_VERSION", `"${name}" has no served version before version ${state.alias}.`, null);
  const target = state.versions.find(({ version }) => version === to);
  if (target === undefined) {
    const known = state.versions.map(({ version }) => version).join(", ");
    return reject("VERSION_UNKNOWN", `"${name}" has no version ${to}; it has ${known}.`);
  }
  if (to === state.alias) {
    if (!state.canary && !state.awaiting) return { kind: "nothing", why: `version ${to} is promoted already` };
    const outcome = command.kind === "rollback" ? "rolledback" : "superseded";
    const reason = command.kind === "rollback" ? "rollback requested" : `version ${to} stays, as requested`;
    const cause = { by, reason, at, command: seq };
    return { kind: "move", state: applyKeep(dropAwaiting(endCanary(state, outcome, cause), { ...cause, code: "SUPERSEDED" }), at) };
  }
  if (command.kind === "rollback" && state.alias !== null && to > state.alias) {
    return reject("NOT_EARLIER", `version ${to} of "${name}" comes after the promoted version ${state.alias}; promote it instead.`);
  }
  if (target.status === "refused")
    return reject("VERSION_REFUSED", `version ${to} of "${name}" was refused: ${target.reason?.message ?? "no reason is known"}`);
  if (target.status === "deleted")
    return reject("VERSION_DELETED", `version ${to} of "${name}" cannot be promoted: ${target.reason?.message ?? "it was deleted"}`);
  const problem = command.canary && judgeCanaryLoss(state, target, command.canary);
  if (problem) return { kind: "reject", problem };
  const ready = readyReplicas(state.engine, replicas, now);
  if (provenOn(target, ready) === 0) {
    if (target.status === "retired" || (target.wanted && target.servedAt !== null)) {
      const { kind, canary } = command;
      const dropped = dropAwaiting(state, { by, reason: `version ${to} was asked for meanwhile`, at, code: "SUPERSEDED" });
      const loading = wantVersion(dropped, to, { by, reason: kind === "rollback" ? "rollback requested" : "promotion requested", at });
      return { kind: "await", state: { ...loading, awaiting: { kind, version: to, canary, by, command: seq, since: at } } };
    }
    return reject(
      "VERSION_NOT_PROVEN",
      `version ${to} of "${name}" is not proven on any of ${ready.length} ready replicas of engine "${state.engine}" now. Try again when it is.`,
    );
  }
  if (command.canary) {
    return { kind: "move", state: startCanary(state, to, command.canary, { by, reason: "canary requested", at, command: seq }) };
  }
  const reason = command.kind === "rollback" ? "rollback requested" : "promotion requested";
  return { kind: "move", state: moveAlias(state, to, { by, reason, at, command: seq }) };
}
