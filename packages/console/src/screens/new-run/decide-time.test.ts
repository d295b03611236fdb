import type { RunState } from "@loraline/contracts";
import { expect, test } from "vitest";
import { estimateOf, roughly } from "./decide-time.ts";

/** 100 records in 2 passes: 20 steps in 40 s, and 10 s around them. */
const runOf = (over: { base?: string; maxSteps?: number; seconds?: number; lostAttempts?: number } = {}): RunState =>
  ({
    spec: { base: over.base ?? "smol", training: { num_train_epochs: 2, max_steps: over.maxSteps ?? -1 } },
    startedAt: "2026-11-20T10:00:00.000Z",
    lostAttempts: over.lostAttempts ?? 0,
    tokens: { totals: { sequences: 100 } },
    trained: { steps: 20, trainedTokens: 4000, tokensPerSecond: 4000 / (over.seconds ?? 40), at: "2026-11-20T10:00:50.000Z" },
  }) as RunState;
const wish = { base: "smol", method: "supervised", epochs: "2", maxSteps: "" } as const;

test("grows with records and passes, and what is around the steps does not", () => {
  expect(estimateOf(wish, { records: 100 }, [runOf()])).toEqual({ ms: 50_000, runs: 1 });
  expect(estimateOf({ ...wish, epochs: "4" }, { records: 200 }, [runOf()])).toEqual({ ms: 170_000, runs: 1 });
  expect(estimateOf({ ...wish, maxSteps: "5" }, { records: 200 }, [runOf()])).toEqual({ ms: 20_000, runs: 1 });
});

test("is the middle of the last runs on the same base, and is not made up where there are none", () => {
  const runs = [runOf({ seconds: 20 }), runOf(), runOf({ seconds: 44 }), runOf({ base: "other" }), runOf({ lostAttempts: 1 })];
  expect(estimateOf(wish, { records: 100 }, runs)).toMatchObject({ ms: 50_000, runs: 3 });
  expect(estimateOf({ ...wish, base: "new" }, { records: 100 }, runs)).toBeUndefined();
  expect(estimateOf({ ...wish, method: "dpo" }, { records: 100 }, runs)).toBeUndefined();
  // A run that was ended by its number of steps does not tell how long all records take.
  expect(estimateOf(wish, { records: 100 }, [runOf({ maxSteps: 20 })])).toBeUndefined();
  expect(estimateOf({ ...wish, maxSteps: "10" }, { records: 100 }, [runOf({ maxSteps: 20 })])).toEqual({ ms: 30_000, runs: 1 });
});

test("is told as exactly as it is", () => {
  expect([3000, 41_000, 100_000, 10_000_000].map(roughly)).toEqual([10_000, 50_000, 120_000, 10_200_000]);
});
