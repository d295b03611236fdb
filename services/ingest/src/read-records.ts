/** Rows of a file to canonical records and rejections. No services: bytes in, records out. */
import { hash } from "node:crypto";
import type { Digest, Rec, Rejection } from "@loraline/contracts";
import { canonicalJson } from "./canonical-json.ts";
import { type Body, detect, isRefusal, type Refusal } from "./detect.ts";
import { type Container, type RawRow, splitRows } from "./split-rows.ts";

export interface ReadRecordsOptions {
  /** Named in every record and rejection. */
  filename: string;
  maxRowBytes: number;
}

/** A chunk's worth of rows, in their order: rows = records + rejections. */
export interface Batch {
  records: Rec[];
  rejections: Rejection[];
}

/**
 * @returns undefined when the file is empty or blank.
 * @throws PermanentError CONTAINER_UNSUPPORTED
 */
export async function readRecords(
  source: AsyncIterable<Uint8Array>,
  { filename, maxRowBytes }: ReadRecordsOptions,
): Promise<{ container: Container; batches: AsyncIterable<Batch> } | undefined> {
  const rows = await splitRows(source, maxRowBytes);
  if (rows === undefined) return undefined;
  const { container } = rows;
  async function* batches(raw: AsyncIterable<RawRow[]>): AsyncGenerator<Batch> {
    for await (const rowsOfChunk of raw) {
      const batch: Batch = { records: [], rejections: [] };
      for (const row of rowsOfChunk) {
        const read = readRow(row, container, filename);
        if ("v" in read) batch.records.push(read);
        else batch.rejections.push({ file: filename, line: row.number, code: read.code, message: read.message });
      }
      yield batch;
    }
  }
  return { container, batches: batches(rows.batches) };
}

function readRow(row: RawRow, container: Container, file: string): Rec | Refusal {
  if (!("text" in row)) return row;
  const place = container === "jsonl" ? `line ${row.number}` : `element ${row.number} (line ${row.firstLine})`;
  let value: unknown;
  try {
    value = JSON.parse(row.text);
  } catch (error) {
    return { code: "NOT_JSON", message: `${place}: not JSON: ${explainSyntax(error as Error, row.firstLine)}` };
  }
  try {
    const detected = detect(value, () => parseExact(row.text));
    if (isRefusal(detected)) return { code: detected.code, message: `${place}: ${detected.message}` };
    const { body, format, unusedKeys, seed } = detected;
    return {
      v: "lrec/1",
      id: recordId(body),
      ...body,
      meta: {
        file,
        line: row.number,
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

/** JSON with each number kept as it is written, so that `1.0` and integers beyond 2^53 survive being written again. */
function parseExact(text: string): Readonly<Record<string, unknown>> {
  const { rawJSON } = JSON as unknown as { rawJSON(source: string): unknown };
  const keep = (_key: string, value: unknown, context?: { source?: string }): unknown =>
    typeof value === "number" && context?.source !== undefined ? rawJSON(context.source) : value;
  return JSON.parse(text, keep) as Readonly<Record<string, unknown>>;
}
