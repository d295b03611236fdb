/** Whether a tenant may request one more run. */
import { type buckets, type Problem } from "@loraline/contracts";
import type { z } from "zod";
import type { KvBucket } from "../kv.ts";

type Training = z.output<typeof buckets.training.value>;

/** @param training - KV `training`. @param most - the quota runsWaiting. */
export async function judgeWaitingRuns(
  training: Pick<KvBucket<Training>, "get">,
  { tenant, most }: { tenant: string; most: number | null },
): Promise<Problem | undefined> {
  if (most === null) return undefined;
  const waiting = (await training.get(tenant))?.value.waiting ?? 0;
  if (waiting < most) return undefined;
  return {
    code: "QUOTA_RUNS_WAITING",
    param: null,
    message: `${waiting} runs of this tenant wait already, and its quota runsWaiting is ${most}. Try again when some have ended.`,
  };
}
