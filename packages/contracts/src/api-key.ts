/** API keys and what they may do. */
import { z } from "zod";
import { isoTime, tenantName } from "./names.ts";

/** Scopes: what a key may do. In order: ask models; use files, datasets and runs; move aliases; manage keys, limits and usage of its tenant. */
export const scopes = ["infer", "train", "promote", "admin"] as const;
export type Scope = (typeof scopes)[number];

/**
 * One pattern of the models that a key is bound to: `pirate` is the adapter itself (its alias, and commands on it), `pirate@2` one version,
 * `base:qwen` a base model. A `*` stands for any characters but `@`.
 */
export const modelPattern = z
  .string()
  .max(200)
  .regex(
    /^(?:base:[\w.*/-]+|[a-z0-9*-]+(?:@(?:[1-9]\d{0,8}|\*))?)$/,
    "use an adapter's name (`pirate`), a version (`pirate@2`, `pirate@*`) or a base (`base:NAME`); `*` stands for any characters",
  );

/** KV `keys`: one accepted API key. Only its hash is stored. */
export const apiKeyRecord = z.object({
  tenant: tenantName,
  name: z.string(),
  createdAt: isoTime,
  scopes: z.array(z.enum(scopes)).min(1).nullish().describe("Absent: all of them."),
  models: z
    .array(modelPattern)
    .min(1)
    .nullish()
    .describe("The only models and adapters that the key may name. Absent: all of the tenant's."),
  expiresAt: isoTime.nullish(),
  revokedAt: isoTime
    .nullish()
    .describe(
      "The key is not valid any more. The record stays, so that a key which an installation sets at each start does not come back.",
    ),
  createdBy: z.string().nullish().describe("Name of the key or subject that made it."),
});
