/** Blobs in a JetStream Object Store: the default, because NATS is there already. */
import type { BlobKind, BlobRef } from "@loraline/contracts";
import { causesOf, natsFull, natsOutage, PermanentError, RetryLaterError } from "@loraline/runtime";
import {
  jetstream,
  JetStreamApiCodes,
  JetStreamApiError,
  type JetStreamManager,
  jetstreamManager,
  type StoredMsg,
  StorageType,
} from "@nats-io/jetstream";
import { type ObjectInfo, type ObjectStore, Objm, setSha256Backend } from "@nats-io/obj";
import type { NatsConnection } from "@nats-io/transport-node";
import { noting, prepare, verified } from "./digest.ts";
import { keyPrefix, missing, objectKey, type Objects, refOfKey, storeAway, storeFull, storeRefuses } from "./objects.ts";

/** Larger than the default of 128 KiB: three times the throughput, and still below NATS' default of 1 MiB a message. */
const chunkBytes = 512 * 1024;

interface JetStreamObjectsOptions {
  /** Name of the object store. Default `objects`. */
  bucket?: string | undefined;
  /** Copies of every blob; a store that exists is changed to so many. Default: 1, or as it is. */
  replicas?: number | undefined;
  /** Limit of the whole store in bytes, when it is created here. Default none. */
  maxBytes?: number | undefined;
  /** Where streams of unknown digest are spooled. Default: the system's temporary directory. */
  spoolDir?: string | undefined;
  /** For each request, so that one lost in a restart of the server is tried again soon; a chunk takes milliseconds. Default 10 s. */
  timeoutMs?: number | undefined;
}

/** Opens the store, creating it if it does not exist. The connection stays the caller's. */
export async function createJetStreamObjects(nc: NatsConnection, options: JetStreamObjectsOptions = {}): Promise<Objects> {
  setSha256Backend("native");
  const { bucket = "objects", replicas, maxBytes, spoolDir, timeoutMs = 10_000 } = options;
  const objm = new Objm(jetstream(nc, { timeout: timeoutMs }));
  const jsm = await jetstreamManager(nc, { timeout: timeoutMs });
  // Looked at first: not everybody who may use it may create it.
  const there = await jsm.streams.info(`OBJ_${bucket}`).catch((error: unknown) => {
    if (error instanceof JetStreamApiError && error.code === JetStreamApiCodes.StreamNotFound) return undefined;
    throw error;
  });
  if (there !== undefined && replicas !== undefined && there.config.num_replicas !== replicas) {
    await jsm.streams.update(`OBJ_${bucket}`, { num_replicas: replicas });
  }
  const store =
    there !== undefined
      ? await objm.open(bucket)
      : await objm.create(bucket, {
          description: "Blobs by digest: <tenant>/<kind>/sha256/<hex>",
          storage: StorageType.File,
          replicas: replicas ?? 1,
          ...(maxBytes === undefined ? {} : { max_bytes: maxBytes }),
        });

  const where = `store "${bucket}" in NATS`;
  const ask = <T>(asking: Promise<T>): Promise<T> =>
    asking.catch((error: unknown) => {
      throw explainNats(error, where);
    });
  const find = async (key: string): Promise<ObjectInfo | undefined> => {
    const info = await ask(store.info(key));
    return info === null || info.deleted ? undefined : info;
  };

  return {
    async put(tenant, kind, given, { digest } = {}) {
      await using prepared = await prepare(given, { digest, spoolDir });
      const ref = { kind, digest: prepared.digest };
      const key = objectKey(tenant, ref);
      const before = await ask(store.info(key));
      if (before !== null && !before.deleted) return { ...ref, size: before.size };
      const source = noting(prepared.stream());
      try {
        const info = await store.put({ name: key, options: { max_chunk_size: chunkBytes } }, ReadableStream.from(source.bytes), {
          timeout: timeoutMs,
          // The first writer wins; a second put over a live name would purge the chunks from under its readers.
          previousRevision: before?.revision ?? 0,
        });
        return { ...ref, size: info.size };
      } catch (error) {
        // A client or hub that went away in the middle is not the store.
        if (source.failure !== undefined) throw source.failure.error;
        const winner = isWrongRevision(error) ? await find(key) : undefined;
        if (winner !== undefined) return { ...ref, size: winner.size };
        throw explainNats(error, where);
      }
    },

    async get(tenant, ref) {
      const key = objectKey(tenant, ref);
      const info = await find(key);
      if (info === undefined) throw missing(key);
      return verified(
        chunks(jsm, bucket, info, ask),
        ref.digest,
        (actual, bytes) =>
          new PermanentError("OBJECT_CORRUPT", `${key} is corrupt: its ${bytes} bytes are ${actual}; delete it and store it again`),
      );
    },

    async head(tenant, ref) {
      const info = await find(objectKey(tenant, ref));
      return info && { size: info.size };
    },

    async *list(tenant, kind) {
      const prefix = keyPrefix(tenant, kind);
      yield* refsIn(await ask(store.list()), prefix, kind);
    },

    async delete(tenant, ref) {
      await ask(store.delete(objectKey(tenant, ref)));
    },
  };
}

function* refsIn(infos: readonly ObjectInfo[], prefix: string, kind: BlobKind): Generator<BlobRef> {
  for (const { name, size, deleted } of infos) {
    const ref = deleted ? undefined : refOfKey(prefix, name, kind, size);
    if (ref !== undefined) yield ref;
  }
}

/**
 * Reads chunk by chunk, one ahead of the consumer. The client library's own `get` pushes a blob into memory as fast as the
 * server sends it, however slowly it is read; this holds two chunks, needs no consumer on the server, and cannot hang.
 */
async function* chunks(
  jsm: JetStreamManager,
  bucket: string,
  info: ObjectInfo,
  ask: <T>(asking: Promise<T>) => Promise<T>,
): AsyncGenerator<Uint8Array, void, undefined> {
  const stream = `OBJ_${bucket}`;
  const query = (seq: number) => ({ seq, next_by_subj: `$O.${bucket}.C.${info.nuid}` });
  const read = async (index: number, seq: number): Promise<StoredMsg> => {
    // A replica that answers direct reads may lag behind the stream's leader, which is asked second.
    const found = (await ask(jsm.direct.getMessage(stream, query(seq)))) ?? (await ask(jsm.streams.getMessage(stream, query(seq))));
    if (found === null) throw new Error(`chunk ${index + 1} of ${info.chunks} of ${info.name} is not there; it may be being deleted`);
    return found;
  };

  let next = info.chunks > 0 ? read(0, 1) : undefined;
  for (let index = 0; next !== undefined; index++) {
    const message: StoredMsg = await next;
    next = index + 1 < info.chunks ? read(index + 1, message.seq + 1) : undefined;
    next?.catch(() => undefined); // reported when awaited; a reader who stops early must not leave it unhandled
    yield message.data;
  }
}

/**
 * Removes chunks that no object refers to: what a writer left that was killed before its last step. Chunks younger than
 * `olderThanMs` are left alone, because a writer may still be at work.
 *
 * @returns how many unfinished blobs were removed.
 */
export async function removeUnfinishedBlobs(
  nc: NatsConnection,
  options: { bucket?: string; olderThanMs?: number; now?: number } = {},
): Promise<number> {
  const { bucket = "objects", olderThanMs = 60 * 60_000, now = Date.now() } = options;
  const stream = `OBJ_${bucket}`;
  const jsm = await jetstreamManager(nc);
  const { state } = await jsm.streams.info(stream, { subjects_filter: `$O.${bucket}.C.>` });
  // Listed after the chunks: a blob that is completed in between must count as complete.
  const complete = await nuidsOf(await new Objm(nc).open(bucket));
  let removed = 0;
  for (const subject of Object.keys(state.subjects ?? {})) {
    if (complete.has(subject.slice(`$O.${bucket}.C.`.length))) continue;
    const last = await jsm.streams.getMessage(stream, { last_by_subj: subject });
    if (last === null || now - last.time.getTime() < olderThanMs) continue;
    await jsm.streams.purge(stream, { filter: subject });
    removed++;
  }
  return removed;
}

async function nuidsOf(store: ObjectStore): Promise<Set<string>> {
  return new Set((await store.list()).filter(({ deleted }) => !deleted).map(({ nuid }) => nuid));
}

// Error codes of the server: https://github.com/nats-io/nats-server/blob/main/server/errors.json
const isWrongRevision = (error: unknown): boolean => error instanceof JetStreamApiError && error.code === 10071;

/** What an error of the client means for the work: see `Objects`. */
function explainNats(error: unknown, where: string): unknown {
  if (error instanceof PermanentError || error instanceof RetryLaterError) return error;
  const full = natsFull(error);
  if (full !== undefined) return storeFull(where, full, error);
  const outage = natsOutage(error);
  if (outage !== undefined) return storeAway(where, outage, error);
  for (const one of causesOf(error)) {
    if (one instanceof JetStreamApiError && one.code === JetStreamApiCodes.StreamNotFound)
      return storeRefuses(where, "there is none", "Run `loraline ensure-streams`.", error);
    if (one.name === "PermissionViolationError" || one.name === "AuthorizationError")
      return storeRefuses(where, one.message, "The operator has to mend the permissions of this user in NATS.", error);
  }
  return error;
}
