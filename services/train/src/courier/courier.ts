/**
 * The main process of an attempt: fetches inputs, runs the trainer, publishes its progress, stores what it makes.
 *
 *   fetch ──► trainer ──► result ──► adapter files ──► manifest ──► evidence ──► run.trained ──► exit 0
 *     │          │ checkpoints are stored meanwhile, and the adapter while it is evaluated
 *     │          ├── can never work ────────────────────────────────────────────► run.failed ──► exit 10
 *     └──────────┴── stopped, killed, full disk ──► outcome.json ──► checkpoints ──► run.attempt-ended ──► exit 75
 *
 * It may die on any line: the next attempt does it again, to the same digests and message ids.
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Bus } from "@loraline/bus";
import { type EventAddress, runCancelled, runCheckpointed, runFailed, runRejected, runTrained } from "@loraline/contracts";
import { keepTrying, PermanentError, problemOf, RetryLaterError, traceparentOf } from "@loraline/runtime";
import type { AttemptSpec } from "../attempt/attempt-spec.ts";
import { courierExit } from "../attempt/courier-exit.ts";
import { type AttemptContext, type CourierDeps, isFirstNode, waitTeller } from "./attempt-context.ts";
import { conclude } from "./conclude.ts";
import type { End } from "./decide-end.ts";
import { fetchInputs } from "./fetch-inputs.ts";
import { createOutbox, silentOutbox } from "./outbox.ts";
import { runTrainer } from "./run-trainer.ts";
import { storeAdapter } from "./store-adapter.ts";

/** Runs one attempt to its end; returns the exit code (`courierExit`). */
export async function runCourier(deps: CourierDeps): Promise<number> {
  const { spec, bus, telemetry } = deps;
  const at = { tenant: spec.tenant, id: spec.runId };
  const log = deps.log.child({ runId: spec.runId, tenant: spec.tenant, attempt: spec.attempt });
  const attributes = { "loraline.run": spec.runId, "loraline.attempt": spec.attempt };
  return telemetry.span("train", { parent: spec.traceparent, attributes }, async (span) => {
    if (await keepTrying("ask whether the run is over", () => isOver(bus, at), { log })) {
      log.warn("the run is over already; nothing to do");
      return courierExit.trained;
    }
    const traceparent = traceparentOf(span);
    const outbox = isFirstNode(deps) ? createOutbox({ bus, at, traceparent, log }) : silentOutbox;
    const resume = await keepTrying("ask for the newest checkpoint", () => newestCheckpoint(bus, at, spec.resume), { log });
    const attempt: AttemptContext = { ...deps, spec: { ...spec, resume }, log, at, outbox, traceparent, running: {} };
    const end = await runAttempt(attempt).catch((error: unknown) => {
      log.error({ err: error }, "the attempt failed");
      return endOfError(error);
    });
    span.setAttribute("loraline.end", end.kind === "retry" ? end.code : end.kind);
    const code = await conclude(attempt, end);
    await outbox.drained();
    return code;
  });
}

/** Whether the run has ended. An earlier courier may have died right after it published that. */
async function isOver(bus: Bus, at: EventAddress): Promise<boolean> {
  const ends = await Promise.all([runTrained, runFailed, runCancelled, runRejected].map((event) => bus.last(event, at)));
  return ends.some((end) => end !== undefined);
}

/** The spec names the newest checkpoint at its launch. A Job that Kueue suspended and resumed since may have stored newer ones. */
async function newestCheckpoint(bus: Bus, at: EventAddress, known: AttemptSpec["resume"]): Promise<AttemptSpec["resume"]> {
  const last = await bus.last(runCheckpointed, at);
  if (last === undefined) return known;
  const { step, checkpoint } = last.data;
  return step > (known?.step ?? 0) ? { step, checkpoint } : known;
}

const stoppedEarly = { code: "PREEMPTED", message: "the attempt was asked to stop before it began" };

async function runAttempt(attempt: AttemptContext): Promise<End> {
  const { telemetry, work, stop } = attempt;
  // Nothing is lost yet by stopping.
  const givenUp = async () => (stop.aborted ? stoppedEarly : undefined);
  const patience = { log: attempt.log, givenUp, onWait: waitTeller(attempt, "fetch") };
  const inputs = await telemetry.span("fetch inputs", {}, () => fetchInputs({ ...attempt, patience }));
  if (stop.aborted) return { kind: "retry", ...stoppedEarly };
  let { end, lastStepAt, ahead } = await runTrainer(attempt, inputs);
  if (end.kind === "failed" && end.problem.code === "RESUME_INVALID" && inputs.resumedFromStep !== null) {
    // As after an update of the trainer. Training again from the start is slower, and better than a run that can never go on.
    for (const name of ["resume", "checkpoints", "published", "progress.jsonl", "adapter.json", "result.json"]) {
      await rm(join(work, name), { recursive: true, force: true });
    }
    ({ end, lastStepAt, ahead } = await runTrainer(attempt, {
      tokens: inputs.tokens,
      resumedFromStep: null,
      resumeLost: end.problem.message,
    }));
  }
  if (end.kind === "trained" && isFirstNode(attempt)) await storeAdapter(attempt, inputs.tokens, { result: end.result, lastStepAt, ahead });
  return end;
}

/** What an error of the courier itself means for its run. */
function endOfError(error: unknown): End {
  const { code, message, param } = problemOf(error);
  // A full disk is this attempt's; the next attempt may have more room.
  if (error instanceof PermanentError && code !== "DISK_FULL") return { kind: "failed", problem: { code, message, param } };
  if (error instanceof RetryLaterError) return { kind: "retry", code, message };
  return { kind: "retry", code: error instanceof PermanentError ? code : "COURIER_FAILED", message };
}
