/** What changes in a tenant's runs, datasets and adapters, as it changes: one watch of the KV buckets for all open pages of a tenant. */
import { randomUUID } from "node:crypto";
import type { Bus } from "@loraline/bus";
import { buckets, everyKeyOf, type LiveEvent, parseAdapterKey } from "@loraline/contracts";

type Change = Exclude<LiveEvent, { type: "ready" | "beat" }>;

export interface Numbered {
  id: string;
  type: Change["type"];
  /** Of a dataset: null. */
  adapter: string | null;
  /** The change as JSON: made once for all pages. */
  json: string;
}

interface Feed extends Disposable {
  /** Id of the newest change; what comes later has another. */
  readonly newest: string;
  /** Changes since this id; undefined: the id is not known here (any more), so something may be missed. */
  since(id: string): Numbered[] | undefined;
}

export interface Changes extends Disposable {
  /** Follows a tenant until the feed is disposed. Everything that changes after the promise resolves is told. */
  follow(tenant: string, onChange: (numbered: Numbered) => void): Promise<Feed>;
}

/** Changes of a tenant that are kept for pages that come back: so many, and no more bytes of them. */
const kept = 500;
const keptBytes = 4 * 1024 ** 2;
/** How long they are kept after the last page has gone. */
const lingerMs = 60_000;

interface TenantFeed {
  readonly prefix: string;
  readonly ready: Promise<void>;
  readonly stop: AbortController;
  readonly listeners: Set<(numbered: Numbered) => void>;
  readonly recent: Numbered[];
  last: number;
  leaving: NodeJS.Timeout | undefined;
}

export async function createChanges({ bus }: { bus: Pick<Bus, "bucket"> }): Promise<Changes> {
  const [runs, datasets, adapters] = await Promise.all([
    bus.bucket(buckets.runs),
    bus.bucket(buckets.datasets),
    bus.bucket(buckets.adapters),
  ]);
  const feeds = new Map<string, TenantFeed>();

  const open = (tenant: string): TenantFeed => {
    const stop = new AbortController();
    const listeners: TenantFeed["listeners"] = new Set();
    const recent: Numbered[] = [];
    // Another gateway, or this one after a restart, counts anew, so its ids must not be taken for these.
    const prefix = randomUUID();
    let bytes = 0;
    const tell = (change: Change): void => {
      const numbered = { id: `${prefix}-${++feed.last}`, type: change.type, adapter: adapterOf(change), json: JSON.stringify(change) };
      recent.push(numbered);
      bytes += numbered.json.length;
      while (recent.length > kept || (bytes > keptBytes && recent.length > 0)) bytes -= recent.shift()?.json.length ?? 0;
      for (const listener of listeners) listener(numbered);
    };
    const filter = everyKeyOf(tenant);
    const { signal } = stop;
    /** What was there before is no change. */
    const watched = <T>(
      bucket: { watch: (options: { filter: string; signal: AbortSignal; onChange: Watcher<T>; onReady: () => void }) => Promise<void> },
      changeOf: (key: string, value: T | undefined) => Change | undefined,
    ): Promise<void> =>
      new Promise((resolve, reject) => {
        let isReady = false;
        const onChange: Watcher<T> = (key, value) => {
          const change = isReady ? changeOf(key, value) : undefined;
          if (change !== undefined) tell(change);
        };
        const onReady = (): void => {
          isReady = true;
          resolve();
        };
        bucket.watch({ filter, signal, onChange, onReady }).catch(reject);
      });
    const ready = Promise.all([
      watched(runs, (_key, run) => run && { type: "run", run }),
      watched(datasets, (_key, dataset) => dataset && { type: "dataset", dataset }),
      watched(adapters, (key) => ({ type: "adapter", adapter: parseAdapterKey(key).adapter })),
    ]).then(() => undefined);
    const feed: TenantFeed = { prefix, ready, stop, listeners, recent, last: 0, leaving: undefined };
    ready.catch(() => close(tenant, feed));
    feeds.set(tenant, feed);
    return feed;
  };
  const close = (tenant: string, feed: TenantFeed): void => {
    clearTimeout(feed.leaving);
    feed.stop.abort();
    if (feeds.get(tenant) === feed) feeds.delete(tenant);
  };

  return {
    async follow(tenant, onChange) {
      const feed = feeds.get(tenant) ?? open(tenant);
      clearTimeout(feed.leaving);
      feed.listeners.add(onChange);
      const dispose = (): void => {
        feed.listeners.delete(onChange);
        if (feed.listeners.size > 0) return;
        clearTimeout(feed.leaving);
        feed.leaving = setTimeout(() => close(tenant, feed), lingerMs);
        feed.leaving.unref();
      };
      await feed.ready.catch((error: unknown) => {
        dispose();
        throw error;
      });
      return {
        get newest() {
          return `${feed.prefix}-${feed.last}`;
        },
        since(id) {
          const [, prefix, number = ""] = /^(.*)-(\d+)$/.exec(id) ?? [];
          const missed = feed.last - Number(number);
          if (prefix !== feed.prefix || missed < 0 || missed > feed.recent.length) return undefined;
          return missed === 0 ? [] : feed.recent.slice(-missed);
        },
        [Symbol.dispose]: dispose,
      };
    },
    [Symbol.dispose]() {
      for (const [tenant, feed] of feeds) close(tenant, feed);
    },
  };
}

const adapterOf = (change: Change): string | null =>
  change.type === "run" ? change.run.spec.adapter : change.type === "adapter" ? change.adapter : null;

type Watcher<T> = (key: string, value: T | undefined, revision: number) => void;
