/**
 * Threads that read uploads. An upload is a stranger's, and a reader of some format may have a fault that it meets: its thread may then hang or run
 * out of memory, and only that one upload is refused, while the process goes on with everybody else's work. A thread has no connections: it asks the
 * process for every byte that it reads or stores.
 */
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import type { BlobKind, BlobRef } from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import type { IngestDeps, IngestResult, IngestSettings, Upload } from "./ingest-dataset.ts";

export interface IngestThreads extends AsyncDisposable {
  /** `ingestDataset` in a thread of its own. Uploads beyond the number of threads wait for one. */
  ingest(deps: IngestDeps, upload: Upload): Promise<IngestResult>;
}

/** What a thread asks of the process. `next` and `close` read a stream that `get` opened; `send` and `stored` fill one that `store` opened. */
export interface Calls {
  get(tenant: string, ref: Pick<BlobRef, "kind" | "digest">): Promise<number>;
  next(stream: number): Promise<Uint8Array | undefined>;
  close(stream: number): Promise<void>;
  put(
    tenant: string,
    kind: BlobKind,
    bytes: Exclude<Parameters<Objects["put"]>[2], AsyncIterable<Uint8Array>>,
    options: Parameters<Objects["put"]>[3],
  ): Promise<BlobRef>;
  store(tenant: string, kind: BlobKind, options: Parameters<Objects["put"]>[3]): Promise<number>;
  send(stream: number, bytes: Uint8Array | undefined): Promise<void>;
  stored(stream: number): Promise<BlobRef>;
  room(): Promise<void>;
  picture(url: string): Promise<Uint8Array | undefined>;
}
/** An error on its way to the other side. `id`: of one that the process keeps, and throws itself if it ends the work. */
export interface Told {
  id?: number | undefined;
  message: string;
  permanent?: { code: string; param: string | null; status: number };
  later?: { code: string; afterMs: number };
}
export type ToThread =
  | { work: Upload; settings: IngestSettings; fetchesPictures: boolean }
  | { answer: number; value: unknown }
  | { answer: number; error: Told }
  | { abort: true };
export type FromThread =
  | { call: keyof Calls; id: number; with: unknown[] }
  | { read: number }
  | { alive: true }
  | { result: IngestResult }
  | { error: Told };

const defaults = {
  /** As many as the consumer has places, with the spare one: a tenant's large files may have the two others for long. */
  most: 3,
  heapMiB: 640,
  /** Silence of a thread after which it counts as hanging. It is counted in seconds in which this process could work, so that a pause of the machine is none. */
  silentSeconds: 180,
  program: new URL(`./ingest-thread-main${import.meta.url.slice(-3)}`, import.meta.url),
};

export function createIngestThreads(options: Partial<typeof defaults> = {}): IngestThreads {
  const { most, heapMiB, silentSeconds, program } = { ...defaults, ...options };
  const idle: Worker[] = [];
  const all = new Set<Worker>();
  const waiting: (() => void)[] = [];
  let busy = 0;

  const start = (): Worker => {
    const path = fileURLToPath(program);
    // When run from sources, packages are resolved by a condition, which the current process may not have set.
    const execArgv = path.endsWith(".ts") ? ["--conditions=@loraline/source"] : [];
    const worker = new Worker(path, { execArgv, resourceLimits: { maxOldGenerationSizeMb: heapMiB } });
    all.add(worker);
    worker.unref();
    // One that ends without work is no error of anybody's; whose work it ends hears of it, too.
    worker.on("error", () => {});
    worker.once("exit", () => {
      all.delete(worker);
      if (idle.includes(worker)) idle.splice(idle.indexOf(worker), 1);
    });
    return worker;
  };

  const work = async (worker: Worker, deps: IngestDeps, upload: Upload): Promise<IngestResult> => {
    const { settings, signal, onRead } = deps;
    const ended = Promise.withResolvers<IngestResult>();
    const { answer, thrown, release } = createAnswers(deps);
    let silent = 0;
    const onMessage = (message: FromThread): void => {
      silent = 0;
      if ("read" in message) onRead?.(message.read);
      else if ("call" in message)
        void answer(message)
          .then((said) => worker.postMessage(said))
          .catch(ended.reject);
      else if ("result" in message) ended.resolve(message.result);
      else if ("error" in message) ended.reject(thrown(message.error));
    };
    const tooCostly = (why: string): void =>
      ended.resolve({
        kind: "rejected",
        problem: {
          code: "FILE_TOO_COSTLY",
          message: `${upload.filename}: ${why}. Save it as JSON Lines or CSV, or split it.`,
          param: "file",
        },
        report: null,
        rejections: 0,
      });
    const onError = (error: Error & { code?: string }): void => {
      if (error.code === "ERR_WORKER_OUT_OF_MEMORY") tooCostly(`reading it takes more than ${heapMiB} MiB of memory`);
      else ended.reject(error);
    };
    const onExit = (code: number): void => ended.reject(new Error(`the thread that reads datasets ended with exit code ${code}`));
    const onAbort = (): void => worker.postMessage({ abort: true } satisfies ToThread);
    const watch = setInterval(() => {
      if (++silent < silentSeconds) return;
      tooCostly(`reading a part of it takes longer than ${silentSeconds} s`);
      void worker.terminate();
    }, 1000);
    worker.on("message", onMessage).on("error", onError).on("exit", onExit);
    signal.addEventListener("abort", onAbort);
    try {
      worker.ref();
      worker.postMessage({ work: upload, settings, fetchesPictures: deps.fetchPicture !== undefined } satisfies ToThread);
      return await ended.promise;
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    } finally {
      clearInterval(watch);
      worker.off("message", onMessage).off("error", onError).off("exit", onExit);
      signal.removeEventListener("abort", onAbort);
      await release();
    }
  };

  return {
    async ingest(deps, upload) {
      deps.signal.throwIfAborted();
      if (busy >= most) await new Promise<void>((resolve) => waiting.push(resolve));
      else busy++;
      let worker: Worker | undefined;
      try {
        // It may have been stopped while it waited.
        deps.signal.throwIfAborted();
        worker = idle.pop() ?? start();
        // The last one is needed beside others that work, when a start would take long.
        if (idle.length === 0 && all.size === most - 1) idle.push(start());
        const result = await work(worker, deps, upload);
        // Nothing of a refused upload is kept.
        if (result.kind === "ingested" && all.has(worker)) {
          worker.unref();
          idle.push(worker);
        } else await worker.terminate();
        return result;
      } catch (error) {
        await worker?.terminate();
        throw error;
      } finally {
        const next = waiting.shift();
        if (next === undefined) busy--;
        else next();
      }
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([...all].map((worker) => worker.terminate()));
    },
  };
}

/** Answers a thread's calls. `thrown` gives back the error that ended the work, if it began here. */
function createAnswers({ objects, checkRoom, fetchPicture }: IngestDeps) {
  const errors: unknown[] = [];
  const read = new Map<number, AsyncIterator<Uint8Array>>();
  const written = new Map<number, { give(bytes: Uint8Array | undefined): Promise<void>; ref: Promise<BlobRef>; fail(): void }>();
  let streams = 0;
  const at = <T>(of: ReadonlyMap<number, T>, stream: number): T => {
    const found = of.get(stream);
    if (found === undefined) throw new Error(`there is no stream ${stream}`);
    return found;
  };
  const calls: Calls = {
    async get(tenant, ref) {
      read.set(++streams, (await objects.get(tenant, ref))[Symbol.asyncIterator]());
      return streams;
    },
    async next(stream) {
      const next = await at(read, stream).next();
      return next.done === true ? undefined : next.value;
    },
    async close(stream) {
      const iterator = read.get(stream);
      read.delete(stream);
      await iterator?.return?.();
    },
    put: async (tenant, kind, bytes, options) => objects.put(tenant, kind, bytes, options),
    async store(tenant, kind, options) {
      const { source, give, fail } = handedOver();
      const ref = objects.put(tenant, kind, source, options);
      ref.catch(() => {}); // told by `stored`
      written.set(++streams, { give: async (bytes) => void (await Promise.race([give(bytes), ref])), ref, fail });
      return streams;
    },
    send: async (stream, bytes) => at(written, stream).give(bytes),
    async stored(stream) {
      const { ref } = at(written, stream);
      written.delete(stream);
      return ref;
    },
    room: async () => checkRoom?.(),
    picture: async (url) => fetchPicture?.(url),
  };
  return {
    async answer({ id, call, with: given }: Extract<FromThread, { call: unknown }>): Promise<ToThread> {
      try {
        const value: unknown = await (calls[call] as (...args: unknown[]) => Promise<unknown>)(...given);
        return { answer: id, value };
      } catch (error) {
        return { answer: id, error: { ...told(error), id: errors.push(error) - 1 } };
      }
    },
    thrown: (error: Told): unknown => (error.id === undefined ? asError(error) : errors[error.id]),
    async release(): Promise<void> {
      for (const { fail } of written.values()) fail();
      await Promise.allSettled([...read.values()].map(async (iterator) => iterator.return?.()));
    },
  };
}

/** A stream of what is given, one piece after the other: `give` resolves when the next one is wanted. */
function handedOver() {
  let wanted = Promise.withResolvers<void>();
  let given = Promise.withResolvers<Uint8Array | undefined>();
  async function* source(): AsyncGenerator<Uint8Array> {
    for (;;) {
      wanted.resolve();
      const bytes = await given.promise;
      given = Promise.withResolvers();
      if (bytes === undefined) return;
      yield bytes;
    }
  }
  return {
    source: source(),
    async give(bytes: Uint8Array | undefined): Promise<void> {
      await wanted.promise;
      wanted = Promise.withResolvers();
      given.resolve(bytes);
      if (bytes !== undefined) await wanted.promise;
    },
    fail: (): void => given.reject(new Error("the upload is read no further")),
  };
}

export function told(error: unknown): Told {
  const { message } = error instanceof Error ? error : { message: String(error) };
  if (error instanceof PermanentError) {
    const { code, param, status } = error;
    return { message, permanent: { code, param, status } };
  }
  return error instanceof RetryLaterError ? { message, later: { code: error.code, afterMs: error.afterMs } } : { message };
}

export function asError({ message, permanent, later }: Told): Error {
  if (permanent !== undefined) return new PermanentError(permanent.code, message, permanent);
  return later === undefined ? new Error(message) : new RetryLaterError(later.code, later.afterMs, message);
}
