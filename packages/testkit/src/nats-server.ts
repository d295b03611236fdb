/** NATS with JetStream, for tests. */
import { connect, type ConnectionOptions, type NatsConnection } from "@nats-io/transport-node";
import { startContainer } from "./docker.ts";
import { type ServerProcess, startServer } from "./server-process.ts";

interface NatsFixture extends AsyncDisposable {
  /** `nats://127.0.0.1:<port>` */
  readonly url: string;
  connect(options?: ConnectionOptions): Promise<NatsConnection>;
}

/** Starts it in a container if Docker answers, else from the bundled binary. */
export async function startNats(): Promise<NatsFixture> {
  const container = await startContainer({
    image: process.env["LORALINE_NATS_IMAGE"] ?? "nats:2.15",
    command: ["-js", "-sd", "/data", "-a", "0.0.0.0", "-p", "4222"],
    port: 4222,
    ready: /Server is ready/,
    dataDir: "/data",
  });
  if (container === undefined) return spawnNatsServer();
  const url = `nats://${container.getHost()}:${container.getMappedPort(4222)}`;
  return {
    url,
    connect: (options) => connect({ ...options, servers: url }),
    async [Symbol.asyncDispose]() {
      await container.stop();
    },
  };
}

/**
 * Starts it as a child process, for tests that kill it: `kill()` and `start()` keep its port and files.
 * @param at.args - more arguments of nats-server.
 */
export async function spawnNatsServer({ args: more = [], ...at }: { port?: number; storeDir?: string; args?: string[] } = {}): Promise<
  NatsFixture & ServerProcess
> {
  const server = await startServer(
    {
      binary: "nats-server",
      args: ({ port, storeDir }) => ["-a", "127.0.0.1", "-p", port === 0 ? "-1" : String(port), "-js", "-sd", storeDir, ...more],
      listening: /Listening for client connections on 127\.0\.0\.1:(\d+)/,
      ready: /Server is ready/,
    },
    at,
  );
  const url = `nats://127.0.0.1:${server.port}`;
  return Object.assign(server, { url, connect: (options?: ConnectionOptions) => connect({ ...options, servers: url }) });
}
