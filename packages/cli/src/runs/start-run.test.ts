import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ApiClient } from "@loraline/client";
import type { RunState } from "@loraline/contracts";
import { PassThrough } from "node:stream";
import { text } from "node:stream/consumers";
import { expect, it } from "vitest";
import { askedAs } from "./show-run.ts";
import { startRun, tellWarnings } from "./start-run.ts";

/** What a gateway would be sent: names of the files, then the job's body. */
async function sent(of: { validation?: string; inRunFile?: string }): Promise<{ files: string[]; body: unknown }> {
  await using dir = await mkdtempDisposable(join(tmpdir(), "loraline-start-run-"));
  const path = (name: string): string => (name.endsWith(".jsonl") ? join(dir.path, name) : name);
  for (const name of ["pirate.jsonl", "eval.jsonl", "other.jsonl"]) await writeFile(path(name), "{}\n");
  const files: string[] = [];
  let body: unknown;
  const api = {
    createFile: async ({ body: form }: { body: FormData }) => {
      const file = form.get("file") as File;
      // The bytes go through what counts them.
      expect(await new Response(form).text()).toContain("\r\n\r\n{}\n\r\n");
      return { id: `file-${files.push(file.name)}` };
    },
    createFineTuningJob: async (request: { body: unknown }) => {
      body = request.body;
      return { id: "ftjob-R" };
    },
  } as unknown as ApiClient;
  const settings = { gpus: 2, metadata: { team: "sea" }, ...(of.inRunFile === undefined ? {} : { validation: path(of.inRunFile) }) };
  const validation = of.validation === undefined ? {} : { validation: path(of.validation) };
  const request = { files: [path("pirate.jsonl")], base: "small", adapter: "pirate", settings, ...validation };
  expect(await startRun(api, request, { err: process.stderr, columns: 80 })).toEqual({
    runId: "R",
    training: expect.stringMatching(/^file-/),
    notices: [],
  });
  return { files, body };
}

const job = {
  model: "small",
  training_file: "file-1",
  metadata: { team: "sea" },
  loraline: { adapter: "pirate", gpus: 2 },
};

it("puts each field of the run file where a job has it", async () => {
  expect(await sent({})).toEqual({ files: ["pirate.jsonl"], body: job });
});

it.each([
  ["a file", { inRunFile: "eval.jsonl" }, ["eval.jsonl"], "file-2"],
  ["a dataset's id", { inRunFile: "01JD000000000000000000000V" }, [], "file-01JD000000000000000000000V"],
  ["a file's id", { inRunFile: "file-01JD000000000000000000000V" }, [], "file-01JD000000000000000000000V"],
  ["the command line's, which counts more", { inRunFile: "other.jsonl", validation: "eval.jsonl" }, ["eval.jsonl"], "file-2"],
])("takes the validation of a run file: %s", async (_, of, uploaded, id) => {
  expect(await sent(of)).toEqual({ files: ["pirate.jsonl", ...uploaded], body: { ...job, validation_file: id } });
});

it("says to ask the version that was just made, also where the alias still names an older one", () => {
  const run = { tenant: "acme", spec: { adapter: "pirate" } } as RunState;
  expect(askedAs({ promoted: true, version: 2 }, run)).toBe("acme/pirate");
  expect(askedAs({ promoted: false, version: 2 }, run)).toBe("acme/pirate@2");
});

it("says what is left out and what the report warns of, once the data is read", async () => {
  const states = [{ settledAt: null }, { settledAt: "2026-11-24T12:00:00.000Z", error: null, datasetId: "D" }];
  const api = {
    getDataset: async () => (states.length > 1 ? states.shift() : states[0]),
    getDatasetReport: async () => ({
      rows: 20_000,
      rejections: 2,
      reasons: { BAD_JSON: 2 },
      firstRejections: [{ line: 8 }, { line: 9 }],
      warnings: [{ code: "SECRETS", count: 1, message: "texts look like secrets: jwt (1).", lines: [7] }],
    }),
  } as unknown as ApiClient;
  const err = new PassThrough();
  await tellWarnings(api, "file-D", { err, columns: 80, signal: new AbortController().signal });
  const said = await text(err.end());
  expect(said).toContain("left out 2 of 20,000 rows cannot be used: BAD_JSON 2 (lines 8, 9). `loraline data report D` says why.");
  expect(said).toContain("SECRETS texts look like secrets: jwt (1). (line 7)");
});
