/** The worker: reads what was uploaded and says what is in it. */
import type { Bus } from "@loraline/bus";
import { consumers, datasetRejected } from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import type { Telemetry } from "@loraline/runtime";
import { defaultIngestSettings, type IngestSettings } from "./ingest-dataset.ts";
import { onDatasetReceived } from "./on-dataset-received.ts";

export interface IngestServiceDeps {
  bus: Bus;
  objects: Objects;
  telemetry: Telemetry;
  settings?: Partial<IngestSettings>;
}

/** Starts consuming `dataset.received`; disposing lets the file in work finish its current chunk. */
export async function createIngestService({ bus, objects, telemetry, settings }: IngestServiceDeps): Promise<AsyncDisposable> {
  return bus.consume({
    consumer: consumers.ingestDatasetReceived,
    handlers: {
      "dataset.received.v1": onDatasetReceived({ bus, objects, telemetry, settings: { ...defaultIngestSettings, ...settings } }),
    },
    async onDeadLetter({ tenant, id, code, message, param }) {
      await bus.publish(datasetRejected, { tenant, id }, { code, message, param, report: null, rejections: 0 });
    },
  });
}
