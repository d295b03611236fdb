/** Kinds of engines, with what more than one service or the chart must know of each. All else about a kind: services/serve/src/engines. */
import { z } from "zod";

interface EngineKindFacts {
  /**
   * Whether an error message (of an answer with HTTP 500) says that the engine's inner process is dead. Such an answer says nothing about
   * the request.
   */
  isDead(message: string): boolean;
  /**
   * Flags that settings stand for, with the setting's name, or that would take the engine out of Loraline's hands, with "". The chart and
   * the check before an engine's start refuse them in `extraArgs`.
   */
  ownFlags: ReadonlyMap<string, string>;
}

export const engineKinds = {
  vllm: {
    isDead: (message) => /EngineCore encountered an issue|EngineDeadError/.test(message),
    ownFlags: new Map(
      Object.entries({
        "--model": "base",
        "--served-model-name": "base",
        "--host": "",
        "--port": "",
        "--uds": "",
        "--root-path": "",
        "--api-key": "",
        "--chat-template": "",
        "--enable-lora": "",
        "--max-lora-rank": "maxLoraRank",
        "--max-loras": "maxLoras",
        "--max-cpu-loras": "maxCpuLoras",
        "--max-model-len": "maxModelLen",
        "--dtype": "dtype",
        "--quantization": "quantization",
        "-q": "quantization",
        "--kv-cache-dtype": "kvCacheDtype",
        "--enable-prefix-caching": "prefixCaching",
        "--no-enable-prefix-caching": "prefixCaching",
        "--tensor-parallel-size": "tensorParallelSize",
        "-tp": "tensorParallelSize",
        "--shutdown-timeout": "",
      }),
    ),
  },
} satisfies Record<string, EngineKindFacts>;
export type EngineKindName = keyof typeof engineKinds;
export const engineKindName = z.enum(Object.keys(engineKinds) as [EngineKindName, ...EngineKindName[]]);
/** Kind of an engine that does not say its kind. */
export const defaultEngineKind: EngineKindName = "vllm";
