export { createAgentService, type AgentServiceDeps } from "./agent/service.ts";
export { createServeService, type ServeServiceDeps } from "./controller/service.ts";
export { vllmArgs, vllmCpuArgs, vllmCpuEnv, vllmEnv } from "./engines/vllm/start.ts";
export { loraNameOf } from "./lora-names.ts";
export { type AdapterFiles, createAdapterFiles } from "./agent/adapters/adapter-files.ts";
