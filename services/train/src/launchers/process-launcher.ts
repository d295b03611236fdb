/** Attempts as child processes of this one, each in `<dir>/<name>/`; see `attempt-files.ts` for what is in there. */
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
import { type ExitRecord, exitRecord, outcomeRecord, processRecord, readJson, tailOf, writeJson } from "../attempt/attempt-files.ts";
import { attemptSpec } from "../attempt/attempt-spec.ts";
import { courierExit } from "../attempt/courier-exit.ts";
import type { WarmTrainers } from "../trainer-host/warm-trainers.ts";
import type { Attempt, AttemptPhase, Launcher } from "./launcher.ts";

export interface ProcessLauncherOptions {
  /** Folder of all attempts; created. Belongs to this launcher alone. */
  dir: string;
  /** Attempts at once: the number of devices. Default 1. */
  slots?: number;
  /** Program and arguments; the attempt's folder is put behind them. See `courierCommand`. */
  courierCommand: readonly [string, ...string[]];
  /** The courier's whole environment: see `courier-main.ts`. */
  env: Record<string, string | undefined>;
  /** Where couriers get trainers from that need not start; default: each starts its own. */
  warm?: Pick<WarmTrainers, "take"> | undefined;
  log: Log;
  /** How long a courier may take from SIGTERM to SIGKILL; it saves a checkpoint in this time. Default 30 s. */
  stopGraceMs?: number;
}

/** Command of the courier in this package, run by `node` (a path): from sources, or from what was built of them. */
export const courierCommand = (node: string): [string, ...string[]] =>
  import.meta.filename.endsWith(".ts")
    ? [node, "--conditions=@loraline/source", join(import.meta.dirname, "../courier-main.ts")]
    : [node, join(import.meta.dirname, "../courier-main.js")];

interface Known {
  who: { tenant: string; runId: string; attempt: number; name: string };
  state: AttemptPhase;
  child?: GuardedChild;
  /** Resolves when `state` says how the child ended. */
  ended?: Promise<void>;
  stopping?: NodeJS.Timeout;
}

/**
 * Opens the folder: attempts that an earlier process left are ended if they still run, because nothing watches them any more,
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
  const changed = ({ who: { tenant, runId } }: Known): void => {
    for (const listener of listeners) listener({ tenant, runId });
  };

  const keepEnd = async (attempt: Known, exit: Exit): Promise<void> => {
    clearTimeout(attempt.stopping);
    const folder = join(dir, attempt.who.name);
    const state = await stateAfter(folder, exit, attempt.stopping !== undefined);
    if (state.phase === "failed") {
      const tail = await tailOf(join(folder, "courier.log"));
      log.warn({ ...attempt.who, exit, code: state.code, reason: state.message, tail }, "attempt ended without a result");
    }
    // If it cannot be written (a full disk), the attempt is ATTEMPT_LOST after a restart, which leads to the same next step.
    await writeJson(join(folder, "exit.json"), state).catch((error: unknown) => log.error({ err: error, ...attempt.who }, "exit not kept"));
    attempt.state = state;
    changed(attempt);
  };

  const stop = (attempt: Known): void => {
    if (attempt.stopping !== undefined) return;
    attempt.child?.kill("SIGTERM");
    attempt.stopping = setTimeout(() => attempt.child?.kill("SIGKILL"), stopGraceMs);
  };

  return {
    async launch(request) {
      const spec = attemptSpec.parse(request);
      if ((spec.runSpec.nodes ?? 1) > 1) {
        throw new PermanentError(
          "NODES_UNSUPPORTED",
          "nodes: several machines need Kubernetes with JobSet; this installation trains on its own machine.",
          {
            param: "nodes",
          },
        );
      }
      const { tenant, runId, attempt, name } = spec;
      const same = known.get(name)?.who;
      if (same !== undefined && same.tenant !== tenant) {
        throw new PermanentError(
          "RUN_ID_TAKEN",
          `the run id ${runId} is in use by another tenant. Request the run again under a new ULID.`,
        );
      }
      if (same !== undefined) return true;
      if (closing || running().length >= slots) return false;
      const entry: Known = { who: { tenant, runId, attempt, name }, state: { phase: "running" } };
      known.set(name, entry); // takes the slot before anything is awaited
      const folder = join(dir, name);
      let warm: Awaited<ReturnType<WarmTrainers["take"]>>;
      try {
        await mkdir(folder, { recursive: true });
        await writeJson(join(folder, "attempt.json"), spec);
        const logFile = join(folder, "courier.log");
        warm = await options.warm?.take({ tenant, base: spec.runSpec.base });
        if (closing) throw new RetryLaterError("SHUTTING_DOWN", 1000, "the launcher is shutting down");
        const child = spawnGuarded(command[0], [...command.slice(1), folder], {
          cwd: folder,
          env: { ...env, COURIER_WARM_SOCKET: warm?.socket },
          stdout: logFile,
          stderr: logFile,
        });
        entry.child = child;
        entry.ended = child.exited.then((exit) => {
          warm?.[Symbol.dispose]();
          return keepEnd(entry, exit);
        });
        await writeJson(join(folder, "process.json"), { pid: child.pid, identity: processIdentity(child.pid) ?? "gone" });
        log.info({ tenant, runId, attempt, name, pid: child.pid, resumeStep: spec.resume?.step }, "attempt started");
        return true;
      } catch (error) {
        if (entry.child === undefined) {
          warm?.[Symbol.dispose]();
          known.delete(name);
          await rm(folder, { recursive: true, force: true });
        } else {
          entry.child.kill("SIGKILL"); // its pid is not on disk, so that nothing could find and end it later
        }
        throw explainSystemError(error, `starting ${name} in ${folder}`);
      }
    },

    async observe() {
      return [...known.values()].map(({ who, state }): Attempt => ({ ...who, ...state }));
    },

    async attemptsOf({ tenant, runId }) {
      return [...known.values()].flatMap(({ who, state }) =>
        who.tenant === tenant && who.runId === runId ? [{ ...who, ...state } satisfies Attempt] : [],
      );
    },

    async slots() {
      return { total: slots, free: closing ? 0 : Math.max(0, slots - running().length) };
    },

    sizeOf: () => ({ slots: 1, gpus: 1 }),

    async stop(name) {
      const attempt = known.get(name);
      if (attempt?.state.phase === "running") stop(attempt);
    },

    async remove(name) {
      const attempt = known.get(name);
      if (attempt === undefined || attempt.state.phase === "running") return;
      const folder = join(dir, name);
      await rm(join(folder, "attempt.json"), { force: true }); // first: without it the rest is litter, cleared at the next start
      await rm(folder, { recursive: true, force: true });
      known.delete(name);
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
      await Promise.all(attempts.map(async ({ ended }) => ended));
    },
  };
}

/** What an earlier process left in one folder; undefined: nothing that counts as an attempt. */
async function adopt(folder: string, log: Log): Promise<Known | undefined> {
  const spec = await readJson(join(folder, "attempt.json"), attemptSpec);
  if (spec === undefined) return undefined;
  const { tenant, runId, attempt, name } = spec;
  const entry = { who: { tenant, runId, attempt, name } };
  const exit = await readJson(join(folder, "exit.json"), exitRecord);
  if (exit !== undefined) return { ...entry, state: exit };
  // The courier first: it would take the trainer's end for a failure of the run.
  for (const file of ["process.json", "trainer.json"]) {
    const record = await readJson(join(folder, file), processRecord);
    if (record === undefined || processIdentity(record.pid) !== record.identity) continue;
    log.warn({ ...entry.who, pid: record.pid, file }, "ending a process that outlived its parent");
    killGroup(record.pid);
    while (processIdentity(record.pid) === record.identity) await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const message = "the process that ran this attempt was killed; the next attempt goes on from the last checkpoint";
  return { ...entry, state: { phase: "failed", code: "ATTEMPT_LOST", message, endedAt: Date.now() } };
}

async function stateAfter(folder: string, { code, signal }: Exit, stopped: boolean): Promise<ExitRecord> {
  if (code === courierExit.trained || code === courierExit.failed) return { phase: "concluded" };
  const outcome = code === courierExit.retry ? await readJson(join(folder, "outcome.json"), outcomeRecord) : undefined;
  const why =
    outcome ??
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
