/** One of the threads of `encode-threads.ts`. Each thread loads all imports, so this file imports single files of large packages. */
import { getPriority, setPriority } from "node:os";
import { parentPort } from "node:worker_threads";
import { constants, zstdCompressSync } from "node:zlib";
import { problemOf, PermanentError } from "@loraline/runtime/errors";
import { createRecordEncoder } from "./encode-records.ts";
import type { RecordEncoder } from "./record-encoder.ts";
import { EncodersDiffer } from "./encoder.ts";
import type { ThreadAnswer, ThreadWarning, ThreadWork } from "./encode-threads.ts";
import { chunkToBytes, encodeChunk, parseLines } from "./encoded-chunk.ts";
import { type Base, identityOf, loadBase } from "./load-base.ts";

// On Linux it holds for this thread alone: the process' own comes first, which works on small runs itself and on everybody's messages.
if (process.platform === "linux") setPriority(0, Math.max(getPriority(), 10));

/** The most recent base and settings; others are rare. */
let base: { key: string; value: Promise<Base> } | undefined;
let encoder: { key: string; value: RecordEncoder } | undefined;

async function load({ dir, fast }: Pick<ThreadWork, "dir" | "fast">, anew = false): Promise<Base> {
  const key = JSON.stringify([dir, fast]);
  if (base?.key !== key || anew) base = { key, value: loadBase(dir, { fast }) };
  return base.value;
}

async function encoderFor(work: ThreadWork): Promise<RecordEncoder> {
  const { dir, ref, identity, fast, spec, examples } = work;
  // The base's reference comes with the work: its digest covers the weights and would take long to compute in each thread.
  const isIt = (loaded: Base): boolean => identityOf({ ...loaded, ref }) === identity;
  let loaded = await load(work);
  if (!isIt(loaded)) loaded = await load(work, true);
  if (!isIt(loaded)) {
    throw new Error(`the files of base "${loaded.ref.name}" have changed while records were tokenized with them`);
  }
  const key = JSON.stringify([dir, identity, fast, spec, examples]);
  if (encoder?.key !== key) encoder = { key, value: createRecordEncoder(loaded, spec, examples) };
  return encoder.value;
}

async function answer(work: ThreadWork): Promise<Uint8Array<ArrayBuffer>> {
  const records = parseLines(new TextDecoder().decode(work.records));
  const bytes = chunkToBytes(await encodeChunk(await encoderFor(work), records, { signed: work.signed }));
  return new Uint8Array(work.compress ? zstdCompressSync(bytes, { params: { [constants.ZSTD_c_compressionLevel]: 1 } }) : bytes);
}

parentPort?.on("message", (work: ThreadWork | ThreadWarning) => {
  if ("warm" in work) {
    // If the base cannot be loaded, the first request for work reports the error.
    load(work).catch(() => undefined);
    return;
  }
  answer(work).then(
    (bytes) => parentPort?.postMessage({ id: work.id, bytes } satisfies ThreadAnswer, [bytes.buffer]),
    (error: unknown) => {
      const { code, param, message } = problemOf(error);
      const permanent = error instanceof PermanentError ? { code, param } : null;
      const differs = error instanceof EncodersDiffer;
      parentPort?.postMessage({ id: work.id, problem: { message, permanent, differs } } satisfies ThreadAnswer);
    },
  );
});
