import type { Bus } from "@loraline/bus";
import { createLog } from "@loraline/runtime";
import { describe, expect, it } from "vitest";
import { digestOf, proof, wantedAdapter } from "../agent-under-test.ts";
import { createLoadEvents } from "./load-events.ts";

function recorded() {
  const at = { away: false, published: [] as { type: string; id: string; data: unknown; key: string }[] };
  const publish = (async (def: { type: string }, { id }: { id: string }, data: unknown, { key = "" } = {}) => {
    if (at.away) throw new Error("no bus");
    at.published.push({ type: def.type, id, data, key });
  }) as unknown as Bus["publish"];
  const log = createLog({ service: "test", level: "silent" });
  return { at, events: createLoadEvents({ bus: { publish }, engine: "e", replica: "a", now: () => 7, log }) };
}

describe("events about what an engine holds", () => {
  it("say which version is loaded where, once for each engine process", async () => {
    const { at, events } = recorded();
    const pirate = wantedAdapter("pirate");
    await events.loaded(pirate, "one", proof, null);
    await events.unloaded(pirate.loraName, digestOf(1), "one", "it is not wanted any more");
    const where = { version: 1, digest: digestOf(1), engine: "e", replica: "a", incarnation: "one", engineName: pirate.loraName };
    expect(at.published).toEqual([
      { type: "adapter.loaded.v1", id: "pirate", data: { ...where, proof }, key: `${pirate.loraName}/e/a/one` },
      {
        type: "adapter.unloaded.v1",
        id: "pirate",
        data: { ...where, reason: "it is not wanted any more" },
        key: `${pirate.loraName}/e/a/one/7`,
      },
    ]);
  });

  it("are published later when the bus is away, each once", async () => {
    const { at, events } = recorded();
    at.away = true;
    await events.loaded(wantedAdapter("pirate"), "one", proof, null);
    await events.loaded(wantedAdapter("poet"), "one", proof, null);
    await events.retry();
    expect(at.published).toEqual([]);
    at.away = false;
    await events.retry();
    await events.retry();
    expect(at.published.map(({ id }) => id)).toEqual(["pirate", "poet"]);
  });
});
