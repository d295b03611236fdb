/**
 * The records of a run are tokenized chunk by chunk, by whichever replica is free.
 *
 *   coordinator (holds run.requested)                      any replica (holds chunk.requested)
 *     key of each chunk ─► KV cache: done already?           done already, or the run has ended? ─► ack
 *     the others ─► chunk.requested ─────────────────────►   records ─► sequences ─► object ─► KV cache ─► ack
 *     waits for KV cache, reads the objects in the chunks' order
 *
 * A chunk's key is the hash of all that decides its result, so whoever does it, and however often, leaves the same bytes. What a
 * dead replica had in hand comes to another; what a dead coordinator had is done when its successor looks.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { zstdDecompress } from "node:zlib";
import type { Bus, HandlerContext, Received } from "@loraline/bus";
import {
  type BlobRef,
  buckets,
  chunkRequested,
  consumers,
  type DatasetManifest,
  type Digest,
  type EventAddress,
  runCancelled,
  runRejected,
  runTokenized,
  terminalPhases,
  tokenizeSpec,
} from "@loraline/contracts";
import { digestOf, getBytes, getJson, type Objects, putJson } from "@loraline/objects";
import { PermanentError, problemOf, RetryLaterError } from "@loraline/runtime";
import { z } from "zod";
import {
  type Base,
  chunkFromBytes,
  createRecordEncoder,
  encodeChunk,
  type EncodedChunk,
  type EncodeThreads,
  identityOf,
  parseLines,
  type TokenizeSpec,
} from "@loraline/tokens";

type Chunk = DatasetManifest["chunks"][number];

/** The object of kind `settings`. */
const chunkSettings = z.object({ code: z.string(), base: z.string(), tokenize: tokenizeSpec, signed: z.boolean() });

export interface ChunkWorkDeps {
  bus: Bus;
  objects: Objects;
  threads: EncodeThreads;
  /** Version of the code that decides the result. */
  code: string;
  loadBase(name: string): Promise<Base>;
}

/** All that decides what becomes of a chunk. Packing comes afterwards. */
export function chunkKey(
  code: string,
  { base, spec: { packing: _later, ...spec }, signed }: Pick<EncodeRun, "base" | "spec" | "signed">,
  chunk: Digest,
): string {
  const settings = Object.entries(spec).sort(([a], [b]) => (a < b ? -1 : 1));
  return digestOf(JSON.stringify([code, "chunk", identityOf(base), settings, signed, chunk])).slice("sha256:".length);
}

const cacheKey = (tenant: string, key: string): string => `chunk.${tenant}.${key}`;
const decompress = promisify(zstdDecompress);

/** Outcomes of a run, not faults of the line. */
export const rejecting: ReadonlySet<string> = new Set([
  "BASE_FILES_MISSING",
  "BASE_MISSING",
  "TEMPLATE_MISSING",
  "TEMPLATE_UNSUPPORTED",
  "PAD_TOKEN_MISSING",
  "EOS_TOKEN_MISSING",
  "TOKENIZER_INVALID",
]);

/* --- the coordinator's side --- */

/** Fewer records than this the coordinator does itself: they are done before another replica would have begun. */
const fewRecords = 2000;
const pollMs = 50;
const usualLookMs = 2000;
/** A chunk that was given up so often, without the run being told why, will not come. Waiting its turn behind others is no giving up. */
const mostTimesGivenUp = 20;

export interface EncodeRun {
  run: EventAddress;
  base: Base;
  spec: TokenizeSpec;
  /** Whether records are to be compared with each other. */
  signed: boolean;
  signal: AbortSignal;
  /** Tells this request apart from one that an earlier delivery made. */
  attempt: number;
  /** How often it is asked whether the run has ended meanwhile, in milliseconds. */
  lookMs?: number;
  /** Whether another request for the same tokens has got them meanwhile, and cleaned up behind it. */
  isDone(): Promise<boolean>;
}

/** Thrown when the run has ended while its chunks were waited for: nothing is left to do. */
export class RunSettled extends Error {}

/** Chunks as sequences, in their order. @throws RunSettled; RetryLaterError; what `encodeChunk` throws; the signal's reason */
export async function* encodeChunks(deps: ChunkWorkDeps, options: EncodeRun, chunks: readonly Chunk[]): AsyncGenerator<EncodedChunk> {
  const { bus, objects, code } = deps;
  const { run, base, spec, signed, signal, attempt, lookMs = usualLookMs, isDone } = options;
  const { tenant } = run;
  if (chunks.reduce((sum, chunk) => sum + chunk.records, 0) <= fewRecords) {
    const encoder = createRecordEncoder(base, spec);
    for (const { blob } of chunks) yield encodeChunk(encoder, parseLines(await getText(objects, tenant, blob)), { signed, signal });
    return;
  }
  const cache = await bus.bucket(buckets.cache);
  const settings = await putJson(objects, tenant, "settings", { code, base: base.ref.name, tokenize: spec, signed });
  const keys = chunks.map((chunk) => chunkKey(code, options, chunk.blob.digest));
  const find = async (key: string): Promise<BlobRef | undefined> => (await cache.get(cacheKey(tenant, key)))?.value.manifest;
  /** Asks for what is neither there nor asked for already, be it by an earlier delivery or by another run. @returns the keys it asked for */
  const ask = async (from: number, round: number): Promise<ReadonlySet<string>> => {
    const asked = new Set<string>();
    const wanted = new Map(keys.slice(from).map((key, at) => [key, (chunks[from + at] as Chunk).blob]));
    const askFor = async ([key, chunk]: [string, BlobRef]): Promise<void> => {
      const at = { tenant, id: key };
      if ((await bus.last(chunkRequested, at)) !== undefined || (await find(key)) !== undefined) return;
      await bus.publish(chunkRequested, at, { run: run.id, chunk, settings }, { key: `${run.id}-${attempt}-${round}` });
      asked.add(key);
    };
    // Many at once: one after the other would take a millisecond each.
    const all = [...wanted];
    for (let start = 0; start < all.length; start += 64) await Promise.all(all.slice(start, start + 64).map(askFor));
    return asked;
  };
  let round = 0;
  await ask(0, round);
  for (const [index, key] of keys.entries()) {
    let givenUp = 0;
    for (let waitedMs = 0; ; waitedMs += pollMs) {
      const ref = await find(key);
      const bytes = ref === undefined ? undefined : await getBytes(objects, tenant, ref).catch(nothingThere);
      if (bytes !== undefined) {
        yield chunkFromBytes(await decompress(bytes));
        break;
      }
      if (ref !== undefined) await cache.delete(cacheKey(tenant, key));
      if (waitedMs > 0 && waitedMs % lookMs === 0) {
        if (await isSettled(bus, run)) throw new RunSettled();
        if (await isDone()) throw new RetryLaterError("CHUNKS_GONE", 1, "another run has got the same tokens and removed the chunks");
        // Given up because the run that asked had ended, or removed by one that was done with it: then it is asked for again.
        if ((await ask(index, ++round)).has(key) && ++givenUp > mostTimesGivenUp) {
          throw new Error(`chunk ${chunks[index]?.blob.digest} was given up ${givenUp} times`);
        }
      }
      await sleep(pollMs, undefined, { signal });
    }
  }
}

/** Removes what was kept between chunks and shards. */
export async function forgetChunks({ bus, objects, code }: ChunkWorkDeps, run: EncodeRun, chunks: readonly Chunk[]): Promise<void> {
  const { tenant } = run.run;
  const cache = await bus.bucket(buckets.cache);
  for (const { blob } of chunks) {
    const key = cacheKey(tenant, chunkKey(code, run, blob.digest));
    const entry = await cache.get(key);
    if (entry === undefined) continue;
    // The entry first: without its object it would be a promise that nobody keeps.
    await cache.delete(key);
    await objects.delete(tenant, entry.value.manifest);
  }
}

const getText = async (objects: Objects, tenant: string, blob: BlobRef): Promise<string> =>
  new TextDecoder().decode(await getBytes(objects, tenant, blob));

function nothingThere(error: unknown): undefined {
  if (error instanceof PermanentError && error.code === "OBJECT_MISSING") return undefined;
  throw error;
}

/** Nothing is to be done for a run that has its tokens or has ended, and nothing for one that somebody wants stopped. */
export async function isSettled(bus: Bus, at: EventAddress): Promise<boolean> {
  const state = (await (await bus.bucket(buckets.runs)).get(`${at.tenant}.${at.id}`))?.value;
  if (state !== undefined && (state.cancelRequested || state.tokens !== null || terminalPhases.has(state.phase))) return true;
  // The state is a fold and may lag behind.
  const ends = await Promise.all([runTokenized, runRejected, runCancelled].map((event) => bus.last(event, at)));
  return ends.some((end) => end !== undefined);
}

/* --- the replica's side --- */

/** `chunk.requested` → an object, and its entry in KV `cache`. Each step is harmless when repeated. */
export function onChunkRequested(deps: ChunkWorkDeps) {
  const { bus, objects, threads, code, loadBase } = deps;
  const work = async (received: Received<typeof chunkRequested>, { log, signal }: HandlerContext): Promise<void> => {
    const { tenant, id: key } = received.at;
    const { run, chunk, settings } = received.data;
    const cache = await bus.bucket(buckets.cache);
    const known = (await cache.get(cacheKey(tenant, key)))?.value.manifest;
    if (known !== undefined && (await objects.head(tenant, known)) !== undefined) return;
    if (await isSettled(bus, { tenant, id: run })) return;
    const wanted = await getJson(objects, tenant, settings, chunkSettings);
    const base = await loadBase(wanted.base);
    if (wanted.code !== code || chunkKey(code, { base, spec: wanted.tokenize, signed: wanted.signed }, chunk.digest) !== key) {
      throw new RetryLaterError("OTHER_BASE", 2000, `this replica has another version of the code or of base "${wanted.base}"`);
    }
    const records = new Uint8Array(await getBytes(objects, tenant, chunk));
    const bytes = await threads.encode({ base, spec: wanted.tokenize, records, signed: wanted.signed, compress: true, signal });
    const ref = await objects.put(tenant, "encoded", bytes);
    await cache.put(cacheKey(tenant, key), { manifest: ref, at: new Date().toISOString() });
    log.debug({ records: chunk.digest, bytes: ref.size }, "chunk tokenized");
  };
  return async (received: Received<typeof chunkRequested>, context: HandlerContext): Promise<void> => {
    try {
      await work(received, context);
    } catch (error) {
      const isLast = context.tries >= consumers.tokenizeChunkRequested.maxDeliver;
      if (context.signal.aborted || error instanceof RetryLaterError || !(isLast || error instanceof PermanentError)) throw error;
      // Whoever waits for the chunk learns that it will not come.
      const { code: reason, message, param } = problemOf(error);
      await bus.publish(runRejected, { tenant: received.at.tenant, id: received.data.run }, { code: reason, message, param });
      if (!rejecting.has(reason)) throw error;
      context.log.info({ code: reason, run: received.data.run }, "run rejected");
    }
  };
}
