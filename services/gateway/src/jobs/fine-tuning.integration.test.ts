/** Jobs as the official Node SDK makes and follows them; the line behind is played on the bus. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buckets, events, evidence, runRejected, type RunState } from "@loraline/contracts";
import { putJson } from "@loraline/objects";
import { traceIdOf } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { toFile } from "openai";
import { describe, expect } from "vitest";
import { createApiKey } from "../access/auth.ts";
import {
  adapterOf,
  base,
  type GatewayUnderTest,
  heldBy,
  playIngested,
  playServed,
  playStep,
  playTokenized,
  playTrained,
  putAdapter,
  putReplica,
  refOf,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../gateway-under-test.ts";
import { datasetIdOf, runIdOf } from "../openai-ids.ts";

const test = testWithNats
  .extend("spansDir", async ({}, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-spans-"));
    onCleanup(() => rm(dir, { recursive: true, force: true, maxRetries: 5 })); // a span may still be on its way
    return dir;
  })
  .extend("line", async ({ nc, tenant, spansDir }, { onCleanup }): Promise<GatewayUnderTest> => {
    const line = await startGateway({ nc, tenant, spansDir });
    onCleanup(() => line[Symbol.asyncDispose]());
    await registerEngine(line.bus);
    return line;
  });

const uploaded = async (line: GatewayUnderTest, name = "Pirate Talk.jsonl"): Promise<string> => {
  const file = await toFile(Buffer.from('{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20)), name);
  return (await line.openai.files.create({ file, purpose: "fine-tune" })).id;
};
const created = async (line: GatewayUnderTest, over: object = {}) => {
  const training_file = await uploaded(line);
  return line.openai.fineTuning.jobs.create({ model: base, training_file, suffix: "pirate", ...over });
};
const idOf = (jobId: string): string => runIdOf(jobId) ?? "";
/** Waits until the projector has folded what was played. */
const until = (line: GatewayUnderTest, jobId: string, status: string) =>
  expect.poll(async () => (await line.openai.fineTuning.jobs.retrieve(jobId)).status).toBe(status);

describe("a request over NATS that cannot be read", () => {
  test("made no run, and whoever shows or cancels it is told why", async ({ line }) => {
    const id = "01JD000000000000000000000M";
    const fails = async (act: Promise<unknown>) =>
      act.then(
        () => undefined,
        (error: { error?: unknown }) => error.error,
      );
    expect(await fails(line.openai.fineTuning.jobs.retrieve(`ftjob-${id}`))).toMatchObject({
      message: `No such fine-tuning job: ftjob-${id}.`,
    });
    // As tokenize answers it.
    const rejected = { code: "CONTRACT_VIOLATION", message: "spec.base: must be a text", param: "spec.base" };
    await line.bus.publish(runRejected, { tenant: line.tenant, id }, rejected);
    const told = {
      code: "not_found",
      message: expect.stringMatching(/rejected, because it cannot be read: spec\.base: must be a text \[CONTRACT_VIOLATION\]/) as string,
    };
    expect(await fails(line.openai.fineTuning.jobs.retrieve(`ftjob-${id}`))).toMatchObject(told);
    expect(await fails(line.openai.fineTuning.jobs.cancel(`ftjob-${id}`))).toMatchObject(told);
    expect(await (await line.fetch(`/v1/loraline/runs/${id}`)).json()).toMatchObject({ error: told });
  });
});

describe("jobs", () => {
  test("go from created to succeeded, as the SDK sees them", async ({ line }) => {
    const training_file = await uploaded(line);
    const job = await line.openai.fineTuning.jobs.create({
      model: base,
      training_file,
      suffix: "My Pirate!",
      seed: 7,
      metadata: { team: "sea" },
      method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2, batch_size: "auto", learning_rate_multiplier: 2 } } },
    });
    expect(job).toMatchObject({
      object: "fine_tuning.job",
      model: base,
      training_file,
      validation_file: null,
      organization_id: line.tenant,
      status: "validating_files",
      seed: 7,
      metadata: { team: "sea" },
      hyperparameters: { n_epochs: 2, batch_size: 4, learning_rate_multiplier: 2 },
      method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2, batch_size: 4, learning_rate_multiplier: 2 } } },
      fine_tuned_model: null,
      finished_at: null,
      trained_tokens: null,
      error: null,
      result_files: [],
    });
    const id = idOf(job.id);
    const requested = await line.bus.last(events.runRequested, { tenant: line.tenant, id });
    expect(requested?.data).toMatchObject({
      by: "test",
      spec: {
        base,
        adapter: "my-pirate",
        dataset: datasetIdOf(training_file),
        training: { seed: 7, num_train_epochs: 2, learning_rate: 4e-4 },
      },
    });
    expect(await line.openai.fineTuning.jobs.retrieve(job.id)).toEqual(job);

    await playTokenized(line.bus, line.tenant, id);
    await until(line, job.id, "queued");
    await line.bus.publish(events.runStarted, { tenant: line.tenant, id }, { attempt: 1, job: "x" }, { key: "1" });
    await playStep(line.bus, line.tenant, id, 1, 30);
    await until(line, job.id, "running");
    await expect
      .poll(async () => (await line.openai.fineTuning.jobs.retrieve(job.id)).estimated_finish ?? 0)
      .toBeGreaterThan(Date.now() / 1000 + 20);

    await playTrained(line.bus, line.tenant, id);
    await expect.poll(async () => (await line.openai.fineTuning.jobs.retrieve(job.id)).trained_tokens).toBe(600);
    expect((await line.openai.fineTuning.jobs.retrieve(job.id)).status).toBe("running");
    await playServed(line.bus, line.tenant, id, "my-pirate", 3);
    await until(line, job.id, "succeeded");
    const done = await line.openai.fineTuning.jobs.retrieve(job.id);
    expect(done).toMatchObject({ fine_tuned_model: `ft:${base}:${line.tenant}:my-pirate:3`, estimated_finish: null });
    expect(done.finished_at).toBeGreaterThanOrEqual(done.created_at);
    expect((done as unknown as { loraline: { run: RunState } }).loraline.run).toMatchObject({ phase: "served", served: { version: 3 } });
  });

  test("show events newest first, page through them, and keep their ids", async ({ line }) => {
    const job = await created(line);
    const id = idOf(job.id);
    await playTokenized(line.bus, line.tenant, id);
    await playTrained(line.bus, line.tenant, id);
    await playServed(line.bus, line.tenant, id, "pirate");
    const all = (await line.openai.fineTuning.jobs.listEvents(job.id, { limit: 100 })).data;
    expect(all.map(({ message }) => message)).toEqual([
      `The job has successfully completed: ft:${base}:${line.tenant}:pirate:1 is proven on 1 replica`,
      "Training finished after 3 steps; held-out loss 1.2000, base 3.5000. Loading the adapter on the engine",
      "Checkpoint created at step 2",
      "Step 3/3: training loss=1.0000",
      "Step 2/3: training loss=1.5000",
      "Step 1/3: training loss=3.0000",
      "Fine-tuning job started (attempt 1)",
      "Files validated: 12 sequences, 200 of 600 tokens trained",
      `Created fine-tuning job: ${job.id}`,
    ]);
    expect(all[3]).toMatchObject({
      object: "fine_tuning.job.event",
      type: "metrics",
      level: "info",
      data: { step: 3, total_steps: 3, train_loss: 1, learning_rate: 1e-4, epoch: 1 },
    });
    const paged = await Array.fromAsync(line.openai.fineTuning.jobs.listEvents(job.id, { limit: 2 }));
    expect(paged).toEqual(all);
    expect(new Set(all.map((event) => event.id)).size).toBe(all.length);
    const page = await line.openai.fineTuning.jobs.listEvents(job.id, { limit: 2 });
    expect([page.data.length, page.has_more]).toEqual([2, true]);
  });

  test("page through a long training the same way, whatever the size of the pages", async ({ line }) => {
    const [job, other] = [await created(line), await created(line, { suffix: "other" })];
    const at = { tenant: line.tenant, id: idOf(job.id) };
    await playTokenized(line.bus, line.tenant, at.id);
    for (let step = 1; step <= 60; step++) {
      await playStep(line.bus, line.tenant, at.id, step, 60);
      if (step < 40) await playStep(line.bus, line.tenant, idOf(other.id), step, 60); // others' steps in between
      if (step % 25 !== 0) continue;
      const data = { attempt: 1, step, checkpoint: refOf("checkpoint"), trainLoss: 1 };
      await line.bus.publish(events.runCheckpointed, at, data, { key: `1/${step}` });
    }
    const all = (await line.openai.fineTuning.jobs.listEvents(job.id, { limit: 1000 })).data;
    expect(all).toHaveLength(64);
    expect(all.filter(({ type }) => type === "metrics").map(({ data }) => (data as { step: number }).step)).toEqual(
      Array.from({ length: 60 }, (_, index) => 60 - index),
    );
    const ids = all.map(({ id }) => id);
    for (const limit of [1, 7, 20, 63, 64]) {
      const paged = await Array.fromAsync(line.openai.fineTuning.jobs.listEvents(job.id, { limit }));
      expect(paged.map(({ id }) => id)).toEqual(ids);
    }
    for (const after of ["ftevent-progress-999999", "ftevent-runs-1", "x"]) {
      await expect(line.openai.fineTuning.jobs.listEvents(job.id, { after })).rejects.toMatchObject({
        status: 400,
        code: "invalid_cursor",
      });
    }
  });

  test("show checkpoints", async ({ line }) => {
    const job = await created(line);
    await playTrained(line.bus, line.tenant, idOf(job.id));
    await expect.poll(async () => (await line.openai.fineTuning.jobs.checkpoints.list(job.id)).data).toHaveLength(1);
    const [checkpoint] = await Array.fromAsync(line.openai.fineTuning.jobs.checkpoints.list(job.id));
    expect(checkpoint).toMatchObject({
      object: "fine_tuning.job.checkpoint",
      fine_tuning_job_id: job.id,
      step_number: 2,
      metrics: { step: 2, train_loss: 1.5 },
    });
  });

  test("have checkpoints that answer: loaded when they are asked, and 404 with a remedy when they cannot be", async ({ line }) => {
    const { bus, openai, objects, tenant } = line;
    const job = await created(line, { loraline: { training: { save_total_limit: 2 } } });
    const runId = idOf(job.id);
    const at = { tenant, id: runId };
    const manifestOf = (step: number) =>
      putJson(objects, tenant, "adapter", {
        version: 1,
        base: { name: base, revision: "1", digest: refOf("adapter").digest },
        rank: step,
        targetModules: ["q_proj"],
        parameters: 1,
        files: [],
      });
    await bus.publish(events.runStarted, at, { attempt: 1, job: "train-1" }, { key: "1" });
    for (const step of [10, 20, 30]) {
      const published = step === 30 ? undefined : { adapter: await manifestOf(step), evidence: refOf("evidence"), rank: 8 };
      await bus.publish(events.runCheckpointed, at, { attempt: 1, step, checkpoint: refOf("checkpoint"), published }, { key: `1/${step}` });
    }
    await expect.poll(async () => (await openai.fineTuning.jobs.checkpoints.list(job.id)).data).toHaveLength(3);
    const named = new Map((await openai.fineTuning.jobs.checkpoints.list(job.id)).data.map((one) => [one.step_number, one]));
    const nameOf = (step: number): string => named.get(step)?.fine_tuned_model_checkpoint ?? "";
    const ask = (model: string, client = openai) =>
      client.chat.completions.create({ model, messages: [{ role: "user", content: "ahoy" }] });

    // The first time it is asked of serve; asked at once by many it is asked of serve once.
    for (let n = 0; n < 3; n++) await expect(ask(nameOf(20))).rejects.toMatchObject({ status: 503, code: "version_loading" });
    expect((await bus.last(events.adapterCheckpointWanted, { tenant, id: "pirate" }))?.data).toMatchObject({ runId, step: 20, by: "test" });
    // Serve made a version of it.
    const version = versionOf(tenant, "pirate", 1, { checkpoint: { runId, step: 20 }, promote: "manual" });
    const state = adapterOf(tenant, "pirate", [version], { alias: null });
    await using engine = await startEngine(base, version.engineName);
    await putAdapter(bus, state);
    await putReplica(bus, replicaOf("r-checkpoint", engine.url, [heldBy(state, version)]));
    await expect.poll(async () => (await ask(nameOf(20)).catch(() => undefined))?.model).toBe(`${tenant}/pirate@1`);
    expect(engine.requests.at(-1)?.body["model"]).toBe(version.engineName);
    expect((await openai.models.retrieve(nameOf(20))).id).toBe(`${tenant}/pirate@1`);

    const manifest = await manifestOf(10);
    await objects.delete(tenant, manifest);
    const refused: [string, RegExp][] = [
      [
        nameOf(10),
        /step 10 was removed\. Of each run the newest 2 are kept \(training\.save_total_limit\).*higher training\.save_total_limit/,
      ],
      [nameOf(30), /step 30 cannot be asked: it holds no adapter.*lists the run's/],
      [nameOf(20).replace("step-20", "step-21"), /has no checkpoint of step 21.*training\.save_steps/],
      [nameOf(20).replace(":pirate:", ":parrot:"), /does not exist or you do not have access/],
      [nameOf(20).replace(base, "another-base"), /does not exist or you do not have access/],
      [nameOf(20).replace(runId, "01JD000000000000000000000M"), /does not exist or you do not have access/],
    ];
    for (const [model, message] of refused)
      await expect(ask(model), model).rejects.toMatchObject({
        status: 404,
        code: "model_not_found",
        message: expect.stringMatching(message),
      });
    // Another tenant learns nothing of it, also of one that answers.
    const stranger = line.clientFor(await line.keyFor(`${tenant}-other`));
    for (const step of [20, 30])
      await expect(ask(nameOf(step), stranger)).rejects.toMatchObject({ status: 404, message: expect.stringMatching(/does not exist/) });
    // A key that is bound to the adapter's alias gets no checkpoint; one for its versions does.
    const bound = async (...models: string[]) =>
      line.clientFor(await createApiKey({ bus }, { tenant, name: "bound", scopes: ["infer"], models }));
    await expect(ask(nameOf(20), await bound("pirate", "pirate@1"))).rejects.toMatchObject({ status: 403, code: "model_not_allowed" });
    expect((await ask(nameOf(20), await bound("pirate@*"))).model).toBe(`${tenant}/pirate@1`);
    await (await bus.bucket(buckets.replicas)).delete("local.r-checkpoint");
  });

  test("have a result file: the metrics as CSV with OpenAI's columns", async ({ line }) => {
    const { bus, objects, openai, tenant } = line;
    const resultOf = async (jobId: string) => {
      await expect.poll(async () => (await openai.fineTuning.jobs.retrieve(jobId)).result_files).toEqual([`file-result-${idOf(jobId)}`]);
      const [fileId = ""] = (await openai.fineTuning.jobs.retrieve(jobId)).result_files;
      const csv = await (await openai.files.content(fileId)).text();
      expect(await openai.files.retrieve(fileId)).toMatchObject({ purpose: "fine-tune-results", bytes: csv.length, status: "processed" });
      return csv;
    };
    const head = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n";

    const job = await created(line);
    expect(job.result_files).toEqual([]);
    const at = { tenant, id: idOf(job.id) };
    const proven = evidence.parse({
      version: 1,
      runId: at.id,
      adapter: refOf("adapter", "d").digest,
      tokens: refOf("tokens"),
      templateDigest: refOf("tokens").digest,
      evaluation: null,
      probes: [],
      lossHistory: [
        [1, 3.25],
        [2, 2],
      ],
      evalHistory: [[2, 1.5]],
    });
    await bus.publish(events.runTrained, at, {
      attempt: 1,
      adapter: refOf("adapter", "d"),
      evidence: await putJson(objects, tenant, "evidence", proven),
      rank: 8,
      targetModules: ["q_proj"],
      parameters: 1000,
      steps: 2,
      trainLoss: 2,
      trainedTokens: 600,
      tokensPerSecond: 100,
      evaluation: { base_loss: 3.5, adapter_loss: 1.5, base_accuracy: 0.1, adapter_accuracy: 0.75, rows: 2, supervised_tokens: 30 },
      lastStepAt: new Date().toISOString(),
    });
    expect(await resultOf(job.id)).toBe(`${head}1,3.25,,,\n2,2,,1.5,0.75\n`);
    const metrics = await (await line.fetch(`/v1/loraline/runs/${at.id}/metrics`)).json();
    expect(metrics).toMatchObject({
      run_id: at.id,
      data: [
        { step: 1, train_loss: 3.25, valid_loss: null },
        { step: 2, valid_loss: 1.5 },
      ],
    });
    await expect(openai.files.delete(`file-result-${at.id}`)).rejects.toMatchObject({ status: 400, code: "unsupported" });

    // The evidence of this one is gone: what was told of its steps is what there is.
    const older = await created(line, { suffix: "older" });
    await playTrained(bus, tenant, idOf(older.id));
    expect(await resultOf(older.id)).toBe(`${head}1,3,,,\n2,1.5,,,\n3,1,,,\n`);
    const ofOlder = `/v1/loraline/runs/${idOf(older.id)}/metrics?details`;
    expect(await (await line.fetch(`${ofOlder}=true`)).json()).toMatchObject({
      data: [1, 2, 3].map((step) => ({ step, train_loss: 3 / step, learning_rate: 1e-4, tokens_per_second: 100 })),
    });
    expect((await line.fetch(`${ofOlder}=maybe`)).status).toBe(400);
    const stranger = line.clientFor(await line.keyFor("stranger"));
    await expect(stranger.files.content(`file-result-${at.id}`)).rejects.toMatchObject({ status: 404 });
  });

  test("are cancelled, again and again, until they have ended", async ({ line }) => {
    const job = await created(line);
    const at = { tenant: line.tenant, id: idOf(job.id) };
    const cancelling = line.openai.fineTuning.jobs.cancel(job.id);
    await expect.poll(() => line.bus.last(events.runCancelRequested, at)).toBeDefined();
    await line.bus.publish(events.runCancelled, at, { by: "test" });
    expect(await cancelling).toMatchObject({ id: job.id, status: "cancelled" });
    expect(await line.openai.fineTuning.jobs.cancel(job.id)).toMatchObject({ status: "cancelled" });
    expect(await line.bus.history([events.runCancelRequested], at)).toHaveLength(1);

    const slow = await created(line);
    expect(await line.openai.fineTuning.jobs.cancel(slow.id)).toMatchObject({ status: "validating_files" });
    expect(await line.openai.fineTuning.jobs.cancel(slow.id)).toMatchObject({ status: "validating_files" });

    const trained = await created(line);
    await playTrained(line.bus, line.tenant, idOf(trained.id));
    await expect.poll(async () => (await line.openai.fineTuning.jobs.retrieve(trained.id)).trained_tokens).toBe(600);
    // Asked for while its adapter is being loaded; but serve was faster.
    const late = line.openai.fineTuning.jobs.cancel(trained.id);
    await expect.poll(() => line.bus.last(events.runCancelRequested, { tenant: line.tenant, id: idOf(trained.id) })).toBeDefined();
    await playServed(line.bus, line.tenant, idOf(trained.id), "pirate");
    await expect(late).rejects.toMatchObject({ status: 400, code: "job_not_cancellable" });
    await until(line, trained.id, "succeeded");
    await expect(line.openai.fineTuning.jobs.cancel(trained.id)).rejects.toThrow(/already ended \(succeeded\)/);
  });

  test("say why they failed, in the words of the request", async ({ line }) => {
    const rejected = await created(line);
    const message = "only 3 usable records; at least 10 are needed";
    await line.bus.publish(
      events.runRejected,
      { tenant: line.tenant, id: idOf(rejected.id) },
      { code: "TOO_FEW_RECORDS", message, param: "min_records" },
    );
    await until(line, rejected.id, "failed");
    expect((await line.openai.fineTuning.jobs.retrieve(rejected.id)).error).toEqual({
      code: "TOO_FEW_RECORDS",
      message,
      param: "loraline.min_records",
    });
    const [event] = (await line.openai.fineTuning.jobs.listEvents(rejected.id)).data;
    expect(event).toMatchObject({ level: "error", message });
  });

  test("list newest first, with paging and metadata", async ({ line }) => {
    const training_file = await uploaded(line);
    const ids: string[] = [];
    for (const n of ["1", "2", "3"]) {
      ids.push((await line.openai.fineTuning.jobs.create({ model: base, training_file, suffix: "a", metadata: { n } })).id);
    }
    expect(await Array.fromAsync(line.openai.fineTuning.jobs.list({ limit: 2 }), (job) => job.id)).toEqual(ids.toReversed());
    expect((await line.openai.fineTuning.jobs.list({ metadata: { n: "2" } })).data.map((job) => job.id)).toEqual([ids[1]]);
  });

  test("are made once for one Idempotency-Key, and for a retry of the SDK", async ({ line }) => {
    const training_file = await uploaded(line);
    const body = { model: base, training_file, suffix: "pirate" };
    const headers = { "idempotency-key": "job-1" };
    const [one, two] = await Promise.all([
      line.openai.fineTuning.jobs.create(body, { headers }),
      line.openai.fineTuning.jobs.create(body, { headers }),
    ]);
    expect(two.id).toBe(one.id);
    await expect(line.openai.fineTuning.jobs.create({ ...body, seed: 1 }, { headers })).rejects.toMatchObject({
      code: "idempotency_key_reused",
    });

    const other = await line.openai.fineTuning.jobs.create({ ...body, seed: 2 });
    const retried = await line.openai.fineTuning.jobs.create({ ...body, seed: 2 }, { headers: { "x-stainless-retry-count": "1" } });
    expect(retried.id).toBe(other.id);
    expect((await line.openai.fineTuning.jobs.create({ ...body, seed: 2 })).id).not.toBe(other.id);
  });

  test("that cannot work are refused before anything is spent", async ({ line }) => {
    const training_file = await uploaded(line);
    const refused = async (body: object) => {
      const response = await line.fetch("/v1/fine_tuning/jobs", {
        method: "POST",
        body: JSON.stringify({ model: base, training_file, ...body }),
        headers: { "content-type": "application/json" },
      });
      return {
        status: response.status,
        ...((await response.json()) as { error: { code: string; param: string; message: string; type: string } }),
      };
    };
    expect(await refused({ model: "gpt-4o" })).toMatchObject({
      status: 400,
      error: { code: "BASE_UNKNOWN", param: "model", type: "invalid_request_error", message: expect.stringContaining(base) },
    });
    expect(await refused({ loraline: { lora: { r: 64 } } })).toMatchObject({ error: { code: "RANK_TOO_HIGH", param: "loraline.lora.r" } });
    expect(await refused({ loraline: { lora: { use_dora: true } } })).toMatchObject({
      error: { code: "LORA_FIELD_REFUSED", param: "loraline.lora.use_dora" },
    });
    expect(await refused({ loraline: { lora: { target_modules: "(" } } })).toMatchObject({
      error: { param: "loraline.lora.target_modules" },
    });
    expect(await refused({ loraline: { trainng: {} } })).toMatchObject({ error: { param: "loraline.trainng" } });
    expect(await refused({ suffix: "!!!" })).toMatchObject({ error: { param: "suffix" } });
    expect(await refused({ seed: 2 ** 40 })).toMatchObject({ error: { param: "seed" } });
    expect(await refused({ hyperparameters: { n_epochs: 5000 } })).toMatchObject({ error: { param: "hyperparameters.n_epochs" } });
    expect(await refused({ method: { type: "telepathy" } })).toMatchObject({ error: { param: "method.type" } });
    expect(await refused({ model: undefined })).toMatchObject({ error: { param: "model" } });
    expect(await refused({ training_file: "file-nope" })).toMatchObject({
      error: { code: "invalid_training_file", param: "training_file" },
    });
    expect(await refused({ validation_file: "file-01JD000000000000000000000A" })).toMatchObject({
      error: { code: "invalid_validation_file", param: "validation_file" },
    });

    const bad = await uploaded(line, "bad.jsonl");
    const at = { tenant: line.tenant, id: datasetIdOf(bad) ?? "" };
    await line.bus.publish(events.datasetRejected, at, { code: "ALL_ROWS_REJECTED", message: "line 1: not JSON", rejections: 1 });
    await line.openai.files.waitForProcessing(bad, { pollInterval: 20 });
    expect(await refused({ training_file: bad })).toMatchObject({
      status: 400,
      error: { code: "invalid_training_file", message: expect.stringContaining("line 1: not JSON") },
    });
    const gone = await uploaded(line, "gone.jsonl");
    await line.openai.files.delete(gone);
    expect(await refused({ training_file: gone })).toMatchObject({ error: { code: "invalid_training_file" } });

    const { jobs } = line.openai.fineTuning;
    const { id } = await created(line);
    await expect(jobs.resume(id)).rejects.toMatchObject({ status: 400, code: "job_not_paused" });
    expect(await jobs.pause(id)).toMatchObject({ status: "paused" });
    expect(await jobs.pause(id)).toMatchObject({ status: "paused" });
    expect(await jobs.resume(id)).toMatchObject({ status: "validating_files" });
    const ended = (await created(line)).id;
    await line.bus.publish(events.runFailed, { tenant: line.tenant, id: ended.replace("ftjob-", "") }, { code: "X", message: "x" });
    await expect.poll(async () => (await jobs.retrieve(ended)).status).toBe("failed");
    await expect(jobs.pause(ended)).rejects.toMatchObject({ status: 400, code: "job_not_pausable" });
    await expect(line.openai.fineTuning.jobs.retrieve("ftjob-01JD000000000000000000000A")).rejects.toMatchObject({ status: 404 });
    expect((await line.openai.fineTuning.jobs.list()).data).toHaveLength(2);
  });

  test("can be followed when the projector is away", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant, projector: false });
    await registerEngine(line.bus);
    const training_file = await uploaded(line);
    const job = await line.openai.fineTuning.jobs.create({ model: base, training_file });
    expect(job).toMatchObject({ status: "validating_files", training_file });
    expect(await line.openai.fineTuning.jobs.retrieve(job.id)).toEqual(job);
    expect((job as unknown as { loraline: { run: RunState } }).loraline.run.spec.adapter).toMatch(/^pirate-talk-[0-9a-z]{6}$/);
  });
});

describe("traces", () => {
  test("the first job on a dataset continues the upload's trace, the second links to it", async ({ line }) => {
    const training_file = await uploaded(line);
    const dataset = await line.bus.last(events.datasetReceived, { tenant: line.tenant, id: datasetIdOf(training_file) ?? "" });
    const traceOf = async (jobId: string) =>
      (await line.bus.last(events.runRequested, { tenant: line.tenant, id: idOf(jobId) }))?.trace ?? "";

    const first = await line.openai.fineTuning.jobs.create({ model: base, training_file });
    expect(traceIdOf(await traceOf(first.id))).toBe(traceIdOf(dataset?.trace));

    const second = await line.openai.fineTuning.jobs.create({ model: base, training_file });
    const secondTrace = traceIdOf(await traceOf(second.id)) ?? "";
    expect(secondTrace).not.toBe(traceIdOf(dataset?.trace));
    const uploadTrace = traceIdOf(dataset?.trace) ?? "";
    await expect
      .poll(() => line.spans(secondTrace))
      .toMatchObject([{ service: "gateway", name: "POST /v1/fine_tuning/jobs", parentSpanId: null, links: [{ traceId: uploadTrace }] }]);
    await expect
      .poll(async () => (await line.spans(uploadTrace)).map(({ name }) => name))
      .toEqual(["POST /v1/files", "POST /v1/fine_tuning/jobs"]);

    const traceparent = "00-33333333333333333333333333333333-4444444444444444-01";
    const own = await line.openai.fineTuning.jobs.create({ model: base, training_file }, { headers: { traceparent } });
    expect(traceIdOf(await traceOf(own.id))).toBe("3".repeat(32));
    await expect
      .poll(() => line.spans("3".repeat(32)))
      .toMatchObject([{ parentSpanId: "4".repeat(16), links: [{ traceId: uploadTrace }] }]);
  });

  test("are shown for a run", async ({ line }) => {
    const job = await created(line);
    const response = await line.fetch(`/v1/loraline/runs/${idOf(job.id)}/trace`);
    const { traceId, spans } = (await response.json()) as { traceId: string; spans: { name: string }[] };
    expect(traceId).toMatch(/^[0-9a-f]{32}$/);
    expect(spans.map(({ name }) => name)).toContain("POST /v1/files");
  });
});

describe("the projector", () => {
  test("drops events about what it does not know, and goes on", async ({ line }) => {
    await playIngested(line.bus, line.tenant, "01JD000000000000000000000B");
    await playStep(line.bus, line.tenant, "01JD000000000000000000000B", 1, 2);
    await playServed(line.bus, line.tenant, "01JD000000000000000000000B", "x");
    const job = await created(line);
    await playTokenized(line.bus, line.tenant, idOf(job.id));
    await until(line, job.id, "queued");
    await expect.poll(() => line.logged.filter(({ msg }) => /dropped/.test(String(msg))).length).toBe(3);
    await expect(line.openai.fineTuning.jobs.retrieve("ftjob-01JD000000000000000000000B")).rejects.toMatchObject({ status: 404 });
  });
});
