export { readAdapterHead } from "./adapter-head.ts";
export { describeBase, readBaseModules } from "./base-files.ts";
export { expandModules, type ModuleShapes } from "./base-modules.ts";
export { checkTwin } from "./check-twin.ts";
export { defaultHubEndpoint, hubFileUrl, hubHeaders, listHubFiles } from "./hub.ts";
export { adapterFiles, type AdapterParts, judgeAdapter } from "./judge-adapter.ts";
export { judgeImport, judgeRunSpec } from "./judge-run-spec.ts";
export { scanTensors } from "./safetensors.ts";
export { enginesServing, kinship } from "./twins.ts";
