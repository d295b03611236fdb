/** What went wrong, in one or two lines, and the exit code that says which kind it was. */
import { ApiError } from "@loraline/client";

/** For scripts; listed in `loraline --help`. */
export const exitCodes = {
  ok: 0,
  /** The run failed, was rejected or cancelled; or the server refused what was asked. */
  failed: 1,
  usage: 2,
  unreachable: 3,
  notFound: 4,
  unauthorized: 5,
  /** As shells have it for Ctrl-C. */
  interrupted: 130,
} as const;

export class Failure extends Error {
  override readonly name = "Failure";
  readonly exitCode: number;
  /** Stable. */
  readonly code: string;
  /** The field, option or file that is wrong. */
  readonly param: string | null;
  constructor(exitCode: number, code: string, message: string, options: ErrorOptions & { param?: string | null | undefined } = {}) {
    super(message, options);
    this.exitCode = exitCode;
    this.code = code;
    this.param = options.param ?? null;
  }
}

/** @param status - null: nothing was answered. */
const exitCodeOfStatus = (status: number | null): number => {
  if (status === 404) return exitCodes.notFound;
  if (status === 401 || status === 403) return exitCodes.unauthorized;
  return status === null || [502, 503, 504].includes(status) ? exitCodes.unreachable : exitCodes.failed;
};

interface Worded {
  exitCode: number;
  code: string;
  message: string;
  param: string | null;
}

/** What is wrong with a file or folder that was named on the command line. */
const wrongFile = new Set(["FILE_MISSING", "BASE_FILES_MISSING"]);

/** Any error in the words for the terminal. Errors of our packages carry `code` and `param`; all others are the system's, or bugs. */
export function failureOf(error: unknown): Worded {
  if (error instanceof Failure) return error;
  if (error instanceof ApiError) {
    const { status, code, message, param } = error;
    return { exitCode: exitCodeOfStatus(status), code, message, param };
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
      exitCode: typeof code === "string" && wrongFile.has(code) ? exitCodes.usage : exitCodes.failed,
      code: typeof code === "string" ? code : "INTERNAL",
      message: error.message,
      param: typeof param === "string" ? param : null,
    };
  }
  return { exitCode: exitCodes.failed, code: "INTERNAL", message: String(error), param: null };
}
