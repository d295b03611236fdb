/** Reads a large dataset once, in a process of its own, so that its memory can be measured. Prints JSON: rows, peak RSS and seconds. */
import { createReport, type FileSource, readRecords } from "@loraline/datasets";

const [container = "jsonl", total = "1000000000", file] = process.argv.slice(2);
const text = "The quick brown fox jumps over the lazy dog. ".repeat(11);
const lineOf: Record<string, (n: number) => string> = {
  jsonl: (n) => `${JSON.stringify({ instruction: `${text}${n}`, output: `${n} ${text}` })}\n`,
  json: (n) => `${n === 0 ? "[" : ","}${JSON.stringify({ instruction: `${text}${n}`, output: `${n} ${text}` })}\n`,
  csv: (n) => `${n === 0 ? "instruction,output\n" : ""}"${text}${n}\n, ""quoted""",${n} ${text}\n`,
  "utf-16": (n) => `${JSON.stringify({ instruction: `${text}${n}`, output: `${n} ${text}` })}\n`,
};

async function* generated(kind: string): AsyncGenerator<Uint8Array> {
  const line = lineOf[kind] as (n: number) => string;
  for (let bytes = 0, n = 0; bytes < Number(total);) {
    let block = "";
    while (block.length < 65_536) block += line(n++);
    const chunk = Buffer.from(block, kind === "utf-16" ? "utf16le" : "utf8");
    bytes += chunk.length;
    yield chunk;
  }
  if (kind === "json") yield Buffer.from("]");
}

const source: FileSource = file === undefined ? generated(container) : { file };
const start = performance.now();
const reading = await readRecords(source, { maxRowBytes: 8 * 1024 * 1024 });
const report = createReport();
let rows = 0;
for await (const batch of reading?.batches ?? []) {
  rows += batch.records.length + batch.rejections.length;
  // The report's analysis of every text takes minutes for a gigabyte; its memory is measured on the first rows.
  if (rows < 20_000) await report.add(batch);
}
const seconds = (performance.now() - start) / 1000;
console.log(JSON.stringify({ rows, peakMb: Math.round(process.resourceUsage().maxRSS / 1024), seconds }));
