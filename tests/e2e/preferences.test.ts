/** OpenAI's own preference job, from its own row format to a proven version, through its official Node client. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, inject, it } from "vitest";
import { base, clientOf, jsonLines, provenOn, root, runOver } from "../line-under-test.ts";

const line = clientOf(inject("line"));
const { openai } = line;

interface Pair {
  prompt: string;
  chosen: string;
  rejected: string;
}
const pairs = async (): Promise<Pair[]> =>
  (await readFile(join(root, "samples/preferences.jsonl"), "utf8"))
    .trim()
    .split("\n")
    .map((row) => JSON.parse(row) as Pair);

/** A row as OpenAI's documentation of preference fine-tuning has it. */
const rowOf = ({ prompt, chosen, rejected }: Pair) => ({
  input: { messages: [{ role: "user", content: prompt }], tools: [], parallel_tool_calls: true },
  preferred_output: [{ role: "assistant", content: chosen }],
  non_preferred_output: [{ role: "assistant", content: rejected }],
});

describe("a preference job", () => {
  it("is trained, judged by held-out pairs, proven and served", async () => {
    const rows = (await pairs()).slice(0, 56).map(rowOf);
    const uploaded = await openai.files.create({ file: new File([jsonLines(rows)], "plain.jsonl"), purpose: "fine-tune" });
    const file = await openai.files.waitForProcessing(uploaded.id, { pollInterval: 200, maxWait: 60_000 });
    expect(file).toMatchObject({ status: "processed", loraline: { records: 56, rejections: 0 } });

    const hyperparameters = { beta: 0.2, batch_size: 4, learning_rate_multiplier: 50, n_epochs: 1 };
    const body = {
      model: base,
      training_file: file.id,
      suffix: "plain",
      method: { type: "dpo" as const, dpo: { hyperparameters } },
      // The client's types lack `loraline`, but it sends any field that it is given.
      loraline: { lora: { r: 4, lora_alpha: 8 }, holdout: 0.25, training: { logging_steps: 1 } },
    };
    const job = await openai.fineTuning.jobs.create(body);
    expect(job.method).toMatchObject({ type: "dpo", dpo: { hyperparameters: { ...hyperparameters, loss_type: "sigmoid" } } });
    const run = await runOver(line, job.id.replace("ftjob-", ""));
    expect(run.error).toBeNull();
    expect(run.phase).toBe("served");
    expect(run.tokens?.totals).toMatchObject({ sequences: 84, evalSequences: 28, dropped: 0 });
    expect(await openai.fineTuning.jobs.retrieve(job.id)).toMatchObject({
      status: "succeeded",
      fine_tuned_model: `ft:${base}:local:plain:1`,
    });

    const preference = run.trained?.evaluation?.preference;
    expect(preference).toMatchObject({ pairs: 14 });
    expect(preference?.accuracy_low).toBeGreaterThan(0.5);
    expect(preference?.loss).toBeLessThan(Math.LN2);
    expect(preference?.margin).toBeGreaterThan(0);

    const events = (await openai.fineTuning.jobs.listEvents(job.id, { limit: 100 })).data;
    const steps = events
      .filter(({ type }) => type === "metrics")
      .map(({ data }) => data as Record<string, number>)
      .filter((data) => "rewards_margin" in data);
    const first = steps.find(({ step }) => step === 1);
    expect(first?.["train_loss"], "before anything is learned nothing is preferred").toBeCloseTo(Math.LN2, 2);
    const last = steps.find(({ step }) => step === 11);
    expect(last?.["rewards_margin"]).toBeGreaterThan(first?.["rewards_margin"] ?? Number.POSITIVE_INFINITY);
    expect(events.map(({ message }) => message).join("\n")).toMatch(/the right side is preferred in [\d.]+ % of 14 held-out comparisons/);

    const view = await line.getAdapter({ adapter: "plain" });
    const proof = provenOn(view, 1)[0]?.adapters.find(({ version }) => version === 1)?.proof;
    expect(proof?.agreement).toBeLessThanOrEqual(proof?.agreementLimit ?? 0);
    expect(proof?.effect).toBeGreaterThan(proof?.agreementLimit ?? Number.POSITIVE_INFINITY);
    const said = await openai.chat.completions.create({
      model: `ft:${base}:local:plain:1`,
      messages: [{ role: "user", content: "What is a bridge?" }],
      max_tokens: 16,
    });
    expect(said.choices[0]?.message.content).not.toBe("");
  });

  it("whose settings are wrong is refused with the field's name", async () => {
    const uploaded = await openai.files.create({
      file: new File([jsonLines((await pairs()).map(rowOf))], "p.jsonl"),
      purpose: "fine-tune",
    });
    const ask = (hyperparameters: Record<string, unknown>) =>
      openai.fineTuning.jobs.create({ model: base, training_file: uploaded.id, method: { type: "dpo", dpo: { hyperparameters } } });
    await expect(ask({ beta: -1 })).rejects.toMatchObject({ status: 400, param: "method.dpo.hyperparameters.beta" });
    await expect(ask({ telepathy: 1 })).rejects.toMatchObject({ status: 400, param: "method.dpo.hyperparameters.telepathy" });
  });
});
