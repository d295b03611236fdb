/** Bearer keys. Only their sha256 is kept, in KV `keys`. */
import { createHash, randomBytes } from "node:crypto";
import type { Bus } from "@loraline/bus";
import { type apiKeyRecord, buckets } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { z } from "zod";

export interface Caller {
  tenant: string;
  /** Name of the key, for the audit trail. */
  by: string;
}

export const hashApiKey = (key: string): string => createHash("sha256").update(key).digest("hex");

/**
 * Makes a key valid for a tenant. Doing it again with the same key changes nothing.
 * @param options.key - absent: a new random one.
 * @returns the key itself, which cannot be had again from the store.
 */
export async function createApiKey(
  { bus }: { bus: Pick<Bus, "bucket"> },
  { tenant, name, key = `ll-${randomBytes(32).toString("base64url")}` }: { tenant: string; name: string; key?: string },
): Promise<string> {
  const keys = await bus.bucket(buckets.keys);
  await keys.change(hashApiKey(key), (known) => known ?? { tenant, name, createdAt: new Date().toISOString() });
  return key;
}

export type KeyCheck = (authorization: string | undefined) => Promise<Caller>;

/**
 * Watches the keys, so that a check costs no round trip and a revoked key ends at once.
 * The check throws PermanentError 401 `invalid_api_key`.
 */
export async function createKeyCheck({ bus, signal }: { bus: Pick<Bus, "bucket">; signal: AbortSignal }): Promise<KeyCheck> {
  const keys = await bus.bucket(buckets.keys);
  const known = new Map<string, z.infer<typeof apiKeyRecord>>();
  await keys.watch({
    signal,
    onChange: (hash, record) => {
      if (record === undefined) known.delete(hash);
      else known.set(hash, record);
    },
  });
  return async (authorization) => {
    const key = /^Bearer +(\S+) *$/i.exec(authorization ?? "")?.[1];
    if (key === undefined) {
      throw new PermanentError("invalid_api_key", "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.", {
        status: 401,
      });
    }
    const hash = hashApiKey(key);
    // A key made a moment ago may not have reached the watch yet.
    const record = known.get(hash) ?? (await keys.get(hash))?.value;
    if (record === undefined) {
      throw new PermanentError("invalid_api_key", `Incorrect API key provided: ${masked(key)}.`, { status: 401 });
    }
    return { tenant: record.tenant, by: record.name };
  };
}

const masked = (key: string): string => (key.length < 12 ? "***" : `${key.slice(0, 4)}***${key.slice(-4)}`);
