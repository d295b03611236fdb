/**
 * How large a message may be. An event says what happened, and bytes travel by digest, so that a large one is a mistake or an attack;
 * it is refused before anybody spends time on it, and nothing that is made of it can grow beyond what NATS takes.
 */
import { natsFull, PermanentError, UnavailableError } from "@loraline/runtime";
import type { NatsConnection } from "@nats-io/transport-node";

/** Bytes of an event's body: half of what NATS takes with its own default, so that a copy with more headers fits, too. */
export const largestEventBytes = 512 * 1024;
/** Half of what JetStream takes of headers. */
const headersBytes = 32 * 1024;

/** @throws PermanentError EVENT_TOO_LARGE */
export function checkEventSize(subject: string, bytes: number): void {
  if (bytes <= largestEventBytes) return;
  throw new PermanentError(
    "EVENT_TOO_LARGE",
    `the message on ${subject} has ${bytes} bytes, and at most ${largestEventBytes} are read. Make it smaller: data goes into the object store, and messages name its digest.`,
  );
}

const makeRoom = "The operator has to make room on its disk, or raise its limit.";

/**
 * The error itself, or UnavailableError STORE_FULL.
 * @param where - what could not be written to, such as `stream RUNS`.
 */
export function storeFullOr(error: unknown, where: string): unknown {
  const full = natsFull(error);
  return full === undefined ? error : new UnavailableError("STORE_FULL", `${where} is full (${full}). ${makeRoom}`, { cause: error });
}

/** @throws PermanentError STATE_TOO_LARGE: waiting would not help, and would hold up whatever is next. */
export function checkStateSize(nc: NatsConnection, entry: string, bytes: number): void {
  const most = (nc.info?.max_payload ?? Number.POSITIVE_INFINITY) - 2 * headersBytes;
  if (bytes <= most) return;
  throw new PermanentError(
    "STATE_TOO_LARGE",
    `KV ${entry} would have ${bytes} bytes, and NATS takes ${most}. What made it so large was stored before there was a limit; see \`loraline dlq show\`.`,
  );
}
