/** Leaving: a replica whose engine is about to be ended tells the gateways, and waits until they have nothing in flight on it. */
import type { Log } from "@loraline/runtime";

export interface LeaveLimits {
  /** A replica waits this long at most for requests in flight. */
  mostMs: number;
  /** It waits this long for gateways that say nothing. */
  unknownMs: number;
  pollMs: number;
}
export const leaveLimits: LeaveLimits = { mostMs: 75_000, unknownMs: 20_000, pollMs: 200 };

interface DrainDeps {
  engine: { readonly ready: boolean; readonly incarnation: string };
  /** Writes the replica's report, which then says that it is leaving. False: it could not be written. */
  announce(): Promise<boolean>;
  /** Whether requests to this replica are in flight, by what gateways said after `since` (ms since the epoch). */
  anyRequests(since: number): "none" | "some" | "unknown";
  now(): number;
  /** Resolves after this many ms; rejects when the agent stops. */
  wait(ms: number): Promise<unknown>;
  log: Log;
  limits?: LeaveLimits;
}

interface Drain {
  /** The engine process that runs now is about to be ended. */
  isLeaving(): boolean;
  /** Resolves with what came of it, in words. Calls that come while one is waiting share its answer. */
  drain(): Promise<string>;
}

export function createDrain({ engine, announce, anyRequests, now, wait, log, limits = leaveLimits }: DrainDeps): Drain {
  /** The engine process that is about to end: another one that comes up afterwards is served from again. */
  let leavingIncarnation: string | undefined;
  let draining: Promise<string> | undefined;
  const isLeaving = (): boolean => leavingIncarnation !== undefined && leavingIncarnation === engine.incarnation;

  const waitForRequests = async (): Promise<string> => {
    // An engine that does not answer serves no request; its restart must not wait.
    if (!engine.ready) return "the engine does not answer";
    leavingIncarnation = engine.incarnation;
    const asked = now();
    log.info("about to end: gateways are told");
    /** What a gateway said before this time does not count: it may have sent a request since. */
    let announcedAt: number | undefined;
    for (;;) {
      if (announcedAt === undefined && (await announce())) announcedAt = now();
      const tookMs = now() - asked;
      const requests = announcedAt === undefined ? "unknown" : anyRequests(announcedAt);
      if (requests === "none") return `no request is in flight after ${tookMs} ms`;
      if (!isLeaving()) return "the engine has ended";
      if (requests === "unknown" && tookMs > limits.unknownMs)
        return `a gateway says nothing since ${tookMs} ms; it is not waited for any more`;
      if (tookMs > limits.mostMs) return `requests are still in flight after ${tookMs} ms; they are not waited for any more`;
      await wait(limits.pollMs);
    }
  };

  return {
    isLeaving,
    drain() {
      draining ??= waitForRequests()
        .then((what) => {
          log.info({ what }, "drained");
          return what;
        })
        .finally(() => {
          draining = undefined;
        });
      return draining;
    },
  };
}
