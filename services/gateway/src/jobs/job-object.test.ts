import {
  type EventInput,
  events,
  type EventDef,
  foldRun,
  jobCheckpointObject,
  jobEventObject,
  jobObject,
  type RunEvent,
  type RunState,
  runSpec,
} from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { base, digestOf, refOf } from "../gateway-under-test.ts";
import { jobEventOf, newestFirst } from "./job-events.ts";
import { checkpointObjectsOf, jobObjectOf } from "./job-object.ts";
import { jobParamOf } from "./run-spec-from-job.ts";

const jobEventsOf = (events: readonly RunEvent[], base: string) => newestFirst(events.map((event) => jobEventOf(event, base)));

const runId = "01JD000000000000000000000A";
const start = Date.parse("2026-11-24T12:00:00Z");
let seq = 0;
const seen = <E extends EventDef>(event: E, data: EventInput<E>, second: number): RunEvent =>
  ({
    type: event.type,
    data: event.data.parse(data),
    at: { tenant: "acme", id: runId },
    time: new Date(start + second * 1000).toISOString(),
    seq: ++seq,
    trace: null,
  }) as RunEvent;

const spec = runSpec.parse({
  base,
  adapter: "pirate",
  dataset: "01JD000000000000000000000D",
  training: { gradient_accumulation_steps: 2 },
});
const totals = { sequences: 10, tokens: 100, supervised: 40, evalSequences: 1, evalSupervised: 4, dropped: 2 };
const history: RunEvent[] = [
  seen(events.runRequested, { spec }, 0),
  seen(events.runTokenized, { manifest: refOf("tokens"), totals, packed: false, cacheHit: false }, 1),
  seen(events.runQueued, { attempt: 1, reason: "NO_SLOT", message: "another run is training" }, 2),
  seen(events.runStarted, { attempt: 1, job: "x" }, 3),
  seen(events.runAttemptEnded, { attempt: 1, step: 1, code: "KILLED", message: "the trainer was killed" }, 6),
  seen(events.runStarted, { attempt: 2, job: "y", resumedFromStep: 1 }, 7),
  seen(events.runCheckpointed, { attempt: 2, step: 2, checkpoint: refOf("checkpoint"), trainLoss: 0.5 }, 9),
];
const progress: RunEvent[] = [
  seen(events.runProgress, { attempt: 1, phase: "load_base", step: 0, totalSteps: 3 }, 4),
  seen(events.runProgress, { attempt: 1, phase: "train", step: 1, totalSteps: 3, loss: 1, etaSeconds: 20 }, 5),
  seen(events.runProgress, { attempt: 2, phase: "train", step: 2, totalSteps: 3, loss: 0.5, etaSeconds: 10.2 }, 8),
  seen(events.runProgress, { attempt: 2, phase: "train", step: 2, totalSteps: 3, warning: { code: "W", message: "no EOS" } }, 10),
];
const fold = (more: RunEvent[] = []): RunState => {
  const state = [...history, ...progress, ...more].reduce<RunState | undefined>((folded, event) => foldRun(folded, event), undefined);
  if (state === undefined) throw new Error("no state");
  return state;
};
const trained = seen(
  events.runTrained,
  {
    attempt: 2,
    adapter: refOf("adapter", "d"),
    evidence: refOf("evidence", "e"),
    rank: 8,
    targetModules: [],
    parameters: 1,
    steps: 3,
    trainLoss: 0.4,
    trainedTokens: 300,
    tokensPerSecond: 1,
    evaluation: null,
    lastStepAt: new Date(start + 11_000).toISOString(),
  },
  11,
);
const served = seen(
  events.runServed,
  { adapter: "pirate", version: 4, digest: digestOf("d"), replicas: 2, promoted: true, lastStepToProvenMs: 5 },
  12,
);

describe("jobObjectOf", () => {
  it("shows a running job with its estimate", () => {
    const job = jobObject.parse(jobObjectOf(fold()));
    expect(job).toMatchObject({
      id: `ftjob-${runId}`,
      status: "running",
      created_at: start / 1000,
      estimated_finish: start / 1000 + 10 + 11,
      finished_at: null,
      hyperparameters: { n_epochs: 3, batch_size: 8, learning_rate_multiplier: 1 },
      organization_id: "acme",
      fine_tuned_model: null,
    });
  });

  it("is running until it is served", () => {
    expect(jobObjectOf(fold([trained]))).toMatchObject({
      status: "running",
      trained_tokens: 300,
      estimated_finish: null,
      fine_tuned_model: null,
    });
    const done = jobObject.parse(jobObjectOf(fold([trained, served])));
    expect(done).toMatchObject({
      status: "succeeded",
      fine_tuned_model: `ft:${base}:acme:pirate:4`,
      finished_at: start / 1000 + 12,
      error: null,
    });
  });

  it("tells once, in the request's words, what changes nothing: in the answer and as the first event", () => {
    const pasted = events.runRequested.data.parse({ spec: { ...spec, training: { output_dir: "./out", seed: 1 } } });
    const requested = seen(events.runRequested, pasted, 0);
    const run = foldRun(undefined, requested)!;
    const notices = [
      { param: "loraline.training.output_dir", message: expect.stringMatching(/^loraline\.training\.output_dir changes nothing/) },
    ];
    expect(jobObject.parse(jobObjectOf(run)).loraline?.notices).toEqual(notices);
    expect(jobEventsOf([requested], base).map((event) => jobEventObject.parse(event))).toMatchObject([
      { level: "warn", message: expect.stringMatching(/^Created.*\nloraline\.training\.output_dir changes nothing/), data: { notices } },
    ]);
  });

  it("names what failed as the request calls it", () => {
    const failed = seen(events.runFailed, { code: "OOM", message: "out of memory", param: "training.per_device_train_batch_size" }, 11);
    expect(jobObject.parse(jobObjectOf(fold([failed])))).toMatchObject({
      status: "failed",
      error: { code: "OOM", param: "loraline.training.per_device_train_batch_size" },
    });
    expect(["base", "dataset", "validation", "lora.r", "holdout", "pirate.jsonl"].map(jobParamOf)).toEqual([
      "model",
      "training_file",
      "validation_file",
      "loraline.lora.r",
      "loraline.holdout",
      "pirate.jsonl",
    ]);
  });

  it("shows checkpoints", () => {
    expect(checkpointObjectsOf(fold()).map((checkpoint) => jobCheckpointObject.parse(checkpoint))).toMatchObject([
      { id: `ftckpt-${runId}-2`, step_number: 2, metrics: { step: 2, train_loss: 0.5 } },
    ]);
  });
});

describe("jobEventsOf", () => {
  it("tells the story newest first, each stream in its own order", () => {
    const told = jobEventsOf([...progress, ...history, served, trained], base).map((event) => jobEventObject.parse(event));
    expect(told.map(({ level, type, message }) => [level, type, message])).toEqual([
      ["info", "message", `The job has successfully completed: ft:${base}:acme:pirate:4 is proven on 2 replicas`],
      ["info", "message", "Training finished after 3 steps. Loading the adapter on the engine"],
      ["warn", "message", "no EOS"],
      ["info", "message", "Checkpoint created at step 2"],
      ["info", "metrics", "Step 2/3: training loss=0.5000"],
      ["info", "message", "Fine-tuning job started (attempt 2, continuing from step 1)"],
      ["warn", "message", "Attempt 1 ended early: the trainer was killed"],
      ["info", "metrics", "Step 1/3: training loss=1.0000"],
      ["info", "message", "Trainer: load_base"],
      ["info", "message", "Fine-tuning job started (attempt 1)"],
      ["info", "message", "Fine-tuning job queued: another run is training"],
      ["warn", "message", "Files validated: 10 sequences, 40 of 100 tokens trained, 2 records dropped"],
      ["info", "message", `Created fine-tuning job: ftjob-${runId}`],
    ]);
    expect(new Set(told.map(({ id }) => id)).size).toBe(told.length);
    // A clock that runs behind must not reorder what one stream says.
    const late = history.map((event) =>
      event.type === "run.queued.v1" ? { ...event, time: new Date(start - 5000).toISOString() } : event,
    );
    expect(jobEventsOf(late, base).map(({ id }) => id)).toEqual(jobEventsOf(history, base).map(({ id }) => id));
  });
});
