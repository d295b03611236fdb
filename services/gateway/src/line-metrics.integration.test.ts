/** What the projector counts of runs and datasets: each thing once, whatever is delivered again, and whichever gateway folds it. */
import { events, runSpec } from "@loraline/contracts";
import { test } from "@loraline/testkit";
import { ulid } from "ulid";
import { expect } from "vitest";
import {
  base,
  type GatewayUnderTest,
  playIngested,
  playServed,
  playStep,
  playTokenized,
  playTrained,
  startGateway,
} from "./gateway-under-test.ts";

const blob = { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 3 } as const;

test("runs, their stages, steps and ends are counted once by two gateways together, and steps after a resume from the checkpoint on", async ({
  nc,
  tenant,
}) => {
  await using one = await startGateway({ nc, tenant });
  await using other = await startGateway({ nc, tenant });
  const { bus } = one;
  const read = async ({ metricsUrl }: GatewayUnderTest, series: string): Promise<number> => {
    const line = (await (await fetch(metricsUrl)).text()).split("\n").find((text) => text.startsWith(`${series} `));
    return Number(line?.slice(series.length).trim().split(" ")[0] ?? 0);
  };
  const both = async (series: string): Promise<number> => (await read(one, series)) + (await read(other, series));
  const of = `tenant="${tenant}"`;

  const dataset = ulid();
  await bus.publish(events.datasetReceived, { tenant, id: dataset }, { blob, filename: "a.jsonl" });
  await playIngested(bus, tenant, dataset);
  await expect.poll(() => both(`loraline_datasets_ended_total{${of},outcome="ingested",code=""}`)).toBe(1);
  expect(await both(`loraline_dataset_rows_total{${of},outcome="record"}`)).toBe(12);
  expect(await both(`loraline_dataset_rows_total{${of},outcome="rejected"}`)).toBe(1);

  const spec = runSpec.parse({ base, adapter: "pirate", dataset });
  const id = ulid();
  await bus.publish(events.runRequested, { tenant, id }, { spec });
  await playTokenized(bus, tenant, id);
  await playTrained(bus, tenant, id);
  await playServed(bus, tenant, id, "pirate");
  await expect.poll(() => both(`loraline_runs_ended_total{${of},outcome="served",code=""}`)).toBe(1);
  await expect.poll(() => both(`loraline_train_steps_total{${of},base="${base}"}`)).toBeLessThanOrEqual(3);
  expect(await both(`loraline_trained_tokens_total{${of},base="${base}"}`)).toBe(600);
  for (const stage of ["tokenize", "queue", "train", "prove", "total"])
    await expect.poll(() => both(`loraline_run_stage_seconds_count{stage="${stage}"}`)).toBeGreaterThanOrEqual(1);

  // The second attempt goes on from the checkpoint of step 5: steps 6 and 7 are two more, not seven.
  const resumed = ulid();
  const at = { tenant, id: resumed };
  const before = await both(`loraline_train_steps_total{${of},base="${base}"}`);
  await bus.publish(events.runRequested, at, { spec });
  await playTokenized(bus, tenant, resumed);
  await bus.publish(events.runStarted, at, { attempt: 1, job: "one" }, { key: "1" });
  await playStep(bus, tenant, resumed, 5, 10);
  await expect.poll(() => both(`loraline_train_steps_total{${of},base="${base}"}`)).toBe(before + 5);
  await bus.publish(
    events.runCheckpointed,
    at,
    { attempt: 1, step: 5, checkpoint: { ...blob, kind: "checkpoint" }, trainLoss: 1 },
    { key: "1/5" },
  );
  await expect.poll(() => both(`loraline_checkpoints_total{${of}}`)).toBeGreaterThanOrEqual(1);
  await bus.publish(events.runAttemptEnded, at, { attempt: 1, step: 5, code: "EVICTED", message: "drained" }, { key: "attempt-1" });
  await expect.poll(() => both(`loraline_attempts_ended_total{${of},code="EVICTED"}`)).toBe(1);
  const progress = {
    attempt: 2,
    phase: "train",
    step: 7,
    totalSteps: 10,
    epoch: 1,
    loss: 1,
    learningRate: 1,
    tokensPerSecond: 1,
    etaSeconds: 1,
  };
  await bus.publish(events.runProgress, at, progress, { key: "attempt-2/step-7" });
  await expect.poll(() => both(`loraline_train_steps_total{${of},base="${base}"}`)).toBe(before + 7);
  await bus.publish(events.runFailed, at, { attempt: 2, code: "LOSS_NAN", message: "the loss is not a number", param: null });
  await expect.poll(() => both(`loraline_runs_ended_total{${of},outcome="failed",code="LOSS_NAN"}`)).toBe(1);
});
