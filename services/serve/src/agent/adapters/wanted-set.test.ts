import { describe, expect, it } from "vitest";
import { adapterState } from "../agent-under-test.ts";
import { createWantedSet } from "./wanted-set.ts";

const nameOf = (adapter: string, version: number) => `acme.${adapter}.v${version}.${"0".repeat(12)}`;
const set = () => createWantedSet({ engine: "e", replica: "a" });

describe("the wanted set", () => {
  it("has every desired version of this engine, and says what came and went", () => {
    const wanted = set();
    expect(wanted.take("acme.pirate", adapterState("pirate", [{}, {}]))).toEqual({
      wanted: [nameOf("pirate", 1), nameOf("pirate", 2)],
      gone: [],
    });
    expect([...wanted.adapters.keys()]).toEqual(wanted.namesOf("acme.pirate"));
    const change = wanted.take("acme.pirate", adapterState("pirate", [{ status: "retired" }, {}]));
    expect(change).toEqual({ wanted: [nameOf("pirate", 2)], gone: [nameOf("pirate", 1)] });
    expect(wanted.take("acme.pirate", undefined)).toEqual({ wanted: [], gone: [nameOf("pirate", 2)] });
    expect([wanted.adapters.size, wanted.namesOf("acme.pirate")]).toEqual([0, []]);
  });

  it("is not concerned by adapters of another engine, unless one has moved there", () => {
    const wanted = set();
    expect(wanted.take("acme.pirate", adapterState("pirate", [{}], { engine: "other" }))).toBeUndefined();
    wanted.take("acme.pirate", adapterState("pirate", [{}]));
    expect(wanted.take("acme.pirate", adapterState("pirate", [{}], { engine: "other" }))).toEqual({
      wanted: [],
      gone: [nameOf("pirate", 1)],
    });
  });

  it("leaves out versions that are placed on other replicas", () => {
    const wanted = set();
    wanted.take("acme.pirate", adapterState("pirate", [{ replicas: ["b"] }, { replicas: ["b", "a"] }, { replicas: null }]));
    expect(wanted.namesOf("acme.pirate")).toEqual([nameOf("pirate", 2), nameOf("pirate", 3)]);
  });

  it("ranks what users ask for before what somebody waits for, and that before the rest", () => {
    const wanted = set();
    const servedAt = "2026-01-01T00:00:00.000Z";
    wanted.take("acme.pirate", adapterState("pirate", [{ servedAt }, { servedAt }, {}], { alias: 2 }));
    expect([...wanted.adapters.values()].map(({ version, rank }) => [version, rank])).toEqual([
      [1, 3],
      [2, 0],
      [3, 1],
    ]);
  });
});
