/**
 * Where the chunks of a file end must not matter. The readers are called by themselves here: `openContainer` looks at the first
 * 64 KiB at once, so that a short file reaches them in one piece whatever its pieces were.
 */
import { describe, expect, it } from "vitest";
import { hasOnlyCarriageReturns, toUtf8, withLineFeeds } from "./text/decode-text.ts";
import type { RawRow } from "./raw-rows.ts";
import { readCsv } from "./text/read-csv.ts";
import { splitArray, splitLines } from "./text/split-rows.ts";

async function* pieces(bytes: Uint8Array, step: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += step) yield bytes.subarray(at, at + step);
}
type Shown = { line: number } & ({ value: unknown } | { code: string });
async function shown(batches: AsyncIterable<RawRow[]>): Promise<Shown[]> {
  const rows: Shown[] = [];
  for await (const batch of batches) {
    for (const row of batch) {
      const { line } = row;
      if ("refusal" in row) rows.push({ line, code: row.refusal.code });
      else rows.push({ line, value: "text" in row ? row.text : { ...row.value } });
    }
  }
  return rows;
}
const most = 40;
const long = "x".repeat(most * 2);
const steps = [1, 2, 3, 5, 7, 16, 41, 64, 100];

const csv = ["q,a", "1,b", `${long},b`, "2,c", `"a\nb",${long}`, `3,"d ""e""\r\nf"`, `${long},"t"`, '4,"你好 🙂"', "", "5,g"].join("\r\n");
const jsonl = ['{"a":"你好 🙂"}', "", `{"a":"${long}"}`, ' {"a":2}\r', "[1]", long, '{"a":"last"}'].join("\n");
const array = `\n[{"a":"\\"]},{\\\\"},\n[1,[2]],"\\\\",\n\n"${long}",{"a":"🙂"} ,3\n]\n`;

describe("rows are the same wherever chunks end", () => {
  const wide = { delimiter: ",", maxRowBytes: most } as const;
  it("CSV: lines count on behind rows that are too large, with line ends in their cells or without", async () => {
    const whole = await shown(readCsv(pieces(Buffer.from(csv), csv.length * 4), wide));
    expect(whole).toEqual([
      { line: 2, value: { q: "1", a: "b" } },
      { line: 3, code: "ROW_TOO_LARGE" },
      { line: 4, value: { q: "2", a: "c" } },
      { line: 5, code: "ROW_TOO_LARGE" },
      { line: 7, value: { q: "3", a: 'd "e"\r\nf' } },
      { line: 9, code: "ROW_TOO_LARGE" },
      { line: 10, value: { q: "4", a: "你好 🙂" } },
      { line: 12, value: { q: "5", a: "g" } },
    ]);
    for (const step of steps) expect([step, ...(await shown(readCsv(pieces(Buffer.from(csv), step), wide)))]).toEqual([step, ...whole]);
  });

  it.each([
    ["JSON Lines", splitLines, jsonl, 7],
    ["a JSON array", splitArray, array, 6],
  ] as const)("%s", async (_, split, text, rows) => {
    const whole = await shown(split(pieces(Buffer.from(text), text.length * 4), most));
    expect(whole.filter(({ line }) => line > 0)).toHaveLength(rows - (split === splitLines ? 1 : 0));
    for (const step of steps) expect([step, ...(await shown(split(pieces(Buffer.from(text), step), most)))]).toEqual([step, ...whole]);
  });

  it("UTF-16, half of a pair at the end of a chunk", async () => {
    const text = "a🙂你\ud83d b🙂";
    const bytes = Buffer.from(text, "utf16le");
    const decoded = async (encoding: "utf-16le" | "utf-16be", step: number): Promise<Buffer> => {
      const given = encoding === "utf-16le" ? bytes : Buffer.from(bytes).swap16();
      return Buffer.concat(await Array.fromAsync(toUtf8(pieces(given, step), encoding)));
    };
    const expected = Buffer.concat([Buffer.from("a🙂你"), Buffer.from([0xff]), Buffer.from(" b🙂")]);
    for (const step of [1, 2, 3, 4, 5, 100]) {
      expect(await decoded("utf-16le", step)).toEqual(expected);
      expect(await decoded("utf-16be", step)).toEqual(expected);
    }
  });

  it("takes no half of CRLF at the end of the first chunk for a line end of the Macintosh", async () => {
    expect(hasOnlyCarriageReturns(Buffer.from("a,b\r"))).toBe(false);
    expect(hasOnlyCarriageReturns(Buffer.from("a,b\r1,2\r"))).toBe(true);
    expect(Buffer.concat(await Array.fromAsync(withLineFeeds(pieces(Buffer.from("a\rb"), 1)))).toString()).toBe("a\nb");
  });
});
