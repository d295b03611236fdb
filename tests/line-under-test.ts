/** A whole line as a user runs it: `loraline up` in a process of its own, with real NATS, PEFT and vLLM. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type AdapterState, type ReplicaState, type RunState, terminalPhases } from "@loraline/contracts";
import { connectLine, type LineClient } from "@loraline/cli";
import type { LineNews } from "@loraline/local";

export const root = join(import.meta.dirname, "..");
const cli = [join(root, "loraline")] as const;

export const base = "smollm2-135m-instruct";

export interface Address {
  url: string;
  apiKey: string;
  natsUrl: string;
  stateDir: string;
}

export interface LineUnderTest extends Address, AsyncDisposable {
  readonly pid: number;
  readonly news: readonly LineNews[];
  /** As a crash would: nothing gets to say goodbye. */
  sigkill(): Promise<void>;
  /** In order. @returns exit code. */
  stop(): Promise<number | null>;
}

/** Starts a line; resolves when its doors are open, which is before the engine answers. */
export async function startLineUnderTest(stateDir: string): Promise<LineUnderTest> {
  const child = spawn(cli[0], ["up", "--json", "--port", "0", "--state", stateDir], { stdio: ["ignore", "pipe", "pipe"] });
  const exited = once(child, "exit") as Promise<[number | null, NodeJS.Signals | null]>;
  const news: LineNews[] = [];
  let complaints = "";
  child.stderr.on("data", (chunk: Buffer) => (complaints += chunk.toString()));
  const url = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).on("line", (text) => {
      if (!text.startsWith("{")) return void (complaints += text);
      const said = JSON.parse(text) as LineNews;
      news.push(said);
      if (said.kind === "up") resolve(said.url);
    });
    void exited.then(([code, signal]) => reject(new Error(`the line ended (${code ?? signal}) before it was up: ${complaints}`)));
  });
  const { natsUrl } = JSON.parse(await readFile(join(stateDir, "line.json"), "utf8")) as { natsUrl: string };
  const apiKey = (await readFile(join(stateDir, "api-key"), "utf8")).trim();
  const end = async (signal: NodeJS.Signals): Promise<number | null> => {
    child.kill(signal);
    return (await exited)[0];
  };
  return {
    url,
    apiKey,
    natsUrl,
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

export const clientOf = ({ url, apiKey }: Pick<Address, "url" | "apiKey">): LineClient => connectLine({ url, apiKey });

/** Runs the CLI against a line; nothing is thrown for an exit code. */
export async function loraline(at: Pick<Address, "url" | "apiKey"> | undefined, args: readonly string[], input?: string) {
  const child = spawn(cli[0], args, {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, ...(at === undefined ? {} : { LORALINE_URL: at.url, LORALINE_API_KEY: at.apiKey }) },
  });
  child.stdin.end(input ?? "");
  const [out, err, [code]] = await Promise.all([
    textOf(child.stdout),
    textOf(child.stderr),
    once(child, "exit") as Promise<[number | null]>,
  ]);
  return { code, out, err };
}

async function textOf(stream: NodeJS.ReadableStream): Promise<string> {
  let text = "";
  for await (const chunk of stream) text += chunk.toString();
  return text;
}

/** Polls until `get` gives something. The message of a timeout says what was seen last. */
export async function eventually<T>(what: string, timeoutMs: number, get: () => Promise<T | undefined> | T | undefined): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  let last: unknown;
  for (;;) {
    try {
      const found = await get();
      if (found !== undefined) return found;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs / 1000} s: ${what}`, { cause: last });
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

export const runOver = (line: LineClient, runId: string): Promise<RunState> =>
  eventually(`run ${runId} is over`, 400_000, async () => {
    const run = await line.run(runId);
    return terminalPhases.has(run.phase) ? run : undefined;
  });

/** Proven replicas of a version. */
export const provenOn = (view: { adapter: AdapterState; replicas: ReplicaState[] }, version: number): ReplicaState[] =>
  view.replicas.filter(({ adapters }) =>
    adapters.some((held) => held.version === version && held.state === "proven" && held.proof !== null),
  );

/** Processes of a line: everything that was started with its state directory, or by such a process. */
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

/** A training of a few steps: seconds, and yet the adapter differs from the base enough to be proven. */
export const smallTraining = {
  lora: { r: 4, lora_alpha: 8, target_modules: ["q_proj", "v_proj"] },
  training: { per_device_train_batch_size: 2, max_steps: 6, learning_rate: 2e-3, save_steps: 2 },
  gate: "none" as const,
};

/** The first rows of the sample, in any shape. */
export async function sampleRows(count: number): Promise<{ instruction: string; input: string; output: string }[]> {
  const text = await readFile(join(root, "samples/persona.jsonl"), "utf8");
  return text
    .split("\n")
    .slice(0, count)
    .map((line) => JSON.parse(line) as { instruction: string; input: string; output: string });
}

export const jsonLines = (rows: readonly unknown[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

export async function fileWith(dir: string, name: string, text: string): Promise<string> {
  const path = join(dir, name);
  await writeFile(path, text);
  return path;
}
