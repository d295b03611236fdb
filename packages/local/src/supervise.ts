/** A child process that is started again whenever it ends, until it is disposed. */
import { open } from "node:fs/promises";
import { type GuardedChild, type Log, spawnGuarded } from "@loraline/runtime";
import { forgetChild, recordChild } from "./state/state-dir.ts";

export interface SuperviseOptions {
  name: string;
  command: string;
  args: readonly string[];
  env: Record<string, string | undefined>;
  /** Takes stdout and stderr. */
  logFile: string;
  stateDir: string;
  /** Time from SIGTERM to SIGKILL. */
  stopMs: number;
  log: Log;
  /** Called after each start. The signal aborts when the started process has ended. */
  onStarted?(child: GuardedChild, signal: AbortSignal): void;
  /** Called when the child ended although nobody asked it to. `why` is one line. */
  onEnded(end: { why: string; restartInMs: number }): void;
}

const firstDelayMs = 100;
const longestDelayMs = 15_000;
/** A child that ran for this long had no trouble starting, so the delay before the next start is the first one again. */
const steadyAfterMs = 60_000;

/** Starts the child. Throws when the first start fails. Later starts are tried again, with a growing delay. */
export async function supervise(options: SuperviseOptions): Promise<AsyncDisposable> {
  const { name, stateDir, log, stopMs, logFile } = options;
  const stopping = Promise.withResolvers<void>();
  let stopped = false;
  let child: GuardedChild | undefined;

  const start = async (): Promise<GuardedChild> => {
    const started = spawnGuarded(options.command, options.args, { env: options.env, stdout: logFile, stderr: logFile });
    child = started;
    try {
      await recordChild(stateDir, name, started.pid);
    } catch (error) {
      started.kill("SIGKILL"); // A child that is not written down would not be found by the next start.
      await started.exited;
      throw error;
    }
    log.info({ child: name, pid: started.pid }, "child started");
    return started;
  };

  let notStarted = "";
  const keep = async (first: GuardedChild): Promise<void> => {
    let delayMs = firstDelayMs;
    for (let running: GuardedChild | undefined = first; ;) {
      const startedAt = performance.now();
      let why = notStarted;
      if (running !== undefined) {
        const ended = new AbortController();
        options.onStarted?.(running, ended.signal);
        const { code, signal } = await running.exited;
        ended.abort();
        const last = await lastLine(logFile);
        why = `${signal === null ? `exit code ${code}` : signal}${last === "" || signal === "SIGKILL" ? "" : `: ${last}`}`;
      }
      if (stopped) return;
      if (performance.now() - startedAt > steadyAfterMs) delayMs = firstDelayMs;
      log.warn({ child: name, why, restartInMs: delayMs }, "child ended; it is started again");
      options.onEnded({ why, restartInMs: delayMs });
      await Promise.race([stopping.promise, new Promise((resolve) => setTimeout(resolve, delayMs))]);
      if (stopped) return;
      delayMs = Math.min(delayMs * 3, longestDelayMs);
      running = await start().catch((error: unknown) => {
        log.error({ err: error, child: name }, "child could not be started");
        notStarted = `it could not be started: ${error instanceof Error ? error.message : String(error)}`;
        return undefined;
      });
    }
  };

  const kept = keep(await start());
  return {
    async [Symbol.asyncDispose]() {
      stopped = true;
      stopping.resolve();
      const running = child;
      running?.kill("SIGTERM");
      const deadline = setTimeout(() => running?.kill("SIGKILL"), stopMs);
      await kept;
      clearTimeout(deadline);
      await forgetChild(stateDir, name);
    },
  };
}

/** The last line of a file that is not blank; empty when there is none. */
async function lastLine(path: string): Promise<string> {
  const file = await open(path, "r").catch(() => undefined);
  if (file === undefined) return "";
  try {
    const { size } = await file.stat();
    const length = Math.min(size, 4096);
    const { buffer } = await file.read(Buffer.alloc(length), 0, length, size - length);
    return buffer.toString("utf8").trimEnd().split("\n").at(-1)?.trim().slice(0, 300) ?? "";
  } finally {
    await file.close();
  }
}
