/**
 * Pure: folds the events of a run into its entry of KV `runs`.
 *
 *   requested ──► tokenized ──► queued ⇄ running ──► trained ──► served
 *       │             │            │        │           │
 *       └─ rejected   └────────────┴────────┴───────────┴──► failed | cancelled
 *
 * The first terminal phase stays: later events do not change the phase any more.
 */
import type { SeenEvent } from "./define-event.ts";
import type { runEvents, runProgress } from "./events.ts";
import { pausedReason, type RunPhase, type RunState, terminalPhases } from "../state.ts";

export type RunEvent = SeenEvent<(typeof runEvents)[number] | typeof runProgress>;

const order: readonly RunPhase[] = ["requested", "tokenized", "queued", "running", "trained"];
/** The later of two phases, so that an older event that is delivered again does not take a run back. */
const atLeast = (now: RunPhase, next: RunPhase): RunPhase => (order.indexOf(next) > order.indexOf(now) ? next : now);

/** The stage that has to act on a run in each phase. */
const stageOf: Partial<Record<RunPhase, "tokenize" | "train" | "serve">> = {
  requested: "tokenize",
  tokenized: "train",
  queued: "train",
  running: "train",
  trained: "serve",
};

/** Folding an event twice, or an old one after a newer one, changes nothing. */
export function foldRun(state: RunState | undefined, event: RunEvent): RunState | undefined {
  if (state === undefined) return event.type === "run.requested.v1" ? initial(event) : undefined;
  if (event.type === "run.progress.v1") return foldProgress(state, event);
  if (event.type === "run.command-refused.v1") return state;
  if (event.seq <= state.seq) return state;

  const next: RunState = { ...state, seq: event.seq, updatedAt: event.time };
  if (terminalPhases.has(state.phase)) return { ...state, seq: event.seq };
  const end = (phase: RunPhase): RunState => ({ ...next, phase, finishedAt: event.time, queue: null });

  switch (event.type) {
    case "run.requested.v1":
      return next;
    case "run.rejected.v1":
      return { ...end("rejected"), error: event.data };
    case "run.tokenized.v1":
      return {
        ...next,
        phase: atLeast(state.phase, "tokenized"),
        queue: state.phase === "requested" ? null : state.queue,
        trace: event.trace ?? state.trace,
        tokens: { ...event.data, at: event.time },
      };
    case "run.queued.v1":
      return {
        ...next,
        phase: state.phase === "trained" ? state.phase : "queued",
        queue: state.phase === "trained" ? state.queue : { reason: event.data.reason, message: event.data.message },
      };
    case "run.waiting.v1": {
      const { stage, reason } = event.data;
      if (stageOf[state.phase] !== stage) return next; // told late, it means nothing any more
      return { ...next, queue: reason === null ? null : { reason: reason.code, message: reason.message } };
    }
    case "run.started.v1":
      return {
        ...next,
        phase: atLeast(state.phase === "queued" ? "tokenized" : state.phase, "running"),
        startedAt: state.startedAt ?? event.time,
        attempt: Math.max(state.attempt, event.data.attempt),
        queue: null,
      };
    case "run.checkpointed.v1": {
      const { attempt, step, checkpoint, trainLoss, published } = event.data;
      const others = state.checkpoints.filter((known) => known.step !== step);
      const added = { attempt, step, checkpoint, trainLoss: trainLoss ?? null, at: event.time, ...(published ? { published } : {}) };
      const checkpoints = [added, ...others];
      return { ...next, checkpoints: checkpoints.sort((a, b) => b.step - a.step).slice(0, 50) };
    }
    case "run.attempt-ended.v1":
    case "run.preempted.v1": // of an older release
      // The courier and the controller may both report the end of an attempt, and the next attempt may have begun in between.
      if (event.data.attempt <= (state.lastLostAttempt ?? 0)) return next;
      return {
        ...next,
        phase: state.phase === "trained" ? state.phase : "queued",
        lostAttempts: state.lostAttempts + 1,
        lastLostAttempt: event.data.attempt,
        // A run that has its adapter does not wait for another attempt.
        queue: state.phase === "trained" ? state.queue : { reason: event.data.code, message: event.data.message },
      };
    case "run.adapter-written.v1": // the run still trains: its evaluation is open
      return next;
    case "run.trained.v1": {
      const { attempt: _attempt, targetModules: _targetModules, ...trained } = event.data;
      return {
        ...next,
        phase: "trained",
        trace: event.trace ?? state.trace,
        queue: null,
        trained: { ...trained, at: event.time },
      };
    }
    case "run.failed.v1": {
      const { code, message, param } = event.data;
      return { ...end("failed"), error: { code, message, param } };
    }
    case "run.cancel-requested.v1":
      return { ...next, cancelRequested: true };
    case "run.pause-requested.v1":
      return { ...next, paused: true };
    case "run.resume-requested.v1":
      return { ...next, paused: false, queue: state.queue?.reason === pausedReason ? null : state.queue };
    case "run.cancelled.v1":
      return end("cancelled");
    case "run.served.v1": {
      const { adapter: _adapter, ...served } = event.data;
      return { ...end("served"), trace: event.trace ?? state.trace, served: { ...served, at: event.time } };
    }
  }
}

function initial(event: Extract<RunEvent, { type: "run.requested.v1" }>): RunState {
  return {
    tenant: event.at.tenant,
    runId: event.at.id,
    spec: event.data.spec,
    phase: "requested",
    requestedAt: event.time,
    startedAt: null,
    updatedAt: event.time,
    finishedAt: null,
    trace: event.trace,
    cancelRequested: false,
    attempt: 0,
    lostAttempts: 0,
    queue: null,
    tokens: null,
    progress: null,
    checkpoints: [],
    trained: null,
    served: null,
    error: null,
    seq: event.seq,
  };
}

/** Progress is in another stream, so it may arrive before or after run events that are older: attempt and step decide what is newer. */
function foldProgress(state: RunState, event: Extract<RunEvent, { type: "run.progress.v1" }>): RunState {
  const { data } = event;
  const known = state.progress;
  if (terminalPhases.has(state.phase)) return state;
  if (known !== null && (data.attempt < known.attempt || (data.attempt === known.attempt && event.time < known.at))) return state;
  const same = known !== null && known.attempt === data.attempt ? known : null;
  // Of another phase, how far it was says nothing.
  const before = same?.phase === data.phase ? same : null;
  return {
    ...state,
    updatedAt: event.time > state.updatedAt ? event.time : state.updatedAt,
    progress: {
      attempt: data.attempt,
      phase: data.phase,
      done: data.done ?? before?.done,
      total: data.total ?? before?.total,
      step: Math.max(data.step, same?.step ?? 0),
      totalSteps: data.totalSteps > 0 ? data.totalSteps : (same?.totalSteps ?? 0),
      epoch: data.epoch ?? same?.epoch ?? null,
      loss: data.loss ?? same?.loss ?? null,
      learningRate: data.learningRate ?? same?.learningRate ?? null,
      tokensPerSecond: data.tokensPerSecond ?? same?.tokensPerSecond ?? null,
      etaSeconds: data.etaSeconds ?? before?.etaSeconds ?? null,
      rewardsMargin: data.rewardsMargin ?? same?.rewardsMargin,
      rewardsAccuracy: data.rewardsAccuracy ?? same?.rewardsAccuracy,
      at: event.time,
    },
  };
}
