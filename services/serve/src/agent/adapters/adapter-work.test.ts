import { createLog, PermanentError } from "@loraline/runtime";
import { describe, expect, it } from "vitest";
import { createAdapterMemory } from "./adapter-memory.ts";
import { createAdapterWork } from "./adapter-work.ts";
import type { AdapterSteps } from "./adapter-steps.ts";
import { digestOf, proof, wantedAdapter } from "../agent-under-test.ts";

const pirate = wantedAdapter("pirate");
const { loraName } = pirate;

/** Work on an engine that lists what `at.listed` says, with steps that end as they are told to. */
function working(steps: Partial<AdapterSteps>) {
  const at = {
    listed: new Map<string, string | null>() as Map<string, string | null> | undefined,
    wanted: new Map([[loraName, pirate]]),
    calls: [] as string[],
    measured: [] as unknown[],
  };
  const memory = createAdapterMemory({ incarnation: () => "one", now: () => 1000 });
  const note = (what: string) => async () => void at.calls.push(what);
  const work = createAdapterWork({
    steps: {
      load: note("load"),
      prove: async () => ({ kind: "proven", proof, problem: null, incarnation: "one" }),
      unload: async () => ({ kind: "done" }),
      ...steps,
    },
    engine: {
      incarnation: "one",
      look: note("look"),
      get observed() {
        return at.listed && { incarnation: "one", listed: at.listed };
      },
    },
    wanted: { adapters: at.wanted },
    memory,
    events: { loaded: note("loaded"), unloaded: note("unloaded") },
    report: note("report"),
    metrics: { stepped: (step, _ms, code) => void at.measured.push([step, code]) },
    telemetry: { traceparent: () => undefined },
    log: createLog({ service: "test", level: "silent" }),
    signal: new AbortController().signal,
  });
  return { at, memory, work };
}
const fails = (error: Error) => async () => {
  throw error;
};

describe("work on an adapter", () => {
  it("that is proven is remembered, reported and told", async () => {
    const { at, memory, work } = working({});
    await work(loraName, { kind: "prove", wanted: pirate }, false);
    expect(memory.currentOf(loraName)).toMatchObject({ state: "proven", proof });
    expect(at.calls).toEqual(["report", "loaded"]);
    expect(at.measured).toEqual([["prove", undefined]]);
  });

  it("that fails is remembered, and the engine is looked at before anything is decided", async () => {
    const { at, memory, work } = working({ load: fails(new PermanentError("ADAPTER_CONFIG_INVALID", "no JSON")) });
    await work(loraName, { kind: "load", wanted: pirate }, false);
    expect(memory.currentOf(loraName)).toMatchObject({ state: "refused", blame: "adapter", error: { code: "ADAPTER_CONFIG_INVALID" } });
    expect(at.calls).toEqual(["look"]);
    expect(at.measured).toEqual([["load", "ADAPTER_CONFIG_INVALID"]]);
  });

  it("that is tried again first looks whether the last load went through without an answer", async () => {
    const { at, work } = working({});
    at.listed?.set(loraName, "/x");
    await work(loraName, { kind: "load", wanted: pirate }, true);
    expect(at.calls).toEqual(["look"]);
    at.listed = undefined;
    await work(loraName, { kind: "load", wanted: pirate }, true);
    expect(at.calls).toEqual(["look", "look"]);
    at.listed = new Map();
    await work(loraName, { kind: "load", wanted: pirate }, true);
    expect(at.calls.slice(2)).toEqual(["look", "load"]);
  });

  it("whose files are spoiled is to be loaded anew, at once", async () => {
    const { memory, work } = working({ prove: async () => ({ kind: "spoiled" }) });
    await work(loraName, { kind: "prove", wanted: pirate }, false);
    expect(memory.spoiled.get(loraName)).toBe(0);
    expect(memory.currentOf(loraName)).toMatchObject({ state: "retrying", retryAt: 1000, error: { code: "ADAPTER_FILES_SPOILED" } });
  });

  it("that nobody wants any more leaves no trace", async () => {
    const { at, memory, work } = working({ load: fails(new Error("broken")) });
    at.wanted.clear();
    await work(loraName, { kind: "prove", wanted: pirate }, false);
    await work(loraName, { kind: "load", wanted: pirate }, false);
    expect(memory.held.size).toBe(0);
    expect(at.calls).toEqual(["look"]);
  });

  it("to unload it counts by what the engine lists afterwards, whatever it answers", async () => {
    const { at, memory, work } = working({ unload: async () => ({ kind: "refused", status: 404, message: "not found" }) });
    at.listed?.set(loraName, `/adapters/${digestOf(1).slice(7)}`);
    memory.leave(loraName);
    await work(loraName, { kind: "unload", loraName, reason: "test" }, false);
    expect(memory.leaving.get(loraName)).toMatchObject({ attempts: 1, error: { code: "UNLOAD_FAILED", message: /not found/ } });
    expect(at.calls).toEqual(["look"]);
    at.calls.length = 0;
    const gone = working({ unload: async () => ({ kind: "refused", status: 404, message: "not found" }) });
    gone.memory.leave(loraName);
    await gone.work(loraName, { kind: "unload", loraName, reason: "test" }, false);
    expect(gone.memory.leaving.size).toBe(0);
  });
});
