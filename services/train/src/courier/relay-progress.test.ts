import { createLog } from "@loraline/runtime";
import { beforeEach, describe, expect, it } from "vitest";
import { createProgressRelay, type ProgressRelay } from "./relay-progress.ts";

const log = createLog({ service: "test", level: "silent" });
let relay: ProgressRelay;
let sent: [key: string | undefined, data: unknown][];
let spans: [name: string, startMs: number, endMs: number | undefined, error: string | undefined][];
let checkpoints: [step: number, loss: number | null][];
let adapters: number;
beforeEach(() => {
  [sent, spans, checkpoints, adapters] = [[], [], [], 0];
  relay = createProgressRelay({
    runId: "01KB000000000000000000RN01",
    attempt: 2,
    fromStep: 10,
    eventKey: "attempt-2",
    outbox: { send: async (_event, data, key) => void sent.push([key, data]) },
    trainerTelemetry: { record: (name, { startMs, endMs, error }) => void spans.push([name, startMs, endMs, error]) },
    traceparent: "t",
    log,
    onCheckpoint: (step, loss) => void checkpoints.push([step, loss]),
    onAdapter: () => void adapters++,
  });
});
const line = (value: object): void => relay.line(JSON.stringify({ time: 100, ...value }));
const step = (at: number, more: object = {}): void =>
  line({
    type: "step",
    step: at,
    total_steps: 20,
    epoch: 1,
    loss: 2,
    grad_norm: 1,
    learning_rate: 0.1,
    tokens_per_second: 5,
    tokens_seen: 9,
    examples_seen: 3,
    eta_seconds: 4,
    ...more,
  });

describe("progress of the trainer", () => {
  it("becomes events whose ids stay the same when an attempt is repeated, and spans of its phases", () => {
    line({ type: "phase", phase: "train", state: "start" });
    step(11, { rewards_chosen: 0.2, rewards_rejected: null, rewards_margin: 0.5, rewards_accuracy: 1 });
    line({ type: "checkpoint", step: 11, path: "checkpoints/step-00000011" });
    line({ type: "adapter" });
    line({ type: "eval", step: 11, eval_loss: 1.5 });
    line({ type: "phase", phase: "train", state: "end", time: 103 });
    line({ type: "phase", phase: "save", state: "start" });
    expect(sent.map(([key]) => key)).toEqual([
      "attempt-2/phase-1-train",
      "attempt-2/step-11",
      "attempt-2/eval-11",
      "attempt-2/phase-2-save",
    ]);
    expect(sent[0]?.[1]).toEqual({ attempt: 2, phase: "train", step: 10, totalSteps: 0 });
    expect(sent[1]?.[1]).toMatchObject({ attempt: 2, phase: "train", step: 11, totalSteps: 20, loss: 2, etaSeconds: 4 });
    expect(sent[1]?.[1]).toMatchObject({ rewardsChosen: 0.2, rewardsRejected: null, rewardsMargin: 0.5, rewardsAccuracy: 1 });
    expect(checkpoints).toEqual([[11, 2]]);
    expect(adapters).toBe(1);
    expect(spans).toEqual([["train", 100_000, 103_000, undefined]]);
    expect(relay.where()).toBe("phase save, step 11 of 20");
  });

  it("ends the span of a phase that the trainer did not live to end, once", () => {
    line({ type: "phase", phase: "train", state: "start" });
    relay.end("TRAINER_KILLED");
    relay.end("TRAINER_KILLED");
    expect(spans).toMatchObject([["train", 100_000, expect.any(Number), "TRAINER_KILLED"]]);
  });

  it("knows when the last step ended: by the last of all steps, else by the end of training", () => {
    line({ type: "phase", phase: "train", state: "start" });
    step(19, { time: 101 });
    line({ type: "phase", phase: "train", state: "end", time: 103 });
    expect(relay.lastStepAt()).toBe(new Date(103_000).toISOString());
    step(20, { time: 102 });
    expect(relay.lastStepAt()).toBe(new Date(102_000).toISOString());
  });

  it("tells how far an evaluation is, also in the middle of training", () => {
    line({ type: "phase", phase: "train", state: "start" });
    line({ type: "count", phase: "evaluate", done: 64, total: 128, eta_seconds: 2 });
    line({ type: "count", phase: "evaluate", done: 96, total: 128, eta_seconds: 1 });
    expect(sent.slice(1).map(([, data]) => data)).toMatchObject([
      { attempt: 2, phase: "evaluate", done: 64, total: 128, etaSeconds: 2 },
      { attempt: 2, phase: "evaluate", done: 96, total: 128, etaSeconds: 1 },
    ]);
    expect(new Set(sent.map(([key]) => key)).size).toBe(3);
    expect(relay.where()).toContain("phase train");
  });

  it("goes on after lines that it does not understand, and numbers warnings", () => {
    relay.line("no JSON");
    relay.line('{"type":"of another release"}');
    line({ type: "warning", code: "FEW_ROWS", message: "only a few rows" });
    relay.warn({ code: "RESUME_LOST", message: "from the start" });
    expect(sent.map(([key]) => key)).toEqual(["attempt-2/warning-1", "attempt-2/warning-2"]);
    expect(sent[1]?.[1]).toMatchObject({ warning: { code: "RESUME_LOST", message: "from the start" } });
  });
});
