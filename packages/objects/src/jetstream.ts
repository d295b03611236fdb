/** Blobs in a JetStream Object Store: the default, because NATS is there already. */
import { causesOf, natsFull, natsOutage, PermanentError, RetryLaterError } from "@loraline/runtime";
import {
  DeliverPolicy,
  jetstream,
  JetStreamApiCodes,
  JetStreamApiError,
  type JetStreamManager,
  jetstreamManager,
  type StoredMsg,
  StorageType,
} from "@nats-io/jetstream";
import { type ObjectInfo, Objm, setSha256Backend } from "@nats-io/obj";
import { headers, type NatsConnection, nuid } from "@nats-io/transport-node";
import { noting, prepare, verified } from "./digest.ts";
import { countStored } from "./count-stored.ts";
import { eraseMessage, eraseMessages } from "./erase-messages.ts";
import { blobOfKey, keyPrefix, missing, objectKey, type Objects, refOfKey, storeAway, storeFull, storeRefuses } from "./objects.ts";

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
  const js = jetstream(nc, { timeout: timeoutMs });
  const objm = new Objm(js);
  const count = countStored(nc);
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
  const stream = `OBJ_${bucket}`;
  const chunksOf = (nuid: string): string => `$O.${bucket}.C.${nuid}`;
  const metaOf = (key: string): string => metaSubject(bucket, key);
  const find = async (key: string): Promise<ObjectInfo | undefined> => {
    const info = await ask(store.info(key));
    return info === null || info.deleted ? undefined : info;
  };
  /** Writes what is known of a blob, if its entry has still this revision (0: there is none). @returns whether it had */
  const writeMeta = async (key: string, meta: Omit<Meta, "mtime">, revision: number): Promise<boolean> => {
    const conditions = headers();
    conditions.set("Nats-Rollup", "sub");
    conditions.set("Nats-Expected-Last-Subject-Sequence", String(revision));
    try {
      await js.publish(metaOf(key), JSON.stringify({ ...meta, mtime: new Date().toISOString() }), {
        headers: conditions,
        timeout: timeoutMs,
      });
      return true;
    } catch (error) {
      if (isWrongRevision(error)) return false;
      throw error;
    }
  };
  const metaFor = (key: string, nuid: string, { size, chunks }: { size: number; chunks: number }): Omit<Meta, "mtime"> => {
    const digest = `SHA-256=${urlSafe(Buffer.from(key.slice(-64), "hex"))}`;
    return { name: key, bucket, nuid, size, chunks, digest, deleted: false, options: { max_chunk_size: chunkBytes } };
  };
  /** Makes the blob young again, if it is there. */
  const touch = async (key: string): Promise<ObjectInfo | undefined> => {
    for (;;) {
      const info = await find(key);
      if (info === undefined || (await writeMeta(key, metaFor(key, info.nuid, info), info.revision))) return info;
    }
  };
  const send = async (subject: string, bytes: AsyncIterable<Uint8Array>): Promise<{ size: number; chunks: number }> => {
    let [size, chunks] = [0, 0];
    for await (const chunk of inChunks(bytes, Math.min(chunkBytes, nc.info?.max_payload ?? chunkBytes))) {
      await js.publish(subject, chunk, { timeout: timeoutMs });
      size += chunk.byteLength;
      chunks++;
    }
    return { size, chunks };
  };

  return {
    async put(tenant, kind, given, { digest } = {}) {
      await using prepared = await prepare(given, { digest, spoolDir });
      const ref = { kind, digest: prepared.digest };
      const key = objectKey(tenant, ref);
      const there = await ask(touch(key));
      if (there !== undefined) return { ...ref, size: there.size };
      const source = noting(prepared.stream());
      const id = nuid.next();
      try {
        const sent = await send(chunksOf(id), source.bytes);
        for (;;) {
          const before = await store.info(key);
          if (before === null || before.deleted) {
            if (!(await writeMeta(key, metaFor(key, id, sent), before?.revision ?? 0))) continue;
            await count(tenant, kind, sent.size);
            return { ...ref, size: sent.size };
          }
          // Another writer of the same bytes was first. A second entry would take the chunks from under its readers.
          const winner = await touch(key);
          if (winner === undefined) continue;
          await eraseMessages(jsm, stream, chunksOf(id));
          return { ...ref, size: winner.size };
        }
      } catch (error) {
        // If this fails, `removeUnfinishedBlobs` does it later.
        await eraseMessages(jsm, stream, chunksOf(id)).catch(() => undefined);
        // A client or hub that went away in the middle is not the store.
        throw source.failure === undefined ? explainNats(error, where) : source.failure.error;
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

    async touch(tenant, ref) {
      const info = await ask(touch(objectKey(tenant, ref)));
      return info && { size: info.size };
    },

    async *list(tenant, kind) {
      const prefix = keyPrefix(tenant, kind);
      for await (const { meta } of metas(nc, bucket, ask)) {
        const ref = meta.deleted === true ? undefined : refOfKey(prefix, meta.name, kind, meta.size);
        if (ref !== undefined) yield ref;
      }
    },

    async *stored(tenant) {
      for await (const { meta, seq, storedAt } of metas(nc, bucket, ask)) {
        const blob = meta.deleted === true ? undefined : blobOfKey(meta.name, meta.size);
        if (blob !== undefined && (tenant === undefined || blob.tenant === tenant)) yield { ...blob, storedAt, revision: String(seq) };
      }
    },

    async delete(tenant, ref, { revision } = {}) {
      const key = objectKey(tenant, ref);
      for (;;) {
        const info = await find(key);
        if (info === undefined) return true;
        if (revision !== undefined && revision !== String(info.revision)) return false;
        // The mark first: nobody may find the entry of a blob whose chunks are gone.
        const mark = { ...metaFor(key, info.nuid, { size: 0, chunks: 0 }), digest: "", deleted: true };
        if (!(await ask(writeMeta(key, mark, info.revision)))) continue;
        await count(tenant, ref.kind, -info.size);
        await ask(eraseDeleted(jsm, { bucket, key: metaOf(key), nuid: info.nuid }));
        return true;
      }
    },
  };
}

/** The entry of a blob, as the object store's specification has it (ADR-20 of NATS), so that the `nats` program reads it too. */
interface Meta {
  name: string;
  bucket: string;
  nuid: string;
  size: number;
  chunks: number;
  digest: string;
  deleted?: boolean;
  mtime: string;
  options: { max_chunk_size: number };
}

/** Base64 for URLs, with padding. */
const urlSafe = (bytes: Buffer): string => bytes.toString("base64").replaceAll("+", "-").replaceAll("/", "_");
const metaSubject = (bucket: string, key: string): string => `$O.${bucket}.M.${urlSafe(Buffer.from(key))}`;

async function* inChunks(source: AsyncIterable<Uint8Array>, size: number): AsyncGenerator<Uint8Array> {
  let parts: Uint8Array[] = [];
  let held = 0;
  for await (let bytes of source) {
    while (held + bytes.byteLength >= size) {
      const room = size - held;
      yield Buffer.concat([...parts, bytes.subarray(0, room)]);
      bytes = bytes.subarray(room);
      [parts, held] = [[], 0];
    }
    if (bytes.byteLength > 0) parts.push(Buffer.from(bytes));
    held += bytes.byteLength;
  }
  if (held > 0) yield Buffer.concat(parts);
}

/** The newest entry of every blob, also of deleted ones, a thousand at a time. */
async function* metas(
  nc: NatsConnection,
  bucket: string,
  ask: <T>(asking: Promise<T>) => Promise<T>,
): AsyncGenerator<{ meta: Meta; seq: number; storedAt: number }> {
  const stream = `OBJ_${bucket}`;
  const filter = `$O.${bucket}.M.>`;
  const seen = new Set<string>();
  const consumer = await ask(
    jetstream(nc).consumers.get(stream, { filter_subjects: [filter], deliver_policy: DeliverPolicy.LastPerSubject }),
  );
  try {
    for (let left = (await ask(consumer.info())).num_pending; left > 0; left = (await ask(consumer.info())).num_pending) {
      for await (const message of await ask(consumer.fetch({ max_messages: Math.min(left, 1000), expires: 5000 }))) {
        const { seq, subject, info } = message;
        // One that is used again meanwhile comes twice. Its first entry does: nothing is removed by an entry that was replaced.
        if (!seen.has(subject)) yield { meta: message.json<Meta>(), seq, storedAt: Number(info.timestampNanos / 1_000_000) };
        seen.add(subject);
        if (info.pending === 0) break;
      }
    }
  } finally {
    // Left alone it would stay for minutes, and a stream holds only so many.
    await consumer.delete().catch(() => false);
  }
  // A blob that is used again while all are listed may not come, as the server counts what it replaces before what it stores; nor what was lost
  // with a connection. Chunks of a blob that is not in the list are erased.
  const jsm = await jetstreamManager(nc);
  const { state } = await ask(jsm.streams.info(stream, { subjects_filter: filter }));
  for (const subject of Object.keys(state.subjects ?? {})) {
    if (seen.has(subject)) continue;
    const message = await ask(jsm.streams.getMessage(stream, { last_by_subj: subject }));
    if (message !== null) yield { meta: message.json<Meta>(), seq: message.seq, storedAt: message.time.getTime() };
  }
}

/** Erases the chunks of a blob that was marked as deleted, then the mark. */
async function eraseDeleted(jsm: JetStreamManager, blob: { bucket: string; key: string; nuid: string }): Promise<void> {
  const stream = `OBJ_${blob.bucket}`;
  await eraseMessages(jsm, stream, `$O.${blob.bucket}.C.${blob.nuid}`);
  const last = await jsm.streams.getMessage(stream, { last_by_subj: blob.key });
  // Whoever stored the blob again has taken the mark's place.
  if (last !== null && last.json<Meta>().deleted === true) await eraseMessage(jsm, stream, last.seq);
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
 * Erases what writers and erasers left that were killed in the middle: chunks that no entry refers to, and those of deleted blobs, with
 * their marks. Chunks without an entry that are younger than `olderThanMs` are left alone, because their writer may still be at work.
 *
 * @returns how many unfinished blobs were removed.
 */
export async function removeUnfinishedBlobs(
  nc: NatsConnection,
  options: { bucket?: string; olderThanMs?: number; now?: number } = {},
): Promise<number> {
  const { bucket = "objects", olderThanMs = 60 * 60_000 } = options;
  const stream = `OBJ_${bucket}`;
  const jsm = await jetstreamManager(nc);
  const { state, ts } = await jsm.streams.info(stream, { subjects_filter: `$O.${bucket}.C.>` });
  // The server's clock wrote the times of chunks, and this machine's may differ.
  const now = options.now ?? Date.parse(ts ?? new Date().toISOString());
  // Listed after the chunks: a blob that is completed in between must count as complete.
  const complete = new Set<string>();
  let removed = 0;
  for await (const { meta } of metas(nc, bucket, (asking) => asking)) {
    if (meta.deleted !== true) {
      complete.add(meta.nuid);
      continue;
    }
    await eraseDeleted(jsm, { bucket, key: metaSubject(bucket, meta.name), nuid: meta.nuid });
    removed++;
  }
  for (const subject of Object.keys(state.subjects ?? {})) {
    if (complete.has(subject.slice(`$O.${bucket}.C.`.length))) continue;
    const last = await jsm.streams.getMessage(stream, { last_by_subj: subject });
    if (last === null || now - last.time.getTime() < olderThanMs) continue;
    await eraseMessages(jsm, stream, subject);
    removed++;
  }
  return removed;
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
