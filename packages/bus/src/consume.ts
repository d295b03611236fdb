/** Pull consumer with bounded concurrency, heartbeats, the disposition table and dead letters. */
import { buckets, type ConsumerDef, parseSubject, type waitedState } from "@loraline/contracts";
import { dispositionOf, type Log, PermanentError, RetryLaterError, type Telemetry } from "@loraline/runtime";
import { type Consumer, jetstream, type JsMsg } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import { buryLetter } from "./dead-letters.ts";
import type { z } from "zod";
import { open, type Received } from "./envelope.ts";
import { type KvBucket, openBucket } from "./kv.ts";

export interface HandlerContext {
  log: Log;
  /** Aborted when the process shuts down; the message is then delivered again. */
  signal: AbortSignal;
  deliveries: number;
}

type EventsOf<C extends ConsumerDef> = C["events"][number];

/**
 * One handler per event type of the consumer. Must be idempotent: JetStream delivers at least once, and dying at any
 * line must be harmless.
 */
export type Handlers<C extends ConsumerDef> = {
  [T in EventsOf<C>["type"]]: (received: Received<Extract<EventsOf<C>, { type: T }>>, context: HandlerContext) => Promise<void>;
};

export interface ConsumeOptions<C extends ConsumerDef> {
  consumer: C;
  handlers: Handlers<NoInfer<C>>;
  /** Called before a message becomes a dead letter, so that whoever waits for the entity learns why. */
  onDeadLetter?: (letter: {
    tenant: string;
    id: string;
    type: string;
    code: string;
    message: string;
    param: string | null;
  }) => Promise<void>;
  /** false: no span per message (projections). */
  traced?: boolean;
}

export interface ConsumeDeps {
  nc: NatsConnection;
  log: Log;
  telemetry: Telemetry;
}

/** A pull waits this long for a message; also how long stopping may have to wait. */
const pullMs = 1000;

/** Starts consuming; disposing stops pulling, lets running handlers finish, and gives back what came too late. */
export async function consume<C extends ConsumerDef>(deps: ConsumeDeps, options: ConsumeOptions<C>): Promise<AsyncDisposable> {
  const { consumer: def } = options;
  const js = jetstream(deps.nc);
  let consumer: Consumer;
  try {
    consumer = await js.consumers.get(def.stream.name, def.durable);
  } catch (error) {
    throw new PermanentError(
      "STREAMS_MISSING",
      `consumer ${def.durable} of stream ${def.stream.name} is not there: ${(error as Error).message}. Run \`loraline ensure-streams\` against this NATS first.`,
      { cause: error },
    );
  }
  const stopping = new AbortController();
  const log = deps.log.child({ consumer: def.durable });
  const waited = await openBucket(deps.nc, buckets.waited, log);

  let failedPulls = 0;
  const worker = async (): Promise<void> => {
    while (!stopping.signal.aborted) {
      let message: JsMsg | null = null;
      try {
        message = await consumer.next({ expires: pullMs });
        failedPulls = 0;
      } catch (error) {
        if (stopping.signal.aborted || deps.nc.isClosed()) return;
        // A few are a restart of the server; many are a consumer that is gone, or rights that are missing.
        const level = ++failedPulls % 40 === 0 ? "error" : "debug";
        log[level]({ err: error, failedPulls }, "pull failed; trying again");
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
      if (message === null) continue;
      if (stopping.signal.aborted) {
        message.nak();
        return;
      }
      await settle({ ...deps, waited }, options, message, log, stopping.signal).catch((error: unknown) => {
        // Not acknowledged, so the broker delivers it again.
        log.error({ err: error }, "message not settled; it will be delivered again");
      });
    }
  };
  const workers = Array.from({ length: def.concurrency }, worker);
  return {
    async [Symbol.asyncDispose]() {
      stopping.abort();
      await Promise.all(workers);
    },
  };
}

async function settle<C extends ConsumerDef>(
  deps: ConsumeDeps & { waited: KvBucket<z.output<typeof waitedState>> },
  options: ConsumeOptions<C>,
  message: JsMsg,
  log: Log,
  signal: AbortSignal,
): Promise<void> {
  const { consumer: def, onDeadLetter, traced = true } = options;
  const deliveries = message.info.deliveryCount;
  const key = `${def.durable}.${message.seq}`;
  let waits = 0;
  /** Before the nak: dying in between then counts as waiting, which costs a delivery and loses nothing. */
  const putOff = async (afterMs?: number): Promise<void> => {
    await deps.waited.put(key, { deliveries: waits + 1 }).catch((error: unknown) => log.debug({ err: error, key }, "wait not counted"));
    message.nak(afterMs);
  };
  const heartbeat = setInterval(() => message.working(), def.ackWaitMs / 3);
  try {
    if (deliveries > 1) waits = (await deps.waited.get(key))?.value.deliveries ?? 0;
    // A handler that takes its process down never throws here; the count is what tells.
    if (deliveries - waits > def.maxDeliver * 2) {
      throw new PermanentError(
        "MAX_DELIVERIES",
        `delivered ${deliveries - waits} times without an answer; the handler may be crashing its process`,
      );
    }
    const received = open({
      subject: message.subject,
      headers: message.headers,
      data: message.data,
      seq: message.seq,
      storedAt: new Date(Number(message.info.timestampNanos / 1_000_000)).toISOString(),
    });
    // `open` checked the payload against the schema of its own type, so the handler of that type may have it.
    const handlers = options.handlers as unknown as Record<string, (received: Received, context: HandlerContext) => Promise<void>>;
    const handler = handlers[received.type];
    if (handler === undefined) throw new PermanentError("NO_HANDLER", `${def.durable} has no handler for ${received.type}`);
    const context = { log: log.child({ [`${received.event.noun}Id`]: received.at.id, tenant: received.at.tenant }), signal, deliveries };
    if (traced) {
      await deps.telemetry.span(
        `process ${received.type}`,
        {
          kind: "consumer",
          parent: received.trace,
          attributes: {
            "messaging.system": "nats",
            "messaging.destination.name": message.subject,
            "messaging.message.id": received.id,
            "messaging.consumer.group.name": def.durable,
            "loraline.tenant": received.at.tenant,
            "loraline.deliveries": deliveries,
          },
        },
        () => handler(received, context),
      );
    } else {
      await handler(received, context);
    }
    message.ack();
  } catch (error) {
    if (signal.aborted && !(error instanceof PermanentError)) {
      await putOff();
      return;
    }
    const disposition = dispositionOf(error, { deliveries: deliveries - waits, maxDeliver: def.maxDeliver });
    if (disposition.kind === "retry") {
      log.warn({ err: error, subject: message.subject, deliveries, afterMs: disposition.afterMs }, "will be delivered again");
      if (error instanceof RetryLaterError) await putOff(disposition.afterMs);
      else message.nak(disposition.afterMs);
      return;
    }
    log.error({ err: error, subject: message.subject, deliveries, code: disposition.code }, "dead letter");
    const address = parseSubject(message.subject);
    if (address !== undefined) {
      const letter = {
        ...address,
        code: disposition.code,
        message: disposition.message,
        param: error instanceof PermanentError ? error.param : null,
      };
      await onDeadLetter?.(letter).catch((failure: unknown) => {
        // What can never be told must not keep the message, and all behind it, for ever.
        if (!(failure instanceof PermanentError)) throw failure;
        log.error({ err: failure, subject: message.subject }, "nobody could be told of the dead letter");
      });
    }
    await buryLetter(deps.nc, { def, message, code: disposition.code, reason: disposition.message, deliveries });
    message.term(disposition.code);
  } finally {
    clearInterval(heartbeat);
  }
}
