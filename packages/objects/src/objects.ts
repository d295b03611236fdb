/**
 * Content-addressed blobs behind five verbs. What a blob is called follows from what it contains, so that writing twice is
 * harmless, nothing is ever overwritten, and a reader can prove that it got what was written.
 *
 * Every verb throws UnavailableError while the store is away (`STORE_UNAVAILABLE`), refuses whoever runs the line (`STORE_REFUSED`:
 * credentials, rights, no such bucket), or has no room (`STORE_FULL`). None says anything about the blob, and all are waited out.
 */
import { type BlobKind, type BlobRef, blobKinds, type Digest, digest as digestSchema, tenantName } from "@loraline/contracts";
import { PermanentError, UnavailableError } from "@loraline/runtime";

/** Bytes in memory, text (UTF-8), a stream, or a file on disk. */
export type BlobSource = Uint8Array | string | AsyncIterable<Uint8Array> | { file: string };

export interface Objects {
  /**
   * Stores a blob and returns its reference; returns at once if it exists already. Memory stays bounded at any size.
   * A stream whose digest is not known is spooled to a temporary file first, because the key is the digest.
   *
   * @param options.digest - known digest; the source is checked against it while it is sent.
   * @throws PermanentError `DIGEST_MISMATCH` (nothing was stored), `DISK_FULL`.
   */
  put(tenant: string, kind: BlobKind, source: BlobSource, options?: { digest?: Digest | undefined }): Promise<BlobRef>;
  /**
   * Streams a blob no faster than it is consumed. The digest is checked on the way, so that only an iteration that ends
   * without an error has delivered the blob.
   *
   * @throws PermanentError `OBJECT_MISSING` from the call; `OBJECT_CORRUPT` from the iteration, after the last byte.
   */
  get(tenant: string, ref: Pick<BlobRef, "kind" | "digest">): Promise<AsyncIterable<Uint8Array>>;
  /** Size in bytes, or undefined if there is no such blob. */
  head(tenant: string, ref: Pick<BlobRef, "kind" | "digest">): Promise<{ size: number } | undefined>;
  /** All blobs of a kind that a tenant has, in no particular order. */
  list(tenant: string, kind: BlobKind): AsyncIterable<BlobRef>;
  /** Removes a blob; no error if it does not exist. */
  delete(tenant: string, ref: Pick<BlobRef, "kind" | "digest">): Promise<void>;
}

/** `<tenant>/<kind>/sha256/` */
export function keyPrefix(tenant: string, kind: BlobKind): string {
  // Keys are paths for some stores: nothing may reach another tenant's.
  if (!tenantName.safeParse(tenant).success)
    throw new PermanentError("BAD_TENANT", `"${tenant}" is not a tenant's name`, { param: "tenant" });
  if (!blobKinds.includes(kind)) throw new PermanentError("BAD_REFERENCE", `"${String(kind)}" is not a kind of blob`, { param: "kind" });
  return `${tenant}/${kind}/sha256/`;
}

/** `<tenant>/<kind>/sha256/<hex>` */
export function objectKey(tenant: string, { kind, digest }: Pick<BlobRef, "kind" | "digest">): string {
  if (!digestSchema.safeParse(digest).success)
    throw new PermanentError("BAD_REFERENCE", `"${digest}" is not a digest: expected sha256: and 64 lowercase hex digits`, {
      param: "digest",
    });
  return keyPrefix(tenant, kind) + digest.slice("sha256:".length);
}

/** The reference behind a key that starts with `prefix`; undefined for anything that is not ours. */
export function refOfKey(prefix: string, key: string, kind: BlobKind, size: number): BlobRef | undefined {
  if (!key.startsWith(prefix)) return undefined;
  const parsed = digestSchema.safeParse(`sha256:${key.slice(prefix.length)}`);
  return parsed.success ? { kind, digest: parsed.data, size } : undefined;
}

export const missing = (key: string): PermanentError =>
  new PermanentError("OBJECT_MISSING", `there is no object ${key}; it was deleted or never completely written`, { status: 404 });

export const storeAway = (where: string, why: string, cause: unknown): UnavailableError =>
  new UnavailableError("STORE_UNAVAILABLE", `the object store does not answer (${where}: ${why})`, { cause });

/** Only the operator can mend this; `what` says what to do. */
export const storeRefuses = (where: string, why: string, what: string, cause: unknown): UnavailableError =>
  new UnavailableError("STORE_REFUSED", `the object store refuses this server (${where}: ${why}). ${what}`, { cause });

export const storeFull = (where: string, why: string, cause: unknown): UnavailableError =>
  new UnavailableError(
    "STORE_FULL",
    `the object store is full (${where}: ${why}). The operator has to make room in it, or raise its limit.`,
    { cause },
  );
