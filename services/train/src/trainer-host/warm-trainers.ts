/**
 * Processes that make a trainer quickly: each has imported all libraries and loaded one base for one tenant, and forks itself for each
 * attempt (trainer/warm.py). They belong to the process that launches attempts, because they outlive couriers. A courier that finds none
 * starts the trainer by itself.
 */
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { platform, tmpdir, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { type GuardedChild, type Log, spawnGuarded } from "@loraline/runtime";
import { z } from "zod";
import { trainerEnvironment, trainerPathOf } from "./trainer-host.ts";

export const warmEnv = {
  LORALINE_WARM_SECONDS: z.coerce
    .number()
    .int()
    .min(0)
    .default(300)
    .describe("How long a base stays in memory after a training, for the same tenant's next one. 0: not at all."),
};

/** Of the machine's memory, what a base that stays loaded may take at most. */
const shareOfMemory = 1 / 8;

export interface WarmTrainers extends AsyncDisposable {
  /**
   * Where a courier gets trainers of this tenant and base from, until it is disposed of. undefined: trainers on this machine, or of this
   * base, are started one by one.
   */
  take(of: { tenant: string; base: string }): Promise<({ socket: string } & Disposable) | undefined>;
}

interface Warm {
  child: GuardedChild;
  socket: string;
  users: number;
  idle?: NodeJS.Timeout;
}

export function createWarmTrainers(options: {
  /** As couriers get it: LORALINE_PYTHON, LORALINE_TRAINER and LORALINE_BASES_DIR are read from it. */
  env: Record<string, string | undefined>;
  idleMs: number;
  /** What the processes print is added to this file. */
  logFile: string;
  log: Log;
}): WarmTrainers {
  const { env, idleMs, logFile, log } = options;
  const program = join(dirname(trainerPathOf(env)), "warm.py");
  // A GPU's driver cannot be forked, and other systems do not end a child with its parent.
  const possible = idleMs > 0 && platform() === "linux" && !existsSync("/dev/nvidiactl") && !existsSync("/dev/kfd") && existsSync(program);
  const warm = new Map<string, Warm>();
  let folder: Promise<string> | undefined;
  let made = 0;

  const start = async (key: string, base: string): Promise<Warm> => {
    // Not in the state directory: a socket's path has at most 107 characters.
    folder ??= mkdtemp(join(tmpdir(), "loraline-warm-"));
    const socket = join(await folder, String(++made));
    const child = spawnGuarded(env.LORALINE_PYTHON ?? "python3", [program, socket, base], {
      env: trainerEnvironment(env),
      stdout: logFile,
      stderr: logFile,
    });
    const started: Warm = { child, socket, users: 0 };
    void child.exited.then(async (exit) => {
      if (warm.get(key) === started) warm.delete(key);
      log.info({ pid: child.pid, exit, key }, "warm trainer ended");
      await rm(socket, { force: true });
    });
    log.info({ pid: child.pid, key }, "warm trainer started");
    return started;
  };
  const end = (key: string, one: Warm): void => {
    clearTimeout(one.idle);
    warm.delete(key);
    one.child.kill("SIGKILL");
  };

  return {
    async take({ tenant, base }) {
      const path = join(env.LORALINE_BASES_DIR ?? "", base);
      if (!possible || (await sizeOf(path)) > totalmem() * shareOfMemory) return undefined;
      const key = JSON.stringify([tenant, base]);
      for (const [other, one] of warm) if (other !== key && one.users === 0) end(other, one);
      let one = warm.get(key);
      if (one === undefined) {
        try {
          one = await start(key, path);
        } catch (error) {
          log.warn({ err: error, key }, "no warm trainer");
          return undefined;
        }
        // Another attempt may have come first, while the folder was made.
        const first = warm.get(key);
        if (first !== undefined) one.child.kill("SIGKILL");
        one = first ?? one;
        warm.set(key, one);
      }
      const taken = one;
      taken.users++;
      clearTimeout(taken.idle);
      return {
        socket: taken.socket,
        [Symbol.dispose]() {
          taken.users--;
          if (taken.users > 0) return;
          taken.idle = setTimeout(() => warm.get(key) === taken && end(key, taken), idleMs).unref();
        },
      };
    },

    async [Symbol.asyncDispose]() {
      const ended = [...warm].map(async ([key, one]) => {
        end(key, one);
        await one.child.exited;
      });
      await Promise.all(ended);
      if (folder !== undefined) await rm(await folder, { recursive: true, force: true });
    },
  };
}

/** Bytes of the files of a folder; infinite when there is none. */
async function sizeOf(folder: string): Promise<number> {
  try {
    const sizes = await Promise.all((await readdir(folder)).map(async (name) => (await stat(join(folder, name))).size));
    return sizes.reduce((sum, size) => sum + size, 0);
  } catch {
    return Infinity;
  }
}
