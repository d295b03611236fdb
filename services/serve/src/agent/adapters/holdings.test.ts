import { describe, expect, it } from "vitest";
import { createAdapterMemory } from "./adapter-memory.ts";
import { adapterState, assign, digestOf, proof } from "../agent-under-test.ts";
import { countsOf, digestOfPath, holdingsOf } from "./holdings.ts";
import { createWantedSet } from "./wanted-set.ts";

const now = 50_000;
function replica(versions: number) {
  const wanted = createWantedSet();
  assign(
    wanted,
    "pirate",
    adapterState(
      "pirate",
      Array.from({ length: versions }, () => ({})),
    ),
  );
  const memory = createAdapterMemory({ incarnation: () => "one", now: () => now });
  const inWork = new Map<string, { since: number }>();
  const listed = new Map<string, string | null>();
  const names = wanted.namesOf("acme.pirate");
  return {
    wanted,
    memory,
    inWork,
    listed,
    names,
    of: (key = "acme.pirate") => holdingsOf(key, { wanted, memory, inWork, listed }, now, 3000),
  };
}

describe("what is said of an adapter on a replica", () => {
  it("is nothing before it is begun, or while it has only just begun", () => {
    const { inWork, names, of } = replica(2);
    inWork.set(names[0] ?? "", { since: now - 2999 });
    expect(of()).toEqual([]);
    inWork.set(names[0] ?? "", { since: now - 3000 });
    expect(of()).toMatchObject([{ version: 1, state: "loading", at: new Date(now - 3000).toISOString() }]);
  });

  it("is what is remembered of it, with the proof or the fault", () => {
    const { memory, names, of, wanted } = replica(2);
    memory.judged(names[0] ?? "", { state: "proven", proof, error: null, incarnation: "one" });
    memory.failed(names[1] ?? "", { of: "adapter", problem: { code: "ADAPTER_X", message: "bad" } });
    expect(of()).toMatchObject([
      { tenant: "acme", adapter: "pirate", version: 1, digest: digestOf(1), engineName: names[0], state: "proven", proof },
      { version: 2, state: "refused", blame: "adapter", error: { code: "ADAPTER_X" } },
    ]);
    expect(countsOf({ wanted, memory })).toEqual({ wanted: 2, proven: 1, retrying: 0, quarantined: 0, refused: 1, draining: 0 });
  });

  it("is also that it has to go, while the engine lists it", () => {
    const { memory, names, of, wanted, listed } = replica(1);
    const [name = ""] = names;
    listed.set(name, `/adapters/${digestOf(1).slice(7)}`);
    assign(wanted, "pirate", undefined);
    memory.leave(name);
    expect(of()).toMatchObject([{ version: 1, digest: digestOf(1), state: "draining", error: null }]);
    expect(of("acme.poet")).toEqual([]);
    listed.clear();
    expect(of()).toEqual([]);
  });
});

it("reads a digest only from a folder that is named by one", () => {
  expect(digestOfPath(`/x/${"a".repeat(64)}`)).toBe(`sha256:${"a".repeat(64)}`);
  for (const path of [undefined, null, "", "/x/pirate"]) expect(digestOfPath(path)).toBeUndefined();
});
