/** Attempts as child processes of this one, each in `<dir>/<jobName>/`; see `job-files.ts` for what is in there. */
import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import {
  type Exit,
  explainSystemError,
  type GuardedChild,
  killGroup,
  type Log,
  PermanentError,
  processIdentity,
  RetryLaterError,
  spawnGuarded,
} from "@loraline/runtime";
import { type ExitRecord, exitRecord, outcomeRecord, processRecord, readJson, tailOf, writeJson } from "../courier/job-files.ts";
import { type Attempt, type AttemptPhase, courierExit, type Launcher, trainJob } from "./launcher.ts";

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

/** Command of the courier in this package, run by `node` (a path): from sources, or from what was built of them. */
export const courierCommand = (node: string): [string, ...string[]] =>
  import.meta.filename.endsWith(".ts")
    ? [node, "--conditions=@loraline/source", join(import.meta.dirname, "../courier-main.ts")]
    : [node, join(import.meta.dirname, "../courier-main.js")];

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
  const { dir, slots = 1, courierCommand: command, stopGraceMs = 30_000 } = options;
  const log = options.log.child({ launcher: "process" });
  const known = new Map<string, Known>();
  const listeners = new Set<(run: { tenant: string; runId: string }) => void>();
  let closing = false;

  await mkdir(dir, { recursive: true });
  // Halves what the courier's start costs: 0.3 s instead of 0.6 s of CPU.
  const env = { NODE_COMPILE_CACHE: join(dir, ".compile-cache"), ...options.env };
  for (const name of await readdir(dir)) {
    if (name.startsWith(".")) continue;
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
    const state = await stateAfter(folder, exit, attempt.stopping !== undefined);
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
      if ((job.spec.nodes ?? 1) > 1) {
        throw new PermanentError(
          "NODES_UNSUPPORTED",
          "nodes: several machines need Kubernetes with JobSet; this line trains on its own machine.",
          {
            param: "nodes",
          },
        );
      }
      const { tenant, runId, attempt, jobName } = job;
      const same = known.get(jobName)?.job;
      if (same !== undefined && same.tenant !== tenant) {
        throw new PermanentError(
          "RUN_ID_TAKEN",
          `the run id ${runId} is in use by another tenant. Request the run again under a new ULID.`,
        );
      }
      if (same !== undefined) return true;
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

async function stateAfter(folder: string, { code, signal }: Exit, stopped: boolean): Promise<ExitRecord> {
  if (code === courierExit.trained || code === courierExit.failed) return { phase: "settled" };
  const said = code === courierExit.retry ? await readJson(join(folder, "outcome.json"), outcomeRecord) : undefined;
  const why =
    said ??
    (code === courierExit.retry || (stopped && signal !== null)
      ? { code: "PREEMPTED", message: "the attempt was asked to stop" }
      : {
          code: "COURIER_CRASHED",
          message: `the courier ended with ${signal === null ? `exit code ${code}` : signal}: ${lastWords(await tailOf(join(folder, "courier.log")))}`,
        });
  return { phase: "failed", ...why, endedAt: Date.now() };
}

/** What the last line of a log says; most of ours are JSON. */
function lastWords(tail: string): string {
  const line = tail.split("\n").at(-1) ?? "";
  try {
    return String((JSON.parse(line) as { msg: unknown }).msg);
  } catch {
    return line.slice(-300) || "it wrote no log";
  }
}
