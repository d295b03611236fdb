import { runKey, runSpec, type RunState } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { attemptNameOf } from "../attempt/attempt-spec.ts";
import type { Attempt, AttemptPhase } from "../launchers/launcher.ts";
import { decideRound, type RoundInput } from "./decide-round.ts";
import { decideRun, type History } from "./decide-run.ts";

const now = 1_000_000_000_000;
const idOf = (n: number): string => `01JD${String(n).padStart(22, "0")}`;
const run = (n: number, more: Partial<RunState> = {}): RunState => ({
  tenant: "acme",
  runId: idOf(n),
  spec: runSpec.parse({ base: "b", adapter: "pirate", dataset: idOf(0), max_attempts: 3 }),
  phase: "tokenized",
  requestedAt: new Date(now + n).toISOString(),
  startedAt: null,
  updatedAt: new Date(now).toISOString(),
  finishedAt: null,
  trace: null,
  cancelRequested: false,
  attempt: 0,
  lostAttempts: 0,
  queue: null,
  tokens: { manifest: {}, totals: {}, packed: false, cacheHit: false, at: "" } as never,
  progress: null,
  checkpoints: [],
  trained: null,
  served: null,
  error: null,
  seq: n,
  ...more,
});
const attempt = (of: RunState, n: number, state: AttemptPhase): Attempt => ({
  tenant: of.tenant,
  runId: of.runId,
  attempt: n,
  name: attemptNameOf(of.runId, n),
  ...state,
});
const failed = (code: string, endedAt = now): AttemptPhase => ({ phase: "failed", code, message: "m", endedAt });
const keyOf = ({ tenant, runId }: RunState): string => runKey({ tenant, id: runId });
const none: History = { over: false, lost: [], checkpoint: null };
const round = (runs: RunState[], more: Partial<RoundInput> = {}) => {
  const given: RoundInput = {
    runs: new Map(runs.map((one) => [keyOf(one), one])),
    attempts: [],
    slots: { total: 1, free: 1 },
    sizeOf: ({ gpus = 1 }) => ({ slots: 1, gpus }),
    quotasOf: () => ({ runsAtOnce: null, gpusAtOnce: null, highestPriority: null }),
    launching: new Set(),
    refusals: new Map(),
    histories: new Map(),
    ...more,
  };
  return decideRound(given, now);
};

describe("a round", () => {
  const waitsBehind = (ahead: number): RunState["queue"] => ({
    reason: "WAITING_FOR_DEVICE",
    message: `${ahead === 0 ? "next in line" : ahead === 1 ? "1 run waits before this one" : `${ahead} runs wait before this one`}; the device is busy`,
  });

  it("has the runs that can start first, in their order, and nothing of runs that only wait", () => {
    const runs = [3, 1, 2].map((n) => run(n));
    expect(round(runs).due).toEqual([idOf(1), idOf(2), idOf(3)].map((id) => `acme.${id}`));
    const told = [1, 2, 3].map((n) => run(n, { queue: waitsBehind(n - 1) }));
    expect(round(told, { slots: { total: 1, free: 0 } })).toMatchObject({ due: [], wakeAfterMs: undefined });
    // The first one starts, so that the others are a place further.
    expect(round(told, { slots: { total: 1, free: 1 } }).due).toEqual([1, 2, 3].map((n) => `acme.${idOf(n)}`));
  });

  it("does not count who runs, is done, waits out a delay, is cancelled or has no tokens", () => {
    const runs = [1, 2, 3, 4].map((n) => run(n));
    const [a, b, c, d] = runs as [RunState, RunState, RunState, RunState];
    const place = (attempts: Attempt[], those = runs) =>
      [...round(those, { attempts, slots: { total: 4, free: 0 } }).standings.keys()].indexOf(keyOf(d));
    expect(place([])).toBe(3);
    expect(place([attempt(a, 1, { phase: "running" }), attempt(b, 1, { phase: "concluded" })])).toBe(1);
    expect(place([attempt(a, 1, failed("TRAINER_KILLED"))])).toBe(2);
    expect(place([attempt(a, 1, failed("TRAINER_KILLED", now - 500))])).toBe(3);
    expect(place([], [{ ...a, phase: "trained" }, { ...b, cancelRequested: true }, { ...c, tokens: null }, d])).toBe(0);
  });

  it("counts what runs hold, also those whose attempt is just being started, against quotas and slots", () => {
    const [a, b, c] = [run(1), run(2), run(3, { tenant: "globex" })] as [RunState, RunState, RunState];
    const quotasOf = () => ({ runsAtOnce: 1, gpusAtOnce: null, highestPriority: null });
    const slots = { total: 3, free: 3 };
    const running = round([a, b, c], { attempts: [attempt(a, 1, { phase: "running" })], quotasOf, slots });
    expect(running.standings.get(keyOf(b))).toMatchObject({ may: "wait", for: "runsAtOnce" });
    expect(running.standings.get(keyOf(c))).toEqual({ may: "start" });
    expect(running.use).toEqual(
      new Map([
        ["acme", { running: 1, gpus: 1, waiting: 2 }],
        ["globex", { running: 0, gpus: 0, waiting: 1 }],
      ]),
    );
    const starting = round([a, b, c], { launching: new Set([keyOf(a)]), quotasOf, slots });
    expect(starting.standings.get(keyOf(b))).toMatchObject({ may: "wait", for: "runsAtOnce" });
    expect(starting.due).not.toContain(keyOf(a));
    // Counted once, though it is both observed and being started.
    const both = round([a, b, c], { launching: new Set([keyOf(a)]), attempts: [attempt(a, 1, { phase: "running" })], quotasOf, slots });
    expect(both.use.get("acme")).toMatchObject({ running: 1 });
  });

  it("has a run due that its tenant may not have, and out of the line", () => {
    const refusals = new Map([[keyOf(run(1)), { code: "QUOTA_RUNS_WAITING", message: "m" }]]);
    const { due, standings } = round([run(1), run(2)], { refusals });
    expect(due).toEqual([keyOf(run(2)), keyOf(run(1))]);
    expect([...standings.keys()]).toEqual([keyOf(run(2))]);
  });

  it("is due again when a run has waited out its delay", () => {
    const waits = run(1, { attempt: 1 });
    const history: History = { ...none, lost: [{ attempt: 1, step: 0, code: "TRAINER_KILLED", message: "m" }] };
    const attempts = [attempt(waits, 1, failed("TRAINER_KILLED", now - 200))];
    expect(round([waits], { attempts, histories: new Map([[keyOf(waits), history]]) })).toMatchObject({ due: [], wakeAfterMs: 300 });
  });

  it("looks at attempts of runs that are over or unknown", () => {
    expect(round([], { attempts: [attempt(run(1), 1, { phase: "concluded" })] }).due).toEqual([keyOf(run(1))]);
  });

  const phase = fc.constantFrom<AttemptPhase>(
    { phase: "running" },
    { phase: "concluded" },
    { phase: "unknown" },
    { phase: "pending", reason: "STARTING", message: "m" },
    { phase: "pending", reason: "QUOTA", message: "m" },
    failed("TRAINER_KILLED", now - 60_000),
    failed("TRAINER_KILLED", now - 100),
    failed("PREEMPTED"),
  );
  const some = fc.record({
    tenant: fc.constantFrom("acme", "globex"),
    at: fc.nat(20),
    phase: fc.constantFrom<RunState["phase"]>("requested", "tokenized", "queued", "running", "trained"),
    hasTokens: fc.boolean(),
    cancelRequested: fc.boolean(),
    queue: fc.option(fc.nat(5).map(waitsBehind)),
    attempts: fc.array(phase, { maxLength: 3 }),
    known: fc.boolean(),
  });

  it("has the runs in line that could start, and gives every run the decision that looking at that run alone gives", () => {
    fc.assert(
      fc.property(fc.array(some, { maxLength: 30 }), fc.nat(3), (script, free) => {
        const attempts: Attempt[] = [];
        const histories = new Map<string, History>();
        const runs = script.map((one, n) => {
          const { tokens } = run(n);
          const { tenant, phase: of, cancelRequested, queue } = one;
          const made = run(n, {
            tenant,
            phase: of,
            cancelRequested,
            queue,
            tokens: one.hasTokens ? tokens : null,
            attempt: one.attempts.length,
          });
          made.requestedAt = new Date(now + one.at).toISOString();
          one.attempts.forEach((state, index) => attempts.push(attempt(made, index + 1, state)));
          const lost = attempts.flatMap((its) =>
            its.runId === made.runId && its.phase === "failed" ? [{ attempt: its.attempt, step: 0, code: its.code, message: "m" }] : [],
          );
          if (one.known) histories.set(keyOf(made), { ...none, lost });
          return made;
        });
        const result = round(runs, { attempts, histories, slots: { total: 3, free } });

        const ready = runs.filter((one) => isNaivelyReady(one, attempts)).map(keyOf);
        expect(new Set(result.standings.keys())).toEqual(new Set(ready));
        const due = new Set<string>();
        let wakeAfterMs: number | undefined;
        for (const one of runs) {
          const its = attempts.filter(({ runId }) => runId === one.runId);
          const standing = result.standings.get(keyOf(one));
          for (const action of decideRun({ run: one, attempts: its, history: histories.get(keyOf(one)) ?? none, standing }, now)) {
            if (action.kind === "wake") wakeAfterMs = Math.min(wakeAfterMs ?? Infinity, action.afterMs);
            else due.add(keyOf(one));
          }
        }
        expect(new Set(result.due)).toEqual(due);
        expect(result.wakeAfterMs).toBe(wakeAfterMs);
      }),
      { numRuns: 300 },
    );
  });
});

function isNaivelyReady(one: RunState, attempts: Attempt[]): boolean {
  const its = attempts.filter(({ runId }) => runId === one.runId);
  if (["trained", "served", "rejected", "failed", "cancelled"].includes(one.phase) || one.tokens === null || one.cancelRequested)
    return false;
  const newest = its.at(-1);
  if (its.some((other) => other.phase !== "failed")) return false;
  return newest?.phase !== "failed" || newest.code === "PREEMPTED" || newest.endedAt + 500 * 2 ** (newest.attempt - 1) <= now;
}
