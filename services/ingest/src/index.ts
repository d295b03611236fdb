export { importEnv, importSettingsOf } from "./import-env.ts";
export { createIngestService, type IngestServiceDeps } from "./service.ts";
