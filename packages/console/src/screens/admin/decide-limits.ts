/** Pure: limits as a form has them, and as the API takes them. */
import { type LimitState, type QuotaName, quotaNames, quotaTable } from "@loraline/contracts";

export const rateNames = ["requestsPerMinute", "tokensPerMinute", "concurrency"] as const;
type RateName = (typeof rateNames)[number];
const rateFields = { requestsPerMinute: "requests_per_minute", tokensPerMinute: "tokens_per_minute", concurrency: "concurrency" } as const;

/** What was typed; empty: no limit of one's own. */
type Typed = Record<RateName, string> & Partial<Record<QuotaName, string>>;
type LimitField = RateName | QuotaName;

export const isBytes = (name: string): boolean => /bytes/i.test(name);

const units = { TiB: 1024 ** 4, TB: 1e12, GiB: 1024 ** 3, GB: 1e9, MiB: 1024 ** 2, MB: 1e6, KiB: 1024, kB: 1000 } as const;
const unitOf = new Map(Object.entries(units).map(([unit, size]) => [unit.toLowerCase(), size]));

/** As it can be typed again, without loss. */
export function amountText(name: string, value: number | null | undefined): string {
  if (value === null || value === undefined) return "";
  const unit = isBytes(name) && value > 0 ? Object.entries(units).find(([, size]) => value % size === 0) : undefined;
  return unit === undefined ? String(value) : `${value / unit[1]} ${unit[0]}`;
}

/** @returns null: nothing was typed. undefined: it is no amount of this kind. */
function amountOf(name: LimitField, text: string): number | null | undefined {
  const [, digits = "", unit = ""] = /^\s*(-?\d+(?:\.\d+)?)?\s*([a-z]*)\s*$/i.exec(text) ?? [];
  if (text.trim() === "") return null;
  if (digits === "" || (unit !== "" && !isBytes(name))) return undefined;
  const size = unit === "" || unit.toLowerCase() === "b" ? 1 : unitOf.get(unit.toLowerCase());
  const amount = size === undefined ? Number.NaN : Number(digits) * size;
  const least = (rateNames as readonly string[]).includes(name) ? 1 : name === "highestPriority" ? Number.NEGATIVE_INFINITY : 0;
  return Number.isSafeInteger(Math.round(amount)) && amount >= least && (isBytes(name) || Number.isInteger(amount))
    ? Math.round(amount)
    : undefined;
}

export const typedOf = (entry: Partial<LimitState> | undefined, ofTenant: boolean): Typed =>
  Object.fromEntries([...rateNames, ...(ofTenant ? quotaNames : [])].map((name) => [name, amountText(name, entry?.[name])])) as Typed;

export const wrongOf = (typed: Typed): LimitField[] =>
  (Object.keys(typed) as LimitField[]).filter((name) => amountOf(name, typed[name] ?? "") === undefined);

/** The whole entry, since what is not given is lifted. */
export function bodyOf(typed: Typed): Record<string, number> {
  const fieldOf = (name: LimitField): string => (name in rateFields ? rateFields[name as RateName] : quotaTable[name as QuotaName].field);
  return Object.fromEntries(
    (Object.keys(typed) as LimitField[]).flatMap((name) => {
      const amount = amountOf(name, typed[name] ?? "");
      return typeof amount === "number" ? [[fieldOf(name), amount] as const] : [];
    }),
  );
}
