/** `chunk.requested` → an object, and its entry in KV `cache`. Each step is harmless when repeated. See chunk-key.ts. */
import type { HandlerContext, Received } from "@loraline/bus";
import { buckets, type chunkRequested, consumers, runRejected } from "@loraline/contracts";
import { getBytes, getJson } from "@loraline/objects";
import { PermanentError, problemOf, RetryLaterError } from "@loraline/runtime";
import { chunkCacheKey, chunkKey, chunkSettings, type ChunkWorkDeps } from "./chunk-key.ts";
import { needsNoTokens, rejectingCodes } from "./run-outcome.ts";

export function onChunkRequested(deps: ChunkWorkDeps) {
  return async (received: Received<typeof chunkRequested>, context: HandlerContext): Promise<void> => {
    try {
      await tokenizeChunk(deps, received, context);
    } catch (error) {
      const isLast = context.tries >= consumers.tokenizeChunkRequested.maxDeliver;
      if (context.signal.aborted || error instanceof RetryLaterError || !(isLast || error instanceof PermanentError)) throw error;
      // The run is rejected, so that the replica that waits for the chunk stops waiting.
      const { code, message, param } = problemOf(error);
      await deps.bus.publish(runRejected, { tenant: received.at.tenant, id: received.data.run }, { code, message, param });
      if (!rejectingCodes.has(code)) throw error;
      context.log.info({ code, run: received.data.run }, "run rejected");
    }
  };
}

async function tokenizeChunk(
  { bus, objects, threads, code, loadBase }: ChunkWorkDeps,
  { at: { tenant, id: key }, data: { run, chunk, settings } }: Received<typeof chunkRequested>,
  { log, signal }: HandlerContext,
): Promise<void> {
  const cache = await bus.bucket(buckets.cache);
  const known = (await cache.get(chunkCacheKey(tenant, key)))?.value.manifest;
  if (known !== undefined && (await objects.head(tenant, known)) !== undefined) return;
  if (await needsNoTokens(bus, { tenant, id: run })) return;
  const wanted = await getJson(objects, tenant, settings, chunkSettings);
  const { signed, examples } = wanted;
  const base = await loadBase(wanted.base);
  if (wanted.code !== code || chunkKey(code, { base, spec: wanted.tokenize, signed, examples }, chunk.digest) !== key) {
    throw new RetryLaterError("OTHER_BASE", 2000, `this replica has another version of the code or of base "${wanted.base}"`);
  }
  const records = new Uint8Array(await getBytes(objects, tenant, chunk));
  const bytes = await threads.encode({ base, spec: wanted.tokenize, examples, records, signed, compress: true, signal });
  const ref = await objects.put(tenant, "encoded", bytes);
  await cache.put(chunkCacheKey(tenant, key), { manifest: ref, at: new Date().toISOString() });
  log.debug({ records: chunk.digest, bytes: ref.size }, "chunk tokenized");
}
