/**
 * nats-server as a child, with JetStream in the state directory. It listens on loopback only, where every user of the machine can connect,
 * so each of its own users has a password, in a file that only the owner of the state directory can read.
 */
import { chmod, mkdir, open, readdir, rename, stat, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { connectBus } from "@loraline/bus";
import { type Log, PermanentError } from "@loraline/runtime";
import type { NatsConnection } from "@nats-io/transport-node";
import { inboxPrefixOf, natsPermissions } from "@loraline/contracts";
import { freePort } from "./free-port.ts";
import { mainAccount, natsAccounts, natsUserOf } from "./nats-accounts.ts";
import { ensureNatsPasswords, keepPort, readPort } from "./state/state-dir.ts";
import { supervise } from "./supervise.ts";

const host = "127.0.0.1";
/** A server that was killed, or lost its power, first reads all that it holds; the chart gives it as long. */
const startMs = 600_000;
/** Until it is told that the server takes its time. */
const slowMs = 10_000;
/** Free space that is awaited before a server that met a full disk is started again. */
const roomBytes = 16 * 1024 ** 2;
/** With less free space than this, writes may have failed. */
const nothingBytes = 64 * 1024;

/**
 * A message is acknowledged after nats-server has written it to its file, so killing the server loses nothing. The file is
 * synced to the disk every second: a power cut may take that second.
 */
const config = (port: number, monitorPort: number | undefined, storeDir: string, accounts: object): string => `host: ${host}
port: ${port}
${monitorPort === undefined ? "" : `http: "${host}:${monitorPort}"\n`}max_payload: 8MB
jetstream {
  store_dir: ${JSON.stringify(storeDir)}
  sync_interval: 1s
  # The disk is the limit. The default is a share of what is free at the start, which a store that has grown would exceed.
  max_file_store: 1TB
  max_memory_store: 64MB
}
# A client on a busy machine may take longer than the two seconds that NATS gives it.
authorization: { timeout: 30 }
accounts: ${JSON.stringify(accounts)}
`;

/** User of this process itself, for what no service does: it makes the streams, the first key, and clears up. */
export const localUser = "local";

interface NatsChild extends AsyncDisposable {
  url: string;
  /** What a process needs in its environment to connect as this user. */
  environmentOf(user: string): { NATS_URL: string; NATS_USER: string; NATS_PASS: string; NATS_INBOX_PREFIX: string };
  /** Connects as this user, with the rights that it has in a cluster, too. Closing the connection is up to the caller. */
  connect(user: string): Promise<NatsConnection>;
}

/** A store of a release without NATS accounts belongs to NATS' default account. */
async function moveToMainAccount(dir: string): Promise<void> {
  const accounts = await readdir(join(dir, "jetstream")).catch((): string[] => []);
  if (accounts.includes("$G") && !accounts.includes(mainAccount))
    await rename(join(dir, "jetstream/$G"), join(dir, "jetstream", mainAccount));
}

/**
 * Starts the server, and waits until it takes connections.
 * @throws PermanentError NATS_NOT_STARTED
 */
export async function startNats(options: {
  stateDir: string;
  /** The tenant whose own client may connect, as the user `tenant.<name>`. */
  tenant: string;
  nats: string;
  env: Record<string, string | undefined>;
  logFile: string;
  log: Log;
  /** Where the server tells its numbers, on loopback. Absent: nowhere. */
  monitorPort?: number | undefined;
  onEnded(end: { why: string; restartInMs: number }): void;
  onDiskFull(): void;
  /** Its start takes long. */
  onSlow?(): void;
}): Promise<NatsChild> {
  const { stateDir, nats, env, logFile, log } = options;
  const dir = join(stateDir, "nats");
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const port = await freePort(host, [await readPort(stateDir, "nats"), 4222]);
  await keepPort(stateDir, "nats", port);
  await moveToMainAccount(dir);
  const passwords = await ensureNatsPasswords(stateDir, [
    ...Object.keys(natsPermissions.services),
    ...Object.keys(natsPermissions.managers),
    localUser,
    natsUserOf(options.tenant),
  ]);
  const passwordOf = (user: string): string => {
    const password = passwords[user];
    if (password === undefined) throw new Error(`NATS has no user ${user}`);
    return password;
  };
  const accounts = natsAccounts({ tenants: [options.tenant], administrators: [localUser], passwordOf });
  const file = join(dir, "nats-server.conf");
  await writeFile(file, config(port, options.monitorPort, dir, accounts), { mode: 0o600 });
  // The mode above counts for a new file only, and older releases had no secrets in it.
  await chmod(file, 0o600);

  let ended: string | undefined;
  const stopping = new AbortController();
  const server = await supervise({
    name: "nats",
    command: nats,
    args: ["-c", file],
    env,
    logFile,
    stateDir,
    stopMs: 5000,
    log,
    onStarted(child, signal) {
      restartAfterFullDisk({ dir, logFile, signal: AbortSignal.any([signal, stopping.signal]), onDiskFull: options.onDiskFull }).then(
        (restart) => restart && child.kill("SIGTERM"),
        (error: unknown) => log.error({ err: error }, "nats-server's log is not watched any more"),
      );
    },
    onEnded(end) {
      ended = end.why;
      options.onEnded(end);
    },
  });
  const url = `nats://${host}:${port}`;
  const connect = (user: string): Promise<NatsConnection> =>
    connectBus({ servers: url, name: user, user, pass: passwordOf(user), inboxPrefix: inboxPrefixOf(user) });
  const deadline = performance.now() + startMs;
  const slow = setTimeout(() => options.onSlow?.(), slowMs);
  using _ = { [Symbol.dispose]: () => clearTimeout(slow) };
  for (;;) {
    try {
      await (await connect(localUser)).close();
      return {
        url,
        environmentOf: (user) => ({
          NATS_URL: url,
          NATS_USER: user,
          NATS_PASS: passwordOf(user),
          NATS_INBOX_PREFIX: inboxPrefixOf(user),
        }),
        connect,
        async [Symbol.asyncDispose]() {
          stopping.abort();
          await server[Symbol.asyncDispose]();
        },
      };
    } catch (error) {
      if (performance.now() > deadline || ended !== undefined) {
        stopping.abort();
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

/**
 * Waits until nats-server must be started again because the disk was full: a stream that could not be written once refuses every
 * message until then, even when there is room again. A full disk is found in the server's log, and by asking the disk itself, since
 * a full disk takes no log either.
 * @returns true when it is time for the new start; false when the signal aborted.
 */
async function restartAfterFullDisk(options: { dir: string; logFile: string; signal: AbortSignal; onDiskFull(): void }): Promise<boolean> {
  const { dir, logFile, signal, onDiskFull } = options;
  let read = (await stat(logFile)).size;
  for (let full = false; ;) {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, 1000);
      signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
    if (signal.aborted) return false;
    const { bavail, bsize } = await statfs(dir);
    const free = bavail * bsize;
    if (full && free > roomBytes) return true;
    if (full) continue;

    await using log = await open(logFile, "r");
    const { size } = await log.stat();
    // Smaller than before: it was moved aside (rotate-logs.ts).
    const from = Math.max(size < read ? 0 : read, size - 1024 ** 2);
    const { buffer } = await log.read(Buffer.alloc(size - from), 0, size - from, from);
    read = size;
    full = free < nothingBytes || buffer.includes("no space left on device");
    if (full) onDiskFull();
  }
}
