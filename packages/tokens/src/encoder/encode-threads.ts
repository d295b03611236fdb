/**
 * Threads that tokenize. They use all cores and keep the event loop free for other work of the process. They start with the first
 * work and end after some time without work, because each holds a vocabulary in memory.
 */
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import type { BaseRef } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { Examples } from "./encode-preferences.ts";
import type { TokenizeSpec } from "./record-encoder.ts";
import { type Base, identityOf } from "./load-base.ts";

export interface EncodeThreads extends AsyncDisposable {
  /** Makes all threads load the base in this folder now, because work for it follows. */
  warm(dir: string): void;
  /**
   * Encodes a chunk of records (JSONL) to the bytes of an `EncodedChunk`. `records` is transferred: the caller cannot use it afterwards.
   * @throws what `encodeChunk` throws; the signal's reason
   */
  encode(work: {
    base: Base;
    spec: TokenizeSpec;
    /** Absent: `answers`. */
    examples?: Examples;
    records: Uint8Array<ArrayBuffer>;
    /** Whether signatures for comparing records are computed. */
    signed?: boolean;
    compress: boolean;
    signal?: AbortSignal;
  }): Promise<Uint8Array>;
}

/** Messages to a thread and back. */
export interface ThreadWork {
  id: number;
  dir: string;
  ref: BaseRef;
  identity: string;
  /** Whether this thread checks the fast encoder with the official package. Only the first thread does. */
  fast: "judged" | "trusted" | "none";
  spec: TokenizeSpec;
  examples: Examples;
  records: Uint8Array<ArrayBuffer>;
  signed: boolean;
  compress: boolean;
}
/** The base and settings of the work that follows. */
export type ThreadWarning = Pick<ThreadWork, "dir" | "fast"> & { warm: true };
export type ThreadAnswer = { id: number } & (
  | { bytes: Uint8Array<ArrayBuffer> }
  | { problem: { message: string; permanent: { code: string; param: string | null } | null; differs: boolean } }
);

interface Thread {
  worker: Worker;
  task: Task | undefined;
}
interface Task {
  work: Omit<ThreadWork, "id" | "fast">;
  resolve(bytes: Uint8Array): void;
  reject(error: Error): void;
}

const idleMs = 60_000;

/** @param options.exact - the official package encodes everything. */
export function createEncodeThreads(count = availableParallelism(), { exact = false }: { exact?: boolean } = {}): EncodeThreads {
  const threads: Thread[] = [];
  const waiting: Task[] = [];
  let ids = 0;
  /** Whether the official package encodes everything: set for all threads when the checking thread has found the fast encoder wrong. */
  let withoutFast = exact;
  let idle: NodeJS.Timeout | undefined;
  let closed = false;

  const start = (): Thread => {
    const path = fileURLToPath(new URL(`./encode-thread-main${import.meta.url.slice(-3)}`, import.meta.url));
    // When run from sources, packages are resolved by a condition, which the current process may not have set.
    const worker = new Worker(path, path.endsWith(".ts") ? { execArgv: ["--conditions=@loraline/source"] } : {});
    const thread: Thread = { worker, task: undefined };
    worker.unref();
    worker.on("message", (answer: ThreadAnswer) => {
      const { task } = thread;
      thread.task = undefined;
      if ("bytes" in answer) task?.resolve(answer.bytes);
      else {
        const { message, permanent, differs } = answer.problem;
        withoutFast ||= differs;
        task?.reject(permanent === null ? new Error(message) : new PermanentError(permanent.code, message, { param: permanent.param }));
      }
      next();
    });
    const gone = (error: Error): void => {
      const at = threads.indexOf(thread);
      if (at !== -1) threads.splice(at, 1);
      thread.task?.reject(error);
      thread.task = undefined;
      next();
    };
    worker.on("error", gone);
    worker.on("exit", (code) => gone(new Error(`the thread that tokenizes ended with exit code ${code}`)));
    threads.push(thread);
    return thread;
  };
  const next = (): void => {
    while (waiting.length > 0 && !closed) {
      const thread = threads.find((one) => one.task === undefined) ?? (threads.length < count ? start() : undefined);
      if (thread === undefined) return;
      const task = waiting.shift() as Task;
      thread.task = task;
      // The event loop must stay alive until the answer comes.
      thread.worker.ref();
      const work: ThreadWork = { id: ++ids, fast: fastOf(thread), ...task.work };
      thread.worker.postMessage(work, [work.records.buffer]);
    }
    for (const thread of threads) if (thread.task === undefined) thread.worker.unref();
    if (threads.every((thread) => thread.task === undefined)) idle ??= setTimeout(() => void end(), idleMs).unref();
  };
  const end = async (): Promise<void> => {
    idle = undefined;
    await Promise.all(threads.splice(0).map((thread) => thread.worker.terminate()));
  };

  const fastOf = (thread: Thread): ThreadWork["fast"] => (withoutFast ? "none" : thread === threads[0] ? "judged" : "trusted");

  return {
    warm(dir) {
      while (threads.length < count) start();
      for (const thread of threads) thread.worker.postMessage({ warm: true, dir, fast: fastOf(thread) } satisfies ThreadWarning);
    },
    encode: ({ base, spec, examples = "answers", records, signed = false, compress, signal }) =>
      new Promise((resolve, reject) => {
        if (closed || signal?.aborted === true) {
          reject((signal?.reason as Error | undefined) ?? new Error("the threads that tokenize have been ended"));
          return;
        }
        clearTimeout(idle);
        idle = undefined;
        const task: Task = {
          work: { dir: base.dir, ref: base.ref, identity: identityOf(base), spec, examples, records, signed, compress },
          resolve,
          reject,
        };
        // A thread finishes work that it has begun, which takes about a second.
        const abort = (): void => {
          const at = waiting.indexOf(task);
          if (at !== -1) waiting.splice(at, 1);
          reject(signal?.reason as Error);
        };
        signal?.addEventListener("abort", abort, { once: true });
        const settled = (): void => signal?.removeEventListener("abort", abort);
        task.resolve = (bytes) => {
          settled();
          resolve(bytes);
        };
        task.reject = (error: Error) => {
          settled();
          reject(error);
        };
        waiting.push(task);
        next();
      }),
    async [Symbol.asyncDispose]() {
      closed = true;
      clearTimeout(idle);
      for (const task of waiting.splice(0)) task.reject(new Error("the threads that tokenize have been ended"));
      await end();
    },
  };
}
