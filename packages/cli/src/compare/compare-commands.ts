/** `loraline plot` and `loraline compare`: curves of runs, and two runs side by side. */
import { readFile, writeFile } from "node:fs/promises";
import type { ApiClient } from "@loraline/client";
import { ApiError } from "@loraline/client";
import type { RunState } from "@loraline/contracts";
import { splitVersion } from "../adapters/version-named.ts";
import { type AddCommands, examples, ownName, wholeNumber } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { findRun } from "../runs/find-run.ts";
import { modelOf } from "../runs/show-run.ts";
import { bold, cyan, marksTrained, type Shaped, shortPath, table, wrap, yellow } from "../terminal.ts";
import { type Difference, resultsOf, settingsThatDiffer } from "./compare-runs.ts";
import { curvesOf, drawCurves, svgOfCurves } from "./curves.ts";

interface CompareFlags {
  prompts?: string;
  svg?: string;
  maxTokens: number;
}
interface Answers {
  prompt: string;
  a: string;
  b: string;
}

const subject = "id of a run, `last`, an adapter, or a version of one: pirate@2";
const drawn = { coloured: marksTrained };

export const addCompareCommands: AddCommands = (program, { connect, print, terminal }) => {
  program
    .command("plot")
    .description("draw the loss curves of a run")
    .argument("<run>", subject)
    .option("--svg <file>", "write them as SVG, too")
    .addHelpText("after", examples("loraline plot last", "loraline plot pirate@2 --svg pirate.svg"))
    .action(async (given: string, { svg }: { svg?: string }) => {
      const api = await connect();
      const run = await runOf(api, given);
      const metrics = await api.getRunMetrics({ run_id: run.runId });
      const curves = curvesOf(metrics);
      if (svg !== undefined) await writeFile(svg, await svgOfCurves(curves, modelOf(run)));
      const chart = await drawCurves(curves, { columns: terminal.columns, ...drawn });
      print(metrics, () => [
        `${bold(run.runId)}  ${modelOf(run)}`,
        ...(chart.length === 0 ? ["no step of it is known"] : chart),
        ...(svg === undefined ? [] : [`written: ${shortPath(svg)}`]),
      ]);
    });

  program
    .command("compare")
    .description("two runs side by side: settings that differ, results, curves, and answers to prompts")
    .argument("<a>", subject)
    .argument("<b>", "the same")
    .option("--prompts <file>", "ask both versions these prompts, one in each line")
    .option("--max-tokens <n>", "of an answer", wholeNumber(1), 200)
    .option("--svg <file>", "write the curves as SVG, too")
    .addHelpText(
      "after",
      examples("loraline compare pirate@1 pirate@2", "loraline compare pirate@1 pirate@2 --prompts prompts.txt --svg curves.svg"),
    )
    .action(async (givenA: string, givenB: string, { prompts, svg, maxTokens }: CompareFlags) => {
      const api = await connect();
      const asked = prompts === undefined ? [] : await readPrompts(prompts);
      const [a, b] = await Promise.all([runOf(api, givenA), runOf(api, givenB)]);
      const models = asked.length === 0 ? undefined : ([servedAs(a), servedAs(b)] as const);
      const [metricsA, metricsB] = await Promise.all([a, b].map(({ runId }) => api.getRunMetrics({ run_id: runId })));
      if (metricsA === undefined || metricsB === undefined) return;
      const curves = [...curvesOf(metricsA, "a: "), ...curvesOf(metricsB, "b: ")];
      if (svg !== undefined) await writeFile(svg, await svgOfCurves(curves, `a: ${nameOf(a)}, b: ${nameOf(b)}`));
      const answers: Answers[] = [];
      // One prompt after the other: both versions of one at once.
      for (const prompt of models === undefined ? [] : asked) {
        const [one = "", other = ""] = await Promise.all(
          (models ?? []).map((model) => answer(api, model, prompt, maxTokens, terminal.signal)),
        );
        answers.push({ prompt, a: one, b: other });
      }
      const differs = settingsThatDiffer(a, b);
      const results = resultsOf(a, b);
      const chart = await drawCurves(curves, { columns: terminal.columns, ...drawn });
      print({ a: a.runId, b: b.runId, settings: differs, results, curves: { a: metricsA.data, b: metricsB.data }, answers }, () => [
        `a  ${nameOf(a)}`,
        `b  ${nameOf(b)}`,
        "",
        ...(differs.length === 0 ? ["the settings are the same"] : tableOf("SETTING", differs)),
        "",
        ...tableOf("RESULT", results),
        ...chart,
        ...answers.flatMap((one) => sideBySide(one, terminal.columns)),
        ...(svg === undefined ? [] : ["", `written: ${shortPath(svg)}`]),
      ]);
    });
};

const nameOf = (run: RunState): string => `${run.runId}  ${modelOf(run)}${run.served === null ? "" : `@${run.served.version}`}`;
const tableOf = (head: string, rows: readonly Difference[]): Shaped[] =>
  table([[head, "A", "B"], ...rows.map(({ name, a, b }) => [name, shortened(a), shortened(b)])]);
const shortened = (text: string): string => (text.length > 40 ? `${text.slice(0, 39).toWellFormed()}…` : text);

/** A run by its own name, or by what it made. An adapter without a version stands for its promoted one. */
async function runOf(api: ApiClient, given: string): Promise<RunState> {
  const { adapter: named, version: number } = splitVersion(given);
  const mayBeAdapter = number !== undefined || (given !== "last" && /^(?:[a-z0-9-]+\/)?[a-z][a-z0-9-]*$/.test(given));
  const view = mayBeAdapter
    ? await api.getAdapter({ adapter: ownName(named) }).catch((error: unknown) => {
        // It may still be the beginning of a run's id.
        if (number === undefined && error instanceof ApiError && error.status === 404) return undefined;
        throw error;
      })
    : undefined;
  if (view === undefined) return findRun(api, given);
  const { adapter, alias, versions } = view.adapter;
  const wanted = number ?? alias;
  const version = versions.find((one) => one.version === wanted);
  if (version !== undefined) return api.getRun({ run_id: version.runId });
  const known = versions.map((one) => `${adapter}@${one.version}`).join(", ") || "none";
  throw new Failure(
    number === undefined ? exitCodes.usage : exitCodes.notFound,
    number === undefined ? "VERSION_MISSING" : "not_found",
    `${number === undefined ? `${adapter} has no promoted version` : `there is no ${adapter}@${number}`}. Its versions: ${known}.`,
    { param: "version" },
  );
}

function servedAs(run: RunState): string {
  if (run.served !== null) return `${modelOf(run)}@${run.served.version}`;
  throw new Failure(
    exitCodes.usage,
    "VERSION_MISSING",
    `run ${run.runId} (${run.phase}) made no version that could be asked; leave --prompts out.`,
    {
      param: "--prompts",
    },
  );
}

async function readPrompts(file: string): Promise<string[]> {
  const text = await readFile(file, "utf8");
  const prompts = text.split(/\r?\n/).filter((line) => line.trim() !== "");
  if (prompts.length === 0)
    throw new Failure(exitCodes.usage, "PROMPT_EMPTY", `${file} has no prompt: write one in each line.`, { param: "--prompts" });
  return prompts;
}

async function answer(api: ApiClient, model: string, content: string, maxTokens: number, signal: AbortSignal): Promise<string> {
  const body = { model, messages: [{ role: "user" as const, content }], max_tokens: maxTokens, temperature: 0 };
  const said = (await api.createChatCompletion({ body, signal })).choices[0]?.message.content ?? "";
  return typeof said === "string" ? said : JSON.stringify(said);
}

function sideBySide({ prompt, a, b }: Answers, columns: number): string[] {
  const width = Math.max(20, Math.floor((columns - 3) / 2));
  const [left, right] = [a, b].map((text) => wrap(text, width)) as [string[], string[]];
  const lines = Array.from({ length: Math.max(left.length, right.length) }, (_, at) =>
    `${(left[at] ?? "").padEnd(width)} │ ${right[at] ?? ""}`.trimEnd(),
  );
  return ["", cyan(`> ${prompt}`), yellow(`${"a".padEnd(width)} │ b`), ...lines];
}
