import type { Problem } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import type { RememberedAdapter } from "./adapters/adapter-memory.ts";
import { wantedAdapter } from "./agent-under-test.ts";
import type { WantedAdapter } from "./adapters/decide-adapters.ts";
import { createReadiness } from "./readiness.ts";

function replica(...names: string[]) {
  const at = {
    engine: { ready: true, problem: null as Problem | null, incarnation: "one" },
    adapters: new Map<string, WantedAdapter>(names.map((name) => [name, wantedAdapter(name)])),
    states: new Map<string, RememberedAdapter["state"]>(),
    leaving: false,
    isComplete: true,
  };
  const currentOf = (name: string): RememberedAdapter | undefined => {
    const state = at.states.get(name);
    const error = state === "retrying" ? { code: "X", message: "the store is away" } : null;
    return state && { state, error, incarnation: "one", retryAt: 0, attempts: 0, blame: null, proof: null, at: "" };
  };
  const readiness = createReadiness({ wanted: at, memory: { currentOf }, engine: at.engine, product: "vLLM", isLeaving: () => at.leaving });
  return { at, readiness };
}

describe("a replica is ready", () => {
  it("once everything that was wanted when its engine began is proven, refused or given up", () => {
    const { at, readiness } = replica("a", "b", "c");
    readiness.engineReady();
    expect(readiness.unready()).toBe("3 of 3 adapters are not proven yet: a, b, c");
    at.states.set("a", "proven").set("b", "refused").set("c", "retrying");
    expect(readiness.unready()).toBe("1 of 3 adapters are not proven yet: c (the store is away)");
    at.states.set("c", "quarantined");
    expect(readiness.unready()).toBeUndefined();
  });

  it("although something else is wanted later, or what was wanted is not any more", () => {
    const { at, readiness } = replica("a");
    readiness.engineReady();
    at.adapters.set("later", wantedAdapter("later"));
    at.adapters.delete("a");
    expect(readiness.unready()).toBeUndefined();
  });

  it("again after its connection to the same engine process broke off, but not for another process", () => {
    const { at, readiness } = replica("a");
    readiness.engineReady();
    at.states.set("a", "proven");
    expect(readiness.unready()).toBeUndefined();
    at.states.clear();
    readiness.engineReady();
    expect(readiness.unready()).toBeUndefined();
    at.engine.incarnation = "two";
    readiness.engineReady();
    expect(readiness.unready()).toMatch(/1 of 1/);
  });

  it("not before it is known what is wanted, and then once that is proven", () => {
    const { at, readiness } = replica("a");
    at.isComplete = false;
    readiness.engineReady();
    expect(readiness.unready()).toMatch(/not known yet which adapters/);
    at.isComplete = true;
    readiness.engineReady();
    expect(readiness.unready()).toMatch(/1 of 1/);
    at.states.set("a", "proven");
    expect(readiness.unready()).toBeUndefined();
  });

  it("not while its engine is away, has a problem, or is about to end; each is said", () => {
    const { at, readiness } = replica();
    at.engine.ready = false;
    expect(readiness.unready()).toBe("vLLM does not answer yet");
    at.engine.problem = { code: "TEMPLATE_MISMATCH", message: "another template" };
    expect(readiness.unready()).toBe("another template");
    at.leaving = true;
    expect(readiness.unready()).toBe("it is about to end");
  });
});
