/** Creates streams, consumers, buckets and the object store on a NATS that somebody else runs. */
import { connectBus, ensureStreams, type EnsureStreamsOptions } from "@loraline/bus";
import { createJetStreamObjects } from "@loraline/objects";

export async function applyStreams(
  options: EnsureStreamsOptions & { natsUrl: string; user?: string | undefined; pass?: string | undefined; token?: string | undefined },
): Promise<void> {
  const { natsUrl, user, pass, token, ...rest } = options;
  const nc = await connectBus({ servers: natsUrl, name: "loraline ensure-streams", user, pass, token });
  try {
    // The object store comes first, because services wait for the streams only.
    await createJetStreamObjects(nc, rest);
    await ensureStreams(nc, rest);
  } finally {
    await nc.close();
  }
}
