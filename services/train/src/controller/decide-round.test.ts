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
  const slots = { total: 1, free: 1 };
  return decideRound({ runs: new Map(runs.map((one) => [keyOf(one), one])), attempts: [], slots, histories: new Map(), ...more }, now);
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
    expect(round(told, { slots: { total: 1, free: 1 } }).due).toEqual([`acme.${idOf(1)}`, `acme.${idOf(2)}`, `acme.${idOf(3)}`]);
  });

  it("does not count who runs, is done, waits out a delay, is cancelled or has no tokens", () => {
    const runs = [1, 2, 3, 4].map((n) => run(n));
    const [a, b, c, d] = runs as [RunState, RunState, RunState, RunState];
    const ahead = (attempts: Attempt[], those = runs) => round(those, { attempts }).line.aheadOf(keyOf(d));
    expect(ahead([])).toBe(3);
    expect(ahead([attempt(a, 1, { phase: "running" }), attempt(b, 1, { phase: "concluded" })])).toBe(1);
    expect(ahead([attempt(a, 1, failed("TRAINER_KILLED"))])).toBe(2);
    expect(ahead([attempt(a, 1, failed("TRAINER_KILLED", now - 500))])).toBe(3);
    expect(ahead([], [{ ...a, phase: "trained" }, { ...b, cancelRequested: true }, { ...c, tokens: null }, d])).toBe(0);
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

  it("gives every run the place and the decision that looking at that run alone, among all others, gives", () => {
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
        const slots = { total: 3, free };
        const result = round(runs, { attempts, histories, slots });

        const due = new Set<string>();
        let wakeAfterMs: number | undefined;
        for (const one of runs) {
          const isReady = isNaivelyReady(one, attempts);
          // The place of one that is not ready does not matter.
          const line = { ...slots, ahead: isReady ? naivePlace(one, runs, attempts) : Infinity };
          expect(isReady ? result.line.aheadOf(keyOf(one)) : Infinity).toBe(line.ahead);
          const its = attempts.filter(({ runId }) => runId === one.runId);
          for (const action of decideRun({ run: one, attempts: its, history: histories.get(keyOf(one)) ?? none, line }, now)) {
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

/** As one would say it: the runs that came earlier and could start, too. */
const naivePlace = (one: RunState, runs: RunState[], attempts: Attempt[]): number =>
  runs.filter(
    (other) =>
      isNaivelyReady(other, attempts) &&
      (other.requestedAt < one.requestedAt || (other.requestedAt === one.requestedAt && other.runId < one.runId)),
  ).length;

function isNaivelyReady(one: RunState, attempts: Attempt[]): boolean {
  const its = attempts.filter(({ runId }) => runId === one.runId);
  if (["trained", "served", "rejected", "failed", "cancelled"].includes(one.phase) || one.tokens === null || one.cancelRequested)
    return false;
  const newest = its.at(-1);
  if (its.some((other) => other.phase !== "failed")) return false;
  return newest?.phase !== "failed" || newest.code === "PREEMPTED" || newest.endedAt + 500 * 2 ** (newest.attempt - 1) <= now;
}
