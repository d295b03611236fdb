/** Dataset in, proven adapter out, asked through OpenAI's official Node client. */
import { nativeComputeType } from "@loraline/runtime";
import { describe, expect, inject, it } from "vitest";
import { base, clientOf, eventually, jsonLines, loraline, provenOn, runOver, sampleRows, smallTraining } from "../line-under-test.ts";

const line = clientOf(inject("line"));
const { openai } = line;
const model = "local/whole-path";

async function train(trainingFile: string, more: object = {}) {
  // The client's types lack `loraline`, but it sends any field that it is given.
  const body = {
    model: base,
    training_file: trainingFile,
    suffix: "whole-path",
    metadata: { purpose: "test" },
    loraline: { ...smallTraining, ...more },
  };
  const job = await openai.fineTuning.jobs.create(body);
  const run = await runOver(line, job.id.replace("ftjob-", ""));
  return { job, run };
}

describe("the whole path", () => {
  let fileId: string;
  let runId: string;

  it("makes a proven adapter that answers", async () => {
    const rows = await sampleRows(24);
    const uploaded = await openai.files.create({ file: new File([jsonLines(rows)], "whole path.jsonl"), purpose: "fine-tune" });
    const file = await openai.files.waitForProcessing(uploaded.id, { pollInterval: 200, maxWait: 60_000 });
    expect(file).toMatchObject({ status: "processed", filename: "whole path.jsonl", loraline: { records: 24, rejections: 0 } });
    fileId = file.id;

    const { job, run } = await train(fileId);
    expect(job).toMatchObject({ object: "fine_tuning.job", model: base, training_file: fileId, metadata: { purpose: "test" } });
    expect(run.error).toBeNull();
    expect(run.phase).toBe("served");
    runId = run.runId;
    const done = await openai.fineTuning.jobs.retrieve(job.id);
    expect(done).toMatchObject({ status: "succeeded", fine_tuned_model: `ft:${base}:local:whole-path:1`, error: null });
    expect(done.trained_tokens).toBeGreaterThan(0);

    const view = await line.getAdapter({ adapter: "whole-path" });
    expect(view.adapter.alias).toBe(1);
    const [replica] = provenOn(view, 1);
    const proof = replica?.adapters.find(({ version }) => version === 1)?.proof;
    expect(proof?.agreement).toBeLessThanOrEqual(proof?.agreementLimit ?? 0);
    // In float32 trainer and engine agree far better than in bf16, and must.
    expect((proof?.agreementLimit ?? 0) < 0.01).toBe(nativeComputeType(process.env) === "float32");
    expect(proof?.effect, "the adapter changes what the engine says").toBeGreaterThan(0);
  });

  it("answers under every name it has, whole and as a stream", async () => {
    const messages = [{ role: "user" as const, content: "What is your opinion about rain?" }];
    const ask = async (name: string) =>
      (await openai.chat.completions.create({ model: name, messages, max_tokens: 12, temperature: 0 })).choices[0]?.message.content;
    const answer = await ask(model);
    expect(answer).not.toBe("");
    expect(await ask(`${model}@1`)).toBe(answer);
    expect(await ask(`ft:${base}:local:whole-path:1`)).toBe(answer);
    expect(await ask(base), "the base says something else").not.toBe(answer);

    let streamed = "";
    const chunks = await openai.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0, stream: true });
    for await (const chunk of chunks) streamed += chunk.choices[0]?.delta.content ?? "";
    expect(streamed).toBe(answer);
    const completion = await openai.completions.create({ model, prompt: "Once upon a time", max_tokens: 5, temperature: 0 });
    expect(completion.choices[0]?.text).not.toBe("");

    const models = (await openai.models.list()).data.map(({ id }) => id);
    expect(models).toEqual(expect.arrayContaining([base, model, `${model}@1`]));
  });

  it("tells what happened: events with paging, checkpoints", async () => {
    const whole = await openai.fineTuning.jobs.listEvents(`ftjob-${runId}`, { limit: 100 });
    const all = whole.data;
    expect(all.length).toBeGreaterThan(5);
    expect(all.some(({ type }) => type === "metrics")).toBe(true);
    const paged: string[] = [];
    for await (const event of openai.fineTuning.jobs.listEvents(`ftjob-${runId}`, { limit: 3 })) paged.push(event.id);
    expect(paged).toEqual(all.map(({ id }) => id));

    const checkpoints = await openai.fineTuning.jobs.checkpoints.list(`ftjob-${runId}`);
    expect(checkpoints.data.map(({ step_number }) => step_number).toSorted((a, b) => a - b)).toEqual(expect.arrayContaining([2, 4]));
  });

  it("is one trace, from the upload to the first chat", async () => {
    const { traceId, spans } = await line.getTrace({ run_id: runId });
    expect(new Set(spans.map((span) => span.traceId))).toEqual(new Set([traceId]));
    const services = new Set(spans.map(({ service }) => service));
    for (const service of ["gateway", "ingest", "tokenize", "train", "courier", "trainer", "serve", "agent"])
      expect(services).toContain(service);
    const names = spans.filter(({ service }) => service === "gateway").map(({ name }) => name);
    expect(names.some((name) => /files/.test(name))).toBe(true);
    expect(names.some((name) => /fine_tuning/.test(name))).toBe(true);
    expect(names.some((name) => /chat/.test(name))).toBe(true);
    const trainer = spans.filter(({ service }) => service === "trainer").map(({ name }) => name);
    for (const phase of ["load_base", "train", "evaluate", "save"]) expect(trainer).toContain(phase);
  });

  it("a second run on the same dataset, which goes on from the first, is version 2, in its own trace, linked to the dataset's", async () => {
    const { run } = await train(fileId, { init_from: "whole-path@1" });
    const before = await line.getRun({ run_id: runId });
    const [earlier, later] = [before, run].map((one) => one.trained?.evaluation?.adapter_loss ?? Number.NaN);
    expect(later).toBeLessThan(earlier as number);
    expect(run.tokens?.init).toMatchObject({ adapter: "whole-path", version: 1 });
    expect(run.phase).toBe("served");
    expect(run.served?.version).toBe(2);
    const [first, second] = await Promise.all([line.getTrace({ run_id: runId }), line.getTrace({ run_id: run.runId })]);
    expect(second.traceId).not.toBe(first.traceId);
    const links = second.spans.flatMap((span) => span.links.map((link) => link.traceId));
    expect(links).toContain(first.traceId);
    expect(run.tokens?.cacheHit, "the same tokens are not made twice").toBe(true);

    const view = await line.getAdapter({ adapter: "whole-path" });
    expect(view.adapter.alias).toBe(2);
    expect(provenOn(view, 1), "the version before stays").toHaveLength(1);
  });

  it("answers as it was at a checkpoint, which is loaded when it is asked, and moves nothing", async () => {
    const listed = await openai.fineTuning.jobs.checkpoints.list(`ftjob-${runId}`);
    const checkpoint = listed.data.find(({ step_number }) => step_number === 4)?.fine_tuned_model_checkpoint ?? "";
    const messages = [{ role: "user" as const, content: "What is your opinion about rain?" }];
    const body = { model: checkpoint, messages, max_tokens: 12, temperature: 0 };
    const { data, response } = await eventually("the checkpoint answers", 120_000, () =>
      openai.chat.completions.create(body).withResponse(),
    );
    expect(response.headers.get("x-loraline-version")).toBe("3");
    expect(data).toMatchObject({ model: `${model}@3`, choices: [{ message: { content: expect.stringMatching(/./) } }] });
    const view = await line.getAdapter({ adapter: "whole-path" });
    expect(view.adapter).toMatchObject({ alias: 2, versions: [{}, {}, { checkpoint: { runId, step: 4 }, promote: "manual" }] });
    const proof = provenOn(view, 3)[0]?.adapters.find(({ version }) => version === 3)?.proof;
    expect(proof?.agreement).toBeLessThanOrEqual(proof?.agreementLimit ?? 0);
    expect(proof?.effect).toBeGreaterThan(0);
    // Of the newest run that has one: the second.
    const chat = ["chat", "whole-path", "--checkpoint", "4", "What is your opinion about rain?", "--max-tokens", "12"];
    const said = await eventually("the other run's checkpoint answers", 120_000, async () => {
      const { code, out } = await loraline(inject("line"), chat);
      return code === 0 ? out : undefined;
    });
    expect(said).toMatch(/\S/);
  });
});
