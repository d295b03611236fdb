/**
 * Where the trainer runs. On one machine it is a child process of the courier; in a pod it has a container of its own, which the courier
 * asks over a socket (trainer-socket.ts), so that the trainer reads no credentials of the courier.
 */
import { access } from "node:fs/promises";
import { join } from "node:path";
import { explainSystemError, type Exit, type GuardedChild, PermanentError, spawnGuarded } from "@loraline/runtime";
import { readCgroupMemory } from "./cgroup-memory.ts";

export interface TrainerExit extends Exit {
  /** Set when the kernel killed one of its processes for the container's memory; `limit` in bytes, undefined where there is none. */
  outOfMemory?: { limit: number | undefined } | undefined;
}

export interface RunningTrainer extends Pick<GuardedChild, "pid" | "kill"> {
  /** Resolves when no process of the trainer is left. Never rejects. */
  readonly exited: Promise<TrainerExit>;
}

interface TrainerStart {
  /** Python's arguments before the trainer's path: none, or torchrun's. */
  launch: string[];
  /** The trainer's folder. */
  work: string;
  /** What it prints is added to this file. */
  logFile: string;
}

export interface TrainerHost {
  /** @throws PermanentError TRAINER_MISSING, PYTHON_MISSING; RetryLaterError TRAINER_UNREACHABLE */
  start(start: TrainerStart): Promise<RunningTrainer>;
}

/** The trainer's program: LORALINE_TRAINER, or the one of this package. */
export const trainerPathOf = (env: Record<string, string | undefined>): string =>
  env.LORALINE_TRAINER ?? join(import.meta.dirname, "../../trainer/train.py");

/** Call it before a trainer starts; what it returns adds to the trainer's end whether the kernel killed one of its processes for memory. */
export async function watchMemory(): Promise<(exit: Exit) => Promise<TrainerExit>> {
  const before = await readCgroupMemory();
  return async (exit) => {
    const after = await readCgroupMemory();
    const killed = after !== undefined && after.oomKills > (before?.oomKills ?? 0);
    return { ...exit, outOfMemory: killed ? { limit: after.limit } : undefined };
  };
}

/** Runs the trainer as a child of this process. `python` and `trainerPath` are paths of programs, `env` is the trainer's whole environment. */
export function createLocalTrainerHost(options: {
  python: string;
  trainerPath: string;
  env: Record<string, string | undefined>;
}): TrainerHost {
  const { python, trainerPath, env } = options;
  return {
    async start({ launch, work, logFile }) {
      await access(trainerPath).catch((error: unknown) => {
        throw new PermanentError("TRAINER_MISSING", `there is no trainer: ${trainerPath} is missing. Check LORALINE_TRAINER.`, {
          cause: error,
        });
      });
      const withMemory = await watchMemory();
      let child: GuardedChild;
      try {
        child = spawnGuarded(python, [...launch, trainerPath, work], { cwd: work, env, stdout: logFile, stderr: logFile });
      } catch (error) {
        if (!(error instanceof PermanentError)) throw explainSystemError(error, "starting the trainer");
        throw new PermanentError("PYTHON_MISSING", `the trainer's Python is missing: ${error.message} Check LORALINE_PYTHON.`, {
          cause: error,
        });
      }
      const { pid, kill } = child;
      return { pid, exited: child.exited.then(withMemory), kill: (signal) => kill(signal) };
    },
  };
}

/** Names of variables that may go from the courier's environment into that of a trainer that is its child. All others may be secrets. */
const forTrainer =
  /^(?:PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|TZ|TMPDIR|TMP|TEMP|LD_LIBRARY_PATH|LD_PRELOAD|XDG_CACHE_HOME|HF_HOME|(?:LC|PYTHON|VIRTUAL_ENV|CONDA|CUDA|CUBLAS|CUDNN|NVIDIA|NCCL|UCX|FI|GLOO|ROCM|ROCR|HIP|HSA|MIOPEN|TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH|TRITON|OMP|GOMP|KMP|MKL|ONEDNN|DNNL|ATEN|OPENBLAS|MALLOC|HF_HUB|TRANSFORMERS|TOKENIZERS|ACCELERATE|TRAINER)(?:_.*)?|PYTHON\w*)$/;

/** Of an environment what a trainer needs: the machine's and its libraries' settings, and `TRAINER_*`. */
export const trainerEnvironment = (env: Record<string, string | undefined>): Record<string, string | undefined> =>
  Object.fromEntries(Object.entries(env).filter(([name]) => forTrainer.test(name)));
