/** Wrong input gets one clear message with the field and the remedy, over HTTP, on the CLI and as an event. Nothing incomplete stays. */
import { join } from "node:path";
import { BadRequestError, NotFoundError } from "openai";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { base, clientOf, fileWith, jsonLines, loraline, runOver, sampleRows, scratchDir, startLineUnderTest } from "../line-under-test.ts";

const address = inject("line");
const line = clientOf(address);
const { openai } = line;

let scratch: Awaited<ReturnType<typeof scratchDir>>;
beforeAll(async () => {
  scratch = await scratchDir();
});
afterAll(() => scratch[Symbol.asyncDispose]());

const upload = async (name: string, text: string) => (await openai.files.create({ file: new File([text], name), purpose: "fine-tune" })).id;

describe("a dataset", () => {
  const row = JSON.stringify({ instruction: "a", input: "", output: "b" });
  it.each([
    ["that is empty", "empty.jsonl", "", /empty/i],
    ["that has nothing but rejected rows", "useless.jsonl", '{"foo":1}\n{"foo":2}\n', /2/],
    ["with fewer rows than needed", "few.jsonl", `${row}\n`.repeat(3), /10/],
  ])("%s fails the run and says why", async (_, name, text, reason) => {
    const path = await fileWith(scratch.path, name, text);
    const { code, err, out } = await loraline(address, ["run", path, "--base", base, "--name", "never"]);
    expect({ code, out }).toMatchObject({ code: 1 });
    expect(out + err).toMatch(reason);
    expect(out + err, "no stack trace").not.toMatch(/\n\s+at /);
  });

  it("with a broken line names the line and keeps the others", async () => {
    const rows = (await sampleRows(12)).map((each) => JSON.stringify(each));
    rows.splice(4, 0, '{"instruction": "broken');
    const id = await upload("broken.jsonl", `${rows.join("\n")}\n`);
    const file = await openai.files.waitForProcessing(id, { pollInterval: 200 });
    expect(file).toMatchObject({ status: "processed", loraline: { records: 12, rejections: 1 } });
  });

  it("is read by its mapping, and says what of it the mapping does not find", async () => {
    const path = await fileWith(scratch.path, "mapped.jsonl", `${row}\n`.repeat(12));
    const mapping = await fileWith(scratch.path, "mapping.yaml", "format: question-answer\ncolumns: { question: Frage, answer: output }\n");
    const { code, err, out } = await loraline(address, ["run", path, "--base", base, "--name", "never", "--mapping", mapping]);
    expect(code).toBe(1);
    expect(out + err).toMatch(/FORMAT_MISMATCH: 12.*`question` is missing/);
  });

  it("of nothing but preferences fails the run and says that they are not trained", async () => {
    const rows = Array.from({ length: 12 }, (_, n) => JSON.stringify({ prompt: `q${n}`, chosen: "yes", rejected: "no" }));
    const path = await fileWith(scratch.path, "preferences.jsonl", rows.join("\n"));
    const { code, err, out } = await loraline(address, ["run", path, "--base", base, "--name", "never"]);
    expect(code).toBe(1);
    expect(out + err).toMatch(/KIND_NOT_TRAINED/);
  });

  it("that does not exist is refused at once", async () => {
    const asked = openai.fineTuning.jobs.create({ model: base, training_file: "file-01ARZ3NDEKTSV4RRFFQ69G5FAV" });
    await expect(asked).rejects.toMatchObject({ param: "training_file", status: expect.any(Number) });
    await expect(asked).rejects.toThrow(/file-01ARZ3NDEKTSV4RRFFQ69G5FAV/);
  });
});

describe("a job", () => {
  it.each([
    ["an unknown base", { model: "gpt-9" }, "model", /gpt-9.*Served: smollm2/s],
    ["a rank above the engine's", { loraline: { lora: { r: 64 } } }, "loraline.lora.r", /64.*up to 32/s],
    [
      "a bad regular expression",
      { loraline: { lora: { target_modules: "(q_proj" } } },
      "loraline.lora.target_modules",
      /regular expression/,
    ],
    ["something vLLM cannot serve", { loraline: { lora: { use_dora: true } } }, "loraline.lora.use_dora", /DoRA/],
    ["a misspelt setting", { loraline: { training: { learning_rte: 1 } } }, "loraline.training.learning_rte", /no such field/],
  ])("with %s is refused before anything is spent", async (_, change, param, reason) => {
    const id = await upload("good.jsonl", jsonLines(await sampleRows(12)));
    const before = (await line.listRuns()).data.length;
    const body = { model: base, training_file: id, ...change };
    const refused = await openai.fineTuning.jobs.create(body).then(
      () => undefined,
      (error: unknown) => error as BadRequestError,
    );
    expect(refused).toBeInstanceOf(BadRequestError);
    expect(refused).toMatchObject({ status: 400, param });
    expect(refused?.message).toMatch(reason);
    expect((await line.listRuns()).data, "no run was made").toHaveLength(before);
  });

  it("the same on the CLI: exit code 1 and one line", async () => {
    const path = await fileWith(scratch.path, "good.jsonl", jsonLines(await sampleRows(12)));
    const settings = await fileWith(scratch.path, "run.yaml", "lora: { r: 64 }\n");
    const refused = await loraline(address, ["run", path, "--base", base, "--name", "never", "-f", settings]);
    expect(refused.code).toBe(1);
    expect(refused.err.trim()).toMatch(/^loraline: .*lora\.r is 64.*up to 32/);
    expect(refused.err.trim().split("\n")).toHaveLength(1);
  });

  it("that is rejected later says so in its event and its error", async () => {
    const id = await upload("few.jsonl", jsonLines(await sampleRows(3)));
    const job = await openai.fineTuning.jobs.create({ model: base, training_file: id });
    const run = await runOver(line, job.id.replace("ftjob-", ""));
    expect(run.phase).toBe("rejected");
    const failed = await openai.fineTuning.jobs.retrieve(job.id);
    expect(failed).toMatchObject({ status: "failed", error: { code: run.error?.code, param: "training_file" } });
    expect(failed.error?.message).toMatch(/3/);
    const [newest] = (await openai.fineTuning.jobs.listEvents(job.id)).data;
    expect(newest).toMatchObject({ level: "error", message: expect.stringContaining(failed.error?.message ?? "-") });
  });
});

describe("a question", () => {
  it.each(["local/nobody", "nobody/persona", "gpt-9", `${base}@1`])("to %s, which nobody is, is 404", async (model) => {
    const asked = openai.chat.completions.create({ model, messages: [{ role: "user", content: "?" }] });
    await expect(asked).rejects.toBeInstanceOf(NotFoundError);
  });
  it("with a wrong key is 401, and exit code 5", async () => {
    const { code, err } = await loraline({ ...address, apiKey: "ll-wrong" }, ["runs"]);
    expect(code).toBe(5);
    expect(err).toMatch(/^loraline: .*key/i);
  });
});

describe("a machine", () => {
  it("with the port taken: the message names port and setting", async () => {
    const { port } = new URL(address.url);
    const state = join(scratch.path, "port-taken");
    const { code, err } = await loraline(undefined, ["up", "--port", port, "--state", state]);
    expect({ code, err: err.trim() }).toEqual({ code: 1, err: expect.stringMatching(new RegExp(`^loraline: port ${port} .*--port`)) });
  });
  it("with a line on the same state directory: the message names its pid", async () => {
    const { code, err } = await loraline(undefined, ["up", "--port", "0", "--state", address.stateDir]);
    expect({ code, err: err.trim() }).toEqual({
      code: 1,
      err: expect.stringMatching(/^loraline: a server already runs .*pid \d+.*--state/),
    });
  });
  it.each([
    ["LORALINE_PYTHON", /Python.*make setup/],
    ["LORALINE_NATS_SERVER", /nats-server.*make setup/],
    ["LORALINE_BASES_DIR", /base "smollm2.*make setup/],
  ])("without what %s names: make setup", async (name, message) => {
    process.env[name] = join(scratch.path, "nowhere");
    try {
      const { code, err } = await loraline(undefined, ["up", "--port", "0", "--state", join(scratch.path, "incomplete")]);
      expect({ code, err: err.trim() }).toEqual({ code: 1, err: expect.stringMatching(message) });
    } finally {
      delete process.env[name];
    }
  });
  it("without a line: exit code 3, and how to start one", async () => {
    const { code, err } = await loraline(undefined, ["runs", "--state", join(scratch.path, "nobody")]);
    expect({ code, err }).toEqual({ code: 3, err: expect.stringContaining("loraline up") });
  });
  it("ends in order, and leaves nothing but its state", async () => {
    const line = await startLineUnderTest(join(scratch.path, "short-lived"));
    // One that does not end by itself is ended after some seconds, with another code.
    expect(await line.stop()).toBe(0);
  });
});
