/** `/v1/files`: receives datasets as a stream, and shows them as OpenAI's file objects. */
import { Readable } from "node:stream";
import { isDeepStrictEqual } from "node:util";
import type { MultipartFile } from "@fastify/multipart";
import {
  type BlobRef,
  datasetDeleted,
  type DatasetMapping,
  datasetMapping,
  datasetReceived,
  type DatasetState,
  type FileObject,
  type Problem,
  problemsOf,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ulid } from "ulid";
import { createAudited } from "../access/audit.ts";
import type { Caller } from "../access/auth.ts";
import { contentLengthOf, multipartOverhead, type Upload } from "../access/uploads.ts";
import { fieldText } from "../body.ts";
import type { GatewayContext } from "../context.ts";
import { checkModel } from "../access/decide-models.ts";
import { badRequest, badRequestOf, notFound } from "../errors.ts";
import { idempotencyKeyOf, idsOfKey, madeEarlier } from "../idempotency.ts";
import { datasetIdOf, fileIdOf, resultFileIdOf, runIdOfResult } from "../openai-ids.ts";
import { idOfCursor, pageOfItems, pageQueryOf } from "../paging.ts";
import { requestDeletion, whatStaysOf } from "../storage/deletions.ts";
import { requestSpan } from "../tracing.ts";
import { csvOf, metricsOf } from "./run-metrics.ts";
import { type SpooledUpload, spoolUpload } from "./spool-upload.ts";

const purpose = "fine-tune";
/** How long an answer waits for the projector, so that lists already show the dataset. The answer is right also without it. */
const foldWithinMs = 1000;

const statusOf = { importing: "uploaded", received: "uploaded", ingested: "processed", rejected: "error", deleted: "error" } as const;

const blobsOf = ({ blob, parts }: DatasetState): BlobRef[] => (blob === null ? [] : [blob, ...parts.map((part) => part.blob)]);

function fileObjectOf(dataset: DatasetState): FileObject {
  return {
    id: fileIdOf(dataset.datasetId),
    object: "file",
    bytes: blobsOf(dataset).reduce((sum, { size }) => sum + size, 0),
    created_at: Math.floor(Date.parse(dataset.receivedAt) / 1000),
    filename: dataset.filename,
    purpose,
    status: statusOf[dataset.status],
    status_details:
      dataset.error?.message ??
      (dataset.waiting !== null ? `waiting: ${dataset.waiting.message}` : null) ??
      (dataset.status === "importing" ? "The file is being fetched." : null),
    loraline: {
      sha256: dataset.blob?.digest.slice("sha256:".length) ?? null,
      records: dataset.records,
      rejections: dataset.rejections,
      error: dataset.error,
    },
  };
}

export function fileRoutes(context: GatewayContext): (app: FastifyInstance) => void {
  const { bus, objects, state, quotas, uploads, uploadLimitBytes, spoolDir } = context;
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
    const { tenant, by } = caller;
    const store = () => objects.put(tenant, "raw", { file: spooled.file }, { digest: spooled.digest });
    const upload = { blob: { kind: "raw", digest: spooled.digest, size: spooled.size }, filename, mapping } as const;
    const ids = key === undefined ? [] : idsOfKey({ tenant, key, nowMs: Date.now() });
    const earlier = await madeEarlier(ids, {
      what: "file or mapping",
      read: (id) => state.dataset(tenant, id),
      isSame: ({ blob, mapping, status }) =>
        blob?.digest === upload.blob.digest && isDeepStrictEqual(mapping, upload.mapping) && status !== "deleted",
    });
    if (earlier !== undefined) return earlier;
    const datasetId = ids[0] ?? ulid();
    requestSpan()?.setAttribute("loraline.dataset.id", datasetId);
    await store();
    await bus.publish(datasetReceived, { tenant, id: datasetId }, { ...upload, by });
    await state.datasetFolded(tenant, datasetId, () => true, foldWithinMs);
    // If another dataset with these bytes was deleted and this gateway slept in between, they may be gone. Now that they are told of, they stay.
    if ((await objects.head(tenant, upload.blob)) === undefined) await store();
    const dataset = await state.dataset(tenant, datasetId);
    if (dataset === undefined) throw new Error(`dataset ${datasetId} was stored, but cannot be read back`);
    return dataset;
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
      await using form = await readForm(request, (file) => spoolUpload(counted(file, { limit: uploadLimitBytes, upload }), spoolDir));
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

const tooLarge = (limitBytes: number): PermanentError =>
  new PermanentError(
    "file_too_large",
    `The file is larger than this gateway accepts (${limitBytes} bytes). Split it, or raise the gateway's upload limit.`,
    { status: 413, param: "file" },
  );

interface Form extends AsyncDisposable {
  spooled: SpooledUpload;
  filename: string;
  fields: ReadonlyMap<string, string>;
}

/** Reads the form part by part; the file goes to `spool` as it arrives. Fields may come before or after it. */
async function readForm(request: FastifyRequest, spool: (file: AsyncIterable<Uint8Array>) => Promise<SpooledUpload>): Promise<Form> {
  const fields = new Map<string, string>();
  let stored: { spooled: SpooledUpload; filename: string } | undefined;
  try {
    for await (const part of request.parts()) {
      if (part.type === "field") {
        const text = fieldText(part.value);
        fields.set(part.fieldname, text);
        // Fields that are wrong are refused before the file's bytes are read.
        if (part.fieldname === "purpose" && stored === undefined) checkPurpose(text);
        if (part.fieldname === "mapping" && stored === undefined) mappingOf(text);
        continue;
      }
      if (part.fieldname !== "file") {
        throw badRequest("unknown_field", `The upload has a file in "${part.fieldname}". Send it in the field "file".`, part.fieldname);
      }
      stored = { spooled: await spool(part.file), filename: nameOf(part) };
    }
  } catch (error) {
    await stored?.spooled[Symbol.asyncDispose]();
    if (request.raw.destroyed && !request.raw.complete) {
      throw badRequest("upload_aborted", "The upload ended before the file was complete; nothing was stored.", "file");
    }
    throw isMalformedForm(error) ? badRequest("invalid_multipart", `The form data is broken: ${(error as Error).message}.`) : error;
  }
  if (stored === undefined) throw badRequest("missing_file", 'The upload has no file. Send it in the field "file".', "file");
  return { ...stored, fields, [Symbol.asyncDispose]: () => stored.spooled[Symbol.asyncDispose]() };
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

const nameOf = (part: MultipartFile): string => (part.filename || "upload").slice(-512).toWellFormed();

/** Whether the error is of the form's parser (busboy): its errors have no code, unlike ours and fastify's. */
const isMalformedForm = (error: unknown): boolean =>
  error instanceof Error && !("code" in error) && /multipart|malformed|terminated early|boundary|part/i.test(error.message);

/** Passes bytes on; fails when there are none, more than `limit`, or more than the upload may have, so that nothing of either kind is stored. */
async function* counted(
  source: AsyncIterable<Uint8Array>,
  { limit, upload }: { limit: number; upload: Upload },
): AsyncGenerator<Uint8Array, void, undefined> {
  let bytes = 0;
  for await (const chunk of source) {
    bytes += chunk.byteLength;
    if (bytes > limit) throw tooLarge(limit);
    await upload.arrived(chunk.byteLength);
    yield chunk;
  }
  upload.whole();
  if (bytes === 0) throw badRequest("empty_file", "The file is empty. Send at least one training example.", "file");
}
