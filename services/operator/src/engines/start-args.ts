/**
 * Arguments with which an engine of a kind is started; the same as those of the chart (`_engine-<kind>.tpl`). A test compares the pods that both
 * make. Pure.
 */
import type { EngineKindName, EngineSettings } from "@loraline/contracts";

const flag = (name: string, value: string | number | undefined): string[] => (value === undefined ? [] : [`--${name}=${value}`]);

export const startArgs: Readonly<Record<EngineKindName, (settings: EngineSettings) => string[]>> = {
  vllm: (settings) => [
    `--model=/bases/${settings.base}`,
    `--served-model-name=${settings.base}`,
    "--host=0.0.0.0",
    "--port=8000",
    "--enable-lora",
    `--max-lora-rank=${settings.maxLoraRank}`,
    `--max-loras=${settings.maxLoras}`,
    `--max-cpu-loras=${settings.maxCpuLoras}`,
    `--max-model-len=${settings.maxModelLen}`,
    ...flag("dtype", settings.dtype),
    ...flag("quantization", settings.quantization),
    ...flag("kv-cache-dtype", settings.kvCacheDtype),
    ...(settings.prefixCaching === undefined ? [] : [settings.prefixCaching ? "--enable-prefix-caching" : "--no-enable-prefix-caching"]),
    ...((settings.tensorParallelSize ?? 1) > 1 ? flag("tensor-parallel-size", settings.tensorParallelSize) : []),
    "--shutdown-timeout=30",
    "--config",
    "/engine/vllm.yaml",
    "--chat-template=/engine/chat_template.jinja",
    "--middleware=loraline_guard.RequireKey",
    ...(settings.extraArgs ?? []),
  ],
};
