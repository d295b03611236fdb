/** Blobs in any S3: for clusters that have one. Credentials come from the AWS chain unless given. */
import { Readable } from "node:stream";
import {
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  paginateListObjectsV2,
  S3Client,
  type S3ClientConfig,
  S3ServiceException,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { PermanentError } from "@loraline/runtime";
import { prepare, verified } from "./digest.ts";
import { keyPrefix, missing, objectKey, type Objects, refOfKey, storeFull } from "./objects.ts";

/** Parts in memory at once, times their size, bounds what one `put` holds: 24 MiB. */
const partsInFlight = 2;
const partBytes = 8 * 1024 * 1024;
/** S3 allows 10,000 parts; larger blobs get larger parts. */
const partBytesFor = (size: number | undefined): number => Math.max(partBytes, Math.ceil((size ?? 0) / 9_000));

export interface S3ObjectsOptions {
  /** Must exist. An `AbortIncompleteMultipartUpload` lifecycle rule clears what killed writers leave. */
  bucket: string;
  /** URL of a server that is not AWS; buckets are then addressed by path. */
  endpoint?: string | undefined;
  region?: string | undefined;
  credentials?: { accessKeyId: string; secretAccessKey: string } | undefined;
  /** Where streams of unknown digest are spooled. Default: the system's temporary directory. */
  spoolDir?: string | undefined;
}

export function createS3Objects(options: S3ObjectsOptions): Objects & Disposable {
  const { bucket: Bucket, endpoint, region = "us-east-1", credentials, spoolDir } = options;
  const config: S3ClientConfig = {
    region,
    ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true }),
    ...(credentials === undefined ? {} : { credentials }),
    // The digest in the key is stronger than the SDK's CRC32, and other servers need not know about that.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
  };
  const client = new S3Client(config);
  const explain = (error: unknown, key: string): unknown => {
    if (!(error instanceof S3ServiceException)) return error;
    if (error.name === "NoSuchBucket")
      return new Error(`the bucket "${Bucket}" does not exist${endpoint === undefined ? "" : ` at ${endpoint}`}; create it`, {
        cause: error,
      });
    if (storeFullNames.has(error.name) || error.$metadata.httpStatusCode === 507) return storeFull(key, error);
    return error;
  };

  const objects: Objects = {
    async put(tenant, kind, source, { digest } = {}) {
      await using prepared = await prepare(source, { digest, spoolDir });
      const ref = { kind, digest: prepared.digest };
      const Key = objectKey(tenant, ref);
      const before = await objects.head(tenant, ref);
      if (before !== undefined) return { ...ref, size: before.size };
      let size = 0;
      const counted = async function* () {
        for await (const chunk of prepared.stream()) {
          size += chunk.byteLength;
          yield chunk;
        }
      };
      const upload = new Upload({
        client,
        params: { Bucket, Key, Body: Readable.from(counted(), { objectMode: false }), ContentType: "application/octet-stream" },
        queueSize: partsInFlight,
        partSize: partBytesFor(prepared.size),
      });
      try {
        await upload.done();
      } catch (error) {
        throw explain(error, Key);
      }
      return { ...ref, size };
    },

    async get(tenant, ref) {
      const Key = objectKey(tenant, ref);
      const { Body } = await client.send(new GetObjectCommand({ Bucket, Key })).catch((error: unknown) => {
        throw error instanceof S3ServiceException && error.name === "NoSuchKey" ? missing(Key) : explain(error, Key);
      });
      return verified(
        Body as Readable,
        ref.digest,
        (actual, bytes) =>
          new PermanentError("OBJECT_CORRUPT", `${Key} is corrupt: its ${bytes} bytes are ${actual}; delete it and store it again`),
      );
    },

    async head(tenant, ref) {
      const Key = objectKey(tenant, ref);
      try {
        const { ContentLength = 0 } = await client.send(new HeadObjectCommand({ Bucket, Key }));
        return { size: ContentLength };
      } catch (error) {
        if (error instanceof S3ServiceException && error.$metadata.httpStatusCode === 404) return undefined;
        throw explain(error, Key);
      }
    },

    async *list(tenant, kind) {
      const prefix = keyPrefix(tenant, kind);
      for await (const { Contents = [] } of paginateListObjectsV2({ client }, { Bucket, Prefix: prefix }))
        for (const { Key = "", Size = 0 } of Contents) {
          const ref = refOfKey(prefix, Key, kind, Size);
          if (ref !== undefined) yield ref;
        }
    },

    async delete(tenant, ref) {
      await client.send(new DeleteObjectCommand({ Bucket, Key: objectKey(tenant, ref) }));
    },
  };
  return Object.assign(objects, { [Symbol.dispose]: () => client.destroy() });
}

/** What S3 servers call a full disk or an exhausted quota. */
const storeFullNames = new Set(["InsufficientStorage", "InsufficientCapacity", "QuotaExceeded", "XMinioStorageFull", "StorageFull"]);
