export { createRecordEncoder, type Encoded, ignored, type RecordEncoder } from "./encode-records.ts";
export { describeTemplate, type EngineTemplate } from "./engine-template.ts";
export { createTokenizeService, type TokenizeServiceDeps } from "./tokenize-service.ts";
export { type Base, createBases, loadBase, readTemplate } from "./load-base.ts";
export { type Bins, pack } from "./pack.ts";
export {
  tokenizeCode,
  tokenizeDataset,
  type TokenizeJob,
  type TokenizeJobDeps,
  tokenizeKey,
  type TokenizeResult,
} from "./tokenize-dataset.ts";
export {
  type TokenFolderManifest,
  tokenFolderManifest,
  type TokenizedDrop,
  tokenizeRecords,
  type TokenizeRecordsOptions,
} from "./tokenize-records.ts";
export { decodeMasked, readTokenFolder, showTokenRows, type TokenRow } from "./read-shards.ts";
