/** A real server as a child process that tests can kill and start again on the same port and files. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, statfsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "../../..");
const startTimeoutMs = 30_000;

/**
 * Servers keep their files in memory where there is room: JetStream waits for the disk whenever it makes a stream, and that was more than half
 * of the time of most tests on NATS. A killed server finds its files again all the same.
 */
const storeRoot = freeBytes("/dev/shm") >= 4 * 1024 ** 3 ? "/dev/shm" : tmpdir();

function freeBytes(dir: string): number {
  if (!existsSync(dir)) return 0;
  const { bavail, bsize } = statfsSync(dir);
  return bavail * bsize;
}

export interface ServerProcess extends AsyncDisposable {
  readonly port: number;
  /** Where it keeps its files; survives `kill` and `start`. */
  readonly storeDir: string;
  /** Undefined while it does not run. */
  readonly pid: number | undefined;
  /** Ends it at once, as a crash would (or with another signal), and waits until it is gone. */
  kill(signal?: NodeJS.Signals): Promise<void>;
  /** Starts it again, on the same port and files; returns when it answers. */
  start(): Promise<void>;
}

export interface ServerCommand {
  /** Name of a binary in `.venv/bin`. */
  binary: string;
  /** `port` is 0 the first time: any free one. */
  args: (at: { port: number; storeDir: string }) => string[];
  /** Finds the port in what the server prints when it listens. */
  listening: RegExp;
  /** Printed when it is ready; default: as soon as it listens. */
  ready?: RegExp;
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
