/** nats-server as a child: JetStream in the state directory, on loopback only. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { connectBus } from "@loraline/bus";
import { type Log, PermanentError } from "@loraline/runtime";
import type { NatsConnection } from "@nats-io/transport-node";
import { freePort } from "./free-port.ts";
import { keepPort, readPort } from "./state-dir.ts";
import { supervise } from "./supervise.ts";

const host = "127.0.0.1";
const startMs = 20_000;

/**
 * A message is acknowledged after nats-server has written it to its file, so killing the server loses nothing. The file is
 * synced to the disk every second: a power cut may take that second.
 */
const config = (port: number, storeDir: string): string => `host: ${host}
port: ${port}
max_payload: 8MB
jetstream {
  store_dir: ${JSON.stringify(storeDir)}
  sync_interval: 1s
  # The disk is the limit. The default, a share of what is free at the start, would shut out a store that has grown.
  max_file_store: 1TB
  max_memory_store: 64MB
}
`;

export interface NatsChild extends AsyncDisposable {
  url: string;
  nc: NatsConnection;
}

/** Starts the server and connects. @throws PermanentError NATS_NOT_STARTED */
export async function startNats(options: {
  stateDir: string;
  nats: string;
  env: Record<string, string | undefined>;
  logFile: string;
  log: Log;
  onEnded(end: { why: string; restartInMs: number }): void;
}): Promise<NatsChild> {
  const { stateDir, nats, env, logFile, log } = options;
  const dir = join(stateDir, "nats");
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const port = await freePort(host, [await readPort(stateDir, "nats"), 4222]);
  await keepPort(stateDir, "nats", port);
  await writeFile(join(dir, "nats-server.conf"), config(port, dir));

  let ended: string | undefined;
  const server = await supervise({
    name: "nats",
    command: nats,
    args: ["-c", join(dir, "nats-server.conf")],
    env,
    logFile,
    stateDir,
    stopMs: 5000,
    log,
    onEnded(end) {
      ended = end.why;
      options.onEnded(end);
    },
  });
  const url = `nats://${host}:${port}`;
  const deadline = performance.now() + startMs;
  for (;;) {
    try {
      const nc = await connectBus({ servers: url, name: "loraline" });
      return {
        url,
        nc,
        async [Symbol.asyncDispose]() {
          await nc.close();
          await server[Symbol.asyncDispose]();
        },
      };
    } catch (error) {
      if (performance.now() > deadline || ended !== undefined) {
        await server[Symbol.asyncDispose]();
        throw new PermanentError(
          "NATS_NOT_STARTED",
          `nats-server does not run: ${ended ?? (error as Error).message}. Its log is ${logFile}.`,
          {
            cause: error,
          },
        );
      }
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }
}
