/**
 * A checkpoint of a run that still trains is asked, with every service a process of its own over a real NATS with its own permissions; only
 * trainer and engine are simulated. Serve is killed before it can answer.
 */
import { expect, it } from "vitest";
import { base, eventually, jsonLines, sampleRows, scratchDir } from "./line-under-test.ts";
import { startSimulatedLine, tenant } from "./services-under-test.ts";

const minute = 60_000;

it(
  "answers while its run trains, as one version, though serve dies meanwhile; its run goes on and is promoted",
  { timeout: 5 * minute },
  async () => {
    await using scratch = await scratchDir();
    await using line = await startSimulatedLine({
      dir: scratch.path,
      script: { simulated: true, steps: 120, save_steps: 20, step_ms: 300 },
    });
    const [gateway] = line.gateways;
    const serve = line.services.all.find(({ program }) => program === "serve");
    if (gateway === undefined || serve === undefined) throw new Error("the line is not complete");
    const client = line.services.client(gateway);
    const file = new File([jsonLines(await sampleRows(24))], "rows.jsonl");
    const { id: training_file } = await client.openai.files.create({ file, purpose: "fine-tune" });
    const job = await client.openai.fineTuning.jobs.create({ model: base, training_file, suffix: "pirate" });
    const listed = () => client.openai.fineTuning.jobs.checkpoints.list(job.id);
    const first = await eventually("a checkpoint is listed", minute, async () => (await listed()).data.at(-1));
    expect(first.step_number).toBe(20);

    const messages = [{ role: "user" as const, content: "Ahoy?" }];
    const ask = (model: string) => client.openai.chat.completions.create({ model, messages });
    await serve.kill();
    await expect(ask(first.fine_tuned_model_checkpoint)).rejects.toMatchObject({ status: 503, code: "version_loading" });
    await serve.spawn();
    const answer = await eventually("the checkpoint answers", 2 * minute, () => ask(first.fine_tuned_model_checkpoint));
    expect(answer.model).toBe(`${tenant}/pirate@1`);
    expect((await client.openai.fineTuning.jobs.retrieve(job.id)).status).toBe("running");

    const done = await eventually("the run is served", 2 * minute, async () => {
      const { status, fine_tuned_model: model } = await client.openai.fineTuning.jobs.retrieve(job.id);
      return status === "succeeded" ? model : undefined;
    });
    expect(done).toBe(`ft:${base}:${tenant}:pirate:2`);
    const published = await ask(`${tenant}/pirate`);
    expect(published.model).toBe(`${tenant}/pirate@2`);
    expect(published.choices[0]?.message.content).not.toBe(answer.choices[0]?.message.content);
    const again = await ask(first.fine_tuned_model_checkpoint);
    expect(again.choices[0]?.message.content).toBe(answer.choices[0]?.message.content);
    const { adapter } = await client.getAdapter({ adapter: "pirate" });
    expect(adapter.versions).toMatchObject([{ checkpoint: { step: 20 }, promote: "manual" }, { version: 2 }]);
    expect(adapter.alias).toBe(2);

    // Deleted by its own name, it is gone for good, and the run's own version stays.
    await client.openai.models.delete(first.fine_tuned_model_checkpoint);
    await expect(ask(first.fine_tuned_model_checkpoint)).rejects.toMatchObject({ status: 404, message: expect.stringMatching(/deleted/) });
    expect((await ask(`${tenant}/pirate`)).model).toBe(`${tenant}/pirate@2`);
  },
);
