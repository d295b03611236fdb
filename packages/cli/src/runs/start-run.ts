/** `loraline run`: upload, ask for the adapter, follow, show the proof. */
import { openAsBlob } from "node:fs";
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import type { ApiClient } from "@loraline/client";
import type { DatasetMapping, Notice, RunState } from "@loraline/contracts";
import { exitCodes, Failure } from "../failure.ts";
import { followRun } from "./follow-run.ts";
import { describeLeftOut, describeWarnings } from "../data/data-report.ts";
import { followDataset, importDataset, importSourceOf } from "../data/import-source.ts";
import { localData, tellLeft } from "../data/tokenize-options.ts";
import { readMapping } from "../data/mapping-file.ts";
import { fileIdIn, jobBodyOf } from "./job-body.ts";
import { readRunFile, type RunFile } from "./run-file.ts";
import { onlyBase } from "./only-base.ts";
import { showBytes } from "../show-progress.ts";
import { type SettingFlags, withFlags } from "./setting-flags.ts";
import { askedAs, describeRun } from "./show-run.ts";
import { type Terminal, writeJson, writeLine, writeLines } from "../terminal.ts";

interface RunRequest {
  /** Files, one folder, or one source that the server fetches. */
  files: readonly string[];
  validation?: string | undefined;
  /** Of both files. */
  mapping?: DatasetMapping | undefined;
  base: string;
  adapter: string;
  settings: RunFile;
}

/**
 * Uploads the files, several of them or a folder as one dataset, and creates the job.
 * @returns id of the run, the training data's file id, and what is to be told of fields that are not used as written.
 */
export async function startRun(
  api: ApiClient,
  request: RunRequest,
  terminal: Pick<Terminal, "err" | "columns">,
): Promise<{ runId: string; training: string; notices: Notice[] }> {
  const training = await upload(api, request.files, request.mapping, terminal);
  const { base, adapter, settings, validation: given = settings.validation } = request;
  const validation = given === undefined ? undefined : (fileIdIn(given) ?? (await upload(api, [given], request.mapping, terminal)));
  const body = jobBodyOf({ base, adapter, training, validation, settings });
  const job = await api.createFineTuningJob({ body });
  return { runId: job.id.replace(/^ftjob-/, ""), training, notices: job.loraline?.notices ?? [] };
}

async function upload(
  api: ApiClient,
  files: readonly string[],
  mapping: DatasetMapping | undefined,
  terminal: Pick<Terminal, "err" | "columns">,
): Promise<string> {
  const sources = files.map((path) => importSourceOf(path));
  const [source] = sources;
  if (sources.some((one) => one !== undefined) && files.length > 1) {
    throw new Failure(exitCodes.usage, "usage", "one https://… or hub: source is one dataset; give it alone.");
  }
  if (source !== undefined) return `file-${(await importDataset(api, source, mapping)).datasetId}`;
  const [file] = files;
  const isOneFile = files.length === 1 && file !== undefined && (await stat(file).catch(() => undefined))?.isFile() === true;
  // One file goes as it is, without loading what reads and packs.
  await using packed = isOneFile ? undefined : await pack(files);
  tellLeft(terminal, packed?.left ?? []);
  const form = new FormData();
  form.set("purpose", "fine-tune");
  if (mapping !== undefined) form.set("mapping", JSON.stringify(mapping));
  const blob = await openAsBlob(packed?.path ?? (file as string));
  const shown = showBytes(terminal, "uploading", blob.size);
  form.set("file", new SentFile(blob, packed?.name ?? basename(file as string), shown));
  try {
    return (await api.createFile({ body: form })).id;
  } finally {
    shown.end();
  }
}

/** Read from the disk while it is sent, whatever its size, and counted then. */
class SentFile extends File {
  readonly #shown: ReturnType<typeof showBytes>;
  constructor(blob: Blob, name: string, shown: ReturnType<typeof showBytes>) {
    super([blob], name);
    this.#shown = shown;
  }
  override stream(): ReturnType<File["stream"]> {
    const { add, restart } = this.#shown;
    restart();
    const count = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(piece, controller) {
        add(piece.byteLength);
        controller.enqueue(piece);
      },
    });
    return super.stream().pipeThrough(count);
  }
}

async function pack(files: readonly string[]): ReturnType<Awaited<ReturnType<typeof localData>>["packFiles"]> {
  const { packFiles } = await localData();
  return packFiles(files).catch((error: unknown) => {
    throw new Failure(exitCodes.usage, "FILE_UNREADABLE", (error as Error).message, { param: files.join(", "), cause: error });
  });
}

export interface RunFlags extends SettingFlags {
  files: string[];
  validation?: string;
  mapping?: string;
  base?: string;
  name: string;
  settings?: string;
  follow: boolean;
  json: boolean;
}

/** @returns the exit code. */
export async function runAndFollow(api: ApiClient, options: RunFlags, terminal: Terminal): Promise<number> {
  const settings = withFlags(options.settings === undefined ? {} : await readRunFile(options.settings), options);
  const request: RunRequest = {
    files: options.files,
    validation: options.validation,
    mapping: options.mapping === undefined ? undefined : await readMapping(options.mapping),
    base: options.base ?? (await onlyBase(api)),
    adapter: options.name,
    settings,
  };
  const { runId, training, notices } = await startRun(api, request, terminal);
  // In the words of the run file, whose fields stand below `loraline` in the job.
  for (const { message } of notices) writeLine(terminal.err, `note: ${message.replace(/^loraline\./, "")}`);
  if (!options.follow) {
    if (options.json) writeJson(terminal.out, await api.getRun({ run_id: runId }));
    else writeLine(terminal.out, runId);
    return exitCodes.ok;
  }
  writeLine(terminal.err, `run ${runId}`);
  await tellWarnings(api, training, terminal);
  return follow(api, runId, options, terminal);
}

/** Says what is left out, and what the report warns of, as soon as the data is read: before the training, which somebody may want to stop. */
export async function tellWarnings(
  api: Pick<ApiClient, "getDataset" | "getDatasetReport">,
  file: string,
  terminal: Pick<Terminal, "err" | "columns" | "signal">,
): Promise<void> {
  try {
    const { error, datasetId } = await followDataset(api, file.replace(/^file-/, ""), terminal);
    if (error !== null) return;
    const report = await api.getDatasetReport({ dataset_id: datasetId });
    for (const text of [...describeLeftOut(report, datasetId), ...describeWarnings(report)]) writeLine(terminal.err, text);
  } catch {
    // Whoever follows the run is told of Ctrl-C and of a server that is away.
  }
}

/**
 * Follows a run, then says how it ended. Ctrl-C leaves the run going.
 * @returns the exit code.
 */
export async function follow(api: ApiClient, runId: string, { json }: { json: boolean }, terminal: Terminal): Promise<number> {
  const run = await followRun(api, runId, terminal);
  if (run.finishedAt === null) {
    writeLine(terminal.err, `The run goes on. Follow it with: loraline show ${runId} --follow    Stop it with: loraline cancel ${runId}`);
    return exitCodes.interrupted;
  }
  await showRun(api, run, { json }, terminal);
  if (run.served !== null && !json) {
    const model = askedAs(run.served, run);
    const isJudge = run.spec.method.type === "judge";
    writeLines(terminal, ["", isJudge ? `How ${model} is asked: docs/preferences.md` : `Ask it: loraline chat ${model} "Who are you?"`]);
  }
  return run.phase === "served" ? exitCodes.ok : exitCodes.failed;
}

export async function showRun(api: ApiClient, run: RunState, { json }: { json: boolean }, terminal: Terminal): Promise<void> {
  const view = run.served === null ? undefined : await api.getAdapter({ adapter: run.spec.adapter });
  if (json) writeJson(terminal.out, { run, adapter: view ?? null });
  else writeLines(terminal, describeRun(run, view));
}
