/**
 * Places for imports, shared fairly: a tenant whose servers send slowly, or that asks for very many imports, waits by itself. Among those
 * who wait, the tenant that imports least is next, then who came first.
 */
import { UnavailableError } from "@loraline/runtime";

export interface ImportSlots {
  /**
   * Waits for a place; disposing gives it to the next one.
   * @param onWait - called once if there is no place at once, with what is waited for.
   * @throws UnavailableError QUOTA_IMPORTS if many imports of the tenant wait here already; the signal's reason.
   */
  take(tenant: string, signal: AbortSignal, onWait: (message: string) => void): Promise<Disposable>;
}

/** Each import that waits here keeps its message from other processes, and one of the messages that this process works on. */
const mostWaiting = 2;

interface Waiting {
  tenant: string;
  start(): void;
}

/**
 * @param places - imports at once, of all tenants.
 * @param mostOf - imports at once of one tenant; null: as many as there are places.
 */
export function createImportSlots({ places, mostOf }: { places: number; mostOf: (tenant: string) => number | null }): ImportSlots {
  const running = new Map<string, number>();
  const waiting: Waiting[] = [];
  let free = places;
  const runningOf = (tenant: string): number => running.get(tenant) ?? 0;
  const hasRoom = (tenant: string): boolean => runningOf(tenant) < (mostOf(tenant) ?? Infinity);
  const next = (): void => {
    while (free > 0) {
      let best: Waiting | undefined;
      for (const one of waiting) {
        if (hasRoom(one.tenant) && (best === undefined || runningOf(one.tenant) < runningOf(best.tenant))) best = one;
      }
      if (best === undefined) return;
      waiting.splice(waiting.indexOf(best), 1);
      free -= 1;
      running.set(best.tenant, runningOf(best.tenant) + 1);
      best.start();
    }
  };
  const give = (tenant: string): void => {
    free += 1;
    const left = runningOf(tenant) - 1;
    if (left > 0) running.set(tenant, left);
    else running.delete(tenant);
    next();
  };
  return {
    async take(tenant, signal, onWait) {
      signal.throwIfAborted();
      const most = Math.min(places, mostOf(tenant) ?? Infinity);
      const message =
        runningOf(tenant) >= most
          ? `quota importsAtOnce: ${runningOf(tenant)} imports of this tenant are under way, and its quota is ${most}; it goes on when one of them has ended`
          : `all ${places} imports that may be under way at once are; it goes on when one of them has ended`;
      if (waiting.filter((one) => one.tenant === tenant).length >= mostWaiting) throw new UnavailableError("QUOTA_IMPORTS", message);
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const entry: Waiting = { tenant, start: resolve };
      const leave = (): void => {
        const at = waiting.indexOf(entry);
        if (at !== -1) waiting.splice(at, 1);
        reject(signal.reason as Error);
      };
      signal.addEventListener("abort", leave, { once: true });
      waiting.push(entry);
      next();
      if (waiting.includes(entry)) onWait(message);
      try {
        await promise;
      } finally {
        signal.removeEventListener("abort", leave);
      }
      let isGiven = false;
      return {
        [Symbol.dispose]() {
          if (!isGiven) give(tenant);
          isGiven = true;
        },
      };
    },
  };
}
