/** Whether a tenant may give one more command: each stays in a stream as long as what it is about, and so do the events that follow it. */
import { type EventDef, freeingCommands, type Problem } from "@loraline/contracts";
import type { Bus } from "../bus.ts";

/** A count that is far from the quota is taken again only after so long. */
const freshMs = 5000;
const farFrom = 0.9;
/** What was erased is looked for so often where a quota is used up. */
const anewMs = 10_000;
/** Whoever has no room left can stop runs and delete versions all the same. */
const freeing = 1.25;
/** What a command adds, about: itself and the events that follow. */
const commandBytes = 4096;

interface HistoryQuota {
  used(tenant: string): Promise<number>;
  /** @returns why the tenant may not; undefined: it may. */
  judge(tenant: string, most: number | null, event: EventDef): Promise<Problem | undefined>;
}

export function createHistoryQuota(bus: Pick<Bus, "eventBytes">): HistoryQuota {
  const counts = new Map<string, { bytes: number; at: number; anewAt: number }>();
  return {
    used: (tenant) => bus.eventBytes(tenant),
    async judge(tenant, quota, event) {
      if (quota === null) return undefined;
      const most = freeingCommands.includes(event) ? quota * freeing : quota;
      const known = counts.get(tenant);
      const now = performance.now();
      if (known !== undefined && now - known.at < freshMs && known.bytes < most * farFrom) {
        known.bytes += commandBytes;
        return undefined;
      }
      let bytes = await bus.eventBytes(tenant);
      let anewAt = known?.anewAt ?? Number.NEGATIVE_INFINITY;
      if (bytes >= most && now - anewAt >= anewMs) {
        anewAt = now;
        bytes = await bus.eventBytes(tenant, { anew: true });
      }
      counts.set(tenant, { bytes: bytes + commandBytes, at: now, anewAt });
      if (bytes < most) return undefined;
      return {
        code: "QUOTA_HISTORY",
        param: null,
        message: `the events of this tenant's runs, datasets and adapters take ${bytes} bytes, and its quota is ${quota}. Delete adapters or datasets, whose events go with them, or have the operator raise the quota historyBytes.`,
      };
    },
  };
}
