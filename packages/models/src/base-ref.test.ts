import { createHash } from "node:crypto";
import { cp, mkdir, mkdtemp, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { baseVersion, readBaseOrigin, readBaseRef } from "./base-ref.ts";

let root: string;
let bases: string;
let dir: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "loraline-bases-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));
beforeEach(async () => {
  bases = await mkdtemp(join(root, "bases-"));
  dir = join(bases, "plain");
  await mkdir(dir);
  await writeFile(join(dir, "config.json"), "{}");
  await writeFile(join(dir, "model.safetensors"), "weights");
});

const sha = (text: string): string => createHash("sha256").update(text).digest("hex");
const expected = (files: Record<string, string>): string =>
  `sha256:${sha(
    Object.keys(files)
      .toSorted()
      .map((name) => `${sha(files[name] ?? "")}  ${name}\n`)
      .join(""),
  )}`;

test("a plain folder has the digest that prepare-base.py would have written; links, hidden files and folders do not matter", async () => {
  const digest = expected({ "config.json": "{}", "model.safetensors": "weights" });
  expect(await readBaseRef(dir)).toEqual({ name: "plain", revision: "unknown", digest });
  await writeFile(join(dir, ".gitattributes"), "x");
  await mkdir(join(dir, "original"));
  expect((await readBaseRef(dir)).digest).toBe(digest);

  const linked = join(bases, "elsewhere", "plain");
  await mkdir(linked, { recursive: true });
  for (const file of ["config.json", "model.safetensors"]) await symlink(join(dir, file), join(linked, file));
  expect(await readBaseRef(linked)).toEqual(await readBaseRef(dir));
});

test("other bytes are another base, also of the same length", async () => {
  const before = await readBaseRef(dir);
  const version = await baseVersion(dir);
  await writeFile(join(dir, "model.safetensors"), "weightz");
  await utimes(join(dir, "model.safetensors"), 1, 1);
  expect(await baseVersion(dir)).not.toBe(version);
  expect((await readBaseRef(dir)).digest).not.toBe(before.digest);
});

test("a base.json that says only where the base comes from leaves the rest to be computed", async () => {
  const plain = await readBaseRef(dir);
  expect(await readBaseOrigin(dir)).toBeUndefined();
  await writeFile(join(dir, "base.json"), JSON.stringify({ origin: { hub: "Qwen/Qwen3-8B", revision: "main" } }));
  expect(await readBaseRef(dir)).toEqual(plain);
  expect(await readBaseOrigin(dir)).toEqual({ hub: "Qwen/Qwen3-8B", revision: "main" });
  const version = await baseVersion(dir);
  await writeFile(join(dir, "model.safetensors"), "other weights");
  expect(await baseVersion(dir)).not.toBe(version);
  await writeFile(join(dir, "base.json"), JSON.stringify({ origin: { hub: "../no" } }));
  expect(await readBaseOrigin(dir)).toEqual({ made: expect.stringContaining("origin.hub is not understood") as string });
});

test("base.json is believed, and refused where it belongs to another folder or is none", async () => {
  const ref = { name: "plain", revision: "r1", digest: `sha256:${"a".repeat(64)}` };
  await writeFile(join(dir, "base.json"), JSON.stringify(ref));
  expect(await readBaseRef(dir)).toEqual(ref);
  await cp(dir, join(bases, "copy"), { recursive: true });
  await expect(readBaseRef(join(bases, "copy"))).rejects.toMatchObject({
    code: "BASE_INVALID",
    message: expect.stringMatching(/"plain".*"copy"/),
  });
  await writeFile(join(dir, "base.json"), "{}");
  await expect(readBaseRef(dir)).rejects.toMatchObject({ code: "BASE_INVALID" });
});

test("a base that is not there: those that are, by name", async () => {
  await mkdir(join(bases, "other"));
  await expect(readBaseRef(join(bases, "typo"))).rejects.toMatchObject({
    code: "BASE_MISSING",
    message: expect.stringMatching(/base "typo" is not here.*there are other, plain/),
  });
  await expect(readBaseRef(join(bases, "other"))).rejects.toMatchObject({ code: "BASE_MISSING" });
});
