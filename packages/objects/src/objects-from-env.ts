/** Which store a process uses, as its environment says. */
import { mkdir, rm } from "node:fs/promises";
import type { Log } from "@loraline/runtime";
import type { NatsConnection } from "@nats-io/transport-node";
import { z } from "zod";
import { countStored } from "./count-stored.ts";
import { createJetStreamObjects } from "./jetstream.ts";
import type { Objects } from "./objects.ts";
import { createS3Objects } from "./s3.ts";
import { type StoreState, watchedObjects } from "./watched-objects.ts";

/** Settings of a process that reads or writes blobs: part of its schema for `loadEnv`. */
export const objectsEnv = {
  S3_BUCKET: z.string().optional().describe("Absent: blobs are in JetStream's object store."),
  S3_ENDPOINT: z.url().optional(),
  S3_REGION: z.string().optional(),
  AWS_ACCESS_KEY_ID: z.string().optional().describe("With AWS_SECRET_ACCESS_KEY. Absent: what else the AWS SDK finds, such as a role."),
  AWS_SECRET_ACCESS_KEY: z.string().optional(),
  AWS_SESSION_TOKEN: z.string().optional(),
  SPOOL_DIR: z
    .string()
    .optional()
    .describe("Folder of this process alone for bytes that are on their way. What a killed one left there is removed at the start."),
};
type ObjectsEnv = z.output<z.ZodObject<typeof objectsEnv>>;

/**
 * S3 when a bucket is set, else the object store of this NATS. The connection stays the caller's.
 * @param options.spoolDir - where streams of unknown digest are spooled, if not in SPOOL_DIR. Default: the system's temporary directory.
 */
export async function objectsFromEnv(
  env: ObjectsEnv,
  nc: NatsConnection,
  { spoolDir = env.SPOOL_DIR, log }: { spoolDir?: string | undefined; log: Log },
): Promise<Objects & StoreState & Disposable> {
  if (env.SPOOL_DIR !== undefined) {
    await rm(env.SPOOL_DIR, { recursive: true, force: true });
    await mkdir(env.SPOOL_DIR, { recursive: true, mode: 0o700 });
  }
  const { AWS_ACCESS_KEY_ID: accessKeyId, AWS_SECRET_ACCESS_KEY: secretAccessKey, AWS_SESSION_TOKEN: sessionToken } = env;
  const credentials =
    accessKeyId === undefined || secretAccessKey === undefined
      ? undefined
      : { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) };
  const s3 =
    env.S3_BUCKET === undefined
      ? undefined
      : createS3Objects({
          bucket: env.S3_BUCKET,
          endpoint: env.S3_ENDPOINT,
          region: env.S3_REGION,
          credentials,
          spoolDir,
          count: countStored(nc),
        });
  const watched = watchedObjects(s3 ?? (await createJetStreamObjects(nc, { spoolDir })), { log });
  return {
    ...watched,
    [Symbol.dispose]() {
      watched[Symbol.dispose]();
      s3?.[Symbol.dispose]();
    },
  };
}
