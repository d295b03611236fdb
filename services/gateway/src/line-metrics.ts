/**
 * What happens to datasets and runs, counted from the events that the projector folds: once each, whichever process did the work, and however
 * short it lived. Attempts' pods are gone before anybody could scrape them.
 */
import { type DatasetState, type EventDef, type RunState, terminalPhases } from "@loraline/contracts";
import { exemplarOf, type Metrics, traceIdOf } from "@loraline/runtime";

/** What of an event counts here; a part of the bus' `Received`. */
interface Seen {
  type: EventDef["type"];
  data: unknown;
  time: string;
}

interface LineMetrics {
  /** An event was folded into a run. @param before - undefined: it began. */
  onRun(before: RunState | undefined, after: RunState, event: Seen): void;
  onDataset(before: DatasetState | undefined, after: DatasetState, event: Seen): void;
}

const seconds = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 24 * 3600];
const between = (from: string, to: string): number => Math.max(0, Date.parse(to) - Date.parse(from)) / 1000;

export function createLineMetrics(metrics: Metrics): LineMetrics {
  const requested = metrics.counter({
    name: "loraline_runs_requested_total",
    help: "Runs that were requested",
    labels: ["tenant", "base"],
  });
  const ended = metrics.counter({
    name: "loraline_runs_ended_total",
    help: "Runs that are over. outcome: served, failed, cancelled, rejected; code: why",
    labels: ["tenant", "outcome", "code"],
  });
  const stage = metrics.histogram({
    name: "loraline_run_stage_seconds",
    help: "How long runs took. stage: tokenize (request to tokens), queue (tokens to the first attempt), train (first attempt to adapter), prove (adapter to served), total",
    labels: ["stage"],
    buckets: seconds,
  });
  const attempts = metrics.counter({
    name: "loraline_attempts_ended_total",
    help: "Attempts that ended without a result, by why",
    labels: ["tenant", "code"],
  });
  const steps = metrics.counter({ name: "loraline_train_steps_total", help: "Optimizer steps of attempts", labels: ["tenant", "base"] });
  const trainedTokens = metrics.counter({
    name: "loraline_trained_tokens_total",
    help: "Tokens that finished trainings went over",
    labels: ["tenant", "base"],
  });
  const checkpoints = metrics.counter({ name: "loraline_checkpoints_total", help: "Checkpoints that were stored", labels: ["tenant"] });
  const tokenized = metrics.counter({
    name: "loraline_tokenized_tokens_total",
    help: "Tokens of runs' data; cached: whether they were there already",
    labels: ["tenant", "cached"],
  });
  const lag = metrics.histogram({
    name: "loraline_last_step_to_proven_seconds",
    help: "From the last optimizer step to the version being proven on its replicas",
    buckets: seconds,
  });
  const datasets = metrics.counter({
    name: "loraline_datasets_ended_total",
    help: "Datasets that were read. outcome: ingested, rejected; code: why",
    labels: ["tenant", "outcome", "code"],
  });
  const ingest = metrics.histogram({ name: "loraline_ingest_seconds", help: "From a dataset's arrival to its records", buckets: seconds });
  const rows = metrics.counter({
    name: "loraline_dataset_rows_total",
    help: "Rows of datasets. outcome: record, rejected",
    labels: ["tenant", "outcome"],
  });

  return {
    onRun(before, after, event) {
      const { tenant } = after;
      const { base } = after.spec;
      const exemplarLabels = exemplarOf(traceIdOf(after.trace));
      const took = (name: string, from: string, to: string): void =>
        stage.observe({ labels: { stage: name }, value: between(from, to), exemplarLabels });
      if (before === undefined) requested.inc({ tenant, base });
      if (after.tokens !== null && !before?.tokens) {
        took("tokenize", after.requestedAt, after.tokens.at);
        tokenized.inc({ tenant, cached: String(after.tokens.cacheHit) }, after.tokens.totals.tokens);
      }
      // Another gateway may have had the earlier one of the two events in hand, so either may come last.
      if (after.startedAt !== null && after.tokens !== null && !(before?.startedAt && before.tokens))
        took("queue", after.tokens.at, after.startedAt);
      if (after.progress !== null) steps.inc({ tenant, base }, newSteps(before, after));
      checkpoints.inc({ tenant }, newCheckpoints(before, after));
      if (after.lostAttempts > (before?.lostAttempts ?? 0))
        attempts.inc({ tenant, code: event.type === "run.attempt-ended.v1" ? codeOf(event.data) : "" });
      if (after.trained !== null && !before?.trained) {
        took("train", after.startedAt ?? after.trained.at, after.trained.at);
        trainedTokens.inc({ tenant, base }, after.trained.trainedTokens);
      }
      if (after.served !== null && !before?.served) {
        took("prove", after.trained?.at ?? after.served.at, after.served.at);
        took("total", after.requestedAt, after.served.at);
        lag.observe({ value: after.served.lastStepToProvenMs / 1000, exemplarLabels, labels: {} });
      }
      if (terminalPhases.has(after.phase) && !terminalPhases.has(before?.phase ?? "requested"))
        ended.inc({ tenant, outcome: after.phase, code: after.error?.code ?? "" });
    },
    onDataset(before, after, event) {
      const { tenant, status } = after;
      if (status === before?.status || (status !== "ingested" && status !== "rejected")) return;
      datasets.inc({ tenant, outcome: status, code: after.error?.code ?? "" });
      ingest.observe({ labels: {}, value: between(after.receivedAt, event.time), exemplarLabels: {} });
      const { records = 0, rejections = 0 } = event.data as { records?: number; rejections?: number };
      rows.inc({ tenant, outcome: "record" }, records);
      rows.inc({ tenant, outcome: "rejected" }, rejections);
    },
  };
}

/** Steps since the last word of this attempt, or since the checkpoint that it began from. */
function newSteps(before: RunState | undefined, { progress, checkpoints }: RunState): number {
  if (progress === null) return 0;
  const known = before?.progress;
  const from = known?.attempt === progress.attempt ? known.step : progress.attempt === 1 ? 0 : (checkpoints[0]?.step ?? 0);
  return Math.max(0, progress.step - from);
}

function newCheckpoints(before: RunState | undefined, { checkpoints }: RunState): number {
  const known = new Set(before?.checkpoints.map(({ attempt, step }) => `${attempt}/${step}`));
  return checkpoints.filter(({ attempt, step }) => !known.has(`${attempt}/${step}`)).length;
}

const codeOf = (data: unknown): string => (data as { code?: string }).code ?? "";
