import type { RunEvent } from "@loraline/contracts";
import { expect, it } from "vitest";
import { jobEventsOf } from "./job-events.ts";

it("of what happened in one millisecond, an attempt started before it said anything, and said it before it ended", () => {
  const time = "2026-11-24T12:00:00.000Z";
  const events = [
    { type: "run.started.v1", seq: 7, time, data: { attempt: 1, job: "train-1" } },
    { type: "run.checkpointed.v1", seq: 8, time, data: { attempt: 1, step: 1 } },
    { type: "run.progress.v1", seq: 3, time, data: { attempt: 1, phase: "train", step: 1, totalSteps: 2, loss: 3 } },
  ] as unknown as RunEvent[];
  expect(jobEventsOf(events, "base").map(({ message }) => message)).toEqual([
    "Checkpoint created at step 1",
    "Step 1/2: training loss=3.0000",
    "Fine-tuning job started (attempt 1)",
  ]);
});
