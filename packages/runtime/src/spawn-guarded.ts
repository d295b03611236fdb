/**
 * Child processes that never outlive their parent, not even one that is killed with SIGKILL.
 *
 *   parent ──pipe──► guard (sh)          the pipe closes when the parent is gone, however it went;
 *      └──────────► child = group leader    the guard then kills the child's whole process group
 *
 * Only needs `/bin/sh`. The guard stands beside the child and not in front of it, so pid, signals and exit code are the child's own.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { accessSync, closeSync, constants, openSync, readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import type { Writable } from "node:stream";
import { PermanentError } from "./errors.ts";

interface SpawnGuardedOptions {
  cwd?: string;
  /** The child's whole environment; it inherits nothing else. `PATH` in it finds the command. */
  env: Record<string, string | undefined>;
  /** A file to append to, or `inherit` or `ignore` (the default). */
  stdout?: string;
  /** The same; it may be the file of `stdout`. */
  stderr?: string;
}

export interface Exit {
  /** null when a signal ended the child. */
  code: number | null;
  signal: NodeJS.Signals | null;
}

export interface GuardedChild {
  /** Id of the child and of its process group. */
  readonly pid: number;
  /** Resolves when the child has ended and what was left of its process group was killed. Never rejects. */
  readonly exited: Promise<Exit>;
  /** SIGKILL goes to the whole process group; every other signal to the child alone, which ends its own children. */
  kill(signal: NodeJS.Signals): void;
}

/** Waits for the word that the guard stands, so that no moment is unguarded; a parent that dies before it closes descriptor 3. */
const startScript = 'read -r _ <&3 || exit 125; exec 3<&-; exec "$0" "$@"';
/** A line means that the child has ended; the end of the pipe means that the parent has. */
const guardScript = 'trap "" INT TERM HUP; read -r _ || kill -s KILL -- "-$1" 2>/dev/null';

/**
 * Starts a command that dies with this process.
 * @throws PermanentError COMMAND_NOT_FOUND when there is no such program, or it may not be run.
 */
export function spawnGuarded(command: string, args: readonly string[], options: SpawnGuardedOptions): GuardedChild {
  const { cwd, env, stdout = "ignore", stderr = "ignore" } = options;
  const program = findProgram(command, env.PATH ?? "");
  const opened: number[] = [];
  const sink = (target: string): number | "inherit" | "ignore" => {
    if (target === "inherit" || target === "ignore") return target;
    const fd = openSync(target, "a");
    opened.push(fd);
    return fd;
  };
  let child: ChildProcess;
  try {
    child = spawn("/bin/sh", ["-c", startScript, program, ...args], {
      cwd,
      env,
      detached: true, // leads its own process group
      stdio: ["ignore", sink(stdout), sink(stderr), "pipe"],
    });
  } finally {
    for (const fd of opened) closeSync(fd);
  }
  const { pid } = child;
  if (pid === undefined) {
    child.on("error", () => {});
    throw new PermanentError("COMMAND_NOT_FOUND", `cannot start ${command}${cwd === undefined ? "" : ` in ${cwd}`}: is the folder there?`);
  }
  const exited = new Promise<Exit>((resolve) => {
    child.once("exit", (code, signal) => resolve({ code, signal }));
  });

  // Its own group too: a signal to ours, such as Ctrl-C, must not take the guard away.
  const guard = spawn("/bin/sh", ["-c", guardScript, "loraline-guard", String(pid)], {
    detached: true,
    env: {},
    stdio: ["pipe", "ignore", "ignore"],
  });
  guard.on("error", () => killGroup(pid));
  guard.stdin.on("error", () => {}); // it was killed: the child is now unguarded, and found by its pid at the next start

  const go = child.stdio[3] as Writable;
  go.on("error", () => {}); // the child was killed before it could read
  go.end("go\n");

  let ended = false;
  return {
    pid,
    exited: exited.then((exit) => {
      ended = true;
      killGroup(pid);
      guard.stdin.end("ended\n");
      return exit;
    }),
    kill(signal) {
      if (ended) return;
      if (signal === "SIGKILL") killGroup(pid);
      else child.kill(signal);
    },
  };
}

/** SIGKILL to every process of a group; nothing happens when there is none of ours. */
export function killGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch (error) {
    if (!["ESRCH", "EPERM"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
  }
}

/** A signal to a process that need not be a child; nothing happens when it is gone. */
export function signalProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/**
 * What tells a process apart from a later one with the same pid: its start time, and the boot it belongs to.
 * Record it beside the pid. undefined: there is no such process (a zombie counts as none).
 */
export function processIdentity(pid: number): string | undefined {
  try {
    // The name, in parentheses, may hold anything; the fields behind it are: state, ppid, … and starttime as the 20th.
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? [];
    if (fields[0] === "Z" || fields[0] === "X") return undefined;
    return `${readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()}/${fields[19]}`;
  } catch (error) {
    if (["ENOENT", "ESRCH"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw error;
  }
}

function findProgram(command: string, path: string): string {
  const candidates = command.includes("/") ? [command] : path.split(delimiter).map((dir) => join(dir, command));
  for (const candidate of candidates) {
    try {
      accessSync(candidate, constants.X_OK);
      return candidate;
    } catch {
      // not this one
    }
  }
  const where = command.includes("/") ? "It is not there, or may not be run." : `It is in none of the folders of PATH (${path}).`;
  throw new PermanentError("COMMAND_NOT_FOUND", `cannot start ${command}. ${where} Run \`make setup\`.`, { param: command });
}
