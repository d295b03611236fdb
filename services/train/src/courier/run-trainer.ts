/** The trainer, run once in its folder: started, followed, its checkpoints stored meanwhile, its end judged. */
import { dirname, join } from "node:path";
import { runStarted } from "@loraline/contracts";
import { processIdentity } from "@loraline/runtime";
import { writeJson } from "../attempt/attempt-files.ts";
import type { AttemptSpec } from "../attempt/attempt-spec.ts";
import { tailOfTrainerFile } from "../attempt/trainer-files.ts";
import { trainMethodOf } from "../train-methods.ts";
import type { RunningTrainer } from "../trainer-host/trainer-host.ts";
import { type AttemptContext, eventKeyOf, isCancelRequested, isFirstNode } from "./attempt-context.ts";
import { decideEnd, type End } from "./decide-end.ts";
import type { Inputs } from "./fetch-inputs.ts";
import { followTrainer } from "./follow-trainer.ts";
import { createProgressRelay } from "./relay-progress.ts";
import { createSendAhead, type SentAhead } from "./send-ahead.ts";
import { launchArgs } from "./trainer-command.ts";
import { createCheckpointUploads } from "./upload-checkpoints.ts";

const defaultHangMs = 30 * 60_000;

/** @returns how it ended, when its last optimizer step ended (ISO 8601), and what was sent ahead. */
export async function runTrainer(
  attempt: AttemptContext,
  { tokens, resumedFromStep, resumeLost }: Inputs,
): Promise<{ end: End; lastStepAt: string; ahead: SentAhead | undefined }> {
  const { spec, objects, outbox, trainerTelemetry, traceparent, log, work, stop, running, hangMs = defaultHangMs } = attempt;
  const trainer = await startTrainer(attempt);
  running.trainer = trainer;
  const fromStep = resumedFromStep ?? 0;
  let warnedOf: string | undefined;
  const uploads = createCheckpointUploads({
    work,
    spec,
    tokens,
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
  const ahead = createSendAhead(attempt, tokens);
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
    onAdapter: isFirstNode(attempt) ? ahead.begin : () => {},
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
  const tail = await tailOfTrainerFile(logFileOf(work), dirname(work));
  const follower = !isFirstNode(attempt);
  const end = decideEnd({
    exit: exit ?? { code: 0, signal: null },
    result,
    tail,
    stopped: stop.aborted,
    follower,
    outOfMemory: exit?.outOfMemory,
    hangs,
  });
  relay.end(end.kind === "retry" ? end.code : end.kind === "failed" ? end.problem.code : undefined);
  return { end, lastStepAt: relay.lastStepAt(), ahead: await ahead.recorded() };
}

/** Whether the trainer begins only when the trainers of all nodes have met. Another node may wait for its device, for as long as it takes. */
const meetsOtherNodes = ({ machine, runSpec }: AttemptSpec): boolean => machine.nodes > 1 && trainMethodOf(runSpec).distributed;

const logFileOf = (work: string): string => join(dirname(work), "trainer.log");

async function startTrainer(attempt: AttemptContext): Promise<RunningTrainer> {
  const { spec, node = 0, dir, work, trainerHost, stop, log } = attempt;
  const trainer = await trainerHost.start({ launch: launchArgs(spec, node), work, logFile: logFileOf(work) });
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
  // In a pod the pid is another container's, and the record is not read.
  await writeJson(join(dir, "trainer.json"), { pid: trainer.pid, identity: processIdentity(trainer.pid) ?? "gone" });
  log.info({ pid: trainer.pid }, "trainer started");
  return trainer;
}
