/** A run's chunks as sequences: this replica asks for them, waits for them and cleans up behind them. See chunk-key.ts. */
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { zstdDecompress } from "node:zlib";
import { type BlobRef, buckets, chunkRequested, consumers, type DatasetManifest, type EventAddress } from "@loraline/contracts";
import { getBytes, type Objects, putJson } from "@loraline/objects";
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import { chunkFromBytes, createRecordEncoder, encodeChunk, type EncodedChunk, parseLines } from "@loraline/tokens";
import { chunkCacheKey, chunkKey, type ChunkSettings, type ChunkWorkDeps } from "./chunk-key.ts";
import { needsNoTokens } from "./run-outcome.ts";

type Chunk = DatasetManifest["chunks"][number];

const decompress = promisify(zstdDecompress);

/** A run with at most so many records is tokenized here: that is done before another replica would have begun. */
const fewRecords = 2000;
const pollMs = 50;
/** How often it is asked whether processes wait for chunks. */
const hungryMs = 200;
const usualLookMs = 2000;
/** A chunk that was given up so often, without a rejection of the run, will not come. A chunk that waits behind others is not given up. */
const mostTimesGivenUp = 20;

interface EncodeRun extends ChunkSettings {
  run: EventAddress;
  signal: AbortSignal;
  breathe: () => Promise<void>;
  /** Number that differs between deliveries of the same request. */
  delivery: number;
  /** How often it is asked whether the run is over meanwhile, in milliseconds. */
  lookMs?: number;
  /** Whether another request for the same tokens has got them meanwhile, and has removed the chunks. */
  isDone(): Promise<boolean>;
}

/** Thrown when the run needs no tokens any more while its chunks are waited for. */
export class TokensNotNeeded extends Error {}

/** Chunks as sequences, in their order. @throws TokensNotNeeded; RetryLaterError; what `encodeChunk` throws; the signal's reason */
export async function* encodeChunks(deps: ChunkWorkDeps, options: EncodeRun, chunks: readonly Chunk[]): AsyncGenerator<EncodedChunk> {
  const { bus, objects, code, windows } = deps;
  const { run, base, spec, signed, examples, signal, breathe, delivery, lookMs = usualLookMs, isDone } = options;
  const { tenant } = run;
  if (chunks.reduce((sum, chunk) => sum + chunk.records, 0) <= fewRecords) {
    const encoder = createRecordEncoder(base, spec, examples);
    for (const { blob } of chunks)
      yield encodeChunk(encoder, parseLines(await getText(objects, tenant, blob)), { signed, signal, breathe });
    return;
  }
  const cache = await bus.bucket(buckets.cache);
  const settings = await putJson(objects, tenant, "settings", { code, base: base.ref.name, tokenize: spec, signed, examples });
  const keys = chunks.map((chunk) => chunkKey(code, options, chunk.blob.digest));
  const find = async (key: string): Promise<BlobRef | undefined> => (await cache.get(chunkCacheKey(tenant, key)))?.value.manifest;
  /** Asks for those chunks that are neither there nor asked for already, by an earlier delivery or by another run. @returns the keys it asked for */
  const ask = async (from: number, to: number, round: number): Promise<ReadonlySet<string>> => {
    const asked = new Set<string>();
    const wanted = new Map(keys.slice(from, to).map((key, at) => [key, (chunks[from + at] as Chunk).blob]));
    const askFor = async ([key, chunk]: [string, BlobRef]): Promise<void> => {
      const at = { tenant, id: key };
      if ((await bus.last(chunkRequested, at)) !== undefined || (await find(key)) !== undefined) return;
      await bus.publish(chunkRequested, at, { run: run.id, chunk, settings }, { key: `${run.id}-${delivery}-${round}` });
      asked.add(key);
    };
    // Many at once: one after the other would take a millisecond each.
    const all = [...wanted];
    for (let start = 0; start < all.length; start += 64) await Promise.all(all.slice(start, start + 64).map(askFor));
    return asked;
  };
  using window = windows.open(tenant);
  let round = 0;
  /** Chunks before this one were asked for. */
  let end = 0;
  const askUpTo = async (to: number): Promise<void> => {
    if (to <= end) return;
    await ask(end, to, round);
    end = to;
  };
  for (const [index, key] of keys.entries()) {
    await askUpTo(index + window.size());
    let givenUp = 0;
    for (let waitedMs = 0; ; waitedMs += pollMs) {
      const ref = await find(key);
      const bytes = ref === undefined ? undefined : await getBytes(objects, tenant, ref).catch(undefinedIfMissing);
      if (bytes !== undefined) {
        yield chunkFromBytes(await decompress(bytes));
        break;
      }
      if (ref !== undefined) await cache.delete(chunkCacheKey(tenant, key));
      // Whoever could do more is given more: where there are many replicas, a window is less than they can do at once.
      if (waitedMs % hungryMs === 0 && (await bus.undelivered(consumers.tokenizeChunkRequested)) === 0) await askUpTo(end + window.size());
      if (waitedMs > 0 && waitedMs % lookMs === 0) {
        if (await needsNoTokens(bus, run)) throw new TokensNotNeeded();
        if (await isDone()) throw new RetryLaterError("CHUNKS_GONE", 1, "another run has got the same tokens and removed the chunks");
        // The chunk is asked for again when it was given up because the run that asked is over, or was removed by a run that had used it.
        if ((await ask(index, end, ++round)).has(key) && ++givenUp > mostTimesGivenUp) {
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
    const key = chunkCacheKey(tenant, chunkKey(code, run, blob.digest));
    const entry = await cache.get(key);
    if (entry === undefined) continue;
    // The entry first: an entry without its object would promise what is not there.
    await cache.delete(key);
    await objects.delete(tenant, entry.value.manifest);
  }
}

const getText = async (objects: Objects, tenant: string, blob: BlobRef): Promise<string> =>
  new TextDecoder().decode(await getBytes(objects, tenant, blob));

function undefinedIfMissing(error: unknown): undefined {
  if (error instanceof PermanentError && error.code === "OBJECT_MISSING") return undefined;
  throw error;
}
