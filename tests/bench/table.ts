/** A row of a benchmark's result. */
export interface Row {
  what: string;
  value: string;
  detail: string;
}

/** Nearest-rank percentile, in the unit of the values, with two digits after the point. */
export function percentile(values: readonly number[], rank: number): string {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[Math.max(0, Math.ceil((rank / 100) * sorted.length) - 1)] ?? Number.NaN).toFixed(2);
}

/** A Markdown table, so that figures can be pasted as they are. */
export const tableOf = (rows: readonly Row[]): string =>
  ["| what | figure | detail |", "|---|---|---|", ...rows.map((row) => `| ${row.what} | ${row.value} | ${row.detail} |`)].join("\n");

/** CPU time of this process so far, in milliseconds. */
export function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
