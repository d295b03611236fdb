/** The ingest worker: converts uploads to records and a report. */
import { type Bus, tellWaiting, type WaitReason, watchQuotas } from "@loraline/bus";
import {
  consumers,
  datasetIngested,
  datasetReceived,
  datasetRejected,
  datasetWaiting,
  type EventAddress,
  type EventDef,
  type QuotaSettings,
} from "@loraline/contracts";
import type { Objects, StoreState } from "@loraline/objects";
import { defaultHubEndpoint } from "@loraline/models";
import type { Telemetry } from "@loraline/runtime";
import { createIngestThreads, defaultIngestSettings, type IngestSettings } from "@loraline/datasets";
import { onDatasetReceived } from "./on-dataset-received.ts";
import { createWithinQuota } from "./within-quota.ts";
import { createImportSlots } from "./import-slots.ts";
import { createImportFetch, type ImportSettings, onImportRequested } from "./on-import-requested.ts";

interface IngestServiceDeps {
  bus: Bus;
  objects: Objects & Partial<StoreState>;
  telemetry: Telemetry;
  settings?: Partial<IngestSettings>;
  imports?: Partial<ImportSettings>;
  /** What the operator grants tenants. Default: every quota's own default. */
  quotas?: QuotaSettings;
  /** How often it is told how far a file is. Default: every two seconds. */
  tellEveryMs?: number;
}

const defaultImportSettings: ImportSettings = {
  allow: [],
  hubEndpoint: defaultHubEndpoint,
  maxBytes: 20 * 1024 ** 3,
  timeoutMs: 2 * 60 * 60_000,
  atOnce: 16,
};

/** Starts consuming `dataset.received` and `dataset.import-requested`; disposing lets the file in work finish its current chunk. */
export async function createIngestService({
  bus,
  objects,
  telemetry,
  settings,
  imports,
  quotas: granted = {},
  tellEveryMs,
}: IngestServiceDeps): Promise<AsyncDisposable> {
  const importSettings = { ...defaultImportSettings, ...imports };
  const onDeadLetter: NonNullable<Parameters<Bus["consume"]>[0]["onDeadLetter"]> = async ({ tenant, id, code, message, param }) => {
    await bus.publish(datasetRejected, { tenant, id }, { code, message, param, report: null, rejections: 0 });
  };
  const waits = (done: EventDef) => ({
    isAway: objects.problem && (() => objects.problem?.() !== undefined),
    async onWait({ at }: { at: EventAddress }, reason: WaitReason | null): Promise<void> {
      if (reason === null && (await bus.last(done, at)) !== undefined) return;
      await tellWaiting(bus, datasetWaiting, at, { stage: "ingest", reason });
    },
  });
  const stopping = new AbortController();
  const quotas = await watchQuotas({ bus, settings: granted, signal: stopping.signal });
  const withinQuota = await createWithinQuota(bus, quotas);
  const fetch = createImportFetch(importSettings);
  const threads = createIngestThreads();
  const slots = createImportSlots({ places: importSettings.atOnce, mostOf: (tenant) => quotas.of(tenant).importsAtOnce });
  const started = await Promise.allSettled([
    bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": withinQuota(
          onDatasetReceived({
            bus,
            objects,
            telemetry,
            settings: { ...defaultIngestSettings, ...settings },
            fetch,
            slots,
            quotas,
            imports: importSettings,
            threads,
            tellEveryMs,
          }),
        ),
      },
      onDeadLetter,
      ...waits(datasetIngested),
    }),
    bus.consume({
      consumer: consumers.ingestDatasetImportRequested,
      handlers: {
        "dataset.import-requested.v1": withinQuota(
          onImportRequested({ bus, objects, telemetry, fetch, slots, quotas, settings: importSettings, tellEveryMs }),
        ),
      },
      onDeadLetter,
      ...waits(datasetReceived),
    }),
  ]);
  // Stopped side by side, because each waits for its pull to end.
  const stop = async (): Promise<void> => {
    await Promise.all(started.filter((one) => one.status === "fulfilled").map(({ value }) => value[Symbol.asyncDispose]()));
    await threads[Symbol.asyncDispose]();
    await fetch[Symbol.asyncDispose]();
    stopping.abort();
  };
  const failed = started.find((one) => one.status === "rejected");
  if (failed !== undefined) {
    await stop();
    throw failed.reason;
  }
  return { [Symbol.asyncDispose]: stop };
}
