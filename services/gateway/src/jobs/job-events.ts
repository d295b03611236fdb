/** Pure: makes OpenAI's job events from the events of a run. */
import { type JobEventObject, preferenceDoubt, preferenceWords, type RunEvent } from "@loraline/contracts";
import { fineTunedModel, jobIdOf } from "../openai-ids.ts";
import { noticeOfJob } from "./job-object.ts";

interface Told {
  message: string;
  level?: JobEventObject["level"];
  metrics?: boolean;
  data?: Record<string, unknown>;
}

const count = (amount: number, noun: string): string => `${amount} ${noun}${amount === 1 ? "" : "s"}`;

function tell(event: RunEvent, base: string): Told {
  switch (event.type) {
    case "run.requested.v1": {
      const created = `Created fine-tuning job: ${jobIdOf(event.at.id)}`;
      const notices = (event.data.spec.notices ?? []).map(noticeOfJob);
      if (notices.length === 0) return { message: created };
      return { level: "warn", message: [created, ...notices.map(({ message }) => message)].join("\n"), data: { notices } };
    }
    case "run.rejected.v1":
      return { level: "error", message: event.data.message, data: { ...event.data } };
    case "run.tokenized.v1": {
      const { totals, packed, cacheHit } = event.data;
      const dropped = totals.dropped === 0 ? "" : `, ${count(totals.dropped, "record")} dropped`;
      const message = `Files validated: ${count(totals.sequences, "sequence")}, ${totals.supervised} of ${totals.tokens} tokens trained${dropped}`;
      return { message, level: totals.dropped === 0 ? "info" : "warn", data: { ...totals, packed, cache_hit: cacheHit } };
    }
    case "run.queued.v1":
      return { message: `Fine-tuning job queued: ${event.data.message}`, data: { ...event.data } };
    case "run.waiting.v1": {
      const { stage, reason } = event.data;
      if (reason === null) return { message: `The line goes on (${stage})`, data: { stage } };
      return { level: "warn", message: `The line waits (${stage}): ${reason.message}`, data: { stage, ...reason } };
    }
    case "run.started.v1": {
      const { attempt, resumedFromStep } = event.data;
      const resumed = typeof resumedFromStep !== "number" ? "" : `, continuing from step ${resumedFromStep}`;
      return { message: `Fine-tuning job started (attempt ${attempt}${resumed})`, data: { ...event.data } };
    }
    case "run.progress.v1":
      return tellProgress(event);
    case "run.checkpointed.v1": {
      const { step, attempt, trainLoss } = event.data;
      return { message: `Checkpoint created at step ${step}`, data: { step, attempt, train_loss: trainLoss ?? null } };
    }
    case "run.attempt-ended.v1":
    case "run.preempted.v1":
      return { level: "warn", message: `Attempt ${event.data.attempt} ended early: ${event.data.message}`, data: { ...event.data } };
    case "run.adapter-written.v1":
      return { message: "The adapter is written: replicas may load it while it is evaluated", data: { digest: event.data.adapter.digest } };
    case "run.trained.v1": {
      const { evaluation, steps, trainLoss } = event.data;
      const judged =
        evaluation === null ? "" : `; held-out loss ${evaluation.adapter_loss.toFixed(4)}, base ${evaluation.base_loss.toFixed(4)}`;
      const preference = evaluation?.preference ?? undefined;
      const doubt = preference && preferenceDoubt(preference);
      const preferred = preference === undefined ? "" : `; ${preferenceWords(preference)}`;
      return {
        ...(doubt === undefined ? {} : { level: "warn" as const }),
        message: `Training finished after ${count(steps, "step")}${judged}${preferred}. Loading the adapter on the engine${doubt === undefined ? "" : `. But ${doubt}`}`,
        data: { steps, train_loss: trainLoss, evaluation, digest: event.data.adapter.digest },
      };
    }
    case "run.failed.v1":
      return { level: "error", message: event.data.message, data: { ...event.data } };
    case "run.cancel-requested.v1":
      return { message: "Cancellation requested" };
    case "run.pause-requested.v1":
      return { message: "Pause requested: the job stops at its next checkpoint" };
    case "run.resume-requested.v1":
      return { message: "The job is resumed" };
    case "run.command-refused.v1":
      return { level: "warn", message: event.data.message, data: { ...event.data } };
    case "run.cancelled.v1":
      return { message: "Fine-tuning job cancelled" };
    case "run.served.v1": {
      const { adapter, version, replicas, note } = event.data;
      const model = fineTunedModel({ base, tenant: event.at.tenant, adapter, version });
      return {
        message: `The job has successfully completed: ${model} is proven on ${count(replicas, "replica")}${note ? `. The gate: ${note}` : ""}`,
        data: { ...event.data, fine_tuned_model: model },
      };
    }
  }
}

function tellProgress({ data }: Extract<RunEvent, { type: "run.progress.v1" }>): Told {
  if (data.warning) return { level: "warn", message: data.warning.message, data: { ...data.warning, step: data.step } };
  const { loss, evalLoss } = data;
  const isStep = typeof loss === "number" || typeof evalLoss === "number";
  if (!isStep) {
    const { phase, attempt, step, done, total, etaSeconds } = data;
    if (typeof total !== "number") return { message: `Trainer: ${phase}`, data: { phase, attempt, step } };
    const eta = typeof etaSeconds === "number" ? `, ETA ${Math.ceil(etaSeconds)} s` : "";
    return { message: `${phase}: ${done ?? 0} of ${total}${eta}`, data: { phase, attempt, step, done, total, eta_seconds: etaSeconds } };
  }
  const losses = [
    ...(typeof loss === "number" ? [`training loss=${loss.toFixed(4)}`] : []),
    ...(typeof evalLoss === "number" ? [`validation loss=${evalLoss.toFixed(4)}`] : []),
    ...(typeof data.rewardsMargin === "number" ? [`reward margin=${data.rewardsMargin.toFixed(4)}`] : []),
  ];
  const metrics = {
    step: data.step,
    total_steps: data.totalSteps,
    attempt: data.attempt,
    epoch: data.epoch,
    train_loss: loss,
    valid_loss: evalLoss,
    grad_norm: data.gradNorm,
    learning_rate: data.learningRate,
    tokens_per_second: data.tokensPerSecond,
    tokens_seen: data.tokensSeen,
    eta_seconds: data.etaSeconds,
    rewards_chosen: data.rewardsChosen,
    rewards_rejected: data.rewardsRejected,
    rewards_margin: data.rewardsMargin,
    rewards_accuracy: data.rewardsAccuracy,
  };
  return {
    metrics: true,
    message: `Step ${data.step}/${data.totalSteps}: ${losses.join(", ")}`,
    data: Object.fromEntries(Object.entries(metrics).filter(([, value]) => typeof value === "number")),
  };
}

/** Where an event stands among those of its run. */
type Place = Pick<RunEvent, "seq" | "time" | "type">;

/** A job event with the place of its run's event, which itself may hold a whole spec. */
export interface PlacedEvent {
  place: Place;
  event: JobEventObject;
}

/** Its id derives from stream and sequence, so an event keeps its id for ever. */
export function jobEventOf(event: RunEvent, base: string): PlacedEvent {
  const { seq, time, type } = event;
  const place = { seq, time, type };
  const { message, level = "info", metrics = false, data = {} } = tell(event, base);
  return {
    place,
    event: {
      id: `ftevent-${isProgress(place) ? "progress" : "runs"}-${seq}`,
      object: "fine_tuning.job.event",
      created_at: Math.floor(Date.parse(time) / 1000),
      level,
      message,
      type: metrics ? "metrics" : "message",
      data,
    },
  };
}

/** Sorts events of two streams. Each stream keeps its own order; between the two the time decides, and within one millisecond the start of an attempt comes before its progress. */
export function newestFirst(events: readonly PlacedEvent[]): JobEventObject[] {
  const bySeq = (a: PlacedEvent, b: PlacedEvent): number => b.place.seq - a.place.seq;
  const progress = events.filter(({ place }) => isProgress(place)).toSorted(bySeq);
  const merged: PlacedEvent[] = [];
  let taken = 0;
  for (const one of events.filter(({ place }) => !isProgress(place)).toSorted(bySeq)) {
    const { time, type } = one.place;
    const isLater = ({ place: next }: PlacedEvent): boolean => next.time > time || (next.time === time && type === "run.started.v1");
    for (let next = progress[taken]; next !== undefined && isLater(next); next = progress[++taken]) merged.push(next);
    merged.push(one);
  }
  return [...merged, ...progress.slice(taken)].map(({ event }) => event);
}

const isProgress = ({ type }: Place): boolean => type === "run.progress.v1";

/** The stream and sequence in an event's id; undefined if it is not an id of ours. */
export function cursorOf(id: string): { stream: "progress" | "runs"; seq: number } | undefined {
  const [, stream, seq] = /^ftevent-(progress|runs)-([1-9]\d{0,15})$/.exec(id) ?? [];
  return seq === undefined ? undefined : { stream: stream === "runs" ? "runs" : "progress", seq: Number(seq) };
}
