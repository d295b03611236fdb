/** One replica: whether its engine answers, what it holds, and how loading and proving go. */
import type { ReplicaReport } from "@loraline/contracts";
import { exemplarOf, type Metrics } from "@loraline/runtime";
import type { AgentStep } from "./scheduler.ts";

const seconds = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];

export interface AgentMetrics extends Disposable {
  /** @param code - why it failed; absent: it did not. */
  stepped(step: AgentStep["kind"], ms: number, code?: string): void;
  engineStarted(): void;
}

/** @param replica - its pod. */
export function createAgentMetrics(
  metrics: Metrics,
  { engine, replica, now }: { engine: string; replica: string; now(): { ready: boolean; counts: ReplicaReport["counts"] } },
): AgentMetrics {
  const own = { engine, replica };
  const ready = metrics.gauge({
    name: "loraline_agent_engine_ready",
    help: "1: the replica's engine answers, and its agent offers it to gateways",
    labels: ["engine", "replica"],
  });
  const adapters = metrics.gauge({
    name: "loraline_agent_adapters",
    help: "Adapter versions of a replica. state: wanted, proven, retrying, quarantined, refused, draining",
    labels: ["engine", "replica", "state"],
  });
  const starts = metrics.counter({
    name: "loraline_agent_engine_starts_total",
    help: "Engine processes that this agent has seen come up",
    labels: ["engine", "replica"],
  });
  const failures = metrics.counter({
    name: "loraline_agent_step_failures_total",
    help: "Steps that failed. step: load, prove, unload; code: why, such as PROOF_FAILED",
    labels: ["engine", "replica", "step", "code"],
  });
  const took = metrics.histogram({
    name: "loraline_agent_step_seconds",
    help: "How long steps took, those that failed too. step: load, prove, unload",
    labels: ["engine", "step"],
    buckets: seconds,
  });
  starts.inc(own, 0);
  const update = metrics.beforeScrape(() => {
    const seen = now();
    ready.set(own, seen.ready ? 1 : 0);
    for (const [state, count] of Object.entries(seen.counts ?? {})) adapters.set({ ...own, state }, count);
  });
  return {
    stepped(step, ms, code) {
      took.observe({ labels: { engine, step }, value: ms / 1000, exemplarLabels: exemplarOf() });
      if (code !== undefined) failures.inc({ ...own, step, code });
    },
    engineStarted: () => starts.inc(own),
    [Symbol.dispose]() {
      update[Symbol.dispose]();
      ready.set(own, 0);
    },
  };
}
