import { mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { sweepTraces } from "./sweep-traces.ts";

const nameOf = (n: number): string => `${n.toString(16).padStart(32, "0")}.jsonl`;

it("keeps the newest traces that fit, and touches nothing else", async () => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-traces-"));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const now = Date.now();
  for (let n = 0; n < 10; n++) {
    await writeFile(join(dir, nameOf(n)), "x".repeat(100));
    const at = new Date(now - n * 1000);
    await utimes(join(dir, nameOf(n)), at, at);
  }
  await writeFile(join(dir, "notes.txt"), "mine");
  const left = async () => (await readdir(dir)).toSorted();
  const whole = { maxAgeMs: 60_000, maxFiles: 100, maxBytes: 10_000 };
  expect(await sweepTraces(dir, whole, now)).toBe(0);
  expect(await sweepTraces(dir, { ...whole, maxAgeMs: 7500 }, now)).toBe(2);
  expect(await sweepTraces(dir, { ...whole, maxFiles: 6 }, now)).toBe(2);
  expect(await sweepTraces(dir, { ...whole, maxBytes: 399 }, now)).toBe(3);
  expect(await left()).toEqual([nameOf(0), nameOf(1), nameOf(2), "notes.txt"]);
});
