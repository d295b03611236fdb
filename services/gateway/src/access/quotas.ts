/** What a tenant may have at most, and how much of it is used. */
import {
  type Bus,
  countAdapters,
  createDatasetQuota,
  createHistoryQuota,
  judgeNewAdapter,
  judgeRunByQuotas,
  judgeWaitingRuns,
  sumOf,
} from "@loraline/bus";
import {
  adapterKey,
  buckets,
  type EventDef,
  grantedQuotas,
  type QuotaChoice,
  type QuotaName,
  quotaNames,
  type Quotas,
  type QuotaSettings,
  quotasOf,
  quotaTable,
  type QuotaView,
  type RunSpec,
  tenantCommands,
  type tenantLimitBody,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { z } from "zod";
import { badRequestOf } from "../errors.ts";
import type { Limits } from "./limits.ts";

export interface GatewayQuotas {
  of(tenant: string): Quotas;
  view(tenant: string): Promise<QuotaView[]>;
  /** @throws PermanentError 400 QUOTA_GPUS, QUOTA_PRIORITY, PROFILE_NOT_ALLOWED, QUOTA_ADAPTERS or QUOTA_STORAGE, 429 QUOTA_RUNS_WAITING if the tenant may not have the run. */
  admitRun(tenant: string, spec: RunSpec): Promise<void>;
  /** @throws PermanentError 403 QUOTA_HISTORY if the event is a command, and streams hold as much of the tenant as they may. */
  admitEvent(tenant: string, event: EventDef): Promise<void>;
  /** @throws PermanentError 429 QUOTA_ADMIN_ACTIONS if its admins did as much within a day as they may: with more, entries of the audit log would go. */
  admitAdminAction(tenant: string): Promise<void>;
  /** @throws PermanentError 403 QUOTA_DATASETS if the tenant may not have one more. */
  admitDataset(tenant: string): Promise<void>;
  /** @throws PermanentError 403 QUOTA_ADAPTERS if the adapter would be a new one, and the tenant may not have one more. */
  admitAdapter(tenant: string, adapter: string): Promise<void>;
  /**
   * Counts an import of an adapter by this gateway, until it is disposed.
   * @throws PermanentError 429 QUOTA_IMPORTS.
   */
  beginImport(tenant: string): Disposable;
  /**
   * The quotas in the body of a request, as KV `limits` stores them.
   * @throws PermanentError 403 `quota_above_granted`.
   */
  choiceFrom(tenant: string, body: z.infer<typeof tenantLimitBody>): QuotaChoice;
}

export async function createGatewayQuotas({
  bus,
  limits,
  settings,
}: {
  bus: Pick<Bus, "bucket" | "stored" | "eventBytes" | "audit">;
  limits: Pick<Limits, "all">;
  settings: QuotaSettings;
}): Promise<GatewayQuotas> {
  const datasets = await createDatasetQuota(bus);
  const history = createHistoryQuota(bus);
  const [adapters, training] = await Promise.all([bus.bucket(buckets.adapters), bus.bucket(buckets.training)]);
  /** Imports of adapters under way, by tenant. */
  const importing = new Map<string, number>();
  const of = (tenant: string): Quotas => quotasOf(tenant, settings, limits.all().get(tenant));

  const usedBy = async (tenant: string): Promise<Partial<Record<QuotaName, number>>> => {
    const [runs, datasetCount, its] = await Promise.all([training.get(tenant), datasets.used(tenant), countAdapters(adapters, tenant)]);
    return {
      storageBytes: sumOf(await bus.stored(tenant)),
      historyBytes: await history.used(tenant),
      adminActionsPerDay: await bus.audit.countOfDay(tenant),
      datasets: datasetCount,
      adapters: its,
      runsAtOnce: runs?.value.running ?? 0,
      gpusAtOnce: runs?.value.gpus ?? 0,
      runsWaiting: runs?.value.waiting ?? 0,
    };
  };

  return {
    of,
    async view(tenant) {
      const granted = grantedQuotas(tenant, settings);
      const [applying, used] = [of(tenant), await usedBy(tenant)];
      return quotaNames.map((quota) => ({ quota, limit: applying[quota], granted: granted[quota], used: used[quota] ?? null }));
    },
    async admitRun(tenant, spec) {
      const [first, ...others] = await judgeRunByQuotas(bus, { tenant, spec, quotas: of(tenant), profiles: settings.profiles });
      if (first !== undefined) throw badRequestOf([first, ...others]);
      const tooMany = await judgeWaitingRuns(training, { tenant, most: of(tenant).runsWaiting });
      if (tooMany !== undefined) throw new PermanentError(tooMany.code, tooMany.message, { status: 429 });
    },
    async admitEvent(tenant, event) {
      if (!tenantCommands.includes(event)) return;
      const problem = await history.judge(tenant, of(tenant).historyBytes, event);
      if (problem !== undefined) throw new PermanentError(problem.code, problem.message, { status: 403 });
    },
    async admitAdminAction(tenant) {
      const most = of(tenant).adminActionsPerDay;
      if (most === null) return;
      const done = await bus.audit.countOfDay(tenant);
      if (done < most) return;
      throw new PermanentError(
        "QUOTA_ADMIN_ACTIONS",
        `this tenant's admins did ${done} things within 24 hours, and its quota adminActionsPerDay is ${most}. Wait, or have the operator raise it; keys can be revoked all the same.`,
        { status: 429 },
      );
    },
    async admitDataset(tenant) {
      const problem = await datasets.judge(tenant, of(tenant).datasets, false);
      if (problem !== undefined) throw new PermanentError(problem.code, problem.message, { status: 403 });
    },
    async admitAdapter(tenant, adapter) {
      const most = of(tenant).adapters;
      if (most === null || (await adapters.get(adapterKey({ tenant, adapter }))) !== undefined) return;
      const problem = await judgeNewAdapter(adapters, { tenant, adapter, most });
      if (problem !== undefined) throw new PermanentError(problem.code, problem.message, { status: 403, param: problem.param });
    },
    beginImport(tenant) {
      const most = of(tenant).importsAtOnce;
      const others = importing.get(tenant) ?? 0;
      if (most !== null && others >= most) {
        throw new PermanentError(
          "QUOTA_IMPORTS",
          `${others} imports of this tenant are under way, and its quota importsAtOnce is ${most}. Try again when one has ended.`,
          { status: 429 },
        );
      }
      importing.set(tenant, others + 1);
      return {
        [Symbol.dispose]() {
          const left = (importing.get(tenant) ?? 1) - 1;
          if (left > 0) importing.set(tenant, left);
          else importing.delete(tenant);
        },
      };
    },
    choiceFrom(tenant, body) {
      const granted = grantedQuotas(tenant, settings);
      const choice: Partial<Record<QuotaName, number | null>> = {};
      for (const name of quotaNames) {
        const { field } = quotaTable[name];
        const value = body[field];
        if (value === undefined) continue;
        const most = granted[name];
        if (most !== null && value !== null && value > most) throw aboveGranted(field, value, most);
        // No limit of the tenant's own: what the operator grants applies, also when that changes.
        if (value !== null) choice[name] = value;
      }
      return choice;
    },
  };
}

const aboveGranted = (field: string, value: number, most: number): PermanentError =>
  new PermanentError(
    "quota_above_granted",
    `${field}: ${value} is more than the ${most} that the operator grants this tenant. Give at most ${most}, or ask the operator for more.`,
    { status: 403, param: field },
  );
