/** The first request to a version that was served lately: it ends the trace that began with the upload. */
import type { AdapterVersion } from "@loraline/contracts";

/** A version is new for this long, ms. */
export const newFor = 60 * 60_000;

/** @returns whether this is the first request to a new version that this gateway sees. Remembers only versions that are new. */
export function createFirstRequests(seen = new Map<string, number>()) {
  return ({ engineName, servedAt, createdAt }: Pick<AdapterVersion, "engineName" | "servedAt" | "createdAt">, now: number): boolean => {
    const newUntil = Date.parse(servedAt ?? createdAt) + newFor;
    if (newUntil <= now || seen.has(engineName)) return false;
    for (const [name, until] of seen) if (until <= now) seen.delete(name);
    seen.set(engineName, newUntil);
    return true;
  };
}
