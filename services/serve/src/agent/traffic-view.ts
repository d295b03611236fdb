/**
 * What gateways say of requests in flight on one replica, from KV `traffic`: an adapter is not unloaded under a request. They tell those that are
 * in flight where no more are sent; so what is asked about has to be out of routing.
 */
import type { Bus } from "@loraline/bus";
import { buckets, everyTraffic } from "@loraline/contracts";

/** A gateway writes every second while such requests change or a replica drains, and at least every 5 s. */
const silentAfterMs = 11_000;
/** An entry this old is of a gateway that is gone. The bucket's TTL has removed the entry, but removals by TTL reach no watcher. */
const forgottenAfterMs = 60_000;
/** A gateway follows a change of routing within this time. */
const routingLagMs = 1000;

interface TrafficView {
  /**
   * Requests to a LoRA name on this replica. `none` only when every gateway has said so, in a report from after `since` (when
   * the name was taken out of routing, ms since the epoch); `unknown` when one has not yet, fell silent, or none is known.
   */
  requests(loraName: string, since: number): "none" | "some" | "unknown";
  /** The same of all requests to this replica; `none` also when no gateway is known, and has not been for as long as one may be silent. */
  anyRequests(since: number): "none" | "some" | "unknown";
}

/** Resolves when it has read what there was; ends with the signal. */
export async function createTrafficView({
  bus,
  replica,
  signal,
  now = Date.now,
}: {
  bus: Pick<Bus, "bucket">;
  replica: string;
  signal: AbortSignal;
  now?: () => number;
}): Promise<TrafficView> {
  const gateways = new Map<string, { heardAt: number; inFlight: Set<string> }>();
  // Entries that are there at the start may be old, or of a gateway that is gone: they count as heard before any time that is asked about.
  let heardAt = (): number => 0;
  const read = Promise.withResolvers<void>();
  const bucket = await bus.bucket(buckets.traffic);
  await bucket.watch({
    filter: everyTraffic.inFlight,
    signal,
    onChange(key, state) {
      if (state === undefined) gateways.delete(key);
      else {
        const here = state.engines.filter(({ inFlight }) => (inFlight[replica] ?? 0) > 0);
        gateways.set(key, { heardAt: heardAt(), inFlight: new Set(here.map(({ engineName }) => engineName)) });
      }
    },
    onReady() {
      const readAt = now();
      for (const gateway of gateways.values()) gateway.heardAt = readAt - silentAfterMs;
      heardAt = now;
      read.resolve();
    },
  });
  await read.promise;
  const ask = (since: number, has: (inFlight: ReadonlySet<string>) => boolean): "none" | "some" | "unknown" | "nobody" => {
    const time = now();
    let answer: "none" | "unknown" | undefined;
    for (const [key, { heardAt: at, inFlight }] of gateways) {
      if (time - at > forgottenAfterMs) gateways.delete(key);
      else if (time - at > silentAfterMs || at < since + routingLagMs) answer = "unknown";
      else if (has(inFlight)) return "some";
      else answer ??= "none";
    }
    return answer ?? "nobody";
  };
  return {
    requests(loraName, since) {
      const answer = ask(since, (inFlight) => inFlight.has(loraName));
      return answer === "nobody" ? "unknown" : answer;
    },
    anyRequests(since) {
      const answer = ask(since, (inFlight) => inFlight.size > 0);
      if (answer !== "nobody") return answer;
      return now() - since > silentAfterMs ? "none" : "unknown";
    },
  };
}
