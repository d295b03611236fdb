/** API keys and what they may do. */
import { z } from "zod";
import { isoTime, tenantName } from "./names.ts";

/** Scopes: what a key may do. In order: ask models; use files, datasets and runs; move aliases; manage keys, limits and usage of its tenant. */
export const scopes = ["infer", "train", "promote", "admin"] as const;
export type Scope = (typeof scopes)[number];

/** KV `keys`: one accepted API key. Only its hash is stored. */
export const apiKeyRecord = z.object({
  tenant: tenantName,
  name: z.string(),
  createdAt: isoTime,
  scopes: z.array(z.enum(scopes)).min(1).nullish().describe("Absent: all of them."),
  expiresAt: isoTime.nullish(),
  revokedAt: isoTime
    .nullish()
    .describe(
      "The key is not valid any more. The record stays, so that a key which an installation sets at each start does not come back.",
    ),
  createdBy: z.string().nullish().describe("Name of the key or subject that made it."),
});
