import { runProgress, runStarted } from "@loraline/contracts";
import { createLog, PermanentError, UnavailableError } from "@loraline/runtime";
import { expect, it } from "vitest";
import { createOutbox } from "./outbox.ts";

const log = createLog({ service: "test", level: "silent" });
const at = { tenant: "acme", id: "01KB000000000000000000RN01" };
const step = (number: number) => ({ attempt: 1, phase: "train", step: number, totalSteps: 3 });

it("publishes in order while NATS comes and goes, and drains when all is stored", async () => {
  const stored: unknown[] = [];
  let failures = 2;
  const publish = async (_event: unknown, _at: unknown, data: unknown, options: unknown): Promise<never> => {
    if (failures-- > 0) throw new UnavailableError("NATS_UNAVAILABLE", "no responders");
    stored.push([data, options]);
    return undefined as never;
  };
  const outbox = createOutbox({ bus: { publish } as never, at, traceparent: "t", log });
  void outbox.send(runProgress, step(1), "step-1");
  void outbox.send(runProgress, step(2), "step-2");
  expect(stored).toEqual([]);
  await outbox.drained();
  expect(stored).toEqual([
    [step(1), { traceparent: "t", key: "step-1" }],
    [step(2), { traceparent: "t", key: "step-2" }],
  ]);
});

it("gives up an event that can never be stored, tells its sender, and goes on with the next", async () => {
  const stored: unknown[] = [];
  const publish = async (event: { type: string }): Promise<never> => {
    if (event.type === runStarted.type) throw new PermanentError("EVENT_INVALID", "not of the contract");
    stored.push(event.type);
    return undefined as never;
  };
  const outbox = createOutbox({ bus: { publish } as never, at, traceparent: "t", log });
  const first = outbox.send(runStarted, { attempt: 1, job: "j" });
  void outbox.send(runProgress, step(1));
  await expect(first).rejects.toMatchObject({ code: "EVENT_INVALID" });
  await outbox.drained();
  expect(stored).toEqual([runProgress.type]);
});
