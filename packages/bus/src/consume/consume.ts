/** Pull consumer with bounded concurrency, order by entity, heartbeats, the disposition table and dead letters. */
import { setTimeout as sleep } from "node:timers/promises";
import { type Actor, buckets, type ConsumerDef, parseSubject, tenantOfSubject, waitedKey } from "@loraline/contracts";
import {
  backoffMs,
  dispositionOf,
  exemplarOf,
  type Log,
  natsOutage,
  PermanentError,
  RetryLaterError,
  type Telemetry,
  traceIdOf,
  UnavailableError,
} from "@loraline/runtime";
import { type Consumer, type ConsumerMessages, jetstream, type JsMsg } from "@nats-io/jetstream";
import type { NatsConnection, Subscription } from "@nats-io/transport-node";
import { provenActor } from "../audit/prove-actor.ts";
import { buryLetter } from "./dead-letters.ts";
import { headersOf, open, type Received } from "../envelope.ts";
import { openBucket } from "../kv.ts";
import { createLanes, type Turn } from "./lanes.ts";
import { storeFullOr } from "../sizes.ts";
import { createTries, type Tries } from "./tries.ts";

export interface HandlerContext {
  log: Log;
  /** Aborted when the process shuts down; the message is then delivered again. */
  signal: AbortSignal;
  /** To be called now and then by work that keeps the thread busy: lets others use it, first those of other tenants. */
  breathe: () => Promise<void>;
  /**
   * Does what waits for others, such as slow servers, while other messages have the place of this one. The message stays in hand. Whoever uses it bounds
   * how many of a tenant's messages are in it. Only where the consumer takes messages in hand `ahead`: elsewhere a message keeps its puller.
   */
  withoutPlace: Turn["withoutPlace"];
  /** Who published the message, as far as it is proven; without a proof it can only have been the tenant's NATS user. */
  actor: Actor;
  deliveries: number;
  /** Deliveries that count towards giving the message up: all but those that ended because a server was away. */
  tries: number;
}

type EventsOf<C extends ConsumerDef> = C["events"][number];

/**
 * One handler per event type of the consumer. Must be idempotent: JetStream delivers at least once, and dying at any
 * line must be harmless.
 */
type Handlers<C extends ConsumerDef> = {
  [T in EventsOf<C>["type"]]: (received: Received<Extract<EventsOf<C>, { type: T }>>, context: HandlerContext) => Promise<void>;
};

export interface ConsumeOptions<C extends ConsumerDef> {
  consumer: C;
  /** One handler for each event, or one for them all. */
  handlers: Handlers<NoInfer<C>> | ((received: Received<EventsOf<NoInfer<C>>>, context: HandlerContext) => Promise<void>);
  /** Called before a message becomes a dead letter, so that the reason can be published for the entity. */
  onDeadLetter?: (letter: {
    tenant: string;
    id: string;
    type: string;
    /** The message's sequence in its stream. */
    seq: number;
    code: string;
    message: string;
    param: string | null;
  }) => Promise<void>;
  /**
   * Called when a message is put off because a server is away, and with null when it goes on, so that whoever waits for the entity
   * learns why. It may fail: the message waits all the same.
   */
  onWait?: (received: Received<EventsOf<NoInfer<C>>>, reason: WaitReason | null) => Promise<void>;
  /** Whether the server that messages were put off for is known to be still away. Absent: it is only known when a handler ends. */
  isAway?: (() => boolean) | undefined;
  /** false: no span per message (projections). */
  traced?: boolean;
}

export interface WaitReason {
  code: string;
  message: string;
}

interface ConsumeDeps {
  nc: NatsConnection;
  log: Log;
  telemetry: Telemetry;
  /** Longest pause before a message that waits for a server, or failed, is tried again. */
  longestWaitMs: number;
  /** As of `createBus`. */
  lineSecret: string | undefined;
}

/**
 * A message that failed so often, or whose process died so often, is suspected: of these one is worked on at a time, so that one that takes
 * its process down cannot count against the others again and again.
 */
const suspectedFrom = 3;
/** Of messages in hand that wait, so that big ones of a tenant do not fill the memory. */
const aheadBytes = 32 * 1024 ** 2;

/** So many pulls, at least, fill what a process may have in hand ahead. */
const aheadPulls = 16;

/** A pull waits this long for a message. */
const pullMs = 1000;

/**
 * Ends a pull early. A message that the server has sent already still arrives; the client's own `close` would drop it, and it would be
 * delivered again only after the ack wait. `sub` is not in the client's types: without it the pull ends by itself after `pullMs`.
 */
export const endPull = (pull: ConsumerMessages & { sub?: Subscription }): void => void pull.sub?.drain().catch(() => undefined);

/** Starts consuming; disposing stops pulling, lets running handlers finish, and gives back what came too late. */
export async function consume<C extends ConsumerDef>(deps: ConsumeDeps, options: ConsumeOptions<C>): Promise<AsyncDisposable> {
  const { consumer: def } = options;
  const js = jetstream(deps.nc);
  let consumer: Consumer;
  try {
    consumer = await js.consumers.get(def.stream.name, def.durable);
  } catch (error) {
    if (natsOutage(error) !== undefined) throw error;
    throw new PermanentError(
      "STREAMS_MISSING",
      `consumer ${def.durable} of stream ${def.stream.name} is not there: ${(error as Error).message}. Run \`loraline ensure-streams\` against this NATS first.`,
      { cause: error },
    );
  }
  const stopping = new AbortController();
  const log = deps.log.child({ consumer: def.durable });
  const waited = await openBucket(deps.nc, buckets.waited, log);

  const measured = measure(deps.telemetry, def.durable);
  const lanes = createLanes({ places: def.concurrency, ahead: def.ahead, aheadBytes, spare: def.ahead === undefined ? 0 : 1 });
  /** Which messages wait for each other: those about one entity, those that are suspected, or none. */
  const laneOf = ({ subject, seq }: JsMsg, tries: Tries): string => {
    if (def.ordered === true) return subject.split(".", 4).join(".");
    return tries.failed() < suspectedFrom ? String(seq) : "suspected";
  };
  const pulls = new Set<ConsumerMessages>();
  const start = async (received: JsMsg): Promise<void> => {
    // A message that waits for its turn stays in hand as one that is worked on does.
    const heartbeat = setInterval(() => received.working(), def.ackWaitMs / 3);
    const { subject, seq, data, info } = received;
    const tries = createTries(waited, waitedKey({ durable: def.durable, seq }), info.deliveryCount);
    // Waits only for what was delivered before. Where it cannot be read now, the handler waits until it can.
    if (def.ordered !== true && info.deliveryCount > 1) await tries.load().catch(() => {});
    const handle = (turn: Turn): Promise<void> =>
      handleMessage({ ...deps, tries, turn, measured }, options, received, log, stopping.signal);
    await lanes
      .run({ lane: laneOf(received, tries), owner: tenantOfSubject(subject) ?? "", bytes: data.byteLength }, handle)
      // Not acknowledged, so the broker delivers it again.
      .catch((error: unknown) => log.error({ err: error }, "message not acknowledged; it will be delivered again"))
      .finally(() => clearInterval(heartbeat));
  };
  /** @param most - messages that one request to the server may bring. */
  const pullSome = async (most: number): Promise<void> => {
    const pull = await consumer.fetch({ max_messages: most, expires: pullMs });
    pulls.add(pull);
    if (stopping.signal.aborted) endPull(pull);
    try {
      for await (const message of pull) {
        if (stopping.signal.aborted) message.nak();
        // Messages wait for each other, or for their tenant's turn, which must not keep this worker from messages of others.
        else if (def.ordered === true || def.ahead !== undefined) void start(message);
        else {
          await start(message);
          return;
        }
      }
    } finally {
      pulls.delete(pull);
    }
  };
  let failedPulls = 0;
  const worker = async (most: number): Promise<void> => {
    while (!stopping.signal.aborted) {
      await lanes.room();
      try {
        await pullSome(most);
        failedPulls = 0;
      } catch (error) {
        if (stopping.signal.aborted || deps.nc.isClosed()) return;
        // A few are a restart of the server; many are a consumer that is gone, or rights that are missing.
        const level = ++failedPulls % 40 === 0 ? "error" : "debug";
        log[level]({ err: error, failedPulls }, "pull failed; trying again");
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
    }
  };
  // What may wait here is fetched many at a time, and by one, which keeps the order: with a round trip for each, what stands behind a tenant's
  // thousand messages would be late however short its turn comes.
  const workers =
    def.ahead === undefined ? Array.from({ length: def.concurrency }, () => worker(1)) : [worker(Math.ceil(def.ahead / aheadPulls))];
  return {
    async [Symbol.asyncDispose]() {
      stopping.abort();
      for (const pull of pulls) endPull(pull);
      // A pull from a server that went away may never end.
      await Promise.race([Promise.all(workers), sleep(pullMs * 2)]);
      await lanes.idle();
    },
  };
}

async function handleMessage<C extends ConsumerDef>(
  deps: ConsumeDeps & { tries: Tries; turn: Turn; measured: Measured },
  options: ConsumeOptions<C>,
  message: JsMsg,
  log: Log,
  signal: AbortSignal,
): Promise<void> {
  const { consumer: def, onDeadLetter, traced = true } = options;
  const { tries } = deps;
  if (signal.aborted) {
    // It waited behind another one until now.
    message.nak();
    return;
  }
  const startedAt = performance.now();
  /** Tries here that ended, while the message stayed in hand. */
  const here = { tries: 0, putOff: 0, away: 0 };
  /** Deliveries, and tries here after the first one, which are the same to a handler. */
  const deliveriesNow = (): number => message.info.deliveryCount + here.tries;
  /** Tries, this one included, that were not put off. */
  const triesNow = (): number => tries.begun() + here.tries - tries.putOff() - here.putOff;
  /** Keeps the message in hand while NATS is away or full: given back without being counted, a wait would look like a crash. */
  const whenNatsCan = async <T>(work: () => Promise<T>): Promise<T> => {
    for (let failed = 1; ; failed++) {
      try {
        return await work();
      } catch (error) {
        if (signal.aborted || !(asUnavailable(error) instanceof UnavailableError)) throw error;
        log.warn({ err: error, subject: message.subject, failed }, "NATS is away or full; the message stays in hand");
        await sleep(Math.min(deps.longestWaitMs, backoffMs(failed)), undefined, { signal });
      }
    }
  };
  /** Before the nak: dying in between then counts as waiting, which costs a delivery and loses nothing. */
  const putOff = async (afterMs: number | undefined, away: 0 | 1): Promise<void> => {
    const { seq } = message;
    await whenNatsCan(() => tries.putOffNow(away === 1)).catch((error: unknown) => log.debug({ err: error, seq }, "wait not counted"));
    message.nak(afterMs);
  };
  /**
   * Tries again after a while. Where order counts the message stays in hand, and those about the same entity behind it; elsewhere any
   * process may have it then.
   * @returns whether it is to be tried again here.
   */
  const again = async (afterMs: number, why: "failed" | "put off" | "away"): Promise<boolean> => {
    if (def.ordered !== true) {
      if (why === "failed") message.nak(afterMs);
      else await putOff(afterMs, why === "away" ? 1 : 0);
      return false;
    }
    here.tries += 1;
    if (why !== "failed") here.putOff += 1;
    if (why === "away") here.away += 1;
    await deps.turn.pause(afterMs, signal);
    if (signal.aborted) await putOff(undefined, 0);
    return !signal.aborted;
  };
  let received: Received<EventsOf<C>> | undefined;
  /** Whether `onWait` was called with a reason for this message. */
  let toldWaiting = false;
  const tell = async (reason: WaitReason | null): Promise<void> => {
    if (received === undefined || options.onWait === undefined) return;
    toldWaiting = reason !== null;
    await options.onWait(received, reason).catch((error: unknown) => log.warn({ err: error, reason }, "nobody could be told of the wait"));
  };
  const handleOnce = async (): Promise<void> => {
    const deliveries = deliveriesNow();
    // A handler that takes its process down never throws here; the count is what tells.
    if (triesNow() > def.maxDeliver * 2) {
      throw new PermanentError("MAX_DELIVERIES", `begun ${triesNow()} times without an answer; the handler may be crashing its process`);
    }
    received = open<EventsOf<C>>({
      subject: message.subject,
      headers: headersOf(() => message.headers),
      data: message.data,
      seq: message.seq,
      storedAt: new Date(Number(message.info.timestampNanos / 1_000_000)).toISOString(),
    });
    const { type, event, at, trace, id } = received;
    toldWaiting ||= tries.away() > 0;
    // `open` checked the payload against the schema of its own type, so the handler of that type may have it.
    type Handle = (received: Received<EventsOf<C>>, context: HandlerContext) => Promise<void>;
    const { handlers } = options;
    const handler = typeof handlers === "function" ? handlers : (handlers as unknown as Partial<Record<string, Handle>>)[type];
    if (handler === undefined) throw new PermanentError("NO_HANDLER", `${def.durable} has no handler for ${type}`);
    const context = {
      log: log.child({ [`${event.noun}Id`]: at.id, tenant: at.tenant }),
      signal,
      breathe: () => deps.turn.breathe(),
      withoutPlace: deps.turn.withoutPlace,
      actor: actorOf(message, at.tenant, deps.lineSecret),
      deliveries,
      tries: tries.begun() + here.tries - tries.away() - here.away,
    };
    const handle = handler.bind(undefined, received, context);
    if (!traced) return handle();
    await deps.telemetry.span(
      `process ${type}`,
      {
        kind: "consumer",
        parent: trace,
        attributes: {
          "messaging.system": "nats",
          "messaging.destination.name": message.subject,
          "messaging.message.id": id,
          "messaging.consumer.group.name": def.durable,
          "loraline.tenant": at.tenant,
          "loraline.deliveries": deliveries,
        },
      },
      handle,
    );
  };
  const bury = async (error: unknown, code: string, reason: string): Promise<void> => {
    const deliveries = deliveriesNow();
    log.error({ err: error, subject: message.subject, deliveries, code }, "dead letter");
    const address = parseSubject(message.subject);
    if (address !== undefined) {
      const letter = { ...address, seq: message.seq, code, message: reason, param: error instanceof PermanentError ? error.param : null };
      await whenNatsCan(async () => onDeadLetter?.(letter)).catch((failure: unknown) => {
        // An error of `onDeadLetter` must not keep the message for ever.
        if (signal.aborted) throw failure;
        log.error({ err: failure, subject: message.subject }, "nobody could be told of the dead letter");
      });
    }
    await whenNatsCan(() => buryLetter(deps.nc, { def, message, code, reason, deliveries }));
    message.term(code);
    deps.measured("dead", startedAt, received?.trace);
  };
  const wentOn = setInterval(() => {
    if (toldWaiting && options.isAway?.() === false) void tell(null);
  }, def.ackWaitMs / 3);
  try {
    await whenNatsCan(() => tries.load());
    await tries.begin().catch((error: unknown) => log.debug({ err: error, seq: message.seq }, "begin not counted"));
    for (;;) {
      try {
        await handleOnce();
        if (toldWaiting) await tell(null);
        message.ack();
        deps.measured("done", startedAt, received?.trace);
        return;
      } catch (thrown) {
        if (signal.aborted && !(thrown instanceof PermanentError)) {
          await putOff(undefined, 0);
          return;
        }
        const error = asUnavailable(thrown);
        const { subject } = message;
        const deliveries = deliveriesNow();
        if (error instanceof UnavailableError) {
          const afterMs = Math.min(deps.longestWaitMs, backoffMs(tries.away() + here.away + 1));
          const { code, message: why } = error;
          log.warn({ err: thrown, subject, deliveries, afterMs, code }, `waiting: ${why}`);
          await tell({ code, message: why });
          deps.measured("waiting", startedAt, received?.trace);
          if (await again(afterMs, "away")) continue;
          return;
        }
        const disposition = dispositionOf(error, { deliveries: triesNow(), maxDeliver: def.maxDeliver });
        if (disposition.kind === "dead-letter") {
          await bury(error, disposition.code, disposition.message);
          return;
        }
        const isPutOff = error instanceof RetryLaterError;
        const afterMs = isPutOff ? disposition.afterMs : Math.min(deps.longestWaitMs, disposition.afterMs);
        log.warn({ err: error, subject, deliveries, afterMs }, "will be tried again");
        deps.measured(isPutOff ? "put off" : "failed", startedAt, received?.trace);
        if (await again(afterMs, isPutOff ? "put off" : "failed")) continue;
        return;
      }
    }
  } finally {
    clearInterval(wentOn);
  }
}

type Measured = (
  outcome: "done" | "dead" | "waiting" | "put off" | "failed",
  startedAt: number,
  traceparent: string | null | undefined,
) => void;

function measure({ metrics }: Telemetry, consumer: string): Measured {
  const seconds = metrics.histogram({
    name: "loraline_message_seconds",
    help: "Handling a message, with tries in hand. outcome: done; waiting (a server is away or full); put off (not its turn yet); failed (tried again); dead (failed for good)",
    labels: ["consumer", "outcome"],
    buckets: [0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 300, 1800],
  });
  return (outcome, startedAt, traceparent) => {
    const value = (performance.now() - startedAt) / 1000;
    seconds.observe({ labels: { consumer, outcome }, value, exemplarLabels: exemplarOf(traceIdOf(traceparent)) });
  };
}

function actorOf(message: JsMsg, tenant: string, lineSecret: string | undefined): Actor {
  if (lineSecret === undefined) return { kind: "unverified", id: "" };
  const { subject, data, info } = message;
  const headers = headersOf(() => message.headers);
  const storedAt = new Date(Number(info.timestampNanos / 1_000_000)).toISOString();
  const proven = headers && provenActor({ subject, headers, body: data, storedAt }, lineSecret);
  return proven ?? { kind: "nats", id: `tenant.${tenant}` };
}

/** The server that is away or full may be NATS itself, or only a stream of it that has no leader. */
export function asUnavailable(error: unknown): unknown {
  if (error instanceof PermanentError || error instanceof RetryLaterError) return error;
  const full = storeFullOr(error, "NATS");
  if (full !== error) return full;
  const why = natsOutage(error);
  return why === undefined ? error : new UnavailableError("BUS_UNAVAILABLE", `NATS does not answer (${why})`, { cause: error });
}
