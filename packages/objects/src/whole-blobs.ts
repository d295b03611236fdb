/** Whole blobs at once, built on the verbs. */
import { randomUUID } from "node:crypto";
import { createWriteStream } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { pipeline } from "node:stream/promises";
import type { BlobKind, BlobRef } from "@loraline/contracts";
import { explainSystemError, PermanentError } from "@loraline/runtime";
import type { Objects } from "./objects.ts";

type Ref = Pick<BlobRef, "kind" | "digest">;

/**
 * A whole blob in memory: for small ones. Its size may be somebody's word, by whose smallness it was judged to be a small one, so no more is
 * read than that.
 *
 * @throws PermanentError `OBJECT_INVALID` if there is more.
 */
export async function getBytes(objects: Pick<Objects, "get">, tenant: string, ref: Ref & { size?: number }): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of await objects.get(tenant, ref)) {
    size += part.byteLength;
    if (ref.size !== undefined && size > ref.size) {
      throw new PermanentError(
        "OBJECT_INVALID",
        `the ${ref.kind} ${ref.digest} of ${tenant} has more than the ${ref.size} bytes that were said`,
      );
    }
    parts.push(part);
  }
  return Buffer.concat(parts);
}

/**
 * A JSON blob, checked by a zod schema (or anything else that parses) when one is given.
 *
 * @throws PermanentError `OBJECT_INVALID` if it is not JSON, or not what the schema expects.
 */
export async function getJson(objects: Pick<Objects, "get">, tenant: string, ref: Ref): Promise<unknown>;
export async function getJson<T>(objects: Pick<Objects, "get">, tenant: string, ref: Ref, schema: { parse(value: unknown): T }): Promise<T>;
export async function getJson(
  objects: Pick<Objects, "get">,
  tenant: string,
  ref: Ref,
  schema?: { parse(value: unknown): unknown },
): Promise<unknown> {
  const bytes = await getBytes(objects, tenant, ref);
  try {
    const value: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    return schema === undefined ? value : schema.parse(value);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new PermanentError("OBJECT_INVALID", `the ${ref.kind} ${ref.digest} of ${tenant} cannot be read: ${why}`, { cause });
  }
}

/** Stores a value as JSON. Equal values with keys in equal order give equal references. */
export function putJson(objects: Pick<Objects, "put">, tenant: string, kind: BlobKind, value: unknown): Promise<BlobRef> {
  return objects.put(tenant, kind, JSON.stringify(value));
}

/** Writes a blob to a file: whole and verified, or not at all. Creates the directories above it. */
export async function getToFile(objects: Pick<Objects, "get">, tenant: string, ref: Ref, path: string): Promise<void> {
  const source = await objects.get(tenant, ref);
  await mkdir(dirname(path), { recursive: true });
  const part = `${path}.${randomUUID()}.part`;
  try {
    await pipeline(source, createWriteStream(part, { flags: "wx" }));
    await rename(part, path);
  } catch (error) {
    await rm(part, { force: true });
    throw explainSystemError(error, `writing ${path}`);
  }
}
