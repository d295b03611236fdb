/** Names and references that every contract uses. */
import { z } from "zod";

/** Lowercase letters, digits and dashes; safe as a NATS token, a Kubernetes label and a path segment. */
const slug = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

export const tenantName = z
  .string()
  .regex(slug, "use 1 to 63 lowercase letters, digits or dashes, not starting or ending with a dash")
  .describe("Tenant that owns the object; the second token of every subject.");

export const adapterName = z
  .string()
  .regex(slug, "use 1 to 63 lowercase letters, digits or dashes, not starting or ending with a dash")
  .describe("Name of the adapter inside its tenant, such as `pirate`.");

export const versionName = z
  .string()
  .regex(
    /^(?:[a-z0-9-]+\/)?[a-z0-9-]+(?:@[1-9]\d{0,8})?$/,
    "must be the name of an adapter, such as pirate, or of a version, such as pirate@3",
  )
  .describe("`pirate@3`, or `pirate` for the version that its alias names. `acme/` may stand before it.");

export const ulid = z
  .string()
  .regex(/^[0-7][0-9A-HJKMNP-TV-Z]{25}$/, "must be a ULID: 26 characters of Crockford base 32, uppercase")
  .describe("ULID, uppercase.");

export const digest = z.templateLiteral(["sha256:", z.string().regex(/^[0-9a-f]{64}$/)]).describe("`sha256:` and 64 lowercase hex digits.");
export type Digest = z.infer<typeof digest>;

/** The hex digits of a digest, for subjects and KV keys, which must not contain a colon. */
export const digestHex = z.string().regex(/^[0-9a-f]{64}$/, "must be 64 lowercase hex digits");

/** Kind of an object in the object store; the second segment of its key. */
export const blobKinds = [
  "raw",
  "records",
  "picture",
  "pictures",
  "dataset",
  "report",
  "settings",
  "encoded",
  "shard",
  "tokens",
  "checkpoint-file",
  "checkpoint",
  "adapter-file",
  "adapter",
  "evidence",
] as const;

/** What a kind of blob belongs to, for people who look what takes their room. */
export const storageGroups = ["uploads", "datasets", "tokens", "checkpoints", "adapters"] as const;
export type StorageGroup = (typeof storageGroups)[number];
const groupOfKind: Record<BlobKind, StorageGroup> = {
  raw: "uploads",
  records: "datasets",
  picture: "datasets",
  pictures: "datasets",
  dataset: "datasets",
  report: "datasets",
  settings: "tokens",
  encoded: "tokens",
  shard: "tokens",
  tokens: "tokens",
  "checkpoint-file": "checkpoints",
  checkpoint: "checkpoints",
  "adapter-file": "adapters",
  adapter: "adapters",
  evidence: "adapters",
};
export const storageGroupOf = (kind: BlobKind): StorageGroup => groupOfKind[kind];

/** Reference to an immutable object. Its key is `<tenant>/<kind>/sha256/<hex>`; the tenant comes from the context. */
export const blobRef = z.object({
  kind: z.enum(blobKinds),
  digest,
  size: z.int().nonnegative().describe("Bytes."),
});
export type BlobRef = z.infer<typeof blobRef>;
export type BlobKind = BlobRef["kind"];

/** A file of a directory that was stored piece by piece (a checkpoint, an adapter). */
export const fileRef = z.object({
  path: z
    .string()
    .regex(/^(?!\/)(?!.*(?:^|\/)\.\.(?:\/|$))[\w./-]+$/, "must be a relative path without `..`")
    .describe("Path inside the directory."),
  blob: blobRef,
});
export type FileRef = z.infer<typeof fileRef>;

/** Why something was refused: the same three fields in events, HTTP errors and the command line. */
export const problem = z.object({
  code: z
    .string()
    .regex(/^[A-Z][A-Z0-9_]*$/)
    .describe("Stable, SCREAMING_SNAKE."),
  message: z.string().min(1).describe("What is wrong, where, and what to do."),
  param: z.string().nullish().describe("The field or file that is wrong, such as `lora.r`."),
});
export type Problem = z.infer<typeof problem>;

export const isoTime = z.iso.datetime().describe("UTC, ISO 8601.");

/** W3C `traceparent`; stored with the state, so that later work can join the same trace. */
export const traceparent = z.string().regex(/^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/);
