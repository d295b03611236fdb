/** Rows of a file to canonical records and rejections. No services: bytes in, records out. */
import { hash } from "node:crypto";
import type { Digest, Rec, Rejection } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { canonicalJson } from "./canonical-json.ts";
import { type Body, detect, isRefusal, type Refusal } from "./detect.ts";
import { parseExact } from "./exact-json.ts";
import { type FileSource, openContainer } from "./open-container.ts";
import type { Container, RawRow } from "./raw-rows.ts";
import type { UnpackLimits } from "./unpack.ts";

export interface ReadRecordsOptions {
  /** Named in every record and rejection. */
  filename: string;
  maxRowBytes: number;
  unpackLimits?: UnpackLimits;
}

/** A chunk's worth of rows, in their order: rows = records + rejections. */
export interface Batch {
  records: Rec[];
  rejections: Rejection[];
}

/**
 * Reads any file that people upload (see `openContainer`): a path, or its bytes once, without any service.
 *
 * What is wrong with one row is a rejection. What nothing can be read after is an error of the iteration: FILE_TRUNCATED,
 * FILE_CORRUPT, FILE_TOO_LARGE, CSV_HEADER, CSV_QUOTES; its message says how many rows were read until there.
 *
 * @returns undefined when the file is empty or blank.
 * @throws PermanentError CONTAINER_UNSUPPORTED, and those of the iteration where the beginning is broken already.
 */
export async function readRecords(
  source: FileSource,
  { filename, ...options }: ReadRecordsOptions,
): Promise<{ container: Container; batches: AsyncIterable<Batch> } | undefined> {
  const rows = await openContainer(source, options);
  if (rows === undefined) return undefined;
  async function* batches(raw: AsyncIterable<RawRow[]>): AsyncGenerator<Batch> {
    let count = 0;
    try {
      for await (const rowsOfChunk of raw) {
        const batch: Batch = { records: [], rejections: [] };
        for (const row of rowsOfChunk) {
          const read = readRow(row, filename);
          if ("v" in read) batch.records.push(read);
          else batch.rejections.push({ file: filename, line: row.line, code: read.code, message: read.message });
        }
        count += rowsOfChunk.length;
        yield batch;
      }
    } catch (error) {
      if (!(error instanceof PermanentError) || !isFileFault(error)) throw error;
      const { code, param, status } = error;
      throw new PermanentError(code, `${error.message} (Rows read until there: ${count}.)`, { param, status, cause: error });
    }
  }
  return { container: rows.container, batches: batches(rows.batches) };
}

/** Says something about the uploaded file, and nothing about where it is kept. */
export const isFileFault = ({ code }: { code: string }): boolean =>
  code.startsWith("FILE_") || code.startsWith("CSV_") || code === "CONTAINER_UNSUPPORTED";

function readRow(row: RawRow, file: string): Rec | Refusal {
  if ("refusal" in row) return row.refusal;
  const { line, place } = row;
  let value: unknown;
  try {
    value = "text" in row ? JSON.parse(row.text) : row.value;
  } catch (error) {
    return { code: "NOT_JSON", message: `${place}: not JSON: ${explainSyntax(error as Error, (row as { firstLine: number }).firstLine)}` };
  }
  try {
    const detected = detect(value, "text" in row ? () => parseExact(row.text) : row.exact);
    if (isRefusal(detected)) return { code: detected.code, message: `${place}: ${detected.message}` };
    const { body, format, unusedKeys, seed } = detected;
    return {
      v: "lrec/1",
      id: recordId(body),
      ...body,
      meta: {
        file,
        line,
        format,
        ...(unusedKeys.length === 0 ? {} : { unusedKeys: [...unusedKeys] }),
        ...(seed === undefined ? {} : { seed }),
      },
    };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return { code: "NESTED_TOO_DEEPLY", message: `${place}: the row is nested too deeply to be read` };
  }
}

/** sha256 over everything but `meta`, as canonical JSON (RFC 8785). */
export const recordId = (body: Body): Digest => `sha256:${hash("sha256", canonicalJson({ v: "lrec/1", ...body }))}`;

/** V8's message, with the position as a person counts it. */
function explainSyntax(error: Error, firstLine: number): string {
  const position = /^(.*?)(?: in JSON)? at position \d+ \(line (\d+) column (\d+)\)$/s.exec(error.message);
  if (position === null) return error.message;
  const [, what, line, column] = position;
  return Number(line) === 1 ? `${what} at column ${column}` : `${what} at line ${firstLine + Number(line) - 1}, column ${column}`;
}
