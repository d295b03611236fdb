/** Whether fixtures run in containers: if a Docker engine answers, or if its absence must be a failure. */
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import type { StartedTestContainer } from "testcontainers";

const required = process.env["LORALINE_REQUIRE_DOCKER"] === "1";

const sockets = [
  "/var/run/docker.sock",
  join(homedir(), ".docker/run/docker.sock"),
  join(process.env["XDG_RUNTIME_DIR"] ?? "/run/user/0", "docker.sock"),
];

/** How to run a server in a container. The image is a setting, so that a machine without a registry can use its own. */
interface ContainerSpec {
  image: string;
  command: string[];
  port: number;
  /** Text that the server logs when it is ready. */
  ready: RegExp;
  /** Folder of the server's files, which is kept in memory; see `storeRoot` in server-process.ts. */
  dataDir: string;
}

/**
 * Starts the container; undefined if there is no Docker engine here, or no such image to be had.
 *
 * @throws if `LORALINE_REQUIRE_DOCKER=1` and either is missing.
 */
export async function startContainer({ image, command, port, ready, dataDir }: ContainerSpec): Promise<StartedTestContainer | undefined> {
  if (!required && process.env["DOCKER_HOST"] === undefined && !sockets.some((path) => existsSync(path))) return undefined;
  const { GenericContainer, getContainerRuntimeClient, Wait } = await import("testcontainers"); // half a second, only where needed
  try {
    await getContainerRuntimeClient();
  } catch (cause) {
    if (required) throw new Error("LORALINE_REQUIRE_DOCKER=1, but no Docker engine answers. Start one, or unset it.", { cause });
    return undefined;
  }
  try {
    return await new GenericContainer(image)
      .withCommand(command)
      .withExposedPorts(port)
      .withTmpFs({ [dataDir]: "rw" })
      .withWaitStrategy(Wait.forLogMessage(ready))
      .withStartupTimeout(60_000)
      .start();
  } catch (cause) {
    if (required) throw new Error(`LORALINE_REQUIRE_DOCKER=1, but a container of ${image} does not start`, { cause });
    console.warn(`Docker answers, but a container of ${image} does not start; taking the bundled server. ${String(cause)}`);
    return undefined;
  }
}
