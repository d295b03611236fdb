/**
 * The line of runs that could start: which ones may start now, and what each of the others waits for. Pure.
 *
 *   1. the highest priority         as far as the tenant's quota `highestPriority` goes
 *   2. the tenant with the least    counted in GPUs: those in use, and those of its runs that stand further ahead
 *   3. the oldest run               by the time at which NATS stored its request
 *
 * The first run that does not fit holds up those behind it, or a large run would wait for ever while small ones pass it. A run that its
 * tenant's quota holds back holds up only its own tenant's. Sorting costs n log n; everything else is one pass.
 */
import type { Quotas } from "@loraline/contracts";
import type { AttemptSize, Slots } from "../launchers/launcher.ts";

/** A run that could start now if there were room. */
export interface ReadyRun extends AttemptSize {
  key: string;
  tenant: string;
  runId: string;
  requestedAt: string;
  priority: number;
}

/** What attempts of a tenant hold. */
export interface Held {
  runs: number;
  gpus: number;
  /** Of the runs: those that wait for a place in the cluster. */
  pending: number;
}

export type LineQuotas = Pick<Quotas, "runsAtOnce" | "gpusAtOnce" | "highestPriority">;

export type Standing =
  | { may: "start" }
  /** `ahead`: runs that get a place before this one. */
  | { may: "wait"; for: "device"; ahead: number; total: number }
  /** It asks for more than there is. */
  | { may: "wait"; for: "larger-installation"; slots: number; total: number }
  /** `ahead`: runs of the same tenant before this one. */
  | { may: "wait"; for: "runsAtOnce" | "gpusAtOnce"; limit: number; used: number; asks: number; ahead: number }
  | { may: "wait"; for: "pending"; pending: number; ahead: number };

interface OfTenant extends Held {
  /** What its further runs wait for. */
  stopped?: "runsAtOnce" | "gpusAtOnce" | "pending" | undefined;
  /** Its runs that wait for that. */
  behind: number;
}

/**
 * @param held - by tenant.
 * @returns the standing of each run, by key, in the order of the line.
 */
export function decideLine(
  ready: readonly ReadyRun[],
  held: ReadonlyMap<string, Held>,
  room: Slots,
  quotasOf: (tenant: string) => LineQuotas,
): Map<string, Standing> {
  const tenants = new Map<string, OfTenant>();
  const tenantOf = (tenant: string): OfTenant => {
    let of = tenants.get(tenant);
    if (of === undefined) tenants.set(tenant, (of = { ...(held.get(tenant) ?? { runs: 0, gpus: 0, pending: 0 }), behind: 0 }));
    return of;
  };
  const standings = new Map<string, Standing>();
  let free = room.free;
  let ahead = 0;
  for (const run of inOrder(ready, held, quotasOf)) {
    const of = tenantOf(run.tenant);
    const quotas = quotasOf(run.tenant);
    if (run.slots > room.total) {
      standings.set(run.key, { may: "wait", for: "larger-installation", slots: run.slots, total: room.total });
      continue;
    }
    of.stopped ??= whatStops(run, of, quotas, room);
    if (of.stopped !== undefined) {
      standings.set(run.key, stoppedBy(of.stopped, run, of, quotas));
      of.behind += 1;
    } else if (run.slots === 0 || (ahead === 0 && run.slots <= free)) {
      standings.set(run.key, { may: "start" });
      free -= run.slots;
      of.runs += 1;
      of.gpus += run.gpus;
      of.pending += 1;
    } else {
      standings.set(run.key, { may: "wait", for: "device", ahead, total: room.total });
      ahead += 1;
    }
  }
  return standings;
}

/** Sorts twice: by age within each tenant, which gives what the tenant has when it is a run's turn; then by that. */
function inOrder(ready: readonly ReadyRun[], held: ReadonlyMap<string, Held>, quotasOf: (tenant: string) => LineQuotas): ReadyRun[] {
  const byAge = (a: ReadyRun, b: ReadyRun): number =>
    compare(a.requestedAt, b.requestedAt) || compare(a.runId, b.runId) || compare(a.key, b.key);
  const rows = ready.map((run) => ({ run, priority: Math.min(run.priority, quotasOf(run.tenant).highestPriority ?? Infinity), has: 0 }));
  rows.sort((a, b) => b.priority - a.priority || byAge(a.run, b.run));
  const has = new Map<string, number>();
  for (const row of rows) {
    const { tenant, gpus } = row.run;
    row.has = has.get(tenant) ?? weightOf(held.get(tenant));
    has.set(tenant, row.has + Math.max(1, gpus));
  }
  rows.sort((a, b) => b.priority - a.priority || a.has - b.has || byAge(a.run, b.run));
  return rows.map(({ run }) => run);
}

/** A run without GPUs counts as one, too. */
const weightOf = (held: Held | undefined): number => (held === undefined ? 0 : Math.max(held.runs, held.gpus));
const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function whatStops(run: ReadyRun, of: OfTenant, quotas: LineQuotas, room: Slots): OfTenant["stopped"] {
  if (of.runs + 1 > (quotas.runsAtOnce ?? Infinity)) return "runsAtOnce";
  if (run.gpus > 0 && of.gpus + run.gpus > (quotas.gpusAtOnce ?? Infinity)) return "gpusAtOnce";
  if (of.pending + 1 > (room.pendingPerTenant ?? Infinity)) return "pending";
  return undefined;
}

function stoppedBy(stopped: NonNullable<OfTenant["stopped"]>, run: ReadyRun, of: OfTenant, quotas: LineQuotas): Standing {
  const { behind: ahead } = of;
  switch (stopped) {
    case "runsAtOnce":
      return { may: "wait", for: stopped, limit: quotas.runsAtOnce ?? 0, used: of.runs, asks: 1, ahead };
    case "gpusAtOnce":
      return { may: "wait", for: stopped, limit: quotas.gpusAtOnce ?? 0, used: of.gpus, asks: run.gpus, ahead };
    case "pending":
      return { may: "wait", for: stopped, pending: of.pending, ahead };
  }
}

/** What a user is told; undefined: it may start. Numbers above ten are rounded, or each step forward were an event of every run behind. */
export function waitReasonOf(standing: Standing): { reason: string; message: string } | undefined {
  if (standing.may === "start") return undefined;
  switch (standing.for) {
    case "device": {
      const { total, ahead } = standing;
      const devices = total === 1 ? "the device is" : Number.isFinite(total) ? `all ${total} devices are` : "all devices are";
      return { reason: "WAITING_FOR_DEVICE", message: `${before(ahead, "")}; ${devices} busy` };
    }
    case "larger-installation":
      return {
        reason: "WAITING_FOR_DEVICE",
        message: `it asks for ${standing.slots} GPUs, and this installation trains on ${standing.total}; cancel it and ask for fewer, or have the operator add some`,
      };
    case "pending":
      return {
        reason: "WAITING_FOR_DEVICE",
        message: `${before(standing.ahead, " of this tenant")}; ${standing.pending} runs of this tenant wait in the cluster already`,
      };
    case "runsAtOnce":
      return {
        reason: "TENANT_QUOTA",
        message: `quota runsAtOnce: ${standing.used} of this tenant's ${standing.limit} runs at once are under way; ${before(standing.ahead, " of it")}`,
      };
    case "gpusAtOnce":
      return {
        reason: "TENANT_QUOTA",
        message:
          standing.asks > standing.limit
            ? `quota gpusAtOnce: it asks for ${standing.asks} GPUs, and this tenant may use ${standing.limit}; cancel it and ask for fewer, or ask the operator for more`
            : `quota gpusAtOnce: ${standing.used} of this tenant's ${standing.limit} GPUs are in use, and this run asks for ${standing.asks}; ${before(standing.ahead, " of it")}`,
      };
  }
}

function before(ahead: number, whose: string): string {
  if (ahead === 0) return "next in line";
  return `${roughly(ahead)} ${ahead === 1 ? `run${whose} waits` : `runs${whose} wait`} before this one`;
}

/** Exact up to ten, then rounded to one digit. */
function roughly(count: number): string {
  if (count <= 10) return String(count);
  const digit = 10 ** Math.floor(Math.log10(count));
  return `about ${Math.round(count / digit) * digit}`;
}
