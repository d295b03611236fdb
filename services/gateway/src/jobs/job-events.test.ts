import type { RunEvent } from "@loraline/contracts";
import { expect, it } from "vitest";
import { jobEventOf, newestFirst } from "./job-events.ts";

const jobEventsOf = (events: readonly RunEvent[], base: string) => newestFirst(events.map((event) => jobEventOf(event, base)));

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

it("a training on preferences tells its margins, how often the right side is preferred, and that chosen answers became less likely", () => {
  const time = "2026-11-24T12:00:00.000Z";
  const preference = {
    pairs: 40,
    accuracy: 0.75,
    accuracy_low: 0.6,
    accuracy_high: 0.859,
    margin: 0.31,
    chosen_logprob_change: -0.25,
    loss: 0.55,
  };
  const trainedWith = (change: number) => ({
    type: "run.trained.v1",
    seq: 9,
    time,
    data: {
      steps: 2,
      trainLoss: 0.5,
      adapter: { digest: "d" },
      evaluation: { base_loss: 3, adapter_loss: 3.25, preference: { ...preference, chosen_logprob_change: change } },
    },
  });
  const step = {
    attempt: 1,
    phase: "train",
    step: 1,
    totalSteps: 2,
    loss: 0.69,
    rewardsChosen: 0.1,
    rewardsRejected: -0.2,
    rewardsMargin: 0.3,
  };
  const events = (change: number) =>
    jobEventsOf(
      [{ type: "run.progress.v1", seq: 3, time: "2026-11-24T11:00:00.000Z", data: step }, trainedWith(change)] as unknown as RunEvent[],
      "base",
    );
  const [finished, progress] = events(-0.25);
  expect(progress?.message).toBe("Step 1/2: training loss=0.6900, reward margin=0.3000");
  expect(progress?.data).toMatchObject({ rewards_chosen: 0.1, rewards_rejected: -0.2, rewards_margin: 0.3 });
  expect(finished?.level).toBe("warn");
  expect(finished?.message).toMatch(
    /the right side is preferred in 75\.0 % of 40 held-out comparisons \(95 %: 60\.0 % to 85\.9 %\), margin 0\.310\..*less likely .*-0\.250 per token.*sft_weight/,
  );
  expect(events(0.1)[0]).toMatchObject({ level: "info", message: expect.not.stringContaining("less likely") as unknown });
});
