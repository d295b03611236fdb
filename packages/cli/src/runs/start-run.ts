/** `loraline run`: upload, ask for the adapter, follow, show the proof. */
import { openAsBlob } from "node:fs";
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import type { DatasetMapping, Notice, RunState } from "@loraline/contracts";
import type { JobCreateParams } from "openai/resources/fine-tuning/jobs/jobs";
import type { LineClient } from "../connect-line.ts";
import { exitCodes, Failure } from "../failure.ts";
import { followRun } from "./follow-run.ts";
import { importDataset, importSourceOf } from "../data/import-source.ts";
import { readMapping } from "../data/mapping-file.ts";
import { jobBodyOf } from "./job-body.ts";
import { readRunFile, type RunFile } from "./run-file.ts";
import { describeRun, modelOf } from "./show-run.ts";
import { type Terminal, writeJson, writeLine } from "../terminal.ts";

export interface RunRequest {
  file: string;
  validation?: string | undefined;
  /** Of both files. */
  mapping?: DatasetMapping | undefined;
  base: string;
  adapter: string;
  settings: RunFile;
}

/**
 * Uploads through OpenAI's own client and creates the job.
 * @returns id of the run, and what is to be told of fields that are not used as written.
 */
export async function startRun(line: LineClient, request: RunRequest): Promise<{ runId: string; notices: Notice[] }> {
  const training = await upload(line, request.file, request.mapping);
  const { base, adapter, settings, validation: given = settings.validation } = request;
  const validation = given === undefined ? undefined : (fileIdIn(given) ?? (await upload(line, given, request.mapping)));
  const body = jobBodyOf({ base, adapter, training, validation, settings });
  // OpenAI's client knows neither the extension nor all of the methods.
  const job = (await line.openai.fineTuning.jobs.create(body as JobCreateParams)) as { id: string; loraline?: { notices?: Notice[] } };
  return { runId: job.id.replace(/^ftjob-/, ""), notices: job.loraline?.notices ?? [] };
}

/** The file's id, when a dataset is named that is there already: by its own id, or by its file's. */
const fileIdIn = (given: string): string | undefined =>
  /^(?:file-)?[0-9A-HJKMNP-TV-Z]{26}$/.test(given) ? `file-${given.replace(/^file-/, "")}` : undefined;

async function upload(line: LineClient, path: string, mapping: DatasetMapping | undefined): Promise<string> {
  const source = importSourceOf(path);
  if (source !== undefined) return `file-${(await importDataset(line, source, mapping)).datasetId}`;
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
  const file = new File([await openAsBlob(path)], basename(path));
  const fields = mapping === undefined ? {} : { mapping: JSON.stringify(mapping) };
  const { id } = await line.openai.files.create({ file, purpose: "fine-tune", ...fields });
  return id;
}

export async function runCommand(
  line: LineClient,
  options: {
    file: string;
    validation?: string;
    mapping?: string;
    base: string;
    name: string;
    settings?: string;
    follow: boolean;
    json: boolean;
  },
  terminal: Terminal,
): Promise<number> {
  const settings = options.settings === undefined ? {} : await readRunFile(options.settings);
  const { runId, notices } = await startRun(line, {
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
    if (options.json) writeJson(terminal.out, await line.run(runId));
    else writeLine(terminal.out, runId);
    return exitCodes.ok;
  }
  writeLine(terminal.err, `run ${runId}`);
  return followCommand(line, runId, options, terminal);
}

/** Follows, then says how it ended. Ctrl-C leaves the run going. */
export async function followCommand(line: LineClient, runId: string, { json }: { json: boolean }, terminal: Terminal): Promise<number> {
  const run = await followRun(line, runId, terminal);
  if (run.finishedAt === null) {
    writeLine(terminal.err, `The run goes on. Follow it with: loraline show ${runId} --follow    Stop it with: loraline cancel ${runId}`);
    return 130;
  }
  await showRun(line, run, { json }, terminal);
  if (run.phase === "served" && !json) writeLine(terminal.out, `\nAsk it: loraline chat ${modelOf(run)} "Who are you?"`);
  return run.phase === "served" ? exitCodes.ok : exitCodes.failed;
}

export async function showRun(line: LineClient, run: RunState, { json }: { json: boolean }, terminal: Terminal): Promise<void> {
  const view = run.served === null ? undefined : await line.adapter(run.spec.adapter);
  if (json) writeJson(terminal.out, { run, adapter: view ?? null });
  else for (const text of describeRun(run, view)) writeLine(terminal.out, text);
}
