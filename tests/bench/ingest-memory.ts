/** Measures the peak memory of reading a gigabyte in each container, each in a process of its own with the heap flags of `loraline data check`. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Row } from "./table.ts";

const total = 1_000_000_000;
/** Heap flags. Without them V8 collects little garbage on a machine with much memory. */
const heapFlags = ["--max-semi-space-size=2", "--max-old-space-size=512"];

const root = join(import.meta.dirname, "../..");

function run(program: string, args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")}: ${stderr}`);
  return stdout;
}

export async function benchIngestMemory(): Promise<Row[]> {
  const dir = mkdtempSync(join(tmpdir(), "loraline-bench-"));
  const rows: Row[] = [];
  try {
    for (const container of ["jsonl", "json", "csv", "utf-16", "jsonl.gz", "parquet", "arrow"]) {
      const file = join(dir, container);
      const written = ["jsonl.gz", "parquet", "arrow"].includes(container);
      if (written) run(join(root, ".venv/bin/python"), [join(import.meta.dirname, "write_large.py"), file, container, String(total)]);
      const main = join(import.meta.dirname, "ingest-memory-main.ts");
      const out = run(process.execPath, [
        ...heapFlags,
        "--conditions=@loraline/source",
        main,
        container,
        String(total),
        ...(written ? [file] : []),
      ]);
      const { rows: read, peakMb, seconds } = JSON.parse(out) as { rows: number; peakMb: number; seconds: number };
      rows.push({
        what: `ingest: 1 GB of ${container}`,
        value: `${peakMb} MB peak RSS`,
        detail: `${read} rows in ${seconds.toFixed(1)} s on one core, the process's own ${written ? "" : "and the generator's "}memory included; report on the first 20,000`,
      });
      if (written) rmSync(file);
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
  return rows;
}
