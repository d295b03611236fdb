/**
 * The failure decides the disposition. Three classes, one table:
 *
 * | thrown                          | message                                 | HTTP              |
 * |---------------------------------|-----------------------------------------|-------------------|
 * | PermanentError(code)            | dead letter with the reason, then term  | 422 (or `status`) |
 * | RetryLaterError(code, afterMs)  | nak with that delay                     | 503 + Retry-After |
 * | anything else                   | backoff until max deliveries, then DLQ  | 500               |
 */

export interface PermanentErrorOptions extends ErrorOptions {
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
  override readonly name = "RetryLaterError";
  readonly code: string;
  readonly afterMs: number;
  constructor(code: string, afterMs: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.afterMs = afterMs;
  }
}

export type Disposition = { kind: "dead-letter"; code: string; message: string } | { kind: "retry"; afterMs: number; code: string };

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

/** The same three words (`code`, `message`, `param`) for events, HTTP and the CLI. */
export function problemOf(error: unknown): { code: string; message: string; param: string | null } {
  if (error instanceof PermanentError) return { code: error.code, message: error.message, param: error.param };
  if (error instanceof RetryLaterError) return { code: error.code, message: error.message, param: null };
  return { code: "INTERNAL", message: messageOf(error), param: null };
}

/** Never empty, as is the message of an AggregateError, which Node throws for a refused connection. */
function messageOf(error: unknown): string {
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
