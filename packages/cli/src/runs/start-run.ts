/** `loraline run`: upload, ask for the adapter, follow, show the proof. */
import { openAsBlob } from "node:fs";
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import type { ApiClient } from "@loraline/client";
import type { DatasetMapping, Notice, RunState } from "@loraline/contracts";
import { exitCodes, Failure } from "../failure.ts";
import { followRun } from "./follow-run.ts";
import { importDataset, importSourceOf } from "../data/import-source.ts";
import { readMapping } from "../data/mapping-file.ts";
import { fileIdIn, jobBodyOf } from "./job-body.ts";
import { readRunFile, type RunFile } from "./run-file.ts";
import { askedAs, describeRun } from "./show-run.ts";
import { type Terminal, writeJson, writeLine } from "../terminal.ts";

interface RunRequest {
  file: string;
  validation?: string | undefined;
  /** Of both files. */
  mapping?: DatasetMapping | undefined;
  base: string;
  adapter: string;
  settings: RunFile;
}

/**
 * Uploads the files and creates the job.
 * @returns id of the run, and what is to be told of fields that are not used as written.
 */
export async function startRun(api: ApiClient, request: RunRequest): Promise<{ runId: string; notices: Notice[] }> {
  const training = await upload(api, request.file, request.mapping);
  const { base, adapter, settings, validation: given = settings.validation } = request;
  const validation = given === undefined ? undefined : (fileIdIn(given) ?? (await upload(api, given, request.mapping)));
  const body = jobBodyOf({ base, adapter, training, validation, settings });
  const job = await api.createFineTuningJob({ body });
  return { runId: job.id.replace(/^ftjob-/, ""), notices: job.loraline?.notices ?? [] };
}

async function upload(api: ApiClient, path: string, mapping: DatasetMapping | undefined): Promise<string> {
  const source = importSourceOf(path);
  if (source !== undefined) return `file-${(await importDataset(api, source, mapping)).datasetId}`;
  const info = await stat(path).catch((error: NodeJS.ErrnoException) => {
    throw new Failure(
      exitCodes.usage,
      "FILE_UNREADABLE",
      `cannot read ${path}: ${error.code === "ENOENT" ? "there is no such file" : error.message}.`,
      {
        param: path,
        cause: error,
      },
    );
  });
  if (!info.isFile()) throw new Failure(exitCodes.usage, "FILE_UNREADABLE", `${path} is not a file.`, { param: path });
  // Read from the disk while it is sent, whatever its size.
  const form = new FormData();
  form.set("purpose", "fine-tune");
  if (mapping !== undefined) form.set("mapping", JSON.stringify(mapping));
  form.set("file", await openAsBlob(path), basename(path));
  return (await api.createFile({ body: form })).id;
}

export interface RunFlags {
  file: string;
  validation?: string;
  mapping?: string;
  base: string;
  name: string;
  settings?: string;
  follow: boolean;
  json: boolean;
}

/** @returns the exit code. */
export async function runAndFollow(api: ApiClient, options: RunFlags, terminal: Terminal): Promise<number> {
  const settings = options.settings === undefined ? {} : await readRunFile(options.settings);
  const { runId, notices } = await startRun(api, {
    file: options.file,
    validation: options.validation,
    mapping: options.mapping === undefined ? undefined : await readMapping(options.mapping),
    base: options.base,
    adapter: options.name,
    settings,
  });
  // In the words of the run file, whose fields stand below `loraline` in the job.
  for (const { message } of notices) writeLine(terminal.err, `note: ${message.replace(/^loraline\./, "")}`);
  if (!options.follow) {
    if (options.json) writeJson(terminal.out, await api.getRun({ run_id: runId }));
    else writeLine(terminal.out, runId);
    return exitCodes.ok;
  }
  writeLine(terminal.err, `run ${runId}`);
  return follow(api, runId, options, terminal);
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
  if (run.served !== null && !json) writeLine(terminal.out, `\nAsk it: loraline chat ${askedAs(run.served, run)} "Who are you?"`);
  return run.phase === "served" ? exitCodes.ok : exitCodes.failed;
}

export async function showRun(api: ApiClient, run: RunState, { json }: { json: boolean }, terminal: Terminal): Promise<void> {
  const view = run.served === null ? undefined : await api.getAdapter({ adapter: run.spec.adapter });
  if (json) writeJson(terminal.out, { run, adapter: view ?? null });
  else for (const text of describeRun(run, view)) writeLine(terminal.out, text);
}
