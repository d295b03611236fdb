/**
 * The clock of NATS, as one clock for all gateways. With their own clocks, which may differ by minutes, gateways would count different
 * minutes; each would take the others' counts for mistakes and begin again at zero, so that a limit had no effect.
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
  ownNow = () => Date.now(),
}: {
  bucket: Pick<KvBucket<unknown>, "serverTime">;
  log: Log;
  everyMs?: number;
  /** This machine's clock. */
  ownNow?: () => number;
}): Promise<ServerClock> {
  let aheadMs = 0;
  const compare = async (): Promise<void> => {
    const asked = ownNow();
    const began = performance.now();
    const server = await bucket.serverTime();
    const tookMs = performance.now() - began;
    if (tookMs > slowestAnswerMs) return;
    const before = aheadMs;
    aheadMs = server - (asked + tookMs / 2);
    if (Math.abs(aheadMs) > 2000 && Math.abs(aheadMs - before) > 2000)
      log.warn({ aheadMs: Math.round(aheadMs) }, "this machine's clock and that of NATS differ; limits go by that of NATS");
  };
  await compare();
  const timer = setInterval(() => {
    compare().catch((error: unknown) => log.debug({ err: error }, "the clock of NATS could not be asked"));
  }, everyMs);
  timer.unref();
  return { now: () => ownNow() + aheadMs, [Symbol.dispose]: () => clearInterval(timer) };
}
