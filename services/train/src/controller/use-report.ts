/** What each tenant's runs hold, told to the other services in KV `training`: at most once a second, and only what changed. */
import type { Bus } from "@loraline/bus";
import { buckets } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";

interface Use {
  running: number;
  gpus: number;
  waiting: number;
}

interface UseReport extends AsyncDisposable {
  /** By tenant; a tenant that is not in it has nothing. */
  tell(use: ReadonlyMap<string, Use>): void;
}

const everyMs = 1000;
const none: Use = { running: 0, gpus: 0, waiting: 0 };
const isSame = (a: Use, b: Use): boolean => a.running === b.running && a.gpus === b.gpus && a.waiting === b.waiting;

/** Disposing waits for what is being written. */
export async function createUseReport({ bus, log }: { bus: Pick<Bus, "bucket">; log: Log }): Promise<UseReport> {
  const bucket = await bus.bucket(buckets.training);
  /** undefined: what stands there cannot be read, and is written again. */
  const told = new Map<string, Use | undefined>();
  const skipUnreadable = (key: string): void => void told.set(key, undefined);
  for (const { key, value } of await bucket.entries(">", { skipUnreadable })) told.set(key, value);
  let newest: ReadonlyMap<string, Use> | undefined;
  let writing: Promise<void> | undefined;
  const write = async (): Promise<void> => {
    const use = newest;
    newest = undefined;
    if (use === undefined) return;
    for (const tenant of new Set([...use.keys(), ...told.keys()])) {
      const now = use.get(tenant) ?? none;
      const before = told.get(tenant);
      if (before !== undefined && isSame(before, now)) continue;
      await bucket.put(tenant, { ...now, at: new Date().toISOString() });
      told.set(tenant, now);
    }
  };
  const timer = setInterval(() => {
    writing ??= write()
      .catch((error: unknown) => log.warn({ err: error }, "what tenants use could not be told"))
      .finally(() => (writing = undefined));
  }, everyMs);
  return {
    tell(use) {
      newest = use;
    },
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await writing;
    },
  };
}
