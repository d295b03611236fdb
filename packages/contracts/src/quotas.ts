/**
 * Quotas: the most that a tenant may have, or do at once. The operator sets them for all tenants and for single ones (the chart's `quotas`,
 * LORALINE_QUOTAS). A tenant's admins may choose less for their tenant, in its entry of KV `limits`. null is no limit.
 */
import { z } from "zod";
import { type Problem, tenantName } from "./names.ts";

const GiB = 1024 ** 3;

/** Highest and lowest priority that a run may have. */
export const priorityRange = { min: -10, max: 10 } as const;

interface QuotaEntry {
  /** Of an installation that says nothing else. */
  readonly default: number;
  /** In HTTP bodies. */
  readonly field: string;
  readonly description: string;
}

export const quotaTable = {
  storageBytes: { default: 100 * GiB, field: "storage_bytes", description: "Bytes in the object store." },
  uploadBytesPerMinute: {
    default: 10 * GiB,
    field: "upload_bytes_per_minute",
    description: "Bytes that gateways take in one minute: uploads, and adapters that are fetched.",
  },
  historyBytes: {
    default: 256 * 1024 ** 2,
    field: "history_bytes",
    description: "Bytes of the events that are kept of runs, datasets and adapters; with more, further commands are refused.",
  },
  datasets: { default: 10_000, field: "datasets", description: "Datasets that are not deleted." },
  adapters: { default: 1000, field: "adapters", description: "Adapters, each with any number of versions." },
  importsAtOnce: {
    default: 4,
    field: "imports_at_once",
    description:
      "Imports from other servers at once in each process: of datasets, and of pictures that rows give by URL, in each ingest, where further ones wait; of adapters in each gateway, where they are refused. With several processes there may be so many in each.",
  },
  runsAtOnce: { default: 32, field: "runs_at_once", description: "Runs that train at once; further ones wait." },
  runsWaiting: { default: 1000, field: "runs_waiting", description: "Runs that are not over and do not train; further ones are refused." },
  adminActionsPerDay: {
    default: 250,
    field: "admin_actions_per_day",
    description:
      "Keys that are made, limits that are set or removed, and adapters that are deleted, within 24 hours; further ones are refused.",
  },
  gpusPerRun: { default: 16, field: "gpus_per_run", description: "GPUs of one run, on all its nodes." },
  gpusAtOnce: { default: 32, field: "gpus_at_once", description: "GPUs of all runs that train at once; further runs wait." },
  highestPriority: { default: 0, field: "highest_priority", description: "Highest `priority` that a run may ask for." },
} as const satisfies Record<string, QuotaEntry>;
export type QuotaName = keyof typeof quotaTable;
export const quotaNames = Object.keys(quotaTable) as QuotaName[];

/** What applies to one tenant. */
export type Quotas = Readonly<Record<QuotaName, number | null>>;
/** null: no limit. Absent: what applies otherwise. */
export type QuotaChoice = Readonly<Partial<Record<QuotaName, number | null | undefined>>>;

const quotaValue = (name: QuotaName) =>
  name === "highestPriority" ? z.int().min(priorityRange.min).max(priorityRange.max) : z.int().min(0);
const shapeOf = <Key extends string>(keyOf: (name: QuotaName) => Key, otherwise: string) =>
  Object.fromEntries(
    quotaNames.map((name) => [keyOf(name), quotaValue(name).nullish().describe(`${quotaTable[name].description} ${otherwise}`)]),
  ) as Record<Key, ReturnType<typeof quotaField>>;
const quotaField = () => z.int().nullish();

/** Fields of a tenant's entry in KV `limits`. */
export const quotaShape = shapeOf((name) => name, "Absent: the installation's. null: no limit.");
/** Fields of an HTTP body. */
export const quotaBodyShape = shapeOf((name) => quotaTable[name].field, "Absent or null: what the operator grants.");

/** The operator's settings: LORALINE_QUOTAS (JSON), and `quotas` of the chart's values. */
export const quotaSettings = z.strictObject({
  default: z.strictObject(quotaShape).optional().describe("Of every tenant."),
  tenants: z.record(tenantName, z.strictObject(quotaShape)).optional().describe("Of single tenants; what is absent is as in `default`."),
  profiles: z
    .record(
      z.string(),
      z.strictObject({
        tenants: z.array(tenantName).optional().describe("Who may ask for it. Absent or empty: every tenant."),
        bases: z.array(z.string()).optional().describe("For runs of which bases. Absent or empty: of all."),
      }),
    )
    .optional()
    .describe("Kinds of pods that runs may ask for by `profile`."),
});
export type QuotaSettings = z.infer<typeof quotaSettings>;

/** What the operator grants a tenant. */
export function grantedQuotas(tenant: string, settings: QuotaSettings): Quotas {
  const own: QuotaChoice = settings.tenants?.[tenant] ?? {};
  const all: QuotaChoice = settings.default ?? {};
  return everyQuota((name) => firstGiven(own[name], all[name], quotaTable[name].default));
}

/**
 * What applies to a tenant: the lower one of what the operator grants and what the tenant's admins chose. An entry that is `fixed` was
 * written by the operator, so that it applies also where it is higher.
 */
export function quotasOf(
  tenant: string,
  settings: QuotaSettings,
  entry: (QuotaChoice & { fixed?: boolean | null | undefined }) | undefined,
): Quotas {
  const granted = grantedQuotas(tenant, settings);
  if (entry === undefined) return granted;
  return everyQuota((name) => {
    const chosen = entry[name];
    if (chosen === undefined) return granted[name];
    return entry.fixed === true ? chosen : lowerOf(chosen, granted[name]);
  });
}

const everyQuota = (of: (name: QuotaName) => number | null): Quotas =>
  Object.fromEntries(quotaNames.map((name) => [name, of(name)])) as Record<QuotaName, number | null>;
const firstGiven = (...values: (number | null | undefined)[]): number | null => values.find((value) => value !== undefined) ?? null;
const lowerOf = (a: number | null, b: number | null): number | null => (a === null ? b : b === null ? a : Math.min(a, b));

/** Whether a tenant's run may ask for its `profile`. */
export function judgeProfile(
  tenant: string,
  { profile, base }: { profile?: string | undefined; base: string },
  profiles: NonNullable<QuotaSettings["profiles"]>,
): Problem | undefined {
  if (profile === undefined) return undefined;
  const isFor = (list: readonly string[] | undefined, one: string): boolean => (list ?? []).length === 0 || list?.includes(one) === true;
  const open = Object.entries(profiles).filter(([, of]) => isFor(of.tenants, tenant) && isFor(of.bases, base));
  if (open.some(([name]) => name === profile)) return undefined;
  const names = open.map(([name]) => `"${name}"`).join(", ");
  const offered = names === "" ? "There is none for this tenant and base: leave it out" : `Ask for ${names}, or leave it out`;
  return {
    code: "PROFILE_NOT_ALLOWED",
    param: "profile",
    message: `profile: this installation offers no profile "${profile}" to runs of this tenant on base "${base}". ${offered}, or have the operator allow it.`,
  };
}

/** What of a run's spec a quota bounds by itself, whatever else the tenant has. */
export function judgeByQuotas(
  { gpus = 1, nodes = 1, priority = 0 }: { gpus?: number | undefined; nodes?: number | undefined; priority?: number | undefined },
  quotas: Quotas,
): Problem[] {
  const problems: Problem[] = [];
  const asked = gpus * nodes;
  const { gpusPerRun, gpusAtOnce, highestPriority } = quotas;
  const [quota, most] = (gpusPerRun ?? Infinity) <= (gpusAtOnce ?? Infinity) ? ["gpusPerRun", gpusPerRun] : ["gpusAtOnce", gpusAtOnce];
  if (most !== null && most !== undefined && asked > most) {
    const param = gpus > 1 || nodes === 1 ? "gpus" : "nodes";
    const product = nodes === 1 ? "" : ` (${gpus} on each of ${nodes} nodes)`;
    problems.push({
      code: "QUOTA_GPUS",
      param,
      message: `${param}: the run asks for ${asked} GPUs${product}, and the quota ${quota} of this tenant is ${most}. Ask for fewer, or have the operator raise it.`,
    });
  }
  if (highestPriority !== null && priority > highestPriority) {
    problems.push({
      code: "QUOTA_PRIORITY",
      param: "priority",
      message: `priority: ${priority} is higher than the quota highestPriority of this tenant, ${highestPriority}. Ask for ${highestPriority} at most, or have the operator raise it.`,
    });
  }
  return problems;
}
