/** A KV bucket kept in memory: read whole first, then followed. Units follow it once they are all there, so none has to wait for another. */
import type { KvBucket } from "@loraline/bus";

export interface WatchedTable<T> {
  get(key: string): T | undefined;
  entries(): IterableIterator<[string, T]>;
  values(): IterableIterator<T>;
  /** Calls `listener` for every entry that is there, at once, and from then on for every change. `value` undefined: it was removed. */
  follow(listener: (key: string, value: T | undefined, before: T | undefined) => void): void;
}

/** Resolves when it holds everything that was in the bucket. Ends with the signal. */
export async function createWatchedTable<T>(bucket: Pick<KvBucket<T>, "watch">, signal: AbortSignal): Promise<WatchedTable<T>> {
  const values = new Map<string, T>();
  const listeners: ((key: string, value: T | undefined, before: T | undefined) => void)[] = [];
  const read = Promise.withResolvers<void>();
  await bucket.watch({
    signal,
    onChange(key, value) {
      const before = values.get(key);
      if (value === undefined) values.delete(key);
      else values.set(key, value);
      for (const listener of listeners) listener(key, value, before);
    },
    onReady: read.resolve,
  });
  await read.promise;
  return {
    get: (key) => values.get(key),
    entries: () => values.entries(),
    values: () => values.values(),
    follow(listener) {
      listeners.push(listener);
      for (const [key, value] of values) listener(key, value, undefined);
    },
  };
}
