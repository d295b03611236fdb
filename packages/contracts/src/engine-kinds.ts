/** Kinds of engines, with the facts that several services or the chart need. Everything else about a kind is in services/serve/src/engines. */
import { z } from "zod";

interface EngineKindFacts {
  /**
   * Whether the error message of an HTTP 500 answer shows that the engine's inner process is dead. Then the request itself may be right.
   */
  isDead(message: string): boolean;
  /**
   * Flags that `extraArgs` must not have; the chart and the check before an engine's start refuse them. The value is the name of the setting
   * that sets the flag, or "" if Loraline sets the flag itself or could not work with it.
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
        "--tool-call-parser": "toolCallParser",
        "--enable-auto-tool-choice": "toolCallParser",
        "--limit-mm-per-prompt": "",
        "--allowed-media-domains": "",
        "--allowed-local-media-path": "",
        "--mm-processor-cache-gb": "",
        "--config": "",
        "--shutdown-timeout": "",
      }),
    ),
  },
} satisfies Record<string, EngineKindFacts>;
export type EngineKindName = keyof typeof engineKinds;
export const engineKindName = z.enum(Object.keys(engineKinds) as [EngineKindName, ...EngineKindName[]]);
/** The kind of an engine whose settings name none. */
export const defaultEngineKind: EngineKindName = "vllm";
