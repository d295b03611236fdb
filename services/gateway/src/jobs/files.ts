/** `/v1/files`: receives datasets as a stream, and shows them as OpenAI's file objects. */
import { Readable } from "node:stream";
import { isDeepStrictEqual } from "node:util";
import {
  datasetDeleted,
  type DatasetMapping,
  datasetMapping,
  type DatasetState,
  type FileObject,
  type Problem,
  problemsOf,
} from "@loraline/contracts";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ulid } from "ulid";
import { createAudited } from "../access/audit.ts";
import type { Caller } from "../access/auth.ts";
import { contentLengthOf, multipartOverhead } from "../access/uploads.ts";
import type { GatewayContext } from "../context.ts";
import { checkModel } from "../access/decide-models.ts";
import { badRequest, badRequestOf, notFound } from "../errors.ts";
import { idempotencyKeyOf, idsOfKey, madeEarlier } from "../idempotency.ts";
import { datasetIdOf, fileIdOf, resultFileIdOf, runIdOfResult } from "../openai-ids.ts";
import { idOfCursor, pageOfItems, pageQueryOf } from "../paging.ts";
import { requestDeletion, whatStaysOf } from "../storage/deletions.ts";
import { counted, readForm, tooLarge } from "./read-form.ts";
import { fileObjectOf, foldWithinMs, purpose, receiveDataset } from "./receive-dataset.ts";
import { csvOf, metricsOf } from "./run-metrics.ts";
import { type SpooledUpload, spoolUpload } from "./spool-upload.ts";

export function fileRoutes(context: GatewayContext): (app: FastifyInstance) => void {
  const { bus, objects, state, quotas, uploads, downloads, uploadLimitBytes, spoolDir } = context;
  const audited = createAudited(context);

  const existing = async (request: FastifyRequest): Promise<DatasetState> => {
    const { id } = request.params as { id: string };
    const datasetId = datasetIdOf(id);
    const dataset = datasetId === undefined ? undefined : await state.dataset(request.caller.tenant, datasetId);
    if (dataset === undefined || dataset.status === "deleted") throw notFound("File object", id, "id");
    return dataset;
  };

  /** The CSV of a run's metrics, if the file in the path is a run's result; undefined: it is a dataset. */
  const resultOf = async ({ params, caller }: FastifyRequest): Promise<{ file: FileObject; csv: string } | undefined> => {
    const { id } = params as { id: string };
    const runId = runIdOfResult(id);
    if (runId === undefined) return undefined;
    const run = await state.run(caller.tenant, runId);
    if (run === undefined || run.trained === null || run.trained.steps === 0) throw notFound("File object", id, "id");
    checkModel(caller, run.spec.adapter);
    const csv = csvOf(await metricsOf(run, context));
    return {
      csv,
      file: {
        id: resultFileIdOf(runId),
        object: "file",
        bytes: Buffer.byteLength(csv),
        created_at: Math.floor(Date.parse(run.trained.at) / 1000),
        filename: "step_metrics.csv",
        purpose: "fine-tune-results",
        status: "processed",
        status_details: null,
      },
    };
  };

  /** Stores and announces an upload, once for each idempotency key. */
  const receive = async (
    caller: Caller,
    key: string | undefined,
    { spooled, filename, mapping }: { spooled: SpooledUpload; filename: string; mapping: DatasetMapping | null },
  ): Promise<DatasetState> => {
    const { tenant } = caller;
    const ids = key === undefined ? [] : idsOfKey({ tenant, key, nowMs: Date.now() });
    const earlier = await madeEarlier(ids, {
      what: "file or mapping",
      read: (id) => state.dataset(tenant, id),
      isSame: ({ blob, mapping: known, status }) =>
        blob?.digest === spooled.digest && isDeepStrictEqual(known, mapping) && status !== "deleted",
    });
    return earlier ?? receiveDataset(context, caller, { datasetId: ids[0] ?? ulid(), spooled, filename, mapping });
  };

  return (app) => {
    app.post("/files", async (request, reply) => {
      await quotas.admitDataset(request.caller.tenant);
      if (!request.isMultipart()) {
        throw badRequest("invalid_content_type", "Upload as multipart/form-data with the fields `file` and `purpose`.");
      }
      const contentLength = contentLengthOf(request.headers);
      if ((contentLength ?? 0) > uploadLimitBytes + multipartOverhead) throw tooLarge(uploadLimitBytes);
      const key = idempotencyKeyOf(request.headers);
      using upload = await uploads.begin(request.caller.tenant, contentLength);
      await using form = await readForm(request, {
        field: "file",
        spool: (file) => spoolUpload(counted(file, { limit: uploadLimitBytes, upload }), spoolDir),
        // Fields that are wrong are refused before the file's bytes are read.
        onField(name, text) {
          if (name === "purpose") checkPurpose(text);
          if (name === "mapping") mappingOf(text);
        },
      });
      const { spooled, filename } = form;
      const dataset = await receive(request.caller, key, { spooled, filename, mapping: checkFields(form.fields) });
      return await reply.send(fileObjectOf(dataset));
    });

    app.get("/files", async (request) => {
      const query = request.query as { purpose?: string; order?: string };
      if (query.order !== undefined && query.order !== "asc" && query.order !== "desc") {
        throw badRequest("invalid_order", `order must be "asc" or "desc", not "${query.order}".`, "order");
      }
      const page = pageQueryOf(query, { limit: 10_000, max: 10_000 });
      const asked = query.purpose === undefined || query.purpose === purpose;
      if (!asked) return pageOfItems({ items: [], hasMore: false }, page, fileObjectOf);
      const after = idOfCursor(page.after, datasetIdOf);
      const shown = ({ status }: DatasetState): boolean => status !== "deleted";
      const order = query.order ?? "desc";
      return pageOfItems(await state.datasetPage(request.caller.tenant, { ...page, after, order, shown }), page, fileObjectOf);
    });

    app.get("/files/:id", async (request) => (await resultOf(request))?.file ?? fileObjectOf(await existing(request)));

    app.get("/files/:id/content", async (request, reply) => {
      const result = await resultOf(request);
      if (result !== undefined) {
        return reply
          .header("content-type", "text/csv; charset=utf-8")
          .header("content-disposition", `attachment; filename="${result.file.filename}"`)
          .send(result.csv);
      }
      const dataset = await existing(request);
      const { blob, filename } = dataset;
      if (blob === null) throw notFound("content of file", fileIdOf(dataset.datasetId), "id");
      downloads.begin(request.caller.tenant, reply);
      const bytes = await objects.get(request.caller.tenant, blob);
      return reply
        .header("content-type", "application/octet-stream")
        .header("content-length", blob.size)
        .header("content-disposition", `attachment; filename*=UTF-8''${encodeURIComponent(filename)}`)
        .send(Readable.from(bytes, { objectMode: false }));
    });

    app.delete("/files/:id", async (request) => {
      const { tenant, by } = request.caller;
      if ((await resultOf(request)) !== undefined) {
        throw badRequest(
          "unsupported",
          "A result file is a view of its job and stays as long as that; delete the adapter to delete both.",
          "id",
        );
      }
      const dataset = await existing(request);
      const { datasetId } = dataset;
      await audited(request, { action: "dataset.delete", target: datasetId }, async () => {
        await bus.publish(datasetDeleted, { tenant, id: datasetId }, { by });
        await requestDeletion(bus, { tenant, what: "dataset", id: datasetId, by });
      });
      await state.datasetFolded(tenant, datasetId, ({ status }) => status === "deleted", foldWithinMs);
      const stays = await whatStaysOf(datasetId, request.caller, context);
      return { id: fileIdOf(datasetId), object: "file", deleted: true, loraline: { stays } };
    });
  };
}

/** @returns how the rows are to be read; null: by detection. */
function checkFields(fields: ReadonlyMap<string, string>): DatasetMapping | null {
  checkPurpose(fields.get("purpose"));
  const expiry = [...fields.keys()].find((name) => name.startsWith("expires_after"));
  if (expiry !== undefined) {
    throw badRequest("unsupported", "expires_after is not supported: files stay until they are deleted. Remove it.", "expires_after");
  }
  const inParts = [...fields.keys()].find((name) => name.startsWith("mapping["));
  if (inParts !== undefined) {
    throw badRequest("invalid_mapping", `Send the whole mapping as JSON text in the field "mapping", not as "${inParts}".`, "mapping");
  }
  return mappingOf(fields.get("mapping"));
}

function mappingOf(given: string | undefined): DatasetMapping | null {
  if (given === undefined || given.trim() === "") return null;
  let raw: unknown;
  try {
    raw = JSON.parse(given);
  } catch (error) {
    throw badRequest("invalid_mapping", `mapping is not JSON: ${(error as Error).message}.`, "mapping");
  }
  const parsed = datasetMapping.safeParse(raw);
  if (parsed.success) return parsed.data;
  throw badRequestOf(problemsOf(parsed.error, "invalid_mapping", "mapping") as [Problem, ...Problem[]]);
}

function checkPurpose(given: string | undefined): void {
  if (given === purpose) return;
  throw badRequest(
    "invalid_purpose",
    given === undefined
      ? `purpose is missing. Send purpose="${purpose}".`
      : `purpose "${given}" is not supported: files are training data here. Send purpose="${purpose}".`,
    "purpose",
  );
}
