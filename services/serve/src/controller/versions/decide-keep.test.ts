import { type AdapterState, adapterState } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { moveAlias } from "../aliases/alias-moves.ts";
import { type AliasCommand, decideAlias } from "../aliases/decide-alias.ts";
import { awaitMs, decideAwaiting } from "../aliases/decide-awaiting.ts";
import { applyKeep, decideDelete, nextLapse, overKept, retiredKept, rollbackTarget, wantedForMs, wantVersion } from "./decide-keep.ts";
import { addVersion, applyRefused, applyServed, versionOfRun } from "./decide-versions.ts";
import { added, now, replica, serve, served, statuses, time, withVersions } from "./versions-under-test.ts";

const many = (count: number): number[] => Array.from({ length: count }, (_, i) => i + 1);
const five = serve(withVersions(5), ...many(5));
const cause = { by: "ann", reason: "asked for by name", at: time() };
const linesOf = (state: AdapterState, ...kinds: string[]) =>
  state.history.filter(({ kind }) => kinds.length === 0 || kinds.includes(kind)).map(({ kind, to }) => `${kind} ${to}`);
const later = (ms: number): string => new Date(now + ms).toISOString();

describe("applyKeep", () => {
  it("takes no place of a checkpoint's, and rolls back to one only if it was promoted", () => {
    const checkpoint = (n: number) => added(n, { runId: "run-1", checkpoint: { runId: "run-1", step: n }, promote: "manual" });
    const state = serve(addVersion(addVersion(withVersions(2), checkpoint(3)), added(4)), 1, 2, 3, 4);
    expect(statuses(state)).toEqual(["1:desired", "2:desired", "3:retired", "4:desired"]);
    // The same checkpoint is the same version, and its run's own one is another.
    expect(addVersion(state, checkpoint(3)).versions).toHaveLength(4);
    expect(versionOfRun(state, "run-1")?.version).toBe(1);
    expect([state.alias, rollbackTarget(state)]).toEqual([4, 2]);
    const promoted = moveAlias(wantVersion(state, 3, cause), 3, cause);
    expect(statuses(promoted)).toContain("3:desired");
    expect(rollbackTarget(moveAlias(promoted, 4, cause))).toBe(3);
  });

  it("keeps the newest three, the promoted one, the one before it, and all that are still waited for", () => {
    expect(statuses(serve(withVersions(6), 1, 2, 3, 4, 5))).toEqual([
      "1:retired",
      "2:retired",
      "3:desired",
      "4:desired",
      "5:desired",
      "6:desired",
    ]);
    let state = moveAlias(serve(withVersions(3), 1, 2, 3), 2, cause);
    for (let n = 4; n <= 8; n++) state = serve(addVersion(state, added(n, { promote: "manual" })), n);
    expect(statuses(state)).toEqual([
      "1:desired",
      "2:desired",
      "3:retired",
      "4:retired",
      "5:retired",
      "6:desired",
      "7:desired",
      "8:desired",
    ]);
  });
  it("says in the history which version was retired, for which, and why", () => {
    expect(five.history.filter(({ kind }) => kind === "retired")).toMatchObject([
      { to: 1, because: 4, by: null, reason: "the 3 newest versions are kept (keep: 3)" },
      { to: 2, because: 5 },
    ]);
    expect(adapterState.shape.history.parse(five.history)).toEqual(five.history);
  });
  it("keeps as many as the adapter's policy says, which its newest run sets", () => {
    expect(statuses(serve(withVersions(4, { keep: 1 }), 1, 2, 3, 4))).toEqual(["1:retired", "2:retired", "3:desired", "4:desired"]);
    const all = serve(withVersions(9, { keep: "all" }), ...many(9));
    expect(statuses(all)).toEqual(many(9).map((version) => `${version}:desired`));
    const two = addVersion(all, added(10, { keep: 2 }));
    expect(statuses(two)).toEqual([...many(7).map((version) => `${version}:retired`), "8:desired", "9:desired", "10:desired"]);
    expect(addVersion(two, added(11)).keep).toBe(2);
  });
  it("loads the newest again when more are to be kept", () => {
    const more = applyKeep({ ...five, keep: 4 }, time());
    expect(statuses(more)).toEqual(["1:retired", "2:desired", "3:desired", "4:desired", "5:desired"]);
    expect(linesOf(more, "recalled")).toEqual(["recalled 2"]);
    // Nowhere, until placement has said where there is room.
    expect(more.versions[1]).toMatchObject({ replicas: [] });
    expect(statuses(applyKeep({ ...five, keep: "all" }, time()))).toEqual(many(5).map((version) => `${version}:desired`));
  });
  it("never retires what has not been served", () => {
    const state = withVersions(9);
    expect(applyKeep(state, time())).toBe(state);
  });
  it("knows of the newest retired ones, and of the newest that are over, so that the entry stays small", () => {
    let state = withVersions(1, { keep: 1 });
    for (let n = 2; n <= 1000; n++) state = serve(addVersion(state, added(n)), n - 1);
    state = serve(state, 1000);
    expect(state.versions.filter(({ status }) => status === "retired")).toHaveLength(retiredKept);
    expect(state.versions.at(-1)?.version).toBe(1000);
    for (let n = 1001; n <= 1300; n++)
      state = applyRefused(addVersion(state, added(n)), { kind: "refused", version: n, problem: { code: "X", message: "x" } });
    // Of those that are refused as well, as soon as something is served.
    state = serve(addVersion(state, added(1301)), 1301);
    expect(state.versions.filter(({ status }) => status === "refused")).toHaveLength(overKept);
    expect(addVersion(state, added(1302)).versions.at(-1)?.version).toBe(1302);
  });
  it("applied again to its own result changes nothing, whatever happened before (property)", () => {
    expect.hasAssertions();
    const step = fc.oneof(
      fc.record({ kind: fc.constant("add" as const) }),
      fc.record({ kind: fc.constant("serve" as const), version: fc.integer({ min: 1, max: 9 }) }),
      fc.record({ kind: fc.constant("want" as const), version: fc.integer({ min: 1, max: 9 }), atMs: fc.integer({ min: 0, max: 4 }) }),
      fc.record({ kind: fc.constant("keep" as const), keep: fc.constantFrom<1 | 2 | 5 | "all">(1, 2, 5, "all") }),
      fc.record({ kind: fc.constant("delete" as const), version: fc.integer({ min: 1, max: 9 }) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
        let state = withVersions(1);
        let at = time();
        for (const [command, each] of steps.entries()) {
          if (each.kind === "add") state = addVersion(state, added(state.versions.length + 1));
          else if (each.kind === "serve") state = applyServed(state, served(each.version), at);
          else if (each.kind === "want") {
            at = later(each.atMs * wantedForMs);
            state = wantVersion(state, each.version, { ...cause, at });
          } else if (each.kind === "keep") state = applyKeep({ ...state, keep: each.keep }, at);
          else {
            const decision = decideDelete(state, { name: "x", version: each.version, by: null, at, command });
            if (decision.kind === "delete") state = decision.state;
          }
          const once = applyKeep(state, at);
          expect(applyKeep(once, at)).toBe(once);
          const promoted = once.versions.find(({ version }) => version === once.alias);
          expect(once.alias === null || promoted?.status === "desired").toBe(true);
          expect(() => adapterState.shape.history.parse(once.history)).not.toThrow();
        }
      }),
    );
  });
});

describe("wantVersion", () => {
  const wanted = wantVersion(five, 1, cause);
  it("loads a retired version again, and keeps it until nobody has asked for a while", () => {
    expect(statuses(wanted)).toEqual(["1:desired", "2:retired", "3:desired", "4:desired", "5:desired"]);
    expect(wanted.versions[0]).toMatchObject({ wanted: { at: time(), until: later(wantedForMs) }, replicas: [] });
    expect(wanted.history.at(-1)).toMatchObject({ kind: "recalled", to: 1, by: "ann", reason: "asked for by name" });
    // A newer version comes meanwhile.
    const six = serve(addVersion(wanted, added(6)), 6);
    expect(statuses(six)).toEqual(["1:desired", "2:retired", "3:retired", "4:desired", "5:desired", "6:desired"]);
    expect(nextLapse(wanted)).toBe(now + wantedForMs);
    const lapsed = applyKeep(wanted, later(wantedForMs));
    expect(statuses(lapsed)).toEqual(statuses(five));
    expect(lapsed.history.at(-1)).toMatchObject({
      kind: "retired",
      to: 1,
      reason: expect.stringContaining("nobody has asked for it since"),
    });
    expect(nextLapse(lapsed)).toBeUndefined();
  });
  it("is written once, however many ask, until half of the time is over", () => {
    expect(wantVersion(wanted, 1, { ...cause, at: later(wantedForMs / 2 - 1) })).toBe(wanted);
    const at = later(wantedForMs / 2);
    const again = wantVersion(wanted, 1, { ...cause, at });
    expect(again.versions[0]?.wanted?.at).toBe(at);
    expect(again.history).toBe(wanted.history);
  });
  it("changes nothing for a version that is unknown, refused, not served yet or deleted", () => {
    const refused = applyRefused(addVersion(five, added(6)), { kind: "refused", version: 6, problem: { code: "X", message: "x" } });
    const state = addVersion(refused, added(7));
    for (const version of [6, 7, 99]) expect(wantVersion(state, version, cause)).toBe(state);
  });
});

describe("decideDelete", () => {
  const command = { name: "acme/pirate", by: "ann", at: time(), command: 7 };
  const decide = (state: AdapterState | undefined, version: number) => decideDelete(state, { ...command, version });
  const deleted = (state: AdapterState, version: number): AdapterState => {
    const decision = decide(state, version);
    if (decision.kind !== "delete") throw new Error(JSON.stringify(decision));
    return decision.state;
  };
  it("marks a version, says who, and deletes once", () => {
    const state = deleted(five, 1);
    expect(state.versions[0]).toMatchObject({
      status: "deleted",
      reason: { code: "VERSION_DELETED", message: "it was deleted on 2026-01-01 by ann." },
    });
    expect(state.history.at(-1)).toMatchObject({ kind: "deleted", to: 1, by: "ann", command: 7 });
    expect(decide(state, 1)).toEqual({ kind: "nothing" });
    expect(wantVersion(state, 1, cause)).toBe(state);
  });
  it("lets the next newest version take the place of one that was loaded", () => {
    expect(statuses(deleted(five, 4))).toEqual(["1:retired", "2:desired", "3:desired", "4:deleted", "5:desired"]);
  });
  it("keeps the number: the next version gets another one", () => {
    const two = moveAlias(serve(withVersions(2), 1, 2), 1, cause);
    expect(addVersion(deleted(two, 2), added(3)).versions.at(-1)?.version).toBe(3);
  });
  it("gives up a move that waits for it", () => {
    const decision = decideAlias(five, { kind: "promote", version: 1, by: "bob", seq: 9 }, { name: "x", replicas: [], now });
    if (decision.kind !== "await") throw new Error(decision.kind);
    const state = deleted(decision.state, 1);
    expect(state.awaiting).toBeNull();
    expect(linesOf(state).slice(-2)).toEqual(["deleted 1", "not-moved 1"]);
  });
  it.each<[string, AdapterState | undefined, number, string]>([
    ["of an unknown adapter", undefined, 1, "ADAPTER_UNKNOWN"],
    ["that is not there", five, 9, "VERSION_UNKNOWN"],
    ["that is promoted", five, 5, "VERSION_PROMOTED"],
    ["that a run still waits for", addVersion(five, added(6)), 6, "VERSION_NOT_SERVED"],
  ])("refuses a version %s", (_what, state, version, code) => {
    expect(decide(state, version)).toMatchObject({ kind: "reject", problem: { code } });
  });
  it("refuses a canary", () => {
    const state = serve(addVersion(serve(withVersions(1), 1), added(2, { promote: "canary" })), 2);
    expect(decide(state, 2)).toMatchObject({
      kind: "reject",
      problem: { code: "VERSION_IN_CANARY", message: expect.stringContaining("End the canary first") },
    });
  });
});

describe("a move of the alias to a retired version", () => {
  const command = (over: Partial<AliasCommand> = {}): AliasCommand => ({ kind: "promote", version: 1, by: "bob", seq: 9, ...over });
  const on = (state: AdapterState, ...versions: number[]) => [
    replica("a", state, Object.fromEntries(versions.map((version) => [version, "proven" as const]))),
  ];
  const decide = (state: AdapterState, given: AliasCommand, at = now) =>
    decideAlias(state, given, { name: "acme/pirate", replicas: on(state, 3, 4, 5), now: at });
  const waiting = (state: AdapterState, given = command()): AdapterState => {
    const decision = decide(state, given);
    if (decision.kind !== "await") throw new Error(decision.kind);
    return decision.state;
  };
  const settle = (state: AdapterState, proven: number[], at = now) =>
    decideAwaiting(state, {
      name: "acme/pirate",
      replicas: on(state, ...proven).map((one) => ({ ...one, at: new Date(at).toISOString() })),
      now: at,
    });

  it("loads it, waits until it is proven, and moves the alias in the name of who asked", () => {
    const state = waiting(five);
    expect(statuses(state)[0]).toBe("1:desired");
    expect(state).toMatchObject({ alias: 5, awaiting: { kind: "promote", version: 1, by: "bob", command: 9 } });
    expect(settle(state, [3, 4, 5])).toBeUndefined();
    const moved = settle(state, [1, 3, 4, 5]);
    expect(moved).toMatchObject({ alias: 1, awaiting: null });
    expect(moved?.history.at(-1)).toMatchObject({ kind: "rolledback", from: 5, to: 1, by: "bob", command: 9 });
  });
  it("is asked for once, also when the command is delivered again, before and after the move", () => {
    const state = waiting(five);
    expect(decide(state, command())).toMatchObject({ kind: "nothing" });
    expect(decide(settle(state, [1]) ?? state, command())).toMatchObject({ kind: "nothing" });
  });
  it("does the same for a rollback and a canary", () => {
    expect(settle(waiting(five, command({ kind: "rollback" })), [1])?.history.at(-1)).toMatchObject({ kind: "rolledback", to: 1 });
    const settings = { steps: [10], interval_s: 60, min_requests: 1, max_error_rate: 0.1, max_latency_ratio: 2 };
    expect(settle(waiting(five, command({ canary: settings })), [1])).toMatchObject({ alias: 5, awaiting: null, canary: { version: 1 } });
  });
  it("a rollback without a version goes to the one before, also when that is retired", () => {
    const back = moveAlias(five, 3, cause);
    expect(statuses(back)[1]).toBe("2:retired");
    expect(decide(back, command({ kind: "rollback", version: null }))).toMatchObject({
      kind: "await",
      state: { awaiting: { version: 2 } },
    });
  });
  it("the last word counts: another command, or a version that promotes itself, ends the waiting", () => {
    const other = decide(waiting(five), command({ version: 4, seq: 10 }));
    if (other.kind !== "move") throw new Error(other.kind);
    expect(other.state).toMatchObject({ alias: 4, awaiting: null });
    expect(linesOf(other.state, "not-moved")).toEqual(["not-moved 1"]);
    expect(serve(addVersion(waiting(five), added(6)), 6)).toMatchObject({ alias: 6, awaiting: null });
    const stays = decide(waiting(five), command({ version: 5, seq: 10 }));
    if (stays.kind !== "move") throw new Error(stays.kind);
    expect(stays.state).toMatchObject({ alias: 5, awaiting: null });
    expect(waiting(waiting(five), command({ version: 2, seq: 10 }))).toMatchObject({ awaiting: { version: 2, command: 10 } });
  });
  it("is given up, with a reason, when no replica has proven it in time", () => {
    const state = waiting(five);
    expect(settle(state, [], now + awaitMs - 1000)).toBeUndefined();
    const dropped = settle(state, [], now + awaitMs);
    expect(dropped?.awaiting).toBeNull();
    expect(dropped?.history.at(-1)).toMatchObject({ kind: "not-moved", to: 1, code: "VERSION_NOT_PROVEN", by: "bob" });
  });
  it("stays loaded while it is waited for, however long that takes", () => {
    expect(statuses(applyKeep(waiting(five), later(2 * wantedForMs)))[0]).toBe("1:desired");
  });
  it("is rejected for a version that was deleted", () => {
    const gone = decideDelete(five, { name: "x", version: 1, by: null, at: time(), command: 1 });
    if (gone.kind !== "delete") throw new Error(gone.kind);
    expect(decide(gone.state, command())).toMatchObject({ kind: "reject", problem: { code: "VERSION_DELETED" } });
  });
});
