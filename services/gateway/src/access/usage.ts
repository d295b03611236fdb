/**
 * Tokens used, per tenant, day (UTC) and model: counted in memory, written to KV `usage` every second.
 *
 *   <tenant>.<day>.<adapter or ->.<gateway>   absolute counts of one gateway process; writing them again changes nothing
 *   <tenant>.<day>.<adapter or ->.total       of days that are over, with the gateways whose counts are in it
 *
 * A gateway that is stopped writes its counts before it ends. One that is killed loses the counts of its last second, or since NATS
 * stopped answering. Tokens are the engine's own counts. If an answer was broken off before the engine had counted, they are estimated:
 * a quarter of the request's bytes for the prompt, and one token for each event that was passed on. The row says so (`estimated`).
 */
import type { Bus } from "@loraline/bus";
import { buckets, everyUsageOf, parseUsageKey, usageKey, type UsageRow, type UsageState, usageTotal } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";

const everyMs = 1000;
/** How many days are read at the same time. */
const readAtOnce = 8;

export interface Used {
  tenant: string;
  /** `<tenant>/<adapter>@<version>`, or the base. */
  model: string;
  base: string;
  adapter: string | null;
  version: number | null;
  promptTokens: number;
  completionTokens: number;
  failed: boolean;
  estimated: boolean;
}

export type DailyUsage = UsageRow & { day: string };

export interface Usage extends AsyncDisposable {
  count(used: Used): void;
  /** The rows of the days from `from` to `to` (YYYY-MM-DD, both included), oldest first. Counts of other gateways' last second may be missing. */
  read(tenant: string, days: { from: string; to: string }): Promise<DailyUsage[]>;
}

export const dayOf = (ms: number): string => new Date(ms).toISOString().slice(0, 10);
const dayMs = 24 * 60 * 60_000;

/** Sums up the entries that earlier gateways have left, then starts to count. */
export async function createUsage({
  bus,
  log,
  gateway,
  now = () => Date.now(),
}: {
  bus: Pick<Bus, "bucket">;
  log: Log;
  /** Names this process in the keys; new with each start. */
  gateway: string;
  now?: () => number;
}): Promise<Usage> {
  const bucket = await bus.bucket(buckets.usage);
  interface Counted {
    tenant: string;
    day: string;
    rows: Map<string, UsageRow>;
    dirty: boolean;
  }
  /** This gateway's counts, by key of the bucket. */
  const counted = new Map<string, Counted>();
  let today = { day: dayOf(now()), endsAt: Math.ceil((now() + 1) / dayMs) * dayMs };

  const flush = async (): Promise<void> => {
    for (const [key, entry] of counted) {
      const { tenant, day, rows } = entry;
      if (!entry.dirty) {
        if (day < dayOf(now() - dayMs)) counted.delete(key);
        continue;
      }
      entry.dirty = false;
      try {
        await bucket.put(key, { tenant, day, at: new Date(now()).toISOString(), rows: [...rows.values()] });
      } catch (error) {
        entry.dirty = true;
        throw error;
      }
    }
  };
  let flushing: Promise<void> | undefined;
  /** Writes the counts. Two writes never run at once, and the write that a caller waits for began after its call. */
  const flushNow = async (): Promise<void> => {
    while (flushing !== undefined) await flushing;
    flushing = flush().finally(() => {
      flushing = undefined;
    });
    await flushing;
  };
  const timer = setInterval(() => {
    if (flushing !== undefined) return;
    flushNow().catch((error: unknown) => log.warn({ err: error }, "usage was not written; trying again"));
  }, everyMs);
  timer.unref();

  /**
   * Merges the entries of days that are over into one total for each adapter. A crash in between neither loses counts nor counts them
   * twice: a total names the gateways whose counts are in it, and readers skip the entries of these.
   */
  const mergeOldDays = async (): Promise<void> => {
    const before = dayOf(now() - dayMs);
    for (const { key, value } of await bucket.entries()) {
      const { holder, ...of } = parseUsageKey(key);
      const { tenant, day } = of;
      if (holder === usageTotal || day >= before) continue;
      await bucket.change(usageKey({ ...of, holder: usageTotal }), (sum) => {
        const merged = sum?.merged ?? [];
        if (merged.includes(holder)) return undefined;
        const rows = sumOf([...(sum?.rows ?? []), ...value.rows]);
        return { tenant, day, at: new Date(now()).toISOString(), rows, merged: [...merged, holder] };
      });
      await bucket.delete(key);
    }
  };
  await mergeOldDays().catch((error: unknown) => log.warn({ err: error }, "usage of past days was not added up; the next start does it"));

  return {
    count({ tenant, model, base, adapter, version, failed, estimated, promptTokens, completionTokens }) {
      const time = now();
      if (time >= today.endsAt) today = { day: dayOf(time), endsAt: Math.ceil((time + 1) / dayMs) * dayMs };
      const key = usageKey({ tenant, day: today.day, adapter, holder: gateway });
      let entry = counted.get(key);
      if (entry === undefined) {
        entry = { tenant, day: today.day, rows: new Map(), dirty: true };
        counted.set(key, entry);
      }
      entry.dirty = true;
      let row = entry.rows.get(model);
      if (row === undefined) {
        row = { model, base, adapter, version, requests: 0, failed: 0, promptTokens: 0, completionTokens: 0, estimated: 0 };
        entry.rows.set(model, row);
      }
      row.requests += 1;
      row.promptTokens += promptTokens;
      row.completionTokens += completionTokens;
      if (failed) row.failed += 1;
      if (estimated) row.estimated += 1;
    },
    async read(tenant, { from, to }) {
      await flushNow();
      const days: string[] = [];
      for (let at = Date.parse(from); at <= Date.parse(to); at += dayMs) days.push(dayOf(at));
      const rows: DailyUsage[] = [];
      for (let at = 0; at < days.length; at += readAtOnce) {
        const some = days.slice(at, at + readAtOnce);
        const found = await Promise.all(some.map((day) => bucket.entries(everyUsageOf({ tenant, day }))));
        some.forEach((day, index) => {
          const counts = unmergedOf(found[index] ?? []);
          rows.push(...sumOf(counts.flatMap(({ rows: of }) => of)).map((row) => ({ ...row, day })));
        });
      }
      return rows;
    },
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await flushNow().catch((error: unknown) => log.error({ err: error }, "the last usage could not be written"));
    },
  };
}

/** The entries of one tenant and day, without those that are in the day's total already. */
function unmergedOf(entries: readonly { key: string; value: UsageState }[]): UsageState[] {
  const parsed = entries.map(({ key, value }) => ({ ...parseUsageKey(key), value }));
  const merged = new Map(parsed.filter(({ holder }) => holder === usageTotal).map(({ adapter, value }) => [adapter, value.merged ?? []]));
  return parsed.filter(({ adapter, holder }) => !(merged.get(adapter)?.includes(holder) ?? false)).map(({ value }) => value);
}

/** One row for each model, by name. */
function sumOf(rows: readonly UsageRow[]): UsageRow[] {
  const sums = new Map<string, UsageRow>();
  for (const row of rows) {
    const sum = sums.get(row.model);
    if (sum === undefined) sums.set(row.model, { ...row });
    else for (const field of ["requests", "failed", "promptTokens", "completionTokens", "estimated"] as const) sum[field] += row[field];
  }
  return [...sums.values()].toSorted((a, b) => (a.model < b.model ? -1 : 1));
}
