/** Pure: folds the events of a dataset into its entry of KV `datasets`. */
import type { SeenEvent } from "./define-event.ts";
import type { datasetEvents, datasetProgress } from "./events.ts";
import type { ImportSource } from "../spec/import-source.ts";
import type { DatasetState } from "../state.ts";

export type DatasetEvent = SeenEvent<(typeof datasetEvents)[number] | typeof datasetProgress>;

/** Folding an event twice, or an old one after a newer one, changes nothing. */
export function foldDataset(state: DatasetState | undefined, event: DatasetEvent): DatasetState | undefined {
  if (event.type === "dataset.progress.v1") return state && foldProgress(state, event);
  if (state !== undefined && event.seq <= state.seq) return state;
  if (state === undefined) {
    if (event.type !== "dataset.received.v1" && event.type !== "dataset.import-requested.v1") return undefined;
    const fetched = event.type === "dataset.received.v1" ? event.data : undefined;
    const source = event.type === "dataset.import-requested.v1" ? event.data.source : null;
    return {
      tenant: event.at.tenant,
      datasetId: event.at.id,
      status: fetched === undefined ? "importing" : "received",
      filename: fetched?.filename ?? (source === null ? "" : nameOfSource(source)),
      mapping: event.data.mapping ?? null,
      blob: fetched?.blob ?? null,
      parts: fetched?.parts ?? [],
      source,
      receivedAt: event.time,
      settledAt: null,
      manifest: null,
      report: null,
      records: null,
      rejections: null,
      error: null,
      waiting: null,
      trace: event.trace,
      seq: event.seq,
    };
  }
  const next = { ...state, seq: event.seq };
  if (state.status === "deleted") return next;
  switch (event.type) {
    case "dataset.import-requested.v1":
      return next;
    case "dataset.received.v1": {
      if (state.blob !== null) return next;
      const { blob, filename, parts } = event.data;
      return {
        ...next,
        status: state.status === "importing" ? "received" : state.status,
        blob,
        filename,
        parts: parts ?? [],
        progress: undefined,
      };
    }
    case "dataset.ingested.v1":
      return {
        ...next,
        status: "ingested",
        settledAt: event.time,
        manifest: event.data.manifest,
        report: event.data.report,
        records: event.data.records,
        rejections: event.data.rejections,
        error: null,
        waiting: null,
        progress: undefined,
      };
    case "dataset.rejected.v1": {
      const { code, message, param } = event.data;
      return {
        ...next,
        status: "rejected",
        settledAt: event.time,
        report: event.data.report ?? null,
        records: 0,
        rejections: event.data.rejections,
        error: { code, message, param },
        waiting: null,
        progress: undefined,
      };
    }
    case "dataset.waiting.v1":
      // After the dataset is settled, a late event of waiting has no meaning.
      return state.settledAt === null ? { ...next, waiting: event.data.reason } : next;
    case "dataset.deleted.v1":
      return { ...next, status: "deleted", waiting: null, progress: undefined };
  }
}

/** Progress is in another stream, so it may arrive after what ended the work, and its time decides what is newer. */
function foldProgress(state: DatasetState, { data, time }: Extract<DatasetEvent, { type: "dataset.progress.v1" }>): DatasetState {
  const isLate = state.settledAt !== null || state.status === "deleted" || (data.stage === "fetch" && state.blob !== null);
  if (isLate || time < (state.progress?.at ?? "")) return state;
  return { ...state, progress: { ...data, at: time } };
}

/** The file name that an import shows until its file is known. */
const nameOfSource = (source: ImportSource): string =>
  ("url" in source ? (source.url.split(/[?#]/)[0] ?? source.url) : source.hub).slice(-512);
