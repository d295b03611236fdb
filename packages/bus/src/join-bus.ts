/** How a service comes to its bus, and how it leaves. */
import type { NatsConnection } from "@nats-io/transport-node";
import type { ServiceContext } from "@loraline/runtime";
import { type Bus, createBus } from "./bus.ts";
import { connectService, leave, natsSecretOf, type NatsEnv } from "./connect.ts";

/**
 * Waits as `connectService` does, and makes the service's bus. Disposing sends the spans and messages that are left, and closes the connection.
 * @param source - the service as its events name it.
 * @param name - what the NATS server shows.
 */
export async function joinBus(
  { env, log, telemetry, ...service }: ServiceContext<NatsEnv>,
  source: string,
  name = source,
): Promise<{ nc: NatsConnection; bus: Bus } & AsyncDisposable> {
  const nc = await connectService(env, name, { log, ...service });
  return {
    nc,
    bus: createBus({ nc, log, telemetry, source, secret: natsSecretOf(env), lineSecret: env.LORALINE_SECRET }),
    async [Symbol.asyncDispose]() {
      await telemetry.flush().catch(() => {});
      await leave(nc);
    },
  };
}
