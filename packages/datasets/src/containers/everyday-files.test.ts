/** Files as people have them: Excel, ZIP, plain text, CoNLL, and texts in other encodings than UTF-8. */
import type { DatasetMapping } from "@loraline/contracts";
import fc from "fast-check";
import { strToU8, zipSync } from "fflate";
import iconv from "iconv-lite";
import { describe, expect, it } from "vitest";
import { type Batch, readRecords } from "../read-records.ts";
import { decideArchiveFiles } from "./archives/decide-archive-files.ts";

async function* pieces(bytes: Uint8Array, step: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += step) yield bytes.subarray(at, at + step);
}
async function read(
  content: string | Uint8Array,
  { mapping, step = 7, ...options }: { mapping?: Partial<DatasetMapping>; step?: number; name?: string; maxRowBytes?: number } = {},
) {
  const bytes = typeof content === "string" ? Buffer.from(content) : content;
  const reading = await readRecords(pieces(bytes, step), {
    maxRowBytes: 10_000,
    ...options,
    mapping: mapping && { language: "auto", on_unknown: "fail", ...mapping },
  });
  const all: Batch = { records: [], rejections: [] };
  for await (const batch of reading?.batches ?? []) {
    all.records.push(...batch.records);
    all.rejections.push(...batch.rejections);
  }
  return { container: reading?.container, notes: reading?.notes ?? [], ...all };
}
const said = ({ records }: Batch): (string | undefined)[][] =>
  records.map(({ messages, text }) => messages?.map(({ content }) => content) ?? [text]);
const zip = (files: Record<string, string | Uint8Array>): Uint8Array =>
  zipSync(Object.fromEntries(Object.entries(files).map(([name, bytes]) => [name, typeof bytes === "string" ? strToU8(bytes) : bytes])));

/* --- encodings --- */

describe("a text that is not UTF-8", () => {
  const files = {
    gb18030: "问题,答案\n你好吗,很好\n今天天气怎么样?,今天天气很好。\n",
    big5: "question,answer\n你好嗎,很好\n今天天氣怎麼樣?,今天天氣很好。\n",
    shift_jis: "question,answer\nお元気ですか,はい、元気です\n首都はどこですか,東京です\n",
    "euc-jp": "question,answer\nお元気ですか,はい、元気です\n首都はどこですか,東京です\n",
    "euc-kr": "question,answer\n안녕하세요?,네 반갑습니다\n날씨가 어때요?,오늘 날씨가 좋네요\n",
    "windows-1252": "question;answer\nWie heißt du?;Ich heiße Jörg – “schön”.\nWo wohnst du?;In München.\n",
    "windows-1251": "question;answer\nКак дела?;Хорошо, спасибо.\nГде ты живёшь?;В Москве.\n",
  };
  it.each(Object.entries(files))("is detected, and told with its first words: %s", async (encoding, text) => {
    const bytes = iconv.encode(text, encoding);
    const expected = await read(text);
    expect(said(expected)).toHaveLength(2);
    for (const step of [1, 7, 100_000]) {
      const found = await read(bytes, { step });
      expect(said(found)).toEqual(said(expected));
      expect(found.notes).toMatchObject([
        { code: "ENCODING_DETECTED", message: expect.stringContaining(`read as ${encoding}: "`) as string },
      ]);
    }
    // The mapping's word is taken, and needs no note.
    expect(await read(bytes, { mapping: { encoding: encoding as "gb18030" } })).toMatchObject({ notes: [], records: expected.records });
  });

  const latin = {
    German: "Über was schreibst du?;Ich schreibe für Müller – schön groß.\nWo?;In München, fünf Straßen weiter.\n",
    French: "Où êtes-vous allés ?;À l’hôtel près de la forêt, c’était très beau.\nQuand ?;L’été passé, garçon.\n",
    Spanish: "¿Dónde está el niño?;Mañana estará aquí, señor.\n¿Qué?;¡Qué corazón!\n",
    Italian: "Perché è così?;La città è più bella.\nQuando?;Più tardi sarà così.\n",
    Swedish: "Vad är det för något?;Jag går på båten.\nVar?;Där små gröna äpplen växer.\n",
  };
  it.each(
    Object.entries(latin).flatMap(
      ([language, text]) =>
        [
          [language, "windows-1252", text],
          [language, "macintosh", text],
        ] as const,
    ),
  )("is not taken for another that knows its bytes: %s, %s", async (_, encoding, text) => {
    const found = await read(iconv.encode(`question;answer\n${text}`, encoding));
    expect(found.notes).toMatchObject([
      { code: "ENCODING_DETECTED", message: expect.stringContaining(`read as ${encoding}: "`) as string },
    ]);
    expect(
      said(found)
        .map((pair) => pair.join(";"))
        .join("\n"),
    ).toBe(text.trim());
  });

  it("is told with its first words, though a word takes up all the rest", async () => {
    const text = `${"Как дела? Хорошо, спасибо. Где ты живёшь? В Москве.\n".repeat(30)}${"a".repeat(200_000)}\n`;
    const found = await read(iconv.encode(text, "windows-1251"), { step: 1_000_000, name: "a.txt", maxRowBytes: 1_000_000 });
    expect(found.notes).toMatchObject([{ code: "ENCODING_DETECTED", message: expect.stringContaining(': "') as string }]);
  });

  it("behind a long English beginning is detected too", async () => {
    const row = (n: number) => JSON.stringify({ question: `question ${n}`, answer: "x".repeat(50) });
    const text = [
      ...Array.from({ length: 2000 }, (_, n) => row(n)),
      ...Array.from({ length: 9 }, (_, n) => JSON.stringify({ question: `今天天气怎么样${n}`, answer: "今天天气很好,适合出门散步。" })),
    ].join("\n");
    const found = await read(iconv.encode(text, "gb18030"), { step: 4096 });
    expect(found.rejections).toEqual([]);
    expect(said(found).at(-1)).toEqual(["今天天气怎么样8", "今天天气很好,适合出门散步。"]);
  });

  it("whose encoding cannot be told is refused, with the candidates", async () => {
    const bytes = Buffer.from('{"question":"\u0081\u008d\u00a0","answer":"\u00ff"}', "latin1");
    await expect(read(bytes)).rejects.toMatchObject({
      code: "FILE_ENCODING_UNCLEAR",
      message: expect.stringMatching(/not UTF-8.*Save the file as UTF-8, or name the encoding in the mapping/) as string,
    });
  });

  it("has a broken byte rejects the row of that byte only", async () => {
    const bytes = Buffer.concat([iconv.encode(files.gb18030, "gb18030"), Buffer.from([0xff]), Buffer.from(",x\n")]);
    const found = await read(bytes, { mapping: { encoding: "gb18030" } });
    expect(said(found)).toHaveLength(2);
    expect(found.rejections).toMatchObject([{ line: 4, code: "NOT_UTF8" }]);
  });
});

/* --- plain text --- */

describe("plain text", () => {
  const book = "Call me Ishmael, some years ago,\nnever mind how long.\n\n# Chapter 2\n\nI stuffed a shirt\nor two.\n";
  it.each(["a.txt", "A.TXT", "notes.md", "b.markdown", "a.txt.gz"])("in %s is one document", async (name) => {
    const found = await read(book, { name });
    expect(found).toMatchObject({ container: "text", rejections: [] });
    expect(said(found)).toEqual([[book.trim()]]);
  });

  it.each([
    "12/01/2024, 10:05 - Anna: Rain?\n12/01/2024, 10:06 - Ben: I like rain.\n",
    "[10:05 AM] Anna: Rain?\n[10:06 AM] Ben: I like rain.\n",
    "One, two.\n\nThree, four.\n\nFive, six.\n\n",
  ])("may be a chat's export or paragraphs with commas, which are no table: %#", async (log) => {
    const found = await read(log, { name: "chat.txt" });
    expect(found).toMatchObject({ container: "text", rejections: [] });
    expect(said(found)).toEqual([[log.trim()]]);
  });

  it("is paragraphs where the mapping says so, whatever the name", async () => {
    const found = await read(book, { mapping: { text_rows: "paragraph" }, name: "x" });
    expect(said(found)).toEqual([
      ["Call me Ishmael, some years ago,\nnever mind how long."],
      ["# Chapter 2"],
      ["I stuffed a shirt\nor two."],
    ]);
    expect(found.records.map(({ meta }) => meta.line)).toEqual([1, 4, 6]);
  });

  it.each([
    ["JSON Lines", '{"question":"a","answer":"b"}\n{"question":"c","answer":"d"}\n', "jsonl"],
    ["a table", "question,answer\na,b\nc,d\n", "csv"],
    ["a JSON array", '[{"question":"a","answer":"b"},{"question":"c","answer":"d"}]', "json-array"],
  ])("is not what %s in a .txt is", async (_, content, container) => {
    expect(await read(content, { name: "a.txt" })).toMatchObject({ container, records: [{}, {}] });
  });

  it("of any length is cut between paragraphs, and loses nothing", async () => {
    const paragraphs = Array.from({ length: 300 }, (_, n) => `Paragraph ${n} ${"ü".repeat(40)}\nand its second line.`);
    const found = await read(paragraphs.join("\n\n"), { name: "a.txt", maxRowBytes: 2000, step: 500 });
    expect(found.rejections).toEqual([]);
    expect(found.records.length).toBeGreaterThan(10);
    expect(found.records.map(({ text }) => text).join("\n\n")).toBe(paragraphs.join("\n\n"));
  });

  it("without a line end is cut between characters, and loses nothing", async () => {
    const text = "äö€".repeat(5000);
    const found = await read(text, { name: "a.txt", maxRowBytes: 999, step: 333 });
    expect(found.rejections).toEqual([]);
    expect(found.records.map(({ text: part }) => part).join("")).toBe(text);
  });

  it("of any kind gives all its words back", async () => {
    const line = fc.string({ unit: fc.constantFrom("a", "é", "中", " ", "#", "\t", "😀") });
    await fc.assert(
      fc.asyncProperty(
        fc.array(line, { maxLength: 30 }),
        fc.integer({ min: 1, max: 40 }),
        fc.constantFrom("document", "paragraph"),
        async (lines, step, unit) => {
          const found = await read(lines.join("\n"), { step, maxRowBytes: 64, mapping: { text_rows: unit } });
          const words = (text: string) => text.replace(/\s/g, "");
          expect(words(said(found).flat().join(""))).toBe(words(lines.join("")));
        },
      ),
    );
  });
});

/* --- CoNLL --- */

describe("CoNLL", () => {
  it.each([
    ["CoNLL-2003", "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"],
    ["two columns with tabs", "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\n\n"],
  ])("is read as sentences: %s", async (_, content) => {
    const found = await read(content);
    expect(found).toMatchObject({ container: "conll", rejections: [] });
    expect(found.records).toMatchObject([{ meta: { format: "token-labels" } }, { meta: { format: "token-labels" } }]);
    expect(said(found)[0]?.[1]).toContain('"ORG"');
  });

  it("gives parts of speech from CoNLL-U", async () => {
    const row = (...cells: string[]) => cells.join("\t");
    const content = [
      "# text = vámonos al mar",
      row("1-2", "vámonos", "_", "_", "_", "_", "_", "_", "_", "_"),
      row("1", "vamos", "ir", "VERB", "_", "_", "0", "root", "_", "_"),
      row("2", "nos", "nosotros", "PRON", "_", "_", "1", "obj", "_", "_"),
      "",
      row("1", "mar", "mar", "NOUN", "_", "_", "0", "root", "_", "_"),
      "",
    ].join("\n");
    const found = await read(content);
    expect(found).toMatchObject({ container: "conll", records: [{}, {}], rejections: [] });
    expect(JSON.stringify(said(found)[0])).toMatch(/vamos.*nos.*VERB.*PRON/);
  });

  it("loses only the sentence of a broken line, and names the line", async () => {
    const found = await read("a O\n\nb\nc O\n\nd O\n\n".replace("b\n", "b O\n").replace("c O", "c"));
    expect(found.records).toHaveLength(0);
    const later = await read(`${"a O\n\n".repeat(150)}b O\nc\n\nd O\n`);
    expect(later.records).toHaveLength(151);
    expect(later.rejections).toMatchObject([
      {
        line: 301,
        code: "CONLL_LINE",
        message: expect.stringContaining("line 302 has 1 column; a token and its tag are expected") as string,
      },
    ]);
  });
});

/* --- Excel --- */

/** A workbook as Excel writes it: shared strings, numbers, a formula with its last value, a date, sparse rows. */
function workbook({ rows, second = "" }: { rows: string; second?: string }): Uint8Array {
  const ns = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"';
  const r = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"';
  const sheet = (body: string) => `<?xml version="1.0"?><worksheet ${ns}><sheetData>${body}</sheetData></worksheet>`;
  return zip({
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
    "xl/workbook.xml": `<workbook ${ns} ${r}><sheets><sheet name="Fragen" sheetId="1" r:id="rId1"/><sheet name="Notes" sheetId="2" r:id="rId2"/></sheets></workbook>`,
    "xl/_rels/workbook.xml.rels":
      '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" Target="worksheets/sheet1.xml"/><Relationship Id="rId2" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" Target="worksheets/sheet2.xml"/><Relationship Id="rId3" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/sharedStrings" Target="sharedStrings.xml"/></Relationships>',
    "xl/sharedStrings.xml": `<sst ${ns}><si><t>question</t></si><si><t>answer</t></si><si><r><t>Wie </t></r><r><t>heißt du?</t></r></si></sst>`,
    "xl/worksheets/sheet1.xml": sheet(rows),
    "xl/worksheets/sheet2.xml": sheet(second),
  });
}
const header = '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c></row>';

const farRows = (count: number): string =>
  Array.from({ length: count }, (_, index) => `<row r="${index + 2}"><c r="XFD${index + 2}"><v>1</v></c></row>`).join("");

const cellsOf = (row: number, ...texts: (string | null)[]): string =>
  `<row r="${row}">${texts.map((text, at) => (text === null ? "" : `<c r="${"ABC"[at]}${row}" t="inlineStr"><is><t>${text}</t></is></c>`)).join("")}</row>`;

describe("an Excel workbook", () => {
  it("may have a title above the names of its columns, which is told", async () => {
    const rows = `${cellsOf(1, "FAQ of our shop")}${cellsOf(3, "question", "answer")}${cellsOf(4, "How?", "So.")}${cellsOf(5, "When?", "Now.")}`;
    const found = await read(workbook({ rows, second: "" }));
    expect(found).toMatchObject({
      rejections: [],
      notes: [{ code: "TITLE_LEFT_OUT", message: 'what stands above the names of the columns is left out: "FAQ of our shop".' }],
    });
    expect(said(found)).toEqual([
      ["How?", "So."],
      ["When?", "Now."],
    ]);
    expect(found.records.map(({ meta }) => meta.line)).toEqual([4, 5]);
  });
  it("of one column has no title, though a remark stands beside one of its texts", async () => {
    const rows = `${cellsOf(1, "text")}${cellsOf(2, "One.")}${cellsOf(3, "Two.", "remark")}${cellsOf(4, "Three.")}${cellsOf(5, "Four.")}`;
    const found = await read(workbook({ rows, second: "" }));
    expect([found.notes, said(found)]).toEqual([[], [["One."], ["Three."], ["Four."]]]);
    expect(found.rejections).toMatchObject([{ code: "CSV_RAGGED", line: 3 }]);
  });
  it("may say on its first sheet what it is about", async () => {
    const found = await read(
      workbook({ rows: cellsOf(1, "Our FAQ"), second: `${cellsOf(1, "question", "answer")}${cellsOf(2, "How?", "So.")}` }),
    );
    expect(said(found)).toEqual([["How?", "So."]]);
    expect(found.notes).toMatchObject([
      { code: "SHEETS_LEFT_OUT", message: expect.stringContaining('only the sheet "Notes" is read') as string },
    ]);
  });

  it("is its first sheet with rows; a formula is the value that was saved with it", async () => {
    const rows = `${header}<row r="2"><c r="A2" t="s"><v>2</v></c><c r="B2" t="inlineStr"><is><t>Jörg</t></is></c></row><row r="4"><c r="A4" t="str"><f>HYPERLINK("http://evil")</f><v>6 × 7?</v></c><c r="B4"><f>6*7</f><v>42</v></c></row>`;
    const found = await read(workbook({ rows, second: header }));
    expect(found).toMatchObject({
      container: "xlsx",
      rejections: [],
      notes: [{ code: "SHEETS_LEFT_OUT", message: expect.stringContaining('"Notes"') as string }],
    });
    expect(said(found)).toEqual([
      ["Wie heißt du?", "Jörg"],
      ["6 × 7?", "42"],
    ]);
    expect(found.records.map(({ meta }) => meta.line)).toEqual([2, 4]);
  });

  it("names the cells whose formulas were saved without a value, and takes an empty value as such", async () => {
    const cell = (name: string, body: string, type = "") => `<c r="${name}"${type}>${body}</c>`;
    const openpyxl = `<row r="2">${cell("A2", "<f>1+1</f><v/>")}${cell("B2", '<f>A2&amp;"x"</f><v></v>', ' s="1"')}</row>`;
    const shared = `<row r="3">${cell("A3", "<v>3</v>")}${cell("B3", '<f t="shared" si="0"/>')}</row>`;
    const empty = `<row r="4">${cell("A4", "<v>4</v>")}${cell("B4", '<f>""</f><v></v>', ' t="str"')}</row>`;
    const saved = `<row r="5">${cell("A5", "<v>5</v>")}${cell("B5", "<f>2*3</f><v>6</v>")}</row>`;
    const found = await read(workbook({ rows: header + openpyxl + shared + empty + saved }));
    expect(said(found)).toEqual([["5", "6"]]);
    expect(found.rejections).toMatchObject([
      { line: 2, code: "FORMULA_NOT_SAVED", message: expect.stringContaining("the cells A2, B2 hold formulas") as string },
      { line: 3, code: "FORMULA_NOT_SAVED", message: expect.stringContaining("the cell B3 holds a formula") as string },
      { line: 4, code: "EMPTY_ANSWER" },
    ]);
    // Whitespace without end is looked at once.
    const blank = `<row r="2">${cell("A2", "<v>1</v>")}${cell("B2", `<f>1</f>${" ".repeat(2_000_000)}<v>7</v>`)}</row>`;
    expect(said(await read(workbook({ rows: header + blank }), { step: 100_000 }))).toEqual([["1", "7"]]);
  });

  it("rejects rows as CSV does, by their number in the sheet", async () => {
    const rows = `${header}<row r="2"><c r="A2" t="inlineStr"><is><t>a</t></is></c></row><row r="3"><c r="A3" t="inlineStr"><is><t>a</t></is></c><c r="B3" t="inlineStr"><is><t>${"x".repeat(11_000)}</t></is></c></row>`;
    const found = await read(workbook({ rows }));
    expect(found.rejections).toMatchObject([
      { line: 2, code: "EMPTY_ANSWER", message: expect.stringContaining("row 2") as string },
      { line: 3, code: "ROW_TOO_LARGE" },
    ]);
  });

  it("that is damaged, or larger than memory allows, is refused with what to do", async () => {
    await expect(read(zip({ "xl/workbook.xml": "<workbook", "xl/worksheets/sheet1.xml": "<" }))).rejects.toMatchObject({
      code: "FILE_CORRUPT",
    });
    // A cell far away stands for all the empty ones before it.
    for (const far of ['<row r="2"><c r="XFE2"><v>1</v></c></row>', '<row r="1048577"><c r="A1048577"><v>1</v></c></row>', farRows(1000)]) {
      await expect(read(workbook({ rows: header + far }))).rejects.toMatchObject({
        code: "FILE_CORRUPT",
        message: expect.stringMatching(/16384 columns|10000000 cells/) as string,
      });
    }
    const bomb = zipSync({ "xl/workbook.xml": strToU8("<workbook/>"), "xl/worksheets/sheet1.xml": new Uint8Array(100 * 1024 ** 2) });
    await expect(read(bomb, { step: 100_000 })).rejects.toMatchObject({
      code: "FILE_TOO_LARGE",
      message: expect.stringContaining("Save the sheet as CSV") as string,
    });
  });
});

/* --- ZIP --- */

describe("a ZIP archive", () => {
  it("tells how much of its files' rows is read", async () => {
    const rows = Array.from({ length: 40 }, (_, n) => JSON.stringify({ question: `q ${n}`, answer: "a".repeat(50) })).join("\n");
    const bytes = zip({ "a.jsonl": rows, "b.jsonl": rows, "README.md": "x".repeat(100_000) });
    const shares: number[] = [];
    const reading = await readRecords(pieces(bytes, 1000), { maxRowBytes: 10_000, onShare: (share) => shares.push(share) });
    let records = 0;
    const seen: [share: number, records: number][] = [];
    for await (const batch of reading?.batches ?? []) seen.push([shares.at(-1) ?? -1, (records += batch.records.length)]);
    expect(shares[0]).toBe(0);
    expect(shares).toEqual(shares.toSorted((a, b) => a - b));
    expect(shares.at(-1)).toBe(1);
    // Half of the rows are half of the work, whatever stands beside them.
    expect(seen.find(([, read]) => read === 40)?.[0]).toBeLessThanOrEqual(0.5);
  });

  it("with a table that takes memory without end is refused", async () => {
    const noted = [new Uint8Array(1), { comment: "n".repeat(62_000) }] as const;
    const files = Object.fromEntries(Array.from({ length: 1100 }, (_, index) => [`${index}.txt`, [...noted]]));
    await expect(read(zipSync(files as Parameters<typeof zipSync>[0], { level: 0 }), { step: 1_000_000 })).rejects.toMatchObject({
      code: "FILE_TOO_LARGE",
      message: expect.stringContaining("without comments") as string,
    });
    await expect(read(zip({ [`${"n".repeat(1100)}.jsonl`]: "{" }), { step: 1000 })).rejects.toMatchObject({
      code: "CONTAINER_UNSUPPORTED",
      message: expect.stringContaining("shorter name") as string,
    });
  });

  it("of many files with the same fault gets few notes", async () => {
    const text = iconv.encode("Как дела? Хорошо, спасибо. Где ты живёшь? В Москве.\n", "windows-1251");
    const found = await read(zip(Object.fromEntries(Array.from({ length: 30 }, (_, index) => [`${index}.txt`, text]))), { step: 100_000 });
    expect(found.records).toHaveLength(30);
    expect(found.notes).toHaveLength(21);
    expect(found.notes.at(-1)).toEqual({ code: "ENCODING_DETECTED", message: "the same is noted of 10 more files." });
  });

  const jsonl = (...names: string[]) => names.map((name) => `${JSON.stringify({ question: name, answer: "x" })}\n`).join("");
  it("is its data files, in order, each row with its file", async () => {
    const found = await read(
      zip({
        "d/b.csv": "question,answer\nc,x\n",
        "d/a.jsonl": jsonl("a", "b") + "{\n",
        "d/": "",
        "__MACOSX/d/._a.jsonl": "junk",
        "README.md": "About",
      }),
    );
    expect(said(found).map(([question]) => question)).toEqual(["a", "b", "c"]);
    expect(found.rejections).toMatchObject([{ code: "NOT_JSON", message: expect.stringContaining("d/a.jsonl, line 3") as string }]);
    expect(found.notes).toMatchObject([{ code: "FILES_LEFT_OUT", message: expect.stringContaining("README.md") as string }]);
  });

  it("of a dataset's splits is its train split", async () => {
    const found = await read(
      zip({
        "data/train-00001-of-00002.jsonl": jsonl("b"),
        "data/train-00000-of-00002.jsonl": jsonl("a"),
        "data/test-00000-of-00001.jsonl": jsonl("t"),
        "dataset_info.json": "{}",
      }),
    );
    expect(said(found).map(([question]) => question)).toEqual(["a", "b"]);
    expect(found.notes).toMatchObject([{ message: expect.stringContaining("left out: data/test-00000-of-00001.jsonl") as string }]);
  });

  it("of texts is a document of each", async () => {
    const found = await read(zip({ "a.md": "# A\n\nText, more.", "b.txt": "B" }));
    expect(said(found)).toEqual([["# A\n\nText, more."], ["B"]]);
  });

  it("tells the encoding of each file", async () => {
    const found = await read(zip({ "a.csv": iconv.encode("问题,答案\n今天天气怎么样?,今天天气很好。\n", "gb18030") }));
    expect(found.notes).toMatchObject([{ code: "ENCODING_DETECTED", message: expect.stringMatching(/^a\.csv: /) as string }]);
  });

  it.each<[string, Uint8Array, string, RegExp]>([
    ["nothing known", zip({ "a.bin": "x" }), "CONTAINER_UNSUPPORTED", /no file of a known kind \(a\.bin\)/],
    ["nothing at all", zip({}), "CONTAINER_UNSUPPORTED", /it is empty/],
    ["another archive", zip({ "a.jsonl": zip({ "b.jsonl": jsonl("a") }) }), "CONTAINER_UNSUPPORTED", /inside of another/],
    ["a bomb", zipSync({ "a.jsonl": new Uint8Array(300 * 1024 ** 2) }), "FILE_TOO_LARGE", /as bombs do/],
    ["half of one", zip({ "a.jsonl": jsonl("a") }).subarray(0, 60), "FILE_CORRUPT", /damaged.*upload it again/],
  ])("that holds %s is refused", async (_, bytes, code, message) => {
    await expect(read(bytes, { step: 100_000 })).rejects.toMatchObject({ code, message: expect.stringMatching(message) as string });
  });

  it("with damaged bytes gives rows or a named error", async () => {
    const whole = zip({ "a.jsonl": jsonl("a", "b", "c"), "b.csv": "question,answer\na,b\n" });
    await fc.assert(
      fc.asyncProperty(fc.nat(whole.length - 1), fc.nat(255), async (at, byte) => {
        const bytes = whole.slice();
        bytes[at] = byte;
        const outcome = await read(bytes).then(
          () => "read",
          (error: { code?: string; message: string }) => error.code ?? error.message,
        );
        expect(outcome).toMatch(/^(read|CONTAINER_UNSUPPORTED|FILE_[A-Z_]+|CSV_HEADER)$/);
      }),
    );
  });
});

it("reads what save_to_disk writes, and leaves what describes it", () => {
  expect(
    decideArchiveFiles([
      "train/data-00000-of-00001.arrow",
      "train/state.json",
      "train/dataset_info.json",
      "test/data-00000-of-00001.arrow",
      "dataset_dict.json",
    ]),
  ).toEqual({
    read: ["train/data-00000-of-00001.arrow"],
    left: ["test/data-00000-of-00001.arrow"],
    pictures: [],
    captions: new Map(),
  });
  expect(decideArchiveFiles(["only-test.jsonl"])).toMatchObject({ read: ["only-test.jsonl"], left: [], pictures: [] });
});

/* --- files that look like others --- */

describe("a file that looks like another", () => {
  it("is a table where Excel says its delimiter above it", async () => {
    const found = await read("\ufeffsep=;\r\nquestion;answer\r\nHow?;So, or so.\r\n");
    expect(found).toMatchObject({ container: "csv", rejections: [] });
    expect(said(found)).toEqual([["How?", "So, or so."]]);
  });

  it.each([
    ["a chat's export", "[01.11.26, 10:00:00] Anna: How are you?\n[01.11.26, 10:00:09] Ben: Fine.\n"],
    ["a conversation that a template has written", "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"],
    ["Markdown with front matter", "---\ntitle: A guide\nlang: en\n---\n\nFirst, open the oven.\n"],
  ])("is plain text as its name says: %s", async (_, text) => {
    const found = await read(text, { name: "a.txt", step: 1000 });
    expect(found).toMatchObject({ container: "text", rejections: [] });
    expect(said(found)).toEqual([[text.trim()]]);
  });
  it("is a list of rows whatever its name says", async () => {
    expect(await read('[ {"question": "a", "answer": "b"} ]', { name: "a.txt" })).toMatchObject({
      container: "json-array",
      rejections: [],
    });
  });

  it.each([
    ["a Jupyter notebook", '{\n "cells": [\n  {"cell_type": "markdown", "source": ["a"]}\n ]\n}\n', "nbconvert"],
    ["JSON with comments", '// mine\n[\n{"question": "a", "answer": "b"}\n]\n', "remove them"],
    ["subtitles", "1\n00:00:01,000 --> 00:00:02,000\nHello\n", ".txt"],
    ["subtitles", "WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n", ".txt"],
    ["YAML", "- question: a\n  answer: |\n    b\n", "yq"],
    ["YAML", "# mine\n---\nversion: 1\ndata:\n  - a: b\n", "yq"],
  ])("is refused by its name: %s", async (name, text, advice) => {
    await expect(read(text, { step: 1000 })).rejects.toMatchObject({
      code: "CONTAINER_UNSUPPORTED",
      message: expect.stringMatching(new RegExp(`^the file is ${name};.*${advice.replace(".", "\\.")}`, "s")) as string,
    });
  });

  it("is refused with the archive that it holds", async () => {
    await expect(read(zip({ "inner.zip": zip({ "a.jsonl": '{"question": "a", "answer": "b"}' }) }))).rejects.toMatchObject({
      message: expect.stringContaining("inner.zip is an archive itself: unpack it first") as string,
    });
  });

  it.each([
    [
      "a comma behind each row",
      '{"question": "a", "answer": "b"},\n{"question": "c", "answer": "d"},\n',
      "There is a comma behind the row",
    ],
    ["a column that Python has printed", "messages\n\"[{'role': 'user', 'content': 'a'}]\"\n", "json.dumps"],
  ])("is rejected with what helps: %s", async (_, text, advice) => {
    const { records, rejections } = await read(text, { step: 1000 });
    expect(records).toEqual([]);
    for (const { message } of rejections) expect(message).toContain(advice);
    expect(rejections.length).toBeGreaterThan(0);
  });
});
