/** Work that is repeated while a server is away. */
import { messageOf, PermanentError, RetryLaterError, UnavailableError } from "./errors.ts";
import type { Log } from "./log.ts";

export interface KeepTryingOptions {
  log: Log;
  /** When to give up an error other than UnavailableError, in milliseconds. An UnavailableError is waited out, however long it takes. Default: never. */
  patienceMs?: number;
  /** Why it is not worth trying any more, if it is not; asked after each failure. */
  givenUp?: () => Promise<{ code: string; message: string } | undefined>;
  /** Called at each failure once a server has been away for a second, and with null when it is back. */
  onWait?: (reason: { code: string; message: string } | null) => void;
}

/** A server that restarts is back within this time, so nobody is told. */
const tellAfterMs = 1000;

/**
 * Repeats what fails, after 0.2 s, 0.4 s … at most 2 s. The work must be idempotent: it may have been done when it fails.
 *
 * @param what - the work in words that follow "to", for logs and messages, such as "store the manifest".
 * @throws at once what will never work: PermanentError, and what the file system says about a file. RetryLaterError with the code of
 *   `givenUp`.
 */
export async function keepTrying<T>(what: string, work: () => Promise<T>, options: KeepTryingOptions): Promise<T> {
  const { log, patienceMs = Infinity, givenUp, onWait } = options;
  const since = performance.now();
  let toldToWait = false;
  for (let failed = 1; ; failed++) {
    try {
      const done = await work();
      if (toldToWait) onWait?.(null);
      return done;
    } catch (error) {
      const aboutFile = typeof (error as NodeJS.ErrnoException).syscall === "string" && (error as NodeJS.ErrnoException).path !== undefined;
      const away = error instanceof UnavailableError;
      if (error instanceof PermanentError || aboutFile || (!away && performance.now() - since > patienceMs)) throw error;
      // One line every two seconds would fill the log.
      log[failed <= 3 || failed % 30 === 0 ? "warn" : "debug"]({ err: error, what, failed }, "not possible now; trying again");
      const why = await givenUp?.();
      if (why !== undefined) {
        throw new RetryLaterError(why.code, 0, `${why.message}, while it was to ${what}: ${messageOf(error)}`, { cause: error });
      }
      if (away && performance.now() - since >= tellAfterMs) {
        toldToWait = true;
        onWait?.({ code: error.code, message: `to ${what}: ${error.message}` });
      }
      await new Promise((resolve) => setTimeout(resolve, Math.min(2000, 100 * 2 ** failed)));
    }
  }
}
