/** What an attempt has to say, in order, however long the server is away. */
import type { Bus } from "@loraline/bus";
import type { EventAddress, EventDef, EventInput } from "@loraline/contracts";
import { type Log, PermanentError } from "@loraline/runtime";

export interface Outbox {
  /**
   * Resolves when it is stored. Rejects only when it can never be, as for a breach of the contract; this is logged, so
   * what is told by the way need not be awaited.
   */
  send<E extends EventDef>(event: E, data: EventInput<E>, key?: string): Promise<void>;
  /** Resolves when everything that was sent so far is stored or has been given up on. */
  drained(): Promise<void>;
}

export interface OutboxDeps {
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
        await patiently(`publish ${event.type}`, publish, { log });
      });
      last = sent.catch((error: unknown) => log.error({ err: error, type: event.type }, "event given up on"));
      // `last` handles the rejection as well, so nobody has to.
      return sent;
    },
    drained: () => last,
  };
}

/** Of whoever is not the one to speak. */
export const silentOutbox: Outbox = { send: async () => {}, drained: async () => {} };

/**
 * Repeats what fails while a server is away. Everything done through it is idempotent: ids and digests see to that.
 *
 * @param patienceMs - when to give up; default never.
 * @throws at once what will never work: PermanentError, and what the file system says about a file.
 */
export async function patiently<T>(what: string, work: () => Promise<T>, options: { log: Log; patienceMs?: number }): Promise<T> {
  const { log, patienceMs = Infinity } = options;
  const since = performance.now();
  for (let failed = 1; ; failed++) {
    try {
      return await work();
    } catch (error) {
      const aboutFile = typeof (error as NodeJS.ErrnoException).syscall === "string" && (error as NodeJS.ErrnoException).path !== undefined;
      if (error instanceof PermanentError || aboutFile || performance.now() - since > patienceMs) throw error;
      log.warn({ err: error, what, failed }, "not possible now; trying again");
      await new Promise((resolve) => setTimeout(resolve, Math.min(2000, 100 * 2 ** failed)));
    }
  }
}
