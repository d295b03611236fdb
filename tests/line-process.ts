/**
 * A whole server as a user runs it: `loraline up` in a process of its own, with real NATS, PEFT and vLLM. From our packages it imports
 * only types, because vitest's global setup does not resolve workspace packages to their sources.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { LineNews } from "@loraline/local";

export const root = join(import.meta.dirname, "..");
export const program = join(root, "loraline");

export interface Address {
  url: string;
  apiKey: string;
  natsUrl: string;
  /** Passwords of NATS' users. */
  natsAuth: Record<string, string>;
  stateDir: string;
}

export interface LineUnderTest extends Address, AsyncDisposable {
  readonly pid: number;
  readonly news: readonly LineNews[];
  /** Kills it with SIGKILL, like a crash. */
  sigkill(): Promise<void>;
  /** Stops it in order. @returns the exit code. */
  stop(): Promise<number | null>;
}

/**
 * Starts a server; resolves when its API answers, which is before the engine is ready.
 * @param args - more of `up`'s.
 */
export async function startLineUnderTest(stateDir: string, args: readonly string[] = []): Promise<LineUnderTest> {
  const child = spawn(program, ["up", "--json", "--port", "0", "--state", stateDir, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const exited = once(child, "exit") as Promise<[number | null, NodeJS.Signals | null]>;
  const news: LineNews[] = [];
  let complaints = "";
  child.stderr.on("data", (chunk: Buffer) => (complaints += chunk.toString()));
  const url = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).on("line", (text) => {
      if (!/^\{.*\}$/.test(text)) return void (complaints += `${text}\n`);
      const said = JSON.parse(text) as LineNews;
      news.push(said);
      if (said.kind === "up") resolve(said.url);
    });
    void exited.then(([code, signal]) => reject(new Error(`the line ended (${code ?? signal}) before it was up: ${complaints}`)));
  });
  const { natsUrl } = JSON.parse(await readFile(join(stateDir, "line.json"), "utf8")) as { natsUrl: string };
  const natsAuth = JSON.parse(await readFile(join(stateDir, "nats-auth"), "utf8")) as Record<string, string>;
  const apiKey = (await readFile(join(stateDir, "api-key"), "utf8")).trim();
  const end = async (signal: NodeJS.Signals): Promise<number | null> => {
    child.kill(signal);
    return (await exited)[0];
  };
  return {
    url,
    apiKey,
    natsUrl,
    natsAuth,
    stateDir,
    pid: child.pid as number,
    news,
    sigkill: async () => void (await end("SIGKILL")),
    stop: () => end("SIGTERM"),
    [Symbol.asyncDispose]: async () => void (await end(running(child) ? "SIGTERM" : "SIGKILL")),
  };
}

const running = (child: ChildProcess): boolean => child.exitCode === null && child.signalCode === null;

/** A directory that is removed afterwards, unless LORALINE_KEEP is set. */
export async function scratchDir(): Promise<{ path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), "loraline-test-"));
  return {
    path,
    async [Symbol.asyncDispose]() {
      if (process.env.LORALINE_KEEP === undefined) await rm(path, { recursive: true, force: true, maxRetries: 3 });
    },
  };
}

/** @returns the server's processes: all that were started with its state directory, or by such a process. */
export function processesOf(stateDir: string): { pid: number; command: string }[] {
  const all = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const command = readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ").trim();
        const environment = readFileSync(`/proc/${name}/environ`, "utf8");
        const [, state, parent, group] = /\) (\S) (\d+) (\d+)/.exec(readFileSync(`/proc/${name}/stat`, "utf8")) ?? [];
        return state === "Z" ? [] : [{ pid: Number(name), parent: Number(parent), group: Number(group), command, environment }];
      } catch {
        return []; // it ended meanwhile
      }
    });
  const found = new Set(
    all.filter(({ command, environment }) => command.includes(stateDir) || environment.includes(stateDir)).map(({ pid }) => pid),
  );
  for (let before = -1; before !== found.size;) {
    before = found.size;
    for (const { pid, parent, group } of all) if (found.has(parent) || found.has(group)) found.add(pid);
  }
  return all.filter(({ pid }) => found.has(pid)).map(({ pid, command }) => ({ pid, command }));
}
