/** Turns every error into OpenAI's error body, so that its SDKs show the real reason. */
import type { ErrorBody, ErrorCode, Problem } from "@loraline/contracts";
import { natsFull, natsOutage, PermanentError, RetryLaterError } from "@loraline/runtime";

interface ErrorReply {
  status: number;
  body: ErrorBody;
  retryAfterSeconds?: number;
  headers?: Readonly<Record<string, string>>;
}

/** A limit is reached: HTTP 429, with the headers that OpenAI's clients read. */
export class RateLimitError extends PermanentError {
  /** Seconds. */
  readonly retryAfter: number;
  readonly headers: Readonly<Record<string, string>>;
  /** Which limit is reached. */
  readonly kind: "requests" | "tokens" | "concurrency";
  constructor(
    kind: RateLimitError["kind"],
    message: string,
    { retryAfter, headers }: { retryAfter: number; headers: Record<string, string> },
  ) {
    super("rate_limit_exceeded", message, { status: 429 });
    this.kind = kind;
    this.retryAfter = retryAfter;
    this.headers = headers;
  }
}

const typeOf = (status: number): string => (status >= 500 ? "server_error" : "invalid_request_error");

export function errorBodyOf(status: number, message: string, code: string | null, param: string | null = null): ErrorBody {
  return { error: { message, type: typeOf(status), param, code } };
}

/** A wrong request; `param` is the field's name as the caller wrote it. */
export const badRequest = (code: ErrorCode, message: string, param: string | null = null): PermanentError =>
  new PermanentError(code, message, { status: 400, param });

/** Most problems in one answer: more help nobody, and a body can have a hundred thousand. */
const mostProblems = 20;

/** One error for several problems: code and param of the first, and the messages of the first twenty. */
export function badRequestOf(problems: readonly [Problem, ...Problem[]]): PermanentError {
  const [{ code, param }] = problems;
  const told = problems.slice(0, mostProblems).map(({ message }) => message);
  const more = problems.length - told.length;
  return new PermanentError(code, [...told, ...(more > 0 ? [`And ${more} more.`] : [])].join(" "), { status: 400, param });
}

/** The error for an object that does not exist or belongs to another tenant; the text is the same for both. */
export const notFound = (what: string, id: string, param: string): PermanentError =>
  new PermanentError("not_found", `No such ${what}: ${id}.`, { status: 404, param });

/**
 * The error for a run that does not exist.
 * @param rejected - why its request, which came over NATS, made none.
 */
export function noSuchRun(what: "run" | "fine-tuning job", id: string, param: string, rejected: Problem | undefined): PermanentError {
  if (rejected === undefined) return notFound(what, id, param);
  const message = `No such ${what}: ${id}. Its request was rejected, because it cannot be read: ${rejected.message} [${rejected.code}]. Publish a corrected one under a new id.`;
  return new PermanentError("not_found", message, { status: 404, param });
}

interface FastifyFailure extends Error {
  statusCode: number;
  code: string;
}
const isFastifyFailure = (error: unknown): error is FastifyFailure =>
  error instanceof Error && typeof (error as Partial<FastifyFailure>).statusCode === "number";

/** Status, code and message for fastify's own errors; other errors below 500 keep fastify's message. */
const fastifyFailures: Readonly<Record<string, { status: number; code: string; message?: string }>> = {
  FST_ERR_CTP_BODY_TOO_LARGE: { status: 413, code: "body_too_large", message: "The body is larger than this gateway accepts for JSON." },
  FST_ERR_CTP_INVALID_MEDIA_TYPE: { status: 415, code: "unsupported_media_type" },
  FST_FILES_LIMIT: { status: 400, code: "too_many_files", message: "Send exactly one file per upload." },
  FST_FIELDS_LIMIT: { status: 400, code: "too_many_fields", message: "The upload has too many form fields: send `file` and `purpose`." },
  FST_PARTS_LIMIT: { status: 400, code: "too_many_fields", message: "The upload has too many parts: send `file` and `purpose`." },
};

/** Statuses of errors after which the same request can succeed later, where they are not 503. */
const statusOfWaiting: Readonly<Record<string, number>> = { STORE_FULL: 507, QUOTA_UPLOAD_RATE: 429 };

/** Pure: status, body and Retry-After for anything that was thrown. */
export function errorReplyOf(error: unknown): ErrorReply {
  if (error instanceof RateLimitError) {
    const { code, message, kind, retryAfter, headers } = error;
    return { status: 429, body: { error: { message, type: kind, param: null, code } }, retryAfterSeconds: retryAfter, headers };
  }
  if (error instanceof PermanentError) {
    return { status: error.status, body: errorBodyOf(error.status, error.message, error.code, error.param) };
  }
  if (error instanceof RetryLaterError) {
    const status = statusOfWaiting[error.code] ?? 503;
    return {
      status,
      body: errorBodyOf(status, error.message, error.code),
      retryAfterSeconds: Math.max(1, Math.ceil(error.afterMs / 1000)),
    };
  }
  if (isFastifyFailure(error) && error.statusCode < 500) {
    const known = fastifyFailures[error.code];
    const status = known?.status ?? error.statusCode;
    const code = known?.code ?? (error.code ?? "bad_request").replace(/^FST_(ERR_)?/, "").toLowerCase();
    return { status, body: errorBodyOf(status, known?.message ?? error.message, code) };
  }
  const full = natsFull(error);
  if (full !== undefined) {
    const message = `The event store has no room left: ${full}. Free disk space (or raise JetStream's limits) and try again.`;
    return { status: 507, body: errorBodyOf(507, message, "STORE_FULL") };
  }
  const outage = natsOutage(error);
  if (outage !== undefined) {
    const message = `The message bus does not answer (${outage}). Nothing is lost; try again.`;
    return { status: 503, body: errorBodyOf(503, message, "bus_unavailable"), retryAfterSeconds: 2 };
  }
  return { status: 500, body: errorBodyOf(500, "The gateway failed on this request; its log has the reason.", "internal_error") };
}
