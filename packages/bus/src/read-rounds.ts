/**
 * What a stream has, in rounds of few bytes. A pull says how many messages it wants, and they come however large they are: what the reader has
 * no time for grows in its memory, or in the server's, which cuts off a client of which too much waits. So sizes are asked for first.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { type Log, UnavailableError } from "@loraline/runtime";
import { type DeliverPolicy, jetstream, type JsMsg, type StoredMsg } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import { headersOf } from "./envelope.ts";

/** Bytes of a round, but for the last message of it. */
export const roundBytes = 4 * 1024 ** 2;
/** Messages of a round. */
const mostAtOnce = 1000;
/** So few are read without asking for their sizes: NATS takes a megabyte for one, unless it is told otherwise. */
const few = 4;
/** Pulls, one after the other, that may bring nothing of what the server says it has: it may be gone a moment later. */
const mostMisses = 3;

/** Reading so many bytes takes long enough to be felt by whoever else this process serves. */
const turnBytes = 64 * 1024;

/** @returns to be called with the bytes of each message that is read: lets others use the thread after some of them. */
export function createTurns(): (bytes: number) => Promise<void> {
  let read = 0;
  return async (bytes) => {
    read += bytes;
    if (read < turnBytes) return;
    read = 0;
    await nextTurn();
  };
}

interface Size {
  seq: number;
  bytes: number;
}

/** Bytes of a message of which only the headers were asked for. */
export const sizeOf = (message: JsMsg): number => Number(headersOf(() => message.headers)?.get("Nats-Msg-Size")) || 0;

/** @returns how many messages after this sequence make a round. */
function createRounds(sizes: readonly Size[], others: number): (seq: number) => number {
  let next = 0;
  return (seq) => {
    while ((sizes[next]?.seq ?? Number.POSITIVE_INFINITY) <= seq) next++;
    let count = 0;
    for (let bytes = 0; bytes < roundBytes && count < mostAtOnce && next + count < sizes.length; count++)
      bytes += sizes[next + count]?.bytes ?? 0;
    // What came since the sizes were asked for.
    return count === 0 ? others : count;
  };
}

/** @returns messages of which only the headers were read, in their order, as rounds. */
export function* roundsOf(heads: readonly JsMsg[]): Generator<JsMsg[]> {
  let round: JsMsg[] = [];
  let bytes = 0;
  for (const head of heads) {
    round.push(head);
    bytes += sizeOf(head);
    if (bytes < roundBytes && round.length < mostAtOnce) continue;
    yield round;
    [round, bytes] = [[], 0];
  }
  if (round.length > 0) yield round;
}

/**
 * The messages that match, oldest first, until there are no more.
 * @throws UnavailableError BUS_UNAVAILABLE rather than end before.
 */
export async function* readRounds(
  { nc, stream, log }: { nc: NatsConnection; stream: string; log: Log },
  which: { filter_subjects: string | string[]; deliver_policy?: DeliverPolicy; headers_only?: boolean },
): AsyncGenerator<JsMsg> {
  // A copy, because the client writes the consumer's name into it.
  const consumer = await jetstream(nc).consumers.get(stream, { ...which });
  const turn = createTurns();
  try {
    let left = (await consumer.info()).num_pending;
    const isSmall = which.headers_only === true;
    const sizes: Size[] = [];
    if (!isSmall && left > few) {
      for await (const message of readRounds({ nc, stream, log }, { ...which, headers_only: true }))
        sizes.push({ seq: message.seq, bytes: sizeOf(message) });
    }
    const countAfter = createRounds(sizes, isSmall ? mostAtOnce : few);
    let last: { consumer: string; nth: number; seq: number } = { consumer: "", nth: 0, seq: 0 };
    for (let misses = 0; left > 0;) {
      let read = 0;
      for await (const message of await consumer.fetch({ max_messages: Math.min(left, countAfter(last.seq)), expires: 5000 })) {
        read++;
        const { consumer: name, deliverySequence: nth, pending } = message.info;
        last = { consumer: name, nth, seq: message.seq };
        left = pending;
        yield message;
        await turn(message.data.byteLength);
        if (left === 0) break;
      }
      misses = read === 0 ? misses + 1 : 0;
      if (read > 0) continue;
      // What was there was erased meanwhile, or has expired; or it was sent, and was lost with the connection.
      const { name, num_pending: unsent, delivered } = await consumer.info();
      const isLost = delivered.consumer_seq > (name === last.consumer ? last.nth : 0);
      if (isLost || misses === mostMisses)
        throw new UnavailableError("BUS_UNAVAILABLE", `NATS gave only a part of what it has in ${stream}`);
      left = unsent;
    }
  } finally {
    // Left alone it would stay for minutes, and a stream holds only so many.
    await consumer.delete().catch((error: unknown) => log.debug({ err: error, stream }, "consumer not removed"));
  }
}

/** Ticks without a message, each of so many ms, after which an answer counts as broken off. Two, so that a pause of this process is none. */
const silentTicks = { ms: 5000, most: 2 };

/**
 * What the server answers to one question, whole. The client's own reading never ends when the connection is lost in the middle of it.
 * @throws UnavailableError BUS_UNAVAILABLE then.
 */
export async function wholeAnswer(
  reading: Promise<AsyncIterable<StoredMsg> & { stop(error: Error): void }>,
  stream: string,
): Promise<StoredMsg[]> {
  const messages = await reading;
  const found: StoredMsg[] = [];
  let silent = 0;
  const watch = setInterval(() => {
    if (++silent >= silentTicks.most)
      messages.stop(new UnavailableError("BUS_UNAVAILABLE", `NATS broke off in the middle of what it has in ${stream}`));
  }, silentTicks.ms);
  try {
    for await (const message of messages) {
      silent = 0;
      found.push(message);
    }
  } catch (error) {
    // None is an answer; and what came before one that is gone did come.
    if (!/no messages|message not found|404/i.test((error as Error).message)) throw error;
  } finally {
    clearInterval(watch);
  }
  return found;
}
