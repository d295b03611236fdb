export { createServeAgent, type ServeAgentDeps } from "./agent.ts";
export { createServeController, type ServeControllerDeps } from "./controller.ts";
export { describeBase } from "./base-files.ts";
export { engineNameOf } from "./engine-names.ts";
export { type AdapterFiles, createAdapterFiles } from "./adapter-files.ts";
