/** Pure: what a command does to the alias of an adapter. */
import type { AdapterState, Problem, ReplicaState } from "@loraline/contracts";
import { readyReplicas } from "./decide-convergence.ts";
import { moveAlias, rollbackTarget, versionsKept } from "./decide-versions.ts";

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
  const ready = readyReplicas(state.engine, replicas, now);
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
