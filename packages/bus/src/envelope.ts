/** CloudEvents 1.0 in NATS headers (binary mode), with the W3C trace context and a deterministic message id. */
import {
  commands,
  eventOfType,
  type EventDef,
  type EventAddress,
  parseSubject,
  type Problem,
  problemsOf,
  subjectFor,
  type SeenEvent,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { createHmac } from "node:crypto";
import { headers, type MsgHdrs } from "@nats-io/transport-node";
import { checkEventSize } from "./sizes.ts";

/** What a handler or fold gets: the parsed event and where it came from. Of several events it is a union that `type` tells apart. */
export type Received<E extends EventDef = EventDef> = E extends EventDef ? SeenEvent<E> & { event: E; id: string } : never;

/** The parts of a JetStream message that the envelope reads. */
export interface RawMessage {
  subject: string;
  headers?: MsgHdrs | undefined;
  data: Uint8Array;
  seq: number;
  /** ISO 8601; when the stream took it. */
  storedAt: string;
}

/**
 * Headers of a message, which are decoded when they are asked for. Any bytes can be in their place; those that are no headers count as
 * none, since the subject and the body say everything that matters.
 */
export function headersOf(read: () => MsgHdrs | undefined): MsgHdrs | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** A message that breaks the contract in a thousand places is told the first ones only, because reasons go into headers and events. */
const reasonOf = (problems: readonly Problem[]): string =>
  problems
    .slice(0, 10)
    .map(({ message }) => (message.length > 500 ? `${message.slice(0, 500)}…` : message))
    .join("; ")
    .toWellFormed();

/**
 * What the stream tells repetitions by. Ids are unique in a whole stream, and a tenant's client may set any, so one that could be guessed
 * would let it have another's message taken for said already.
 */
export const dedupeId = (id: string, secret: string | undefined): string =>
  secret === undefined ? id : `${id}/${createHmac("sha256", secret).update(id).digest("base64url").slice(0, 22)}`;

/** Message id: equal for every attempt to say the same thing. `key` tells apart what an entity says more than once. */
export const messageId = (event: EventDef, at: EventAddress, key?: string): string =>
  [at.tenant, event.noun, at.id, event.tail, ...(key === undefined ? [] : [key])].join("/");

export function seal(input: {
  event: EventDef;
  at: EventAddress;
  data: unknown;
  key?: string | undefined;
  source: string;
  now: Date;
  traceparent?: string | undefined;
  secret?: string | undefined;
}): {
  subject: string;
  headers: MsgHdrs;
  body: string;
  id: string;
  dedupeId: string;
} {
  const { event, at } = input;
  const id = messageId(event, at, input.key);
  const parsed = event.data.safeParse(input.data);
  if (!parsed.success) {
    const problems = problemsOf(parsed.error, "CONTRACT_VIOLATION");
    throw new PermanentError("CONTRACT_VIOLATION", `refusing to publish ${event.type}: ${reasonOf(problems)}`, {
      param: problems[0]?.param,
      cause: parsed.error,
    });
  }
  const h = headers();
  h.set("Nats-Msg-Id", dedupeId(id, input.secret));
  h.set("content-type", "application/json");
  h.set("ce-specversion", "1.0");
  h.set("ce-id", id);
  h.set("ce-source", `/loraline/${input.source}`);
  h.set("ce-type", event.type);
  h.set("ce-subject", `${at.tenant}/${at.id}`);
  h.set("ce-time", input.now.toISOString());
  if (input.traceparent !== undefined) h.set("traceparent", input.traceparent);
  const subject = subjectFor(event, at);
  const body = JSON.stringify(parsed.data);
  checkEventSize(subject, Buffer.byteLength(body));
  return { subject, headers: h, body, id, dedupeId: h.get("Nats-Msg-Id") };
}

/**
 * Opens a message. The subject decides the type, so a plain NATS client need not set `ce-` headers.
 * @param among - the events that it can be one of. Absent: every event.
 * @throws PermanentError EVENT_TOO_LARGE, CONTRACT_VIOLATION, or the first problem's own code, with every problem in the message.
 */
export function open<E extends EventDef = EventDef>(raw: RawMessage, among?: readonly E[]): Received<E> {
  const subject = parseSubject(raw.subject);
  const event = subject === undefined ? undefined : eventOfType(subject.type);
  if (subject === undefined || event === undefined || !(among?.some(({ type }) => type === event.type) ?? true)) {
    throw new PermanentError(
      "CONTRACT_VIOLATION",
      `subject "${raw.subject}" names no event, or its tenant or id cannot be one. See docs/asyncapi.json for the subjects there are.`,
    );
  }
  checkEventSize(raw.subject, raw.data.length);
  let body: unknown;
  try {
    body = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(raw.data));
  } catch (error) {
    throw new PermanentError("CONTRACT_VIOLATION", `the body of ${event.type} is not JSON in UTF-8: ${(error as Error).message}`, {
      cause: error,
    });
  }
  const parsed = event.data.safeParse(body);
  if (!parsed.success) {
    const problems = problemsOf(parsed.error, "CONTRACT_VIOLATION");
    throw new PermanentError(problems[0]?.code ?? "CONTRACT_VIOLATION", `${event.type}: ${reasonOf(problems)}`, {
      param: problems[0]?.param,
      cause: parsed.error,
    });
  }
  const time = raw.headers?.get("ce-time") ?? "";
  const trace = raw.headers?.get("traceparent") ?? "";
  return {
    event,
    type: event.type,
    at: { tenant: subject.tenant, id: subject.id },
    data: parsed.data,
    // Commands are done in the order of their times, and a client could claim any time.
    time: commands.includes(event) || Number.isNaN(Date.parse(time)) ? raw.storedAt : new Date(time).toISOString(),
    id: raw.headers?.get("ce-id") || `${raw.subject}#${raw.seq}`,
    seq: raw.seq,
    trace: /^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/.test(trace) ? trace : null,
    // The event is one of `among`, and its own schema has parsed the data.
  } as unknown as Received<E>;
}
