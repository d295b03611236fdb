/** Dead letters: copies of messages that could not be processed, kept in the stream DLQ until somebody redrives them. */
import {
  type ConsumerDef,
  deadLetterSubject,
  type DeadLetterView,
  parseDeadLetterSubject,
  streams,
  tenantOfSubject,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { dedupeId, headersOf } from "./envelope.ts";
import { headersBytes, largestEventBytes } from "./sizes.ts";
import { jetstream, jetstreamManager, type JsMsg, type StoredMsg } from "@nats-io/jetstream";
import { headers, type MsgHdrs, type NatsConnection } from "@nats-io/transport-node";

const prefix = "Loraline-Dlq-";
/**
 * Headers that are not copied: NATS does what its own say, such as storing a message only if it comes to a certain stream, and a copy
 * that NATS refuses could never be stored. Ours say what happened to the original.
 */
const notCopied = /^(nats-|loraline-dlq-)/i;
/** Characters. */
const longestReason = 8000;
/** Letters in a list, and bytes of their data together. */
const mostListed = 1000;
const mostListedBytes = 4 * 1024 ** 2;

const subjectOf = ({ stream, durable }: ConsumerDef, seq: number): string => deadLetterSubject({ stream: stream.name, durable, seq });

/** Copies a message into the DLQ and waits until it is stored; only then may the original be terminated. */
export async function buryLetter(
  nc: NatsConnection,
  letter: { def: ConsumerDef; message: JsMsg; code: string; reason: string; deliveries: number },
): Promise<void> {
  const { def, message } = letter;
  const copy = headers();
  const given = [...(headersOf(() => message.headers) ?? [])]
    .filter(([key]) => !notCopied.test(key))
    .flatMap(([key, values]) => values.map((value): [string, string] => [key, value]));
  // A dead letter must always fit, or its message would be delivered for ever. Data that is too large stays in the original message.
  const headersFit = given.reduce((sum, [key, value]) => sum + key.length + value.length, 0) <= headersBytes;
  if (headersFit) for (const [key, value] of given) copy.append(key, value);
  const id = subjectOf(def, message.seq);
  copy.set("Nats-Msg-Id", id);
  copy.set(`${prefix}Subject`, message.subject);
  copy.set(`${prefix}Code`, letter.code);
  // It may quote anything, also half a character, which cannot be encoded; and a header is no place for a book.
  copy.set(`${prefix}Message`, encodeURIComponent(letter.reason.slice(0, longestReason).toWellFormed()));
  copy.set(`${prefix}Deliveries`, String(letter.deliveries));
  const { length } = message.data;
  if (length > largestEventBytes) copy.set(`${prefix}Omitted-Bytes`, String(length));
  await jetstream(nc).publish(id, length > largestEventBytes ? new Uint8Array() : message.data, { headers: copy, msgID: id });
}

export interface DeadLetters {
  /** The newest 1,000, newest first; those after the first 4 MiB of data without it (`omittedBytes`). */
  list(tenant?: string): Promise<DeadLetterView[]>;
  get(seq: number): Promise<DeadLetterView | undefined>;
  /** The letter of the message that has this sequence in the consumer's stream. */
  of(consumer: ConsumerDef, seq: number): Promise<DeadLetterView | undefined>;
  /**
   * Publishes the original message again and removes the letter. Dying in between leaves the letter, and handlers are
   * idempotent, so redriving twice is harmless.
   * @throws PermanentError LETTER_UNKNOWN, LETTER_TOO_LARGE
   */
  redrive(seq: number): Promise<void>;
}

/** @param secret - as of `createBus`. */
export function createDeadLetters(nc: NatsConnection, secret?: string): DeadLetters {
  const stream = streams.DLQ.name;
  const stored = async (query: { seq: number } | { last_by_subj: string }): Promise<StoredMsg | null> => {
    const jsm = await jetstreamManager(nc);
    return jsm.streams.getMessage(stream, query);
  };
  const viewOf = (message: StoredMsg | null): DeadLetterView | undefined =>
    message === null
      ? undefined
      : view({ seq: message.seq, headers: message.header, data: message.data, subject: message.subject, at: message.time });
  return {
    async list(tenant) {
      const jsm = await jetstreamManager(nc);
      const { state } = await jsm.streams.info(stream);
      if (state.messages === 0) return [];
      // Headers say whose a letter is and how large, so that nothing of others' is read, and no more of the tenant's than fits.
      const consumer = await jetstream(nc).consumers.get(stream, { headers_only: true });
      const found: { seq: number; bytes: number; subject: string; headers: MsgHdrs | undefined; at: Date }[] = [];
      try {
        const messages = await consumer.fetch({ max_messages: state.messages, expires: 5000 });
        for await (const { seq, headers, subject, info } of messages) {
          if (tenant === undefined || tenantOfSubject(headers?.get(`${prefix}Subject`) ?? "") === tenant) {
            const at = new Date(Number(info.timestampNanos / 1_000_000));
            found.push({ seq, headers, subject, at, bytes: Number(headers?.get("Nats-Msg-Size")) || 0 });
            if (found.length > mostListed) found.shift();
          }
          if (info.pending === 0) break;
        }
      } finally {
        // The consumer would stay for minutes, and a stream holds only so many. If this fails, it expires.
        await consumer.delete().catch(() => false);
      }
      const letters: DeadLetterView[] = [];
      let left = mostListedBytes;
      for (const { bytes, ...letter } of found.reverse()) {
        left -= bytes;
        if (left < 0) {
          letters.push({ ...view({ ...letter, data: new Uint8Array() }), data: null, omittedBytes: bytes });
          continue;
        }
        // It may have been redriven meanwhile.
        const whole = viewOf(await stored({ seq: letter.seq }));
        if (whole !== undefined) letters.push(whole);
      }
      return letters;
    },
    get: async (seq) => viewOf(await stored({ seq })),
    of: async (consumer, seq) => viewOf(await stored({ last_by_subj: subjectOf(consumer, seq) })),
    async redrive(seq) {
      const message = await stored({ seq });
      if (message === null) {
        throw new PermanentError("LETTER_UNKNOWN", `there is no failed message ${seq}. \`loraline dlq ls\` lists those there are.`, {
          status: 404,
          param: "seq",
        });
      }
      const original = headers();
      for (const [key, values] of message.header) {
        if (!notCopied.test(key)) for (const value of values) original.append(key, value);
      }
      const subject = message.header.get(`${prefix}Subject`);
      if (message.header.get(`${prefix}Omitted-Bytes`) !== "") {
        throw new PermanentError(
          "LETTER_TOO_LARGE",
          `the failed message ${seq} is larger than any message may be, so it would fail again. Make it smaller and publish it anew.`,
          { status: 409, param: "seq" },
        );
      }
      // Its own id: the original's may still be in the stream's dedupe window.
      const msgID = dedupeId(`redrive.${message.subject}`, secret);
      await jetstream(nc).publish(subject, message.data, { headers: original, msgID });
      const jsm = await jetstreamManager(nc);
      await jsm.streams.deleteMessage(stream, seq);
    },
  };
}

function view(letter: { seq: number; headers: MsgHdrs | undefined; data: Uint8Array; subject: string; at: Date }): DeadLetterView {
  const { stream, durable } = parseDeadLetterSubject(letter.subject);
  const text = new TextDecoder().decode(letter.data);
  let data: unknown = text;
  try {
    data = JSON.parse(text);
  } catch {
    // Shown as text: not being JSON may be the very reason it is here.
  }
  const header = (name: string): string => letter.headers?.get(`${prefix}${name}`) ?? "";
  const omittedBytes = Number(header("Omitted-Bytes")) || undefined;
  return {
    seq: letter.seq,
    stream,
    durable,
    subject: header("Subject"),
    code: header("Code"),
    message: decodeURIComponent(header("Message")),
    deliveries: Number(header("Deliveries")) || 0,
    at: letter.at.toISOString(),
    data: omittedBytes === undefined ? data : null,
    ...(omittedBytes === undefined ? {} : { omittedBytes }),
  };
}
