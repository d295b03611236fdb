import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { z } from "zod";
import { openTrainerFile, readTrainerJson, tailOfTrainerFile, withTrainerFile } from "./trainer-files.ts";

let dir: string;
let root: string;
let work: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-trainer-files-"));
  root = join(dir, "attempt");
  work = join(root, "work");
  mkdirSync(join(work, "adapter"), { recursive: true });
  mkdirSync(join(dir, "credentials"));
  writeFileSync(join(dir, "credentials/password"), '{"password":"s3cret"}');
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));
const read = (path: string): Promise<string> => withTrainerFile(path, root, async (opened) => readFileSync(opened, "utf8"));

describe("what a trainer leaves", () => {
  it("is read where it really lies in its folder", async () => {
    writeFileSync(join(work, "adapter/weights"), "bytes");
    symlinkSync("weights", join(work, "adapter/same"));
    expect([await read(join(work, "adapter/weights")), await read(join(work, "adapter/same"))]).toEqual(["bytes", "bytes"]);
  });

  it.each<[string, () => string]>([
    [
      "a link to the courier's credentials",
      () => {
        symlinkSync(join(dir, "credentials/password"), join(work, "adapter/weights"));
        return join(work, "adapter/weights");
      },
    ],
    [
      "a folder that is a link",
      () => {
        rmSync(work, { recursive: true });
        symlinkSync(join(dir, "credentials"), work);
        return join(work, "password");
      },
    ],
    ["a path that leads out", () => join(work, "adapter/../../../credentials/password")],
    [
      "the courier's environment",
      () => {
        symlinkSync("/proc/self/environ", join(work, "adapter/weights"));
        return join(work, "adapter/weights");
      },
    ],
    [
      "a pipe that nobody writes",
      () => {
        execFileSync("mkfifo", [join(work, "adapter/weights")]);
        return join(work, "adapter/weights");
      },
    ],
    ["a folder", () => join(work, "adapter")],
  ])("is refused: %s", { timeout: 5000 }, async (_, make) => {
    const path = make();
    await expect(openTrainerFile(path, root)).rejects.toMatchObject({ code: "TRAINER_FILE_REFUSED" });
    expect(await tailOfTrainerFile(path, root)).toBe("");
    expect(await readTrainerJson(path, root, z.unknown())).toBeUndefined();
  });

  it("is the very file that was judged, though its path leads elsewhere since", async () => {
    const path = join(work, "adapter/weights");
    writeFileSync(path, "bytes");
    const found = await withTrainerFile(path, root, async (opened) => {
      rmSync(path);
      symlinkSync(join(dir, "credentials/password"), path);
      return readFileSync(opened, "utf8");
    });
    expect(found).toBe("bytes");
  });

  it("is no result if it is too long for one", async () => {
    writeFileSync(join(work, "result.json"), '{"a":1}');
    expect(await readTrainerJson(join(work, "result.json"), root, z.object({ a: z.int() }))).toEqual({ a: 1 });
    truncateSync(join(work, "result.json"), 65 * 1024 * 1024);
    expect(await readTrainerJson(join(work, "result.json"), root, z.unknown())).toBeUndefined();
    expect(await readTrainerJson(join(work, "none.json"), root, z.unknown())).toBeUndefined();
  });
});
