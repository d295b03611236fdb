/** A disk becomes full: there is one clear message, nothing is left incomplete, and work goes on by itself when there is room again. */
import { execFileSync } from "node:child_process";
import { open, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setInterval } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import {
  base,
  clientOf,
  eventually,
  fileWith,
  jsonLines,
  loraline,
  sampleRows,
  scratchDir,
  startLineUnderTest,
} from "../line-under-test.ts";

let scratch: Awaited<ReturnType<typeof scratchDir>>;
let disk: string;
const isRoot = process.getuid?.() === 0;
beforeEach(async () => {
  if (!isRoot) return;
  scratch = await scratchDir();
  disk = scratch.path;
  // A disk for this test only, so that filling it disturbs nothing else.
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=120m", "tmpfs", disk]);
});
afterEach(async () => {
  if (!isRoot) return;
  execFileSync("umount", ["--lazy", disk]);
  await scratch[Symbol.asyncDispose]();
});

/** Takes all free space, and space that others free later (as a server does that compacts its files), until `release`. */
async function fill(path: string): Promise<{ release(): Promise<void> }> {
  const file = await open(path, "w");
  const takeAll = async () => {
    for (let size = 1024 ** 2; size >= 1; size = Math.floor(size / 2)) {
      try {
        for (;;) await file.write(Buffer.alloc(size));
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
      }
    }
  };
  await takeAll();
  const released = new AbortController();
  const taking = (async () => {
    for await (const _ of setInterval(20, undefined, { signal: released.signal })) await takeAll();
  })().catch((error: unknown) => {
    if (!released.signal.aborted) throw error;
  });
  return {
    async release() {
      released.abort();
      await taking;
      await file.close();
      await rm(path);
    },
  };
}

// Mounting needs root. CI runs as root, and a skipped test counts as failed there.
it.skipIf(!isRoot)("is reported, and work goes on", async () => {
  const stateDir = join(disk, "state");
  const dataset = await fileWith("/tmp", `loraline-disk-full-${process.pid}.jsonl`, jsonLines(await sampleRows(20)));
  await using line = await startLineUnderTest(stateDir);
  const run = ["run", dataset, "--base", base, "--name", "later", "--no-follow"];

  const filler = await fill(join(disk, "filler"));
  const refused = await loraline(line, run);
  expect(refused).toMatchObject({ code: 1, out: "", err: expect.stringMatching(/^loraline: the disk is full .*Free space/) });
  expect(refused.err.trim().split("\n")).toHaveLength(1);
  await eventually("the terminal of the line says it, too", 120_000, () => line.news.find(({ kind }) => kind === "disk-full"));
  expect(await readdir(join(stateDir, "spool")), "nothing half-made").toEqual([]);

  await filler.release();
  const runId = await eventually("the line takes work again", 120_000, async () => {
    const { code, out } = await loraline(line, run);
    return code === 0 ? out.trim() : undefined;
  });
  await eventually("the run goes on", 120_000, async () =>
    (await clientOf(line).getRun({ run_id: runId })).phase === "running" ? true : undefined,
  );
  await rm(dataset);
});
