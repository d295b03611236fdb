/**
 * Pure: decides the next step of a canary.
 *
 *   started ─► step 1 ─► step 2 ─► … ─► promoted: the alias moves to it
 *                │ ▲       │
 *   not proven   ▼ │       └── more errors, slower, gone, not proven for long ──► rolled back: everybody is back
 *              paused
 *
 * A step lasts until its time has passed and it has enough answers. It is judged by the answers that were counted since it began.
 */
import {
  type AdapterState,
  type AdapterVersion,
  canaryBaseline,
  type CanarySide,
  type CanaryState,
  canaryTraffic,
  surelySlower,
  type TrafficState,
} from "@loraline/contracts";
import { endCanary, moveAlias } from "./alias-moves.ts";
import { withLine } from "./history-lines.ts";

export interface CanaryView {
  /** The newest report of each gateway, also of gateways that are gone. */
  traffic: readonly TrafficState[];
  /** Number of ready replicas on which the version is proven now. */
  provenOn(version: AdapterVersion): number;
  now: number;
}

export type CanaryDecision =
  | { kind: "wait"; why: string }
  /** Changes the adapter's entry. `step`, `promote` and `rollback` also add a line to its history; `note`, `pause` and `resume` do not. */
  | { kind: "note" | "pause" | "resume" | "step" | "promote" | "rollback"; state: AdapterState };

/**
 * A canary that is proven on no replica for this long, while the promoted version is, is rolled back: it will hardly recover by itself.
 * The time is longer than a restarted engine takes to load all its adapters. Meanwhile the canary is paused, which harms no user.
 */
export const provenWithinMs = 5 * 60_000;
/** With fewer answers than this in the gateways' windows a 95th percentile has no meaning. */
const enoughForPercentile = 10;
/** Differences in latency below this come from the machine, not from the version. Milliseconds. */
const latencySlackMs = 5;

/** Decides what to do now. Deciding again on the result changes nothing until time passes or new reports arrive. */
export function decideCanary(state: AdapterState, { traffic, provenOn, now }: CanaryView): CanaryDecision {
  const { canary } = state;
  if (!canary) return { kind: "wait", why: "no canary is under way" };
  const at = new Date(now).toISOString();
  const version = state.versions.find((known) => known.version === canary.version);
  const from = state.versions.find((known) => known.version === canary.from);
  const rollback = (code: string, reason: string): CanaryDecision => ({
    kind: "rollback",
    state: endCanary(state, "rolledback", { code, by: null, reason, at }),
  });
  const changed = (kind: "note" | "pause" | "resume", over: Partial<CanaryState>): CanaryDecision => ({
    kind,
    state: { ...state, canary: { ...canary, ...over } },
  });

  if (version === undefined || from === undefined || version.status !== "desired") {
    const why = version === undefined || from === undefined ? "gone" : version.status;
    return rollback("CANARY_VERSION_GONE", `version ${canary.version} is ${why}${version?.reason ? `: ${version.reason.message}` : ""}`);
  }

  if (provenOn(version) === 0) {
    if (!canary.unprovenSince) return changed("pause", { unprovenSince: at });
    const seconds = Math.round((now - Date.parse(canary.unprovenSince)) / 1000);
    if (provenOn(from) > 0 && seconds * 1000 >= provenWithinMs) {
      return rollback(
        "CANARY_NOT_PROVEN",
        `version ${canary.version} has been proven on no ready replica for ${seconds} s, while version ${canary.from} is`,
      );
    }
    return { kind: "wait", why: `paused: version ${canary.version} is proven on no ready replica` };
  }
  const names = { version: version.engineName, from: from.engineName };
  // Answers from before the pause were judged before it. After the pause the step begins again.
  if (canary.unprovenSince) return changed("resume", { unprovenSince: null, since: at, baseline: canaryBaseline(names, traffic) });

  const seen = canaryTraffic(canary, names, traffic, now);
  if (Object.keys(seen.unknown).length > 0) return changed("note", { baseline: mergeBaselines(canary.baseline, seen.unknown) });

  const slowerThan = (limitMs: number): number => surelySlower(names.version, traffic, { limitMs, now });
  const worse = judge(canary, seen.version, seen.from, slowerThan);
  if (worse !== undefined) return rollback(worse.code, worse.reason);

  const { steps, interval_s, min_requests } = canary.settings;
  const { requests, errors } = seen.version;
  const leftMs = Date.parse(canary.since) + interval_s * 1000 - now;
  if (leftMs > 0) return { kind: "wait", why: `step ${canary.step + 1} of ${steps.length} goes on for ${Math.ceil(leftMs / 1000)} s` };
  if (requests < min_requests) return { kind: "wait", why: `${requests} of ${min_requests} answers of step ${canary.step + 1} are there` };

  const passed = `step ${canary.step + 1} of ${steps.length} (${canary.share} %) passed: ${requests} answers, ${errors} failed${latencyTold(seen.version, seen.from)}`;
  const share = steps[canary.step + 1];
  if (share === undefined) return { kind: "promote", state: moveAlias(state, canary.version, { by: canary.by, reason: passed, at }) };
  const next: CanaryState = { ...canary, step: canary.step + 1, share, since: at, baseline: canaryBaseline(names, traffic) };
  const line = { from: canary.from, to: canary.version, kind: "canary-stepped" as const, share, by: canary.by, reason: passed, at };
  return { kind: "step", state: withLine({ ...state, canary: next }, line) };
}

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

function judge(
  { settings, version, from }: CanaryState,
  its: CanarySide,
  promoted: CanarySide,
  slowerThan: (limitMs: number) => number,
): { code: string; reason: string } | undefined {
  const { min_requests, max_error_rate, max_latency_ratio } = settings;
  const usual = promoted.requests === 0 ? 0 : promoted.errors / promoted.requests;
  // The rate is taken of at least `min_requests` answers, so a canary is rolled back early only when too many have failed already,
  // whatever the missing answers will be.
  const rate = its.errors / Math.max(1, its.requests, min_requests);
  if (rate > usual + max_error_rate) {
    return {
      code: "CANARY_ERRORS",
      reason: `${its.errors} of ${its.requests} answers of version ${version} failed, ${percent(usual)} of version ${from}'s do; at most ${percent(max_error_rate)} more are allowed of ${Math.max(its.requests, min_requests)}`,
    };
  }
  const [slow, usualMs] = [its.firstByteP95Ms, promoted.firstByteP95Ms];
  if (slow === null || usualMs === null || its.recent < enoughForPercentile || promoted.recent < enoughForPercentile) return undefined;
  const limitMs = Math.max(usualMs * max_latency_ratio, usualMs + latencySlackMs);
  // The percentile is the mean of the gateways' own ones. Of few answers it is the slowest one, such as the first of a process that has just started.
  const slower = slowerThan(limitMs);
  if (slow <= limitMs || slower < 2 || slower <= its.recent * 0.05) return undefined;
  return {
    code: "CANARY_SLOW",
    reason: `the first byte of version ${version} takes ${Math.round(slow)} ms (95th percentile), that of version ${from} ${Math.round(usualMs)} ms; at most ${max_latency_ratio} times as long is allowed`,
  };
}

const latencyTold = (its: CanarySide, promoted: CanarySide): string =>
  its.firstByteP95Ms === null || promoted.firstByteP95Ms === null
    ? ""
    : `; first byte p95 ${Math.round(its.firstByteP95Ms)} ms against ${Math.round(promoted.firstByteP95Ms)} ms`;

function mergeBaselines(known: CanaryState["baseline"], learned: CanaryState["baseline"]): CanaryState["baseline"] {
  const merged = { ...known };
  for (const [gateway, counted] of Object.entries(learned)) merged[gateway] = { ...merged[gateway], ...counted };
  return merged;
}
