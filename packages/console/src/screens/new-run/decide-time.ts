/** Pure: how long a training may take, from the last ones on the same base. */
import type { DatasetReport, RunState } from "@loraline/contracts";
import type { Wish } from "./decide-job.ts";

interface Estimate {
  ms: number;
  /** Runs that it is made of. */
  runs: number;
}

const mostRuns = 5;

const median = (values: readonly number[]): number => {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
};

/**
 * The time from the start of the training until the adapter is trained, without what it waits. Steps and what is around them are measured
 * apart, since the latter does not grow with the data.
 *
 * @param runs - newest first.
 * @returns undefined: no run on this base tells enough.
 */
export function estimateOf(
  wish: Pick<Wish, "base" | "method" | "epochs" | "maxSteps">,
  { records }: Pick<DatasetReport, "records">,
  runs: readonly RunState[],
): Estimate | undefined {
  const known = runs
    .filter(({ spec }) => spec.base === wish.base && (spec.method?.type ?? "supervised") === wish.method)
    .flatMap(({ startedAt, trained, tokens, lostAttempts, spec }) => {
      const sequences = tokens?.totals.sequences ?? 0;
      const epochs = spec.training?.num_train_epochs ?? 0;
      if (startedAt === null || trained === null || trained.steps === 0 || sequences === 0 || epochs === 0 || lostAttempts > 0) return [];
      const stepsMs =
        trained.tokensPerSecond === null || trained.tokensPerSecond <= 0 ? 0 : (1000 * trained.trainedTokens) / trained.tokensPerSecond;
      const wholeMs = Date.parse(trained.at) - Date.parse(startedAt);
      if (stepsMs <= 0 || wholeMs <= 0) return [];
      const records = (spec.training?.max_steps ?? -1) > 0 ? undefined : sequences * epochs;
      return [
        {
          msPerStep: stepsMs / trained.steps,
          msPerRecord: records === undefined ? undefined : stepsMs / records,
          aroundMs: Math.max(0, wholeMs - stepsMs),
        },
      ];
    })
    .slice(0, mostRuns);
  const perRecord = known.flatMap(({ msPerRecord }) => msPerRecord ?? []);
  const [epochs, maxSteps] = [Number(wish.epochs) || 3, Number(wish.maxSteps) || Number.POSITIVE_INFINITY];
  const byRecords = perRecord.length === 0 ? Number.POSITIVE_INFINITY : median(perRecord) * records * epochs;
  const bySteps = known.length === 0 ? Number.POSITIVE_INFINITY : median(known.map(({ msPerStep }) => msPerStep)) * maxSteps;
  const steps = Math.min(byRecords, bySteps);
  return Number.isFinite(steps) ? { ms: steps + median(known.map(({ aroundMs }) => aroundMs)), runs: known.length } : undefined;
}

/** As exact as an estimate is: seconds in tens, minutes in whole ones. */
export const roughly = (ms: number): number =>
  ms < 60_000
    ? Math.max(10_000, Math.ceil(ms / 10_000) * 10_000)
    : ms < 7_200_000
      ? Math.round(ms / 60_000) * 60_000
      : Math.round(ms / 600_000) * 600_000;
