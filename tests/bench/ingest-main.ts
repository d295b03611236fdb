/** Measures rows of many formats to canonical records, as a stream: rows/s on one core and memory, without and with the report. Prints JSON. */
import { createReport, readRecords } from "@loraline/datasets";
import type { Row } from "./table.ts";

const million = 1_000_000;
/** Rows for the report: fewer, because it analyses every text. */
const reported = 100_000;

const rowOf = (n: number): unknown =>
  [
    { instruction: `回答以下用户问题,仅输出答案。${n}`, input: `1+${n}等于几?`, output: String(n + 1) },
    { instruction: `Name ${n} colours.`, output: "Red, green and blue are the first ones that come to my mind." },
    { messages: [turn("system", "Be brief."), turn("user", `Question ${n}?`), turn("assistant", `Answer ${n}.`)] },
    {
      conversations: [
        { from: "human", value: `你好 ${n}` },
        { from: "gpt", value: "你好!有什么我可以帮忙的吗?" },
      ],
    },
    { question: `How far is star ${n}?`, answer: "Some light years away from here." },
    { prompt: `Once upon a time, ${n} foxes`, completion: " lived in a forest." },
    { text: `这部电影真是太棒了!${n}`, label: n % 2 === 0 ? "积极" : "消极" },
    { source: `Hello, how are you? ${n}`, target: `你好,你怎么样?${n}` },
    { article: `A long article about the number ${n}, and what became of it.`, summary: "A number." },
    { tokens: ["张三", "去了", "北京", String(n)], labels: ["B-PER", "O", "B-LOC", "O"] },
    { prompt: `请解释量子力学。${n}`, chosen: "它是物理学的一个分支。", rejected: "不知道。" },
    { text: `Raw text that stands for itself, number ${n}, and goes on for a little while.` },
  ][n % 12];
const turn = (role: string, content: string) => ({ role, content });

/** Blocks of JSON Lines, as a file is read from a disk. In a block each text stands once. */
function rows(count: number): { source: AsyncIterable<Uint8Array>; bytes: number } {
  /** Divisor of both counts. */
  const perBlock = 12_500;
  const block = Buffer.from(Array.from({ length: perBlock }, (_, n) => `${JSON.stringify(rowOf(n))}\n`).join(""));
  const blocks = Math.round(count / perBlock);
  async function* source() {
    for (let n = 0; n < blocks; n++) for (let at = 0; at < block.length; at += 65_536) yield block.subarray(at, at + 65_536);
  }
  return { source: source(), bytes: block.length * blocks };
}

async function measure(what: string, count: number, withReport: boolean): Promise<Row> {
  const { source, bytes } = rows(count);
  const report = withReport ? createReport() : undefined;
  const before = process.memoryUsage.rss();
  let peak = before;
  let records = 0;
  let written = 0;
  const start = performance.now();
  const reading = await readRecords(source, { maxRowBytes: 1_000_000 });
  for await (const batch of reading?.batches ?? []) {
    if (batch.rejections.length > 0) throw new Error(`a row was rejected: ${batch.rejections[0]?.message}`);
    await report?.add(batch);
    records += batch.records.length;
    for (const record of batch.records) written += JSON.stringify(record).length;
    peak = Math.max(peak, process.memoryUsage.rss());
  }
  const seconds = (performance.now() - start) / 1000;
  if (records !== count || written === 0) throw new Error(`${records} records of ${count} rows`);
  return {
    what,
    value: `${Math.round(records / seconds / 1000)} k rows/s`,
    detail: `${records} rows of 12 formats, ${Math.round(bytes / 1e6)} MB, ${seconds.toFixed(1)} s on one core; RSS grew by ${Math.round((peak - before) / 1e6)} MB, peak ${Math.round(peak / 1e6)} MB`,
  };
}

// Warms up the code, as it is in a worker after its first file.
await measure("warm", 25_000, false);
const figures = [
  await measure("ingest: detection and canonical records", million, false),
  await measure("ingest: the same with the report", reported, true),
];
console.log(JSON.stringify(figures));
