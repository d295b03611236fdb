/** The events of an attempt, published in order, however long NATS is away. */
import type { Bus } from "@loraline/bus";
import type { EventAddress, EventDef, EventInput } from "@loraline/contracts";
import { keepTrying, type Log } from "@loraline/runtime";

export interface Outbox {
  /**
   * Resolves when the event is stored. Rejects only when it can never be, as for a breach of the contract. This is logged too, so that
   * the caller need not await events that nothing depends on.
   */
  send<E extends EventDef>(event: E, data: EventInput<E>, key?: string): Promise<void>;
  /** Resolves when everything that was sent so far is stored or has been given up on. */
  drained(): Promise<void>;
}

interface OutboxDeps {
  bus: Pick<Bus, "publish">;
  at: EventAddress;
  /** Carried by every event. */
  traceparent: string;
  log: Log;
}

export function createOutbox({ bus, at, traceparent, log }: OutboxDeps): Outbox {
  let last: Promise<void> = Promise.resolve();
  return {
    send(event, data, key) {
      const publish = () => bus.publish(event, at, data, { traceparent, ...(key === undefined ? {} : { key }) });
      const sent = last.then(async () => {
        await keepTrying(`publish ${event.type}`, publish, { log });
      });
      // `last` handles the rejection as well, so the caller need not.
      last = sent.catch((error: unknown) => log.error({ err: error, type: event.type }, "event given up on"));
      return sent;
    },
    drained: () => last,
  };
}

/** For every node but the first, which alone publishes. */
export const silentOutbox: Outbox = { send: async () => {}, drained: async () => {} };
