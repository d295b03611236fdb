/** Tokenizes records to a folder without any service, with the real base, and opens the folder with Python's `datasets`. */
import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Rec } from "@loraline/contracts";
import { tableFromIPC } from "apache-arrow";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { smollm2Dir } from "@loraline/testkit/servers";
import { chat, instruction, root, user } from "./tokenize-under-test.ts";
import { tokenFolderManifest, type TokenizedDrop, tokenizeRecords, type TokenizeRecordsOptions } from "./tokenize-records.ts";

const run = promisify(execFile);
let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "tokenize-records-test-"));
});
afterEach(() => rm(dir, { recursive: true }));

async function* batches(records: readonly Rec[], size = 300): AsyncGenerator<{ records: readonly Rec[] }> {
  for (let start = 0; start < records.length; start += size) yield { records: records.slice(start, start + size) };
}
const records = Array.from({ length: 3000 }, (_, index) =>
  index % 100 === 7
    ? { ...chat([user("A question without an answer")]), meta: { line: index + 1, format: "messages" } }
    : instruction(index + 1, `Question number ${index}: 你好?`, `Answer ${index} 🙂. `.repeat(1 + (index % 5))),
);

async function tokenize(some: readonly Rec[], options: Partial<TokenizeRecordsOptions> = {}) {
  const dropped: TokenizedDrop[] = [];
  const outDir = options.outDir ?? join(dir, "out");
  const manifest = await tokenizeRecords({
    batches: batches(some),
    baseDir: smollm2Dir,
    outDir,
    onDropped: (one) => void dropped.push(one),
    ...options,
  });
  const rows: { input_ids: number[]; labels: number[]; seq_lengths: number[] }[] = [];
  for (const { file } of manifest.shards) {
    for (const row of tableFromIPC(await readFile(join(outDir, file)))) {
      const list = (name: string): number[] => [...(row[name] as Iterable<number>)];
      rows.push({ input_ids: list("input_ids"), labels: list("labels"), seq_lengths: list("seq_lengths") });
    }
  }
  const text = (name: string): Promise<string> => readFile(join(outDir, name), "utf8");
  return { manifest, dropped, rows, outDir, lines: (await text("lines.txt")).trimEnd().split("\n"), text };
}

describe("tokenizing into a folder", () => {
  it("keeps the file's order, names each record that gives no row, and Python opens the shards", { timeout: 120_000 }, async () => {
    const large = await tokenize(records, { shardBytes: 100_000 });
    const lost = records.filter((_, index) => index % 100 === 7).map(({ meta }) => meta.line);
    expect(large.dropped.map(({ line, code }) => [line, code])).toEqual(lost.map((line) => [line, "NO_SUPERVISED"]));
    expect(
      (await large.text("dropped.jsonl"))
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as unknown),
    ).toEqual(large.dropped);
    expect(large.lines.map(Number)).toEqual(records.map(({ meta }) => meta.line).filter((line) => !lost.includes(line)));
    expect(large.rows).toHaveLength(large.lines.length);
    expect(tokenFolderManifest.parse(JSON.parse(await large.text("manifest.json")))).toEqual(large.manifest);
    expect(large.manifest).toMatchObject({ packed: false, templateFamily: "chatml", dropped: { NO_SUPERVISED: 30 } });
    expect(large.manifest.totals).toMatchObject({ records: 3000, rows: 2970, sequences: 2970, dropped: 30 });
    expect(large.manifest.shards.length).toBeGreaterThan(2);

    // Few records are encoded on the main thread, many by threads. The results must be equal.
    const some = records.slice(1000, 1100);
    const { rows } = await tokenize(some, { outDir: join(dir, "few") });
    const first = large.lines.indexOf(String(some[0]?.meta.line));
    expect(rows).toEqual(large.rows.slice(first, first + rows.length));

    await run("sh", ["tests/bench/tokenize-env.sh"], { cwd: root });
    const script = `
import json, sys
from datasets import Dataset, concatenate_datasets
ours = concatenate_datasets([Dataset.from_file(path) for path in sys.argv[1:]])
print(json.dumps({"columns": ours.column_names, "rows": ours.to_list()}))`;
    const { stdout } = await run(
      join(root, ".cache/bench-datasets/bin/python"),
      ["-c", script, ...large.manifest.shards.map(({ file }) => join(large.outDir, file))],
      { maxBuffer: 2 ** 28 },
    );
    expect(JSON.parse(stdout)).toEqual({ columns: ["input_ids", "labels", "seq_lengths"], rows: large.rows });
  });

  it("packs when asked to, and says from which lines each row comes", async () => {
    const some = records.slice(0, 100).filter(({ meta }) => meta.line !== 8);
    const single = await tokenize(some);
    const packed = await tokenize(some, { tokenize: { packing: true, max_length: 256 } });
    expect(packed.manifest).toMatchObject({ packed: true, totals: { sequences: 99, rows: packed.rows.length } });
    expect(packed.rows.length).toBeLessThan(50);
    const expected = new Map(single.lines.map((line, index) => [line, single.rows[index]?.input_ids]));
    for (const [index, row] of packed.rows.entries()) {
      const ids = (packed.lines[index] as string).split(" ").flatMap((line) => expected.get(line) ?? []);
      expect(row.input_ids).toEqual(ids);
    }
  });

  it("writes its own folder anew, and no other", async () => {
    const first = await tokenize(records.slice(0, 50), { shardBytes: 1000 });
    const again = await tokenize(records.slice(0, 5));
    expect(first.manifest.shards.length).toBeGreaterThan(again.manifest.shards.length);
    expect((await readdir(again.outDir)).sort()).toEqual(["dropped.jsonl", "lines.txt", "manifest.json", "shard-00000.arrow"]);
    await writeFile(join(again.outDir, "notes.txt"), "mine");
    await expect(tokenize(records.slice(0, 5))).rejects.toMatchObject({
      code: "OUT_NOT_EMPTY",
      message: expect.stringContaining("notes.txt") as string,
    });
  });

  it("stops when asked to", async () => {
    const stopping = new AbortController();
    async function* endless() {
      for (;;) {
        yield { records };
        if (stopping.signal.aborted) return;
        stopping.abort(new Error("enough"));
      }
    }
    await expect(tokenize([], { batches: endless(), signal: stopping.signal })).rejects.toThrow("enough");
  });
});
