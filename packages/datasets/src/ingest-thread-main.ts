/** One of the threads of `ingest-threads.ts`: reads one upload after the other, and asks the process for all that it reads or stores. */
import { getPriority, setPriority } from "node:os";
import { type MessagePort, parentPort } from "node:worker_threads";
import type { Objects } from "@loraline/objects";
import { ingestDataset } from "./ingest-dataset.ts";
import { asError, type Calls, type FromThread, told, type Told, type ToThread } from "./ingest-threads.ts";

const aliveEveryMs = 1000;

// On Linux it holds for this thread alone. Reading takes long: what answers people, and what moves messages, comes first.
if (process.platform === "linux") setPriority(0, Math.max(getPriority(), 10));

const port = parentPort as MessagePort;
const say = (message: FromThread): void => port.postMessage(message);
setInterval(() => say({ alive: true }), aliveEveryMs).unref();

const open = new Map<number, PromiseWithResolvers<unknown>>();
/** Errors of the process, so that one that ends the work is told as itself. */
const ids = new WeakMap<Error, number>();
let calls = 0;
const call = async <C extends keyof Calls>(of: C, ...args: Parameters<Calls[C]>): Promise<Awaited<ReturnType<Calls[C]>>> => {
  const answer = Promise.withResolvers<unknown>();
  open.set(++calls, answer);
  say({ call: of, id: calls, with: args });
  return (await answer.promise) as Awaited<ReturnType<Calls[C]>>;
};

async function* streamOf(stream: number): AsyncGenerator<Uint8Array> {
  try {
    for (let piece = await call("next", stream); piece !== undefined; piece = await call("next", stream)) yield piece;
  } finally {
    await call("close", stream);
  }
}

const objects: Pick<Objects, "get" | "put"> = {
  get: async (tenant, { kind, digest }) => streamOf(await call("get", tenant, { kind, digest })),
  async put(tenant, kind, source, options) {
    if (typeof source === "string" || source instanceof Uint8Array || "file" in source) return call("put", tenant, kind, source, options);
    const stream = await call("store", tenant, kind, options);
    for await (const piece of source) await call("send", stream, piece);
    await call("send", stream, undefined);
    return call("stored", stream);
  },
};

let stopping = new AbortController();
port.on("message", (message: ToThread) => {
  if ("abort" in message) stopping.abort(new Error("the upload is read no further"));
  else if ("answer" in message) {
    const asked = open.get(message.answer);
    open.delete(message.answer);
    if ("error" in message) asked?.reject(keep(message.error));
    else asked?.resolve(message.value);
  } else void work(message);
});

function keep(error: Told): Error {
  const made = asError(error);
  if (error.id !== undefined) ids.set(made, error.id);
  return made;
}

async function work({ work: upload, settings, fetchesPictures }: Extract<ToThread, { work: unknown }>): Promise<void> {
  stopping = new AbortController();
  try {
    const result = await ingestDataset(
      {
        objects,
        settings,
        signal: stopping.signal,
        onRead: (read) => say({ read }),
        checkRoom: () => call("room"),
        ...(fetchesPictures ? { fetchPicture: (url) => call("picture", url) } : {}),
      },
      upload,
    );
    say({ result });
  } catch (error) {
    say({ error: { ...told(error), id: error instanceof Error ? ids.get(error) : undefined } });
  }
}
