/** Streams, consumers and buckets on a NATS that is not the line's own child. */
import { connectBus, ensureStreams, type EnsureStreamsOptions } from "@loraline/bus";

export async function applyStreams(
  options: EnsureStreamsOptions & { natsUrl: string; user?: string | undefined; pass?: string | undefined; token?: string | undefined },
): Promise<void> {
  const { natsUrl, user, pass, token, ...rest } = options;
  const nc = await connectBus({ servers: natsUrl, name: "loraline ensure-streams", user, pass, token });
  try {
    await ensureStreams(nc, rest);
  } finally {
    await nc.close();
  }
}
