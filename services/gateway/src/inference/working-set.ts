/** Which LoRA names had requests lately, by what all gateways tell in KV `traffic` since this gateway started. */
import type { Bus } from "@loraline/bus";
import { buckets, everyTraffic } from "@loraline/contracts";

/** The working set is what was asked within this. */
const workingSetMs = 5 * 60_000;

export interface WorkingSet {
  /** LoRA names by engine, asked for within `workingSetMs`; the base's own name is none. */
  asked(engine: string): ReadonlySet<string>;
  /** How long this gateway has been looking, at most `workingSetMs`. */
  readonly windowMs: number;
}

/** Ends with the signal. */
export async function createWorkingSet({
  bus,
  signal,
  now = () => performance.now(),
}: {
  bus: Pick<Bus, "bucket">;
  signal: AbortSignal;
  now?: () => number;
}): Promise<WorkingSet> {
  const startedAt = now();
  /** Engine to LoRA name to when it was last asked for. */
  const askedAt = new Map<string, Map<string, number>>();
  const read = Promise.withResolvers<void>();
  const traffic = await bus.bucket(buckets.traffic);
  await traffic.watch({
    filter: everyTraffic.asked,
    signal,
    onChange(_key, state) {
      for (const [engine, names] of Object.entries(state?.asked ?? {})) {
        const known = askedAt.get(engine) ?? new Map<string, number>();
        askedAt.set(engine, known);
        for (const name of names) known.set(name, now());
      }
    },
    onReady: read.resolve,
  });
  await read.promise;
  return {
    asked(engine) {
      const names = askedAt.get(engine);
      const since = now() - workingSetMs;
      for (const [name, at] of names ?? []) if (at < since) names?.delete(name);
      return new Set(names?.keys());
    },
    get windowMs() {
      return Math.min(workingSetMs, Math.round(now() - startedAt));
    },
  };
}
