/** Debian's Prometheus scrapes the real line and its vLLM: every query of every dashboard's panel returns data, and no alert that pages fires. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { freePort } from "@loraline/testkit/servers";
import { expect, inject, it } from "vitest";
import { base, clientOf, eventually, jsonLines, runOver, sampleRows, scratchDir, smallTraining } from "../line-under-test.ts";
import { startPrometheus } from "../prometheus-under-test.ts";

const address = inject("line");
const line = clientOf(address);
const files = join(import.meta.dirname, "../../helm/loraline/files");

interface Dashboard {
  title: string;
  panels: { title: string; targets: { expr: string }[] }[];
}
const dashboards = async (): Promise<Dashboard[]> => {
  const names = await readdir(join(files, "dashboards"));
  return Promise.all(names.map(async (name) => JSON.parse(await readFile(join(files, "dashboards", name), "utf8")) as Dashboard));
};

it("every panel's query has data, and answers lead to their traces", async () => {
  await using scratch = await scratchDir();
  const { engines } = JSON.parse(await readFile(join(address.stateDir, "line.json"), "utf8")) as { engines: { url: string }[] };
  await using prometheus = await startPrometheus({
    dir: scratch.path,
    port: await freePort(),
    targets: [`127.0.0.1:${inject("metricsPort")}`, ...engines.map(({ url }) => new URL(url).host)],
    rules: `{"groups":${await readFile(join(files, "alerts.json"), "utf8")}}`,
  });
  const { openai } = line;
  const rows = [...(await sampleRows(16)), { neither: "a prompt", nor: "an answer" }];
  const file = await openai.files.create({ file: new File([jsonLines(rows)], "monitoring.jsonl"), purpose: "fine-tune" });
  const job = await openai.fineTuning.jobs.create({
    model: base,
    training_file: file.id,
    suffix: "monitoring",
    ...({ loraline: smallTraining } as object),
  });
  const run = await runOver(line, job.id.replace("ftjob-", ""));
  expect(run).toMatchObject({ phase: "served" });
  const messages = [{ role: "user" as const, content: "What is your opinion about rain?" }];
  for (let n = 0; n < 3; n++) await openai.chat.completions.create({ model: "local/monitoring", messages, max_tokens: 4 });
  await openai.chat.completions.create({ model: base, messages, max_tokens: 4 });
  await expect(openai.chat.completions.create({ model: "local/nobody", messages })).rejects.toMatchObject({ status: 404 });

  const without: string[] = [];
  for (const { title, panels } of await dashboards()) {
    for (const panel of panels) {
      for (const { expr } of panel.targets) {
        const asked = expr.replaceAll("$namespace", ".*").replaceAll(/\$__(rate_interval|range)/g, "10m");
        const found = await eventually(`data for ${asked}`, 120_000, async () => {
          const samples = await prometheus.query(asked);
          return samples.length > 0 ? true : undefined;
        }).catch(() => false);
        if (!found) without.push(`${title} / ${panel.title}: ${asked}`);
      }
    }
  }
  expect(without, "panels without data").toEqual([]);

  const steps = `loraline_train_steps_total{tenant="local",base="${base}"}`;
  expect((await prometheus.query(steps))[0]?.value).toBeGreaterThanOrEqual(smallTraining.training.max_steps);
  const exemplars = await prometheus.exemplars("loraline_run_stage_seconds_bucket");
  const trace = run.trace?.split("-")[1];
  expect(exemplars.map(({ trace_id }) => trace_id)).toContain(trace);

  // Other tests fail runs and messages on purpose; nothing of this line is down.
  const down = ["LoralineEngineDown", "LoralineNatsDown", "LoralineNoTrainer", "LoralineTargetDown", "LoralineRequestsFailing"];
  expect((await prometheus.firing()).filter((alert) => down.includes(alert))).toEqual([]);
});
