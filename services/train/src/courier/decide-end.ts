/** What the end of a trainer means for its run. Pure. */
import type { Problem, TrainerResult } from "@loraline/contracts";

export type End =
  | { kind: "trained"; result: TrainerResult & { adapter: NonNullable<TrainerResult["adapter"]> } }
  /** One of several nodes has done its part; the first one tells the result. */
  | { kind: "followed" }
  /** The run can never work. */
  | { kind: "failed"; problem: Problem }
  /** The next attempt may succeed. */
  | { kind: "retry"; code: string; message: string };

/** Failures that the trainer reports and that the next attempt may not meet. It would meet all others again. */
const passing: ReadonlySet<string> = new Set(["DISK_FULL", "OUT_OF_MEMORY", "DEVICE_MISSING", "INTERNAL"]);

/**
 * @param result - the trainer's `result.json`, when there is one that can be read.
 * @param tail - the end of its log.
 */
export function decideEnd(trainer: {
  exit: { code: number | null; signal: string | null };
  result: TrainerResult | undefined;
  tail: string;
  /** Whether the trainer was asked to stop. */
  stopped: boolean;
  /** Whether this is one of several nodes, and not the first. */
  follower?: boolean;
  /** Whether the kernel killed one of its processes for the container's memory; `limit` in bytes. */
  outOfMemory?: { limit: number | undefined } | undefined;
  /** Why the trainer was taken for hanging, and killed. */
  hangs?: string | undefined;
}): End {
  const { exit, result, tail, stopped, follower, outOfMemory, hangs } = trainer;
  if (follower === true && exit.code === 0 && !stopped) return { kind: "followed" };
  if (result?.status === "succeeded" && result.adapter !== null) return { kind: "trained", result: { ...result, adapter: result.adapter } };
  if (exit.code === 75 || result?.status === "preempted") {
    return {
      kind: "retry",
      code: "PREEMPTED",
      message: `the trainer was asked to stop and saved a checkpoint${result === undefined ? "" : ` at step ${result.steps}`}`,
    };
  }
  if (hangs !== undefined) return { kind: "retry", code: "TRAINER_HANGS", message: hangs };
  if (result?.status === "failed" && result.error !== null && !passing.has(result.error.code))
    return { kind: "failed", problem: result.error };
  // Before the errors of the trainer: processes that were not killed only report that another one is gone.
  if (outOfMemory !== undefined) {
    const limit = outOfMemory.limit === undefined ? "of the machine" : `of ${inUnits(outOfMemory.limit)}`;
    return {
      kind: "retry",
      code: "OUT_OF_MEMORY",
      message: `the kernel killed the trainer: the memory ${limit} was used up. Lower training.per_device_train_batch_size or tokenize.max_length, set training.gradient_checkpointing, or give attempts more memory (train.pods.memory).`,
    };
  }
  if (result?.status === "failed" && result.error !== null) {
    const { code, message } = result.error;
    return { kind: "retry", code, message };
  }
  // Only the first node saves checkpoints.
  if (stopped && follower === true) return { kind: "retry", code: "PREEMPTED", message: "the trainer was asked to stop" };
  if (stopped && exit.signal !== null) return beforeACheckpoint(exit);
  if (exit.signal !== null) {
    return {
      kind: "retry",
      code: "TRAINER_KILLED",
      message: `the trainer was killed with ${exit.signal}. If nobody did that, the machine ran out of memory: lower training.per_device_train_batch_size or tokenize.max_length, or set training.gradient_checkpointing.`,
    };
  }
  if (/No space left on device|ENOSPC/.test(tail)) {
    return { kind: "retry", code: "DISK_FULL", message: "the disk is full: the trainer could not write its files. Free space." };
  }
  if (stopped) return beforeACheckpoint(exit);
  return {
    kind: "retry",
    code: "TRAINER_CRASHED",
    message: `the trainer ended with exit code ${exit.code} and no result: ${lastLines(tail) || "it wrote no log"}`,
  };
}

const beforeACheckpoint = ({ code, signal }: { code: number | null; signal: string | null }): End => ({
  kind: "retry",
  code: "PREEMPTED",
  message: `the trainer was asked to stop and ended with ${signal ?? `exit code ${code}`} before it had saved a checkpoint`,
});

/** As Kubernetes writes quantities. */
const inUnits = (bytes: number): string => (bytes >= 2 ** 30 ? `${+(bytes / 2 ** 30).toFixed(1)}Gi` : `${Math.round(bytes / 2 ** 20)}Mi`);

const lastLines = (tail: string): string => {
  const lines = tail.trim().split("\n").slice(-3);
  return lines
    .map((line) => line.trim())
    .join(" | ")
    .slice(-500);
};
