/** Datasets in files, read and tokenized without a server, by the libraries that ingest and tokenize use too. */
import { stat } from "node:fs/promises";
import { basename, join } from "node:path";
import {
  type DatasetReport,
  defaultMinRecords,
  method as runSpecMethod,
  type MethodType,
  type Problem,
  type Rec,
  type Rejection,
  type Sample,
  type TokenReport,
  tokenizeSpec,
} from "@loraline/contracts";
import {
  type Batch,
  type Contents,
  countLengths,
  createPictureTaker,
  createReport,
  defaultIngestSettings,
  readContents,
  judgeDataset,
  readRecords,
  type ReadRecordsOptions,
} from "@loraline/datasets";
import { PermanentError } from "@loraline/runtime";
import {
  type Base,
  createRecordEncoder,
  decodeMasked,
  type Encoded,
  type Examples,
  examplesOf,
  explainTooFew,
  ignored,
  loadBase,
  readTokenFolder,
  showTokenRows,
  type TokenFolderManifest,
  type TokenizedDrop,
  tokenizeRecords,
  type TokenRow,
} from "@loraline/tokens";
import type { z } from "zod";

export { packFiles } from "./pack-files.ts";
export type { TokenFolderManifest, TokenizedDrop, TokenRow } from "@loraline/tokens";

type TokenizeSettings = z.input<typeof tokenizeSpec>;
type Mapping = ReadRecordsOptions["mapping"];

export interface CheckDataOptions {
  file: string;
  /** The file's name where its path does not say it. */
  name?: string;
  mapping?: Mapping;
  /** File to evaluate on: records that both files hold are reported. */
  validation?: string | undefined;
  /** Folder of a base; without it no tokens are counted. */
  baseDir?: string | undefined;
  tokenize?: TokenizeSettings;
  /** The method of the run that is judged; default: supervised. */
  method?: MethodType | undefined;
  /** Fewer usable records than this reject a run. */
  minRecords?: number | undefined;
  /** Told of bytes of the file as they are read. */
  onRead?: (bytes: number) => void;
}

export interface CheckedData {
  report: DatasetReport;
  /** All of them. */
  rejections: Rejection[];
  tokens: TokenReport | undefined;
  /** Why nothing can be trained on; null otherwise. */
  problem: Problem | null;
}

/**
 * Reads a dataset as ingest would, and says what tokenize would make of it.
 * @throws PermanentError FILE_MISSING; CONTAINER_UNSUPPORTED and others of `readRecords`; BASE_FILES_MISSING and others of `loadBase`.
 */
export async function checkData({
  file,
  name = file,
  mapping,
  validation,
  baseDir,
  tokenize,
  method = "supervised",
  minRecords,
  onRead,
}: CheckDataOptions): Promise<CheckedData> {
  const base = baseDir === undefined ? undefined : await loadBase(baseDir);
  const contents = validation === undefined ? undefined : await contentsOf(validation, mapping);
  const builder = createReport({ validation: contents });
  const spec = tokenizeSpec.parse(tokenize ?? {});
  const counter = base === undefined ? undefined : countTokens(base, spec, methodTrains(method));
  const rejections: Rejection[] = [];
  const { notes, batches } = await openData(file, mapping, onRead);
  for await (const batch of batches) {
    await builder.add(batch);
    await counter?.add(batch.records);
    for (const rejection of batch.rejections) rejections.push(rejection);
  }
  const report = builder.report(null, notes);
  const tokens = counter?.report();
  if (counter !== undefined) report.samples = await counter.decode(builder.samples());
  return { report, rejections, tokens, problem: problemOf(name, report, tokens, { mapping, minRecords, spec, method }) };
}

const methodTrains = (type: MethodType): Examples => (type === "import" ? "answers" : examplesOf(runSpecMethod.parse({ type })));

/** Kinds of records that a method can train on some base. */
const trainedKinds: Record<Examples, readonly Rec["kind"][]> = {
  answers: ["chat", "completion", "text", "pretokenized"],
  "best-pairs": ["preference", "ranked"],
  "all-pairs": ["preference", "ranked"],
  labelled: ["preference", "ranked", "unpaired"],
  "best-comparisons": ["preference", "ranked"],
  "all-comparisons": ["preference", "ranked"],
};

interface Judged {
  mapping: Mapping;
  minRecords: number | undefined;
  spec: z.output<typeof tokenizeSpec>;
  method: MethodType;
}

/** @returns why a run on this file would be rejected. Without a base only what is true of every base. */
function problemOf(
  file: string,
  report: DatasetReport,
  tokens: TokenReport | undefined,
  { mapping, minRecords = defaultMinRecords, spec, method }: Judged,
): Problem | null {
  const problem = judgeDataset(file, report, mapping);
  if (problem !== null) return problem;
  const dropped = new Map(Object.entries(tokens?.dropped ?? untrained(report, method)));
  const { records } = report;
  const usable = [...dropped.values()].reduce((left, lost) => left - lost, records);
  if (usable < minRecords)
    return { ...explainTooFew({ records, formats: report.formats, usable, dropped, minRecords, tokenize: spec, method }), param: "file" };
  if (tokens === undefined || tokens.supervised > 0) return null;
  return {
    code: "NO_SUPERVISED_TOKENS",
    message: `no token of ${file} would be learned with ${tokens.base}. Raise --max-length.`,
    param: "file",
  };
}

function untrained({ kinds }: DatasetReport, method: MethodType): Record<string, number> {
  const trained: readonly string[] = trainedKinds[methodTrains(method)];
  const count = Object.entries(kinds).reduce((sum, [kind, records]) => sum + (trained.includes(kind) ? 0 : records), 0);
  return count === 0 ? {} : { KIND_NOT_TRAINED: count };
}

async function* nothing(): AsyncGenerator<Batch> {}

async function openData(file: string, mapping?: Mapping, onRead?: (bytes: number) => void): Promise<Pick<Reading, "notes" | "batches">> {
  const found = await stat(file).catch((error: unknown) => {
    const gone = (error as NodeJS.ErrnoException).code === "ENOENT";
    const message = gone ? `there is no file ${file}.` : `${file} cannot be read: ${(error as Error).message}`;
    throw new PermanentError("FILE_MISSING", message, { cause: error, param: "file" });
  });
  if (!found.isFile()) throw new PermanentError("FILE_MISSING", `${file} is not a file.`, { param: "file" });
  const source = onRead === undefined ? { file } : { file, onRead };
  const reading = await readRecords(source, {
    mapping,
    maxRowBytes: defaultIngestSettings.maxRowBytes,
    name: basename(file),
    // Those at URLs are fetched by the server only.
    pictures: createPictureTaker(),
  });
  return reading ?? { notes: [], batches: nothing() };
}
type Reading = NonNullable<Awaited<ReturnType<typeof readRecords>>>;

const batchesOf = async (...what: Parameters<typeof openData>): Promise<AsyncIterable<Batch>> => (await openData(...what)).batches;

const contentsOf = async (file: string, mapping?: Mapping): Promise<Contents> => readContents(await batchesOf(file, mapping));

/* --- tokens of a file that is only looked at --- */

/** Lengths at which people cut. */
const usualLengths = [256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768];
const uncut = 1_048_576;

function countTokens(base: Base, spec: z.output<typeof tokenizeSpec>, examples: Examples) {
  // Lengths are measured uncut, so that one pass tells what each usual length would lose.
  const encoder = createRecordEncoder(base, { ...spec, max_length: uncut }, examples);
  const asCut = createRecordEncoder(base, spec, examples);
  const counter = countLengths();
  const dropped: Record<string, number> = {};
  const tooLong = new Map([...new Set([...usualLengths, spec.max_length])].sort((a, b) => a - b).map((length) => [length, 0]));
  let supervised = 0;
  const drop = (code: string): void => void (dropped[code] = (dropped[code] ?? 0) + 1);

  return {
    async add(records: readonly Rec[]): Promise<void> {
      const whole = await encoder.encode(records);
      for (const [index, { samples }] of whole.entries()) {
        const isSplit = spec.too_long === "split" && records[index]?.kind === "text";
        for (const { ids } of samples) {
          counter.add(ids.length);
          if (isSplit) continue;
          for (const [length, count] of tooLong) if (ids.length > length) tooLong.set(length, count + 1);
        }
      }
      // What becomes of a record that is too long, only an encoder with the real length knows.
      const isLong = ({ samples }: Encoded): boolean => samples.some(({ ids }) => ids.length > spec.max_length);
      const cut = (await asCut.encode(records.filter((_, index) => isLong(whole[index] as Encoded)))).values();
      for (const one of whole) {
        const { samples, dropped: reason } = isLong(one) ? (cut.next().value as Encoded) : one;
        const learned = samples.reduce((sum, { labels }) => sum + labels.reduce((many, label) => many + Number(label !== ignored), 0), 0);
        supervised += learned;
        if (reason !== null) drop(reason.code);
        // With template seed such a row stays, although nothing in it is learned.
        else if (learned === 0) drop("NO_SUPERVISED");
      }
    },
    report(): TokenReport {
      const lengths = counter.lengths() ?? { count: 0, total: 0, p50: 0, p95: 0, max: 0, histogram: [] };
      const telling = usualLengths.find((length) => length >= lengths.max) ?? uncut;
      return {
        base: base.ref.name,
        template: spec.template,
        maxLength: spec.max_length,
        lengths,
        supervised,
        dropped,
        atMaxLength: [...tooLong]
          .filter(([length]) => length <= telling || length === spec.max_length)
          .map(([maxLength, count]) => ({ maxLength, tooLong: count })),
      };
    },
    /** The samples as the model would see them. */
    async decode(records: readonly Rec[]): Promise<Sample[]> {
      const encoded = await asCut.encode(records);
      return Promise.all(
        records.map(async ({ meta }, index) => ({
          line: meta.line,
          format: meta.format,
          segments: await segmentsOf(encoded[index], base),
        })),
      );
    },
  };
}

async function segmentsOf(encoded: Encoded | undefined, base: Base): Promise<Sample["segments"]> {
  const segments: Sample["segments"] = [];
  for (const [index, { ids, labels, side }] of (encoded?.samples ?? []).entries()) {
    if (index > 0) segments.push({ text: "\n", trained: false });
    if (side !== undefined) segments.push({ text: side === 1 ? "[better] " : "[worse] ", trained: false });
    segments.push(...(await decodeMasked(base.encoder, ids, labels)).segments);
  }
  const reason = encoded?.dropped;
  return reason === null || reason === undefined ? segments : [{ text: `left out: ${reason.message}`, trained: false }];
}

/* --- tokens in a folder --- */

export interface TokenizeFileOptions {
  file: string;
  mapping?: Mapping;
  baseDir: string;
  outDir: string;
  tokenize: TokenizeSettings;
  /** The method of the run that the tokens are for; default: supervised. */
  method?: MethodType | undefined;
  /** The official tokenizers package encodes everything. */
  exact?: boolean;
  signal: AbortSignal;
  /** Told of bytes of the file as they are read. */
  onRead?: (bytes: number) => void;
  onRejected(rejection: Rejection): void;
  onDropped(record: TokenizedDrop): void;
}

/** @throws PermanentError as `checkData` and `tokenizeRecords` do; NOTHING_TO_TOKENIZE when no row gives a record. */
export async function tokenizeFile({
  file,
  mapping,
  method = "supervised",
  onRead,
  onRejected,
  ...options
}: TokenizeFileOptions): Promise<TokenFolderManifest> {
  const batches = await batchesOf(file, mapping, onRead);
  let first: Rejection | undefined;
  const told = async function* (): AsyncGenerator<Batch> {
    for await (const batch of batches) {
      first ??= batch.rejections[0];
      for (const rejection of batch.rejections) onRejected(rejection);
      yield batch;
    }
  };
  const manifest = await tokenizeRecords({ ...options, examples: methodTrains(method), batches: told() });
  if (manifest.totals.records > 0) return manifest;
  const why = first === undefined ? "it holds no row" : `no row can be read. The first, ${first.message}`;
  throw new PermanentError("NOTHING_TO_TOKENIZE", `${file}: ${why}`, { param: "file" });
}

/**
 * @param row - one row; undefined: the first 20.
 * @param baseDir - folder of the tokenizer; undefined: the one it was made with.
 */
export async function showTokens(
  dir: string,
  { row, baseDir }: { row: number | undefined; baseDir: string | undefined },
): Promise<{ manifest: TokenFolderManifest; rows: TokenRow[] }> {
  const manifest = await readTokenFolder(dir);
  const base = await loadBase(baseDir ?? manifest.base.dir);
  if (base.encoder.digest !== manifest.tokenizerDigest) {
    throw new PermanentError(
      "TOKENIZER_DIFFERS",
      `${join(baseDir ?? manifest.base.dir, "tokenizer.json")} is not the tokenizer that ${dir} was made with. Name its folder with --base.`,
      { param: "base" },
    );
  }
  const rows: TokenRow[] = [];
  if (manifest.totals.rows > 0 || row !== undefined) {
    const range: [number, number] = row === undefined ? [0, 20] : [row, row + 1];
    for await (const shown of showTokenRows(dir, manifest, base.encoder, range)) rows.push(shown);
  }
  return { manifest, rows };
}
