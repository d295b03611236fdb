/**
 * What to do about one run, given what is known. Pure.
 *
 *                 ┌── its turn has not come: queued ───┐
 *   tokenized ──► │                                    │ ──► attempt n running ──► concluded: its event will be folded
 *                 └──── it has: launch attempt n ──────┘           │
 *                        ▲                                         │ ended without a result
 *                        │ after a delay, from the newest          ▼
 *                        └───────────── checkpoint ◄──── attempt-ended: why ──► attempts exhausted: failed
 *
 *   cancel requested: stop what runs, then cancelled        over: stop what runs, remove what ended
 *   paused: stop what runs, start nothing until it is resumed
 *
 * Everything is safe to repeat: names of attempts and ids of events follow from run and attempt.
 */
import { type BlobRef, pausedReason, type RunState, terminalPhases } from "@loraline/contracts";
import type { Attempt } from "../launchers/launcher.ts";
import { type Standing, waitReasonOf } from "./decide-line.ts";

/** What the run's own stream says; its folded state may lag behind. */
export interface History {
  /** `run.trained` or an end is stored. */
  over: boolean;
  /** Attempts of which `run.attempt-ended` is stored. */
  lost: readonly { attempt: number; step: number; code: string; message: string }[];
  /** The one with the highest step. */
  checkpoint: { step: number; checkpoint: BlobRef } | null;
}

export interface Observed {
  run: RunState;
  /** Of this run only. */
  attempts: readonly Attempt[];
  history: History;
  /** Where it stands in line; undefined: it was not in line when the line was made. */
  standing: Standing | undefined;
  /** Why the tenant may not have the run at all. */
  refusal?: { code: string; message: string } | undefined;
}

export type Action =
  | { kind: "launch"; attempt: number; resume: { step: number; checkpoint: BlobRef } | null }
  | { kind: "stop"; name: string }
  | { kind: "remove"; name: string }
  | { kind: "queued"; attempt: number; reason: string; message: string }
  | { kind: "attempt-ended"; attempt: number; step: number; code: string; message: string }
  | { kind: "failed"; attempt: number | null; code: string; message: string }
  | { kind: "cancelled" }
  /** Look again then, if nothing changes before. */
  | { kind: "wake"; afterMs: number };

/** Codes of ends whose cause is outside of the run. They do not use up its attempts. */
const fromOutside: ReadonlySet<string> = new Set([
  "PREEMPTED",
  "EVICTED",
  "NODE_LOST",
  "NODE_REFUSED",
  "NATS_UNAUTHORIZED",
  "JOB_DELETED",
  "ATTEMPT_LOST",
]);
/** Codes of these after which the next attempt waits nevertheless, because it would probably meet the same. */
const mayComeAgain: ReadonlySet<string> = new Set(["NODE_REFUSED", "NATS_UNAUTHORIZED"]);
/** A run that takes its machine down each time must end some day, although the cause of every single end seems to be outside. */
const outsidePerAttempt = 10;

/**
 * The ends that count against a run: `own` by its own fault, `stuck` after which it was no further than before. An attempt that took too
 * long and got further counts as neither, so that a run can go on in slices.
 */
function counted(lost: History["lost"]): { own: number; stuck: number } {
  let furthest = 0;
  let own = 0;
  let stuck = 0;
  for (const { step, code } of lost.toSorted((a, b) => a.attempt - b.attempt)) {
    const further = step > furthest;
    furthest = Math.max(furthest, step);
    if (!further) stuck++;
    if (code === "DEADLINE_EXCEEDED" ? !further : !fromOutside.has(code)) own++;
  }
  return { own, stuck };
}

export function decideRun({ run, attempts, history, standing, refusal }: Observed, now: number): Action[] {
  /** Attempts that have a device, or wait for one. */
  const running = attempts.filter(({ phase }) => phase === "running" || phase === "pending");
  const stop = (those: readonly Attempt[]): Action[] => those.map(({ name }) => ({ kind: "stop", name }));
  const remove = (those: readonly Attempt[]): Action[] => those.map(({ name }) => ({ kind: "remove", name }));

  if (!mayStillTrain(run)) {
    const ended = attempts.filter(({ phase }) => phase === "failed" || phase === "concluded");
    // The courier of a trained run ends by itself, a moment after it has published run.trained.
    return [...(run.trained === null ? stop(running) : []), ...remove(ended)];
  }
  if (history.over || attempts.some(({ phase }) => phase === "concluded")) return []; // soon folded
  if (attempts.some(({ phase }) => phase === "unknown")) return [{ kind: "wake", afterMs: 2000 }];
  if (run.cancelRequested) return running.length > 0 ? stop(running) : [{ kind: "cancelled" }];
  if (refusal !== undefined && attempts.length === 0) return [{ kind: "failed", attempt: null, ...refusal }];
  if (run.tokens === null) return [];
  // A trainer that is stopped saves a checkpoint first, and its end uses up no attempt.
  if (run.paused === true && running.length > 0) return stop(running);

  const newest = newestOf(attempts);
  // One attempt at a time: those older than the newest have been given up on.
  if (running.length > 0) return [...stop(running.filter(({ attempt }) => attempt !== newest?.attempt)), ...tellWhyPending(run, newest)];

  const resume = newestCheckpoint(run, history);
  const actions: Action[] = [];
  const lost = [...history.lost];
  const report = (attempt: number, code: string, message: string): void => {
    if (lost.some((known) => known.attempt === attempt)) return;
    const step = resume?.step ?? 0;
    lost.push({ attempt, step, code, message });
    actions.push({ kind: "attempt-ended", attempt, step, code, message });
  };
  for (const ended of attempts.toSorted((a, b) => a.attempt - b.attempt)) {
    if (ended.phase === "failed") report(ended.attempt, ended.code, ended.message);
  }
  const last = Math.max(run.attempt, newest?.attempt ?? 0, ...lost.map(({ attempt }) => attempt));
  if (last > (newest?.attempt ?? 0)) {
    report(last, "ATTEMPT_LOST", `nothing is left of attempt ${last}; the next one goes on from the last checkpoint`);
  }

  const { own, stuck } = counted(lost);
  if (own >= run.spec.max_attempts || stuck >= run.spec.max_attempts * outsidePerAttempt) {
    const why = lost.toSorted((a, b) => a.attempt - b.attempt).at(-1);
    const count = own >= run.spec.max_attempts ? own : stuck;
    const hint =
      why?.code === "DEADLINE_EXCEEDED"
        ? ". None got further than the ones before: allow them more time, or save checkpoints more often (training.save_steps)"
        : "";
    const message = `${count === 1 ? "the only attempt" : `all ${count} attempts`} ended without a result; the last reason was ${why?.code}: ${why?.message}${hint}`;
    return [...actions, { kind: "failed", attempt: last, code: "ATTEMPTS_EXHAUSTED", message }];
  }

  if (run.paused === true) {
    const published = actions.length === 0 && run.queue?.reason === pausedReason;
    return published
      ? []
      : [...actions, { kind: "queued", attempt: last + 1, reason: pausedReason, message: "paused; resume it to go on" }];
  }
  const waitMs = readyAt(newest, now) - now;
  if (waitMs > 0) return [...actions, { kind: "wake", afterMs: waitMs }];

  const attempt = last + 1;
  if (standing === undefined) return [...actions, { kind: "wake", afterMs: 0 }];
  // One that has run already waits: what there is may have been lowered for a while.
  if (last === 0 && standing.may === "wait" && standing.for === "larger-installation")
    return [...actions, { kind: "failed", attempt: null, code: "GPUS_TOO_MANY", message: tooLarge(standing) }];
  const waits = waitReasonOf(standing);
  if (waits !== undefined) {
    const published = actions.length === 0 && run.queue?.reason === waits.reason && run.queue.message === waits.message;
    return published ? [] : [...actions, { kind: "queued", attempt, ...waits }];
  }
  // Older attempts are removed only now that a later one exists, so that no number is used twice.
  return [...actions, { kind: "launch", attempt, resume }, ...remove(attempts)];
}

const tooLarge = ({ slots, total }: { slots: number; total: number }): string =>
  `it asks for ${slots} GPUs, and this installation trains on ${total} (train.pods.gpusTotal). Request the run again with fewer, or have the operator add some.`;

/** Publishes each reason once. A pod that is starting is no reason. */
function tellWhyPending(run: RunState, newest: Attempt | undefined): Action[] {
  if (newest?.phase !== "pending" || newest.reason === "STARTING") return [];
  const { attempt, reason } = newest;
  // It ran before: Kueue took its place back, and the same attempt goes on when it has one again.
  const again = reason === "SUSPENDED" && run.attempt === attempt;
  const message = again
    ? `its place was taken back; it goes on from step ${run.checkpoints[0]?.step ?? 0}: ${newest.message}`
    : newest.message;
  if (run.queue?.reason === reason && run.queue.message === message) return [];
  return [{ kind: "queued", attempt, reason, message }];
}

/**
 * Whether a decision needs the run's own stream. Its folded state may lag behind, and an attempt must not be started again, nor the run
 * fail, because of that. A run without an attempt so far needs nothing of it.
 */
export function needsHistory(run: RunState, attempts: readonly Attempt[]): boolean {
  const early = run.attempt === 0 && run.lostAttempts === 0 && attempts.length === 0 && !run.cancelRequested;
  return !early && mayStillTrain(run) && attempts.every(({ phase }) => phase === "failed");
}

export const mayStillTrain = (run: RunState): boolean => run.phase !== "trained" && !terminalPhases.has(run.phase);

export const newestOf = (attempts: readonly Attempt[]): Attempt | undefined =>
  attempts.reduce<Attempt | undefined>((best, next) => (best === undefined || next.attempt > best.attempt ? next : best), undefined);

function newestCheckpoint(run: RunState, history: History): History["checkpoint"] {
  const [folded] = run.checkpoints;
  if (folded === undefined || (history.checkpoint?.step ?? -1) >= folded.step) return history.checkpoint;
  return { step: folded.step, checkpoint: folded.checkpoint };
}

/**
 * When the next attempt may start: at once after an end from outside; else after 0.5 s, 1 s, 2 s … at most 60 s. An end that lies further in
 * the future than that was told by a clock that was wrong, and is not waited for.
 */
export function readyAt(newest: Attempt | undefined, now: number): number {
  if (newest?.phase !== "failed" || (fromOutside.has(newest.code) && !mayComeAgain.has(newest.code))) return 0;
  const delayMs = Math.min(60_000, 500 * 2 ** (newest.attempt - 1));
  return newest.endedAt - now > delayMs ? 0 : newest.endedAt + delayMs;
}
