/** A store whose outages are noticed: for readiness, for the log, and for work that waits. */
import { type Log, PermanentError, UnavailableError } from "@loraline/runtime";
import type { Objects } from "./objects.ts";

export interface StoreState {
  /** Why the store cannot be used now, in words; undefined when it can, or when it was not tried yet. */
  problem(): string | undefined;
}

/** A blob that does not exist: the answer to a request for it depends on the store alone. */
const nothing = { tenant: "loraline", ref: { kind: "raw", digest: `sha256:${"0".repeat(64)}` } } as const;
const sayAgainMs = 60_000;
/** Work that waits is tried more often than this. When no attempt was made for so long, no work waits for the store. */
const writesForgottenMs = 90_000;

interface Trouble {
  error: UnavailableError;
  since: number;
  at: number;
  saidAt: number;
}

/** The same store, which notes when a verb finds it away, says so in the log, and then asks until it is back. */
export function watchedObjects(objects: Objects, { log, askMs = 2000 }: { log: Log; askMs?: number }): Objects & StoreState & Disposable {
  let away: Trouble | undefined;
  /** It is full, or may only be read. Asking would say that all is well, so only the next write tells. */
  let unwritable: Trouble | undefined;
  let asking: NodeJS.Timeout | undefined;

  const again = (before: Trouble | undefined, error: UnavailableError): Trouble => {
    const at = Date.now();
    const since = before?.since ?? at;
    const news = before === undefined || before.error.code !== error.code || at - before.saidAt >= sayAgainMs;
    if (news) log.error({ code: error.code, awayS: Math.round((at - since) / 1000) }, `${error.message}; what needs it waits`);
    return { error, since, at, saidAt: news ? at : before.saidAt };
  };
  const over = (trouble: Trouble | undefined, what: string): undefined => {
    if (trouble !== undefined) log.info({ awayS: Math.round((Date.now() - trouble.since) / 1000) }, what);
  };
  const isAway = (error: UnavailableError): void => {
    away = again(away, error);
    asking ??= setTimeout(ask, askMs).unref();
  };
  const isBack = (): void => {
    clearTimeout(asking);
    asking = undefined;
    away = over(away, "the object store answers again");
  };
  const note = (error: unknown): never => {
    if (error instanceof UnavailableError) isAway(error);
    throw error;
  };
  /** Not `head`: to S3 a bucket that is missing and a blob that is missing look the same from there. */
  function ask(): void {
    asking = undefined;
    objects.get(nothing.tenant, nothing.ref).then(isBack, (error: unknown) => {
      if (error instanceof UnavailableError) isAway(error);
      else if (error instanceof PermanentError) isBack();
      else {
        log.debug({ err: error }, "the object store gave a strange answer");
        asking ??= setTimeout(ask, askMs).unref();
      }
    });
  }
  const verb = async <T>(work: Promise<T>): Promise<T> => {
    const done = await work.catch(note);
    isBack();
    return done;
  };
  const put = async (...args: Parameters<Objects["put"]>): ReturnType<Objects["put"]> => {
    try {
      const ref = await objects.put(...args);
      isBack();
      unwritable = over(unwritable, "the object store takes blobs again");
      return ref;
    } catch (error) {
      if (!(error instanceof UnavailableError) || error.code === "STORE_UNAVAILABLE") return note(error);
      unwritable = again(unwritable, error);
      throw error;
    }
  };
  async function* pass<T>(items: AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
    try {
      yield* items;
    } catch (error) {
      note(error);
    }
  }

  return {
    put,
    get: async (...args) => pass(await verb(objects.get(...args))),
    head: (...args) => verb(objects.head(...args)),
    touch: (...args) => verb(objects.touch(...args)),
    list: (...args) => pass(objects.list(...args)),
    stored: (...args) => pass(objects.stored(...args)),
    delete: (...args) => verb(objects.delete(...args)),
    problem() {
      if (unwritable !== undefined && Date.now() - unwritable.at > writesForgottenMs) unwritable = undefined;
      return (away ?? unwritable)?.error.message;
    },
    [Symbol.dispose]: () => clearTimeout(asking),
  };
}
