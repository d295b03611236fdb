import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { processIdentity } from "@loraline/runtime";
import { afterEach, beforeEach, expect, it } from "vitest";
import { announceLine, clearStateDir, ensureApiKey, findLine, killLeftovers, lockStateDir, recordChild } from "./state-dir.ts";

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "loraline-state-"));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

/** A pid that belonged to a process a moment ago. */
async function deadProcess(): Promise<{ pid: number; identity: string }> {
  const child = spawn("sleep", ["60"]);
  const pid = child.pid as number;
  const identity = processIdentity(pid) as string;
  child.kill("SIGKILL");
  await once(child, "exit");
  return { pid, identity };
}

it("lets one living process have the directory, and names it to the next", async () => {
  const lock = await lockStateDir(stateDir, process.pid);
  await expect(lockStateDir(stateDir, process.pid)).rejects.toMatchObject({
    code: "LINE_RUNNING",
    param: "--state",
    message: expect.stringContaining(`pid ${process.pid}`),
  });
  await lock[Symbol.asyncDispose]();
  await using _again = await lockStateDir(stateDir, process.pid);
  expect(await readdir(stateDir)).toEqual(["line.lock"]);
});

it("takes over the lock of a dead process, also when its pid is somebody else's now", async () => {
  const dead = await deadProcess();
  await writeFile(join(stateDir, "line.lock"), JSON.stringify(dead));
  await (await lockStateDir(stateDir, process.pid))[Symbol.asyncDispose]();
  await writeFile(join(stateDir, "line.lock"), JSON.stringify({ pid: process.pid, identity: dead.identity }));
  await using _lock = await lockStateDir(stateDir, process.pid);
  expect(await readFile(join(stateDir, "line.lock"), "utf8")).toContain(processIdentity(process.pid));
});

it("takes over a lock that was cut off while it was written", async () => {
  await writeFile(join(stateDir, "line.lock"), '{"pid":');
  await using _lock = await lockStateDir(stateDir, process.pid);
  expect(await readFile(join(stateDir, "line.lock"), "utf8")).toContain(processIdentity(process.pid));
});

it("gives a stale lock to one of many that start at once", async () => {
  await writeFile(join(stateDir, "line.lock"), JSON.stringify(await deadProcess()));
  const tries = await Promise.allSettled(Array.from({ length: 8 }, () => lockStateDir(stateDir, process.pid)));
  expect(tries.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
});

it("says what is wrong with a directory that cannot be used", async () => {
  await writeFile(join(stateDir, "file"), "");
  await expect(lockStateDir(join(stateDir, "file"), process.pid)).rejects.toMatchObject({ code: "STATE_DIR_UNUSABLE", param: "--state" });
});

it("ends children that outlived their line, and only those", async () => {
  const leftover = spawn("sleep", ["60"], { detached: true });
  const exit = once(leftover, "exit");
  await recordChild(stateDir, "engine", leftover.pid as number);
  // The pid of a former child that belongs to somebody else now: this very process.
  await writeFile(join(stateDir, "children/nats.json"), JSON.stringify({ pid: process.pid, identity: "another boot/1" }));
  expect(await killLeftovers(stateDir)).toEqual(["engine"]);
  expect(await exit).toEqual([null, "SIGKILL"]);
  expect(await readdir(join(stateDir, "children"))).toEqual([]);
});

it("is found while it runs, with a key that only its owner can read", async () => {
  const key = await ensureApiKey(stateDir);
  expect(await ensureApiKey(stateDir)).toBe(key);
  expect((await stat(join(stateDir, "api-key"))).mode & 0o777).toBe(0o600);
  const line = { url: "http://127.0.0.1:1", natsUrl: "nats://127.0.0.1:2", engines: [], tenant: "local" };
  const identity = processIdentity(process.pid) as string;
  await using announced = await announceLine(stateDir, { ...line, pid: process.pid, identity });
  expect(await findLine(stateDir)).toMatchObject({ url: "http://127.0.0.1:1", apiKey: key });
  expect(await readFile(join(stateDir, "line.json"), "utf8")).not.toContain(key);
  await announced[Symbol.asyncDispose]();
  expect(await findLine(stateDir)).toBeUndefined();

  await announceLine(stateDir, { ...line, ...(await deadProcess()) });
  expect(await findLine(stateDir), "a line that was killed").toBeUndefined();
});

it("is emptied only when no line has it", async () => {
  await mkdir(join(stateDir, "nats"));
  const lock = await lockStateDir(stateDir, process.pid);
  await expect(clearStateDir(stateDir, process.pid)).rejects.toMatchObject({ code: "LINE_RUNNING" });
  await lock[Symbol.asyncDispose]();
  await clearStateDir(stateDir, process.pid);
  expect(await readdir(stateDir)).toEqual([]);
});
