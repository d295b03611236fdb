/** Whether a tenant may have one more dataset. */
import { buckets, everyKeyOf, type Problem } from "@loraline/contracts";
import type { Bus } from "../bus.ts";

interface DatasetQuota {
  used(tenant: string): Promise<number>;
  /**
   * @param isCounted - whether the dataset in question is among the tenant's datasets already.
   * @returns why the tenant may not have it; undefined: it may.
   */
  judge(tenant: string, most: number | null, isCounted: boolean): Promise<Problem | undefined>;
}

/** A count that is far from the quota is taken again only after so long; listing many keys takes its time. */
const freshMs = 5000;
const farFrom = 0.9;

export async function createDatasetQuota(bus: Pick<Bus, "bucket">): Promise<DatasetQuota> {
  const datasets = await bus.bucket(buckets.datasets);
  /** The datasets that there were, and those that were let in since. */
  const counts = new Map<string, { count: number; at: number }>();
  const used = async (tenant: string): Promise<number> => (await datasets.keys(everyKeyOf(tenant))).length;
  return {
    used,
    async judge(tenant, most, isCounted) {
      if (most === null) return undefined;
      const known = counts.get(tenant);
      if (known !== undefined && performance.now() - known.at < freshMs && known.count < most * farFrom) {
        known.count += 1;
        return undefined;
      }
      const others = (await used(tenant)) - (isCounted ? 1 : 0);
      counts.set(tenant, { count: others + 1, at: performance.now() });
      if (others < most) return undefined;
      return {
        code: "QUOTA_DATASETS",
        param: null,
        message: `this tenant has ${others} datasets, and its quota is ${most}. Delete some that are not needed any more, or have the operator raise the quota datasets.`,
      };
    },
  };
}
