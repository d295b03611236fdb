/**
 * Work queue of keys for reconcilers: a key is never worked on twice at once, adding a waiting key changes nothing, and a
 * key added while it is being worked on runs once more afterwards. Holds keys, not events: the work on a key reads the present state.
 */
import { backoffMs } from "./errors.ts";
import type { Log } from "./log.ts";
import type { Metrics } from "./metrics.ts";

export interface KeyedQueue extends AsyncDisposable {
  add(key: string): void;
  /** Adds the key after `afterMs`, unless an earlier wake-up is planned for it. */
  addAfter(key: string, afterMs: number): void;
}

interface KeyedQueueOptions {
  /** Keys in work at once. */
  concurrency: number;
  /** What it throws is logged, and the key comes back after a growing delay (0.5 s to 60 s). */
  work(key: string): Promise<void>;
  log: Log;
  /** Under which name its work is counted. Absent: it is not. */
  measured?: { metrics: Metrics; name: string };
}

/** Disposing waits for what is being worked on and drops the rest. */
export function createKeyedQueue({ concurrency, work, log, measured }: KeyedQueueOptions): KeyedQueue {
  const over = measured && measure(measured.metrics, measured.name);
  const scraped = measured && tellDepth(measured.metrics, measured.name, () => waiting.size);
  const waiting = new Set<string>();
  const running = new Map<string, Promise<void>>();
  const timers = new Map<string, { timer: NodeJS.Timeout; at: number }>();
  const failures = new Map<string, number>();
  let stopped = false;

  const next = (): void => {
    for (const key of waiting) {
      if (stopped || running.size >= concurrency) return;
      if (running.has(key)) continue;
      waiting.delete(key);
      running.set(key, run(key));
    }
  };

  const run = async (key: string): Promise<void> => {
    const startedAt = performance.now();
    try {
      await work(key);
      failures.delete(key);
      over?.("done", startedAt);
    } catch (error) {
      over?.("failed", startedAt);
      const failed = (failures.get(key) ?? 0) + 1;
      failures.set(key, failed);
      log.warn({ err: error, key, failed, afterMs: backoffMs(failed) }, "reconcile failed; it will be tried again");
      queue.addAfter(key, backoffMs(failed));
    } finally {
      running.delete(key);
      next();
    }
  };

  const queue: KeyedQueue = {
    add(key) {
      if (stopped) return;
      waiting.add(key);
      next();
    },
    addAfter(key, afterMs) {
      if (stopped) return;
      const at = performance.now() + afterMs;
      const planned = timers.get(key);
      if (planned !== undefined && planned.at <= at) return;
      clearTimeout(planned?.timer);
      const timer = setTimeout(() => {
        timers.delete(key);
        queue.add(key);
      }, afterMs);
      timers.set(key, { timer, at });
    },
    async [Symbol.asyncDispose]() {
      stopped = true;
      scraped?.[Symbol.dispose]();
      waiting.clear();
      for (const { timer } of timers.values()) clearTimeout(timer);
      timers.clear();
      await Promise.all(running.values());
    },
  };
  return queue;
}

function tellDepth(metrics: Metrics, queue: string, waiting: () => number): Disposable {
  const depth = metrics.gauge({ name: "loraline_reconcile_waiting", help: "Keys that wait to be reconciled", labels: ["queue"] });
  return metrics.beforeScrape(() => depth.set({ queue }, waiting()));
}

function measure(metrics: Metrics, queue: string): (outcome: "done" | "failed", startedAt: number) => void {
  const seconds = metrics.histogram({
    name: "loraline_reconcile_seconds",
    help: "Reconciling a key. outcome: done; failed (it is tried again)",
    labels: ["queue", "outcome"],
    buckets: [0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60],
  });
  return (outcome, startedAt) =>
    seconds.observe({ labels: { queue, outcome }, value: (performance.now() - startedAt) / 1000, exemplarLabels: {} });
}
