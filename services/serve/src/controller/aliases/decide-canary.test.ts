import { type AdapterState, type AdapterVersion, type CanarySettings, canarySettings, type TrafficState } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { judgeCanaryLoss, moveAlias, startCanary } from "./alias-moves.ts";
import { type AliasCommand, decideAlias } from "./decide-alias.ts";
import { type CanaryView, decideCanary, provenWithinMs } from "./decide-canary.ts";
import { withLine } from "./history-lines.ts";
import { applyKeep } from "../versions/decide-keep.ts";
import { applyServed } from "../versions/decide-versions.ts";

const start = Date.parse("2026-01-01T00:00:00.000Z");
const iso = (ms: number): string => new Date(start + ms).toISOString();
const digest = `sha256:${"a".repeat(64)}` as const;
const versionOf = (version: number, over: Partial<AdapterVersion> = {}): AdapterVersion => ({
  version,
  digest,
  manifest: { kind: "adapter", digest, size: 1 },
  evidence: { kind: "evidence", digest, size: 1 },
  runId: `run-${version}`,
  rank: 8,
  engineName: `acme.pirate.v${version}`,
  status: "desired",
  reason: null,
  promote: "auto",
  evaluation: { base_loss: 3, adapter_loss: 3 - version, rows: 10, supervised_tokens: 100 },
  lastStepAt: iso(0),
  createdAt: iso(0),
  servedAt: iso(0),
  trace: null,
  ...over,
});
const adapter = (versions = [versionOf(1), versionOf(2)], alias: number | null = 1): AdapterState => ({
  tenant: "acme",
  adapter: "pirate",
  engine: "local",
  base: "small",
  versions,
  alias,
  history: alias === null ? [] : [{ from: null, to: alias, kind: "promoted", by: null, reason: "proven", at: iso(0) }],
});
const settings = (over: Partial<CanarySettings> = {}): CanarySettings =>
  canarySettings.parse({ steps: [5, 50], interval_s: 60, min_requests: 20, ...over });
const cause = { by: "ann", reason: "canary requested", at: iso(0), command: 7 };
const started = (over: Partial<CanarySettings> = {}, of = adapter()): AdapterState => startCanary(of, 2, settings(over), cause);

type Counts = [requests: number, errors?: number, p95?: number, p50?: number];
const report = (counts: Record<number, Counts>, over: { gateway?: string; at?: number; since?: number } = {}): TrafficState => ({
  gateway: over.gateway ?? "g1",
  at: iso(over.at ?? 0),
  windowMs: 60_000,
  engines: Object.entries(counts).map(([version, [requests, errors = 0, p95 = 20, p50 = Math.min(p95, 10)]]) => ({
    engineName: `acme.pirate.v${version}`,
    engine: "local",
    inFlight: {},
    total: { requests, errors, firstByteMs: requests * 20, promptTokens: 0, completionTokens: 0, since: iso(over.since ?? 1) },
    window: { requests, firstByteP50Ms: p50, firstByteP95Ms: p95 },
  })),
});
const view = (afterMs: number, traffic: TrafficState[] = [], proven: (version: number) => number = () => 1): CanaryView => ({
  traffic,
  provenOn: ({ version }) => proven(version),
  now: start + afterMs,
});
const lines = ({ history }: AdapterState) => history.map(({ kind, to, share, outcome, by }) => [kind, to, share ?? outcome ?? null, by]);

/** Decides until there is nothing left to do at that time. */
function decideUntilStable(state: AdapterState, at: CanaryView): AdapterState {
  let current = state;
  for (let i = 0; i < 10; i++) {
    const decision = decideCanary(current, at);
    if (decision.kind === "wait") return current;
    current = decision.state;
  }
  throw new Error("never comes to rest");
}

describe("a canary that does well", () => {
  it("takes its steps, each after its time and its answers, and then has the alias", () => {
    const state = started();
    expect(state.canary).toMatchObject({ version: 2, from: 1, step: 0, share: 5, since: iso(0), by: "ann" });
    expect(decideCanary(state, view(59_000, [report({ 1: [900], 2: [40] }, { at: 59_000 })]))).toEqual({
      kind: "wait",
      why: "step 1 of 2 goes on for 1 s",
    });
    expect(decideCanary(state, view(61_000, [report({ 1: [900], 2: [19] }, { at: 61_000 })]))).toEqual({
      kind: "wait",
      why: "19 of 20 answers of step 1 are there",
    });
    const second = decideUntilStable(state, view(61_000, [report({ 1: [900], 2: [20] }, { at: 61_000 })]));
    expect(second.canary).toMatchObject({
      step: 1,
      share: 50,
      since: iso(61_000),
      baseline: { g1: { version: { requests: 20 }, from: { requests: 900 } } },
    });
    // What was counted before the step does not count in it.
    expect(decideCanary(second, view(122_000, [report({ 2: [39] }, { at: 122_000 })]))).toMatchObject({
      kind: "wait",
      why: "19 of 20 answers of step 2 are there",
    });
    const done = decideUntilStable(second, view(122_000, [report({ 2: [40] }, { at: 122_000 })]));
    expect(done).toMatchObject({ alias: 2, canary: null });
    expect(lines(done).slice(1)).toEqual([
      ["canary-started", 2, 5, "ann"],
      ["canary-stepped", 2, 50, "ann"],
      ["canary-ended", 2, "promoted", "ann"],
      ["promoted", 2, null, "ann"],
    ]);
    expect(done.history.at(-1)?.reason).toBe("step 2 of 2 (50 %) passed: 20 answers, 0 failed");
  });

  it("of an older version is promoted, not rolled back to", () => {
    const begun = startCanary(adapter([versionOf(1), versionOf(2)], 2), 1, settings({ steps: [50] }), cause);
    const done = decideUntilStable(begun, view(61_000, [report({ 2: [900], 1: [20] }, { at: 61_000 })]));
    expect(done).toMatchObject({ alias: 1, canary: null });
    expect(lines(done).slice(2)).toEqual([
      ["canary-ended", 1, "promoted", "ann"],
      ["promoted", 1, null, "ann"],
    ]);
  });

  it("never takes two steps at one time, however often it is decided, by whomever (property)", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 500_000 }), fc.integer({ min: 0, max: 1000 }), (at, requests) => {
        const now = view(at, [report({ 1: [100], 2: [requests] }, { at })]);
        const rested = decideUntilStable(started(), now);
        expect(rested.canary?.step ?? 2).toBeLessThanOrEqual(1);
        expect(decideCanary(rested, now).kind).toBe("wait");
      }),
    );
  });

  it("adds up what all gateways counted, also one that is gone and one that came later", () => {
    const state = { ...started(), canary: { ...started().canary!, baseline: { g1: { version: { requests: 100, errors: 3 } } } } };
    const reports = [
      report({ 2: [108, 3] }, { at: 30_000, since: -1 }), // ended since
      report({ 2: [7] }, { gateway: "g2", at: 61_000, since: 30_000 }),
      report({ 2: [4] }, { gateway: "g3", at: 61_000, since: 30_000 }),
    ];
    expect(decideCanary(state, view(61_000, reports))).toMatchObject({ why: "19 of 20 answers of step 1 are there" });
    expect(decideCanary(state, view(61_000, [...reports, report({ 2: [1] }, { gateway: "g4", at: 61_000, since: 30_000 })]))).toMatchObject(
      { kind: "step" },
    );
  });

  it("does not count what a gateway counted before the step, though the baseline does not tell it", () => {
    const old = report({ 1: [5000, 50], 2: [40] }, { at: 61_000, since: -1000 });
    const noted = decideCanary(started(), view(61_000, [old]));
    expect(noted).toMatchObject({
      kind: "note",
      state: { canary: { baseline: { g1: { version: { requests: 40, errors: 0 }, from: { requests: 5000, errors: 50 } } } } },
    });
    if (noted.kind !== "note") return;
    expect(decideCanary(noted.state, view(61_000, [old]))).toMatchObject({ kind: "wait", why: "0 of 20 answers of step 1 are there" });
    // A gateway that forgot the name counts anew.
    expect(decideCanary(noted.state, view(61_000, [report({ 2: [20] }, { at: 61_000, since: -1000 })]))).toMatchObject({ kind: "step" });
  });
});

describe("a canary that does worse is rolled back", () => {
  const ended = (state: AdapterState, at: CanaryView) => {
    const decision = decideCanary(state, at);
    return decision.kind === "rollback"
      ? { alias: decision.state.alias, canary: decision.state.canary, ...decision.state.history.at(-1) }
      : decision;
  };

  it("when more of its answers fail, as soon as not even flawless ones could mend it", () => {
    const failing = (requests: number, errors: number, usual: Counts = [1000, 0]) =>
      ended(started({ max_error_rate: 0.1 }), view(5000, [report({ 1: usual, 2: [requests, errors] }, { at: 5000 })]));
    expect(failing(2, 2)).toMatchObject({ kind: "wait" }); // 2 of the 20 that there will be: 10 %
    expect(failing(3, 3)).toMatchObject({
      alias: 1,
      canary: null,
      kind: "canary-ended",
      outcome: "rolledback",
      code: "CANARY_ERRORS",
      by: null,
    });
    expect(failing(3, 3)).toMatchObject({
      reason: "3 of 3 answers of version 2 failed, 0.0 % of version 1's do; at most 10.0 % more are allowed of 20",
    });
    expect(failing(100, 11)).toMatchObject({ code: "CANARY_ERRORS" });
    expect(failing(100, 10)).toMatchObject({ kind: "wait" });
    // The promoted version fails as often: nothing that the canary brought.
    expect(failing(100, 30, [1000, 250])).toMatchObject({ kind: "wait" });
    expect(failing(100, 36, [1000, 250])).toMatchObject({ code: "CANARY_ERRORS" });
  });

  it("when its first byte takes longer, where there are enough to compare", () => {
    const slow = (its: Counts, usual: Counts) => ended(started(), view(5000, [report({ 1: usual, 2: its }, { at: 5000 })]));
    expect(slow([50, 0, 90], [50, 0, 40])).toMatchObject({ code: "CANARY_SLOW", reason: expect.stringContaining("90 ms") });
    expect(slow([50, 0, 80], [50, 0, 40])).toMatchObject({ kind: "wait" });
    expect(slow([9, 0, 900], [50, 0, 40])).toMatchObject({ kind: "wait" });
    expect(slow([50, 0, 900], [9, 0, 40])).toMatchObject({ kind: "wait" });
    expect(slow([50, 0, 4], [50, 0, 1])).toMatchObject({ kind: "wait" }); // noise
    // A report of long ago says nothing about now.
    expect(ended(started(), view(50_000, [report({ 1: [50, 0, 40], 2: [50, 0, 900] }, { at: 5000 })]))).toMatchObject({ kind: "wait" });
  });

  it("when its first byte takes longer, which neither one answer decides nor one gateway with few of them", () => {
    const slow = (...reports: Record<number, Counts>[]) => {
      const traffic = reports.map((counts, n) => report(counts, { gateway: `g${n}`, at: 5000 }));
      return ended(started(), view(5000, traffic));
    };
    // Of up to 19 answers the 95th percentile is the slowest one.
    expect(slow({ 1: [50, 0, 40], 2: [19, 0, 900] })).toMatchObject({ kind: "wait" });
    expect(slow({ 1: [50, 0, 40], 2: [20, 0, 900] })).toMatchObject({ code: "CANARY_SLOW" });
    const few: Record<number, Counts> = { 1: [5, 0, 40], 2: [5, 0, 900] };
    expect(slow(few, few, few)).toMatchObject({ code: "CANARY_SLOW" });
    // The second gateway has just been started.
    const usual: Record<number, Counts> = { 1: [100, 0, 40], 2: [100, 0, 40] };
    expect(slow(usual, { 1: [30, 0, 40], 2: [30, 0, 900] })).toMatchObject({ kind: "wait" });
    expect(slow(usual, { 1: [30, 0, 40], 2: [30, 0, 900, 450] })).toMatchObject({ code: "CANARY_SLOW" });
  });

  it("when its version is refused or retired", () => {
    const reason = { code: "X", message: "files differ" };
    const gone = started({}, adapter([versionOf(1), versionOf(2)]));
    const refused = {
      ...gone,
      versions: gone.versions.map((known) => (known.version === 2 ? { ...known, status: "refused" as const, reason } : known)),
    };
    expect(ended(refused, view(5000))).toMatchObject({ code: "CANARY_VERSION_GONE", reason: "version 2 is refused: files differ" });
  });

  it("when it is proven nowhere for long while the promoted version is; until then it is paused", () => {
    const lost = (version: number) => (version === 2 ? 0 : 1);
    const paused = decideUntilStable(started(), view(5000, [], lost));
    expect(paused.canary).toMatchObject({ unprovenSince: iso(5000), share: 5 });
    expect(ended(paused, view(5000 + provenWithinMs - 1000, [], lost))).toMatchObject({
      kind: "wait",
      why: expect.stringContaining("paused"),
    });
    // The whole engine is away: nothing that the canary did.
    expect(
      ended(
        paused,
        view(5000 + 10 * provenWithinMs, [], () => 0),
      ),
    ).toMatchObject({ kind: "wait" });
    expect(ended(paused, view(5000 + provenWithinMs, [], lost))).toMatchObject({ alias: 1, code: "CANARY_NOT_PROVEN" });
    const again = decideUntilStable(paused, view(9000, [report({ 2: [30] }, { at: 9000, since: 1 })]));
    expect(again.canary).toMatchObject({ unprovenSince: null, since: iso(9000), step: 0, baseline: { g1: { version: { requests: 30 } } } });
  });
});

describe("judged loss", () => {
  it("keeps a canary from beginning when it is too high, or cannot be compared", () => {
    const judged = (loss: number, over = {}) =>
      judgeCanaryLoss(
        adapter(),
        versionOf(2, { evaluation: { base_loss: 3, adapter_loss: loss, rows: 10, supervised_tokens: 100, ...over } }),
        settings({ max_loss_increase: 0.1 }),
      )?.code;
    expect(judged(2.09)).toBeUndefined();
    expect(judged(2.11)).toBe("CANARY_LOSS");
    expect(judged(1, { rows: 11 })).toBe("CANARY_LOSS_NOT_COMPARABLE");
    expect(judgeCanaryLoss(adapter(), versionOf(2, { evaluation: null }), settings())).toBeUndefined();
  });
});

describe("a run with promote: canary", () => {
  const proven = { kind: "served" as const, version: 2, replicas: 3, of: 3, provenAt: iso(1000) };
  const trained = (over: Partial<AdapterVersion> = {}, alias: number | null = 1) =>
    adapter([versionOf(1), versionOf(2, { promote: "canary", canary: settings(), servedAt: null, ...over })], alias);
  it("begins its canary when it is proven, with its own settings", () => {
    const state = applyServed(trained(), proven, iso(1000));
    expect(state).toMatchObject({ alias: 1, canary: { version: 2, share: 5, by: null }, versions: [{}, { servedOn: 3 }] });
    expect(state.history.at(-1)).toMatchObject({ kind: "canary-started", reason: "proven on 3 replicas" });
    expect(applyServed(state, proven, iso(2000))).toBe(state);
  });
  it("is promoted at once where nothing is promoted yet", () => {
    expect(applyServed(trained({}, null), proven, iso(1000))).toMatchObject({ alias: 2, history: [{ kind: "promoted" }] });
    expect(applyServed(trained({}, null), proven, iso(1000)).canary).toBeUndefined();
  });
  it("is told when it may not begin", () => {
    const state = applyServed(trained({ canary: settings({ max_loss_increase: 0 }), evaluation: null }), proven, iso(1000));
    expect(state).toMatchObject({ alias: 1, versions: [{}, { servedAt: iso(1000) }] });
    expect(state.history.at(-1)).toMatchObject({ kind: "canary-ended", outcome: "rolledback", code: "CANARY_LOSS_NOT_COMPARABLE" });
  });
});

describe("commands while a canary is under way", () => {
  const three = () => startCanary(adapter([versionOf(1), versionOf(2), versionOf(3)]), 2, settings(), cause);
  const command = (over: Partial<AliasCommand>, state = three()) => {
    const replica = {
      engine: "local",
      base: "small",
      replica: "a",
      incarnation: "1",
      url: "",
      ready: true,
      at: iso(0),
      adapters: state.versions.map(({ version, engineName }) => ({
        tenant: "acme",
        adapter: "pirate",
        version,
        digest,
        engineName,
        state: "proven" as const,
        proof: null,
        error: null,
        at: iso(0),
      })),
    };
    const decision = decideAlias(
      state,
      { kind: "promote", version: null, by: "bob", seq: 9, ...over },
      { name: "acme/pirate", replicas: [replica], now: start },
    );
    if (decision.kind !== "move") return decision;
    const { alias, canary, history } = decision.state;
    return {
      alias,
      canary: canary?.version ?? null,
      told: lines(decision.state).slice(state.history.length),
      seq: history.at(-1)?.command,
    };
  };
  it.each<[string, Partial<AliasCommand>, object]>([
    [
      "promote its version: the alias moves at once",
      { version: 2 },
      {
        alias: 2,
        canary: null,
        told: [
          ["canary-ended", 2, "promoted", "bob"],
          ["promoted", 2, null, "bob"],
        ],
      },
    ],
    [
      "promote another version: it is over",
      { version: 3 },
      {
        alias: 3,
        canary: null,
        told: [
          ["canary-ended", 2, "superseded", "bob"],
          ["promoted", 3, null, "bob"],
        ],
      },
    ],
    [
      "promote the promoted version: it is over",
      { version: 1 },
      { alias: 1, canary: null, told: [["canary-ended", 2, "superseded", "bob"]] },
    ],
    [
      "roll back: it is over, the alias stays",
      { kind: "rollback" },
      { alias: 1, canary: null, told: [["canary-ended", 2, "rolledback", "bob"]] },
    ],
    [
      "a canary of another version takes its place",
      { version: 3, canary: settings() },
      {
        alias: 1,
        canary: 3,
        told: [
          ["canary-ended", 2, "superseded", "bob"],
          ["canary-started", 3, 5, "bob"],
        ],
      },
    ],
    [
      "a canary of the same version begins anew",
      { version: 2, canary: settings() },
      {
        alias: 1,
        canary: 2,
        told: [
          ["canary-ended", 2, "superseded", "bob"],
          ["canary-started", 2, 5, "bob"],
        ],
      },
    ],
  ])("%s", (_what, over, expected) => {
    expect(command(over)).toEqual({ ...expected, seq: 9 });
  });
  it("that were followed already change nothing", () => {
    expect(command({ seq: 7, version: 3 })).toMatchObject({ kind: "nothing" });
  });
  it("that come after a later one was followed change nothing", () => {
    expect(command({ seq: 6, version: 3 })).toEqual({ kind: "nothing", why: "a later command was followed already" });
  });
  it("that cannot be judged as they ask are rejected", () => {
    const state = adapter([versionOf(1), versionOf(2, { evaluation: null })]);
    expect(command({ version: 2, canary: settings({ max_loss_increase: 1 }) }, state)).toMatchObject({
      kind: "reject",
      problem: { code: "CANARY_LOSS_NOT_COMPARABLE" },
    });
  });
  it("roll back to an earlier version goes there and ends it", () => {
    const state = startCanary(moveAlias(adapter([versionOf(1), versionOf(2), versionOf(3)]), 2, cause), 3, settings(), cause);
    expect(command({ kind: "rollback", version: 1 }, state)).toMatchObject({
      alias: 1,
      canary: null,
      told: [
        ["canary-ended", 3, "superseded", "bob"],
        ["rolledback", 1, null, "bob"],
      ],
    });
  });
});

it("an adapter that lives long stays small, and its moves keep their numbers", () => {
  let state = adapter([versionOf(1)]);
  for (let number = 2; number <= 1500; number++) {
    const versions = [...state.versions, versionOf(number, { servedAt: null, promote: "canary", canary: settings() })];
    state = applyServed({ ...state, versions }, { kind: "served", version: number, replicas: 1, of: 1, provenAt: iso(0) }, iso(0));
    state = moveAlias(state, number, cause);
  }
  // NATS takes messages of 1 MB.
  expect(JSON.stringify(state).length).toBeLessThan(600_000);
  expect(state).toMatchObject({ alias: 1500, canary: null });
  const numbers = state.history.map(({ n }) => n ?? 0);
  expect(numbers).toEqual(numbers.map((_, i) => (numbers[0] ?? 0) + i));
  // Each of the 1499 canaries began, ended and was promoted; all but the newest three versions were retired.
  expect(numbers.at(-1)).toBe(1 + 3 * 1499 + 1497);
  expect(state.versions.filter(({ status }) => status === "desired").map(({ version }) => version)).toEqual([1498, 1499, 1500]);
});

it("versions that are loaded again and again do not push the moves of the alias out of the history", () => {
  let state = adapter([versionOf(1), versionOf(2), versionOf(3)]);
  for (const version of [2, 3, 1, 2]) state = moveAlias(state, version, cause);
  const moves = state.history.filter(({ kind }) => kind === "promoted" || kind === "rolledback");
  expect(moves).toHaveLength(5);
  for (let n = 0; n < 1000; n++) state = withLine(state, { from: null, to: 3, kind: "recalled", ...cause });
  expect(state.history.slice(0, 5)).toEqual(moves);
  expect(state.history).toHaveLength(300);
  expect(state.history.at(-1)).toMatchObject({ kind: "recalled", n: 1005 });
  for (let n = 0; n < 1000; n++) state = moveAlias(state, (n % 2) + 1, cause);
  expect(state.history).toHaveLength(300);
  expect(state.history.at(-1)).toMatchObject({ n: 2005 });
});

it("a canary's version is not let go of, however many come after it", () => {
  const versions = [1, 2, 3, 4, 5, 6].map((version) => versionOf(version));
  const state = startCanary(adapter(versions), 2, settings(), cause);
  expect(applyKeep(state, iso(0)).versions.map(({ status }) => status)).toEqual([
    "desired",
    "desired",
    "retired",
    "desired",
    "desired",
    "desired",
  ]);
});
