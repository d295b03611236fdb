import { describe, expect, it } from "vitest";
import { createAdapterMemory } from "./adapter-memory.ts";
import { proof } from "../agent-under-test.ts";
import { type Fault, quarantineAfter } from "./decide-adapters.ts";

const fault: Fault = { of: "replica", problem: { code: "X", message: "x" } };

function memoryAt(start = 1000) {
  const at = { incarnation: "one", now: start };
  return { at, memory: createAdapterMemory({ incarnation: () => at.incarnation, now: () => at.now }) };
}

describe("what an agent remembers", () => {
  it("of one engine process does not count for the next", () => {
    const { at, memory } = memoryAt();
    memory.judged("n", { state: "proven", proof, error: null, incarnation: "one" });
    expect(memory.currentOf("n")).toMatchObject({ state: "proven", proof, attempts: 0 });
    at.incarnation = "two";
    expect(memory.currentOf("n")).toBeUndefined();
    expect(memory.failed("n", fault).attempts).toBe(1);
  });

  it("of faults in a row ends in quarantine, and a proof begins anew", () => {
    const { at, memory } = memoryAt();
    const states = Array.from({ length: quarantineAfter }, () => memory.failed("n", fault).state);
    expect(states).toEqual([...Array.from({ length: quarantineAfter - 1 }, () => "retrying"), "quarantined"]);
    const known = memory.currentOf("n");
    expect(known).toMatchObject({ blame: "replica", error: fault.problem, proof: null });
    expect(known?.retryAt).toBeGreaterThan(at.now);
    memory.judged("n", { state: "proven", proof, error: null, incarnation: "one" });
    expect(memory.failed("n", fault)).toMatchObject({ state: "retrying", attempts: 1 });
  });

  it("is since when an adapter has to go: at once, if no gateway was ever told of it", () => {
    const { at, memory } = memoryAt();
    memory.loaded("never-proven");
    memory.loaded("proven");
    memory.judged("proven", { state: "proven", proof, error: null, incarnation: "one" });
    for (const name of ["never-proven", "proven", "of-an-earlier-agent"]) memory.leave(name);
    at.now += 500;
    memory.leave("proven");
    expect([...memory.leaving].map(([name, { since }]) => [name, since])).toEqual([
      ["never-proven", 0],
      ["proven", 1000],
      ["of-an-earlier-agent", 1000],
    ]);
    // The engine came back: whoever loaded what it lists now, it was not this agent.
    memory.stay("never-proven");
    memory.engineReady();
    memory.leave("never-proven");
    expect(memory.leaving.get("never-proven")?.since).toBe(1500);
  });

  it("of unloads that fail is when to try again, later each time, and since when it has to go", () => {
    const { at, memory } = memoryAt();
    memory.leave("n");
    const first = memory.unloadFailed("n", fault.problem);
    at.now += 10_000;
    const second = memory.unloadFailed("n", fault.problem);
    expect([first.attempts, second.attempts]).toEqual([1, 2]);
    expect(second.afterMs).toBeGreaterThan(first.afterMs);
    expect(memory.leaving.get("n")).toMatchObject({ since: 1000, retryAt: at.now + second.afterMs, error: fault.problem });
    memory.unloaded("n");
    expect(memory.leaving.size).toBe(0);
  });

  it("of spoiled files lasts until they are fetched again, unloaded, or the engine is another", () => {
    const { memory } = memoryAt();
    for (const end of [() => memory.unspoil("n"), () => memory.unloaded("n"), () => memory.engineReady()]) {
      memory.spoil("n", 5);
      expect(memory.spoiled.get("n")).toBe(5);
      end();
      expect(memory.spoiled.size).toBe(0);
    }
  });
});
