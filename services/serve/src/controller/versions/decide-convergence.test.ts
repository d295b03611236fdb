import type { AdapterState, ReplicaAdapter, ReplicaState } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { replicaFreshMs } from "./bucket-replicas.ts";
import { awaitedReplica, decideConvergence, laggardMs } from "./decide-convergence.ts";
import { applyRefused, applyServed } from "./decide-versions.ts";
import { hex, now, proof, replica, serve, time, withVersions } from "./versions-under-test.ts";

type Given = ReplicaAdapter["state"] | Partial<ReplicaAdapter> | undefined;
const state = withVersions(1);
const on = (reports: Record<string, Given>, of: AdapterState = state): ReplicaState[] =>
  Object.entries(reports).map(([name, given]) => replica(name, of, given === undefined ? {} : { 1: given }));
const decide = (reports: Record<string, Given>, of: AdapterState = state) => decideConvergence(of, on(reports, of), now);
const bad = { kind: "refused", version: 1, problem: { code: "BAD", message: "bad" } };

describe("decideConvergence", () => {
  it("waits for every ready replica", () => {
    expect(decide({})).toEqual([]);
    for (const other of ["loading", "retrying", undefined] as const) expect(decide({ a: "proven", b: other })).toEqual([]);
    expect(decide({ a: "proven", b: "proven" })).toMatchObject([{ kind: "served", version: 1, replicas: 2, of: 2 }]);
  });

  it("does not wait for replicas that are away, silent for long, or another engine's", () => {
    const proven = replica("a", state, { 1: "proven" });
    for (const other of [{ ready: false }, { at: time(replicaFreshMs) }, { engine: "other" }]) {
      expect(decideConvergence(state, [proven, replica("b", state, {}, other)], now)).toMatchObject([
        { kind: "served", replicas: 1, of: 1 },
      ]);
      expect(decideConvergence(state, [replica("b", state, { 1: "proven" }, other)], now)).toEqual([]);
    }
  });

  it("asks only the replicas that placement chose", () => {
    const placed = (replicas: string[]): AdapterState => ({
      ...state,
      versions: state.versions.map((version) => ({ ...version, replicas })),
    });
    expect(decide({ a: "proven", b: undefined }, placed(["a"]))).toMatchObject([{ kind: "served", replicas: 1, of: 1 }]);
    expect(decide({ a: "proven", b: undefined }, placed(["a", "b"]))).toEqual([]);
    // Left over from before it was placed elsewhere.
    expect(decide({ a: "proven", b: "loading" }, placed(["b"]))).toEqual([]);
    expect(decide({ a: "proven" }, placed([]))).toEqual([]);
  });

  it("counts only these bytes under this name", () => {
    const wrong = replica("a", state, { 1: "proven" });
    wrong.adapters = wrong.adapters.map((held) => ({ ...held, digest: `sha256:${hex(77)}` as const }));
    expect(decideConvergence(state, [wrong], now)).toEqual([]);
  });

  it("lets one replica's trouble keep nothing from being served on the others", () => {
    for (const other of ["refused", "quarantined", { state: "quarantined", blame: "replica" }] as const) {
      expect(decide({ a: "proven", b: other, c: "proven" })).toMatchObject([{ kind: "served", replicas: 2, of: 3 }]);
    }
    const long = { state: "proven" as const, proof: proof(time(laggardMs)) };
    const old = withVersions(1, { createdAt: time(2 * laggardMs) });
    expect(decide({ a: long, b: "loading", c: undefined }, old)).toMatchObject([{ kind: "served", replicas: 1, of: 3 }]);
    expect(decide({ a: { ...long, proof: proof(time(laggardMs - 1)) }, b: "loading" }, old)).toEqual([]);
  });

  it("counts a proof that was made ahead of the gate from the gate on", () => {
    const ahead = { state: "proven" as const, proof: proof(time(2 * laggardMs)) };
    const [{ createdAt } = { createdAt: "" }] = state.versions;
    expect(decide({ a: ahead })).toMatchObject([{ kind: "served", provenAt: createdAt }]);
    expect(decide({ a: ahead, b: "loading" })).toEqual([]);
  });

  it("refuses what no replica that can tell has proven", () => {
    expect(decide({ a: "refused", b: "loading" })).toEqual([]);
    expect(decide({ a: "refused", b: "refused" })).toEqual([bad]);
    expect(decide({ a: "quarantined", b: "refused" })).toEqual([bad]);
    expect(decide({ a: "quarantined" })).toEqual([bad]);
    // A full disk says nothing about the bytes.
    const full = { state: "quarantined", blame: "replica" } as const;
    expect(decide({ a: full, b: full })).toEqual([]);
    expect(decide({ a: full, b: "refused" })).toEqual([bad]);
  });

  it("refuses at once what is wrong in the files themselves", () => {
    const inFiles = { state: "refused", blame: "adapter" } as const;
    expect(decide({ a: inFiles, b: "loading", c: undefined })).toEqual([bad]);
    expect(decide({ a: inFiles, b: "proven" })).toMatchObject([{ kind: "served", replicas: 1, of: 2 }]);
    const refused = applyRefused(state, bad as Extract<ReturnType<typeof decideConvergence>[number], { kind: "refused" }>);
    expect(refused.versions[0]).toMatchObject({ status: "refused", reason: { code: "BAD" } });
  });

  it("leaves alone what is served already", () => {
    expect(decide({ a: "refused", b: "refused" }, serve(state, 1))).toEqual([]);
  });

  it("decides rightly and once, whatever the replicas report (property)", () => {
    const given = fc.option(
      fc.record({
        state: fc.constantFrom<ReplicaAdapter["state"]>("proven", "loading", "draining", "refused", "retrying", "quarantined"),
        blame: fc.constantFrom("adapter", "replica", null),
        age: fc.nat({ max: 2 * laggardMs }),
      }),
      { nil: undefined },
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(given, given, given, fc.boolean()), { minLength: 1, maxLength: 4 }), (reports) => {
        let current = withVersions(3);
        const held = (each: (typeof reports)[number][0]): Given =>
          each && { state: each.state, blame: each.blame, proof: each.state === "proven" ? proof(time(each.age)) : null };
        const replicas = reports.map(([one, two, three, ready], i) => {
          const all = Object.entries({ 1: held(one), 2: held(two), 3: held(three) }).filter(([, is]) => is !== undefined);
          return replica(`r${i}`, current, Object.fromEntries(all) as Record<number, Partial<ReplicaAdapter>>, { ready });
        });
        const provenOf = (number: number) =>
          replicas.filter(
            ({ ready, adapters }) => ready && adapters.some(({ version, state: is }) => version === number && is === "proven"),
          ).length;
        for (const decided of decideConvergence(current, replicas, now)) {
          expect(provenOf(decided.version)).toBe(decided.kind === "served" ? decided.replicas : 0);
          expect(decided.kind === "refused" || decided.replicas > 0).toBe(true);
          current = decided.kind === "served" ? applyServed(current, decided, time()) : applyRefused(current, decided);
        }
        expect(decideConvergence(current, replicas, now)).toEqual([]);
        expect(current.alias === null || provenOf(current.alias) > 0).toBe(true);
      }),
    );
  });
});

describe("awaitedReplica", () => {
  const states = ["loading", "proven", "draining", "refused", "retrying", "quarantined", undefined] as const;
  const reports = fc.dictionary(fc.constantFrom("a", "b", "c", "d"), fc.constantFrom(...states));

  it("names one replica without which no other's proof changes anything", () => {
    let awaited = 0;
    fc.assert(
      fc.property(reports, fc.constantFrom("a", "b", "c", "d"), fc.constantFrom("proven", "loading", "retrying"), (before, other, then) => {
        const name = awaitedReplica(state, on(before), now);
        if (name === undefined || name === other || decide(before).length > 0) return;
        awaited += 1;
        expect(decide({ ...before, [other]: then })).toEqual([]);
      }),
      { numRuns: 500 },
    );
    expect(awaited).toBeGreaterThan(20);
  });

  it("names none when each has said something, or when more than one version is open", () => {
    expect(awaitedReplica(state, on({ a: "proven", b: "refused" }), now)).toBeUndefined();
    expect(awaitedReplica(state, on({ a: "proven", b: "loading" }), now)).toBe("b");
    const two = withVersions(2);
    expect(awaitedReplica(two, on({ a: "loading" }, two), now)).toBeUndefined();
  });
});
