/**
 * Content-addressed blobs behind five verbs. What a blob is called follows from what it contains, so that writing twice is
 * harmless, nothing is ever overwritten, and a reader can prove that it got what was written.
 *
 * Every verb throws UnavailableError while the store is away (`STORE_UNAVAILABLE`), refuses whoever runs the line (`STORE_REFUSED`:
 * credentials, rights, no such bucket), or has no room (`STORE_FULL`). None says anything about the blob, and all are waited out.
 */
import { type BlobKind, type BlobRef, blobKinds, type Digest, digest as digestSchema, tenantName } from "@loraline/contracts";
import { PermanentError, UnavailableError } from "@loraline/runtime";

/** A blob as the store has it now. */
export interface StoredBlob extends BlobRef {
  tenant: string;
  /** When it was stored last, by the store's clock, in milliseconds since the epoch. Storing the same bytes again makes it young again. */
  storedAt: number;
  /** Changes whenever the blob is stored again; for `delete`. */
  revision: string;
}

/** Bytes in memory, text (UTF-8), a stream, or a file on disk. */
export type BlobSource = Uint8Array | string | AsyncIterable<Uint8Array> | { file: string };

export interface Objects {
  /**
   * Stores a blob and returns its reference. If it exists already, nothing is sent, and it only becomes young again (`StoredBlob.storedAt`), so
   * that nothing removes it before its writer has told of it. Memory stays bounded at any size.
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
  /**
   * As `head`, and makes the blob young again, as `put` does. To be called by whoever is about to tell of bytes that were there already, so
   * that the collector does not remove them meanwhile.
   */
  touch(tenant: string, ref: Pick<BlobRef, "kind" | "digest">): Promise<{ size: number } | undefined>;
  /** Size in bytes, or undefined if there is no such blob. */
  head(tenant: string, ref: Pick<BlobRef, "kind" | "digest">): Promise<{ size: number } | undefined>;
  /** All blobs of a kind that a tenant has, in no particular order. */
  list(tenant: string, kind: BlobKind): AsyncIterable<BlobRef>;
  /** All blobs there are, of one tenant or of all, in no particular order. */
  stored(tenant?: string): AsyncIterable<StoredBlob>;
  /**
   * Removes a blob; no error if it does not exist. In JetStream its bytes are overwritten on the server's disk.
   *
   * @param options.revision - removed only if it was not stored again since this revision.
   * @returns whether it is gone; false: it was stored again.
   */
  delete(tenant: string, ref: Pick<BlobRef, "kind" | "digest">, options?: { revision?: string | undefined }): Promise<boolean>;
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

const keyParts = /^([^/]+)\/([^/]+)\/sha256\/([0-9a-f]{64})$/;

/** Tenant and reference of a whole key; undefined for anything that is not ours. */
export function blobOfKey(key: string, size: number): (BlobRef & { tenant: string }) | undefined {
  const [, tenant = "", kind = "", hex = ""] = keyParts.exec(key) ?? [];
  if (!blobKinds.includes(kind as BlobKind)) return undefined;
  return { tenant, kind: kind as BlobKind, digest: `sha256:${hex}`, size };
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
