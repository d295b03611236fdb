/** The bus as services see it: publish, consume, state, history, dead letters. */
import {
  type Actor,
  type BucketDef,
  type ConsumerDef,
  type EventAddress,
  type EventDef,
  type EventInput,
  everySubjectOf,
  filterFor,
  parseSubject,
  streamOf,
  subjectFor,
} from "@loraline/contracts";
import { type Log, PermanentError, type Telemetry } from "@loraline/runtime";
import { type Consumer, DeliverPolicy, jetstream, jetstreamManager, type JsMsg } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import type { z } from "zod";
import { type Audit, createAudit } from "./audit/audit.ts";
import { proveActor } from "./audit/prove-actor.ts";
import { consume, type ConsumeOptions } from "./consume/consume.ts";
import { createDeadLetters, type DeadLetters } from "./consume/dead-letters.ts";
import { findNewest } from "./find-newest.ts";
import { headersOf, open, type RawMessage, type Received, seal } from "./envelope.ts";
import { type KvBucket, openBucket } from "./kv.ts";
import { createTurns, readRounds, roundsOf } from "./read-rounds.ts";
import { storeFullOr } from "./sizes.ts";
import { createEventBytes, type EventBytes } from "./storage/event-bytes.ts";
import { readStored, type StoredBytes } from "./storage/stored-bytes.ts";
import { takeCommands, type TakeCommandsOptions } from "./take-commands.ts";

interface PublishOptions {
  /** Tells apart what one entity says more than once, such as `attempt-2` or `step-40`. */
  key?: string;
  /** Who gives the command, as verified by this service. Consumers with the installation's secret believe it. */
  actor?: Actor;
  /** W3C traceparent to carry instead of the active span's. */
  traceparent?: string | null | undefined;
}

export interface Bus {
  /**
   * Publishes and waits until the stream has stored it. Publishing the same thing again within the dedupe window
   * stores nothing (`duplicate`).
   * @throws PermanentError CONTRACT_VIOLATION when `data` does not match the event's schema.
   */
  publish<E extends EventDef>(
    event: E,
    at: EventAddress,
    data: EventInput<E>,
    options?: PublishOptions,
  ): Promise<{ seq: number; duplicate: boolean }>;
  consume<C extends ConsumerDef>(options: ConsumeOptions<C>): Promise<AsyncDisposable>;
  /** Messages for this consumer that no process has in hand yet. */
  undelivered(consumer: ConsumerDef): Promise<number>;
  /** Takes what a tenant's own NATS client says, until it is disposed. */
  takeCommands(options: TakeCommandsOptions): AsyncDisposable;
  bucket<T extends z.ZodType>(def: BucketDef<T>): Promise<KvBucket<z.output<T>>>;
  /** Oldest stored event of this kind about this entity that keeps the contract. When a request was made twice, this one counts. */
  first<E extends EventDef>(event: E, at: EventAddress): Promise<Received<E> | undefined>;
  /** Newest stored event of this kind about this entity. */
  last<E extends EventDef>(event: E, at: EventAddress): Promise<Received<E> | undefined>;
  /**
   * Every stored event of these kinds about one entity, oldest first; all of one stream. What breaks the contract is left out, as it
   * is where events are consumed. Throws rather than end before. A tenant may say much about one entity: little of it is in memory at once.
   */
  replay<E extends EventDef>(events: readonly E[], at: EventAddress): AsyncGenerator<Received<E>>;
  /** All of `replay` at once: only of events that tenants cannot make many or large. */
  history<E extends EventDef>(events: readonly E[], at: EventAddress): Promise<Received<E>[]>;
  /**
   * Newest stored events of these kinds about one entity, newest first; all of one stream. Reads little more than it returns, a few megabytes
   * at a time. What breaks the contract is left out.
   * @param range.before - only those with a smaller sequence.
   * @param range.until - only those that were stored by then.
   * @param keep - what of each is returned: a tenant may make them large, and many are then too much for the memory. Default: all of it.
   */
  newest<E extends EventDef, T = Received<E>>(
    events: readonly E[],
    at: EventAddress,
    range: { before?: number; until?: Date; limit: number },
    keep?: (event: Received<E>) => T,
  ): Promise<T[]>;
  deadLetters: DeadLetters;
  /** What a tenant has in the object store. */
  stored(tenant: string): Promise<StoredBytes>;
  /** Bytes that streams keep of a tenant's events; `anew`: without those that were erased since they were counted. */
  eventBytes: EventBytes;
  audit: Audit;
}

interface BusDeps {
  nc: NatsConnection;
  log: Log;
  telemetry: Telemetry;
  /** Name of the service, for `ce-source`. */
  source: string;
  /** Known to this service alone, such as its NATS password; it makes message ids that no other client can guess. Absent: no other client is there. */
  secret?: string | undefined;
  /** Known to all services that say or read who gave a command (`actor`). Absent: nobody's word is believed. */
  lineSecret?: string | undefined;
  /** Longest pause before a message that waits for a server, or failed, is tried again. Default 30 s. */
  longestWaitMs?: number;
}

export function createBus({ nc, log, telemetry, source, secret, lineSecret, longestWaitMs = 30_000 }: BusDeps): Bus {
  const js = jetstream(nc);
  /** Left alone it would stay for minutes, and a stream holds only so many. */
  const removeConsumer = (consumer: Consumer): Promise<unknown> =>
    consumer.delete().catch((error: unknown) => log.debug({ err: error }, "consumer not removed"));
  /** undefined: it breaks the contract. */
  const opened = <E extends EventDef>(message: RawMessage, among: readonly E[]): Received<E> | undefined => {
    try {
      return open(message, among);
    } catch (error) {
      if (!(error instanceof PermanentError)) throw error;
      log.warn({ err: error, subject: message.subject, seq: message.seq }, "event left out");
      return undefined;
    }
  };
  const bus: Bus = {
    async publish(event, at, data, options = {}) {
      const traceparent = options.traceparent ?? telemetry.traceparent();
      const now = new Date();
      const sealed = seal({ event, at, data, key: options.key, source, now, traceparent, secret });
      if (options.actor !== undefined && lineSecret !== undefined) proveActor(sealed, options.actor, lineSecret, now);
      const published = js.publish(sealed.subject, sealed.body, {
        headers: sealed.headers,
        msgID: sealed.dedupeId,
        retries: 3,
        ...(event.lastsMs === undefined ? {} : { ttl: `${event.lastsMs / 1000}s` }),
      });
      const ack = await published.catch((error: unknown) => {
        throw storeFullOr(error, `stream ${streamOf(event).name}`);
      });
      return { seq: ack.seq, duplicate: ack.duplicate };
    },
    consume: (options) => consume({ nc, log, telemetry, longestWaitMs, lineSecret }, options),
    undelivered: async ({ stream, durable }) => (await (await jetstreamManager(nc)).consumers.info(stream.name, durable)).num_pending,
    takeCommands: (options) => takeCommands({ nc, publish: bus.publish, first: bus.first, log, longestWaitMs }, options),
    bucket: (def) => openBucket(nc, def, log),
    async last<E extends EventDef>(event: E, at: EventAddress) {
      const message = await (await jetstreamManager(nc)).streams.getMessage(streamOf(event).name, { last_by_subj: subjectFor(event, at) });
      if (message === null) return undefined;
      const { subject, data, seq, time } = message;
      return open({ subject, headers: headersOf(() => message.header), data, seq, storedAt: time.toISOString() }, [event]);
    },
    async first<E extends EventDef>(event: E, at: EventAddress) {
      const jsm = await jetstreamManager(nc);
      for (let from = 1; ;) {
        // A name of its own, because the client's types do not know that this call takes a subject, too.
        const query = { seq: from, next_by_subj: subjectFor(event, at) };
        const message = await jsm.streams.getMessage(streamOf(event).name, query);
        if (message === null) return undefined;
        const { subject, data, seq, time } = message;
        const received = opened({ subject, headers: headersOf(() => message.header), data, seq, storedAt: time.toISOString() }, [event]);
        if (received !== undefined) return received;
        from = seq + 1;
      }
    },
    async *replay<E extends EventDef>(events: readonly E[], at: EventAddress) {
      const [first] = events;
      if (first === undefined) return;
      const reading = { nc, stream: streamOf(first).name, log };
      for await (const message of readRounds(reading, { filter_subjects: events.map((event) => filterFor(event, at)) })) {
        const received = opened(rawOf(message), events);
        if (received !== undefined) yield received;
      }
    },
    history: (events, at) => Array.fromAsync(bus.replay(events, at)),
    async newest<E extends EventDef, T = Received<E>>(
      events: readonly E[],
      at: EventAddress,
      { before, until, limit }: { before?: number; until?: Date; limit: number },
      keep = (event: Received<E>): T => event as T,
    ) {
      const [first] = events;
      if (first === undefined) return [];
      const jsm = await jetstreamManager(nc);
      const stream = streamOf(first).name;
      // One filter, so those of other kinds about the entity are read with them.
      const filter = events.length === 1 ? subjectFor(first, at) : everySubjectOf(first.noun, at);
      /** Sequence of the first message of all from a time on, or of the last about the entity. */
      const seqOf = async (query: object): Promise<number | undefined> =>
        (await jsm.streams.getMessage(stream, query as Parameters<typeof jsm.streams.getMessage>[1]))?.seq;
      const [last, later] = await Promise.all([
        seqOf({ last_by_subj: filter }),
        until && seqOf({ start_time: new Date(until.getTime() + 1).toISOString() }),
      ]);
      // By consumers, because the client's direct reads never end when a message's headers cannot be decoded (nats.js 3.4).
      const readFrom = async (seq: number, count: number, headers_only = false): Promise<JsMsg[]> => {
        const from = { filter_subjects: filter, deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: seq, headers_only };
        const consumer = await js.consumers.get(stream, from);
        try {
          const wanted = Math.min(count, (await consumer.info()).num_pending);
          const some: JsMsg[] = [];
          // Nothing comes when what was there is removed meanwhile.
          if (wanted === 0) return some;
          for await (const message of await consumer.fetch({ max_messages: wanted, expires: 5000 })) {
            some.push(message);
            if (some.length >= wanted || message.info.pending === 0) break;
          }
          return some;
        } finally {
          await removeConsumer(consumer);
        }
      };
      const kept = (message: JsMsg): T[] => {
        const type = parseSubject(message.subject)?.type;
        if (type !== undefined && !events.some((event) => event.type === type)) return [];
        const received = opened(rawOf(message), events);
        return received === undefined ? [] : [keep(received)];
      };
      const found: T[] = [];
      const turn = createTurns();
      for (let end = Math.min(last ?? 0, (before ?? Infinity) - 1, (later ?? Infinity) - 1); end >= 1 && found.length < limit;) {
        // Without their data first, which say how much there is of it.
        const heads = await findNewest(async (seq, count) => readFrom(seq, count, true), end, limit - found.length);
        for (const round of roundsOf(heads)) {
          const some = await readFrom(round.at(-1)?.seq ?? 1, round.length);
          for (const message of some.toReversed()) {
            // What was there may be removed meanwhile, and later ones come in its place, which were read before.
            if (message.seq > (round[0]?.seq ?? 0)) continue;
            found.push(...kept(message));
            await turn(message.data.byteLength);
          }
        }
        end = (heads.at(-1)?.seq ?? 1) - 1;
      }
      return found;
    },
    stored: (tenant) => readStored(nc, tenant),
    eventBytes: createEventBytes(nc),
    deadLetters: createDeadLetters(nc, { secret, lineSecret }),
    audit: createAudit(nc),
  };
  return bus;
}

function rawOf(message: JsMsg): RawMessage {
  const { subject, data, seq, info } = message;
  const storedAt = new Date(Number(info.timestampNanos / 1_000_000)).toISOString();
  return { subject, headers: headersOf(() => message.headers), data, seq, storedAt };
}
