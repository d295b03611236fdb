/** Tells serve which versions are asked for by name, so that they are loaded again, or stay loaded. */
import type { Bus } from "@loraline/bus";
import { adapterVersionWanted } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import type { NamedVersion } from "./decide-route.ts";

/** A version is asked for at most once in so long, by all gateways together: NATS stores one message for each such period. */
const askEveryMs = 5000;

/** Forgotten from this size on; then a version may be asked for once more than needed, which the stream's own check catches. */
const mostRemembered = 10_000;

/** @returns to be called with each request that names a version; costs nothing unless it is time to ask. */
export function createVersionAsker({ bus, log, now = Date.now }: { bus: Pick<Bus, "publish">; log: Log; now?: () => number }) {
  const askedIn = new Map<string, number>();
  return (tenant: string, { adapter, version, wanted }: NamedVersion): void => {
    const time = now();
    if (wanted && time < (Date.parse(wanted.at) + Date.parse(wanted.until)) / 2) return;
    const period = Math.floor(time / askEveryMs);
    const name = `${tenant}/${adapter}@${version}`;
    if (askedIn.get(name) === period) return;
    if (askedIn.size >= mostRemembered) askedIn.clear();
    askedIn.set(name, period);
    bus.publish(adapterVersionWanted, { tenant, id: adapter }, { version }, { key: `${version}-${period}` }).catch((error: unknown) => {
      askedIn.delete(name);
      log.warn({ err: error, model: name }, "a version that is asked for could not be asked of serve");
    });
  };
}
