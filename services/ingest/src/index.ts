export { type Contents, createReport, readContents, type ReportBuilder } from "./dataset-report.ts";
export { defaultIngestSettings, ingestCode, type IngestSettings } from "./ingest-dataset.ts";
export { countLengths } from "./measure-lengths.ts";
export { createIngestService, type IngestServiceDeps } from "./ingest-service.ts";
export type { FileSource } from "./open-container.ts";
export { type Batch, readRecords, type ReadRecordsOptions } from "./read-records.ts";
