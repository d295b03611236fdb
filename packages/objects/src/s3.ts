/** Blobs in any S3: for clusters that have one. Credentials come from the AWS chain unless given. */
import { Readable } from "node:stream";
import {
  CopyObjectCommand,
  DeleteObjectCommand,
  type _Object,
  GetObjectCommand,
  HeadObjectCommand,
  paginateListObjectsV2,
  S3Client,
  type S3ClientConfig,
  S3ServiceException,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { causesOf, PermanentError } from "@loraline/runtime";
import type { CountStored } from "./count-stored.ts";
import { noting, prepare, verified } from "./digest.ts";
import { blobOfKey, keyPrefix, missing, objectKey, type Objects, refOfKey, storeAway, storeFull, storeRefuses } from "./objects.ts";

/** Parts in memory at once, times their size, bounds what one `put` holds: 24 MiB. */
const partsInFlight = 2;
const partBytes = 8 * 1024 * 1024;
/** The largest object that S3 copies in one request. */
const largestCopyBytes = 5 * 1024 ** 3;
/** S3 allows 10,000 parts; larger blobs get larger parts. */
const partBytesFor = (size: number | undefined): number => Math.max(partBytes, Math.ceil((size ?? 0) / 9_000));

const contentType = "application/octet-stream";
/** In whole seconds: a list may say it to the millisecond, where the answer to a HEAD, being an HTTP header, does not. */
const revisionOf = (modified: Date | undefined): string => (modified === undefined ? "" : `${modified.toISOString().slice(0, 19)}Z`);

interface S3ObjectsOptions {
  /** Must exist. An `AbortIncompleteMultipartUpload` lifecycle rule clears what killed writers leave. */
  bucket: string;
  /** URL of a server that is not AWS; buckets are then addressed by path. */
  endpoint?: string | undefined;
  region?: string | undefined;
  credentials?: { accessKeyId: string; secretAccessKey: string; sessionToken?: string } | undefined;
  /** Where streams of unknown digest are spooled. Default: the system's temporary directory. */
  spoolDir?: string | undefined;
  /** Is told of what comes and goes. Default: nobody is. */
  count?: CountStored;
  /** Milliseconds after which a server that says nothing counts as away; each request is tried three times. */
  patience?: Partial<typeof usualPatience>;
}

const usualPatience = {
  connect: 5000,
  /** For an answer to a question, and between two pieces of a blob. */
  answer: 10_000,
  /** To send a part of an upload, and for what the server says to it. */
  part: 60_000,
};

export function createS3Objects(options: S3ObjectsOptions): Objects & Disposable {
  const { bucket: Bucket, endpoint, region = "us-east-1", credentials, spoolDir, count = () => Promise.resolve() } = options;
  const patience = { ...usualPatience, ...options.patience };
  const config: S3ClientConfig = {
    region,
    ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true }),
    ...(credentials === undefined ? {} : { credentials }),
    // The digest in the key is stronger than the SDK's CRC32, and other servers need not know about that.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    // Without limits a server that takes connections and never answers would hold the work for ever, without a reason to show.
    requestHandler: { connectionTimeout: patience.connect, requestTimeout: patience.part, throwOnRequestTimeout: true },
  };
  const client = new S3Client(config);
  const soon = { requestTimeout: patience.answer };
  const where = `bucket "${Bucket}"${endpoint === undefined ? "" : ` at ${endpoint}`}`;
  const explain = (error: unknown): unknown => explainS3(error, where);
  const look = async (Key: string): Promise<{ size: number; revision: string } | undefined> => {
    try {
      const { ContentLength = 0, LastModified } = await client.send(new HeadObjectCommand({ Bucket, Key }), soon);
      return { size: ContentLength, revision: revisionOf(LastModified) };
    } catch (error) {
      if (error instanceof S3ServiceException && error.$metadata.httpStatusCode === 404) return undefined;
      throw explain(error);
    }
  };
  /**
   * Makes a blob young again, by copying it onto itself.
   * @returns false if it is not there any more, or if this server's copies keep their age, as those of some that are not AWS do.
   */
  const touch = async (Key: string, before: { size: number; revision: string }): Promise<boolean> => {
    if (before.size > largestCopyBytes) return false;
    const copy = { Bucket, Key, CopySource: `${Bucket}/${Key}`, MetadataDirective: "REPLACE", ContentType: contentType } as const;
    try {
      const { CopyObjectResult } = await client.send(new CopyObjectCommand(copy), { requestTimeout: patience.part });
      // Times are whole seconds on some servers.
      return revisionOf(CopyObjectResult?.LastModified) > before.revision || Date.now() - Date.parse(before.revision) < 2000;
    } catch (error) {
      if (error instanceof S3ServiceException && (error.name === "NoSuchKey" || error.$metadata.httpStatusCode === 404)) return false;
      throw explain(error);
    }
  };

  /** @returns its size. */
  const upload = async (Key: string, bytes: AsyncIterable<Uint8Array>, expected: number | undefined): Promise<number> => {
    let size = 0;
    const source = noting(bytes);
    const counted = async function* () {
      for await (const chunk of source.bytes) {
        size += chunk.byteLength;
        yield chunk;
      }
    };
    const sending = new Upload({
      client,
      params: { Bucket, Key, Body: Readable.from(counted(), { objectMode: false }), ContentType: contentType },
      queueSize: partsInFlight,
      partSize: partBytesFor(expected),
    });
    try {
      await sending.done();
    } catch (error) {
      // A client or hub that went away in the middle is not the store.
      throw source.failure === undefined ? explain(error) : source.failure.error;
    }
    return size;
  };

  const objects: Objects = {
    async put(tenant, kind, given, { digest } = {}) {
      await using prepared = await prepare(given, { digest, spoolDir });
      const ref = { kind, digest: prepared.digest };
      const Key = objectKey(tenant, ref);
      const before = await look(Key);
      if (before !== undefined && (await touch(Key, before))) return { ...ref, size: before.size };
      const size = await upload(Key, prepared.stream(), prepared.size);
      if (before === undefined) await count(tenant, kind, size);
      return { ...ref, size };
    },

    async get(tenant, ref) {
      const Key = objectKey(tenant, ref);
      const { Body } = await client.send(new GetObjectCommand({ Bucket, Key }), soon).catch((error: unknown) => {
        throw error instanceof S3ServiceException && error.name === "NoSuchKey" ? missing(Key) : explain(error);
      });
      return verified(
        pieces(Body as Readable, patience.answer, explain),
        ref.digest,
        (actual, bytes) =>
          new PermanentError("OBJECT_CORRUPT", `${Key} is corrupt: its ${bytes} bytes are ${actual}; delete it and store it again`),
      );
    },

    async head(tenant, ref) {
      const found = await look(objectKey(tenant, ref));
      return found && { size: found.size };
    },

    async touch(tenant, ref) {
      const Key = objectKey(tenant, ref);
      const before = await look(Key);
      if (before === undefined) return undefined;
      if (!(await touch(Key, before))) await upload(Key, await objects.get(tenant, ref), before.size);
      return { size: before.size };
    },

    async *list(tenant, kind) {
      const prefix = keyPrefix(tenant, kind);
      for await (const { Key = "", Size = 0 } of contents(prefix)) {
        const ref = refOfKey(prefix, Key, kind, Size);
        if (ref !== undefined) yield ref;
      }
    },

    async *stored(tenant) {
      for await (const { Key = "", Size = 0, LastModified } of contents(tenant === undefined ? "" : `${tenant}/`)) {
        const blob = blobOfKey(Key, Size);
        if (blob !== undefined) yield { ...blob, storedAt: LastModified?.getTime() ?? Date.now(), revision: revisionOf(LastModified) };
      }
    },

    // S3 cannot be asked to delete an object only if it is as old as it was. So it is looked at right before, and whoever tells of a blob
    // looks afterwards whether it is there.
    async delete(tenant, ref, { revision } = {}) {
      const Key = objectKey(tenant, ref);
      const now = await look(Key);
      if (now === undefined) return true;
      if (revision !== undefined && now.revision !== revision) return false;
      await client.send(new DeleteObjectCommand({ Bucket, Key }), soon).catch((error: unknown) => {
        throw explain(error);
      });
      await count(tenant, ref.kind, -now.size);
      return true;
    },
  };
  async function* contents(Prefix: string): AsyncGenerator<_Object> {
    const pages = paginateListObjectsV2({ client }, { Bucket, Prefix }, soon)[Symbol.asyncIterator]();
    for (;;) {
      const page = await pages.next().catch((error: unknown) => {
        throw explain(error);
      });
      if (page.done === true) return;
      yield* page.value.Contents ?? [];
    }
  }
  return Object.assign(objects, { [Symbol.dispose]: () => client.destroy() });
}

/** A blob as it comes. Only waiting for the server is timed: how long its reader takes is the reader's business. */
async function* pieces(body: Readable, mostMs: number, explain: (error: unknown) => unknown): AsyncGenerator<Uint8Array, void, undefined> {
  const iterator = body[Symbol.asyncIterator]() as AsyncIterator<Uint8Array>;
  try {
    for (;;) {
      const silence = setTimeout(() => body.destroy(new SilenceError(`no byte came for ${mostMs / 1000} s`)), mostMs);
      const piece = await iterator.next().finally(() => clearTimeout(silence));
      if (piece.done === true) return;
      yield piece.value;
    }
  } catch (error) {
    throw explain(error);
  } finally {
    body.destroy();
  }
}
class SilenceError extends Error {
  readonly code = "ETIMEDOUT";
}

/** What S3 servers call a full disk or an exhausted quota. */
const storeFullNames = new Set(["InsufficientStorage", "InsufficientCapacity", "QuotaExceeded", "XMinioStorageFull", "StorageFull"]);
/** Error names with which S3 servers say, under any status, that the request may be tried again. */
const busyNames = new Set(["SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "ThrottlingException", "TooManyRequests"]);
const refusedNames = new Set(["NoSuchBucket", "ExpiredToken", "InvalidToken", "InvalidBucketName", "AuthorizationHeaderMalformed"]);
/** No connection, a broken one, or no name for the host. */
const networkCodes =
  /^(?:ECONN|ETIMEDOUT|EPIPE|ENOTFOUND|EAI_|EHOST|ENET|EADDRNOTAVAIL|ERR_SSL|ERR_TLS|ERR_STREAM_PREMATURE_CLOSE|CERT_|SELF_SIGNED|UNABLE_TO|DEPTH_ZERO|HPE_)/;

/** What an error of the SDK means for the work: see `Objects`. */
function explainS3(error: unknown, where: string): unknown {
  if (!(error instanceof Error) || error instanceof PermanentError) return error;
  // A proxy in front of the store answers in HTML, which the SDK cannot read; the status is there all the same.
  const { $metadata, $response } = error as { $metadata?: { httpStatusCode?: number }; $response?: { statusCode?: number } };
  const status = $metadata?.httpStatusCode ?? $response?.statusCode;
  const { name } = error;
  // The answer to a HEAD has no body, and so no words.
  const named = status === undefined || name.includes(String(status)) ? name : `${name}, HTTP ${status}`;
  const why = /^(?:Unknown|UnknownError|\d*)$/.test(error.message) ? named : `${error.message} (${named})`;
  if (storeFullNames.has(name) || status === 507) return storeFull(where, why, error);
  if (refusedNames.has(name) || status === 301 || status === 401 || status === 403) {
    const todo = name === "NoSuchBucket" ? "Create it, or correct its name." : "The operator has to mend credentials, rights, or name.";
    return storeRefuses(where, why, todo, error);
  }
  if (name === "CredentialsProviderError") return storeRefuses(where, why, "Give the server credentials for it.", error);
  if (busyNames.has(name) || status === 429 || (status !== undefined && status >= 500)) return storeAway(where, why, error);
  for (const one of causesOf(error)) {
    const { code } = one as NodeJS.ErrnoException;
    if (
      one.name === "TimeoutError" ||
      (typeof code === "string" && networkCodes.test(code)) ||
      one.message === "socket hang up" ||
      one.message === "aborted"
    )
      return storeAway(where, one.message || code || one.name, error);
  }
  return error;
}
