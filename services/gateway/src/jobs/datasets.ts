/** `/v1/loraline/datasets`: reports about each dataset, which OpenAI's file object does not have. */
import { Readable } from "node:stream";
import { isDeepStrictEqual } from "node:util";
import {
  type BlobRef,
  datasetImportRequested,
  datasetManifest,
  datasetReport,
  type DatasetReport,
  type DatasetState,
  importBody,
  type PictureEntry,
} from "@loraline/contracts";
import { blobOfPicture, getJson, readPictureTable } from "@loraline/objects";
import { parseFetchUrl } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ulid } from "ulid";
import { parsedBody } from "../body.ts";
import type { GatewayContext } from "../context.ts";
import { notFound } from "../errors.ts";
import { idempotencyKeyOf, idsOfKey, madeEarlier } from "../idempotency.ts";
import { datasetIdOf } from "../openai-ids.ts";
import { dataOfPage, idOfCursor, pageQueryOf, ulidOf } from "../paging.ts";
import { requestSpan } from "../tracing.ts";

/** How long an answer waits for the projector, so that lists already show the dataset. The answer is right also without it. */
const foldWithinMs = 1000;

export function datasetRoutes({ bus, objects, state, quotas, downloads }: GatewayContext): (app: FastifyInstance) => void {
  const existing = async (request: FastifyRequest): Promise<DatasetState> => {
    const { id } = request.params as { id: string };
    const datasetId = datasetIdOf(id) ?? id;
    const dataset = await state.dataset(request.caller.tenant, datasetId);
    if (dataset === undefined || dataset.status === "deleted") throw notFound("dataset", id, "id");
    return dataset;
  };
  const reportOf = async (request: FastifyRequest): Promise<DatasetReport> => {
    const { datasetId, report } = await existing(request);
    if (report === null) throw notFound("report of dataset", datasetId, "id");
    return getJson(objects, request.caller.tenant, report, datasetReport);
  };

  const pictureOf = async (tenant: string, ref: BlobRef, digest: string): Promise<PictureEntry | undefined> => {
    const { pictures } = await getJson(objects, tenant, ref, datasetManifest);
    if (pictures === undefined) return undefined;
    for await (const entry of readPictureTable(objects, tenant, pictures.table)) if (entry.digest === digest) return entry;
    return undefined;
  };

  return (app) => {
    app.get("/loraline/datasets", async (request) => {
      const page = pageQueryOf(request.query, { limit: 1000, max: 1000 });
      const after = idOfCursor(page.after, (id) => datasetIdOf(id) ?? ulidOf(id));
      const shown = ({ status }: DatasetState): boolean => status !== "deleted";
      return dataOfPage(await state.datasetPage(request.caller.tenant, { ...page, after, shown }), page);
    });
    app.post("/loraline/datasets/import", async (request, reply) => {
      const { tenant, by } = request.caller;
      const { mapping, ...source } = parsedBody(importBody, request.body);
      // A URL that is never allowed is refused here; whether its host may be reached is checked by ingest.
      if ("url" in source) parseFetchUrl(source.url);
      const key = idempotencyKeyOf(request.headers);
      const ids = key === undefined ? [] : idsOfKey({ tenant, key, nowMs: Date.now() });
      const earlier = await madeEarlier(ids, {
        what: "file",
        read: (earlierId) => state.dataset(tenant, earlierId),
        isSame: (known) => isDeepStrictEqual(known.source, source) && known.status !== "deleted",
      });
      if (earlier !== undefined) return reply.code(202).send(earlier);
      await quotas.admitDataset(tenant);
      const id = ids[0] ?? ulid();
      requestSpan()?.setAttribute("loraline.dataset.id", id);
      await bus.publish(datasetImportRequested, { tenant, id }, { source, mapping, by });
      await state.datasetFolded(tenant, id, () => true, foldWithinMs);
      return reply.code(202).send(await state.dataset(tenant, id));
    });
    app.get("/loraline/datasets/:id", existing);
    app.get("/loraline/datasets/:id/report", reportOf);
    // Sent as JSON Lines, because there may be as many rejections as the file has rows.
    app.get("/loraline/datasets/:id/rejections", async (request, reply) => {
      const { allRejections } = await reportOf(request);
      downloads.begin(request.caller.tenant, reply);
      const lines = allRejections === null ? [] : await objects.get(request.caller.tenant, allRejections);
      return reply.header("content-type", "application/jsonl").send(Readable.from(lines, { objectMode: false }));
    });
    app.get("/loraline/datasets/:id/pictures/:digest", async (request, reply) => {
      const { tenant } = request.caller;
      const { digest } = request.params as { digest: string };
      const { datasetId, manifest } = await existing(request);
      const entry = manifest === null ? undefined : await pictureOf(tenant, manifest, digest);
      if (entry === undefined) throw notFound("picture", `${digest} of dataset ${datasetId}`, "digest");
      downloads.begin(tenant, reply);
      const bytes = await objects.get(tenant, blobOfPicture(entry));
      return (
        reply
          .header("content-type", entry.media_type)
          .header("content-length", entry.bytes)
          // Bytes of strangers: a browser must take them for this picture only, and its page may do nothing.
          .header("x-content-type-options", "nosniff")
          .header("content-security-policy", "default-src 'none'; sandbox")
          .header("cache-control", "private, max-age=86400, immutable")
          .send(Readable.from(bytes, { objectMode: false }))
      );
    });
  };
}
