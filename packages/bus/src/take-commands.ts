/** Takes what a tenant's NATS client says at the door, judges it, and says it where everybody's events are (docs/adr/0018). */
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import {
  adapterCommandRefused,
  doorConsumer,
  type EventAddress,
  type EventData,
  type EventDef,
  parseSubject,
  type Problem,
  runCommandRefused,
  runRequested,
  type RunSpec,
  tenantCommands,
} from "@loraline/contracts";
import { backoffMs, dispositionOf, type Log, natsOutage, PermanentError, UnavailableError } from "@loraline/runtime";
import { type Consumer, type ConsumerMessages, jetstream, jetstreamManager, type JsMsg } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import { asUnavailable, endPull } from "./consume/consume.ts";
import { buryLetter } from "./consume/dead-letters.ts";
import { headersOf, open, type Received } from "./envelope.ts";

export interface TakeCommandsOptions {
  tenant: string;
  /**
   * Whether the tenant may say this now.
   * @throws PermanentError: the message becomes a failed one.
   */
  admit(event: EventDef, at: EventAddress): Promise<void>;
}

interface TakeCommandsDeps {
  /** Its user may read the door of this tenant. */
  nc: NatsConnection;
  publish(event: EventDef, at: EventAddress, data: unknown, options: { key: string; traceparent: string | null }): Promise<unknown>;
  /** As of the bus. */
  first(event: typeof runRequested, at: EventAddress): Promise<Received<typeof runRequested> | undefined>;
  log: Log;
  /** Longest pause before a command that cannot be said yet is tried again. */
  longestWaitMs: number;
}

/** A pull waits this long for a message. */
const pullMs = 5000;
/** Between two commands of a tenant: fifty a second are more than any program needs, and cost a gateway little. */
const paceMs = 20;
const missingMs = 5000;

/** Why a run that was requested before is not requested once more. undefined: it is the same request, and nothing has to be done. */
export function judgeRequestAgain(id: string, { first, again }: { first: RunSpec; again: RunSpec }): Problem | undefined {
  if (isDeepStrictEqual(first, again)) return undefined;
  const message = `run ${id} was requested before with another spec, which counts. Request this one again with a new ULID.`;
  return { code: "RUN_EXISTS", message, param: "spec" };
}

/** Goes on until it is disposed; a door that is not there yet is waited for. */
export function takeCommands(
  { nc, publish, first, log: parent, longestWaitMs }: TakeCommandsDeps,
  { tenant, admit }: TakeCommandsOptions,
): AsyncDisposable {
  const def = doorConsumer(tenant);
  const stream = def.stream.name;
  const log = parent.child({ consumer: def.durable, tenant });
  const stopping = new AbortController();
  const { signal } = stopping;
  const pause = (ms: number): Promise<void> => sleep(ms, undefined, { signal }).catch(() => {});
  let pull: ConsumerMessages | undefined;

  /**
   * What is said stays as long as its run, and whoever asks for the run's request meets it again.
   * @throws PermanentError RUN_EXISTS
   */
  const isRequestedAlready = async (at: EventAddress, { spec }: EventData<typeof runRequested>): Promise<boolean> => {
    const before = await first(runRequested, at);
    const problem = before && judgeRequestAgain(at.id, { first: before.data.spec, again: spec });
    if (problem !== undefined) throw new PermanentError(problem.code, problem.message, { param: problem.param });
    return before !== undefined;
  };
  const say = async (message: JsMsg): Promise<void> => {
    const { subject, data, seq, info } = message;
    const storedAt = new Date(Number(info.timestampNanos / 1_000_000)).toISOString();
    const headers = headersOf(() => message.headers);
    const { event, at, data: said, trace } = open({ subject, headers, data, seq, storedAt }, tenantCommands);
    // `open` has checked the data against the event's own schema.
    if (event === runRequested && (await isRequestedAlready(at, said as EventData<typeof runRequested>))) return;
    await admit(event, at);
    // The key makes the same message, taken twice because somebody died, one event, and two equal messages two.
    await publish(event, at, said, { key: `door-${seq}`, traceparent: trace });
  };
  /** Tells the sender, who waits for an event about this run or adapter. What is no command of a known kind has nobody to be told. */
  const tellRefused = async ({ subject, seq }: JsMsg, problem: { code: string; message: string; param: string | null }): Promise<void> => {
    const at = parseSubject(subject);
    const command = tenantCommands.find(({ type }) => type === at?.type);
    const event = command?.noun === "adapter" ? adapterCommandRefused : command?.noun === "run" ? runCommandRefused : undefined;
    if (at === undefined || event === undefined) return;
    await publish(event, at, { command: at.type, ...problem }, { key: `refused-door-${seq}`, traceparent: null });
  };
  /** @returns whether the message is done with: said, or a failed message. */
  const handle = async (message: JsMsg): Promise<boolean> => {
    for (let tries = message.info.deliveryCount, away = 0; ; tries++) {
      let failed: unknown;
      try {
        await say(message);
        return true;
      } catch (error) {
        failed = asUnavailable(error);
      }
      const isAway = failed instanceof UnavailableError;
      const disposition = isAway ? undefined : dispositionOf(failed, { deliveries: tries - away, maxDeliver: def.maxDeliver });
      if (disposition?.kind === "dead-letter") {
        const { code, message: reason } = disposition;
        log.info({ err: failed, subject: message.subject, code }, "command refused");
        try {
          await tellRefused(message, { code, message: reason, param: failed instanceof PermanentError ? failed.param : null });
          await buryLetter(nc, { def, message, code, reason, deliveries: tries - away });
          return true;
        } catch (error) {
          failed = error;
        }
      }
      if (isAway) away++;
      log.warn({ err: failed, subject: message.subject }, "a command waits");
      await pause(Math.min(longestWaitMs, disposition?.kind === "retry" ? disposition.afterMs : backoffMs(away + 1)));
      if (signal.aborted) return false;
    }
  };
  const take = async (consumer: Consumer): Promise<void> => {
    pull = await consumer.fetch({ max_messages: 1, expires: pullMs });
    if (signal.aborted) endPull(pull);
    for await (const message of pull) {
      const heartbeat = setInterval(() => message.working(), def.ackWaitMs / 3);
      try {
        if (!(await handle(message))) {
          message.nak();
          continue;
        }
        // Erased: an acknowledged message leaves its bytes on the server's disk, and it may hold what is to be deleted one day.
        await (await jetstreamManager(nc, { checkAPI: false })).streams.deleteMessage(stream, message.seq, true);
        message.ack();
      } finally {
        clearInterval(heartbeat);
      }
      await pause(paceMs);
    }
  };
  const run = async (): Promise<void> => {
    let consumer: Consumer | undefined;
    for (let failures = 0; !signal.aborted && !nc.isClosed();) {
      try {
        consumer ??= await jetstream(nc).consumers.get(stream, def.durable);
        await take(consumer);
        failures = 0;
      } catch (error) {
        if (signal.aborted || nc.isClosed()) return;
        if (++failures % 12 === 1) {
          const why = natsOutage(error) ?? `run \`loraline ensure-streams --tenants ${tenant}\` if ${stream} is not there`;
          log.warn({ err: error }, `nothing can be taken from the NATS client of ${tenant}: ${why}`);
        }
        consumer = undefined;
        await pause(missingMs);
      }
    }
  };
  const running = run();
  return {
    async [Symbol.asyncDispose]() {
      stopping.abort();
      if (pull !== undefined) endPull(pull);
      // A pull from a server that went away may never end.
      await Promise.race([running, sleep(2000)]);
    },
  };
}
