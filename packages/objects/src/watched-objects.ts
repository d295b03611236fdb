/** A store that is known to be away or not: for readiness, for the log, and for whoever waits. */
import { type Log, PermanentError, problemOf, UnavailableError } from "@loraline/runtime";
import type { Objects } from "./objects.ts";

export interface StoreState {
  /** Why the store cannot be used now, in words; undefined when it can, or nobody has tried. */
  problem(): string | undefined;
}

/** Nobody has this blob, so asking for it tells about the store alone. */
const nothing = { tenant: "loraline", ref: { kind: "raw", digest: `sha256:${"0".repeat(64)}` } } as const;
const sayAgainMs = 60_000;

/** The same store, which notes when a verb finds it away, says so in the log, and then asks until it is back. */
export function watchedObjects(objects: Objects, { log, askMs = 2000 }: { log: Log; askMs?: number }): Objects & StoreState & Disposable {
  let away: { error: UnavailableError; since: number; saidAt: number } | undefined;
  let asking: NodeJS.Timeout | undefined;

  const isAway = (error: UnavailableError): void => {
    const now = Date.now();
    const since = away?.since ?? now;
    const news = away === undefined || away.error.code !== error.code || now - away.saidAt >= sayAgainMs;
    away = { error, since, saidAt: news ? now : (away?.saidAt ?? now) };
    if (news) log.error({ code: error.code, awayS: Math.round((now - since) / 1000) }, `${error.message}; what needs it waits`);
    asking ??= setTimeout(ask, askMs).unref();
  };
  const isBack = (): void => {
    clearTimeout(asking);
    asking = undefined;
    if (away === undefined) return;
    log.info({ awayS: Math.round((Date.now() - away.since) / 1000) }, "the object store answers again");
    away = undefined;
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
  async function* pass<T>(items: AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
    try {
      yield* items;
    } catch (error) {
      note(error);
    }
  }

  return {
    put: (...args) => verb(objects.put(...args)),
    get: async (...args) => pass(await verb(objects.get(...args))),
    head: (...args) => verb(objects.head(...args)),
    list: (...args) => pass(objects.list(...args)),
    delete: (...args) => verb(objects.delete(...args)),
    problem: () => (away === undefined ? undefined : problemOf(away.error).message),
    [Symbol.dispose]: () => clearTimeout(asking),
  };
}
