/** `dataset.received` → `dataset.ingested` or `dataset.rejected`. */
import { type Bus, type HandlerContext, type Received, sumOf, tellProgress, type TenantQuotas } from "@loraline/bus";
import {
  type BlobRef,
  buckets,
  cacheKey,
  datasetDeleted,
  datasetIngested,
  datasetManifest,
  datasetProgress,
  type datasetReceived,
  datasetRejected,
} from "@loraline/contracts";
import { blobOfPicture, digestOf, getJson, type Objects, readPictureTable } from "@loraline/objects";
import { type GuardedFetch, PermanentError, type Telemetry } from "@loraline/runtime";
import { ingestKey, type IngestResult, type IngestSettings, type IngestThreads, type Upload } from "@loraline/datasets";
import { fetchPictures } from "./fetch-pictures.ts";
import type { ImportSlots } from "./import-slots.ts";
import { ingestWithPictures } from "./ingest-with-pictures.ts";
import type { ImportSettings } from "./on-import-requested.ts";
import { takeImportSlot } from "./take-import-slot.ts";

interface OnDatasetReceivedDeps {
  bus: Bus;
  objects: Objects;
  telemetry: Telemetry;
  settings: IngestSettings;
  fetch: GuardedFetch;
  /** Shared with imports: pictures at URLs are imported. */
  slots: ImportSlots;
  quotas: TenantQuotas;
  imports: Pick<ImportSettings, "maxBytes">;
  /** Where uploads are read: they are strangers'. */
  threads: Pick<IngestThreads, "ingest">;
  tellEveryMs?: number | undefined;
}

/**
 * What records may take beyond the tenant's quota: an upload that was let in is to be of use, and records are larger than its rows. A bomb, or a
 * system prompt that is put before each of a million rows, is larger by far.
 */
const overdraftOf = (uploaded: number): number => 4 * uploaded + 16 * 1024 ** 2;

/**
 * Each step may be repeated without harm: objects and the cache entry depend on the upload only, and the event always has the same id.
 * The order is objects, manifest, cache entry, event, acknowledgement.
 */
export function onDatasetReceived({
  bus,
  objects,
  telemetry,
  settings,
  fetch,
  slots,
  quotas,
  imports,
  threads,
  tellEveryMs,
}: OnDatasetReceivedDeps) {
  /** @throws PermanentError QUOTA_STORAGE */
  const checkRoom = async (tenant: string, uploaded: number): Promise<void> => {
    const { storageBytes: most } = quotas.of(tenant);
    if (most === null) return;
    const stored = sumOf(await bus.stored(tenant));
    if (stored <= most + overdraftOf(uploaded)) return;
    throw new PermanentError(
      "QUOTA_STORAGE",
      `its records take more than what is left of this tenant's quota storageBytes: there are ${stored} bytes in the store now, and ${most} are allowed. Upload fewer or shorter rows (what a mapping adds to each of them counts, too), delete datasets or adapters, or have the operator raise the quota.`,
    );
  };
  return async (received: Received<typeof datasetReceived>, { log, signal, withoutPlace }: HandlerContext): Promise<void> => {
    const { at } = received;
    const { blob, filename, parts, mapping } = received.data;
    const upload: Upload = { tenant: at.tenant, blob, filename, parts: parts ?? [], mapping: mapping ?? null };
    if ((await bus.last(datasetIngested, at)) !== undefined) return;
    const isDeleted = async (): Promise<boolean> => ((await bus.last(datasetDeleted, at))?.seq ?? 0) > received.seq;
    if (await isDeleted()) return;

    const cache = await bus.bucket(buckets.cache);
    const key = cacheKey({ stage: "ingest", tenant: at.tenant, hex: ingestKey(upload, settings) });
    const cached = await readCached(objects, at.tenant, await cache.get(key));
    const result =
      cached ??
      (await telemetry.span("read rows", {}, async (span) => {
        const sized = await withStoredSizes(objects, upload);
        const files = [sized, ...sized.parts].map(({ blob: { digest, size } }) => ({ digest, size }));
        const uploaded = files.reduce((sum, { size }) => sum + size, 0);
        // The same bytes are in the store once, however often an upload names them.
        const kept = new Map(files.map(({ digest, size }) => [digest, size])).values().reduce((sum, size) => sum + size, 0);
        span.setAttribute("loraline.bytes", uploaded);
        const tellOf = (stage: "fetch" | "read", total: number | null): ((done: number) => void) =>
          tellProgress({ total, tell: (work, key) => bus.publish(datasetProgress, at, { stage, ...work }, { key }), everyMs: tellEveryMs });
        const read = await ingestWithPictures({
          ingest: (fetchPicture) =>
            threads.ingest(
              { objects, settings, signal, onRead: tellOf("read", uploaded), fetchPicture, checkRoom: () => checkRoom(at.tenant, kept) },
              sized,
            ),
          look: (fetchPicture) => threads.ingest({ objects: storesNothing(objects), settings, signal, fetchPicture }, sized),
          takeSlot: () => takeImportSlot({ slots, bus, log, signal }, at),
          fetchAll: (urls) =>
            telemetry.span("fetch pictures", { attributes: { "loraline.urls": urls.size } }, () =>
              fetchPictures({ bus, objects, fetch, quotas, settings: imports, signal, onBytes: tellOf("fetch", null) }, at.tenant, urls),
            ),
          isDeleted,
          withoutPlace,
        });
        if (read === undefined) return undefined;
        span.setAttribute("loraline.rejections", read.rejections);
        if (read.kind === "ingested") span.setAttribute("loraline.records", read.records);
        return read;
      }));
    if (result === undefined) return;

    if (result.kind === "rejected") {
      const { problem, report, rejections } = result;
      log.info({ code: problem.code, rejections }, "dataset rejected");
      await bus.publish(datasetRejected, at, { ...problem, report, rejections });
      return;
    }
    const { manifest, report, records, rejections, formats } = result;
    if (cached === undefined) await cache.put(key, { manifest, at: new Date().toISOString() });
    log.info({ records, rejections, formats, cacheHit: cached !== undefined }, "dataset ingested");
    await bus.publish(datasetIngested, at, { manifest, report, records, rejections, formats, cacheHit: cached !== undefined });
  };
}

/**
 * The upload with the sizes that the store knows: whoever tells of an upload may claim any, and the room for its records follows from them. A
 * blob that is not there has none; reading it says so.
 */
async function withStoredSizes(objects: Objects, upload: Upload): Promise<Upload> {
  const sized = async <P extends { blob: BlobRef }>(part: P): Promise<P> => {
    const size = (await objects.head(upload.tenant, part.blob))?.size ?? 0;
    return { ...part, blob: { ...part.blob, size } };
  };
  return { ...(await sized(upload)), parts: await Promise.all(upload.parts.map(sized)) };
}

/** For a look at an upload. */
const storesNothing = (objects: Pick<Objects, "get">): Pick<Objects, "get" | "put"> => ({
  get: async (tenant, ref) => objects.get(tenant, ref),
  put: async (_tenant, kind, _source, { digest = digestOf("") } = {}) => ({ kind, digest, size: 0 }),
});

/** @returns the result of an earlier upload of the same bytes; undefined when there was none or its manifest is gone. */
async function readCached(
  objects: Objects,
  tenant: string,
  entry: { value: { manifest: BlobRef } } | undefined,
): Promise<(IngestResult & { kind: "ingested" }) | undefined> {
  if (entry === undefined) return undefined;
  const ref = entry.value.manifest;
  try {
    const { report, records, rejections, formats, chunks, pictures } = await getJson(objects, tenant, ref, datasetManifest);
    // The dataset that they were made for may be deleted this very moment: what is touched stays.
    for (const blob of [...chunks.map((chunk) => chunk.blob), ...(pictures === undefined ? [] : [pictures.table]), report, ref])
      if ((await objects.touch(tenant, blob)) === undefined) return undefined;
    if (pictures !== undefined) {
      for await (const entry of readPictureTable(objects, tenant, pictures.table))
        if ((await objects.touch(tenant, blobOfPicture(entry))) === undefined) return undefined;
    }
    return { kind: "ingested", manifest: ref, report, records, rejections, formats };
  } catch (error) {
    if (error instanceof PermanentError && error.code === "OBJECT_MISSING") return undefined;
    throw error;
  }
}
