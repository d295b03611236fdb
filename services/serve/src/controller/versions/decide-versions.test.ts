import type { AdapterState, ReplicaAdapter, ReplicaState } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type AliasCommand, decideAlias } from "../aliases/decide-alias.ts";
import { addVersion, applyRefused } from "./decide-versions.ts";
import { added, hex, now, replica, serve, statuses, time, withVersions } from "./versions-under-test.ts";

describe("addVersion", () => {
  it("counts from 1, names the digest, and adds a run's version once", () => {
    const two = withVersions(2);
    expect(two.versions.map(({ version, engineName }) => [version, engineName])).toEqual([
      [1, `acme.pirate.v1.${hex(1).slice(0, 12)}`],
      [2, `acme.pirate.v2.${hex(2).slice(0, 12)}`],
    ]);
    expect(addVersion(two, added(2, { digest: `sha256:${hex(99)}` }))).toBe(two);
  });
});

describe("applyServed", () => {
  it("moves the alias, once", () => {
    const once = serve(withVersions(1), 1);
    expect(once).toMatchObject({ alias: 1, history: [{ from: null, to: 1, kind: "promoted", by: null }] });
    expect(serve(once, 1)).toBe(once);
  });
  it("leaves the alias to people when the run asked for that", () => {
    expect(serve(withVersions(1, { promote: "manual" }), 1)).toMatchObject({ alias: null, history: [], versions: [{ servedAt: time() }] });
  });
  it("an older version that finishes late does not move the alias back, nor one that was rolled past", () => {
    expect(serve(withVersions(2), 2, 1)).toMatchObject({ alias: 2 });
    const four = serve(withVersions(4), 2, 4);
    const back = decideAlias(
      four,
      { kind: "rollback", version: 2, by: "me", seq: 9 },
      { name: "x", replicas: [replica("a", four, { 2: "proven" })], now },
    );
    if (back.kind !== "move") throw new Error("expected a move");
    expect(serve(back.state, 3)).toMatchObject({ alias: 2 });
  });
});

describe("applyRefused", () => {
  const problem = { code: "CANCELLED", message: "the run was cancelled" };
  it("leaves the version that a person promoted before every replica had it: the alias would lead nowhere", () => {
    const state = serve(withVersions(2), 1);
    const early = decideAlias(
      state,
      { kind: "promote", version: 2, by: "me", seq: 9 },
      { name: "x", replicas: [replica("a", state, { 2: "proven" })], now },
    );
    if (early.kind !== "move") throw new Error("expected a move");
    expect(early.state.versions[1]?.servedAt).toBeNull();
    expect(statuses(applyRefused(early.state, { kind: "refused", version: 2, problem }))).toEqual(["1:desired", "2:desired"]);
    expect(statuses(applyRefused(state, { kind: "refused", version: 2, problem }))).toEqual(["1:desired", "2:refused"]);
  });
});

describe("decideAlias", () => {
  const state = serve(withVersions(3), 1, 2, 3);
  const all = [replica("a", state, { 1: "proven", 2: "proven", 3: "proven" })];
  const decide = (command: Partial<AliasCommand>, replicas = all, of: AdapterState | undefined = state) =>
    decideAlias(of, { kind: "promote", version: null, by: "me", seq: 7, ...command }, { name: "acme/pirate", replicas, now });

  it("rolls back to the version before, or to the one that was named", () => {
    expect(decide({ kind: "rollback" })).toMatchObject({
      kind: "move",
      state: { alias: 2, history: [{}, {}, {}, { from: 3, to: 2, kind: "rolledback", by: "me", command: 7 }] },
    });
    expect(decide({ kind: "rollback", version: 1 })).toMatchObject({ kind: "move", state: { alias: 1 } });
  });
  it("promotes, and says which way that was", () => {
    const back = decide({ kind: "rollback", version: 1 });
    if (back.kind !== "move") throw new Error("expected a move");
    expect(decide({ version: 3, seq: 8 }, all, back.state)).toMatchObject({
      kind: "move",
      state: { alias: 3, history: [{}, {}, {}, {}, { kind: "promoted" }] },
    });
    expect(decide({ version: 2 })).toMatchObject({ kind: "move", state: { alias: 2, history: [{}, {}, {}, { kind: "rolledback" }] } });
  });
  it("a command that is delivered again moves nothing", () => {
    const first = decide({ kind: "rollback" });
    if (first.kind !== "move") throw new Error("expected a move");
    expect(decide({ kind: "rollback" }, all, first.state)).toMatchObject({ kind: "nothing" });
    expect(decide({ kind: "rollback", seq: 8 }, all, first.state)).toMatchObject({ kind: "move", state: { alias: 1 } });
  });
  it.each<[string, Partial<AliasCommand>, ReplicaState[], AdapterState | undefined, string]>([
    ["an adapter that is not there", { version: 1 }, all, undefined, "ADAPTER_UNKNOWN"],
    ["a version that is not there", { version: 9 }, all, state, "VERSION_UNKNOWN"],
    [
      "a version that no replica has proven",
      { version: 1 },
      [replica("a", state, { 1: "loading", 3: "proven" })],
      state,
      "VERSION_NOT_PROVEN",
    ],
    [
      "a version only a replica that is away had proven",
      { version: 1 },
      [replica("a", state, { 1: "proven" }, { ready: false })],
      state,
      "VERSION_NOT_PROVEN",
    ],
    ["a rollback forwards", { kind: "rollback", version: 2 }, all, serve(withVersions(2), 1), "NOT_EARLIER"],
    ["a rollback before anything was promoted", { kind: "rollback" }, all, withVersions(1), "NOTHING_PROMOTED"],
    ["a rollback from the first version", { kind: "rollback" }, all, serve(withVersions(1), 1), "NO_EARLIER_VERSION"],
    [
      "a refused version",
      { version: 2 },
      all,
      applyRefused(serve(withVersions(2), 1), { kind: "refused", version: 2, problem: { code: "X", message: "why" } }),
      "VERSION_REFUSED",
    ],
  ])("rejects %s", (_what, command, replicas, of, code) => {
    const decision = decideAlias(
      of,
      { kind: "promote", version: null, by: null, seq: 7, ...command },
      { name: "acme/pirate", replicas, now },
    );
    expect(decision).toMatchObject({ kind: "reject", problem: { code } });
  });
  it("only ever moves to a version that a ready replica has proven (property)", () => {
    expect.hasAssertions();
    const states = fc.constantFrom<ReplicaAdapter["state"] | undefined>("proven", "loading", "refused", "retrying", undefined);
    fc.assert(
      fc.property(
        states,
        states,
        states,
        fc.boolean(),
        fc.constantFrom("promote" as const, "rollback" as const),
        fc.option(fc.integer({ min: 1, max: 5 })),
        (one, two, three, ready, kind, version) => {
          const held = Object.fromEntries(Object.entries({ 1: one, 2: two, 3: three }).filter(([, is]) => is !== undefined)) as Record<
            number,
            ReplicaAdapter["state"]
          >;
          const decision = decide({ kind, version }, [replica("a", state, held, { ready })]);
          expect(decision.kind !== "move" || (ready && held[decision.state.alias as number] === "proven")).toBe(true);
        },
      ),
    );
  });
});
