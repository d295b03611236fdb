/** Pure: what becomes of a move of the alias that waits until its version, which was retired, is proven again. */
import type { AdapterState, ReplicaState } from "@loraline/contracts";
import { dropAwaiting } from "../versions/decide-keep.ts";
import { provenOn, readyReplicas } from "../versions/bucket-replicas.ts";
import { decideAlias } from "./decide-alias.ts";

/** A version that no replica has proven by then is not waited for any longer. */
export const awaitMs = 15 * 60_000;

/** @returns undefined: it waits on. */
export function decideAwaiting(
  state: AdapterState,
  { name, replicas, now }: { name: string; replicas: Iterable<ReplicaState>; now: number },
): AdapterState | undefined {
  const { awaiting } = state;
  if (!awaiting) return undefined;
  const { kind, version, canary, by, command, since } = awaiting;
  const drop = (code: string, reason: string): AdapterState => dropAwaiting(state, { code, by, reason, at: new Date(now).toISOString() });
  const target = state.versions.find((known) => known.version === version);
  if (target === undefined || target.status === "refused" || target.status === "deleted")
    return drop("VERSION_GONE", `version ${version} is ${target?.status ?? "gone"}`);
  const all = [...replicas];
  if (provenOn(target, readyReplicas(state.engine, all, now)) === 0) {
    const seconds = Math.round((now - Date.parse(since)) / 1000);
    return seconds * 1000 < awaitMs
      ? undefined
      : drop("VERSION_NOT_PROVEN", `version ${version} was proven on no ready replica within ${seconds} s`);
  }
  const decision = decideAlias({ ...state, awaiting: null }, { kind, version, canary, by, seq: command }, { name, replicas: all, now });
  if (decision.kind === "reject") return drop(decision.problem.code, decision.problem.message);
  return decision.kind === "nothing" ? { ...state, awaiting: null } : decision.state;
}
