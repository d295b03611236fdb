import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLog, type GuardedChild, processIdentity } from "@loraline/runtime";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { supervise, type SuperviseOptions } from "./supervise.ts";

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "loraline-supervise-"));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

const options = (script: string): SuperviseOptions & { started: GuardedChild[]; ends: { why: string; restartInMs: number }[] } => {
  const started: GuardedChild[] = [];
  const ends: { why: string; restartInMs: number }[] = [];
  return {
    name: "child",
    command: "/bin/sh",
    args: ["-c", script],
    env: { PATH: process.env.PATH },
    logFile: join(stateDir, "child.log"),
    stateDir,
    stopMs: 2000,
    log: createLog({ service: "test", level: "silent" }),
    onStarted: (child) => void started.push(child),
    onEnded: (end) => void ends.push(end),
    started,
    ends,
  };
};

it("starts a killed child again, and records the new one", async () => {
  const child = options("sleep 60");
  await using _running = await supervise(child);
  child.started[0]?.kill("SIGKILL");
  await vi.waitFor(() => expect(child.started).toHaveLength(2), 5000);
  expect(child.ends).toEqual([{ why: "SIGKILL", restartInMs: 100 }]);
  const recorded = JSON.parse(await readFile(join(stateDir, "children/child.json"), "utf8")) as { pid: number };
  expect(recorded.pid).toBe(child.started[1]?.pid);
});

it("waits longer each time for one that cannot start, and says its last words", async () => {
  const child = options("echo going down >&2; exit 3");
  await using _running = await supervise(child);
  await vi.waitFor(() => expect(child.ends.length).toBeGreaterThanOrEqual(3), 5000);
  expect(child.ends.slice(0, 3)).toEqual([100, 300, 900].map((restartInMs) => ({ why: "exit code 3: going down", restartInMs })));
});

it("ends the child and its children when disposed, also one that does not listen", async () => {
  const child = { ...options('trap "" TERM; sleep 60 & echo $!; wait; sleep 60'), stopMs: 200 };
  const running = await supervise(child);
  const grandchild = await vi.waitFor(async () => {
    const pid = Number(await readFile(child.logFile, "utf8"));
    expect(pid).toBeGreaterThan(0);
    return pid;
  }, 5000);
  await running[Symbol.asyncDispose]();
  expect(processIdentity(child.started[0]?.pid ?? 0)).toBeUndefined();
  await vi.waitFor(() => expect(processIdentity(grandchild)).toBeUndefined(), 2000);
  expect(child.ends).toEqual([]);
});
