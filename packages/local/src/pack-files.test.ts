import { mkdir, mkdtempDisposable, readFile, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import { checkData } from "./data-files.ts";
import { packFiles } from "./pack-files.ts";

const row = (question: string): string => `${JSON.stringify({ question, answer: "x" })}\n`;

async function folder(files: Record<string, string>) {
  const dir = await mkdtempDisposable(join(tmpdir(), "loraline-pack-test-"));
  for (const [name, content] of Object.entries(files)) {
    await mkdir(dirname(join(dir.path, name)), { recursive: true });
    await writeFile(join(dir.path, name), content);
  }
  return dir;
}

it("reads a folder as one dataset, and names what it leaves", async () => {
  await using dir = await folder({
    "train/b.jsonl": row("b"),
    "train/a.csv": "question,answer\na,x\n",
    "test/t.jsonl": row("t"),
    "README.md": "About",
    ".git/x.json": "{}",
  });
  await using packed = await packFiles([dir.path]);
  expect(packed.left).toEqual(["README.md", "test/t.jsonl"]);
  const { report, problem } = await checkData({ file: packed.path, name: packed.name, minRecords: 1 });
  expect({ records: report.records, problem }).toEqual({ records: 2, problem: null });
});

it("gives equal bytes for equal files, whenever they were written", async () => {
  await using one = await folder({ "a.jsonl": row("a"), "b.jsonl": row("b") });
  await using other = await folder({ "b.jsonl": row("b"), "a.jsonl": row("a") });
  await utimes(join(other.path, "a.jsonl"), 1e9, 1e9);
  await using first = await packFiles([one.path]);
  await using second = await packFiles([other.path]);
  expect((await readFile(first.path)).equals(await readFile(second.path))).toBe(true);
});

it("takes several files as they are named, also two of one name", async () => {
  await using dir = await folder({ "x/rows.txt": row("a"), "y/rows.txt": row("b") });
  await using packed = await packFiles([join(dir.path, "y/rows.txt"), join(dir.path, "x/rows.txt")]);
  const { report } = await checkData({ file: packed.path, name: packed.name });
  expect(report).toMatchObject({ records: 2, formats: { "question-answer": 2 } });
});

it("gives one file as it is, and says what is missing", async () => {
  await using dir = await folder({ "only.jsonl": row("a"), "empty/.keep": "" });
  const path = join(dir.path, "only.jsonl");
  await using packed = await packFiles([path]);
  expect(packed).toMatchObject({ path, name: "only.jsonl", left: [] });
  await expect(packFiles([join(dir.path, "empty")])).rejects.toMatchObject({
    code: "FILE_MISSING",
    message: expect.stringContaining("has no data file (.keep)") as string,
  });
  await expect(packFiles([join(dir.path, "nothing")])).rejects.toMatchObject({
    code: "FILE_MISSING",
    message: expect.stringContaining("there is no file or folder") as string,
  });
});
