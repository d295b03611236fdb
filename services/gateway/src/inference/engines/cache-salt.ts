/**
 * Salts of the engines' prefix caches. vLLM shares the computed beginnings of prompts among all requests, so that a tenant could find out by
 * the time of an answer what another one had asked. With a salt (`cache_salt`), only requests with the same one share them.
 */
import { createHmac, randomBytes } from "node:crypto";

/**
 * @param secret - the same for all gateways, so that they share a tenant's cache. Absent: each gateway has a cache of its own on the engines.
 * @returns the salt of a tenant's request; `given` is the client's own, which keeps caches apart inside of the tenant. It has 43 characters
 * that vLLM allows.
 */
export function createCacheSalt(secret = randomBytes(32).toString("hex")): (tenant: string, given: unknown) => string {
  const ofTenant = new Map<string, string>();
  const hmac = (...words: string[]): string =>
    createHmac("sha256", secret)
      .update(JSON.stringify(["cache-salt", ...words]))
      .digest("base64url");
  return (tenant, given) => {
    if (typeof given === "string" && given !== "") return hmac(tenant, given);
    const known = ofTenant.get(tenant);
    if (known !== undefined) return known;
    if (ofTenant.size >= 10_000) ofTenant.clear();
    const made = hmac(tenant);
    ofTenant.set(tenant, made);
    return made;
  };
}
