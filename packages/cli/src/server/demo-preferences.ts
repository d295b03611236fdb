/** `loraline demo --preferences`: what pairs of answers teach beyond single answers, side by side and with every claim checked. */
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createApiClient } from "@loraline/client";
import { type PreferenceEvaluation, preferenceWords, type Proof, type RunState } from "@loraline/contracts";
import { clearStateDir, type LineOptions, startLine } from "@loraline/local";
import { proofOf } from "../adapters/show-adapter.ts";
import { exitCodes } from "../failure.ts";
import { followRun } from "../runs/follow-run.ts";
import type { RunFile } from "../runs/run-file.ts";
import { describeRun, modelOf, proofLine } from "../runs/show-run.ts";
import { startRun } from "../runs/start-run.ts";
import { bold, dim, duration, green, red, shaped, shortPath, type Terminal, wrap, writeJson, writeLine } from "../terminal.ts";
import { askAll } from "./demo.ts";
import { newsLine } from "./up.ts";

/** What `preferences.json` holds. */
export interface PreferenceDemoSummary {
  runIds: { supervised: string; dpo: string };
  /** By question. */
  answers: { base: string[]; supervised: string[]; dpo: string[] };
  preference: PreferenceEvaluation | null;
  proof: Proof | null;
  trainMs: { supervised: number; dpo: number };
}

const lora = { r: 8, lora_alpha: 16, target_modules: "all-linear" } as const;
const training = { per_device_train_batch_size: 4, num_train_epochs: 1, lr_scheduler_type: "cosine", warmup_steps: 0.1 } as const;
/** The supervised run gets the chosen answers alone; the other one both sides. Rates that were found by trying. */
const settings = {
  supervised: { lora, training: { ...training, learning_rate: 5e-4 }, gate: "none" },
  dpo: { lora, training: { ...training, learning_rate: 5e-4 }, method: { type: "dpo", beta: 0.1 }, holdout: 0.15 },
} as const satisfies Record<string, RunFile>;

/** Questions that are not in the dataset. */
const questions = ["What is a bridge?", "How do I plant a tree?", "Is the sun a star?", "Who was Mozart?"];

/** @returns the exit code. */
export async function runPreferenceDemo(
  options: Omit<LineOptions, "onNews"> & { sample: string; demoDir: string; json: boolean },
  terminal: Terminal,
): Promise<number> {
  const { sample, demoDir, json, ...lineOptions } = options;
  const say = (text = ""): void => writeLine(json ? terminal.err : terminal.out, text);
  const summaryFile = join(demoDir, "preferences.json");
  await mkdir(demoDir, { recursive: true });
  await clearStateDir(lineOptions.stateDir, lineOptions.pid);
  await rm(summaryFile, { force: true });
  const chosen = join(demoDir, "chosen.jsonl");
  await writeFile(chosen, chosenOf(await readFile(sample, "utf8")));

  say(bold("1. The server starts"));
  await using server = await startLine({
    ...lineOptions,
    onNews(news) {
      if (news.kind !== "engine-ready" && news.kind !== "up") say(newsLine(news));
    },
  });
  say(`   ${server.url}`);
  const [base] = server.bases;
  const api = createApiClient(server);
  const train = async (kind: keyof typeof settings, files: string[]): Promise<RunState> => {
    const asked = { files, base, adapter: `plain-${kind}`, settings: settings[kind] };
    const { runId } = await startRun(api, asked, terminal);
    return followRun(api, runId, terminal);
  };

  say(bold("\n2. A supervised run learns to say the plain answers"));
  const supervised = await train("supervised", [chosen]);
  say(bold("\n3. A preference run learns to say plain answers rather than long-winded ones"));
  const dpo = await train("dpo", [sample]);
  if (supervised.finishedAt === null || dpo.finishedAt === null) return exitCodes.interrupted;
  const view = dpo.served === null ? undefined : await api.getAdapter({ adapter: dpo.spec.adapter });
  say();
  for (const text of shaped(describeRun(dpo, view), (terminal.width ?? Infinity) - 3)) say(`   ${text}`);
  if (supervised.served === null || dpo.served === null || view === undefined) {
    const { error } = dpo.served === null ? dpo : supervised;
    say(red(`\nThe demo failed: ${error?.message ?? "see the logs"} Logs: ${shortPath(join(lineOptions.stateDir, "logs"))}`));
    return exitCodes.failed;
  }

  say(bold("\n4. Questions that are not in the dataset"));
  const [plain, alone, compared] = await Promise.all(
    [base, modelOf(supervised), modelOf(dpo)].map((model) => askAll(api, model, terminal, questions)),
  );
  const summary: PreferenceDemoSummary = {
    runIds: { supervised: supervised.runId, dpo: dpo.runId },
    answers: { base: plain ?? [], supervised: alone ?? [], dpo: compared ?? [] },
    preference: dpo.trained?.evaluation?.preference ?? null,
    proof: proofOf(view, dpo.served.version) ?? null,
    trainMs: { supervised: trainedMs(supervised), dpo: trainedMs(dpo) },
  };
  for (const text of sideBySide(summary.answers, Math.min(terminal.columns, 140))) say(text);
  say();
  if (summary.preference !== null) say(`   ${preferenceWords(summary.preference)}`);
  if (summary.proof !== null) say(`   ${proofLine(summary.proof)}`);
  say(`   trained in ${duration(summary.trainMs.supervised)} (supervised) and ${duration(summary.trainMs.dpo)} (dpo)`);
  await writeFile(summaryFile, `${JSON.stringify(summary, null, 2)}\n`);

  say(bold("\n5. Is all of it true?"));
  const checks = judgePreferences(summary);
  for (const { claim, holds } of checks) say(`   ${holds ? green("yes") : red("NO ")}  ${claim}`);
  if (json) writeJson(terminal.out, summary);
  else say(`\n   ${dim(`summary in ${shortPath(summaryFile)}; when to use which method: docs/preferences.md`)}`);
  return checks.every(({ holds }) => holds) ? exitCodes.ok : exitCodes.failed;
}

/** Pure: the sample's chosen answers, as a supervised dataset. */
export const chosenOf = (pairs: string): string =>
  pairs
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { prompt: string; chosen: string })
    .map(({ prompt, chosen }) => `${JSON.stringify({ instruction: prompt, output: chosen })}\n`)
    .join("");

const trainedMs = ({ startedAt, trained }: RunState): number =>
  startedAt === null || trained === null ? 0 : Date.parse(trained.at) - Date.parse(startedAt);

const meanLength = (answers: readonly string[]): number =>
  answers.reduce((sum, answer) => sum + answer.length, 0) / Math.max(1, answers.length);

/** Pure: each claim of the demo, and whether it holds. */
export function judgePreferences({ answers, preference, proof }: PreferenceDemoSummary): { claim: string; holds: boolean }[] {
  const [base, dpo] = [meanLength(answers.base), meanLength(answers.dpo)];
  return [
    { claim: "the preference run's adapter answers", holds: answers.dpo.length > 0 && answers.dpo.every((answer) => answer !== "") },
    { claim: `its answers are shorter than the base's: ${Math.round(dpo)} characters, not ${Math.round(base)}`, holds: dpo < 0.7 * base },
    { claim: "on held-out pairs it prefers the plain side more often than by chance", holds: (preference?.accuracy_low ?? 0) > 0.5 },
    { claim: "its loss there is below that of the base, ln 2", holds: (preference?.loss ?? 1) < Math.LN2 },
    {
      claim: "the engine applies these very bytes (proof)",
      holds: proof !== null && proof.agreement <= proof.agreementLimit && proof.effect > 0,
    },
  ];
}

function sideBySide(answers: PreferenceDemoSummary["answers"], columns: number): string[] {
  const width = Math.floor((columns - 12) / 3);
  const names = ["base", "supervised", "dpo"] as const;
  return questions.flatMap((question, index) => {
    const cells = names.map((name) => {
      const answer = answers[name][index] ?? "";
      return [dim(`${name}, ${answer.length} characters`.padEnd(width)), ...wrap(answer, width).map((text) => text.padEnd(width))];
    });
    const height = Math.max(...cells.map(({ length }) => length));
    const line = (at: number): string => `   ${cells.map((cell) => cell[at] ?? " ".repeat(width)).join(" │ ")}`;
    return ["", `   ${bold(question)}`, ...Array.from({ length: height }, (_, at) => line(at))];
  });
}
