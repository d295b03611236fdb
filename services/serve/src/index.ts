export { createAgentService } from "./agent/service.ts";
export { createServeService } from "./controller/service.ts";
export { vllmToolParserOf } from "./engines/vllm/tool-parsers.ts";
export { vllmArgs, vllmCpuArgs, vllmCpuEnv, vllmEnv } from "./engines/vllm/start.ts";
export { createAdapterFiles } from "./agent/adapters/adapter-files.ts";
export { checkEngine, isQuantised } from "./setup/describe-engines.ts";
export { readTwin, twinOf } from "./setup/read-twin.ts";
