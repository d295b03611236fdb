/** Whether a tenant may have one more adapter. */
import { everyKeyOf, type Problem } from "@loraline/contracts";
import type { KvBucket } from "../kv.ts";

/** @param adapters - KV `adapters`. */
export const countAdapters = async (adapters: Pick<KvBucket<unknown>, "sizes">, tenant: string): Promise<number> =>
  (await adapters.sizes(everyKeyOf(tenant))).length;

/** @param adapters - KV `adapters`, in which the adapter is not yet. */
export async function judgeNewAdapter(
  adapters: Pick<KvBucket<unknown>, "keys" | "sizes">,
  { tenant, adapter, most }: { tenant: string; adapter: string; most: number | null },
): Promise<Problem | undefined> {
  if (most === null) return undefined;
  if ((await adapters.keys(everyKeyOf(tenant))).length < most) return undefined;
  // Those of adapters that were deleted are among the keys.
  const used = await countAdapters(adapters, tenant);
  if (used < most) return undefined;
  return {
    code: "QUOTA_ADAPTERS",
    param: "adapter",
    message: `adapter: "${adapter}" would be a new adapter; this tenant has ${used}, and its quota is ${most}. Train a new version of one that exists, delete one, or have the operator raise the quota.`,
  };
}
