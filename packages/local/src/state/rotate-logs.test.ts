import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { spawnGuarded } from "@loraline/runtime";
import { expect, it, onTestFinished } from "vitest";
import { rotateLogs } from "./rotate-logs.ts";

it("keeps one old file beside each log, and a program that is writing goes on in the new one", async () => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-logs-"));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const log = join(dir, "engine.log");
  await writeFile(join(dir, "small.log"), "small");
  // Writes a hundred bytes for each line that it is given a file for.
  const go = (n: number) => writeFile(join(dir, `go-${n}`), "");
  const script = `for n in 1 2 3; do while [ ! -e go-$n ]; do sleep 0.02; done; printf "%0100d" $n; done`;
  const child = spawnGuarded("/bin/sh", ["-c", script], { cwd: dir, env: { ...process.env }, stdout: log, stderr: log });
  const line = (n: number): string => String(n).padStart(100, "0");
  for (const n of [1, 2]) {
    await go(n);
    await expect.poll(() => readFile(log, "utf8")).toBe(line(n));
    expect(await rotateLogs(dir, 50)).toEqual(["engine.log"]);
    expect(await readFile(`${log}.1`, "utf8")).toBe(line(n));
  }
  await go(3);
  await child.exited;
  expect(await readFile(log, "utf8")).toBe(line(3));
  expect(await readFile(join(dir, "small.log"), "utf8")).toBe("small");
  expect((await readdir(dir)).filter((name) => name.includes(".log")).toSorted()).toEqual(["engine.log", "engine.log.1", "small.log"]);
});
