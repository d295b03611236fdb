/** Creates streams, consumers, buckets and the object store on a NATS that somebody else runs. */
import { connectFromEnv, ensureStreams, natsEnv, type EnsureStreamsOptions } from "@loraline/bus";
import { loadEnv } from "@loraline/runtime";
import { z } from "zod";
import { createJetStreamObjects } from "@loraline/objects";

/** @param options.env - `natsEnv` of packages/bus: who connects, and whom to trust. */
export async function applyStreams(
  options: EnsureStreamsOptions & { natsUrl: string; env: Record<string, string | undefined> },
): Promise<{ unlimited: string[] }> {
  const { natsUrl, env, ...rest } = options;
  const nc = await connectFromEnv(loadEnv(z.object(natsEnv), { ...env, NATS_URL: natsUrl }), "loraline ensure-streams");
  try {
    // The object store comes first, because services wait for the streams only.
    await createJetStreamObjects(nc, rest);
    return await ensureStreams(nc, rest);
  } finally {
    await nc.close();
  }
}
