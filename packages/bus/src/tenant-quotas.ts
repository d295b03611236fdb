/** The quotas of each tenant, kept up to date from KV `limits`. */
import {
  adapterKey,
  buckets,
  judgeByQuotas,
  type LimitState,
  type Problem,
  type Quotas,
  quotaSettings,
  type QuotaSettings,
  quotasOf,
  type RunSpec,
} from "@loraline/contracts";
import { z } from "zod";
import type { Bus } from "./bus.ts";
import { judgeNewAdapter } from "./quotas/adapter-quota.ts";

/** Settings of a process that holds tenants to quotas: part of its schema for `loadEnv`. */
export const quotasEnv = {
  LORALINE_QUOTAS: z
    .string()
    .optional()
    .transform((text, context) => {
      try {
        return JSON.parse(text ?? "{}") as unknown;
      } catch (error) {
        context.addIssue(`is not JSON: ${(error as Error).message}`);
        return z.NEVER;
      }
    })
    .pipe(quotaSettings)
    .describe('JSON: {"default": {"gpusAtOnce": 16}, "tenants": {"acme": {"gpusAtOnce": 64}}}; null is no limit.'),
};

export interface TenantQuotas {
  of(tenant: string): Quotas;
}

/** Watches until the signal. Resolves when every entry that exists has been seen. */
export async function watchQuotas({
  bus,
  settings,
  signal,
  onChange = () => {},
}: {
  bus: Pick<Bus, "bucket">;
  settings: QuotaSettings;
  signal: AbortSignal;
  onChange?: (tenant: string) => void;
}): Promise<TenantQuotas> {
  const entries = new Map<string, LimitState>();
  const known = new Map<string, Quotas>();
  const bucket = await bus.bucket(buckets.limits);
  await new Promise<void>((resolve, reject) => {
    bucket
      .watch({
        // Keys of one part: the entries of adapters have two.
        filter: "*",
        signal,
        onChange(tenant, entry) {
          if (entry === undefined) entries.delete(tenant);
          else entries.set(tenant, entry);
          known.delete(tenant);
          onChange(tenant);
        },
        onReady: resolve,
      })
      .catch(reject);
  });
  return {
    of(tenant) {
      let quotas = known.get(tenant);
      if (quotas === undefined) known.set(tenant, (quotas = quotasOf(tenant, settings, entries.get(tenant))));
      return quotas;
    },
  };
}

/**
 * What of a run is over its tenant's quotas, except the number of runs that wait. A run for an adapter that exists makes a version of it,
 * which is free.
 */
export async function judgeRunByQuotas(
  bus: Pick<Bus, "bucket">,
  { tenant, spec, quotas }: { tenant: string; spec: RunSpec; quotas: Quotas },
): Promise<Problem[]> {
  const problems = judgeByQuotas(spec, quotas);
  const { adapter } = spec;
  const adapters = await bus.bucket(buckets.adapters);
  if (quotas.adapters === null || (await adapters.get(adapterKey({ tenant, adapter }))) !== undefined) return problems;
  const tooMany = await judgeNewAdapter(adapters, { tenant, adapter, most: quotas.adapters });
  return tooMany === undefined ? problems : [...problems, tooMany];
}
