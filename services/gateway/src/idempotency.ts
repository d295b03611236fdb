/** Ids that a retried request finds again. */
import { createHash } from "node:crypto";
import { encodeTime } from "ulid";
import { badRequest } from "./errors.ts";

/** A key is remembered for this long at least, and for twice as long at most. */
const windowMs = 12 * 60 * 60_000;
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/**
 * The ids that a request with this `Idempotency-Key` may have had, newest window first. The first is the one to use when
 * none of them exists yet. Derived from the key alone, so that every gateway finds the same without keeping anything.
 */
export function idsOfKey({ tenant, key, nowMs }: { tenant: string; key: string; nowMs: number }): [string, string] {
  const hash = createHash("sha256").update(`${tenant}\n${key}`).digest();
  let random = "";
  for (let i = 0; i < 16; i++) random += crockford.charAt((hash[i] ?? 0) % 32);
  const start = Math.floor(nowMs / windowMs) * windowMs;
  const id = (timeMs: number): string => encodeTime(timeMs, 10) + random;
  return [id(start), id(start - windowMs)];
}

/** @throws PermanentError 400 when the header is there but cannot be a key. */
export function idempotencyKeyOf(headers: Record<string, unknown>): string | undefined {
  const key = headers["idempotency-key"];
  if (key === undefined) return undefined;
  if (typeof key !== "string" || key === "" || key.length > 255) {
    throw badRequest("invalid_idempotency_key", "Idempotency-Key must be 1 to 255 characters.", "Idempotency-Key");
  }
  return key;
}
