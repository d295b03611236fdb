/** The quotas of each tenant, kept up to date from KV `limits`. */
import {
  adapterKey,
  buckets,
  judgeByQuotas,
  judgeProfile,
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
import { sumOf } from "./storage/stored-bytes.ts";

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
  /** Kinds of pods that runs may ask for. */
  profiles?: QuotaSettings["profiles"];
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
    profiles: settings.profiles,
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
  bus: Pick<Bus, "bucket" | "stored">,
  { tenant, spec, quotas, profiles = {} }: { tenant: string; spec: RunSpec; quotas: Quotas; profiles?: QuotaSettings["profiles"] },
): Promise<Problem[]> {
  const problems = judgeByQuotas(spec, quotas);
  const notOffered = judgeProfile(tenant, spec, profiles);
  if (notOffered !== undefined) problems.push(notOffered);
  // Asked before anything is spent: a run whose adapter cannot be kept would be trained for nothing.
  const full = await judgeStorage(bus, { tenant, quotas, bytes: 0 });
  if (full !== undefined) problems.push(full);
  const { adapter } = spec;
  const adapters = await bus.bucket(buckets.adapters);
  if (quotas.adapters === null || (await adapters.get(adapterKey({ tenant, adapter }))) !== undefined) return problems;
  const tooMany = await judgeNewAdapter(adapters, { tenant, adapter, most: quotas.adapters });
  return tooMany === undefined ? problems : [...problems, tooMany];
}

/**
 * Whether a tenant may store so many bytes more. What is made of an upload or a run comes on top, so that a tenant may exceed its quota by
 * the results of what it was allowed to begin.
 */
export async function judgeStorage(
  bus: Pick<Bus, "stored">,
  { tenant, quotas: { storageBytes: most }, bytes }: { tenant: string; quotas: Pick<Quotas, "storageBytes">; bytes: number },
): Promise<Problem | undefined> {
  if (most === null) return undefined;
  const used = sumOf(await bus.stored(tenant));
  if (used + bytes < most || (bytes > 0 && used + bytes === most)) return undefined;
  const message = `this tenant has ${used} bytes in the object store${bytes === 0 ? "" : `, and these are ${bytes} more`}; its quota is ${most}. Delete datasets or adapters (\`loraline storage\` shows what takes the room), or have the operator raise the quota storageBytes.`;
  return { code: "QUOTA_STORAGE", message, param: null };
}
