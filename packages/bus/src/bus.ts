/** The bus as services see it: publish, consume, state, history, dead letters. */
import {
  type BucketDef,
  type ConsumerDef,
  type EventAddress,
  type EventDef,
  type EventInput,
  filterFor,
  streamOf,
  subjectFor,
} from "@loraline/contracts";
import type { Log, Telemetry } from "@loraline/runtime";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import type { z } from "zod";
import { consume, type ConsumeOptions } from "./consume.ts";
import { createDeadLetters, type DeadLetters } from "./dead-letters.ts";
import { open, type Received, seal } from "./envelope.ts";
import { type KvBucket, openBucket } from "./kv.ts";

export interface PublishOptions {
  /** Tells apart what one entity says more than once, such as `attempt-2` or `step-40`. */
  key?: string;
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
  bucket<T extends z.ZodType>(def: BucketDef<T>): Promise<KvBucket<z.output<T>>>;
  /** Newest stored event of this kind about this entity. */
  last<E extends EventDef>(event: E, at: EventAddress): Promise<Received<E> | undefined>;
  /** Every stored event about one entity, oldest first; all from one stream. */
  history(events: readonly EventDef[], at: EventAddress): Promise<Received[]>;
  deadLetters: DeadLetters;
}

export interface BusDeps {
  nc: NatsConnection;
  log: Log;
  telemetry: Telemetry;
  /** Name of the service, for `ce-source`. */
  source: string;
}

export function createBus({ nc, log, telemetry, source }: BusDeps): Bus {
  const js = jetstream(nc);
  return {
    async publish(event, at, data, options = {}) {
      const traceparent = options.traceparent ?? telemetry.traceparent();
      const sealed = seal({ event, at, data, key: options.key, source, now: new Date(), traceparent });
      const ack = await js.publish(sealed.subject, sealed.body, { headers: sealed.headers, msgID: sealed.id, retries: 3 });
      return { seq: ack.seq, duplicate: ack.duplicate };
    },
    consume: (options) => consume({ nc, log, telemetry }, options),
    bucket: (def) => openBucket(nc, def, log),
    async last<E extends EventDef>(event: E, at: EventAddress) {
      const jsm = await jetstreamManager(nc);
      try {
        const message = await jsm.streams.getMessage(streamOf(event).name, { last_by_subj: subjectFor(event, at) });
        if (message === null) return undefined;
        return open({
          subject: message.subject,
          headers: message.header,
          data: message.data,
          seq: message.seq,
          storedAt: message.time.toISOString(),
        }) as Received<E>;
      } catch (error) {
        if (/no message found|not found/i.test((error as Error).message)) return undefined;
        throw error;
      }
    },
    async history(events, at) {
      const [first] = events;
      if (first === undefined) return [];
      const consumer = await js.consumers.get(streamOf(first).name, { filter_subjects: events.map((event) => filterFor(event, at)) });
      const received: Received[] = [];
      try {
        const { num_pending: pending } = await consumer.info();
        const messages = pending === 0 ? [] : await consumer.fetch({ max_messages: pending, expires: 5000 });
        for await (const message of messages) {
          received.push(
            open({
              subject: message.subject,
              headers: message.headers,
              data: message.data,
              seq: message.seq,
              storedAt: new Date(Number(message.info.timestampNanos / 1_000_000)).toISOString(),
            }),
          );
          if (received.length >= pending) break;
        }
      } finally {
        // Left alone it would stay for minutes, and a stream holds only so many.
        await consumer.delete().catch((error: unknown) => log.debug({ err: error }, "history: consumer not removed"));
      }
      return received;
    },
    deadLetters: createDeadLetters(nc),
  };
}
