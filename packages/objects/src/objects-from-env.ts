/** Which store a process uses, as its environment says. */
import type { NatsConnection } from "@nats-io/transport-node";
import { z } from "zod";
import { createJetStreamObjects } from "./jetstream.ts";
import type { Objects } from "./objects.ts";
import { createS3Objects } from "./s3.ts";

/** Settings of a process that reads or writes blobs: part of its schema for `loadEnv`. */
export const objectsEnv = {
  S3_BUCKET: z.string().optional().describe("Absent: blobs are in JetStream's object store."),
  S3_ENDPOINT: z.url().optional(),
  S3_REGION: z.string().optional(),
};
export type ObjectsEnv = z.output<z.ZodObject<typeof objectsEnv>>;

/**
 * S3 when a bucket is set, else the object store of this NATS. The connection stays the caller's.
 * @param options.spoolDir - where streams of unknown digest are spooled. Default: the system's temporary directory.
 */
export async function objectsFromEnv(
  env: ObjectsEnv,
  nc: NatsConnection,
  { spoolDir }: { spoolDir?: string } = {},
): Promise<Objects & Disposable> {
  if (env.S3_BUCKET !== undefined) {
    return createS3Objects({ bucket: env.S3_BUCKET, endpoint: env.S3_ENDPOINT, region: env.S3_REGION, spoolDir });
  }
  return Object.assign(await createJetStreamObjects(nc, { spoolDir }), { [Symbol.dispose]: () => {} });
}
