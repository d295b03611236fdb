/** Numbers, times and sizes as the reader's language writes them. */

export function duration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (ms < 1000 && ms > 0) return `${Math.round(ms)} ms`;
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(amount: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, amount < 1000 ? 0 : Math.floor(Math.log10(amount) / 3));
  const value = amount / 1000 ** power;
  return `${power === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[power]}`;
}

export const count = (amount: number, language: string): string => amount.toLocaleString(language);

/** A loss or a rate: as many digits as say something. */
export const number = (value: number | null | undefined): string =>
  value === null || value === undefined
    ? "–"
    : Math.abs(value) >= 0.001 || value === 0
      ? String(Number(value.toFixed(4)))
      : value.toExponential(1);

export const time = (iso: string | number, language: string): string => {
  const date = new Date(iso);
  const isToday = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(language, isToday ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "short" });
};

/** A time of today or tomorrow. */
export const soon = (iso: string, language: string): string => {
  const date = new Date(iso);
  const isToday = date.toDateString() === new Date().toDateString();
  const clock = { hour: "numeric", minute: "2-digit" } as const;
  return date.toLocaleString(language, isToday ? clock : { weekday: "short", ...clock });
};
