import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { killGroup, processIdentity, spawnGuarded } from "./spawn-guarded.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-guarded-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));
const soon = { timeout: 60_000 };
const env = { PATH: process.env.PATH };
const sh = (script: string, options = {}) => spawnGuarded("sh", ["-c", script], { env, cwd: dir, ...options });
const pidIn = (file: string) =>
  expect
    .poll(() => readFileSync(join(dir, file), "utf8"), soon)
    .toMatch(/^\d+\n$/)
    .then(() => Number(readFileSync(join(dir, file), "utf8")));

describe("spawnGuarded", () => {
  it("gives the exit code, both outputs, arguments, folder and only the given environment", async () => {
    const out = join(dir, "out.log");
    const child = spawnGuarded("sh", ["-c", 'echo "$1|$MINE|$HOME|$PWD"; echo err >&2; exit 7', "x", 'two words "$A"'], {
      env: { ...env, MINE: "m" },
      cwd: dir,
      stdout: out,
      stderr: join(dir, "err.log"),
    });
    expect(await child.exited).toEqual({ code: 7, signal: null });
    expect(readFileSync(out, "utf8")).toBe(`two words "$A"|m||${dir}\n`);
    expect(readFileSync(join(dir, "err.log"), "utf8")).toBe("err\n");
  });

  it("is the command itself: its pid, and a signal reaches it and no wrapper", async () => {
    const child = sh('trap "exit 42" TERM; echo $$ > pid; while :; do sleep 0.05; done');
    expect(await pidIn("pid")).toBe(child.pid);
    child.kill("SIGTERM");
    expect(await child.exited).toEqual({ code: 42, signal: null });
  });

  it("says which signal ended it, and SIGKILL takes its children along", async () => {
    const child = sh("sleep 60 & echo $! > pid; wait");
    const grandchild = await pidIn("pid");
    child.kill("SIGKILL");
    expect(await child.exited).toEqual({ code: null, signal: "SIGKILL" });
    await expect.poll(() => processIdentity(grandchild), soon).toBeUndefined();
  });

  it("leaves nothing of a child that ended by itself", async () => {
    const child = sh("sleep 60 & echo $! > pid");
    const grandchild = await pidIn("pid");
    expect(await child.exited).toEqual({ code: 0, signal: null });
    await expect.poll(() => processIdentity(grandchild), soon).toBeUndefined();
  });

  it("ends the whole tree, nested ones included, when the parent is killed with SIGKILL", async () => {
    const module = JSON.stringify(join(import.meta.dirname, "spawn-guarded.ts"));
    const options = JSON.stringify({ env, cwd: dir });
    const keepAlive = "setInterval(() => {}, 1000);";
    writeFileSync(
      join(dir, "inner.mjs"),
      `import { spawnGuarded } from ${module}; spawnGuarded("sh", ["-c", "echo $$ > innermost; sleep 60"], ${options}); ${keepAlive}`,
    );
    writeFileSync(
      join(dir, "outer.mjs"),
      `import { spawnGuarded } from ${module};
       spawnGuarded("sh", ["-c", "trap '' TERM HUP; sleep 60 & echo $! > grandchild; wait"], ${options});
       spawnGuarded(process.execPath, ["inner.mjs"], ${options}); ${keepAlive}`,
    );
    const parent = spawn(process.execPath, ["--conditions=@loraline/source", "outer.mjs"], { cwd: dir, stdio: "inherit" });
    const pids = [await pidIn("grandchild"), await pidIn("innermost")];
    parent.kill("SIGKILL");
    await expect.poll(() => pids.map(processIdentity), soon).toEqual([undefined, undefined]);
  });

  it("ends with a clear error when there is no such program or folder", () => {
    expect(() => spawnGuarded("no-such-program", [], { env })).toThrow(
      /cannot start no-such-program\. It is in none of the folders of PATH/,
    );
    expect(() => spawnGuarded("/no/such", [], { env })).toThrow(/cannot start \/no\/such\. It is not there/);
    expect(() => sh("true", { cwd: join(dir, "missing") })).toThrow(/missing: is the folder there/);
  });
});

describe("processIdentity", () => {
  it("is stable for one process and undefined when it is gone", async () => {
    const child = sh("sleep 60");
    const identity = processIdentity(child.pid);
    expect(identity).toMatch(/^[0-9a-f-]{36}\/\d+$/);
    expect(processIdentity(child.pid)).toBe(identity);
    killGroup(child.pid);
    await child.exited;
    expect(processIdentity(child.pid)).toBeUndefined();
    killGroup(child.pid); // nothing to do, no error
  });
});
