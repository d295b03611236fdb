import type { RunState } from "@loraline/contracts";
import { expect, test } from "vitest";
import { decideStages } from "./decide-stages.ts";

const at = (minute: number) => `2026-11-29T12:${String(minute).padStart(2, "0")}:00.000Z`;
const run = (over: object) =>
  ({
    requestedAt: at(1),
    tokens: null,
    startedAt: null,
    trained: null,
    served: null,
    finishedAt: null,
    phase: "requested",
    ...over,
  }) as unknown as RunState;
const dataset = { receivedAt: at(0), settledAt: at(2) };
const told = (...given: Parameters<typeof decideStages>) => decideStages(...given).map(({ name, state }) => `${name} ${state}`);

test("a run that waits for its data reads, and nothing after it has begun", () => {
  expect(told(run({}), { receivedAt: at(0), settledAt: null })).toEqual([
    "read active",
    "tokenize todo",
    "wait todo",
    "train todo",
    "serve todo",
  ]);
});

test("times are those of each stage: a run may be asked for before or after its data is read", () => {
  const trained = run({ tokens: { at: at(3) }, startedAt: at(5), phase: "running" });
  const minutes = decideStages(trained, dataset).map(({ from, to }) => [from, to].map((time) => time && new Date(time).getUTCMinutes()));
  expect(minutes).toEqual([
    [0, 2],
    [2, 3],
    [3, 5],
    [5, null],
    [null, null],
  ]);
});

test("a run that failed, waits or was served says where", () => {
  const tokens = { at: at(3) };
  expect(told(run({ tokens, startedAt: at(5), phase: "failed", finishedAt: at(6) }), dataset)[3]).toBe("train failed");
  expect(told(run({ tokens, paused: true, phase: "queued" }), dataset)[2]).toBe("wait paused");
  const over = run({ tokens, startedAt: at(5), trained: { at: at(8) }, served: { at: at(9) }, phase: "served", finishedAt: at(9) });
  expect(told(over, undefined)).toEqual(["read done", "tokenize done", "wait done", "train done", "serve done"]);
});
