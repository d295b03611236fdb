import { runSpec } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { attemptNameOf, attemptSpec } from "../attempt/attempt-spec.ts";
import { launchArgs } from "./trainer-command.ts";

const runId = "01KB0000000000000000000000";
const blob = { kind: "adapter-file", digest: `sha256:${"a".repeat(64)}`, size: 1 };
const argsOf = (machine: object, spec: object = { dataset: runId }, node = 0): string =>
  launchArgs(
    attemptSpec
      .pick({ machine: true, runSpec: true, name: true })
      .parse({ machine, runSpec: runSpec.parse({ base: "b", adapter: "a", ...spec }), name: attemptNameOf(runId, 2) }),
    node,
  ).join(" ");

describe("the trainer's command", () => {
  it("one process by itself", () => {
    expect(argsOf({})).toBe("");
  });
  it("torchrun for several GPUs", () => {
    expect(argsOf({ processes: 4, graceSeconds: 120 })).toBe(
      "-m torch.distributed.run --standalone --nproc-per-node 4 --max-restarts 0 --shutdown-timeout 72",
    );
  });
  it("several nodes meet at the first one", () => {
    const first = `train-${runId.toLowerCase()}-2-node-0-0.train-${runId.toLowerCase()}-2`;
    expect(argsOf({ nodes: 2, processes: 1 }, undefined, 1)).toContain(
      `--nnodes 2 --node-rank 1 --master-addr ${first} --master-port 29500 --rdzv-conf timeout=2592000 --nproc-per-node 1`,
    );
  });
  it("an import is one process's work, whatever it gets", () => {
    expect(argsOf({ processes: 4 }, { import: { source: "x", config: blob, weights: blob } })).toBe("");
  });
});
