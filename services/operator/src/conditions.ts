/** Conditions as Kubernetes means them. Pure. */
import type { Condition } from "@loraline/contracts";

export interface Said {
  status: Condition["status"];
  reason: string;
  message: string;
}

/** An Event that tells a milestone. Two with one `key` are one. */
export interface Milestone {
  type: "Normal" | "Warning";
  reason: string;
  message: string;
  key: string;
}

/** `lastTransitionTime` moves only when the status does. */
export function conditionsOf(
  said: Readonly<Record<string, Said>>,
  { before = [], generation, now }: { before?: readonly Condition[] | undefined; generation: number; now: string },
): Condition[] {
  return Object.entries(said).map(([type, { status, reason, message }]) => {
    const known = before.find((condition) => condition.type === type);
    const lastTransitionTime = known?.status === status ? known.lastTransitionTime : now;
    return { type, status, reason, message: message.slice(0, 8000), observedGeneration: generation, lastTransitionTime };
  });
}

export const isTrue = (conditions: readonly Condition[] | undefined, type: string): boolean =>
  conditions?.some((condition) => condition.type === type && condition.status === "True") ?? false;

/** Seconds, in two units at most: `40s`, `3m20s`, `2h05m`. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (value: number): string => String(value).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
}
