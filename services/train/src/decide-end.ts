/** What the end of a trainer means for its run. Pure. */
import type { Problem, TrainerResult } from "@loraline/contracts";

export type End =
  | { kind: "trained"; result: TrainerResult & { adapter: NonNullable<TrainerResult["adapter"]> } }
  /** The run can never work. */
  | { kind: "failed"; problem: Problem }
  /** The next attempt may succeed. */
  | { kind: "retry"; code: string; message: string };

/** Failures that a trainer reports and that may be gone the next time; all others it would meet again. */
const passing: ReadonlySet<string> = new Set(["DISK_FULL", "OUT_OF_MEMORY", "INTERNAL"]);

/**
 * @param result - the trainer's `result.json`, when there is one that can be read.
 * @param tail - the end of its log.
 */
export function decideEnd(trainer: {
  exit: { code: number | null; signal: string | null };
  result: TrainerResult | undefined;
  tail: string;
  /** Whether it was asked to stop. */
  stopped: boolean;
}): End {
  const { exit, result, tail, stopped } = trainer;
  if (result?.status === "succeeded" && result.adapter !== null) return { kind: "trained", result: { ...result, adapter: result.adapter } };
  if (exit.code === 75 || result?.status === "preempted") {
    return {
      kind: "retry",
      code: "PREEMPTED",
      message: `the trainer was asked to stop and saved a checkpoint${result === undefined ? "" : ` at step ${result.steps}`}`,
    };
  }
  if (result?.status === "failed" && result.error !== null) {
    const { code, message } = result.error;
    return passing.has(code) ? { kind: "retry", code, message } : { kind: "failed", problem: result.error };
  }
  if (stopped && exit.signal !== null) {
    return {
      kind: "retry",
      code: "PREEMPTED",
      message: `the trainer was asked to stop and ended with ${exit.signal} before it had saved a checkpoint`,
    };
  }
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
  return {
    kind: "retry",
    code: "TRAINER_CRASHED",
    message: `the trainer ended with exit code ${exit.code} and no result: ${lastLines(tail) || "it wrote no log"}`,
  };
}

const lastLines = (tail: string): string => {
  const lines = tail.trim().split("\n").slice(-3);
  return lines
    .map((line) => line.trim())
    .join(" | ")
    .slice(-500);
};
