import type { EngineView } from "@loraline/contracts";
import { expect, it } from "vitest";
import { shaped } from "../terminal.ts";
import { listEngines } from "./show-engine.ts";

const counts = { wanted: 3, proven: 3, retrying: 0, quarantined: 0, refused: 0, draining: 0 };
const engine = (over: Partial<EngineView> = {}): EngineView => ({
  engine: "local",
  base: "small",
  maxLoraRank: 32,
  maxLoras: 4,
  maxCpuLoras: 16,
  maxModelLen: 2048,
  replicas: [{ replica: "a", ready: true, incarnation: "1", counts }],
  versions: 3,
  asked: { adapters: 2, windowMs: 300_000 },
  advice: [],
  ...over,
});
const plain = (engines: EngineView[]) =>
  shaped(listEngines(engines), Infinity).map((line) => line.replace(/ {2,}/g, " | ").replace(/[ |]+$/, ""));

it("lists engines, their replicas where there is more to say, and the advice", () => {
  expect(plain([engine()])).toEqual([
    "ENGINE | BASE | READY | VERSIONS | ASKED | MAX LORAS/CPU | MAX RANK",
    "local | small | 1/1 | 3 | 2 in 5 min 0 s | 4/16 | 32",
  ]);
  const trouble = { replica: "b", ready: true, incarnation: "1", counts: { ...counts, proven: 2, quarantined: 1 } };
  const advice = [{ level: "info" as const, code: "X", message: "do it" }];
  expect(plain([engine({ replicas: [...engine().replicas, trouble], advice })]).slice(1)).toEqual([
    "local | small | 2/2 | 3 | 2 in 5 min 0 s | 4/16 | 32",
    "",
    "ENGINE | REPLICA | HOLDS",
    "local | a | ready | 3/3 proven",
    "local | b | ready | 2/3 proven | 1 quarantined",
    "local: do it",
  ]);
  const problem = { code: "TEMPLATE_MISMATCH", message: "this replica applies another template" };
  expect(plain([engine({ replicas: [{ replica: "a", ready: false, incarnation: "1", problem }] })]).at(-1)).toBe(
    "a: TEMPLATE_MISMATCH: this replica applies another template",
  );
});
