import type { TrainerResult } from "@loraline/contracts";
import { describe, expect, test } from "vitest";
import { decideEnd } from "./decide-end.ts";

const exited = (code: number) => ({ code, signal: null });
const killed = (signal: string) => ({ code: null, signal });
const adapter = { rank: 8, target_modules: ["q_proj"], parameters: 1, files: [] };
const result = (more: Partial<TrainerResult>): TrainerResult => ({
  status: "succeeded",
  error: null,
  steps: 7,
  total_steps: 10,
  train_loss: 1,
  tokens_seen: 1,
  train_tokens_per_second: 1,
  loss_history: [],
  evaluation: null,
  probes: [],
  adapter,
  phases: {},
  ...more,
});
const failure = (code: string) => result({ status: "failed", adapter: null, error: { code, message: "m", param: "p" } });
const end = (trainer: Partial<Parameters<typeof decideEnd>[0]>) =>
  decideEnd({ exit: exited(1), result: undefined, tail: "", stopped: false, ...trainer });

describe("decideEnd", () => {
  test("a result that succeeded counts, however the process ended", () => {
    for (const exit of [exited(0), exited(1), killed("SIGKILL")])
      expect(end({ exit, result: result({}) })).toMatchObject({ kind: "trained" });
  });

  test.each([
    ["a stop after a checkpoint", { exit: exited(75), result: result({ status: "preempted" }) }, "PREEMPTED", /at step 7/],
    ["a stop before Python could listen", { exit: killed("SIGTERM"), stopped: true }, "PREEMPTED", /before it had saved/],
    ["a kill", { exit: killed("SIGKILL") }, "TRAINER_KILLED", /SIGKILL.*ran out of memory: lower training\.per_device/],
    ["a SIGTERM nobody asked for", { exit: killed("SIGTERM") }, "TRAINER_KILLED", /SIGTERM/],
    ["a full disk that it reports", { result: failure("DISK_FULL") }, "DISK_FULL", /^m$/],
    ["a full disk that it only logs", { tail: "OSError: [Errno 28] No space left on device" }, "DISK_FULL", /Free space/],
    ["memory that may be there later", { result: failure("OUT_OF_MEMORY") }, "OUT_OF_MEMORY", /^m$/],
    ["a bug", { result: failure("INTERNAL") }, "INTERNAL", /^m$/],
    [
      "a crash",
      { tail: "Traceback\n  a\n  b\n  c\nImportError: no torch" },
      "TRAINER_CRASHED",
      /exit code 1 and no result: b \| c \| ImportError: no torch$/,
    ],
    [
      "a kill for the container's memory",
      { exit: killed("SIGKILL"), outOfMemory: { limit: 6 * 2 ** 30 } },
      "OUT_OF_MEMORY",
      /memory of 6Gi was used up.*train\.pods\.memory/,
    ],
    ["another rank's kill for it", { result: failure("INTERNAL"), outOfMemory: { limit: 500 * 2 ** 20 } }, "OUT_OF_MEMORY", /of 500Mi/],
    ["a hang", { exit: killed("SIGKILL"), hangs: "no sign of life" }, "TRAINER_HANGS", /no sign of life/],
    ["a GPU that is not there", { result: failure("DEVICE_MISSING") }, "DEVICE_MISSING", /^m$/],
    ["a stop that left torchrun no time", { exit: exited(1), stopped: true }, "PREEMPTED", /exit code 1 before it had saved/],
    ["nothing at all", { exit: exited(0) }, "TRAINER_CRASHED", /exit code 0 and no result: it wrote no log/],
    ["a success without an adapter", { exit: exited(0), result: result({ adapter: null }) }, "TRAINER_CRASHED", /no result/],
  ] as const)("tries again after %s", (_, trainer, code, message) => {
    expect(end(trainer)).toEqual({ kind: "retry", code, message: expect.stringMatching(message) });
  });

  test("a node that is not the first has done its part when its trainer ends well", () => {
    expect(end({ exit: exited(0), follower: true })).toEqual({ kind: "followed" });
    expect(end({ exit: exited(1), follower: true })).toMatchObject({ kind: "retry", code: "TRAINER_CRASHED" });
    const stopped = { kind: "retry", code: "PREEMPTED", message: "the trainer was asked to stop" };
    expect(end({ exit: exited(1), follower: true, stopped: true })).toEqual(stopped);
  });

  test("fails the run after what the trainer would meet again", () => {
    for (const code of ["SPEC_INVALID", "NO_TARGET_MODULES", "NON_FINITE_LOSS", "ADAPTER_INVALID"]) {
      expect(end({ result: failure(code) })).toEqual({ kind: "failed", problem: { code, message: "m", param: "p" } });
    }
  });
});
