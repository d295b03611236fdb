/** Pure: whether an engine is scaled to zero, or back. */
import type { AdapterState, EngineRecord } from "@loraline/contracts";

interface WakeSight {
  wake: NonNullable<EngineRecord["wake"]>;
  /** What its Deployment asks for, and how many of these are ready. */
  replicas: number;
  ready: number;
  /** Requests that wait for it, at all gateways. */
  waiting: number;
  /** Whether a version on it is still to be proven. */
  toProve: boolean;
  /** For how long nobody has asked it; null: not all gateways could be heard, so it is not known. */
  idleMs: number | null;
}

/** @returns how many replicas it is to have; undefined: as many as it has. */
export function decideWake({ wake, replicas, ready, waiting, toProve, idleMs }: WakeSight): number | undefined {
  if (!wake.idleAfterSeconds) return undefined;
  if (replicas === 0) return waiting > 0 || toProve ? wake.replicas : undefined;
  // One that is starting was asked for: whoever waited may have gone to ask again later.
  const isNeeded = waiting > 0 || toProve || ready === 0 || idleMs === null || idleMs < wake.idleAfterSeconds * 1000;
  if (!isNeeded) return 0;
  return wake.autoscaled || replicas === wake.replicas ? undefined : wake.replicas;
}

/** Whether a version of this adapter waits for its first proof. One for which there is no room would wait for ever. */
export const isToProve = ({ versions }: Pick<AdapterState, "versions">): boolean =>
  versions.some(({ status, servedAt, unplaced }) => status === "desired" && servedAt === null && !unplaced);
