import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { foldRun, type RunEvent, type RunState, runState, terminalPhases } from "../index.ts";

const at = { tenant: "acme", id: "01KB000000000000000000RN01" };
const sample = (type: string): unknown => JSON.parse(readFileSync(join(import.meta.dirname, "../../samples", `${type}.json`), "utf8"));
const event = (type: RunEvent["type"], seq: number, change: object = {}): RunEvent =>
  ({
    type,
    at,
    seq,
    time: new Date(Date.UTC(2026, 10, 24, 12, 0, seq)).toISOString(),
    trace: `00-${"a".repeat(32)}-${String(seq).padStart(16, "0")}-01`,
    data: { ...(sample(type) as object), ...change },
  }) as RunEvent;
const fold = (...events: RunEvent[]): RunState => events.reduce<RunState | undefined>((state, next) => foldRun(state, next), undefined)!;

test("a whole run, with a lost attempt in the middle", () => {
  const state = fold(
    event("run.requested.v1", 1),
    event("run.tokenized.v1", 2),
    event("run.queued.v1", 3),
    event("run.started.v1", 4),
    event("run.checkpointed.v1", 5),
    event("run.attempt-ended.v1", 6),
    event("run.started.v1", 7, { attempt: 2, resumedFromStep: 20 }),
    event("run.trained.v1", 8),
    event("run.served.v1", 9),
  );
  expect(runState.parse(state)).toEqual(state);
  expect(state).toMatchObject({
    phase: "served",
    attempt: 2,
    lostAttempts: 1,
    queue: null,
    error: null,
    checkpoints: [{ step: 20 }],
    trained: { steps: 48 },
    served: { version: 3, promoted: true },
    finishedAt: "2026-11-24T12:00:09.000Z",
  });
  expect(state.trace).toContain("0000000000000009");
});

test("a lost attempt that an older release stored as run.preempted folds as it always did", () => {
  const before = [event("run.requested.v1", 1), event("run.tokenized.v1", 2), event("run.started.v1", 3)];
  const stored = fold(...before, event("run.preempted.v1", 4));
  expect(stored).toMatchObject({
    phase: "queued",
    lostAttempts: 1,
    queue: { reason: "ATTEMPT_LOST", message: "the attempt's process is gone; attempt 2 resumes from step 20" },
  });
  expect(stored).toEqual(fold(...before, event("run.attempt-ended.v1", 4, sample("run.preempted.v1") as object)));
});

test("an attempt whose end is told twice, by its courier and by the controller, is one lost attempt and stops no later one", () => {
  const state = fold(
    event("run.requested.v1", 1),
    event("run.tokenized.v1", 2),
    event("run.started.v1", 3),
    event("run.attempt-ended.v1", 4),
    event("run.started.v1", 5, { attempt: 2 }),
    event("run.attempt-ended.v1", 6),
  );
  expect(state).toMatchObject({ phase: "running", attempt: 2, lostAttempts: 1 });
});

test("events about a run nobody requested fold to nothing", () => {
  expect(foldRun(undefined, event("run.trained.v1", 1))).toBeUndefined();
});

test("a cancel wish is remembered; the first end wins", () => {
  const state = fold(
    event("run.requested.v1", 1),
    event("run.cancel-requested.v1", 2),
    event("run.cancelled.v1", 3),
    event("run.failed.v1", 4),
  );
  expect(state).toMatchObject({ cancelRequested: true, phase: "cancelled", error: null });
});

test("what a run waits for shows in any phase, until it goes on; told late, it means nothing", () => {
  const waiting = (seq: number, stage: string, reason: object | null = { code: "STORE_UNAVAILABLE", message: "away" }) =>
    event("run.waiting.v1", seq, { stage, reason });
  const queue = { reason: "STORE_UNAVAILABLE", message: "away" };
  const requested = [event("run.requested.v1", 1), waiting(2, "tokenize")];
  expect(fold(...requested)).toMatchObject({ phase: "requested", queue });
  expect(fold(...requested, waiting(3, "tokenize", null)).queue).toBeNull();
  const tokenized = [...requested, event("run.tokenized.v1", 3)];
  expect(fold(...tokenized)).toMatchObject({ phase: "tokenized", queue: null });
  expect(fold(...tokenized, waiting(4, "tokenize")).queue, "another replica's, too late").toBeNull();
  expect(fold(...tokenized, event("run.started.v1", 4), waiting(5, "train"))).toMatchObject({ phase: "running", queue });
  const trained = [...tokenized, event("run.trained.v1", 4), waiting(5, "serve")];
  expect(fold(...trained)).toMatchObject({ phase: "trained", queue });
  expect(fold(...trained, event("run.served.v1", 6))).toMatchObject({ phase: "served", queue: null });
  const late = [event("run.queued.v1", 6), event("run.attempt-ended.v1", 7)];
  expect(fold(...tokenized, event("run.trained.v1", 4), ...late), "its pod ended after its last word").toMatchObject({ queue: null });
  expect(fold(...trained, event("run.cancelled.v1", 6), waiting(7, "serve"))).toMatchObject({ phase: "cancelled", queue: null });
});

test("progress from an older attempt, or out of order, never takes a run back", () => {
  const running = fold(event("run.requested.v1", 1), event("run.tokenized.v1", 2), event("run.started.v1", 3));
  const later = foldRun(running, event("run.progress.v1", 9, { attempt: 2, step: 30 }))!;
  expect(later.progress).toMatchObject({ attempt: 2, step: 30 });
  expect(foldRun(later, event("run.progress.v1", 8, { attempt: 1, step: 40 }))).toEqual(later);
  expect(foldRun(later, event("run.progress.v1", 7, { attempt: 2, step: 12 }))).toEqual(later);
});

const types = [
  "run.requested.v1",
  "run.rejected.v1",
  "run.tokenized.v1",
  "run.queued.v1",
  "run.waiting.v1",
  "run.started.v1",
  "run.progress.v1",
  "run.checkpointed.v1",
  "run.attempt-ended.v1",
  "run.preempted.v1",
  "run.trained.v1",
  "run.failed.v1",
  "run.cancel-requested.v1",
  "run.pause-requested.v1",
  "run.resume-requested.v1",
  "run.cancelled.v1",
  "run.served.v1",
] as const;
const histories = fc
  .array(fc.constantFrom(...types), { maxLength: 20 })
  .map((list) => [event("run.requested.v1", 1), ...list.map((type, index) => event(type, index + 2))]);

test("any history folds to a state of the contract, and folding any event twice changes nothing", () => {
  fc.assert(
    fc.property(histories, (history) => {
      const state = fold(...history);
      expect(runState.parse(state)).toEqual(state);
      for (const seen of history) expect(foldRun(state, seen)).toEqual(state);
    }),
  );
});

test("a run that ended stays ended", () => {
  fc.assert(
    fc.property(histories, (history) => {
      const states = history.map((_, index) => fold(...history.slice(0, index + 1)));
      const end = states.find(({ phase }) => terminalPhases.has(phase));
      const last = states.at(-1)!;
      expect([last.phase, last.error]).toEqual(end === undefined ? [last.phase, last.error] : [end.phase, end.error]);
    }),
  );
});

test("how far a phase is, is told until the next phase begins, and tokenizing comes before the first attempt", () => {
  const progress = (seq: number, data: object): RunEvent =>
    ({ ...event("run.progress.v1", seq), data: { step: 0, totalSteps: 0, ...data } }) as RunEvent;
  const tokenizing = fold(event("run.requested.v1", 1), progress(1, { attempt: 0, phase: "tokenize", done: 3, total: 9, etaSeconds: 6 }));
  expect(runState.parse(tokenizing).progress).toMatchObject({ attempt: 0, phase: "tokenize", done: 3, total: 9, etaSeconds: 6 });
  const evaluating = foldRun(tokenizing, progress(2, { attempt: 1, phase: "evaluate", done: 1, total: 4, etaSeconds: 30 }));
  expect(evaluating?.progress).toMatchObject({ attempt: 1, done: 1, total: 4, etaSeconds: 30 });
  const training = foldRun(evaluating, progress(3, { attempt: 1, phase: "train", step: 0, totalSteps: 8 }));
  expect(training?.progress).toMatchObject({ totalSteps: 8, done: undefined, total: undefined, etaSeconds: null });
});
