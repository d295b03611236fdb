/**
 * The failure decides the disposition. Four classes, one table:
 *
 * | thrown                          | message                                 | HTTP              |
 * |---------------------------------|-----------------------------------------|-------------------|
 * | PermanentError(code)            | dead letter with the reason, then term  | 422 (or `status`) |
 * | RetryLaterError(code, afterMs)  | nak with that delay                     | 503 + Retry-After |
 * | UnavailableError(code)          | nak with backoff, as long as it lasts   | 503 + Retry-After |
 * | anything else                   | backoff until max deliveries, then DLQ  | 500               |
 */

interface PermanentErrorOptions extends ErrorOptions {
  /** The field, file or setting that is wrong. */
  param?: string | null | undefined;
  /** HTTP status, when it reaches a caller. */
  status?: number;
}

/** The input can never work; trying again is useless. `message` says what is wrong, where, and what to do. */
export class PermanentError extends Error {
  override readonly name = "PermanentError";
  readonly code: string;
  readonly param: string | null;
  readonly status: number;
  constructor(code: string, message: string, options: PermanentErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.param = options.param ?? null;
    this.status = options.status ?? 422;
  }
}

/** A dependency says wait. */
export class RetryLaterError extends Error {
  override readonly name: string = "RetryLaterError";
  readonly code: string;
  readonly afterMs: number;
  constructor(code: string, afterMs: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.afterMs = afterMs;
  }
}

/**
 * A server that the work needs does not answer, has no room left, or refuses our credentials. The input is not at fault, so the work
 * waits however long that lasts, and says what for.
 */
export class UnavailableError extends RetryLaterError {
  override readonly name = "UnavailableError";
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(code, 5000, message, options);
  }
}

type Disposition = { kind: "dead-letter"; code: string; message: string } | { kind: "retry"; afterMs: number; code: string };

/** Delay before delivery n + 1, in milliseconds: 0.5 s, 1 s, 2 s … at most 60 s. */
export const backoffMs = (deliveries: number): number => Math.min(60_000, 500 * 2 ** Math.max(0, deliveries - 1));

/** Pure: what happens to a message whose handler threw. */
export function dispositionOf(error: unknown, delivery: { deliveries: number; maxDeliver: number }): Disposition {
  const message = messageOf(error);
  if (error instanceof PermanentError) return { kind: "dead-letter", code: error.code, message };
  if (error instanceof RetryLaterError) return { kind: "retry", afterMs: error.afterMs, code: error.code };
  if (delivery.deliveries >= delivery.maxDeliver) return { kind: "dead-letter", code: "MAX_DELIVERIES", message };
  return { kind: "retry", afterMs: backoffMs(delivery.deliveries), code: "UNKNOWN" };
}

/** Matched by name, so that this package need not depend on the NATS client. */
const natsIsAway = new Set([
  "TimeoutError",
  "NoResponders",
  "ConnectionError",
  "ClosedConnectionError",
  "DrainingConnectionError",
  "JetStreamNotEnabled",
]);
/** JetStream's codes for: no leader, no quorum, not up yet, stream or consumer not up yet. */
const jetStreamIsAway = new Set([10_008, 10_009, 10_039, 10_076, 10_118, 10_119]);

/** What a pull of messages says when the server, or the stream's leader, went away before or while it was answered. */
const brokenPull = /no responders|heartbeats missed|leadership change|server shutdown/i;

/** Why NATS gave no answer; undefined when this error is another one. */
export function natsOutage(error: unknown): string | undefined {
  for (const one of causesOf(error)) {
    const { name, code } = one as { name: string; code?: unknown };
    // The error of an aborted fetch has the same name.
    if (one instanceof DOMException) continue;
    const disconnected = name === "RequestError" && /disconnected|connection closed/.test(one.message);
    const pullBroke = /^JetStream(Status)?Error$/.test(name) && brokenPull.test(one.message);
    if (natsIsAway.has(name) || disconnected || pullBroke || (name === "JetStreamApiError" && jetStreamIsAway.has(code as number)))
      return messageOf(one);
  }
  return undefined;
}

/** JetStream's codes for: no room on the disk, in the account, or in the stream. */
const jetStreamIsFull = new Set([10_002, 10_023, 10_047, 10_077, 10_122]);

/** Why NATS stores nothing more; undefined when this error is another one. */
export function natsFull(error: unknown): string | undefined {
  for (const one of causesOf(error)) {
    if (one.name !== "JetStreamApiError") continue;
    const { code } = one as { code?: unknown };
    if (jetStreamIsFull.has(code as number) || /resource|maximum bytes|no space|creating store/i.test(one.message)) return messageOf(one);
  }
  return undefined;
}

/** An error and what caused it, outermost first; of several at once all. */
export function* causesOf(error: unknown): Generator<Error> {
  if (!(error instanceof Error)) return;
  yield error;
  if (error instanceof AggregateError) for (const one of error.errors) yield* causesOf(one);
  if (error.cause !== error) yield* causesOf(error.cause);
}

/** The same three words (`code`, `message`, `param`) for events, HTTP and the CLI. */
export function problemOf(error: unknown): { code: string; message: string; param: string | null } {
  if (error instanceof PermanentError) return { code: error.code, message: error.message, param: error.param };
  if (error instanceof RetryLaterError) return { code: error.code, message: error.message, param: null };
  return { code: "INTERNAL", message: messageOf(error), param: null };
}

/** Never empty, as is the message of an AggregateError, which Node throws for a refused connection. */
export function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error) || "unknown error";
  return error.message || (error as NodeJS.ErrnoException).code || error.name;
}

/** Node's codes for a full or exhausted disk, in words that say what to do. */
export function explainSystemError(error: unknown, doing: string): Error {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  if (code === "ENOSPC" || code === "EDQUOT") {
    return new PermanentError("DISK_FULL", `the disk is full while ${doing}. Free space and try again; nothing half-made was kept.`, {
      cause: error,
      status: 507,
    });
  }
  return error instanceof Error ? error : new Error(String(error));
}
