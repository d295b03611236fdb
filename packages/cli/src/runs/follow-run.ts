/** Shows a run until it is over: a bar on a terminal, plain lines elsewhere. */
import type { ApiClient } from "@loraline/client";
import { type RunState, terminalPhases } from "@loraline/contracts";
import { exitCodes, Failure, failureOf } from "../failure.ts";
import { duration, type Terminal, writeLine } from "../terminal.ts";
import { showBar, showLines, type WorkDone, workFigures } from "../show-progress.ts";
import { methodWords } from "./method-words.ts";

const askEveryMs = 400;
/** How long a server that does not answer is waited for: it may be starting again. */
const patienceMs = 60_000;

/** Resolves with the run when it is over, or as it is when the terminal's signal aborts. */
export async function followRun(api: Pick<ApiClient, "getRun">, runId: string, terminal: Terminal): Promise<RunState> {
  const show = terminal.err.isTTY === true ? bar(terminal) : lines(terminal);
  let silentSince: number | undefined;
  let run: RunState | undefined;
  try {
    for (;;) {
      try {
        run = await api.getRun({ run_id: runId });
        silentSince = undefined;
        show.update(run);
        if (terminalPhases.has(run.phase)) return run;
      } catch (error) {
        if (failureOf(error).exitCode !== exitCodes.unreachable) throw error;
        silentSince ??= performance.now();
        if (performance.now() - silentSince > patienceMs) throw error;
        show.away();
      }
      if (terminal.signal.aborted) {
        if (run !== undefined) return run;
        throw new Failure(exitCodes.interrupted, "INTERRUPTED", "interrupted");
      }
      await waitFor(askEveryMs, terminal.signal);
    }
  } finally {
    show.end();
  }
}

const waitFor = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done);
  });

/** What a run is doing now, in a few words. */
export function doing(run: RunState): string {
  const { phase, progress, queue, attempt } = run;
  if (queue !== null) return `waiting: ${queue.message}`;
  switch (phase) {
    case "requested":
      return progress?.phase === "tokenize" ? "tokenizing" : methodWords(run.spec).requested;
    case "tokenized":
      return "starting the trainer";
    case "queued":
      return "waiting";
    case "running":
      return progress === null || progress.attempt < attempt ? "starting the trainer" : (trainerWords[progress.phase] ?? progress.phase);
    case "trained":
      return "loading and proving on the engine";
    case "served":
    case "rejected":
    case "failed":
    case "cancelled":
      return phase;
  }
}

const trainerWords: Readonly<Record<string, string>> = {
  load_base: "loading the base",
  self_test: "checking packing and masks",
  reference: "asking the base about all answers",
  train: "training",
  evaluate: "evaluating",
  probe: "recording probes",
  save: "saving the adapter",
};

/** `step 3/42`; empty while the number of steps is not known. */
export const stepsOf = ({ progress }: RunState): string =>
  progress === null || progress.totalSteps === 0 ? "" : `step ${progress.step}/${progress.totalSteps}`;

/** How far the phase is, where it is one that is counted: records that are tokenized, held-out rows that are evaluated. */
function countedOf({ phase, queue, progress, attempt }: RunState): (WorkDone & { total: number }) | undefined {
  if (progress === null || queue !== null || typeof progress.total !== "number") return undefined;
  const { done, total, etaSeconds } = progress;
  const isNow = phase === "requested" ? progress.attempt === 0 : phase === "running" && progress.attempt === attempt;
  return isNow ? { done: done ?? 0, total, etaSeconds } : undefined;
}

/** `loss 1.234 · 210 tokens/s · ETA 12 s` */
export function figures(run: RunState): string {
  const { progress } = run;
  if (progress === null) return "";
  const counted = countedOf(run);
  const said = [
    counted && workFigures(counted),
    progress.loss === null ? undefined : `loss ${progress.loss.toFixed(3)}`,
    typeof progress.rewardsMargin === "number" ? `margin ${progress.rewardsMargin.toFixed(3)}` : undefined,
    progress.tokensPerSecond === null ? undefined : `${Math.round(progress.tokensPerSecond)} tokens/s`,
    progress.etaSeconds === null || countedOf(run) !== undefined || progress.step >= progress.totalSteps || run.phase !== "running"
      ? undefined
      : `ETA ${duration(progress.etaSeconds * 1000)}`,
  ];
  return said.filter((part) => part !== undefined).join(" · ");
}

interface Show {
  update(run: RunState): void;
  /** The server does not answer just now. */
  away(): void;
  end(): void;
}

const awayWords = "the server does not answer; waiting";

function bar(terminal: Terminal): Show {
  const shown = showBar(terminal);
  return {
    update(run) {
      const counted = countedOf(run);
      const [done, total] = counted ? [counted.done, counted.total] : [run.progress?.step ?? 0, run.progress?.totalSteps ?? 0];
      const words = [stepsOf(run), figures(run)].filter((part) => part !== "");
      shown.update({ doing: doing(run), done, total, figures: words.join(" · ") });
    },
    away: () => shown.update({ doing: awayWords }),
    end: () => shown.end(),
  };
}

function lines(terminal: Terminal): Show {
  const say = showLines(terminal);
  let saidStep = -1;
  let saidAt = Number.NEGATIVE_INFINITY;
  return {
    update(run) {
      const { progress } = run;
      const step = progress?.step ?? 0;
      const training = run.phase === "running" && progress?.phase === "train" && step > 0;
      // A step is told every few seconds, and the last one whenever it is seen.
      const due = training ? step === progress.totalSteps || performance.now() - saidAt >= 5000 : saidStep >= 0;
      if (step > saidStep && step > 0 && due) {
        saidStep = step;
        saidAt = performance.now();
        writeLine(terminal.err, `training: ${stepsOf(run)} · ${figures(run)}`);
      }
      const counted = countedOf(run);
      if (!training) say(doing(run), counted && workFigures(counted));
    },
    away: () => say(awayWords),
    end() {},
  };
}
