/** Three NATS servers that replicate to each other through proxies, so that tests can kill one, take its network away, or set its disk back. */
import { cp, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type ConnectionOptions, type NatsConnection } from "@nats-io/transport-node";
import { type ProxyFixture, startProxy } from "./proxy.ts";
import { freePort, type ServerProcess, startServer } from "./server-process.ts";

export interface NatsCluster extends AsyncDisposable {
  /** `n1` to `n3`. */
  readonly servers: readonly (ServerProcess & { name: string; url: string })[];
  /** Connects to any of them, and to another when that one is gone. */
  connect(options?: ConnectionOptions): Promise<NatsConnection>;
  /** No packet goes between this server and the other two any more; its clients still reach it. */
  partition(index: number): Promise<void>;
  heal(): Promise<void>;
  /** Copies a server's files as they are now: what a power cut may leave of it. @returns puts the files back; the server must not run. */
  snapshot(index: number): Promise<() => Promise<void>>;
}

/** @param config - more of each server's configuration, such as its accounts. */
export async function spawnNatsCluster({ config = "" }: { config?: string } = {}): Promise<NatsCluster> {
  const owned = new AsyncDisposableStack();
  const names = ["n1", "n2", "n3"] as const;
  const dir = await mkdtemp(join(tmpdir(), "loraline-nats-cluster-"));
  owned.defer(() => rm(dir, { recursive: true, force: true, maxRetries: 3 }));
  try {
    const routePorts = await Promise.all(names.map(() => freePort()));
    const routes = await Promise.all(
      names.map(async (_, from) =>
        Promise.all(
          routePorts.map(async (port, to): Promise<ProxyFixture | undefined> =>
            from === to ? undefined : owned.use(await startProxy(`nats://127.0.0.1:${port}`)),
          ),
        ),
      ),
    );
    const servers = await Promise.all(
      names.map(async (name, index) => {
        const storeDir = join(dir, name);
        const conf = join(dir, `${name}.conf`);
        const to = (routes[index] ?? []).flatMap((proxy) => (proxy === undefined ? [] : [JSON.stringify(proxy.url)]));
        // What servers tell each other of their addresses leads nowhere, so that only the proxies do.
        await writeFile(
          conf,
          `server_name: ${name}
max_payload: 8MB
jetstream { store_dir: ${JSON.stringify(storeDir)}, sync_interval: 1s }
cluster { name: test, listen: "127.0.0.1:${routePorts[index]}", advertise: "127.0.0.1:1", routes: [${to.join(", ")}] }
${config}`,
        );
        const server = await startServer(
          {
            binary: "nats-server",
            args: ({ port }) => ["-a", "127.0.0.1", "-p", port === 0 ? "-1" : String(port), "-c", conf],
            listening: /Listening for client connections on 127\.0\.0\.1:(\d+)/,
            ready: /Server is ready/,
          },
          { storeDir },
        );
        return Object.assign(owned.use(server), { name, url: `nats://127.0.0.1:${server.port}` });
      }),
    );
    return {
      servers,
      connect: (options) => connect({ ...options, servers: servers.map(({ url }) => url) }),
      async partition(index) {
        await Promise.all(
          routes.flatMap((its, from) => its.map(async (proxy, to) => (from === index || to === index ? proxy?.cut("lost") : undefined))),
        );
      },
      async heal() {
        await Promise.all(routes.flat().map(async (proxy) => proxy?.restore()));
      },
      async snapshot(index) {
        const { storeDir } = servers[index] as (typeof servers)[0];
        const copy = `${storeDir}-before`;
        await rm(copy, { recursive: true, force: true });
        await cp(storeDir, copy, { recursive: true });
        return async () => {
          await rm(storeDir, { recursive: true });
          await cp(copy, storeDir, { recursive: true });
        };
      },
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  } catch (error) {
    await owned.disposeAsync();
    throw error;
  }
}
