export { importEnv, importSettingsOf } from "./import-env.ts";
export { createIngestService } from "./service.ts";
