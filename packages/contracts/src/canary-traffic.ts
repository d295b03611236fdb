/** Pure: what the gateways' reports say about a canary since its step began. Read by serve, which decides, and by the gateway, which shows it. */
import type { CanaryState, TrafficState } from "./state.ts";

/** LoRA names of the canary's version and of the promoted one. */
interface CanaryNames {
  version: string;
  from: string;
}

/** One of the two versions, all gateways together. */
export interface CanarySide {
  /** Answers since the step began. */
  requests: number;
  /** Those of them that failed. */
  errors: number;
  /** What `firstByteP95Ms` is about: answers in the gateways' sliding windows. */
  recent: number;
  /** Mean of the gateways' 95th percentiles, weighted by their requests; null: no recent request. */
  firstByteP95Ms: number | null;
}

type Baseline = CanaryState["baseline"];
const sides = ["version", "from"] as const;

/** A gateway's percentiles are about its last minute; one that fell silent says nothing about now. */
const recentMs = 15_000;

const totalOf = ({ engines }: TrafficState, name: string) => engines.find(({ engineName }) => engineName === name)?.total;

/** What has been counted until now: the baseline of a step that begins. */
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
 * @param reports - the newest one of each gateway. Those of gateways that are gone belong here too: what they counted happened.
 * @returns `unknown`: what a gateway counted since before the step, of which the baseline does not tell how much then. It counts from
 * here on, once it is in the baseline.
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
    const isRecent = now - Date.parse(report.at) < recentMs;
    for (const name of sides) {
      const counted = report.engines.find(({ engineName }) => engineName === names[name]);
      if (counted === undefined) continue;
      const { total, window } = counted;
      const sum = found[name];
      if (isRecent && window.firstByteP95Ms !== null && window.requests > 0) {
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
        // Fewer than before: the gateway forgot the name meanwhile and counts anew.
        const anew = total.requests < before.requests;
        sum.requests += anew ? total.requests : total.requests - before.requests;
        sum.errors += anew ? total.errors : Math.max(0, total.errors - before.errors);
      }
    }
  }
  return { ...found, unknown };
}
