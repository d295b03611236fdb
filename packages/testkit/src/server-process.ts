/** A real server as a child process that tests can kill and start again on the same port and files. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { once } from "node:events";
import { existsSync, statfsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "../../..");
const startTimeoutMs = 120_000;

/**
 * Folder for servers' files, in memory if there is room: JetStream waits for the disk when it makes a stream, which took more than half
 * of the time of most tests on NATS. A server that was killed still finds its files.
 */
const storeRoot = freeBytes("/dev/shm") >= 4 * 1024 ** 3 ? "/dev/shm" : tmpdir();

function freeBytes(dir: string): number {
  if (!existsSync(dir)) return 0;
  const { bavail, bsize } = statfsSync(dir);
  return bavail * bsize;
}

export interface ServerProcess extends AsyncDisposable {
  readonly port: number;
  /** Folder of its files, which are kept over `kill` and `start`. */
  readonly storeDir: string;
  /** The process's id; undefined while it does not run. */
  readonly pid: number | undefined;
  /** Ends it with SIGKILL, like a crash, or with another signal. Resolves when it is gone. */
  kill(signal?: NodeJS.Signals): Promise<void>;
  /** Starts it again, on the same port and files; returns when it answers. */
  start(): Promise<void>;
}

interface ServerCommand {
  /** Name of the program in `.venv/bin`. */
  binary: string;
  /** Arguments of the program. `port` is 0 at the first start: any free one. */
  args: (at: { port: number; storeDir: string }) => string[];
  /** Pattern that finds the port in the server's output. */
  listening: RegExp;
  /** Text that the server prints when it is ready; default: it is ready when it listens. */
  ready?: RegExp;
}

/**
 * A port that nothing listens on now. It is none of those that the system gives to clients (from 32768 on): while a server is down that a test
 * has killed, one of these would take its port, and the server could never start again.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(12_000, 32_000);
    const server = createServer();
    const isFree = await new Promise<boolean>((resolve) => {
      server.once("error", () => resolve(false));
      server.listen(port, () => resolve(true));
    });
    if (!isFree) continue;
    server.close();
    await once(server, "close");
    return port;
  }
}

/** Starts a bundled server; disposing kills it and removes its files, unless `storeDir` was given. */
export async function startServer(command: ServerCommand, given: { port?: number; storeDir?: string } = {}): Promise<ServerProcess> {
  const binary = join(root, ".venv/bin", command.binary);
  if (!existsSync(binary)) throw new Error(`${command.binary} is not in .venv/bin; run: make setup`);
  const storeDir = given.storeDir ?? (await mkdtemp(join(storeRoot, `loraline-${command.binary}-`)));
  let port = given.port ?? 0;
  let child: ChildProcess | undefined;

  const killWithTests = () => child?.kill("SIGKILL");
  process.on("exit", killWithTests);

  const start = async () => {
    if (child !== undefined) return;
    const started = spawn(binary, command.args({ port, storeDir }), { stdio: ["ignore", "pipe", "pipe"] });
    child = started;
    started.once("exit", () => {
      if (child === started) child = undefined;
    });
    port = await listeningPort(started, command);
  };

  const kill = async (signal: NodeJS.Signals = "SIGKILL") => {
    const running = child;
    if (running === undefined) return;
    const gone = new Promise<void>((resolve) => {
      running.once("exit", () => resolve());
    });
    running.kill(signal);
    await gone;
  };

  await start();
  return {
    get port() {
      return port;
    },
    get pid() {
      return child?.pid;
    },
    storeDir,
    start,
    kill,
    async [Symbol.asyncDispose]() {
      process.off("exit", killWithTests);
      await kill();
      if (given.storeDir === undefined) await rm(storeDir, { recursive: true, force: true, maxRetries: 3 });
    },
  };
}

function listeningPort(child: ChildProcess, { binary, listening, ready = listening }: ServerCommand): Promise<number> {
  return new Promise((resolve, reject) => {
    let printed = "";
    const fail = (why: string) => {
      child.kill("SIGKILL");
      reject(new Error(`${binary} ${why}. It printed:\n${printed}`));
    };
    const timer = setTimeout(() => fail(`was not ready after ${startTimeoutMs / 1000} s`), startTimeoutMs);
    child.once("error", (error) => fail(`did not start: ${error.message}`));
    const ended = (code: number | null, signal: string | null) => {
      clearTimeout(timer);
      fail(`ended at once (${signal ?? `exit code ${code}`})`);
    };
    child.once("exit", ended);
    const read = (chunk: Buffer) => {
      printed = (printed + chunk.toString()).slice(-20_000);
      const port = listening.exec(printed)?.[1];
      if (port === undefined || !ready.test(printed)) return;
      clearTimeout(timer);
      child.off("exit", ended);
      for (const output of [child.stdout, child.stderr]) output?.off("data", read).resume(); // a full pipe would stop it
      resolve(Number(port));
    };
    child.stdout?.on("data", read);
    child.stderr?.on("data", read);
  });
}
