/** Measures the whole pipeline, three times on a warm engine: the time of a run besides loading the base, training and evaluating. */
import { join } from "node:path";
import { readFile } from "node:fs/promises";
import { nativeComputeType } from "@loraline/runtime";
import { base, clientOf, eventually, root, runOver, scratchDir, startLineUnderTest } from "../line-under-test.ts";
import { percentile, type Row } from "./table.ts";

/** Phases of the trainer that are the purpose of a run; everything else is overhead. Probing is evaluating on the probe prompts. */
const work = new Set(["load_base", "train", "evaluate", "probe"]);
const runs = 3;

export async function benchLine(): Promise<Row[]> {
  await using scratch = await scratchDir();
  const startedAt = performance.now();
  await using line = await startLineUnderTest(join(scratch.path, "state"));
  const upMs = performance.now() - startedAt;
  const engine = await eventually("the engine answers", 300_000, () => line.news.find((news) => news.kind === "engine-ready"));
  const client = clientOf(line);
  const sample = await readFile(join(root, "samples/persona.jsonl"));

  const overheads: number[] = [];
  const proofs: number[] = [];
  const speeds: number[] = [];
  for (let n = 1; n <= runs; n++) {
    const from = Date.now();
    // New bytes each time, so that no result comes from a cache.
    const file = new File([sample, "\n".repeat(n)], `bench-${n}.jsonl`);
    const { id } = await client.openai.files.create({ file, purpose: "fine-tune" });
    const body = { model: base, training_file: id, suffix: `bench-${n}`, loraline: { training: { max_steps: 10, learning_rate: 1e-3 } } };
    const job = await client.openai.fineTuning.jobs.create(body);
    const run = await runOver(client, job.id.replace("ftjob-", ""));
    if (run.served === null || run.finishedAt === null) throw new Error(`the run ended as ${run.phase}: ${run.error?.message}`);
    // Spans are written a moment after they end.
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const { spans } = await client.getTrace({ run_id: run.runId });
    const worked = spans
      .filter(({ service, name }) => service === "trainer" && work.has(name))
      .reduce((sum, span) => sum + span.durationMs, 0);
    overheads.push((Date.parse(run.finishedAt) - from - worked) / 1000);
    proofs.push(run.served.lastStepToProvenMs / 1000);
    speeds.push(run.trained?.tokensPerSecond ?? Number.NaN);
  }
  const figure = (values: readonly number[], digits = 2) => `${Number(percentile(values, 50)).toFixed(digits)}`;
  const all = (values: readonly number[]) => `median of ${values.map((value) => value.toFixed(1)).join(", ")}`;
  return [
    {
      what: "Line: `loraline up` to open doors",
      value: `${(upMs / 1000).toFixed(1)} s`,
      detail: "NATS, streams, all services, gateway; new state directory",
    },
    {
      what: "Line: vLLM answers",
      value: `${(engine.kind === "engine-ready" ? engine.afterMs / 1000 : 0).toFixed(1)} s`,
      detail: "after its start, nothing beside it",
    },
    {
      what: "Line: pipeline overhead of a run",
      value: `${figure(overheads)} s`,
      detail: `upload to served, without loading the base, training and evaluating (held-out rows and probes); ${all(overheads)}`,
    },
    { what: "Line: last training step to first proven answer", value: `${figure(proofs)} s`, detail: `engine up; ${all(proofs)}` },
    {
      what: "Line: training speed",
      value: `${figure(speeds, 0)} tokens/s`,
      detail: `SmolLM2-135M, r 8, all linear modules, ${nativeComputeType(process.env)}; ${all(speeds)}`,
    },
  ];
}
