/** What an attempt has to say, in order, however long the server is away. */
import type { Bus, WaitReason } from "@loraline/bus";
import type { EventAddress, EventDef, EventInput } from "@loraline/contracts";
import { type Log, messageOf, PermanentError, RetryLaterError, UnavailableError } from "@loraline/runtime";

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

export interface Patience {
  log: Log;
  /** When to give up, unless it is known that a server is away, which is waited for however long it takes. Default never. */
  patienceMs?: number;
  /** Whether it is not worth waiting any more, in words; asked after each failure. */
  givenUp?: () => Promise<string | undefined>;
  /** Called at each failure once a server has been away for a moment, and with null when it is back. */
  onWait?: (reason: WaitReason | null) => void;
}

/** So long nobody is told that it waits: a restart of a server is over by then. */
const tellAfterMs = 1000;

/**
 * Repeats what fails while a server is away. Everything done through it is idempotent: ids and digests see to that.
 *
 * @throws at once what will never work: PermanentError, and what the file system says about a file. RetryLaterError `PREEMPTED` when
 *   it was given up.
 */
export async function patiently<T>(what: string, work: () => Promise<T>, options: Patience): Promise<T> {
  const { log, patienceMs = Infinity, givenUp, onWait } = options;
  const since = performance.now();
  let told = false;
  for (let failed = 1; ; failed++) {
    try {
      const done = await work();
      if (told) onWait?.(null);
      return done;
    } catch (error) {
      const aboutFile = typeof (error as NodeJS.ErrnoException).syscall === "string" && (error as NodeJS.ErrnoException).path !== undefined;
      const away = error instanceof UnavailableError;
      if (error instanceof PermanentError || aboutFile || (!away && performance.now() - since > patienceMs)) throw error;
      // Every two seconds the same would fill the log.
      log[failed <= 3 || failed % 30 === 0 ? "warn" : "debug"]({ err: error, what, failed }, "not possible now; trying again");
      const why = await givenUp?.();
      if (why !== undefined)
        throw new RetryLaterError("PREEMPTED", 0, `${why}, while it was to ${what}: ${messageOf(error)}`, { cause: error });
      if (away && performance.now() - since >= tellAfterMs) {
        told = true;
        onWait?.({ code: error.code, message: `to ${what}: ${error.message}` });
      }
      await new Promise((resolve) => setTimeout(resolve, Math.min(2000, 100 * 2 ** failed)));
    }
  }
}
