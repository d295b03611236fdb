/** The trainer, run once in its folder: started, followed, its checkpoints stored meanwhile, its end judged. */
import { access } from "node:fs/promises";
import { join } from "node:path";
import { runStarted } from "@loraline/contracts";
import { explainSystemError, type GuardedChild, PermanentError, processIdentity, spawnGuarded } from "@loraline/runtime";
import { tailOf, writeJson } from "../attempt/attempt-files.ts";
import type { AttemptSpec } from "../attempt/attempt-spec.ts";
import { trainMethodOf } from "../train-methods.ts";
import { type AttemptContext, eventKeyOf, isCancelRequested, isFirstNode } from "./attempt-context.ts";
import { readCgroupMemory } from "./cgroup-memory.ts";
import { decideEnd, type End } from "./decide-end.ts";
import type { Inputs } from "./fetch-inputs.ts";
import { followTrainer } from "./follow-trainer.ts";
import { createProgressRelay } from "./relay-progress.ts";
import { trainerArgs } from "./trainer-command.ts";
import { createCheckpointUploads } from "./upload-checkpoints.ts";

const defaultHangMs = 30 * 60_000;

/** @returns how it ended, and when its last optimizer step ended (ISO 8601). */
export async function runTrainer(
  attempt: AttemptContext,
  { resumedFromStep, resumeLost }: Pick<Inputs, "resumedFromStep" | "resumeLost">,
): Promise<{ end: End; lastStepAt: string }> {
  const { spec, objects, outbox, trainerTelemetry, traceparent, log, work, stop, running, hangMs = defaultHangMs } = attempt;
  const trainer = await startTrainer(attempt);
  running.trainer = trainer;
  const memoryBefore = await readCgroupMemory();
  const fromStep = resumedFromStep ?? 0;
  let warnedOf: string | undefined;
  const uploads = createCheckpointUploads({
    dir: join(work, "checkpoints"),
    tenant: spec.tenant,
    attempt: spec.attempt,
    fromStep,
    objects,
    outbox,
    log,
    // A warning, and not `run.waiting`: training goes on meanwhile, so the run does not wait.
    onWait(reason) {
      if (reason !== null && reason.code !== warnedOf) relay.warn(reason);
      warnedOf = reason?.code;
    },
  });
  running.uploads = uploads;
  const relay = createProgressRelay({
    runId: spec.runId,
    attempt: spec.attempt,
    fromStep,
    eventKey: eventKeyOf(attempt),
    outbox,
    trainerTelemetry,
    traceparent,
    log,
    onCheckpoint: uploads.add,
  });
  if (resumeLost !== null) relay.warn({ code: "RESUME_LOST", message: `training again from the start: ${resumeLost}` });

  const tellStarted = (): void =>
    void outbox.send(runStarted, { attempt: spec.attempt, job: spec.name, resumedFromStep }, eventKeyOf(attempt));
  const waitsForNodes = meetsOtherNodes(spec);
  if (!waitsForNodes) tellStarted();
  const { exit, result, hangs } = await followTrainer({
    work,
    trainer,
    onLine: relay.line,
    where: relay.where,
    ...(waitsForNodes ? { onNodesMet: tellStarted } : {}),
    // Only the first node's trainer writes progress. When that node gives the attempt up, the others are ended with it.
    hangMs: isFirstNode(attempt) ? hangMs : Infinity,
    log,
  });
  const tail = await tailOf(join(attempt.dir, "trainer.log"));
  const memory = await readCgroupMemory();
  const outOfMemory = memory !== undefined && memory.oomKills > (memoryBefore?.oomKills ?? 0) ? { limit: memory.limit } : undefined;
  const follower = !isFirstNode(attempt);
  const end = decideEnd({ exit: exit ?? { code: 0, signal: null }, result, tail, stopped: stop.aborted, follower, outOfMemory, hangs });
  relay.end(end.kind === "retry" ? end.code : end.kind === "failed" ? end.problem.code : undefined);
  return { end, lastStepAt: relay.lastStepAt() };
}

/** Whether the trainer begins only when the trainers of all nodes have met. Another node may wait for its device, for as long as it takes. */
const meetsOtherNodes = ({ machine, runSpec }: AttemptSpec): boolean => machine.nodes > 1 && trainMethodOf(runSpec).distributed;

async function startTrainer(attempt: AttemptContext): Promise<GuardedChild> {
  const { spec, node = 0, dir, work, python, trainerPath, trainerEnv, stop, log } = attempt;
  await access(trainerPath).catch((error: unknown) => {
    throw new PermanentError("TRAINER_MISSING", `there is no trainer: ${trainerPath} is missing. Check LORALINE_TRAINER.`, {
      cause: error,
    });
  });
  let trainer: GuardedChild;
  try {
    const logFile = join(dir, "trainer.log");
    trainer = spawnGuarded(python, trainerArgs(spec, { trainerPath, work, node }), {
      cwd: work,
      env: trainerEnv,
      stdout: logFile,
      stderr: logFile,
    });
  } catch (error) {
    if (!(error instanceof PermanentError)) throw explainSystemError(error, "starting the trainer");
    throw new PermanentError("PYTHON_MISSING", `the trainer's Python is missing: ${error.message} Check LORALINE_PYTHON.`, {
      cause: error,
    });
  }
  const onStop = (): void => {
    trainer.kill("SIGTERM");
    // The checkpoint of a cancelled run is of no use.
    isCancelRequested(attempt).then(
      (cancelled) => cancelled && trainer.kill("SIGKILL"),
      (error: unknown) => log.warn({ err: error }, "unknown whether the run was cancelled; saving a checkpoint"),
    );
  };
  if (stop.aborted) onStop();
  else stop.addEventListener("abort", onStop, { once: true });
  void trainer.exited.then(() => stop.removeEventListener("abort", onStop));
  await writeJson(join(dir, "trainer.json"), { pid: trainer.pid, identity: processIdentity(trainer.pid) ?? "gone" });
  log.info({ pid: trainer.pid }, "trainer started");
  return trainer;
}
