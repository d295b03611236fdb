/** KV `uploads`: a file that comes in parts. */
import { z } from "zod";
import { storedMapping } from "../spec/dataset-mapping.ts";
import { blobRef, isoTime } from "../names.ts";

/** How long parts may come, and the file may be completed: as with OpenAI. */
export const uploadOpenMs = 60 * 60 * 1000;
/** How long an upload is known: also when it is complete or has expired, so that who asks again is told. */
export const uploadKnownMs = 3 * 60 * 60 * 1000;
/** Parts stay so long after the end: a completion that began in time may still read them. */
export const uploadGraceMs = 15 * 60 * 1000;
/** Most bytes of a part, as with OpenAI. */
export const uploadPartBytes = 64 * 1024 ** 2;

export const uploadState = z.object({
  /** ULID; the dataset that comes of it has the same. */
  id: z.string(),
  bytes: z.int().describe("Of the whole file, as announced."),
  filename: z.string(),
  mapping: storedMapping.nullable(),
  createdAt: isoTime,
  expiresAt: isoTime,
  status: z.enum(["pending", "completed", "cancelled"]),
  parts: z.array(z.object({ id: z.string(), blob: blobRef, at: isoTime })),
  file: blobRef.nullable().describe("The whole file, once it is put together."),
});
export type UploadState = z.infer<typeof uploadState>;
