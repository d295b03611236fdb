/** Converts the rows of a file to canonical records and rejections. Needs no services: bytes in, records out. */
import { stat } from "node:fs/promises";
import type { DatasetMapping, Rec, Rejection } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { setImmediate as nextTurn } from "node:timers/promises";
import { createDetector, type Detector, isRefusal, needsLabels, type Refusal } from "./formats/detect.ts";
import { parseExact } from "./containers/exact-json.ts";
import { countLabels } from "./formats/label-inventory.ts";
import { type FileSource, openContainer, openParts, type Part } from "./containers/open-container.ts";
import type { Container, Note, RawRow } from "./containers/raw-rows.ts";
import type { PictureTaker } from "./pictures/take-pictures.ts";
import { recordId } from "./formats/record-id.ts";
import { redact } from "./report/redact-records.ts";
import type { UnpackLimits } from "./containers/unpack.ts";

export interface ReadRecordsOptions {
  /** How the rows are read; absent: each row's format is detected. */
  mapping?: DatasetMapping | null | undefined;
  /**
   * Reads the same bytes a second time, to collect the classes of a classification before its prompts are written. A file on disk
   * does not need it. Without it prompts do not list the classes.
   */
  reopen?: () => Promise<AsyncIterable<Uint8Array>>;
  maxRowBytes: number;
  unpackLimits?: UnpackLimits;
  /** The file's name; of several files each has its own. */
  name?: string | undefined;
  /** See `openContainer`. */
  onShare?: ((share: number) => void) | undefined;
  /** Takes what records show. Absent: pictures are left where they are. */
  pictures?: Pick<PictureTaker, "take"> | undefined;
}

/** A batch of rows, in their order: rows = records + rejections. */
export interface Batch {
  records: Rec[];
  rejections: Rejection[];
}

/**
 * Reads any file that people upload (see `openContainer`): a path, its bytes once, or several files as one; without any service.
 *
 * An error within one row is a rejection. An error after which nothing can be read is thrown by the iteration: FILE_TRUNCATED,
 * FILE_CORRUPT, FILE_TOO_LARGE, CSV_HEADER, CSV_QUOTES; its message says how many rows were read until there.
 *
 * @returns undefined when the file is empty or blank.
 * @throws PermanentError CONTAINER_UNSUPPORTED, and those of the iteration where the beginning is broken already.
 */
export async function readRecords(
  source: FileSource | readonly Part[],
  { mapping, reopen, pictures, ...settings }: ReadRecordsOptions,
): Promise<{ container: Container; notes: readonly Note[]; batches: AsyncIterable<Batch> } | undefined> {
  const options = { ...settings, encoding: mapping?.encoding, textRows: mapping?.text_rows };
  const open = (from: FileSource | readonly Part[], more: { onShare?: typeof settings.onShare } = {}) =>
    isParts(from) ? openParts(from, { ...options, ...more }) : openContainer(from, { ...options, ...more });
  const counted = await countedSource(source);
  const rows = await open(counted.source, { onShare: settings.onShare ?? counted.onShare });
  if (rows === undefined) return undefined;
  // What is read a second time is not counted again.
  const again = isParts(source) ? async () => source : "file" in source ? async () => ({ file: source.file }) : reopen;
  const detector = createDetector({ mapping, labels: again === undefined ? null : undefined });
  const learnLabels = async (): Promise<void> => {
    const all = await open((await again?.()) as FileSource | readonly Part[]);
    detector.useLabels(all === undefined ? null : await countLabels(all.batches, detector));
  };
  async function* batches(raw: AsyncIterable<RawRow[]>): AsyncGenerator<Batch> {
    let count = 0;
    try {
      for await (const rowsOfPart of inParts(raw)) {
        const batch: Batch = { records: [], rejections: [] };
        const places: string[] = [];
        const withPictures: (() => Promise<void>)[] = [];
        const reads: (Rec | Refusal)[] = [];
        for (const [at, row] of rowsOfPart.entries()) {
          let read = readRow(row, detector);
          if (read === needsLabels) {
            await learnLabels();
            read = readRow(row, detector) as Rec | Refusal;
          }
          reads.push(read);
          if (pictures === undefined || !("v" in read) || read.media === undefined) continue;
          const record = read;
          const from = { place: row.place, file: row.file, beside: row.beside };
          withPictures.push(async () => void (reads[at] = await pictures.take(record, from)));
        }
        await inParallel(picturesAtOnce, withPictures);
        for (const [at, read] of reads.entries()) {
          const { line, place } = rowsOfPart[at] as RawRow;
          if ("v" in read) {
            batch.records.push(read);
            places.push(place);
          } else batch.rejections.push({ line, code: read.code, message: read.message });
        }
        count += rowsOfPart.length;
        yield mapping?.redact === true ? await redact(batch, places) : batch;
        // Others may use the thread, and whoever reads may be stopped.
        await nextTurn();
      }
    } catch (error) {
      if (!(error instanceof PermanentError) || !isFileFault(error)) throw error;
      const { code, param, status } = error;
      throw new PermanentError(code, `${error.message} (Rows read until there: ${count}.)`, { param, status, cause: error });
    }
  }
  return { container: rows.container, notes: rows.notes, batches: batches(rows.batches) };
}

/** A file whose `onRead` is told of a share of its rows as of so many of its bytes, where it is not read from its beginning to its end. */
async function countedSource(
  source: FileSource | readonly Part[],
): Promise<{ source: FileSource | readonly Part[]; onShare?: (share: number) => void }> {
  if (isParts(source) || !("file" in source) || source.onRead === undefined) return { source };
  const { onRead, file } = source;
  const { size } = await stat(file);
  let told = 0;
  const tell = (bytes: number): void => {
    told += bytes;
    onRead(bytes);
  };
  return { source: { file, onRead: tell }, onShare: (share) => tell(Math.max(0, Math.floor(share * size) - told)) };
}

/** Characters of rows that are worked on at once, a few milliseconds' work: a process reads several files, of several tenants. */
const breathCharacters = 64 * 1024;
/** Of a row of values nobody knows the size without writing it down. */
const charactersOfValues = 1024;

async function* inParts(raw: AsyncIterable<RawRow[]>): AsyncGenerator<RawRow[]> {
  for await (const rows of raw) {
    let from = 0;
    let characters = 0;
    for (const [at, row] of rows.entries()) {
      characters += "text" in row ? row.text.length : charactersOfValues;
      if (characters < breathCharacters) continue;
      yield rows.slice(from, at + 1);
      from = at + 1;
      characters = 0;
    }
    if (from < rows.length) yield rows.slice(from);
  }
}

/** Rows whose pictures are fetched and decoded side by side. Each may hold 20 MiB. */
const picturesAtOnce = 4;

async function inParallel(count: number, work: (() => Promise<void>)[]): Promise<void> {
  const waiting = work.values();
  const next = async (): Promise<void> => {
    for (const one of waiting) await one();
  };
  await Promise.all(Array.from({ length: Math.min(count, work.length) }, next));
}

const isParts = (source: FileSource | readonly Part[]): source is readonly Part[] => Array.isArray(source);

/** Whether an error is about the uploaded file's content, and not about the disk or store that it is read from. */
export const isFileFault = ({ code }: { code: string }): boolean =>
  code.startsWith("FILE_") || code.startsWith("CSV_") || code === "CONTAINER_UNSUPPORTED";

function readRow(row: RawRow, { detect }: Detector): Rec | Refusal | typeof needsLabels {
  if ("refusal" in row) return row.refusal;
  const { line, place } = row;
  let value: unknown;
  try {
    value = "text" in row ? JSON.parse(row.text) : row.value;
  } catch (error) {
    return {
      code: "NOT_JSON",
      message: `${place}: not JSON: ${explainSyntax(error as Error, (row as { firstLine: number }).firstLine)}${adviceOf((row as { text: string }).text)}`,
    };
  }
  try {
    const detected = detect(value, "text" in row ? () => parseExact(row.text) : row.exact);
    if (detected === needsLabels) return detected;
    if (isRefusal(detected)) return { code: detected.code, message: `${place}: ${detected.message}` };
    const { body, format, template, slice, unusedKeys, seed } = detected;
    return {
      v: "lrec/1",
      id: recordId(body),
      ...body,
      meta: {
        line,
        format,
        ...(template === undefined ? {} : { template }),
        ...(slice === undefined ? {} : { slice }),
        ...(unusedKeys.length === 0 ? {} : { unusedKeys: [...unusedKeys] }),
        ...(seed === undefined ? {} : { seed }),
      },
    };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return { code: "NESTED_TOO_DEEPLY", message: `${place}: the row is nested too deeply to be read` };
  }
}

/** @returns what the author has probably written in the place of JSON, and what to do; empty: nobody knows. */
function adviceOf(text: string): string {
  const start = text.slice(0, 2000).trim();
  if (/^[[{]\s*$/.test(start))
    return ". Objects over several lines are read as a list of rows only: `jq -c . FILE` writes each on a line, `jq -c '.data[]' FILE` the rows that an object holds in `data`";
  if (/^\{\s*'/.test(start)) return ". These are Python's quotes: write rows with json.dumps(row)";
  if (/^\{\s*[\u201c\u201d\u201e\u00ab]/.test(start)) return '. Its quotes are those of a text; JSON has "straight" ones';
  if (/[:,[]\s*(?:NaN|-?Infinity)\b/.test(text)) return ". JSON has no NaN and no Infinity: write null";
  if (/^\{.*\},\s*$/s.test(text)) return ". There is a comma behind the row: JSON Lines has none (`sed 's/,\\s*$//' FILE` removes them)";
  return "";
}

/** V8's message, with the position as a person counts it. */
function explainSyntax(error: Error, firstLine: number): string {
  const position = /^(.*?)(?: in JSON)? at position \d+ \(line (\d+) column (\d+)\)$/s.exec(error.message);
  if (position === null) return error.message;
  const [, what, line, column] = position;
  return Number(line) === 1 ? `${what} at column ${column}` : `${what} at line ${firstLine + Number(line) - 1}, column ${column}`;
}
