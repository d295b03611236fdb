/** Conditions by Kubernetes' conventions. Pure. */
import type { Condition } from "@loraline/contracts";

export interface Said {
  status: Condition["status"];
  reason: string;
  message: string;
}

/** A milestone that is reported as a Kubernetes Event. Milestones with the same `key` are reported once. */
export interface Milestone {
  type: "Normal" | "Warning";
  reason: string;
  message: string;
  key: string;
}

/** Makes the conditions. `lastTransitionTime` changes only when a condition's status changes. */
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

/** Writes a time in seconds with at most two units: `40s`, `3m20s`, `2h05m`. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (value: number): string => String(value).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
}
