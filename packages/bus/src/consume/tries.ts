/** How often a message was begun. Whoever dies cannot say so, therefore it is written before: a handler may take its process down. */
import type { waitedState } from "@loraline/contracts";
import { natsOutage } from "@loraline/runtime";
import type { z } from "zod";
import type { KvBucket } from "../kv.ts";

type Waited = z.output<typeof waitedState>;

export interface Tries {
  /** Reads what earlier deliveries left behind, once. Others of its functions need that. @throws what NATS throws */
  load(): Promise<void>;
  /** Tries before this delivery that ended with an error, or with their process. */
  failed(): number;
  /** This try, from 1, among all that were begun. */
  begun(): number;
  /** Of those begun before, which were put off, and which of these for a server that was away. */
  putOff(): number;
  away(): number;
  /** Writes down that this delivery is begun. Of the first one nothing is written, so that what goes well costs nothing. */
  begin(): Promise<void>;
  /** Writes down that it is put off. What could not be read is not overwritten. */
  putOffNow(isAway: boolean): Promise<void>;
}

/** @param deliveries - of the message, this one included. */
export function createTries(bucket: KvBucket<Waited>, key: string, deliveries: number): Tries {
  /** What stood there before this delivery; `begun` is without it. */
  let before: (Waited & { begun: number }) | undefined = deliveries > 1 ? undefined : { deliveries: 0, away: 0, begun: 0 };
  return {
    async load() {
      if (before !== undefined) return;
      const found = await bucket.get(key).then(
        (entry) => entry?.value,
        // An entry that cannot be read says nothing; the message must not wait for ever because of it. It is overwritten by `begin`.
        (error: unknown) => {
          if (natsOutage(error) === undefined) return undefined;
          throw error;
        },
      );
      // Only the first delivery is begun without an entry. An entry without the number is of a release that took every delivery for begun.
      if (found === undefined) before = { deliveries: 0, away: 0, begun: 1 };
      else before = { ...found, begun: found.begun ?? deliveries - 1 };
    },
    failed: () => Math.max(0, (before?.begun ?? 0) - (before?.deliveries ?? 0)),
    begun: () => (before?.begun ?? 0) + 1,
    putOff: () => before?.deliveries ?? 0,
    away: () => before?.away ?? 0,
    async begin() {
      if (before === undefined || deliveries === 1) return;
      await bucket.put(key, { ...before, begun: before.begun + 1 });
    },
    async putOffNow(isAway) {
      if (before === undefined) return;
      const away = before.away + (isAway ? 1 : 0);
      await bucket.put(key, { deliveries: before.deliveries + 1, away, begun: before.begun + 1 });
    },
  };
}
