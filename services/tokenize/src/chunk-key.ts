/**
 * How the records of a run are tokenized chunk by chunk, by whichever replica is free. Both sides meet in KV `cache`.
 *
 *   encode-chunks.ts (holds run.requested)                 on-chunk-requested.ts (holds chunk.requested), on any replica
 *     key of each chunk ─► KV cache: done already?           done already, or the run is over? ─► ack
 *     the next ones ─► chunk.requested ──────────────────►   records ─► sequences ─► object ─► KV cache ─► ack
 *     waits for KV cache, reads the objects in the chunks' order
 *
 * A chunk's key is the hash of all that decides its result. Every replica that does a chunk therefore leaves the same bytes, however
 * often it is done. The chunk that a dead replica had in hand is delivered to another one; a run whose replica died is delivered to
 * another one too, which finds the chunks that are done.
 */
import type { Bus } from "@loraline/bus";
import { cacheKey, type Digest, tokenizeSpec } from "@loraline/contracts";
import { digestOf, type Objects } from "@loraline/objects";
import { type Base, type EncodeThreads, exampleKinds, type Examples, identityOf, type TokenizeSpec } from "@loraline/tokens";
import { z } from "zod";
import type { ChunkWindows } from "./chunk-windows.ts";

/** What both sides work with. */
export interface ChunkWorkDeps {
  bus: Bus;
  objects: Objects;
  threads: EncodeThreads;
  /** Version of the code that decides the result. */
  code: string;
  loadBase(name: string): Promise<Base>;
  windows: ChunkWindows;
}

/** The object of kind `settings`, which every `chunk.requested` of a run refers to. */
export const chunkSettings = z.object({
  code: z.string(),
  base: z.string(),
  tokenize: tokenizeSpec,
  signed: z.boolean(),
  examples: z.enum(exampleKinds).default("answers"),
});

export interface ChunkSettings {
  base: Base;
  spec: TokenizeSpec;
  /** Whether each record gets a signature by which near duplicates are found. */
  signed: boolean;
  /** What the run's method trains. */
  examples: Examples;
}

/** Hash, as hex digits, of all that decides what becomes of a chunk. Packing does not: it comes afterwards. */
export function chunkKey(
  code: string,
  { base, spec: { packing: _later, ...spec }, signed, examples }: ChunkSettings,
  chunk: Digest,
): string {
  const settings = Object.entries(spec).sort(([a], [b]) => (a < b ? -1 : 1));
  const what = examples === "answers" ? [] : [examples];
  return digestOf(JSON.stringify([code, "chunk", identityOf(base), settings, signed, chunk, ...what])).slice("sha256:".length);
}

/** Key in KV `cache`. */
export const chunkCacheKey = (tenant: string, hex: string): string => cacheKey({ stage: "chunk", tenant, hex });
