/** What went wrong, in one or two lines, and the exit code that says which kind it was. */
import { APIConnectionError, APIError } from "openai";

/** For scripts; listed in `loraline --help`. */
export const exitCodes = {
  ok: 0,
  /** The run failed, was rejected or cancelled; or the line refused what was asked. */
  failed: 1,
  usage: 2,
  unreachable: 3,
  notFound: 4,
  unauthorized: 5,
} as const;

export class Failure extends Error {
  override readonly name = "Failure";
  readonly exitCode: number;
  /** The stable word for it, and the field that is wrong. */
  readonly code: string;
  readonly param: string | null;
  constructor(exitCode: number, code: string, message: string, options: ErrorOptions & { param?: string | null | undefined } = {}) {
    super(message, options);
    this.exitCode = exitCode;
    this.code = code;
    this.param = options.param ?? null;
  }
}

export const exitCodeOfStatus = (status: number): number => {
  if (status === 404) return exitCodes.notFound;
  if (status === 401 || status === 403) return exitCodes.unauthorized;
  return [502, 503, 504].includes(status) ? exitCodes.unreachable : exitCodes.failed;
};

interface Worded {
  exitCode: number;
  code: string;
  message: string;
  param: string | null;
}

/** Any error in the words for the terminal. Errors of our packages carry `code` and `param`; the rest is a bug or the system's. */
export function failureOf(error: unknown): Worded {
  if (error instanceof Failure) return error;
  if (error instanceof APIConnectionError) {
    return { exitCode: exitCodes.unreachable, code: "UNREACHABLE", message: `the line does not answer: ${causeOf(error)}`, param: null };
  }
  if (error instanceof APIError) {
    const { status, code, param } = error as { status?: number; code?: string | null; param?: string | null };
    const said = (error as { error?: { message?: string } }).error?.message ?? error.message;
    return { exitCode: exitCodeOfStatus(status ?? 500), code: code ?? "HTTP_ERROR", message: said, param: param ?? null };
  }
  if (error instanceof Error) {
    const { code, param, syscall, path } = error as { code?: unknown; param?: unknown } & NodeJS.ErrnoException;
    if (typeof syscall === "string") {
      return {
        exitCode: exitCodes.failed,
        code: String(code),
        message: `${error.message}${path === undefined ? "" : ` (${path})`}`,
        param: null,
      };
    }
    return {
      exitCode: exitCodes.failed,
      code: typeof code === "string" ? code : "INTERNAL",
      message: error.message,
      param: typeof param === "string" ? param : null,
    };
  }
  return { exitCode: exitCodes.failed, code: "INTERNAL", message: String(error), param: null };
}

/** The innermost reason: `fetch failed` says nothing, ECONNREFUSED does. */
export function causeOf(error: unknown): string {
  let inner: unknown = error;
  while (inner instanceof Error && inner.cause !== undefined) inner = inner.cause;
  const { code, message } = inner as { code?: string; message?: string };
  return message === undefined || message === "" ? (code ?? String(inner)) : message;
}
