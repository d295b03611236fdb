import { type BlobRef, foldRun, type RunEvent, runSpec, type RunState } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Action, decideRun, type History } from "./decide-run.ts";
import type { Standing } from "./decide-line.ts";
import { attemptNameOf } from "../attempt/attempt-spec.ts";
import type { Attempt, AttemptPhase } from "../launchers/launcher.ts";

const runId = "01JD0000000000000000000001";
const blob = (n: number): BlobRef => ({ kind: "checkpoint", digest: `sha256:${n.toString(16).padStart(64, "0")}`, size: 1 });
const spec = runSpec.parse({ base: "b", adapter: "pirate", dataset: "01JD0000000000000000000000", max_attempts: 3 });
const totals = { sequences: 1, tokens: 1, supervised: 1, evalSequences: 0, evalSupervised: 0, dropped: 0 };
const now = 1_000_000_000_000;
const iso = (ms: number) => new Date(ms).toISOString();

/** A run as the fold of its events, so that no state is tried that cannot exist. */
class Stream {
  readonly events: RunEvent[] = [];
  readonly #ids = new Set<string>();
  readonly #id: string;
  constructor(id = runId) {
    this.#id = id;
  }
  say<T extends RunEvent["type"]>(type: T, data: Extract<RunEvent, { type: T }>["data"], id: string = type): this {
    if (this.#ids.has(id)) return this;
    this.#ids.add(id);
    this.events.push({
      type,
      data,
      at: { tenant: "acme", id: this.#id },
      time: iso(now),
      seq: this.events.length + 1,
      trace: null,
    } as RunEvent);
    return this;
  }
  state(lag = 0): RunState {
    let state: RunState | undefined;
    for (const event of this.events.slice(0, Math.max(2, this.events.length - lag))) state = foldRun(state, event);
    return state as RunState;
  }
  history(): History {
    const history = { over: false, lost: [] as History["lost"][number][], checkpoint: null as History["checkpoint"] };
    for (const { type, data } of this.events) {
      if (type === "run.attempt-ended.v1") history.lost.push(data);
      if (type === "run.checkpointed.v1") history.checkpoint = { step: data.step, checkpoint: data.checkpoint };
      if (["run.trained.v1", "run.failed.v1", "run.cancelled.v1"].includes(type)) history.over = true;
    }
    return history;
  }
}
const tokenized = (id = runId) =>
  new Stream(id)
    .say("run.requested.v1", { spec })
    .say("run.tokenized.v1", { manifest: { ...blob(1), kind: "tokens" }, totals, packed: false, cacheHit: false });
const attempt = (n: number, state: AttemptPhase, id = runId): Attempt => ({
  tenant: "acme",
  runId: id,
  attempt: n,
  name: attemptNameOf(id, n),
  ...state,
});
const failed = (code: string, endedAt = now): AttemptPhase => ({ phase: "failed", code, message: `because of ${code}`, endedAt });
const must = (holds: boolean, otherwise: string): void => {
  if (!holds) throw new Error(otherwise);
};
const free: Standing = { may: "start" };
const behind = (ahead: number, total = 1): Standing => ({ may: "wait", for: "device", ahead, total });
const trained: Extract<RunEvent, { type: "run.trained.v1" }>["data"] = {
  attempt: 1,
  adapter: { ...blob(2), kind: "adapter" },
  evidence: { ...blob(3), kind: "evidence" },
  rank: 8,
  targetModules: ["q_proj"],
  parameters: 1,
  steps: 10,
  trainLoss: 1,
  trainedTokens: 1,
  tokensPerSecond: 1,
  evaluation: null,
  lastStepAt: iso(now),
};
const decide = (stream: Stream, attempts: Attempt[], standing: Standing | undefined = free, at = now) =>
  decideRun({ run: stream.state(), attempts, history: stream.history(), standing }, at);

describe("decideRun", () => {
  it("launches the first attempt when there is a slot", () => {
    expect(decide(tokenized(), [])).toEqual([{ kind: "launch", attempt: 1, resume: null }]);
  });

  it("waits for the next line when it was not ready as the line was made", () => {
    const observed = { run: tokenized().state(), attempts: [], history: tokenized().history(), standing: undefined };
    expect(decideRun(observed, now)).toEqual([{ kind: "wake", afterMs: 0 }]);
  });

  it("fails a run that its tenant may not have, also before it is tokenized, but none of which an attempt exists", () => {
    const refusal = { code: "QUOTA_RUNS_WAITING", message: "too many" };
    const of = (stream: Stream, attempts: Attempt[]) =>
      decideRun({ run: stream.state(), attempts, history: stream.history(), standing: undefined, refusal }, now);
    expect(of(new Stream().say("run.requested.v1", { spec }), [])).toEqual([{ kind: "failed", attempt: null, ...refusal }]);
    expect(of(tokenized(), [attempt(1, { phase: "running" })])).toEqual([]);
  });

  it("fails a run that asks for more than there is at all; one that has run already waits, as after a resource was taken away", () => {
    const tooLarge: Standing = { may: "wait", for: "larger-installation", slots: 9, total: 2 };
    expect(decide(tokenized(), [], tooLarge)).toEqual([
      {
        kind: "failed",
        attempt: null,
        code: "GPUS_TOO_MANY",
        message: expect.stringMatching(/^it asks for 9 GPUs, and this installation trains on 2 /),
      },
    ]);
    const again = decide(tokenized(), [attempt(1, failed("PREEMPTED"))], tooLarge);
    expect(again.map(({ kind }) => kind)).toEqual(["attempt-ended", "queued"]);
  });

  it("does nothing before the tokens are there, while it runs, and between its last word and the fold of it", () => {
    expect(decide(new Stream().say("run.requested.v1", { spec }), [])).toEqual([]);
    expect(decide(tokenized(), [attempt(1, { phase: "running" })])).toEqual([]);
    expect(decide(tokenized(), [attempt(1, { phase: "concluded" })])).toEqual([]);
  });

  it("says where it stands in line, once for each place", () => {
    const stream = tokenized();
    const [action] = decide(stream, [], behind(2));
    expect(action).toEqual({
      kind: "queued",
      attempt: 1,
      reason: "WAITING_FOR_DEVICE",
      message: "2 runs wait before this one; the device is busy",
    });
    const { message } = action as Extract<Action, { kind: "queued" }>;
    stream.say("run.queued.v1", { attempt: 1, reason: "WAITING_FOR_DEVICE", message });
    expect(decide(stream, [], behind(2))).toEqual([]);
    expect(decide(stream, [], behind(0, 2))).toMatchObject([{ message: "next in line; all 2 devices are busy" }]);
    expect(decide(stream, [], behind(1234))).toMatchObject([{ message: expect.stringMatching(/^about 1000 runs wait/) }]);
  });

  it("goes on in slices after attempts that took too long, as long as each gets further; then it fails and says why", () => {
    const stream = tokenized();
    let step = 0;
    for (let n = 1; n <= 20; n++) {
      stream.say("run.started.v1", { attempt: n, job: "x" }, `start-${n}`);
      step += 10;
      stream.say("run.checkpointed.v1", { attempt: n, step, checkpoint: blob(step) }, `checkpoint-${n}`);
      const actions = decide(stream, [attempt(n, failed("DEADLINE_EXCEEDED", now - 120_000))]);
      expect(actions[1]).toMatchObject({ kind: "launch", attempt: n + 1, resume: { step } });
      stream.say("run.attempt-ended.v1", { attempt: n, step, code: "DEADLINE_EXCEEDED", message: "m" }, `lost-${n}`);
    }
    for (const n of [21, 22]) {
      expect(decide(stream, [attempt(n, failed("DEADLINE_EXCEEDED", now - 120_000))])[1]).toMatchObject({ kind: "launch" });
      stream.say("run.attempt-ended.v1", { attempt: n, step, code: "DEADLINE_EXCEEDED", message: "m" }, `lost-${n}`);
    }
    expect(decide(stream, [attempt(23, failed("DEADLINE_EXCEEDED"))])).toMatchObject([
      { kind: "attempt-ended" },
      { kind: "failed", code: "ATTEMPTS_EXHAUSTED", message: expect.stringMatching(/3 attempts.*DEADLINE_EXCEEDED.*save_steps/) },
    ]);
  });

  it("says that an attempt waits again, and from where it goes on", () => {
    const stream = tokenized()
      .say("run.started.v1", { attempt: 1, job: "x" })
      .say("run.checkpointed.v1", { attempt: 1, step: 10, checkpoint: blob(10) });
    expect(decide(stream, [attempt(1, { phase: "pending", reason: "SUSPENDED", message: "waits in queue" })])).toEqual([
      { kind: "queued", attempt: 1, reason: "SUSPENDED", message: "its place was taken back; it goes on from step 10: waits in queue" },
    ]);
  });

  it("reports a lost attempt and launches the next one from the newest checkpoint, at once", () => {
    const stream = tokenized()
      .say("run.started.v1", { attempt: 1, job: "x" })
      .say("run.checkpointed.v1", { attempt: 1, step: 10, checkpoint: blob(10) }, "10")
      .say("run.checkpointed.v1", { attempt: 1, step: 20, checkpoint: blob(20) }, "20");
    expect(decide(stream, [attempt(1, failed("ATTEMPT_LOST"))])).toEqual([
      { kind: "attempt-ended", attempt: 1, step: 20, code: "ATTEMPT_LOST", message: "because of ATTEMPT_LOST" },
      { kind: "launch", attempt: 2, resume: { step: 20, checkpoint: blob(20) } },
      { kind: "remove", name: attemptNameOf(runId, 1) },
    ]);
  });

  it("takes the checkpoint from the stream when the folded state lags", () => {
    const stream = tokenized()
      .say("run.started.v1", { attempt: 1, job: "x" })
      .say("run.checkpointed.v1", { attempt: 1, step: 10, checkpoint: blob(10) });
    const observed = { run: stream.state(1), attempts: [attempt(1, failed("PREEMPTED"))], history: stream.history(), standing: free };
    expect(decideRun(observed, now)).toContainEqual({ kind: "launch", attempt: 2, resume: expect.objectContaining({ step: 10 }) });
  });

  it("does not report again what the courier reported", () => {
    const stream = tokenized()
      .say("run.started.v1", { attempt: 1, job: "x" })
      .say("run.attempt-ended.v1", { attempt: 1, step: 5, code: "PREEMPTED", message: "m" });
    expect(decide(stream, [attempt(1, failed("PREEMPTED"))]).map(({ kind }) => kind)).toEqual(["launch", "remove"]);
  });

  it("waits longer after each failure of its own", () => {
    const stream = tokenized();
    for (const [n, waitMs] of [
      [1, 500],
      [2, 1000],
    ] as const) {
      stream.say("run.attempt-ended.v1", { attempt: n, step: 0, code: "TRAINER_KILLED", message: "m" }, `lost-${n}`);
      const attempts = [attempt(n, failed("TRAINER_KILLED"))];
      expect(decide(stream, attempts)).toEqual([{ kind: "wake", afterMs: waitMs }]);
      expect(decide(stream, attempts, free, now + waitMs)[0]).toMatchObject({ kind: "launch", attempt: n + 1 });
    }
  });

  it("does not wait for an end in the future, which a wrong clock told", () => {
    const stream = tokenized().say("run.attempt-ended.v1", { attempt: 1, step: 0, code: "TRAINER_KILLED", message: "m" });
    expect(decide(stream, [attempt(1, failed("TRAINER_KILLED", now + 3_600_000))])[0]).toMatchObject({ kind: "launch", attempt: 2 });
  });

  it("fails the run when its attempts are used up, with the last reason", () => {
    const stream = tokenized();
    for (const n of [1, 2]) stream.say("run.attempt-ended.v1", { attempt: n, step: 0, code: "DISK_FULL", message: "m" }, `lost-${n}`);
    expect(decide(stream, [attempt(3, failed("TRAINER_KILLED"))])).toMatchObject([
      { kind: "attempt-ended", attempt: 3 },
      {
        kind: "failed",
        attempt: 3,
        code: "ATTEMPTS_EXHAUSTED",
        message: "all 3 attempts ended without a result; the last reason was TRAINER_KILLED: because of TRAINER_KILLED",
      },
    ]);
  });

  it("does not count ends from outside, until there are very many", () => {
    const stream = tokenized();
    for (let n = 1; n <= 28; n++)
      stream.say("run.attempt-ended.v1", { attempt: n, step: 0, code: "ATTEMPT_LOST", message: "m" }, `lost-${n}`);
    expect(decide(stream, [attempt(29, failed("ATTEMPT_LOST"))]).at(-2)).toMatchObject({ kind: "launch", attempt: 30 });
    stream.say("run.attempt-ended.v1", { attempt: 29, step: 0, code: "ATTEMPT_LOST", message: "m" }, "lost-29");
    expect(decide(stream, [attempt(30, failed("ATTEMPT_LOST"))]).at(-1)).toMatchObject({ kind: "failed", code: "ATTEMPTS_EXHAUSTED" });
  });

  it("does not count attempts whose credentials NATS refused, and waits longer before each: they may just be changed", () => {
    const stream = tokenized();
    for (let n = 1; n <= 7; n++)
      stream.say("run.attempt-ended.v1", { attempt: n, step: 0, code: "NATS_UNAUTHORIZED", message: "m" }, `refused-${n}`);
    const refused = [attempt(8, failed("NATS_UNAUTHORIZED"))];
    expect(decide(stream, refused).at(-1)).toEqual({ kind: "wake", afterMs: 60_000 });
    expect(decide(stream, refused, free, now + 60_000)).toContainEqual({ kind: "launch", attempt: 9, resume: null });
  });

  it("takes an attempt that started and of which nothing is left for lost", () => {
    const stream = tokenized().say("run.started.v1", { attempt: 2, job: "x" });
    expect(decide(stream, [])).toMatchObject([
      { kind: "attempt-ended", attempt: 2, code: "ATTEMPT_LOST" },
      { kind: "launch", attempt: 3 },
    ]);
  });

  it("concludes nothing from what it could not read", () => {
    expect(decide(tokenized(), [attempt(1, { phase: "unknown" })])).toEqual([{ kind: "wake", afterMs: 2000 }]);
    const cancelling = tokenized().say("run.cancel-requested.v1", {});
    expect(decide(cancelling, [attempt(1, { phase: "unknown" })])).toEqual([{ kind: "wake", afterMs: 2000 }]);
  });

  it("cancels: at once when nothing runs, else after what runs has stopped; never after the last word", () => {
    const early = new Stream().say("run.requested.v1", { spec }).say("run.cancel-requested.v1", {});
    expect(decide(early, [])).toEqual([{ kind: "cancelled" }]);
    const stream = tokenized().say("run.cancel-requested.v1", {});
    expect(decide(stream, [attempt(1, { phase: "running" })])).toEqual([{ kind: "stop", name: attemptNameOf(runId, 1) }]);
    expect(decide(stream, [attempt(1, failed("CANCELLED"))])).toEqual([{ kind: "cancelled" }]);
    expect(decide(stream, [attempt(1, { phase: "concluded" })])).toEqual([]);
    const observed = { run: stream.state(), attempts: [attempt(1, failed("COURIER_CRASHED"))], standing: free };
    expect(decideRun({ ...observed, history: { over: true, lost: [], checkpoint: null } }, now)).toEqual([]);
  });

  it("pauses: stops what runs, tells it once, starts nothing; resumed it goes on from its checkpoint, and no attempt is used up", () => {
    const stream = tokenized().say("run.pause-requested.v1", {});
    expect(decide(stream, [attempt(1, { phase: "running" })])).toEqual([{ kind: "stop", name: attemptNameOf(runId, 1) }]);
    stream.say("run.started.v1", { attempt: 1, job: "j" });
    stream.say("run.checkpointed.v1", { attempt: 1, step: 10, checkpoint: blob(10) });
    stream.say("run.attempt-ended.v1", { attempt: 1, step: 10, code: "PREEMPTED", message: "m" });
    const stopped = [attempt(1, failed("PREEMPTED"))];
    expect(decide(stream, stopped)).toEqual([
      { kind: "queued", attempt: 2, reason: "PAUSED", message: expect.stringContaining("resume") as string },
    ]);
    stream.say("run.queued.v1", { attempt: 2, reason: "PAUSED", message: "m" });
    expect(decide(stream, stopped)).toEqual([]);
    expect(decide(stream, [])).toEqual([]);
    stream.say("run.resume-requested.v1", {});
    expect(stream.state().queue).toBeNull();
    expect(decide(stream, stopped)).toContainEqual({ kind: "launch", attempt: 2, resume: { step: 10, checkpoint: blob(10) } });
    const cancelled = stream.say("run.pause-requested.v1", {}).say("run.cancel-requested.v1", {});
    expect(decide(cancelled, stopped)).toEqual([{ kind: "cancelled" }]);
  });

  it("cleans up when the run is over, and lets the courier of a trained run end by itself", () => {
    const name = attemptNameOf(runId, 1);
    const done = tokenized().say("run.trained.v1", trained);
    expect(decide(done, [attempt(1, { phase: "running" })])).toEqual([]);
    expect(decide(done, [attempt(1, { phase: "concluded" })])).toEqual([{ kind: "remove", name }]);
    const cancelled = tokenized().say("run.cancelled.v1", {});
    expect(decide(cancelled, [attempt(1, { phase: "running" })])).toEqual([{ kind: "stop", name }]);
    expect(decide(cancelled, [attempt(1, failed("CANCELLED"))])).toEqual([{ kind: "remove", name }]);
  });
});

describe("a run under a controller that dies anywhere, sees old state, and meets failures", () => {
  const codes = ["PREEMPTED", "ATTEMPT_LOST", "TRAINER_KILLED", "DISK_FULL", "COURIER_CRASHED"] as const;
  const event = fc.oneof(
    {
      weight: 20,
      arbitrary: fc.record({
        do: fc.constant("reconcile" as const),
        lag: fc.nat(3),
        dieAfter: fc.option(fc.nat(2), { nil: 99 }),
        free: fc.nat(1),
      }),
    },
    { weight: 6, arbitrary: fc.record({ do: fc.constant("fail" as const), code: fc.constantFrom(...codes), reported: fc.boolean() }) },
    { weight: 5, arbitrary: fc.record({ do: fc.constant("checkpoint" as const) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("train" as const), crash: fc.boolean() }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("cancel" as const) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("pause" as const) }) },
    { weight: 5, arbitrary: fc.record({ do: fc.constant("pass" as const), ms: fc.integer({ min: 100, max: 100_000 }) }) },
  );

  it("runs one attempt at a time, starts none after the end, uses no number twice, and comes to rest", () => {
    fc.assert(
      fc.property(fc.array(event, { maxLength: 60, size: "max" }), (script) => {
        const stream = tokenized();
        const jobs = new Map<number, Attempt>();
        const used = new Set<number>();
        let clock = now;
        let step = 0;
        const running = () => [...jobs.values()].filter(({ phase }) => phase === "running");
        const isOver = () => stream.history().over;

        const act = (action: Action): void => {
          switch (action.kind) {
            case "launch":
              must(!isOver(), "launched after the end");
              must(running().length === 0, "two attempts at once");
              must(!used.has(action.attempt), "a number used twice");
              used.add(action.attempt);
              must((action.resume?.step ?? 0) === (stream.history().checkpoint?.step ?? 0), "not resumed from the newest checkpoint");
              jobs.set(action.attempt, attempt(action.attempt, { phase: "running" }));
              stream.say("run.started.v1", { attempt: action.attempt, job: "j" }, `started-${action.attempt}`);
              return;
            case "stop":
              for (const job of running())
                if (job.name === action.name) jobs.set(job.attempt, attempt(job.attempt, failed("CANCELLED", clock)));
              return;
            case "remove":
              for (const job of jobs.values())
                if (job.name === action.name) {
                  must(job.phase !== "running", "removed while it runs");
                  jobs.delete(job.attempt);
                }
              return;
            case "attempt-ended":
              stream.say("run.attempt-ended.v1", action, `attempt-ended-${action.attempt}`);
              return;
            case "failed":
              must(!isOver(), "failed after the end");
              stream.say("run.failed.v1", action);
              return;
            case "cancelled":
              must(!isOver(), "cancelled after the end");
              stream.say("run.cancelled.v1", {});
              return;
            case "queued":
              stream.say("run.queued.v1", action, `queued-${action.attempt}-${action.message}`);
              return;
            case "wake":
              must(action.afterMs > 0, "a busy loop");
              return;
          }
        };
        const reconcile = (lag: number, free: number, dieAfter: number): Action[] => {
          const standing = free > 0 ? ({ may: "start" } as const) : behind(0, 2);
          const actions = decideRun({ run: stream.state(lag), attempts: [...jobs.values()], history: stream.history(), standing }, clock);
          actions.slice(0, dieAfter).forEach(act);
          return actions;
        };

        for (const happens of script) {
          const [job] = running();
          if (happens.do === "reconcile") reconcile(happens.lag, happens.free, happens.dieAfter);
          if (happens.do === "pass") clock += happens.ms;
          if (happens.do === "cancel" && !isOver()) stream.say("run.cancel-requested.v1", {});
          if (happens.do === "pause" && !isOver())
            stream.say(`run.${stream.state().paused === true ? "resume" : "pause"}-requested.v1`, {});
          if (job === undefined) continue;
          if (happens.do === "checkpoint") {
            step += 10;
            stream.say("run.checkpointed.v1", { attempt: job.attempt, step, checkpoint: blob(step) }, `step-${step}`);
          }
          if (happens.do === "fail") {
            if (happens.reported)
              stream.say(
                "run.attempt-ended.v1",
                { attempt: job.attempt, step, code: happens.code, message: "m" },
                `attempt-ended-${job.attempt}`,
              );
            jobs.set(job.attempt, attempt(job.attempt, failed(happens.code, clock)));
          }
          if (happens.do === "train") {
            stream.say("run.trained.v1", trained);
            jobs.set(job.attempt, attempt(job.attempt, happens.crash ? failed("COURIER_CRASHED", clock) : { phase: "concluded" }));
          }
          expect(running().length).toBeLessThanOrEqual(1);
        }

        if (!isOver()) stream.say("run.resume-requested.v1", {});
        // Nothing disturbs it any more: it gets its slot, trains, and comes to rest.
        let settled: Action[] = [];
        for (let round = 0; round < 60; round++) {
          clock += 60_000;
          settled = reconcile(0, 1, 99);
          const [job] = running();
          if (job !== undefined && !stream.state().cancelRequested) {
            stream.say("run.trained.v1", trained);
            jobs.set(job.attempt, attempt(job.attempt, { phase: "concluded" }));
          }
        }
        expect(settled).toEqual([]);
        expect(["trained", "failed", "cancelled"]).toContain(stream.state().phase);
        expect([...jobs.values()]).toEqual([]);
        expect(stream.events.filter(({ type }) => ["run.trained.v1", "run.failed.v1", "run.cancelled.v1"].includes(type))).toHaveLength(1);
      }),
      { numRuns: 500 },
    );
  });
});
