/** A run, its proof and its adapter, in words for a person. */
import { type Evaluation, preferenceDoubt, preferenceWords, type Proof, type RunState } from "@loraline/contracts";
import { bold, cyan, duration, green, type Line, pairs, red, table, yellow } from "../terminal.ts";
import { type AdapterView, proofOf } from "../adapters/show-adapter.ts";
import { doing, figures, stepsOf } from "./follow-run.ts";
import { methodWords } from "./method-words.ts";

export const modelOf = (run: RunState): string => `${run.tenant}/${run.spec.adapter}`;

/** The alias may still name an older version: then what was just made is asked by its number. */
export const askedAs = (served: { promoted: boolean; version: number }, run: RunState): string =>
  served.promoted ? modelOf(run) : `${modelOf(run)}@${served.version}`;

export const proofLine = ({ probes, tokens, agreement, agreementLimit, effect, effectExpected, scale, unseen }: Proof): string =>
  `${probes} prompts, ${tokens} tokens: logprobs of engine and trainer differ by ${agreement.toFixed(4)} (limit ${agreementLimit.toFixed(2)}); ` +
  `the adapter moves the base by ${effect.toFixed(2)} (trainer: ${effectExpected.toFixed(2)}` +
  (scale ? `; scale ${scale.value.toFixed(2)} ± ${scale.error.toFixed(2)})` : scale === null ? "; too little to tell its scale)" : ")") +
  (typeof unseen === "number" && unseen < 1 ? `; up to ${(100 * unseen).toPrecision(2)} % of that could be missing unseen` : "");

const phaseColor = (run: RunState): string => {
  if (run.phase === "served") return green(run.phase);
  return run.phase === "failed" || run.phase === "rejected" ? red(run.phase) : yellow(run.phase);
};

/** `64 of 4,821 rows (eval_budget)`, or `64 rows` when all were evaluated. */
const rowsWords = ({ rows, held_out_rows: all }: Evaluation): string =>
  typeof all === "number" && all > rows ? `${rows} of ${all} rows (training.eval_budget)` : `${rows} rows`;

/** A judge's only trained token is its verdict. Each pair is asked in both orders. */
const judgedRight = ({ base_accuracy: base, adapter_accuracy: own, rows }: Evaluation): string => {
  const percent = (share: number | null | undefined): string => (typeof share === "number" ? `${(100 * share).toFixed(1)} %` : "-");
  return `${percent(own)} of ${rows} held-out comparisons; the base ${percent(base)}`;
};

/** Everything worth knowing about one run. */
export function describeRun(run: RunState, view: AdapterView | undefined): Line[] {
  const { tokens, trained, served, error, spec } = run;
  const proof = served === null || view === undefined ? undefined : proofOf(view, served.version);
  const evaluation = trained?.evaluation ?? null;
  const doubt = evaluation?.preference ? preferenceDoubt(evaluation.preference) : undefined;
  const words = methodWords(spec);
  const rows: ([string, string] | undefined)[] = [
    ["run", `${bold(run.runId)}  ${phaseColor(run)}`],
    error === null ? undefined : ["error", red(`${error.code}: ${error.message}`)],
    run.finishedAt === null ? ["now", [doing(run), stepsOf(run), figures(run)].filter((part) => part !== "").join(" · ")] : undefined,
    ...words.inputs,
    tokens === null || !words.trains
      ? undefined
      : [
          "tokens",
          `${tokens.totals.tokens} in ${tokens.totals.sequences} sequences, ${tokens.totals.supervised} trained on` +
            `; held out ${tokens.totals.evalSequences}` +
            (tokens.totals.dropped === 0 ? "; none dropped" : yellow(`; ${tokens.totals.dropped} dropped`)) +
            (tokens.packed ? "; packed" : "") +
            (tokens.cacheHit ? "; from cache" : ""),
        ],
    tokens?.init ? ["begins with", `${run.tenant}/${tokens.init.adapter}@${tokens.init.version}`] : undefined,
    run.attempt > 1 ? ["attempts", `${run.attempt}, of which ${run.lostAttempts} lost`] : undefined,
    trained === null || !words.trains
      ? undefined
      : [
          "training",
          `${trained.steps} steps${evaluation?.stopped_early === true ? " (stopped early)" : ""}, ${trained.trainedTokens} tokens` +
            (trained.tokensPerSecond === null ? "" : `, ${Math.round(trained.tokensPerSecond)} tokens/s`) +
            (trained.trainLoss === null ? "" : `, loss ${trained.trainLoss.toFixed(3)}`),
        ],
    evaluation === null
      ? undefined
      : [
          "evaluation",
          `held-out loss${evaluation.preference ? " of the chosen answers" : ""} ${evaluation.base_loss.toFixed(3)} (base) → ${evaluation.adapter_loss.toFixed(3)} (adapter) on ${rowsWords(evaluation)}` +
            (typeof evaluation.published_step === "number" && evaluation.published_step !== trained?.steps
              ? `; published: step ${evaluation.published_step}, the best one`
              : ""),
        ],
    spec.method.type === "judge" && evaluation !== null ? ["judges right", judgedRight(evaluation)] : undefined,
    evaluation?.preference ? ["preference", preferenceWords(evaluation.preference)] : undefined,
    doubt === undefined ? undefined : ["", yellow(doubt)],
    served === null ? undefined : ["version", `${modelOf(run)}@${served.version}  ${served.digest}`],
    served === null ? undefined : ["proof", proof === undefined ? yellow("no replica holds it proven just now") : green(proofLine(proof))],
    served === null
      ? undefined
      : ["served", `${duration(served.lastStepToProvenMs)} after ${words.since}, on ${served.replicas} replica(s)`],
    run.finishedAt === null ? undefined : ["took", duration(Date.parse(run.finishedAt) - Date.parse(run.requestedAt))],
  ];
  if (served !== null) {
    const own = `@${served.version}`;
    const next =
      spec.promote === "canary" && !served.note
        ? `${own} (step by step: loraline adapters ${spec.adapter} --history)`
        : `${own} (not promoted: loraline promote ${spec.adapter}${own})`;
    rows.push(["model", `${cyan(modelOf(run))}${served.promoted ? "" : next}`]);
    if (served.note) rows.push(["gate", yellow(served.note)]);
  }
  const retired = served?.retired ?? [];
  if (retired.length > 0) {
    const which = `version${retired.length === 1 ? "" : "s"} ${retired.join(", ")} ${retired.length === 1 ? "was" : "were"} retired`;
    rows.push(["older", `${which}; loaded again when asked for (loraline adapters keep ${spec.adapter} N keeps more)`]);
  }
  return pairs(rows);
}

/** The settings that people change first: `r 16, lr 2e-4, 3 epochs`. */
function settingsOf({ spec: { lora, training } }: RunState): string {
  const length = training.max_steps > 0 ? `${training.max_steps} steps` : `${training.num_train_epochs} epochs`;
  return `r ${lora.r}, lr ${training.learning_rate}, ${length}`;
}

export function listRuns(runs: readonly RunState[]): Line[] {
  const rows = runs.map((run) => [
    run.runId,
    run.phase,
    modelOf(run) + (run.served === null ? "" : `@${run.served.version}`),
    stepsOf(run).replace("step ", "") || "-",
    methodWords(run.spec).trains ? settingsOf(run) : "-",
    run.trained?.evaluation ? `${run.trained.evaluation.base_loss.toFixed(2)} → ${run.trained.evaluation.adapter_loss.toFixed(2)}` : "-",
    run.requestedAt.replace("T", " ").slice(0, 19),
    run.error?.message ?? run.queue?.message ?? "",
  ]);
  return table([["RUN", "PHASE", "ADAPTER", "STEPS", "SETTINGS", "HELD-OUT LOSS", "REQUESTED (UTC)", ""], ...rows]);
}
