/**
 * Attempts as child processes of this one, in `<dir>/<jobName>/`:
 *
 *   job.json       what to do; written before the start, so an attempt exists from here on
 *   process.json   pid and identity of the courier
 *   trainer.json   the same of the trainer, written by the courier
 *   outcome.json   written by the courier when the attempt should be tried again
 *   exit.json      how it ended; its absence, with no process alive, means that this process was killed
 *   courier.log, trainer.log, work/ (the trainer's files)
 */
import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import {
  type Exit,
  explainSystemError,
  type GuardedChild,
  killGroup,
  type Log,
  processIdentity,
  RetryLaterError,
  spawnGuarded,
} from "@loraline/runtime";
import { z } from "zod";
import { type Attempt, type AttemptPhase, courierExit, type Launcher, outcome, trainJob } from "./launcher.ts";

export interface ProcessLauncherOptions {
  /** Folder of all attempts; created. Belongs to this launcher alone. */
  dir: string;
  /** Jobs at once: the number of devices. Default 1. */
  slots?: number;
  /** Program and arguments; the attempt's folder is put behind them. See `courierCommand`. */
  courierCommand: readonly [string, ...string[]];
  /** The courier's whole environment: see `courier-main.ts`. */
  env: Record<string, string | undefined>;
  log: Log;
  /** How long a courier may take after SIGTERM before SIGKILL; it saves a checkpoint in this time. Default 30 s. */
  stopGraceMs?: number;
}

const processRecord = z.object({ pid: z.int(), identity: z.string() });
const exitRecord = z.discriminatedUnion("phase", [
  z.object({ phase: z.literal("settled") }),
  z.object({ phase: z.literal("failed"), code: z.string(), message: z.string(), endedAt: z.number() }),
]);
type ExitRecord = z.infer<typeof exitRecord>;

/** Command of the courier in this package, run by `node` (a path): from sources, or from what was built of them. */
export const courierCommand = (node: string): [string, ...string[]] =>
  import.meta.filename.endsWith(".ts")
    ? [node, "--conditions=@loraline/source", join(import.meta.dirname, "courier-main.ts")]
    : [node, join(import.meta.dirname, "courier-main.js")];

interface Known {
  job: { tenant: string; runId: string; attempt: number; jobName: string };
  state: AttemptPhase;
  child?: GuardedChild;
  /** Resolves when `state` says how the child ended. */
  settled?: Promise<void>;
  stopping?: NodeJS.Timeout;
}

/**
 * Opens the folder: attempts that an earlier process left are ended if they still run, for nobody listens to them any more,
 * and are then known as failed with ATTEMPT_LOST. Disposing lets running attempts save a checkpoint, then ends them.
 */
export async function createProcessLauncher(options: ProcessLauncherOptions): Promise<Launcher & AsyncDisposable> {
  const { dir, slots = 1, courierCommand: command, env, stopGraceMs = 30_000 } = options;
  const log = options.log.child({ launcher: "process" });
  const known = new Map<string, Known>();
  const listeners = new Set<(run: { tenant: string; runId: string }) => void>();
  let closing = false;

  await mkdir(dir, { recursive: true });
  for (const name of await readdir(dir)) {
    const adopted = await adopt(join(dir, name), log);
    if (adopted === undefined) await rm(join(dir, name), { recursive: true, force: true });
    else known.set(name, adopted);
  }

  const running = (): Known[] => [...known.values()].filter(({ state }) => state.phase === "running");
  const changed = ({ job: { tenant, runId } }: Known): void => {
    for (const listener of listeners) listener({ tenant, runId });
  };

  const settle = async (attempt: Known, exit: Exit): Promise<void> => {
    clearTimeout(attempt.stopping);
    const folder = join(dir, attempt.job.jobName);
    const state = await stateAfter(folder, exit);
    if (state.phase === "failed") {
      const tail = await tailOf(join(folder, "courier.log"));
      log.warn({ ...attempt.job, exit, code: state.code, reason: state.message, tail }, "attempt ended without a result");
    }
    // Unwritten (a full disk) it is ATTEMPT_LOST after a restart, which leads to the same next step.
    await writeJson(join(folder, "exit.json"), state).catch((error: unknown) => log.error({ err: error, ...attempt.job }, "exit not kept"));
    attempt.state = state;
    changed(attempt);
  };

  const stop = (attempt: Known): void => {
    if (attempt.stopping !== undefined) return;
    attempt.child?.kill("SIGTERM");
    attempt.stopping = setTimeout(() => attempt.child?.kill("SIGKILL"), stopGraceMs);
  };

  return {
    async launch(raw) {
      const job = trainJob.parse(raw);
      const { tenant, runId, attempt, jobName } = job;
      if (known.has(jobName)) return true;
      if (closing || running().length >= slots) return false;
      const entry: Known = { job: { tenant, runId, attempt, jobName }, state: { phase: "running" } };
      known.set(jobName, entry); // takes the slot before anything is awaited
      const folder = join(dir, jobName);
      try {
        await mkdir(folder, { recursive: true });
        await writeJson(join(folder, "job.json"), job);
        if (closing) throw new RetryLaterError("SHUTTING_DOWN", 1000, "the launcher is shutting down");
        const logFile = join(folder, "courier.log");
        const child = spawnGuarded(command[0], [...command.slice(1), folder], { cwd: folder, env, stdout: logFile, stderr: logFile });
        entry.child = child;
        entry.settled = child.exited.then((exit) => settle(entry, exit));
        await writeJson(join(folder, "process.json"), { pid: child.pid, identity: processIdentity(child.pid) ?? "gone" });
        log.info({ tenant, runId, attempt, jobName, pid: child.pid, resumeStep: job.resume?.step }, "attempt started");
        return true;
      } catch (error) {
        if (entry.child === undefined) {
          known.delete(jobName);
          await rm(folder, { recursive: true, force: true });
        } else {
          entry.child.kill("SIGKILL"); // its pid is not on disk: it must not become an orphan that nobody finds
        }
        throw explainSystemError(error, `starting ${jobName} in ${folder}`);
      }
    },

    async observe() {
      return [...known.values()].map(({ job, state }): Attempt => ({ ...job, ...state }));
    },

    async slots() {
      return { total: slots, free: closing ? 0 : Math.max(0, slots - running().length) };
    },

    async stop(jobName) {
      const attempt = known.get(jobName);
      if (attempt?.state.phase === "running") stop(attempt);
    },

    async remove(jobName) {
      const attempt = known.get(jobName);
      if (attempt === undefined || attempt.state.phase === "running") return;
      const folder = join(dir, jobName);
      await rm(join(folder, "job.json"), { force: true }); // first: without it the rest is litter, cleared at the next start
      await rm(folder, { recursive: true, force: true });
      known.delete(jobName);
    },

    watch(onChange) {
      listeners.add(onChange);
      return { [Symbol.dispose]: () => void listeners.delete(onChange) };
    },

    async [Symbol.asyncDispose]() {
      closing = true;
      listeners.clear();
      const attempts = running();
      attempts.forEach(stop);
      await Promise.all(attempts.map(async ({ settled }) => settled));
    },
  };
}

/** What an earlier process left in one folder; undefined: nothing that counts as an attempt. */
async function adopt(folder: string, log: Log): Promise<Known | undefined> {
  const job = await readJson(join(folder, "job.json"), trainJob);
  if (job === undefined) return undefined;
  const { tenant, runId, attempt, jobName } = job;
  const entry = { job: { tenant, runId, attempt, jobName } };
  const exit = await readJson(join(folder, "exit.json"), exitRecord);
  if (exit !== undefined) return { ...entry, state: exit };
  // The courier first: it would take the trainer's end for a failure of the run.
  for (const file of ["process.json", "trainer.json"]) {
    const record = await readJson(join(folder, file), processRecord);
    if (record === undefined || processIdentity(record.pid) !== record.identity) continue;
    log.warn({ ...entry.job, pid: record.pid, file }, "ending a process that outlived its parent");
    killGroup(record.pid);
    while (processIdentity(record.pid) === record.identity) await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const message = "the process that ran this attempt was killed; the next attempt goes on from the last checkpoint";
  return { ...entry, state: { phase: "failed", code: "ATTEMPT_LOST", message, endedAt: Date.now() } };
}

async function stateAfter(folder: string, { code, signal }: Exit): Promise<ExitRecord> {
  if (code === courierExit.trained || code === courierExit.failed) return { phase: "settled" };
  const said = code === courierExit.retry ? await readJson(join(folder, "outcome.json"), outcome) : undefined;
  const why =
    said ??
    (code === courierExit.retry
      ? { code: "PREEMPTED", message: "the attempt was asked to stop" }
      : {
          code: "COURIER_CRASHED",
          message: `the courier ended with ${signal === null ? `exit code ${code}` : signal}: ${(await tailOf(join(folder, "courier.log"), 300)) || "it wrote no log"}`,
        });
  return { phase: "failed", ...why, endedAt: Date.now() };
}

/** Whole or not at all. */
async function writeJson(path: string, value: unknown): Promise<void> {
  const part = `${path}.part`;
  await using file = await open(part, "w");
  await file.writeFile(JSON.stringify(value));
  await rename(part, path);
}

/** undefined when the file is missing or, being half-written by something that was killed, not what it should be. */
async function readJson<T extends z.ZodType>(path: string, schema: T): Promise<z.output<T> | undefined> {
  try {
    return schema.safeParse(JSON.parse(await readFile(path, "utf8"))).data;
  } catch (error) {
    if (error instanceof SyntaxError || ["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw explainSystemError(error, `reading ${path}`);
  }
}

/** The last characters of a file; empty when there is none. */
async function tailOf(path: string, characters = 2000): Promise<string> {
  try {
    await using file = await open(path);
    const { size } = await file.stat();
    const { buffer, bytesRead } = await file.read({
      position: Math.max(0, size - characters),
      buffer: Buffer.alloc(Math.min(size, characters)),
    });
    return buffer.toString("utf8", 0, bytesRead).trim();
  } catch {
    return "";
  }
}
