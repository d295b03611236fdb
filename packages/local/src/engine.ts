/** vLLM as a child: one engine for one base, on loopback only. Nobody but the line may reach it. */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import type { GuardedChild, Log } from "@loraline/runtime";
import { supervise } from "./supervise.ts";

const host = "127.0.0.1";

/** What this engine can serve; `engineRecord` of the contracts, and vLLM's flags. */
export const engineLimits = { maxLoraRank: 32, maxLoras: 4, maxCpuLoras: 16, maxModelLen: 2048 } as const;

export interface EngineOptions {
  stateDir: string;
  /** Outlives the state: what vLLM found out about this machine. */
  cacheDir: string;
  python: string;
  /** `templateFile`: the chat template to apply; without it, what the base's folder has. */
  base: { name: string; dir: string; templateFile?: string | null };
  port: number;
  env: Record<string, string | undefined>;
  logFile: string;
  log: Log;
  onReady(afterMs: number): void;
  onEnded(end: { why: string; restartInMs: number }): void;
}

const engineArgs = ({ base, port }: EngineOptions): string[] => [
  join(import.meta.dirname, "../engine.py"),
  `--model=${base.dir}`,
  `--served-model-name=${base.name}`,
  `--host=${host}`,
  `--port=${port}`,
  ...(base.templateFile === null || base.templateFile === undefined ? [] : [`--chat-template=${base.templateFile}`]),
  "--enable-lora",
  `--max-lora-rank=${engineLimits.maxLoraRank}`,
  `--max-loras=${engineLimits.maxLoras}`,
  `--max-cpu-loras=${engineLimits.maxCpuLoras}`,
  `--max-model-len=${engineLimits.maxModelLen}`,
  "--max-num-seqs=16",
  "--dtype=bfloat16",
  "--enforce-eager",
  // One process less: the model runs in the engine process, not in a worker of it.
  "--distributed-executor-backend=uni",
  "--disable-log-stats",
  "--disable-uvicorn-access-log",
];

/**
 * Threads: half of the cores, because training runs beside it; and each generated token is hundreds of small steps, on
 * which threads that wait for each other cost more than they bring.
 */
const engineEnv = ({ env, cacheDir }: EngineOptions): Record<string, string | undefined> => ({
  ...env,
  OMP_NUM_THREADS: String(Math.max(1, Math.floor(availableParallelism() / 2))),
  VLLM_CPU_OMP_THREADS_BIND: "nobind",
  VLLM_CPU_KVCACHE_SPACE: "1",
  // With `uni` above: keeps the model in the engine process; and engine.py forks that process.
  VLLM_ENABLE_V1_MULTIPROCESSING: "0",
  VLLM_ALLOW_RUNTIME_LORA_UPDATING: "True",
  // The first request for logprobs would compile a kernel: half a minute, and a C++ compiler that a new machine may not have.
  TORCHDYNAMO_DISABLE: "1",
  VLLM_CACHE_ROOT: join(cacheDir, "vllm"),
  VLLM_NO_USAGE_STATS: "1",
  DO_NOT_TRACK: "1",
  HF_HUB_OFFLINE: "1",
  HF_HOME: join(cacheDir, "huggingface"),
  PYTHONUNBUFFERED: "1",
});

/** Starts vLLM and returns at once; it answers half a minute later. */
export function startEngine(options: EngineOptions): Promise<AsyncDisposable> {
  const url = `http://${host}:${options.port}`;
  return supervise({
    name: "engine",
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
 * Says when it is healthy. When its inner process has died, vLLM may stay and answer 503: then it is killed, to be started again.
 * No answer at all means nothing: on a busy machine it is only slow.
 */
async function watchHealth(url: string, child: GuardedChild, signal: AbortSignal, { onReady, log }: EngineOptions): Promise<void> {
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
