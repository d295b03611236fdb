/** Forms with one file, which goes to the disk as it comes. */
import type { MultipartFile } from "@fastify/multipart";
import { PermanentError } from "@loraline/runtime";
import type { FastifyRequest } from "fastify";
import type { Upload } from "../access/uploads.ts";
import { fieldText } from "../body.ts";
import { badRequest } from "../errors.ts";
import type { SpooledUpload } from "./spool-upload.ts";

export const tooLarge = (limitBytes: number): PermanentError =>
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

/**
 * Reads the form part by part; the file goes to `spool` as it arrives. Fields may come before or after it.
 * @param options.onField - called with each field that comes before the file.
 */
export async function readForm(
  request: FastifyRequest,
  {
    field,
    spool,
    onField,
  }: {
    /** Name of the field with the file. */
    field: string;
    spool: (file: AsyncIterable<Uint8Array>) => Promise<SpooledUpload>;
    onField?: (name: string, text: string) => void;
  },
): Promise<Form> {
  const fields = new Map<string, string>();
  let stored: { spooled: SpooledUpload; filename: string } | undefined;
  if (!request.isMultipart())
    throw badRequest("invalid_content_type", `Upload as multipart/form-data with the file in the field \`${field}\`.`);
  try {
    for await (const part of request.parts()) {
      if (part.type === "field") {
        const text = fieldText(part.value);
        fields.set(part.fieldname, text);
        if (stored === undefined) onField?.(part.fieldname, text);
        continue;
      }
      if (part.fieldname !== field) {
        throw badRequest("unknown_field", `The upload has a file in "${part.fieldname}". Send it in the field "${field}".`, part.fieldname);
      }
      stored = { spooled: await spool(part.file), filename: nameOf(part) };
    }
  } catch (error) {
    await stored?.spooled[Symbol.asyncDispose]();
    if (request.raw.destroyed && !request.raw.complete) {
      throw badRequest("upload_aborted", "The upload ended before the file was complete; nothing was stored.", field);
    }
    throw isMalformedForm(error) ? badRequest("invalid_multipart", `The form data is broken: ${(error as Error).message}.`) : error;
  }
  if (stored === undefined) throw badRequest("missing_file", `The upload has no file. Send it in the field "${field}".`, field);
  return { ...stored, fields, [Symbol.asyncDispose]: () => stored.spooled[Symbol.asyncDispose]() };
}

const nameOf = (part: MultipartFile): string => (part.filename || "upload").slice(-512).toWellFormed();

/** Whether the error is of the form's parser (busboy): its errors have no code, unlike ours and fastify's. */
const isMalformedForm = (error: unknown): boolean =>
  error instanceof Error && !("code" in error) && /multipart|malformed|terminated early|boundary|part/i.test(error.message);

/** Passes bytes on; fails when there are none, more than `limit`, or more than the upload may have, so that nothing of either kind is stored. */
export async function* counted(
  source: AsyncIterable<Uint8Array>,
  { limit, upload, tooLarge: refusal = tooLarge }: { limit: number; upload: Upload; tooLarge?: typeof tooLarge },
): AsyncGenerator<Uint8Array, void, undefined> {
  let bytes = 0;
  for await (const chunk of source) {
    bytes += chunk.byteLength;
    if (bytes > limit) throw refusal(limit);
    await upload.arrived(chunk.byteLength);
    yield chunk;
  }
  upload.whole();
  if (bytes === 0) throw badRequest("empty_file", "The file is empty. Send at least one training example.", "file");
}
