/** Pure fold of dataset events into what KV `datasets` holds. */
import type { EventAddress, EventData } from "./define-event.ts";
import type { datasetDeleted, datasetIngested, datasetReceived, datasetRejected } from "./events.ts";
import type { DatasetState } from "./state.ts";

interface Seen<Type extends string, Data> {
  type: Type;
  data: Data;
  at: EventAddress;
  time: string;
  seq: number;
  trace: string | null;
}

export type DatasetEvent =
  | Seen<"dataset.received.v1", EventData<typeof datasetReceived>>
  | Seen<"dataset.ingested.v1", EventData<typeof datasetIngested>>
  | Seen<"dataset.rejected.v1", EventData<typeof datasetRejected>>
  | Seen<"dataset.deleted.v1", EventData<typeof datasetDeleted>>;

/** Folding an event twice, or an old one after a newer one, changes nothing. */
export function foldDataset(state: DatasetState | undefined, event: DatasetEvent): DatasetState | undefined {
  if (state !== undefined && event.seq <= state.seq) return state;
  if (state === undefined) {
    if (event.type !== "dataset.received.v1") return undefined;
    return {
      tenant: event.at.tenant,
      datasetId: event.at.id,
      status: "received",
      filename: event.data.filename,
      mapping: event.data.mapping ?? null,
      blob: event.data.blob,
      receivedAt: event.time,
      settledAt: null,
      manifest: null,
      report: null,
      records: null,
      rejections: null,
      error: null,
      trace: event.trace,
      seq: event.seq,
    };
  }
  const next = { ...state, seq: event.seq };
  if (state.status === "deleted") return next;
  switch (event.type) {
    case "dataset.received.v1":
      return next;
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
      };
    }
    case "dataset.deleted.v1":
      return { ...next, status: "deleted" };
  }
}
