/**
 * The main process of an attempt: fetches inputs, runs the trainer, tells what it does, stores what it makes.
 *
 *   fetch ──► trainer ──► result ──► adapter files ──► manifest ──► evidence ──► run.trained ──► exit 0
 *     │          │ checkpoints are stored meanwhile
 *     │          ├── can never work ────────────────────────────────────────────► run.failed ──► exit 10
 *     └──────────┴── stopped, killed, full disk ──► outcome.json ──► checkpoints ──► run.attempt-ended ──► exit 75
 *
 * It may die on any line: the next attempt does it again, to the same digests and message ids.
 */
import { watch } from "node:fs";
import { access, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Bus } from "@loraline/bus";
import {
  type EventAddress,
  type FileRef,
  type ProgressLine,
  progressLine,
  runCancelled,
  runCancelRequested,
  runCheckpointed,
  runFailed,
  runAttemptEnded,
  runProgress,
  runRejected,
  runStarted,
  runTrained,
  runWaiting,
  type TrainerResult,
  trainerResult,
} from "@loraline/contracts";
import { type Objects, putJson } from "@loraline/objects";
import {
  type Exit,
  explainSystemError,
  type GuardedChild,
  type Log,
  PermanentError,
  problemOf,
  processIdentity,
  RetryLaterError,
  spawnGuarded,
  type Telemetry,
  traceparentOf,
} from "@loraline/runtime";
import { adapterManifestFor, evidenceFor } from "./adapter-manifest.ts";
import { readCgroupMemory } from "./cgroup-memory.ts";
import { decideEnd, type End } from "./decide-end.ts";
import { fetchInputs, type Inputs } from "./fetch-inputs.ts";
import { followLines } from "./follow-lines.ts";
import { readJson, tailOf, writeJson } from "./job-files.ts";
import { courierExit, type TrainJob } from "../launchers/launcher.ts";
import { trainMethodOf } from "../train-methods.ts";
import { createOutbox, type Outbox, type Patience, patiently, silentOutbox } from "./outbox.ts";
import { trainerArgs } from "./trainer-command.ts";
import { type CheckpointUploads, createCheckpointUploads } from "./upload-checkpoints.ts";

export interface CourierDeps {
  job: TrainJob;
  /** The attempt's folder; see `job-files.ts` for what is in it. */
  dir: string;
  bus: Bus;
  objects: Objects;
  telemetry: Telemetry;
  /** Names the service `trainer`, whose phases become spans. */
  trainerTelemetry: Telemetry;
  log: Log;
  /** Bases in Hugging Face's layout, each with a base.json. */
  basesDir: string;
  /** Program path. */
  python: string;
  trainerPath: string;
  /** The trainer's whole environment. */
  trainerEnv: Record<string, string | undefined>;
  /** Aborted when the attempt should stop; the trainer then saves a checkpoint first. */
  stop: AbortSignal;
  /** A trainer that shows no sign of life for so long hangs: it is ended, and the next attempt goes on. Default 30 minutes. */
  hangMs?: number;
  /** Which of several nodes this is. Only the first one, 0, speaks. */
  node?: number;
  /**
   * Tells this pod apart from an earlier one of the same attempt, which there is when Kueue took the attempt's place back and then
   * gave it another.
   */
  incarnation?: string | undefined;
  /** Whoever stops it knows why, and tells it: the controller, of pods. */
  stopIsTold?: boolean;
}

/** Reading is also woken by changes in the folder; this is for file systems that report none. */
const pollMs = 250;
/** A trainer that has written its result and does not end is not waited for longer. */
const lingerMs = 20_000;
/** What a finished run's checkpoints may still take. */
const lastUploadsMs = 60_000;
const patienceMs = 30 * 60_000;
const defaultHangMs = 30 * 60_000;

/** Runs one attempt to its end; returns the exit code (`courierExit`). */
export async function runCourier(deps: CourierDeps): Promise<number> {
  const { job, bus, telemetry } = deps;
  const at = { tenant: job.tenant, id: job.runId };
  const log = deps.log.child({ runId: job.runId, tenant: job.tenant, attempt: job.attempt });
  const attributes = { "loraline.run": job.runId, "loraline.attempt": job.attempt };
  return telemetry.span("train", { parent: job.traceparent, attributes }, async (span) => {
    if (await patiently("ask whether the run is over", () => isOver(bus, at), { log })) {
      log.warn("the run is over already; nothing to do");
      return courierExit.trained;
    }
    const traceparent = traceparentOf(span);
    const outbox = (deps.node ?? 0) === 0 ? createOutbox({ bus, at, traceparent, log }) : silentOutbox;
    const resume = await patiently("ask for the newest checkpoint", () => newestCheckpoint(bus, at, job.resume), { log });
    const attempt: Attempt = { ...deps, job: { ...job, resume }, log, at, outbox, traceparent, work: join(deps.dir, "work") };
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

interface Attempt extends CourierDeps {
  at: EventAddress;
  outbox: Outbox;
  /** Of the span `train`: every event and every phase of the trainer continues it. */
  traceparent: string;
  /** The trainer's folder. */
  work: string;
  uploads?: CheckpointUploads;
  trainer?: GuardedChild;
}

/** An attempt that died right after its last word is not made again. */
async function isOver(bus: Bus, at: EventAddress): Promise<boolean> {
  const ends = await Promise.all([runTrained, runFailed, runCancelled, runRejected].map((event) => bus.last(event, at)));
  return ends.some((end) => end !== undefined);
}

/** A Job that Kueue suspended and resumed says in its template what was true when it was made. */
async function newestCheckpoint(bus: Bus, at: EventAddress, known: TrainJob["resume"]): Promise<TrainJob["resume"]> {
  const last = await bus.last(runCheckpointed, at);
  if (last === undefined) return known;
  const { step, checkpoint } = last.data;
  return step > (known?.step ?? 0) ? { step, checkpoint } : known;
}

/** Names an event of this pod's. */
const keyOf = ({ job, incarnation }: Pick<Attempt, "job" | "incarnation">): string =>
  `attempt-${job.attempt}${incarnation === undefined ? "" : `@${incarnation}`}`;

async function runAttempt(attempt: Attempt): Promise<End> {
  const { telemetry, work, stop } = attempt;
  // Nothing is lost yet by stopping.
  const givenUp = async () => (stop.aborted ? "the attempt was asked to stop before it began" : undefined);
  const patience = { log: attempt.log, givenUp, onWait: tellerOf(attempt, "fetch") };
  const inputs = await telemetry.span("fetch inputs", {}, () => fetchInputs({ ...attempt, work, patience }));
  if (stop.aborted) return { kind: "retry", code: "PREEMPTED", message: "the attempt was asked to stop before it began" };
  let { end, lastStepAt } = await train(attempt, inputs);
  if (end.kind === "failed" && end.problem.code === "RESUME_INVALID" && inputs.resumedFromStep !== null) {
    // As after an update of the trainer. Training again from the start is slower, and better than a run that can never go on.
    for (const name of ["resume", "checkpoints", "progress.jsonl", "result.json"]) {
      await rm(join(work, name), { recursive: true, force: true });
    }
    ({ end, lastStepAt } = await train(attempt, { resumedFromStep: null, resumeLost: end.problem.message }));
  }
  if (end.kind === "trained" && (attempt.node ?? 0) === 0) await storeAdapter(attempt, inputs, end.result, lastStepAt);
  return end;
}

/** Whether the trainer begins only when every node has come: another one may wait for a device, for as long as it takes. */
const meets = ({ machine, spec }: TrainJob): boolean => machine.nodes > 1 && trainMethodOf(spec).distributed;

/** Runs the trainer in its folder, once. */
async function train(
  attempt: Attempt,
  { resumedFromStep, resumeLost }: Pick<Inputs, "resumedFromStep" | "resumeLost">,
): Promise<{ end: End; lastStepAt: string }> {
  const { job, objects, outbox, log, work, stop } = attempt;
  const trainer = await startTrainer(attempt);
  attempt.trainer = trainer;
  const memoryBefore = await readCgroupMemory();
  let warnedOf: string | undefined;
  const uploads = createCheckpointUploads({
    dir: join(work, "checkpoints"),
    tenant: job.tenant,
    attempt: job.attempt,
    fromStep: resumedFromStep ?? 0,
    objects,
    outbox,
    log,
    // Training goes on meanwhile, so the run does not wait.
    onWait(reason) {
      if (reason !== null && reason.code !== warnedOf) relay.line({ type: "warning", time: Date.now() / 1000, ...reason });
      warnedOf = reason?.code;
    },
  });
  attempt.uploads = uploads;
  const relay = createRelay(attempt, uploads, resumedFromStep ?? 0);
  if (resumeLost !== null) {
    relay.line({ type: "warning", time: Date.now() / 1000, code: "RESUME_LOST", message: `training again from the start: ${resumeLost}` });
  }

  const started = (): void => void outbox.send(runStarted, { attempt: job.attempt, job: job.jobName, resumedFromStep }, keyOf(attempt));
  if (!meets(job)) started();
  const { exit, result, hangs } = await follow(attempt, trainer, relay, meets(job) ? started : undefined);
  const tail = await tailOf(join(attempt.dir, "trainer.log"));
  const memory = await readCgroupMemory();
  const follower = (attempt.node ?? 0) > 0;
  const outOfMemory = memory !== undefined && memory.oomKills > (memoryBefore?.oomKills ?? 0) ? { limit: memory.limit } : undefined;
  const end = decideEnd({ exit: exit ?? { code: 0, signal: null }, result, tail, stopped: stop.aborted, follower, outOfMemory, hangs });
  relay.end(end.kind === "retry" ? end.code : end.kind === "failed" ? end.problem.code : undefined);
  return { end, lastStepAt: relay.lastStepAt() };
}

async function startTrainer(attempt: Attempt): Promise<GuardedChild> {
  const { job, node = 0, dir, work, python, trainerPath, trainerEnv, stop, bus, at, log } = attempt;
  await access(trainerPath).catch((error: unknown) => {
    throw new PermanentError("TRAINER_MISSING", `there is no trainer: ${trainerPath} is missing. Check LORALINE_TRAINER.`, {
      cause: error,
    });
  });
  let trainer: GuardedChild;
  try {
    const logFile = join(dir, "trainer.log");
    trainer = spawnGuarded(python, trainerArgs(job, { trainerPath, work, node }), {
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
    // Nobody wants the checkpoint of a cancelled run.
    askedToCancel(bus, at).then(
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

const askedToCancel = async (bus: Bus, at: EventAddress): Promise<boolean> => (await bus.last(runCancelRequested, at)) !== undefined;

/**
 * Until the trainer has succeeded or ended. Not until it has ended: tearing Python down takes a while.
 *
 * @param onBegun - nodes meet first: called when they have, and until then nothing hangs.
 */
async function follow(
  { work, log, node = 0, hangMs = defaultHangMs }: Attempt,
  trainer: GuardedChild,
  relay: Relay,
  onBegun: (() => void) | undefined,
): Promise<{ exit: Exit | undefined; result: TrainerResult | undefined; hangs: string | undefined }> {
  const progressFile = join(work, "progress.jsonl");
  await using lines = followLines(progressFile);
  let exit: Exit | undefined;
  let hangs: string | undefined;
  let sign = { of: 0, at: performance.now() };
  let meeting = onBegun !== undefined;
  let wake = (): void => {};
  const watcher = watch(work, () => wake());
  watcher.on("error", () => {}); // no more inotify watches to be had: then it is polled
  void trainer.exited.then((how) => {
    exit = how;
    wake();
  });
  try {
    for (;;) {
      const changed = new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, pollMs);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      // In this order nothing is missed that was written before the end.
      const ended = exit;
      const result = await readJson(join(work, "result.json"), trainerResult);
      const touched = await stat(progressFile).then(
        ({ mtimeMs }) => mtimeMs,
        () => 0,
      );
      if (meeting && touched > 0) {
        meeting = false;
        onBegun?.();
      }
      for (const line of await lines.read()) relay.text(line);
      if (ended !== undefined || result?.status === "succeeded") return { exit: ended, result, hangs };
      if (meeting || touched !== sign.of) sign = { of: touched, at: performance.now() };
      // Only the first node has a sign to give; when that one gives the attempt up, the others are ended with it.
      if (node === 0 && hangs === undefined && performance.now() - sign.at > hangMs) {
        hangs = `the trainer gave no sign of life for ${Math.round(hangMs / 1000)} s (${relay.where()}) and was ended`;
        log.error(hangs);
        trainer.kill("SIGKILL");
      }
      await changed;
    }
  } finally {
    watcher.close();
  }
}

interface Relay {
  text(line: string): void;
  line(line: ProgressLine): void;
  /** Ends the span of a phase that the trainer did not live to end. */
  end(error: string | undefined): void;
  /** ISO 8601. */
  lastStepAt(): string;
  /** Phase and step, for a person. */
  where(): string;
}

/** Turns what the trainer writes into events, spans and uploads. */
function createRelay(attempt: Attempt, uploads: CheckpointUploads, fromStep: number): Relay {
  const { job, outbox, trainerTelemetry, traceparent, log } = attempt;
  const number = job.attempt;
  let phase = "start";
  let phaseSince = 0;
  let step = fromStep;
  let totalSteps = 0;
  let loss: number | null = null;
  /** Tells apart what comes more than once, as the phase `save` does. */
  let phases = 0;
  let warnings = 0;
  let lastStep: number | undefined;
  let trainEnded: number | undefined;

  const progress = (key: string, more: object = {}): void => {
    // Not awaited: training goes on while the server is away. `drained` waits for all of them.
    void outbox.send(runProgress, { attempt: number, phase, step, totalSteps, ...more }, `${keyOf(attempt)}/${key}`);
  };
  const phaseSpan = (endMs: number, error?: string): void =>
    trainerTelemetry.record(phase, {
      parent: traceparent,
      startMs: phaseSince,
      endMs,
      attributes: { "loraline.run": job.runId, "loraline.attempt": number },
      ...(error === undefined ? {} : { error }),
    });

  const relay: Relay = {
    text(text) {
      let parsed: ReturnType<typeof progressLine.safeParse>;
      try {
        parsed = progressLine.safeParse(JSON.parse(text));
      } catch (error) {
        log.warn({ err: error, text: text.slice(0, 500) }, "progress line is not JSON");
        return;
      }
      if (parsed.success) relay.line(parsed.data);
      else log.warn({ text: text.slice(0, 500), issues: parsed.error.issues }, "progress line is not understood");
    },
    line(line) {
      switch (line.type) {
        case "phase":
          if (line.state === "start") {
            phase = line.phase;
            phaseSince = line.time * 1000;
            progress(`phase-${++phases}-${phase}`);
          } else if (phaseSince > 0 && line.phase === phase) {
            phaseSpan(line.time * 1000);
            phaseSince = 0;
            if (phase === "train") trainEnded = line.time;
          }
          return;
        case "step":
          ({ step, total_steps: totalSteps, loss } = line);
          lastStep = step >= totalSteps ? line.time : undefined;
          progress(`step-${step}`, {
            epoch: line.epoch,
            loss,
            gradNorm: line.grad_norm,
            learningRate: line.learning_rate,
            tokensPerSecond: line.tokens_per_second,
            tokensSeen: line.tokens_seen,
            examplesSeen: line.examples_seen,
            etaSeconds: line.eta_seconds,
          });
          return;
        case "eval":
          progress(`eval-${line.step}`, { step: line.step, evalLoss: line.eval_loss });
          return;
        case "checkpoint":
          uploads.add(line.step, loss);
          return;
        case "warning":
          log.warn({ code: line.code }, line.message);
          progress(`warning-${++warnings}`, { warning: { code: line.code, message: line.message } });
          return;
      }
    },
    end(error) {
      if (phaseSince > 0) phaseSpan(Date.now(), error);
      phaseSince = 0;
    },
    lastStepAt() {
      const seconds = lastStep ?? trainEnded;
      return new Date(seconds === undefined ? Date.now() : seconds * 1000).toISOString();
    },
    where: () => `phase ${phase}, step ${step} of ${totalSteps}`,
  };
  return relay;
}

/** Tells the run what its attempt waits for: once for each reason, however many files wait for it, and however often they are tried. */
function tellerOf(attempt: Attempt, when: "fetch" | "store"): NonNullable<Patience["onWait"]> {
  let said: string | undefined;
  let times = 0;
  return (reason) => {
    if (said === reason?.code) return;
    said = reason?.code;
    void attempt.outbox.send(runWaiting, { stage: "train", reason }, `${keyOf(attempt)}/${when}-${++times}`);
  };
}

/**
 * Files, manifest, evidence, event: each exists only when all before it do. What was trained exists nowhere else, so a store that is away
 * or full is waited for as long as the attempt may live, also when it is asked to stop; only a cancelled run's is let go.
 */
async function storeAdapter(
  attempt: Attempt,
  { tokens }: Inputs,
  result: Extract<End, { kind: "trained" }>["result"],
  lastStepAt: string,
): Promise<void> {
  const { job, objects, work, bus, at, stop, outbox, telemetry, log } = attempt;
  const { adapter: trained } = result;
  const patience: Patience = {
    log,
    patienceMs,
    onWait: tellerOf(attempt, "store"),
    async givenUp() {
      const cancelled = stop.aborted && (await askedToCancel(bus, at).catch(() => false));
      return cancelled ? "the run was cancelled" : undefined;
    },
  };
  const stored = await telemetry.span("store adapter", {}, async () => {
    const files = await Promise.all(
      trained.files.map(async ({ path, sha256 }): Promise<FileRef> => {
        const source = { file: join(work, "adapter", path) };
        const put = () => objects.put(job.tenant, "adapter-file", source, { digest: `sha256:${sha256}` });
        return { path, blob: await patiently(`store ${path}`, put, patience) };
      }),
    );
    const manifest = adapterManifestFor(tokens, trained, files);
    const adapter = await patiently("store adapter manifest", () => putJson(objects, job.tenant, "adapter", manifest), patience);
    const proof = evidenceFor({ runId: job.runId, adapter: adapter.digest, tokensRef: job.tokens, tokens, result });
    return { adapter, evidence: await patiently("store evidence", () => putJson(objects, job.tenant, "evidence", proof), patience) };
  });
  await outbox.send(runTrained, {
    attempt: job.attempt,
    ...stored,
    rank: trained.rank,
    targetModules: trained.target_modules,
    parameters: trained.parameters,
    steps: result.steps,
    trainLoss: result.train_loss,
    trainedTokens: result.tokens_seen,
    tokensPerSecond: result.train_tokens_per_second,
    evaluation: result.evaluation,
    lastStepAt,
  });
  log.info({ adapter: stored.adapter.digest }, "trained");
}

function endOfError(error: unknown): End {
  const { code, message, param } = problemOf(error);
  // Of a full disk of the attempt's own, the next one may have more.
  if (error instanceof PermanentError && code !== "DISK_FULL") return { kind: "failed", problem: { code, message, param } };
  if (error instanceof RetryLaterError) return { kind: "retry", code, message };
  return { kind: "retry", code: error instanceof PermanentError ? code : "COURIER_FAILED", message };
}

/** Says the attempt's last word and returns its exit code. */
async function conclude(attempt: Attempt, end: End): Promise<number> {
  const { job, dir, work, at, bus, outbox, uploads, trainer, stop, log } = attempt;
  const ended = trainer?.exited ?? Promise.resolve();
  const timer = setTimeout(() => trainer?.kill("SIGKILL"), end.kind === "trained" || end.kind === "followed" ? lingerMs : 0);
  await ended;
  clearTimeout(timer);

  switch (end.kind) {
    case "trained":
      // Nothing resumes from them any more; the device is worth more than to wait long for them.
      await Promise.race([uploads?.done(), new Promise((resolve) => setTimeout(resolve, lastUploadsMs))]);
      return courierExit.trained;
    case "followed":
      return courierExit.trained;
    case "failed": {
      const { code, message, param } = end.problem;
      if ((attempt.node ?? 0) > 0) {
        // Only the first node ends a run; what this one met is why its attempt ended.
        await writeJson(join(dir, "outcome.json"), { code, message });
        return courierExit.retry;
      }
      await outbox.send(runFailed, { code, message, param, attempt: job.attempt });
      return courierExit.failed;
    }
    case "retry": {
      const cancelled = stop.aborted && (await askedToCancel(bus, at).catch(() => false));
      const { code, message } = cancelled ? { code: "CANCELLED", message: "the run was cancelled" } : end;
      log.warn({ code }, message);
      if (!cancelled) await uploads?.addLeftovers();
      if (!cancelled) await uploads?.done();
      // Makes room for the next lines, if room is what is missing; nothing in there is needed any more.
      await rm(work, { recursive: true, force: true });
      await writeJson(join(dir, "outcome.json"), { code, message }).catch((error: unknown) =>
        log.error({ err: error }, "outcome not kept"),
      );
      // Of several nodes the controller sees which one ended first; the others only see that one is gone.
      if (!cancelled && !(attempt.stopIsTold && (code === "PREEMPTED" || job.machine.nodes > 1))) {
        const step = uploads?.newestStep() ?? job.resume?.step ?? 0;
        await outbox.send(runAttemptEnded, { attempt: job.attempt, step, code, message }, `attempt-${job.attempt}`);
      }
      return courierExit.retry;
    }
  }
}
