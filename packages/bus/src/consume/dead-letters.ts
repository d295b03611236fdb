/** Dead letters: copies of messages that could not be processed, kept in the stream DLQ until somebody redrives them. */
import {
  type Actor,
  type ConsumerDef,
  deadLetterSubject,
  type DeadLetterView,
  doorStream,
  doorSubject,
  parseDeadLetterSubject,
  streams,
  tenantName,
  tenantOfSubject,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { proveActor } from "../audit/prove-actor.ts";
import { dedupeId, headersOf } from "../envelope.ts";
import { largestEventBytes } from "../sizes.ts";
import { jetstream, jetstreamManager, type JsMsg, type StoredMsg } from "@nats-io/jetstream";
import { headers, type MsgHdrs, type NatsConnection } from "@nats-io/transport-node";

const prefix = "Loraline-Dlq-";
/**
 * Headers that are not copied: NATS does what its own say, such as storing a message only if it comes to a certain stream, and a copy
 * that NATS refuses could never be stored. Ours say what happened to the original.
 */
const notCopied = /^(nats-|loraline-dlq-)/i;
/** Characters. */
const longestReason = 2000;
/**
 * A tenant's client can cause any number of failed messages, which must not push out those of others: so many are kept of a tenant at
 * each consumer, none larger than about 50 KiB, and the stream has room for twenty tenants that do their worst.
 */
const keptOfTenant = 500;
/** How often older ones are removed: after so many of a tenant. */
const removedAfter = 50;
/** Data that is larger stays in the message itself, which is looked up in its stream. */
const copiedBytes = 32 * 1024;
const copiedHeaderBytes = 8 * 1024;
/** Letters in a list, and bytes of their data together. */
const mostListed = 1000;
const mostListedBytes = 4 * 1024 ** 2;

const subjectOf = ({ stream, durable }: ConsumerDef, tenant: string, seq: number | string): string =>
  deadLetterSubject({ stream: stream.name, durable, tenant, seq });
/** Letters of each tenant and consumer that were written since the last removal. */
const written = new Map<string, number>();

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
  const headersFit = given.reduce((sum, [key, value]) => sum + key.length + value.length, 0) <= copiedHeaderBytes;
  if (headersFit) for (const [key, value] of given) copy.append(key, value);
  const tenant = tenantOfSubject(message.subject) ?? "-";
  const id = subjectOf(def, tenant, message.seq);
  copy.set("Nats-Msg-Id", id);
  copy.set(`${prefix}Subject`, message.subject);
  copy.set(`${prefix}Code`, letter.code);
  // It may quote anything, also half a character, which cannot be encoded; and a header is no place for a book.
  copy.set(`${prefix}Message`, encodeURIComponent(letter.reason.slice(0, longestReason).toWellFormed()));
  copy.set(`${prefix}Deliveries`, String(letter.deliveries));
  const { length } = message.data;
  // A queue removes the message, and its events are small.
  const isLeft = length > (def.stream.queue === true ? largestEventBytes : copiedBytes);
  if (isLeft) copy.set(`${prefix}Omitted-Bytes`, String(length));
  await jetstream(nc).publish(id, isLeft ? new Uint8Array() : message.data, { headers: copy, msgID: id });

  const every = subjectOf(def, tenant, "*");
  const count = (written.get(every) ?? 0) + 1;
  written.set(every, count % removedAfter);
  if (count < removedAfter) return;
  const jsm = await jetstreamManager(nc);
  // The letter is stored, which is what counts; the next removal takes more.
  await jsm.streams.purge(streams.DLQ.name, { filter: every, keep: keptOfTenant }).catch(() => {});
}

export interface DeadLetters {
  /** The newest 1,000, newest first; those after the first 4 MiB of data without it (`omittedBytes`). */
  list(tenant?: string): Promise<DeadLetterView[]>;
  get(seq: number): Promise<DeadLetterView | undefined>;
  /** The letter of the tenant's message that has this sequence in the consumer's stream. */
  of(consumer: ConsumerDef, tenant: string, seq: number): Promise<DeadLetterView | undefined>;
  /**
   * Publishes the original message again and removes the letter. Dying in between leaves the letter, and handlers are
   * idempotent, so redriving twice is harmless.
   * @param actor - who asks for it: the message is this one's command from then on.
   * @throws PermanentError LETTER_UNKNOWN, LETTER_TOO_LARGE
   */
  redrive(seq: number, actor?: Actor): Promise<void>;
  /** Removes a letter: its message is never processed. Removing one that is gone does nothing. */
  remove(seq: number): Promise<void>;
}

/** @param secrets - as of `createBus`. */
export function createDeadLetters(
  nc: NatsConnection,
  { secret, lineSecret }: { secret?: string | undefined; lineSecret?: string | undefined } = {},
): DeadLetters {
  const stream = streams.DLQ.name;
  const stored = async (query: { seq: number } | { last_by_subj: string }): Promise<StoredMsg | null> => {
    const jsm = await jetstreamManager(nc);
    return jsm.streams.getMessage(stream, query);
  };
  /** Data of the message itself, where the letter has none. */
  const dataOf = async (message: StoredMsg): Promise<Uint8Array> => {
    const omitted = Number(message.header.get(`${prefix}Omitted-Bytes`));
    if (omitted === 0 || omitted > largestEventBytes) return message.data;
    const jsm = await jetstreamManager(nc);
    const original = await jsm.streams.getMessage(parseDeadLetterSubject(message.subject).stream, {
      seq: Number(message.subject.split(".").at(-1)),
    });
    return original?.subject === message.header.get(`${prefix}Subject`) ? original.data : message.data;
  };
  const viewOf = (message: StoredMsg | null): DeadLetterView | undefined =>
    message === null
      ? undefined
      : view({ seq: message.seq, headers: message.header, data: message.data, subject: message.subject, at: message.time });
  return {
    async list(tenant) {
      // Only the tenant's own: others may have thousands. Letters of older releases, which are gone after 30 days, have no tenant in their subject.
      const consumer = await jetstream(nc).consumers.get(stream, {
        headers_only: true,
        filter_subjects:
          tenant === undefined
            ? ["dlq.>"]
            : [deadLetterSubject({ stream: "*", durable: "*", tenant: tenantName.parse(tenant), seq: "*" }), "dlq.*.*.*"],
      });
      // Headers say how large a letter is, so that no more of the tenant's is read than fits.
      const found: { seq: number; bytes: number; subject: string; headers: MsgHdrs | undefined; at: Date }[] = [];
      try {
        const { num_pending: there } = await consumer.info();
        if (there === 0) return [];
        const messages = await consumer.fetch({ max_messages: there, expires: 5000 });
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
    async get(seq) {
      const message = await stored({ seq });
      const letter = viewOf(message);
      const data = message === null ? undefined : await dataOf(message);
      if (letter?.omittedBytes === undefined || data?.length !== letter.omittedBytes) return letter;
      const { omittedBytes: _omittedBytes, ...rest } = letter;
      return { ...rest, data: shownOf(data) };
    },
    of: async (consumer, tenant, seq) => viewOf(await stored({ last_by_subj: subjectOf(consumer, tenant, seq) })),
    async redrive(seq, actor) {
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
      const data = await dataOf(message);
      if (data.length < Number(message.header.get(`${prefix}Omitted-Bytes`))) {
        throw new PermanentError(
          "LETTER_TOO_LARGE",
          `the failed message ${seq} is larger than any message may be, or its stream has it no more. Make it smaller and publish it anew.`,
          { status: 409, param: "seq" },
        );
      }
      // Its own id: the original's may still be in the stream's dedupe window.
      const msgID = dedupeId(`redrive.${message.subject}`, secret);
      if (actor !== undefined && lineSecret !== undefined) {
        original.set("Nats-Msg-Id", msgID);
        proveActor({ subject, headers: original, body: data }, actor, lineSecret, new Date());
      }
      // What was refused at the door is judged there again.
      const wasAtDoor = parseDeadLetterSubject(message.subject).stream === doorStream(tenantOfSubject(subject) ?? "").name;
      await jetstream(nc).publish(wasAtDoor ? doorSubject(subject) : subject, data, { headers: original, msgID });
      await this.remove(seq);
    },
    async remove(seq) {
      const jsm = await jetstreamManager(nc);
      if ((await stored({ seq })) !== null) await jsm.streams.deleteMessage(stream, seq);
    },
  };
}

function view(letter: { seq: number; headers: MsgHdrs | undefined; data: Uint8Array; subject: string; at: Date }): DeadLetterView {
  const { stream, durable } = parseDeadLetterSubject(letter.subject);
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
    data: omittedBytes === undefined ? shownOf(letter.data) : null,
    ...(omittedBytes === undefined ? {} : { omittedBytes }),
  };
}

/** As text where it is no JSON, which may be the very reason it is here. */
function shownOf(data: Uint8Array): unknown {
  const text = new TextDecoder().decode(data);
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
