/** Converts one upload to chunks of canonical records, rejections, report and manifest; or says why it has no usable rows. */
import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import type { BlobRef, DatasetManifest, DatasetMapping, Problem, Rejection } from "@loraline/contracts";
import { digestOf, type Objects, putJson, putPictureTable } from "@loraline/objects";
import { countBytes, explainSystemError, PermanentError } from "@loraline/runtime";
import { canonicalJson } from "./canonical-json.ts";
import { createReport } from "./report/dataset-report.ts";
import { judgeDataset } from "./report/judge-dataset.ts";
import { isFileFault, readRecords } from "./read-records.ts";
import { isTextFile } from "./containers/archives/decide-archive-files.ts";
import { createPictureTaker, type PictureTakerOptions } from "./pictures/take-pictures.ts";
import { openNameless } from "./containers/spool.ts";

/** Version of the conversion. Raise it when the same bytes give other records, so that results cached by older code are not used. */
const ingestCode = "ingest/9";

export interface IngestSettings {
  /** A row with more bytes is rejected. */
  maxRowBytes: number;
  /** Size at which a chunk of records is closed, in bytes. */
  chunkBytes: number;
}
export const defaultIngestSettings: IngestSettings = { maxRowBytes: 8 * 1024 * 1024, chunkBytes: 4 * 1024 * 1024 };

export interface Upload {
  tenant: string;
  blob: BlobRef;
  filename: string;
  /** Further files, read after the first one as if all were one file. */
  parts: readonly { blob: BlobRef; filename: string }[];
  mapping: DatasetMapping | null;
}

export type IngestResult =
  | { kind: "ingested"; manifest: BlobRef; report: BlobRef; records: number; rejections: number; formats: Record<string, number> }
  | { kind: "rejected"; problem: Problem; report: BlobRef | null; rejections: number };

/**
 * Hex hash of everything that decides the result. Names of files are part of it if there are several, because the report shows them; of
 * a single one only whether it says that the file is plain text.
 */
export const ingestKey = ({ blob, filename, parts, mapping }: Omit<Upload, "tenant">, settings: IngestSettings): string => {
  const single = isTextFile(filename) ? { isText: true } : {};
  const more = parts.length === 0 ? single : { filename, parts: parts.map((part) => [part.blob.digest, part.filename]) };
  return digestOf(canonicalJson({ code: ingestCode, blob: blob.digest, ...more, mapping, settings })).slice("sha256:".length);
};

/**
 * Equal uploads give equal bytes. Objects are content-addressed and the manifest is written last, so dying anywhere leaves
 * nothing that looks complete, and running again continues where the last attempt ended.
 * @throws PermanentError OBJECT_MISSING, OBJECT_CORRUPT, DISK_FULL
 */
export async function ingestDataset(deps: IngestDeps, upload: Upload): Promise<IngestResult> {
  try {
    return await readAndStore(deps, upload);
  } catch (error) {
    // A file that is cut off is rejected as a whole: otherwise nobody would notice that its rest is missing in the training.
    if (!(error instanceof PermanentError) || !(isFileFault(error) || error.code === "QUOTA_STORAGE")) throw error;
    return nothing({ code: error.code, message: `${upload.filename}: ${error.message}`, param: "file" });
  }
}

export interface IngestDeps {
  objects: Pick<Objects, "get" | "put">;
  settings: IngestSettings;
  signal: AbortSignal;
  /** Told again and again how many bytes of the files are read. */
  onRead?: (bytes: number) => void;
  /** Reads a URL at which a row says that a picture is; undefined: it is left there. @throws PermanentError, RetryLaterError */
  fetchPicture?: PictureTakerOptions["fetch"];
  /**
   * Asked now and then while records are stored: a file of a few hundred bytes may hold any number of bytes of them.
   * @throws PermanentError QUOTA_STORAGE: there is no room for more.
   */
  checkRoom?: () => Promise<void>;
}

/** The part of the work that fetching a file is, where its rows are read from a copy of it. */
const fetchingShare = 0.1;

/**
 * Says how many bytes are done by now; never fewer than before. Of a file whose rows are read from a copy of it, its bytes count little when
 * they are fetched, and the rest with its rows: otherwise all would seem done when the work begins.
 */
export function countDone(
  size: number,
  onDone?: (bytes: number) => void,
): { onBytes(this: void, bytes: number): void; onShare(this: void, share: number): void } {
  let fetched = 0;
  let share: number | undefined;
  let most = 0;
  const tell = (): void => {
    most = Math.max(most, Math.floor(share === undefined ? fetched : fetchingShare * fetched + (1 - fetchingShare) * share * size));
    onDone?.(most);
  };
  return {
    onBytes(bytes) {
      fetched += bytes;
      tell();
    },
    onShare(read) {
      share = read;
      tell();
    },
  };
}

/** Bytes of records after which it is asked whether there is room for more. */
const roomEveryBytes = 16 * 1024 ** 2;

const nothing = (problem: Problem): IngestResult => ({ kind: "rejected", problem, report: null, rejections: 0 });

async function readAndStore(deps: IngestDeps, upload: Upload): Promise<IngestResult> {
  const { objects, settings, signal, onRead, fetchPicture, checkRoom } = deps;
  const { tenant, blob, filename, parts, mapping } = upload;
  const done = countDone(
    [blob, ...parts.map((part) => part.blob)].reduce((sum, { size }) => sum + size, 0),
    onRead,
  );
  const open = async (ref: BlobRef): Promise<AsyncIterable<Uint8Array>> => countBytes(await objects.get(tenant, ref), done.onBytes);
  const pictures = createPictureTaker({
    ...(fetchPicture === undefined ? {} : { fetch: fetchPicture }),
    async put({ digest }, bytes) {
      await objects.put(tenant, "picture", bytes, { digest });
    },
    // The report shows twelve; several rows are read side by side.
    thumbnails: 64,
  });
  const source =
    parts.length === 0
      ? await open(blob)
      : [{ blob, filename }, ...parts].map((part) => ({ name: part.filename, open: () => open(part.blob) }));
  const reopen = () => objects.get(tenant, blob);
  const reading = await readRecords(source, {
    mapping,
    reopen,
    maxRowBytes: settings.maxRowBytes,
    name: filename,
    onShare: done.onShare,
    pictures,
  });
  if (reading === undefined) {
    return nothing({ code: "EMPTY_FILE", message: `${filename} is empty. Upload JSON Lines with one example per line.`, param: "file" });
  }

  const counts = createReport({ thumbnails: pictures.thumbnails });
  const chunks: DatasetManifest["chunks"] = [];
  await using rejected = new RejectionSpool();
  let lines: string[] = [];
  let size = 0;
  let unasked = 0;
  const closeChunk = async (): Promise<void> => {
    if (lines.length === 0) return;
    unasked += size;
    if (unasked >= roomEveryBytes) {
      unasked = 0;
      await checkRoom?.();
    }
    chunks.push({ blob: await objects.put(tenant, "records", lines.join("")), records: lines.length });
    lines = [];
    size = 0;
  };
  for await (const batch of reading.batches) {
    signal.throwIfAborted();
    await counts.add(batch);
    await rejected.add(batch.rejections);
    for (const record of batch.records) {
      const line = `${JSON.stringify(record)}\n`;
      lines.push(line);
      size += Buffer.byteLength(line);
      if (size >= settings.chunkBytes) await closeChunk();
    }
  }
  await closeChunk();

  const report = counts.report(await rejected.store(objects, tenant), reading.notes);
  const reportRef = await putJson(objects, tenant, "report", report);
  const problem = judgeDataset(filename, report, mapping);
  if (problem !== null) return { kind: "rejected", problem, report: reportRef, rejections: report.rejections };
  const { records, rejections, formats } = report;
  const table = await putPictureTable(objects, tenant, pictures.entries.values());
  const manifest: DatasetManifest = {
    version: 1,
    source: blob,
    records,
    rejections,
    formats,
    chunks,
    ...(table === undefined ? {} : { pictures: table }),
    report: reportRef,
    code: ingestCode,
  };
  return {
    kind: "ingested",
    manifest: await putJson(objects, tenant, "dataset", manifest),
    report: reportRef,
    records,
    rejections,
    formats,
  };
}

/** Rejections may be as many as rows, so they are kept in a file. The file is unlinked at once, so it disappears with the process. */
class RejectionSpool {
  #file: FileHandle | undefined;
  readonly #hash = createHash("sha256");
  async add(rejections: readonly Rejection[]): Promise<void> {
    if (rejections.length === 0) return;
    const lines = rejections.map((rejection) => `${JSON.stringify(rejection)}\n`).join("");
    this.#hash.update(lines);
    try {
      this.#file ??= await openNameless();
      await this.#file.appendFile(lines);
    } catch (error) {
      throw explainSystemError(error, "keeping rejections in the temporary directory");
    }
  }
  /** @returns the manifest; null when there is none. */
  async store(objects: Pick<Objects, "put">, tenant: string): Promise<BlobRef | null> {
    if (this.#file === undefined) return null;
    const bytes: AsyncIterable<Uint8Array> = this.#file.createReadStream({ start: 0, autoClose: false });
    return objects.put(tenant, "report", bytes, { digest: `sha256:${this.#hash.digest("hex")}` });
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file?.close();
  }
}
