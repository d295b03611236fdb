/** The end of an attempt: its trainer is ended, its last checkpoints are stored, its outcome is published. */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { runAttemptEnded, runFailed } from "@loraline/contracts";
import { writeJson } from "../attempt/attempt-files.ts";
import { courierExit } from "../attempt/courier-exit.ts";
import { type AttemptContext, isCancelRequested, isFirstNode } from "./attempt-context.ts";
import type { End } from "./decide-end.ts";

/** A trainer that has written its result gets so long to end. */
const lingerMs = 20_000;
/** Checkpoints of a finished run that are still on their way get so long. */
const lastUploadsMs = 60_000;

/** @returns the exit code of the courier (`courierExit`). */
export async function conclude(attempt: AttemptContext, end: End): Promise<number> {
  await endTrainer(attempt, end);
  switch (end.kind) {
    case "trained":
      // Nothing resumes from them any more; the device is worth more than to wait long for them.
      await Promise.race([attempt.running.uploads?.done(), new Promise((resolve) => setTimeout(resolve, lastUploadsMs))]);
      return courierExit.trained;
    case "followed":
      return courierExit.trained;
    case "failed":
      return failRun(attempt, end);
    case "retry":
      return endForRetry(attempt, end);
  }
}

async function endTrainer({ running: { trainer } }: AttemptContext, { kind }: End): Promise<void> {
  if (trainer === undefined) return;
  const timer = setTimeout(() => trainer.kill("SIGKILL"), kind === "trained" || kind === "followed" ? lingerMs : 0);
  await trainer.exited;
  clearTimeout(timer);
}

async function failRun(attempt: AttemptContext, { problem }: Extract<End, { kind: "failed" }>): Promise<number> {
  const { code, message, param } = problem;
  if (!isFirstNode(attempt)) {
    // Only the first node ends a run. For the others, the problem is the reason why the attempt ended.
    await writeJson(join(attempt.dir, "outcome.json"), { code, message });
    return courierExit.retry;
  }
  await attempt.outbox.send(runFailed, { code, message, param, attempt: attempt.spec.attempt });
  return courierExit.failed;
}

async function endForRetry(attempt: AttemptContext, end: Extract<End, { kind: "retry" }>): Promise<number> {
  const { spec, dir, work, outbox, running, stop, log } = attempt;
  const { uploads } = running;
  const cancelled = stop.aborted && (await isCancelRequested(attempt).catch(() => false));
  const { code, message } = cancelled ? { code: "CANCELLED", message: "the run was cancelled" } : end;
  log.warn({ code }, message);
  if (!cancelled) {
    await uploads?.addLeftovers();
    await uploads?.done();
  }
  // Makes room for outcome.json if the disk is full; nothing in the folder is needed any more.
  await rm(work, { recursive: true, force: true }).catch((error: unknown) =>
    log.warn({ err: error }, "the trainer's folder is not removed"),
  );
  await writeJson(join(dir, "outcome.json"), { code, message }).catch((error: unknown) => log.error({ err: error }, "outcome not kept"));
  // The controller sees why the cluster ended the pod or the trainer's container. Of several nodes it sees which one ended first; the other nodes only see that one is gone.
  const controllerTells =
    attempt.controllerTellsStop === true && (code === "PREEMPTED" || code === "TRAINER_KILLED" || spec.machine.nodes > 1);
  if (!cancelled && !controllerTells) {
    const step = uploads?.newestStep() ?? spec.resume?.step ?? 0;
    await outbox.send(runAttemptEnded, { attempt: spec.attempt, step, code, message }, `attempt-${spec.attempt}`);
  }
  return courierExit.retry;
}
