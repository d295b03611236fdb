/** What this gateway is serving, in KV `traffic`: for draining before an unload, for judging a canary, for sizing the working set. */
import type { Bus } from "@loraline/bus";
import { buckets, type TrafficState } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { ulid } from "ulid";

const windowMs = 60_000;
/** Newest first-byte times that are kept of each name; of a busier one the percentiles are about these. */
const samplesKept = 1024;
/** Totals of a name without requests for this long are dropped, because every version has a name of its own. */
const forgottenAfterMs = 60 * 60_000;

interface TrafficRequest {
  /** The engine's answer begins: its status and headers are here. Later calls do nothing. */
  firstByte(): void;
  /**
   * The request is over; later calls do nothing. `served` and `failed` count, `ignored` does not: what the client did wrong,
   * and a client that left before the first byte, say nothing about the version.
   */
  end(outcome: "served" | "failed" | "ignored", tokens?: { prompt: number; completion: number }): void;
}

export interface Traffic extends AsyncDisposable {
  /** The key under which this gateway reports: new with each start. */
  readonly gateway: string;
  /** Counts a request as in flight on a replica until it ends. */
  begin(at: { engineModel: string; engine: string; replica: string }): TrafficRequest;
}

interface Counted {
  engine: string;
  inFlight: Map<string, number>;
  total: TrafficState["engines"][number]["total"];
  /** Ring. */
  samples: { at: number; ms: number }[];
  next: number;
  usedAt: number;
}

/**
 * Reports after `everyMs` while anything changes, and at least after `atLeastEveryMs`. A report that the bus does not take is
 * only logged: the next one holds the same and more. Disposing removes the entry.
 */
export async function createTraffic({
  bus,
  log,
  everyMs = 1000,
  atLeastEveryMs = 5000,
  now = () => performance.now(),
}: {
  bus: Pick<Bus, "bucket">;
  log: Log;
  everyMs?: number;
  atLeastEveryMs?: number;
  now?: () => number;
}): Promise<Traffic> {
  const bucket = await bus.bucket(buckets.traffic);
  const gateway = ulid();
  const names = new Map<string, Counted>();
  let changed = true;
  let reportedAt = Number.NEGATIVE_INFINITY;
  let reporting: Promise<unknown> = Promise.resolve();
  let ended = false;

  const countedOf = (engineModel: string, engine: string): Counted => {
    let counted = names.get(engineModel);
    if (counted === undefined) {
      const total = { requests: 0, errors: 0, firstByteMs: 0, promptTokens: 0, completionTokens: 0, since: new Date().toISOString() };
      counted = { engine, inFlight: new Map(), total, samples: [], next: 0, usedAt: now() };
      names.set(engineModel, counted);
    }
    return counted;
  };

  const report = async (): Promise<void> => {
    const time = now();
    changed = false;
    reportedAt = time;
    const engines: TrafficState["engines"] = [];
    for (const [engineModel, { engine, inFlight, total, samples, usedAt }] of names) {
      const recent = samples.filter(({ at }) => time - at <= windowMs).map(({ ms }) => ms);
      if (recent.length > 0 || inFlight.size > 0) {
        recent.sort((a, b) => a - b);
        const window = { requests: recent.length, firstByteP50Ms: percentile(recent, 0.5), firstByteP95Ms: percentile(recent, 0.95) };
        engines.push({ engineName: engineModel, engine, inFlight: Object.fromEntries(inFlight), total: { ...total }, window });
      } else if (time - usedAt > forgottenAfterMs) names.delete(engineModel);
    }
    await bucket.put(gateway, { gateway, at: new Date().toISOString(), windowMs, engines });
  };
  const tick = (): void => {
    if (!changed && now() - reportedAt < atLeastEveryMs) return;
    reporting = report().catch((error: unknown) => {
      changed = true;
      log.warn({ err: error }, "traffic was not reported");
    });
  };
  let busy = false;
  const timer = setInterval(() => {
    if (busy) return;
    busy = true;
    tick();
    void reporting.finally(() => {
      busy = false;
    });
  }, everyMs);
  timer.unref();
  await report();

  return {
    gateway,
    begin({ engineModel, engine, replica }) {
      const counted = countedOf(engineModel, engine);
      counted.inFlight.set(replica, (counted.inFlight.get(replica) ?? 0) + 1);
      changed = true;
      const began = now();
      let firstByteMs: number | undefined;
      let over = false;
      return {
        firstByte() {
          firstByteMs ??= now() - began;
        },
        end(outcome, tokens) {
          if (over) return;
          over = true;
          changed = true;
          const time = now();
          counted.usedAt = time;
          const left = (counted.inFlight.get(replica) ?? 1) - 1;
          if (left > 0) counted.inFlight.set(replica, left);
          else counted.inFlight.delete(replica);
          if (outcome === "ignored") return;
          const ms = firstByteMs ?? time - began;
          counted.samples[counted.next] = { at: time, ms };
          counted.next = (counted.next + 1) % samplesKept;
          const { total } = counted;
          total.requests += 1;
          total.firstByteMs += ms;
          if (outcome === "failed") total.errors += 1;
          total.promptTokens += tokens?.prompt ?? 0;
          total.completionTokens += tokens?.completion ?? 0;
        },
      };
    },
    async [Symbol.asyncDispose]() {
      if (ended) return;
      ended = true;
      clearInterval(timer);
      await reporting;
      // The bucket's TTL does it when the bus is away.
      await bucket.delete(gateway).catch((error: unknown) => log.debug({ err: error }, "traffic entry left to its TTL"));
    },
  };
}

/** Percentile of sorted numbers by nearest rank, rounded to one decimal. */
function percentile(sorted: readonly number[], share: number): number | null {
  const value = sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)];
  return value === undefined ? null : Math.round(value * 10) / 10;
}
