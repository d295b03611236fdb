/** The local engine: vLLM as a child process, for one base, on loopback only. */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import type { ComputeType } from "@loraline/contracts";
import type { ServedParts } from "@loraline/models";
import type { GuardedChild, Log } from "@loraline/runtime";
import { vllmArgs, vllmCpuArgs, vllmCpuEnv, vllmEnv } from "@loraline/serve";
import { supervise } from "../supervise.ts";
import type { LocalEngine } from "./local-engines.ts";

const host = "127.0.0.1";

interface EngineStart {
  /** What the child is called in the state directory. */
  name: string;
  stateDir: string;
  /** Holds what vLLM found out about this machine; kept when the state is cleared. */
  cacheDir: string;
  python: string;
  /** `templateFile`: the chat template to apply; absent or null: the one in the base's folder. `parts`: absent: all of it. */
  base: { name: string; dir: string; templateFile?: string | null; parts?: ServedParts };
  port: number;
  /** What it can serve. Both its record on the bus and vLLM's flags derive from it. */
  settings: Omit<LocalEngine, "base" | "dtype" | "toolCallParser">;
  computeType: ComputeType;
  /** null: none. */
  toolCallParser?: string | null;
  /** vLLM asks for it, since any user of the machine can connect to its port. undefined: none, for measurements. */
  apiKey: string | undefined;
  env: Record<string, string | undefined>;
  logFile: string;
  log: Log;
  onReady(afterMs: number): void;
  onEnded(end: { why: string; restartInMs: number }): void;
}

const engineArgs = ({ base, port, settings: { extraArgs = [], ...limits }, computeType, toolCallParser }: EngineStart): string[] => [
  join(import.meta.dirname, "../../engine.py"),
  ...vllmArgs({
    ...limits,
    model: base.dir,
    servedName: base.name,
    host,
    port,
    chatTemplateFile: base.templateFile,
    toolCallParser,
    ...(base.parts && { parts: base.parts }),
  }),
  ...vllmCpuArgs(computeType),
  "--disable-uvicorn-access-log",
  ...extraArgs,
];

/**
 * The engine has half of the cores, because training runs beside it. More threads would not help either: each generated token takes
 * hundreds of small steps, and at each of them the threads wait for each other.
 */
const engineEnv = ({ env, cacheDir, apiKey }: EngineStart): Record<string, string | undefined> => ({
  ...env,
  OMP_NUM_THREADS: String(Math.max(1, Math.floor(availableParallelism() / 2))),
  ...vllmEnv,
  ...vllmCpuEnv,
  // A long context needs more than the GiB that is enough for a small one.
  ...(env.VLLM_CPU_KVCACHE_SPACE === undefined ? {} : { VLLM_CPU_KVCACHE_SPACE: env.VLLM_CPU_KVCACHE_SPACE }),
  VLLM_CACHE_ROOT: join(cacheDir, "vllm"),
  DO_NOT_TRACK: "1",
  HF_HOME: join(cacheDir, "huggingface"),
  PYTHONUNBUFFERED: "1",
  ...(apiKey === undefined ? {} : { VLLM_API_KEY: apiKey }),
});

/** Starts vLLM and returns at once. vLLM answers about half a minute later. */
export function startEngine(options: EngineStart): Promise<AsyncDisposable> {
  const url = `http://${host}:${options.port}`;
  return supervise({
    name: options.name,
    command: options.python,
    args: engineArgs(options),
    env: engineEnv(options),
    logFile: options.logFile,
    stateDir: options.stateDir,
    stopMs: 3000,
    log: options.log,
    onEnded: options.onEnded,
    onStarted(child, signal) {
      watchHealth(url, child, signal, options).catch((error: unknown) =>
        options.log.error({ err: error }, "engine is not watched any more"),
      );
    },
  });
}

/**
 * Calls `onReady` when the engine is healthy, and kills it when it answers 503 again and again: then vLLM's inner process has died, and
 * only a new start helps. No answer at all means nothing: on a busy machine it is only slow.
 */
async function watchHealth(url: string, child: GuardedChild, signal: AbortSignal, { onReady, log }: EngineStart): Promise<void> {
  const startedAt = performance.now();
  let healthy = false;
  for (let refusals = 0; !signal.aborted;) {
    await new Promise((resolve) => setTimeout(resolve, healthy ? 2000 : 250));
    const status = await fetch(`${url}/health`, { signal: AbortSignal.any([signal, AbortSignal.timeout(10_000)]) }).then(
      (response) => response.status,
      () => undefined,
    );
    if (status === 200 && !healthy) {
      healthy = true;
      onReady(performance.now() - startedAt);
    }
    refusals = healthy && status === 503 ? refusals + 1 : 0;
    if (refusals >= 2) {
      log.error("engine says that it is dead; killing it to start it again");
      child.kill("SIGKILL");
      return;
    }
  }
}
