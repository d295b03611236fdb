/** The line of runs as the controller sees it: how many wait and for what, how long the oldest has, and what attempts take. */
import type { RunState } from "@loraline/contracts";
import type { Metrics } from "@loraline/runtime";
import type { Attempt, Launcher, Slots } from "../launchers/launcher.ts";
import { isWaiting } from "./decide-round.ts";

interface TrainMetrics extends Disposable {
  /** A round saw this. GPU seconds are of running attempts, from one round to the next. */
  seen(attempts: readonly Attempt[], slots: Slots): void;
}

/** Between two rounds more time than this was not observed, and nothing is counted for it. */
const longestGapMs = 60_000;

/** @param keyOf - of a run in `runs`. */
export function createTrainMetrics(
  metrics: Metrics,
  { runs, sizeOf, keyOf }: { runs: ReadonlyMap<string, RunState>; sizeOf: Launcher["sizeOf"]; keyOf(attempt: Attempt): string },
): TrainMetrics {
  const leader = metrics.gauge({ name: "loraline_train_leader", help: "1: this process starts attempts; the others wait for its lease" });
  const phases = metrics.gauge({ name: "loraline_runs", help: "Runs that are not over, by phase", labels: ["tenant", "phase"] });
  const waiting = metrics.gauge({
    name: "loraline_runs_waiting",
    help: "Runs without an attempt, by what they wait for; empty: their turn",
    labels: ["tenant", "reason"],
  });
  const oldest = metrics.gauge({
    name: "loraline_runs_oldest_waiting_seconds",
    help: "How long the run has waited that waits longest, since its tokens are there",
    labels: ["tenant"],
  });
  const attemptsNow = metrics.gauge({ name: "loraline_attempts", help: "Attempts that are there, by phase", labels: ["phase"] });
  const slotsNow = metrics.gauge({
    name: "loraline_train_slots",
    help: "Attempts that may run at once. state: total, free; absent where only the cluster's scheduler bounds them",
    labels: ["state"],
  });
  const gpus = metrics.gauge({ name: "loraline_gpus_in_use", help: "GPUs of running attempts", labels: ["tenant"] });
  const gpuSeconds = metrics.counter({
    name: "loraline_gpu_seconds_total",
    help: "GPUs of running attempts times the seconds that they had them",
    labels: ["tenant"],
  });
  leader.set(1);
  const update = metrics.beforeScrape(() => {
    for (const gauge of [phases, waiting, oldest]) gauge.reset();
    const since = new Map<string, number>();
    for (const run of runs.values()) {
      const { tenant, phase } = run;
      phases.inc({ tenant, phase });
      if (!isWaiting(run)) continue;
      waiting.inc({ tenant, reason: run.queue?.reason ?? "" });
      since.set(tenant, Math.min(since.get(tenant) ?? Infinity, Date.parse(run.tokens?.at ?? run.requestedAt)));
    }
    for (const [tenant, at] of since) oldest.set({ tenant }, Math.max(0, Date.now() - at) / 1000);
  });
  let seenAt: number | undefined;
  let running = new Map<string, number>();
  return {
    seen(attempts, slots) {
      const now = performance.now();
      const gap = seenAt === undefined ? 0 : now - seenAt;
      if (gap <= longestGapMs) for (const [tenant, count] of running) gpuSeconds.inc({ tenant }, (count * gap) / 1000);
      seenAt = now;
      running = new Map();
      attemptsNow.reset();
      for (const attempt of attempts) {
        attemptsNow.inc({ phase: attempt.phase });
        const run = runs.get(keyOf(attempt));
        if (attempt.phase !== "running" || run === undefined) continue;
        running.set(attempt.tenant, (running.get(attempt.tenant) ?? 0) + sizeOf(run.spec).gpus);
      }
      gpus.reset();
      for (const [tenant, count] of running) gpus.set({ tenant }, count);
      slotsNow.reset();
      for (const state of ["total", "free"] as const) if (Number.isFinite(slots[state])) slotsNow.set({ state }, slots[state]);
    },
    [Symbol.dispose]() {
      update[Symbol.dispose]();
      leader.set(0);
      for (const gauge of [phases, waiting, oldest, attemptsNow, slotsNow, gpus]) gauge.reset();
    },
  };
}
