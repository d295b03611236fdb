/** The one error of the client. */
import { errorBody } from "@loraline/contracts";

/** A request that did not succeed: refused by the server, not answered at all, or answered in an unknown shape. */
export class ApiError extends Error {
  override readonly name = "ApiError";
  /** Stable. The server's own, or `UNREACHABLE`, `UNEXPECTED_ANSWER`, `HTTP_ERROR` (a refusal without the server's error body). */
  readonly code: string;
  /** The field that is wrong. */
  readonly param: string | null;
  /** HTTP status; null when nothing was answered. */
  readonly status: number | null;
  /** Seconds after which the server wants to be asked again. */
  readonly retryAfter: number | null;
  constructor(
    code: string,
    message: string,
    options: ErrorOptions & { param?: string | null; status?: number | null; retryAfter?: number | null } = {},
  ) {
    super(message, options);
    this.code = code;
    this.param = options.param ?? null;
    this.status = options.status ?? null;
    this.retryAfter = options.retryAfter ?? null;
  }
}

/** @param text - body of the answer. */
export function refusalOf(response: Response, text: string): ApiError {
  const { status } = response;
  const after = Number.parseFloat(response.headers.get("retry-after") ?? "");
  const retryAfter = Number.isFinite(after) ? after : null;
  const { data } = errorBody.safeParse(parseJson(text));
  if (data === undefined) return new ApiError("HTTP_ERROR", `${status} ${text.slice(0, 200)}`.trim(), { status, retryAfter });
  const { code, message, param } = data.error;
  return new ApiError(code ?? "HTTP_ERROR", message, { status, param, retryAfter });
}

export const unreachable = (url: string, cause: unknown): ApiError =>
  new ApiError("UNREACHABLE", `the server at ${url} does not answer: ${innermost(cause)}`, { cause });

export const unexpected = (url: string, status: number, cause: unknown): ApiError =>
  new ApiError("UNEXPECTED_ANSWER", `${url} answered in another shape than expected: is it a Loraline of this version?`, { status, cause });

/** undefined when it is no JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** `fetch failed` says nothing; ECONNREFUSED, which stands inside of it, does. */
function innermost(error: unknown): string {
  let inner: unknown = error;
  while (inner instanceof Error && inner.cause !== undefined) inner = inner.cause;
  const { code, message } = inner as { code?: string; message?: string };
  return message === undefined || message === "" ? (code ?? String(inner)) : message;
}
