export { defaultIngestSettings, ingestCode, type IngestSettings } from "./ingest-dataset.ts";
export { createIngestService, type IngestServiceDeps } from "./ingest-service.ts";
export { type Batch, readRecords, type ReadRecordsOptions } from "./read-records.ts";
