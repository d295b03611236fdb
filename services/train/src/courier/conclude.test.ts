import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCancelRequested } from "@loraline/contracts";
import { createLog } from "@loraline/runtime";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { courierExit } from "../attempt/courier-exit.ts";
import type { AttemptContext } from "./attempt-context.ts";
import { conclude } from "./conclude.ts";
import type { End } from "./decide-end.ts";

const log = createLog({ service: "test", level: "silent" });
const lost: End = { kind: "retry", code: "DISK_FULL", message: "the disk is full" };
const preempted: End = { kind: "retry", code: "PREEMPTED", message: "asked to stop" };
const broken: End = { kind: "failed", problem: { code: "LOSS_NAN", message: "the loss is not a number", param: null } };

let dir: string;
/** What happened, in order. */
let did: unknown[];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-conclude-"));
  mkdirSync(join(dir, "work"));
  did = [];
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

function attemptOf(more: { node?: number; nodes?: number; controllerTellsStop?: boolean; cancelled?: boolean } = {}): AttemptContext {
  const stop = new AbortController();
  if (more.cancelled === true) stop.abort();
  return {
    spec: { attempt: 3, resume: { step: 5 }, machine: { nodes: more.nodes ?? 1 } },
    dir,
    work: join(dir, "work"),
    node: more.node ?? 0,
    controllerTellsStop: more.controllerTellsStop,
    stop: stop.signal,
    at: { tenant: "acme", id: "01KB000000000000000000RN01" },
    bus: { last: async (event: unknown) => (more.cancelled === true && event === runCancelRequested ? {} : undefined) },
    outbox: {
      async send(event: { type: string }, data: object, key?: string) {
        did.push([event.type, data, key]);
      },
    },
    running: {
      trainer: { exited: Promise.resolve(), kill: () => {} },
      uploads: {
        addLeftovers: async () => void did.push("leftovers"),
        done: async () => void did.push("uploaded"),
        newestStep: () => 8,
      },
    },
    log,
  } as unknown as AttemptContext;
}
const outcome = (): unknown => existsSync(join(dir, "outcome.json")) && JSON.parse(readFileSync(join(dir, "outcome.json"), "utf8"));

describe("the end of an attempt", () => {
  it("that can be tried again: checkpoints first, then the event that names the newest", async () => {
    expect(await conclude(attemptOf(), lost)).toBe(courierExit.retry);
    expect(did).toEqual([
      "leftovers",
      "uploaded",
      ["run.attempt-ended.v1", { attempt: 3, step: 8, code: "DISK_FULL", message: "the disk is full" }, "attempt-3"],
    ]);
    expect(outcome()).toEqual({ code: "DISK_FULL", message: "the disk is full" });
    expect(existsSync(join(dir, "work"))).toBe(false);
  });

  it("of a cancelled run: nothing is stored or published", async () => {
    expect(await conclude(attemptOf({ cancelled: true }), preempted)).toBe(courierExit.retry);
    expect(did).toEqual([]);
    expect(outcome()).toMatchObject({ code: "CANCELLED" });
  });

  it.each<[string, Parameters<typeof attemptOf>[0], End, boolean]>([
    ["a pod that was stopped", { controllerTellsStop: true }, preempted, false],
    ["a pod with a full disk", { controllerTellsStop: true }, lost, true],
    ["one of several pods with a full disk", { controllerTellsStop: true, nodes: 2 }, lost, false],
    ["a process that was stopped", {}, preempted, true],
  ])("of %s is published by the courier, or else by the controller", async (_, more, end, published) => {
    await conclude(attemptOf(more), end);
    expect(did.some((one) => Array.isArray(one) && one[0] === "run.attempt-ended.v1")).toBe(published);
    expect(outcome()).toMatchObject({ code: (end as { code: string }).code });
  });

  it("that can never work: the run fails, by the word of the first node", async () => {
    expect(await conclude(attemptOf(), broken)).toBe(courierExit.failed);
    expect(did).toEqual([["run.failed.v1", { code: "LOSS_NAN", message: "the loss is not a number", param: null, attempt: 3 }, undefined]]);
    did = [];
    expect(await conclude(attemptOf({ node: 1, nodes: 2 }), broken)).toBe(courierExit.retry);
    expect(did).toEqual([]);
    expect(outcome()).toEqual({ code: "LOSS_NAN", message: "the loss is not a number" });
  });
});
