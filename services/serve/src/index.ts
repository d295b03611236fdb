export { createServeAgent, type ServeAgentDeps } from "./agent.ts";
export { createServeController, type ServeControllerDeps } from "./controller.ts";
export { engineNameOf } from "./engine-names.ts";
export { type AdapterFiles, createAdapterFiles } from "./adapter-files.ts";
