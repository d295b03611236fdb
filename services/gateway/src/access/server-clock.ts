/**
 * The clock of NATS, as one clock for all gateways. With their own clocks, which may differ by minutes, gateways would count different
 * minutes; each would take the others' counts for mistakes and begin again at zero, so that a limit had no effect. Between two answers of
 * NATS time is measured by the monotonic clock, so that a step of this machine's clock does not begin another minute.
 */
import type { KvBucket } from "@loraline/bus";
import type { Log } from "@loraline/runtime";

/** Answers that take longer than this are ignored, because their time of sending is too uncertain. */
const slowestAnswerMs = 1000;

interface ServerClock extends Disposable {
  /** Milliseconds since the epoch. */
  now(): number;
}

/** Asks NATS for its time at once, and then every `everyMs`. While NATS does not answer, the last known difference is used. */
export async function createServerClock({
  bucket,
  log,
  everyMs = 30_000,
  elapsed = () => performance.now(),
}: {
  bucket: Pick<KvBucket<unknown>, "serverTime">;
  log: Log;
  everyMs?: number;
  /** This machine's monotonic clock, in milliseconds from any moment. */
  elapsed?: () => number;
}): Promise<ServerClock> {
  /** What NATS' clock showed when the monotonic clock showed zero. Until NATS has answered in time: by this machine's clock. */
  let zero = Date.now() - elapsed();
  let toldMs = 0;
  const compare = async (): Promise<void> => {
    const began = elapsed();
    const server = await bucket.serverTime();
    const tookMs = elapsed() - began;
    if (tookMs > slowestAnswerMs) return;
    zero = server - (began + tookMs / 2);
    const aheadMs = zero + elapsed() - Date.now();
    if (Math.abs(aheadMs) > 2000 && Math.abs(aheadMs - toldMs) > 2000) {
      toldMs = aheadMs;
      log.warn({ aheadMs: Math.round(aheadMs) }, "this machine's clock and that of NATS differ; limits go by that of NATS");
    }
  };
  await compare();
  const timer = setInterval(() => {
    compare().catch((error: unknown) => log.debug({ err: error }, "the clock of NATS could not be asked"));
  }, everyMs);
  timer.unref();
  return { now: () => zero + elapsed(), [Symbol.dispose]: () => clearInterval(timer) };
}
