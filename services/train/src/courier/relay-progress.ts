/** Lines of the trainer's progress.jsonl, as events and spans. */
import { type ProgressLine, progressLine, runProgress } from "@loraline/contracts";
import type { Log, Telemetry } from "@loraline/runtime";
import type { Outbox } from "./outbox.ts";

interface ProgressRelayDeps {
  runId: string;
  attempt: number;
  /** Step that this attempt began at. */
  fromStep: number;
  /** Prefix of the message ids. */
  eventKey: string;
  outbox: Pick<Outbox, "send">;
  trainerTelemetry: Pick<Telemetry, "record">;
  traceparent: string;
  log: Log;
  /** A checkpoint is complete on disk. */
  onCheckpoint(step: number, trainLoss: number | null): void;
  /** The adapter is complete on disk, and evaluated now. */
  onAdapter(): void;
}

export interface ProgressRelay {
  /** One line of the file. A line that is not understood is logged and otherwise ignored. */
  line(this: void, text: string): void;
  /** Publishes a warning of the courier's own. */
  warn(warning: { code: string; message: string }): void;
  /** Ends the span of a phase that the trainer did not live to end. */
  end(error: string | undefined): void;
  /** When the last optimizer step ended, ISO 8601. */
  lastStepAt(): string;
  /** Phase and step, for a person. */
  where(this: void): string;
}

export function createProgressRelay(deps: ProgressRelayDeps): ProgressRelay {
  const { runId, attempt, fromStep, eventKey, outbox, trainerTelemetry, traceparent, log, onCheckpoint, onAdapter } = deps;
  let phase = "start";
  let phaseSince = 0;
  let step = fromStep;
  let totalSteps = 0;
  let loss: number | null = null;
  /** Phases, counts and warnings are numbered in their message ids, because a phase such as `save` comes more than once. */
  let phases = 0;
  let counts = 0;
  let warnings = 0;
  let lastStep: number | undefined;
  let trainEnded: number | undefined;

  const publish = (key: string, more: object = {}): void => {
    // Not awaited: training goes on while NATS is away. `drained` of the outbox waits for all of them.
    void outbox.send(runProgress, { attempt, phase, step, totalSteps, ...more }, `${eventKey}/${key}`);
  };
  const warn = ({ code, message }: { code: string; message: string }): void => {
    log.warn({ code }, message);
    publish(`warning-${++warnings}`, { warning: { code, message } });
  };
  const recordPhase = (endMs: number, error?: string): void =>
    trainerTelemetry.record(phase, {
      parent: traceparent,
      startMs: phaseSince,
      endMs,
      attributes: { "loraline.run": runId, "loraline.attempt": attempt },
      ...(error === undefined ? {} : { error }),
    });

  const relay = (line: ProgressLine): void => {
    switch (line.type) {
      case "phase":
        if (line.state === "start") {
          phase = line.phase;
          phaseSince = line.time * 1000;
          publish(`phase-${++phases}-${phase}`);
        } else if (phaseSince > 0 && line.phase === phase) {
          recordPhase(line.time * 1000);
          phaseSince = 0;
          if (phase === "train") trainEnded = line.time;
        }
        return;
      case "step":
        ({ step, total_steps: totalSteps, loss } = line);
        lastStep = step >= totalSteps ? line.time : undefined;
        publish(`step-${step}`, {
          epoch: line.epoch,
          loss,
          gradNorm: line.grad_norm,
          learningRate: line.learning_rate,
          tokensPerSecond: line.tokens_per_second,
          tokensSeen: line.tokens_seen,
          examplesSeen: line.examples_seen,
          etaSeconds: line.eta_seconds,
          rewardsChosen: line.rewards_chosen,
          rewardsRejected: line.rewards_rejected,
          rewardsMargin: line.rewards_margin,
          rewardsAccuracy: line.rewards_accuracy,
        });
        return;
      case "count":
        publish(`count-${++counts}`, { phase: line.phase, done: line.done, total: line.total, etaSeconds: line.eta_seconds });
        return;
      case "eval":
        publish(`eval-${line.step}`, { step: line.step, evalLoss: line.eval_loss });
        return;
      case "adapter":
        onAdapter();
        return;
      case "checkpoint":
        onCheckpoint(line.step, loss);
        return;
      case "warning":
        warn(line);
        return;
    }
  };

  return {
    line(text) {
      let parsed: ReturnType<typeof progressLine.safeParse>;
      try {
        parsed = progressLine.safeParse(JSON.parse(text));
      } catch (error) {
        log.warn({ err: error, text: text.slice(0, 500) }, "progress line is not JSON");
        return;
      }
      if (parsed.success) relay(parsed.data);
      else log.warn({ text: text.slice(0, 500), issues: parsed.error.issues }, "progress line is not understood");
    },
    warn,
    end(error) {
      if (phaseSince > 0) recordPhase(Date.now(), error);
      phaseSince = 0;
    },
    lastStepAt() {
      const seconds = lastStep ?? trainEnded;
      return new Date(seconds === undefined ? Date.now() : seconds * 1000).toISOString();
    },
    where: () => `phase ${phase}, step ${step} of ${totalSteps}`,
  };
}
