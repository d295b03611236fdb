/** A run's curves: from its evidence when it is trained, else from the steps that were told while it trains. */
import { type Evidence, evidence, runProgress, type RunMetrics, type RunState } from "@loraline/contracts";
import { getJson } from "@loraline/objects";
import { PermanentError } from "@loraline/runtime";
import type { GatewayContext } from "../context.ts";

type Point = RunMetrics["data"][number];
type Pair = readonly [step: number, loss: number];

/** Most steps of a run that is not trained yet: each is a message. */
const mostSteps = 10_000;

/** @param details - also learning rate, gradient norm and speed, which only the steps tell. */
export async function metricsOf(
  run: RunState,
  { bus, objects }: Pick<GatewayContext, "bus" | "objects">,
  { details = false }: { details?: boolean } = {},
): Promise<RunMetrics> {
  const known = run.trained === null ? undefined : await kept(getJson(objects, run.tenant, run.trained.evidence, evidence));
  const losses = known && { training: known.lossHistory, validation: evaluated(known, run) };
  if (losses !== undefined && !details) return { run_id: run.runId, data: pointsOf(losses, run) };
  const told = await bus.newest([runProgress], { tenant: run.tenant, id: run.runId }, { limit: mostSteps }, ({ data }) => data);
  // Oldest first: a step that a later attempt took again counts as that attempt took it.
  const steps = told.toReversed();
  const pairs = (loss: (data: (typeof steps)[number]) => number | null | undefined): Pair[] =>
    steps.flatMap((data) => (typeof loss(data) === "number" ? [[data.step, loss(data) as number] as const] : []));
  const curves = losses ?? { training: pairs(({ loss }) => loss), validation: pairs(({ evalLoss }) => evalLoss) };
  const measured = {
    learning_rate: pairs(({ learningRate }) => learningRate),
    grad_norm: pairs(({ gradNorm }) => gradNorm),
    tokens_per_second: pairs(({ tokensPerSecond }) => tokensPerSecond),
  };
  return { run_id: run.runId, data: pointsOf(curves, run, details ? measured : {}) };
}

/** Of what was made by older code the adapter's own evaluation is known, and no curve. */
function evaluated({ evalHistory, evaluation }: Evidence, run: RunState): readonly Pair[] {
  if (evalHistory !== undefined) return evalHistory;
  return evaluation === null || run.trained === null ? [] : [[run.trained.steps, evaluation.adapter_loss]];
}

type Measured = Partial<Record<"learning_rate" | "grad_norm" | "tokens_per_second", readonly Pair[]>>;

function pointsOf(
  { training, validation }: { training: readonly Pair[]; validation: readonly Pair[] },
  { trained }: RunState,
  measured: Measured = {},
): Point[] {
  const points = new Map<number, Point>();
  const at = (step: number): Point => {
    const point = points.get(step) ?? { step, train_loss: null, valid_loss: null, valid_mean_token_accuracy: null };
    points.set(step, point);
    return point;
  };
  for (const [step, loss] of training) at(step).train_loss = loss;
  for (const [step, loss] of validation) at(step).valid_loss = loss;
  for (const [name, pairs] of Object.entries(measured)) for (const [step, value] of pairs) at(step)[name as keyof Measured] = value;
  const accuracy = trained?.evaluation?.adapter_accuracy;
  if (trained !== null && typeof accuracy === "number")
    at(trained.evaluation?.published_step ?? trained.steps).valid_mean_token_accuracy = accuracy;
  return [...points.values()].toSorted((a, b) => a.step - b.step);
}

/** OpenAI's columns. The accuracy on the training rows is not measured here, so its column stays empty. */
export const csvOf = ({ data }: RunMetrics): string =>
  [
    "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
    ...data.map((point) => [point.step, point.train_loss, null, point.valid_loss, point.valid_mean_token_accuracy].join(",")),
    "",
  ].join("\n");

/** A deleted adapter's evidence is gone. */
const kept = <T>(reading: Promise<T>): Promise<T | undefined> =>
  reading.catch((error: unknown) => {
    if (error instanceof PermanentError && error.code === "OBJECT_MISSING") return undefined;
    throw error;
  });
