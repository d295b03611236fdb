/** Makes ids from an Idempotency-Key, so that a retried request finds what its first try has made. */
import { createHash } from "node:crypto";
import { encodeTime } from "ulid";
import { badRequest } from "./errors.ts";

/** A key is valid for at least this long, and at most for twice as long. */
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

/** How much later than the time in its id something may have been made whose id may be that of a key; 0 where it is not. */
export const keyedIdWindow = (idTimeMs: number): number => (idTimeMs % windowMs === 0 ? 2 * windowMs : 0);

/**
 * What an earlier request with the same key made.
 * @param ids - those of `idsOfKey`; none where the request has no key.
 * @throws PermanentError 400 `idempotency_key_reused` when it made something else.
 */
export async function madeEarlier<T>(
  ids: readonly string[],
  { what, read, isSame }: { what: string; read: (id: string) => Promise<T | undefined>; isSame: (known: T) => boolean },
): Promise<T | undefined> {
  for (const id of ids) {
    const known = await read(id);
    if (known === undefined) continue;
    if (isSame(known)) return known;
    throw badRequest(
      "idempotency_key_reused",
      `This Idempotency-Key was used for another ${what}. Use a new key for a new ${what}.`,
      "Idempotency-Key",
    );
  }
  return undefined;
}

/** @throws PermanentError 400 if the header is there but is not a valid key. */
export function idempotencyKeyOf(headers: Record<string, unknown>): string | undefined {
  const key = headers["idempotency-key"];
  if (key === undefined) return undefined;
  if (typeof key !== "string" || key === "" || key.length > 255) {
    throw badRequest("invalid_idempotency_key", "Idempotency-Key must be 1 to 255 characters.", "Idempotency-Key");
  }
  return key;
}
