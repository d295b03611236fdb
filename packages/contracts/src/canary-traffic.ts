/** Pure: sums up the gateways' reports about a canary since its step began. Used by serve, which decides, and by the gateway, which shows it. */
import type { CanaryState, TrafficState } from "./state.ts";

/** LoRA names of the canary's version and of the promoted one. */
interface CanaryNames {
  version: string;
  from: string;
}

/** The traffic of one of the two versions, of all gateways together. */
export interface CanarySide {
  /** Answers since the step began. */
  requests: number;
  /** Those of them that failed. */
  errors: number;
  /** Number of answers in the gateways' sliding windows, from which `firstByteP95Ms` is taken. */
  recent: number;
  /** Mean of the gateways' 95th percentiles, weighted by their requests; null: no recent request. */
  firstByteP95Ms: number | null;
}

type Baseline = CanaryState["baseline"];
const sides = ["version", "from"] as const;

/** A gateway's percentiles count only if its report is not older than this: they describe its last minute. */
const recentMs = 15_000;

const isRecent = (report: TrafficState, now: number): boolean => now - Date.parse(report.at) < recentMs;

const totalOf = ({ engines }: TrafficState, name: string) => engines.find(({ engineName }) => engineName === name)?.total;

/** The counts until now: the baseline of a step that begins. */
export function canaryBaseline(names: CanaryNames, reports: Iterable<TrafficState>): Baseline {
  const baseline: Baseline = {};
  for (const report of reports) {
    for (const side of sides) {
      const total = totalOf(report, names[side]);
      if (total !== undefined)
        baseline[report.gateway] = { ...baseline[report.gateway], [side]: { requests: total.requests, errors: total.errors } };
    }
  }
  return baseline;
}

/**
 * @param reports - the newest report of each gateway, also of gateways that are gone, because their counts are still right.
 * @returns `unknown`: totals of gateways that began to count before the step and are not in the baseline, so that their part in the step
 * is unknown. The caller adds them to the baseline; what these gateways count from then on is judged.
 */
export function canaryTraffic(
  canary: Pick<CanaryState, "baseline" | "since">,
  names: CanaryNames,
  reports: Iterable<TrafficState>,
  now: number,
): Record<(typeof sides)[number], CanarySide> & { unknown: Baseline } {
  const side = (): CanarySide => ({ requests: 0, errors: 0, recent: 0, firstByteP95Ms: null });
  const found = { version: side(), from: side() };
  const unknown: Baseline = {};
  for (const report of reports) {
    for (const name of sides) {
      const counted = report.engines.find(({ engineName }) => engineName === names[name]);
      if (counted === undefined) continue;
      const { total, window } = counted;
      const sum = found[name];
      if (isRecent(report, now) && window.firstByteP95Ms !== null && window.requests > 0) {
        const before = (sum.firstByteP95Ms ?? 0) * sum.recent;
        sum.recent += window.requests;
        sum.firstByteP95Ms = (before + window.firstByteP95Ms * window.requests) / sum.recent;
      }
      const before = canary.baseline[report.gateway]?.[name];
      const isNew = Date.parse(total.since ?? "") >= Date.parse(canary.since);
      if (before === undefined || before === null) {
        if (!isNew) {
          unknown[report.gateway] = { ...unknown[report.gateway], [name]: { requests: total.requests, errors: total.errors } };
          continue;
        }
        sum.requests += total.requests;
        sum.errors += total.errors;
      } else {
        // A total that is lower than before: the gateway had forgotten the name, and began to count from zero again.
        const anew = total.requests < before.requests;
        sum.requests += anew ? total.requests : total.requests - before.requests;
        sum.errors += anew ? total.errors : Math.max(0, total.errors - before.errors);
      }
    }
  }
  return { ...found, unknown };
}

/**
 * How many of a name's recent answers were surely slower than this, over all gateways. A gateway tells two percentiles of its answers, so the
 * true number may be higher.
 */
export function surelySlower(name: string, reports: Iterable<TrafficState>, { limitMs, now }: { limitMs: number; now: number }): number {
  let slower = 0;
  for (const report of reports) {
    const window = report.engines.find(({ engineName }) => engineName === name)?.window;
    if (window === undefined || !isRecent(report, now)) continue;
    const { requests, firstByteP50Ms, firstByteP95Ms } = window;
    // By nearest rank: the percentile is itself one of the answers, and those above it are not faster.
    const fromRank = (share: number): number => requests - Math.ceil(requests * share) + 1;
    if ((firstByteP50Ms ?? 0) > limitMs) slower += fromRank(0.5);
    else if ((firstByteP95Ms ?? 0) > limitMs) slower += fromRank(0.95);
  }
  return slower;
}
