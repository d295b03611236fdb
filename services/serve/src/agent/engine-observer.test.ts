/** Which process has given answers: read anew only where another one may have. */
import { createLog } from "@loraline/runtime";
import { expect, it } from "vitest";
import type { LoraEngine } from "../engines/lora-engine.ts";
import { createEngineObserver } from "./engine-observer.ts";

const log = createLog({ service: "test", level: "silent" });

/** An engine whose process and connections a test decides on. */
function engineOf({ incarnation = "1", connections = 1 } = {}) {
  const engine = { incarnation, connections, opensWhenRead: false, reads: 0 };
  const client = {
    async incarnation() {
      engine.reads += 1;
      if (engine.opensWhenRead) engine.connections += 1;
      return engine.incarnation;
    },
    connections: () => engine.connections,
    listModels: async () => [{ name: "b", path: null, isLora: false }],
    nextTokenLogprobs: async () => [],
  } as unknown as LoraEngine;
  return { engine, client };
}
const observerOf = (client: LoraEngine, incarnation?: () => Promise<string>) =>
  createEngineObserver({ client, base: "b", log, incarnation, onChange() {} });

it("does not read which process answers while no connection was opened, and reads it after another was", async () => {
  const { engine, client } = engineOf();
  const observer = observerOf(client);
  await observer.look();
  expect([await observer.readIncarnation(), await observer.readIncarnation(), engine.reads]).toEqual(["1", "1", 1]);
  Object.assign(engine, { incarnation: "2", connections: 2 });
  expect([await observer.readIncarnation(), await observer.readIncarnation(), engine.reads]).toEqual(["2", "2", 2]);
  expect(observer.incarnation).toBe("1");
});

it("does not rely on what was read while a connection was being opened: it may be another process'", async () => {
  const { engine, client } = engineOf();
  const observer = observerOf(client);
  engine.opensWhenRead = true;
  await observer.look();
  await observer.readIncarnation();
  engine.opensWhenRead = false;
  await observer.readIncarnation();
  await observer.readIncarnation();
  expect(engine.reads).toBe(3);
});

it("asks each time where somebody else tells which process it is", async () => {
  const { engine, client } = engineOf();
  let incarnation = "a";
  const observer = observerOf(client, async () => incarnation);
  await observer.look();
  incarnation = "b";
  expect([await observer.readIncarnation(), engine.reads]).toEqual(["b", 0]);
});
