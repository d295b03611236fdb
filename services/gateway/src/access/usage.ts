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
import {
  buckets,
  everyUsageOf,
  everyUsageOfTenant,
  parseUsageKey,
  usageKey,
  type UsageRow,
  type UsageState,
  usageTotal,
} from "@loraline/contracts";
import type { Log } from "@loraline/runtime";

const everyMs = 1000;
/** Days are added up some time after they are over, by one gateway after the other. */
const mergeEveryMs = 6 * 60 * 60_000;
/** After so many days without usage in a row, older ones are not looked at. */
const daysWithoutUsage = 31;
const mergedAtOnce = 500;

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

/** Starts to count, and meanwhile sums up the days that are over. */
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

  const stopping = new AbortController();
  /**
   * Merges the entries of a day that is over into one total for each adapter. A crash in between neither loses counts nor counts them
   * twice: a total names the gateways whose counts are in it, and readers skip the entries of these.
   */
  const mergeDay = async (keys: readonly string[]): Promise<void> => {
    for (let from = 0; from < keys.length && !stopping.signal.aborted; from += mergedAtOnce) {
      const some = keys.slice(from, from + mergedAtOnce);
      for (const { key, value } of await bucket.many(some)) {
        if (stopping.signal.aborted) return;
        const { holder, ...of } = parseUsageKey(key);
        await bucket.change(usageKey({ ...of, holder: usageTotal }), (sum) => {
          const merged = sum?.merged ?? [];
          if (merged.includes(holder)) return undefined;
          const rows = sumOf([...(sum?.rows ?? []), ...value.rows]);
          return { tenant: of.tenant, day: of.day, at: new Date(now()).toISOString(), rows, merged: [...merged, holder] };
        });
      }
      // Not only deleted: the mark of a deleted entry takes as much of NATS' memory as an entry.
      for (const key of some) await bucket.clear(key);
    }
  };
  /** Backwards from the day before yesterday, to the first day that is added up: then all before it are. */
  const mergeOldDays = async (): Promise<void> => {
    for (let back = 2, empty = 0; empty < daysWithoutUsage && !stopping.signal.aborted; back++) {
      const keys = await bucket.keys(everyUsageOf({ tenant: "*", day: dayOf(now() - back * dayMs) }));
      const open = keys.filter((key) => parseUsageKey(key).holder !== usageTotal);
      if (keys.length > 0 && open.length === 0) return;
      empty = keys.length === 0 ? empty + 1 : 0;
      await mergeDay(open);
    }
  };
  let merging: Promise<void> | undefined;
  const merge = (): void => {
    merging ??= mergeOldDays()
      .catch((error: unknown) => log.warn({ err: error }, "usage of past days was not added up; trying again later"))
      .finally(() => (merging = undefined));
  };
  merge();
  const mergeTimer = setInterval(merge, mergeEveryMs);
  mergeTimer.unref();

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
      const inRange = (key: string): boolean => {
        const { day } = parseUsageKey(key);
        return day >= from && day <= to;
      };
      const readAll = async () => {
        const keys = (await bucket.keys(everyUsageOfTenant(tenant))).filter(inRange);
        const entries = await bucket.many(keys);
        return { entries, isWhole: entries.length === keys.length };
      };
      let read = await readAll();
      // What went away meanwhile was merged into a total, which may have been read before.
      if (!read.isWhole) read = await readAll();
      const counts = unmergedOf(read.entries);
      const byDay = Map.groupBy(counts, ({ day }) => day);
      return [...byDay]
        .toSorted(([a], [b]) => (a < b ? -1 : 1))
        .flatMap(([day, those]) => sumOf(those.flatMap(({ rows }) => rows)).map((row) => ({ ...row, day })));
    },
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      clearInterval(mergeTimer);
      stopping.abort();
      await merging;
      await flushNow().catch((error: unknown) => log.error({ err: error }, "the last usage could not be written"));
    },
  };
}

/** The entries of one tenant, without those that are in their day's total already. */
function unmergedOf(entries: readonly { key: string; value: UsageState }[]): UsageState[] {
  const parsed = entries.map(({ key, value }) => ({ ...parseUsageKey(key), value }));
  const placeOf = ({ day, adapter }: { day: string; adapter: string | null }): string => `${day} ${adapter ?? ""}`;
  const totals = parsed.filter(({ holder }) => holder === usageTotal);
  const merged = new Map(totals.map((total) => [placeOf(total), total.value.merged ?? []]));
  return parsed.filter((one) => !(merged.get(placeOf(one))?.includes(one.holder) ?? false)).map(({ value }) => value);
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
