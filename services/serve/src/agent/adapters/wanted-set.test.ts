import { assignmentKey, assignmentsComplete } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { adapterState, assign } from "../agent-under-test.ts";
import { createWantedSet } from "./wanted-set.ts";

const nameOf = (adapter: string, version: number) => `acme.${adapter}.v${version}.${"0".repeat(12)}`;

describe("the wanted set", () => {
  it("has every desired version of this engine, and says what came and went", () => {
    const wanted = createWantedSet();
    expect(assign(wanted, "pirate", adapterState("pirate", [{}, {}]))).toEqual({
      wanted: [nameOf("pirate", 1), nameOf("pirate", 2)],
      gone: [],
    });
    expect([...wanted.adapters.keys()]).toEqual(wanted.namesOf("acme.pirate"));
    const change = assign(wanted, "pirate", adapterState("pirate", [{ status: "retired" }, {}]));
    expect(change).toEqual({ wanted: [nameOf("pirate", 2)], gone: [nameOf("pirate", 1)] });
    expect(assign(wanted, "pirate", undefined)).toEqual({ wanted: [], gone: [nameOf("pirate", 2)] });
    expect([wanted.adapters.size, wanted.namesOf("acme.pirate")]).toEqual([0, []]);
  });

  it("is not concerned by adapters of another engine, and tells an entry about an adapter from one that says that all are there", () => {
    const wanted = createWantedSet();
    expect(assign(wanted, "pirate", adapterState("pirate", [{}], { engine: "other" }))).toEqual({ wanted: [], gone: [] });
    expect(wanted.take(assignmentsComplete("e"), { versions: [] })).toBeUndefined();
  });

  it("leaves out versions that are placed on other replicas", () => {
    const wanted = createWantedSet();
    assign(wanted, "pirate", adapterState("pirate", [{ replicas: ["b"] }, { replicas: ["b", "a"] }, { replicas: null }]));
    expect(wanted.namesOf("acme.pirate").toSorted()).toEqual([nameOf("pirate", 2), nameOf("pirate", 3)]);
  });

  it("keeps a version that was for every replica and is for this one now, whatever comes in between", () => {
    const wanted = createWantedSet();
    assign(wanted, "pirate", adapterState("pirate", [{ replicas: null }]));
    const everywhere = assignmentKey({ engine: "e", replica: null, tenant: "acme", adapter: "pirate" });
    const here = assignmentKey({ engine: "e", replica: "a", tenant: "acme", adapter: "pirate" });
    const [version] = wanted.adapters.values();
    if (version === undefined) throw new Error("nothing is wanted");
    const { loraName, rank, tenant: _tenant, adapter: _adapter, ...rest } = version;
    const entry = { versions: [{ ...rest, engineName: loraName, priority: rank }] };
    expect(wanted.take(here, entry)).toMatchObject({ gone: [] });
    expect(wanted.take(everywhere, undefined)).toMatchObject({ gone: [], wanted: [loraName] });
    expect(wanted.take(here, undefined)).toMatchObject({ gone: [loraName], wanted: [] });
  });

  it("is what a look at the adapters' states finds, whatever changes in which order (property)", () => {
    const places = fc.option(fc.subarray(["a", "b"]));
    const version = fc.record({ replicas: places, status: fc.constantFrom("desired", "retired") });
    const change = fc.record({ adapter: fc.constantFrom("pirate", "poet"), versions: fc.option(fc.array(version, { maxLength: 3 })) });
    fc.assert(
      fc.property(fc.array(change, { maxLength: 12 }), (changes) => {
        const wanted = createWantedSet();
        const states = new Map<string, ReturnType<typeof adapterState>>();
        for (const { adapter, versions } of changes) {
          const state = versions === null ? undefined : adapterState(adapter, versions);
          assign(wanted, adapter, state);
          if (state === undefined) states.delete(adapter);
          else states.set(adapter, state);
        }
        const found = [...states.values()].flatMap((state) =>
          state.versions
            .filter(({ status, replicas }) => status === "desired" && (replicas?.includes("a") ?? true))
            .map(({ engineName }) => engineName),
        );
        expect([...wanted.adapters.keys()].toSorted()).toEqual(found.toSorted());
      }),
    );
  });

  it("ranks what users ask for before what somebody waits for, and that before the rest", () => {
    const wanted = createWantedSet();
    const servedAt = "2026-01-01T00:00:00.000Z";
    assign(wanted, "pirate", adapterState("pirate", [{ servedAt }, { servedAt }, {}], { alias: 2 }));
    expect([...wanted.adapters.values()].map(({ version, rank }) => [version, rank])).toEqual([
      [1, 3],
      [2, 0],
      [3, 1],
    ]);
  });
});
