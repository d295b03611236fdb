/**
 * `/v1/uploads`: a file that comes in parts. Each part is a blob in the object store as soon as it is answered, and KV `uploads` says which belong to
 * which upload, so any gateway can go on, and a killed one loses nothing that was answered.
 *
 *   begin ──► parts, in any order ──► complete: put together, checked, stored ──► marked ──► told of (dataset.received) ──► forgotten
 *                                                                                        └── dies here: complete again goes on
 *
 * The collector (@loraline/storage) removes the parts of uploads that have ended or expired.
 */
import { createHash } from "node:crypto";
import {
  buckets,
  completeUploadBody,
  createUploadBody,
  type DatasetState,
  everyKeyOf,
  uploadKey,
  type UploadObject,
  uploadOpenMs,
  uploadPartBytes,
  type UploadState,
} from "@loraline/contracts";
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ulid } from "ulid";
import { contentLengthOf, multipartOverhead } from "../access/uploads.ts";
import { parsedBody } from "../body.ts";
import type { GatewayContext } from "../context.ts";
import { badRequest, notFound } from "../errors.ts";
import { fileIdOf, partIdOf, ulidOfUpload, uploadIdOf } from "../openai-ids.ts";
import { counted, readForm, tooLarge } from "./read-form.ts";
import { announceDataset, fileObjectOf, readBack, storeFile } from "./receive-dataset.ts";
import { spoolUpload } from "./spool-upload.ts";

/** Most uploads of a tenant that are known at a time, ended ones included: they are known for three hours. */
const mostUploads = 1000;
const mostParts = 2000;
/** Most bytes of what KV knows of a tenant's uploads. It is looked at when an upload begins, and after so many parts of one. */
const mostKnownBytes = 16 * 1024 ** 2;
const lookEveryParts = 64;

type Status = UploadObject["status"];
const statusOf = ({ status, expiresAt }: UploadState): Status =>
  status === "pending" && Date.now() >= Date.parse(expiresAt) ? "expired" : status;

export async function partUploadRoutes(context: GatewayContext): Promise<(app: FastifyInstance) => void> {
  const { bus, objects, state, quotas, uploads, uploadLimitBytes, spoolDir } = context;
  const bucket = await bus.bucket(buckets.uploads);

  /** @throws PermanentError 404 */
  const existing = async (request: FastifyRequest): Promise<UploadState> => {
    const { upload_id } = request.params as { upload_id: string };
    const id = ulidOfUpload(upload_id);
    const found = id === undefined ? undefined : (await bucket.get(uploadKey({ tenant: request.caller.tenant, id })))?.value;
    if (found === undefined) throw notFound("Upload object", upload_id, "upload_id");
    return found;
  };

  /** Changes an upload that takes something still. @throws PermanentError 400 `upload_ended`, 404 */
  const change = async (tenant: string, id: string, next: (current: UploadState) => UploadState): Promise<UploadState> => {
    const changed = await bucket.change(uploadKey({ tenant, id }), (current) =>
      current === undefined ? undefined : next(checkOpen(current)),
    );
    if (changed === undefined) throw notFound("Upload object", uploadIdOf(id), "upload_id");
    return changed;
  };

  /** Small parts leave as much in KV as large ones, so their number is bounded over all of a tenant's uploads. @throws RetryLaterError */
  const checkRoom = async (tenant: string): Promise<void> => {
    const known = await bucket.sizes(everyKeyOf(tenant));
    if (known.length < mostUploads && known.reduce((sum, { bytes }) => sum + bytes, 0) < mostKnownBytes) return;
    const message = `This tenant has begun ${known.length} uploads in the last three hours, or sent too many parts of them. Try again later with larger parts, or send whole files to /v1/files.`;
    throw new RetryLaterError("too_many_uploads", 60_000, message);
  };

  /** Tells of the dataset that was put together, if nobody has, and forgets what is not needed any more. */
  const announce = async (request: FastifyRequest, upload: UploadState): Promise<DatasetState> => {
    const { tenant } = request.caller;
    const { id, file: blob, filename, mapping } = upload;
    if (blob !== null && (await state.dataset(tenant, id)) === undefined) {
      await announceDataset(context, request.caller, { datasetId: id, blob, filename, mapping });
    }
    const dataset = blob === null ? await state.dataset(tenant, id) : await readBack(context, tenant, id);
    if (dataset === undefined || dataset.status === "deleted") throw notFound("File object", fileIdOf(id), "upload_id");
    // The dataset says it all from here on, and is what is deleted.
    await bucket.change(uploadKey({ tenant, id }), (current) =>
      current === undefined || current.file === null ? undefined : { ...current, file: null, filename: "-", mapping: null },
    );
    return dataset;
  };

  return (app) => {
    app.post("/uploads", async (request) => {
      const { tenant } = request.caller;
      const { bytes, filename, mapping } = parsedBody(createUploadBody, request.body);
      if (bytes > uploadLimitBytes) throw tooLarge(uploadLimitBytes);
      await quotas.admitDataset(tenant);
      await checkRoom(tenant);
      const now = Date.now();
      const upload: UploadState = {
        id: ulid(now),
        bytes,
        filename: filename.toWellFormed(),
        mapping: mapping ?? null,
        createdAt: new Date(now).toISOString(),
        expiresAt: new Date(now + uploadOpenMs).toISOString(),
        status: "pending",
        parts: [],
        file: null,
      };
      await bucket.put(uploadKey({ tenant, id: upload.id }), upload);
      return uploadObjectOf(upload);
    });

    app.post("/uploads/:upload_id/parts", async (request) => {
      const { tenant } = request.caller;
      const { id, parts } = checkOpen(await existing(request));
      if (parts.length % lookEveryParts === lookEveryParts - 1) await checkRoom(tenant);
      const contentLength = contentLengthOf(request.headers);
      if ((contentLength ?? 0) > uploadPartBytes + multipartOverhead) throw partTooLarge();
      using place = await uploads.begin(tenant, contentLength);
      await using form = await readForm(request, {
        field: "data",
        spool: (data) => spoolUpload(counted(data, { limit: uploadPartBytes, upload: place, tooLarge: partTooLarge }), spoolDir),
      });
      const blob = await storeFile(context, tenant, form.spooled);
      const part = { id: partIdOf(ulid()), blob, at: new Date().toISOString() };
      await change(tenant, id, (current) => {
        if (current.parts.length < mostParts) return { ...current, parts: [...current.parts, part] };
        throw badRequest("upload_incomplete", `An upload has at most ${mostParts} parts. Begin another one, with larger parts.`, "data");
      });
      return { id: part.id, object: "upload.part", created_at: unix(part.at), upload_id: uploadIdOf(id) };
    });

    app.post("/uploads/:upload_id/complete", async (request) => {
      const { tenant } = request.caller;
      const { part_ids, md5 } = parsedBody(completeUploadBody, request.body);
      const upload = await existing(request);
      // Asked again, perhaps because the gateway died before it answered.
      if (upload.status === "completed") return uploadObjectOf(upload, await announce(request, upload));
      const parts = partsInOrder(checkOpen(upload), part_ids);
      await quotas.admitDataset(tenant);
      // Its bytes were counted when they came; here it takes a place at this gateway, and room in the store.
      using place = await uploads.begin(tenant, 0);
      const hash = createHash("md5");
      const whole = async function* (): AsyncGenerator<Uint8Array> {
        for (const { blob } of parts) {
          for await (const chunk of await objects.get(tenant, blob)) {
            hash.update(chunk);
            await place.arrived(chunk.byteLength);
            yield chunk;
          }
        }
        place.whole();
      };
      await using spooled = await spoolUpload(whole(), spoolDir);
      const found = hash.digest("hex");
      if (md5 !== null && md5 !== undefined && md5.toLowerCase() !== found) {
        const message = `md5: the parts make a file with the checksum ${found}, not ${md5}. Name them in the file's order, or send them again.`;
        throw badRequest("checksum_mismatch", message, "md5");
      }
      const file = await storeFile(context, tenant, spooled);
      // Of several who complete it at once, one does.
      const completed = await bucket.change(uploadKey({ tenant, id: upload.id }), (current) =>
        current === undefined || current.status === "completed"
          ? undefined
          : { ...checkOpen(current), status: "completed", file, parts: [] },
      );
      if (completed === undefined) throw notFound("Upload object", uploadIdOf(upload.id), "upload_id");
      const dataset = await announce(request, completed);
      // As with whole files: bytes that were removed while this gateway slept are stored again, now that they are told of.
      if ((await objects.head(tenant, file)) === undefined) await storeFile(context, tenant, spooled);
      return uploadObjectOf(completed, dataset);
    });

    app.post("/uploads/:upload_id/cancel", async (request) => {
      const { id } = await existing(request);
      return uploadObjectOf(await change(request.caller.tenant, id, (current) => ({ ...current, status: "cancelled", parts: [] })));
    });
  };
}

const unix = (iso: string): number => Math.floor(Date.parse(iso) / 1000);

function uploadObjectOf(upload: UploadState, dataset?: DatasetState): UploadObject {
  const { id, bytes, createdAt, expiresAt } = upload;
  return {
    id: uploadIdOf(id),
    object: "upload",
    bytes,
    created_at: unix(createdAt),
    expires_at: unix(expiresAt),
    filename: dataset?.filename ?? upload.filename,
    purpose: "fine-tune",
    status: statusOf(upload),
    file: dataset === undefined ? null : fileObjectOf(dataset),
  };
}

/** @throws PermanentError 400 `upload_ended` */
function checkOpen(upload: UploadState): UploadState {
  const status = statusOf(upload);
  if (status === "pending") return upload;
  const why = status === "expired" ? "has expired: an upload is open for an hour" : `is ${status}`;
  throw badRequest("upload_ended", `The upload ${uploadIdOf(upload.id)} ${why}. Begin another one.`, "upload_id");
}

/** @throws PermanentError 400 `upload_incomplete` */
function partsInOrder({ id, parts, bytes }: UploadState, ids: readonly string[]): UploadState["parts"] {
  const incomplete = (why: string, param = "part_ids") => badRequest("upload_incomplete", `${param}: ${why}`, param);
  const known = new Map(parts.map((part) => [part.id, part]));
  const named = ids.map((partId, index) => {
    const part = known.get(partId);
    if (part === undefined) throw incomplete(`the upload ${uploadIdOf(id)} has no part ${partId}.`, `part_ids[${index}]`);
    return part;
  });
  if (new Set(ids).size !== ids.length) throw incomplete("a part is named twice.");
  const sum = named.reduce((total, { blob }) => total + blob.size, 0);
  if (sum !== bytes) throw incomplete(`the parts have ${sum} bytes together, and the upload was announced with ${bytes}.`);
  return named;
}

const partTooLarge = (): PermanentError =>
  new PermanentError("file_too_large", `A part has at most ${uploadPartBytes} bytes. Send more, smaller ones.`, {
    status: 413,
    param: "data",
  });
