/**
 * Salts of the engines' caches. vLLM shares the computed beginnings of prompts, and what its tower made of pictures, among all requests, so
 * that a tenant could find out by the time of an answer what another one had asked. With a salt (`cache_salt`), only requests with the same one
 * share prompts. Pictures know no salt, but are known by their `uuid` where there is one.
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

/**
 * The same messages, each picture with a `uuid` made of the salt and its bytes: equal pictures are one only within the same salt.
 * @param messages - as judge-pictures.ts let them pass.
 */
export const withSaltedPictures = (messages: unknown, salt: string): unknown => {
  if (!Array.isArray(messages)) return messages;
  const salted = (part: unknown): unknown => {
    const image = (part as { image_url?: unknown } | null)?.image_url;
    const url = typeof image === "string" ? image : (image as { url?: unknown } | null | undefined)?.url;
    if (typeof part !== "object" || typeof url !== "string") return part;
    return { ...part, uuid: createHmac("sha256", salt).update(url).digest("base64url") };
  };
  return messages.map((message: unknown) => {
    const content = (message as { content?: unknown } | null)?.content;
    if (typeof content !== "object" || content === null) return message;
    return { ...(message as object), content: Array.isArray(content) ? content.map(salted) : salted(content) };
  });
};
