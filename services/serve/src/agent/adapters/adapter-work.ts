/** Carries out one step about one adapter (load, prove or unload), and records what came of it. */
import { adapterKey, type Problem } from "@loraline/contracts";
import { type Log, RetryLaterError, type Telemetry } from "@loraline/runtime";
import type { AdapterMemory } from "./adapter-memory.ts";
import { type AdapterSteps, faultOf } from "./adapter-steps.ts";
import type { WantedAdapter } from "./decide-adapters.ts";
import type { AgentMetrics } from "../agent-metrics.ts";
import type { EngineObserver } from "../engine-observer.ts";
import { digestOfPath } from "./holdings.ts";
import type { LoadEvents } from "./load-events.ts";
import type { AgentStep } from "../scheduler.ts";
import type { WantedSet } from "./wanted-set.ts";

interface AdapterWorkDeps {
  steps: AdapterSteps;
  engine: Pick<EngineObserver, "look" | "observed" | "incarnation">;
  wanted: Pick<WantedSet, "adapters">;
  memory: AdapterMemory;
  events: Pick<LoadEvents, "loaded" | "unloaded">;
  /** Writes what is held of an adapter (`<tenant>.<adapter>`). */
  report(key: string): Promise<void>;
  metrics: Pick<AgentMetrics, "stepped">;
  telemetry: Pick<Telemetry, "traceparent">;
  log: Log;
  signal: AbortSignal;
}

/** @returns a function that takes a step; it never rejects, since what went wrong is remembered and decides what is done next. */
export function createAdapterWork(deps: AdapterWorkDeps): (loraName: string, step: AgentStep, retry: boolean) => Promise<void> {
  const { steps, engine, wanted, memory, events, report, metrics, telemetry, log, signal } = deps;

  const load = async (adapter: WantedAdapter, retry: boolean): Promise<void> => {
    const { loraName } = adapter;
    // An earlier load that gave no answer may have gone through meanwhile.
    if (retry) await engine.look();
    if (retry && engine.observed?.listed.has(loraName) !== false) return;
    memory.unspoil(loraName);
    await steps.load(adapter);
    memory.loaded(loraName);
  };

  /** @returns why it is refused; undefined: it is proven. */
  const prove = async (adapter: WantedAdapter): Promise<Problem | undefined> => {
    const { loraName } = adapter;
    const result = await steps.prove(adapter);
    if (result.kind === "spoiled") {
      memory.spoil(loraName, 0);
      throw new RetryLaterError(
        "ADAPTER_FILES_SPOILED",
        0,
        `the files of ${loraName} on disk are not what was published; they are fetched again`,
      );
    }
    if (!wanted.adapters.has(loraName)) return undefined;
    const { proof, problem, incarnation } = result;
    memory.judged(loraName, { state: result.kind, proof, error: problem, incarnation });
    if (problem !== null) log.error({ loraName, ...problem, proof }, "adapter refused");
    else log.info({ loraName, proof }, "adapter proven");
    // Neither waits for the other: one packet carries both.
    const reported = report(adapterKey(adapter));
    if (problem === null) await events.loaded(adapter, incarnation, proof, telemetry.traceparent() ?? adapter.trace);
    await reported;
    return problem ?? undefined;
  };

  /** @returns why it is still loaded. */
  const unload = async (loraName: string, reason: string): Promise<Problem | undefined> => {
    const digest = digestOfPath(engine.observed?.listed.get(loraName));
    const outcome = await steps.unload(loraName);
    log.info({ loraName, reason, outcome }, "adapter unloaded");
    if (outcome.kind !== "done") {
      await engine.look();
      // An engine also says no when the adapter was not loaded, or was evicted. Only what it lists counts.
      if (engine.observed === undefined || engine.observed.listed.has(loraName)) {
        return unloadFailed(loraName, `the engine did not unload ${loraName}: ${"message" in outcome ? outcome.message : outcome.kind}`);
      }
    }
    memory.unloaded(loraName);
    if (digest !== undefined) await events.unloaded(loraName, digest, engine.incarnation, reason);
    return undefined;
  };

  const unloadFailed = (loraName: string, message: string): Problem => {
    const error: Problem = { code: "UNLOAD_FAILED", message };
    log.warn({ loraName, ...error, ...memory.unloadFailed(loraName, error) }, "not unloaded; it will be tried again");
    return error;
  };

  const failed = (adapter: WantedAdapter, error: unknown): Problem => {
    const { loraName } = adapter;
    const fault = faultOf(error, loraName);
    if (!wanted.adapters.has(loraName)) return fault.problem;
    const { state, blame, attempts, afterMs } = memory.failed(loraName, fault);
    if (state === "retrying") log.warn({ err: error, loraName, attempts, afterMs }, "adapter not proven yet; it will be tried again");
    else log.error({ loraName, ...fault.problem, blame, afterMs }, `adapter ${state}`);
    return fault.problem;
  };

  return async (loraName, step, retry) => {
    const startedAt = performance.now();
    const stepped = (problem: Problem | undefined): void => metrics.stepped(step.kind, performance.now() - startedAt, problem?.code);
    try {
      if (step.kind === "unload") stepped(await unload(loraName, step.reason));
      else if (step.kind === "prove") stepped(await prove(step.wanted));
      else stepped(await load(step.wanted, retry).then(() => undefined));
    } catch (error) {
      if (signal.aborted) return;
      stepped(step.kind === "unload" ? unloadFailed(loraName, String(error)) : failed(step.wanted, error));
      // The next decision must not rest on what the engine held before the failure.
      await engine.look();
    }
  };
}
