/** What is uploaded by mistake, damaged, or made to harm: a named rejection or error with place and remedy, in bounded time and memory. */
import { constants, gzipSync, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Batch, readRecords, type ReadRecordsOptions } from "../read-records.ts";

const options: ReadRecordsOptions = { maxRowBytes: 2000 };
const good = (n: number): string => JSON.stringify({ question: `q${n}`, answer: `a${n}` });

async function* pieces(bytes: Uint8Array, step: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += step) yield bytes.subarray(at, at + step);
}
async function read(content: string | Uint8Array, { step = 64, ...settings }: Partial<ReadRecordsOptions> & { step?: number } = {}) {
  const bytes = typeof content === "string" ? Buffer.from(content) : content;
  const reading = await readRecords(pieces(bytes, step), { ...options, ...settings });
  const all: Batch = { records: [], rejections: [] };
  for await (const batch of reading?.batches ?? []) {
    all.records.push(...batch.records);
    all.rejections.push(...batch.rejections);
  }
  return { container: reading?.container, ...all };
}
const linesOf = ({ records }: Batch): number[] => records.map(({ meta }) => meta.line);
const codesOf = ({ rejections }: Batch): (string | number)[][] => rejections.map(({ line, code }) => [line, code]);

/** The beginning of a ZIP file, up to the name of its first member. */
function zip(...members: string[]): Buffer {
  return Buffer.concat(
    members.map((name) => {
      const head = Buffer.alloc(30);
      head.write("PK\u0003\u0004", "latin1");
      head.writeUInt16LE(name.length, 26);
      return Buffer.concat([head, Buffer.from(name), Buffer.alloc(20)]);
    }),
  );
}

describe("a file of another kind", () => {
  it.each<[string, string | Buffer, RegExp]>([
    ["docx", zip("[Content_Types].xml", "word/document.xml"), /a Word document/],
    ["torch", zip("archive/data.pkl"), /a PyTorch file.*pickle can run code/],
    ["xls", Buffer.from([0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1, 0, 0]), /an old Excel or Word file/],
    ["pdf", "%PDF-1.7\n1 0 obj", /a PDF document.*Export the rows/],
    ["pickle", Buffer.from([0x80, 0x04, 0x95, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x5d]), /a Python pickle.*never opened/],
    [
      "safetensors",
      Buffer.concat([Buffer.from([40, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('{"lora_A":{}}')]),
      /a safetensors file.*not a dataset/,
    ],
    ["sqlite", "SQLite format 3\0....", /an SQLite database/],
    ["bzip2", "BZh91AY&SY....", /a bzip2 file.*Unpack it first/],
    ["xz", Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00]), /an xz file/],
    ["page", "\n<!doctype html>\n<html lang=en>", /a web page \(HTML\).*Download the file itself/],
    ["lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", /a Git LFS pointer.*git lfs pull/],
    ["utf-32", Buffer.from([0xff, 0xfe, 0, 0, 0x7b, 0, 0, 0]), /UTF-32 text.*Save it as UTF-8/],
    ["npy", Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0]), /a NumPy array/],
  ])("is called by its name: %s", async (_, content, message) => {
    for (const bytes of [Buffer.from(content as string), gzipSync(content)]) {
      await expect(read(bytes, { step: 5 })).rejects.toMatchObject({
        code: "CONTAINER_UNSUPPORTED",
        message: expect.stringMatching(message) as string,
      });
    }
  });

  it.each(["ORCID,name\n1,a\n", "PAR1,PAR2\n1,a\n", "PARENT,child\nx,y\n", "BZhang,x\n1,2\n", "GIF8,x\n1,2\n"])(
    "is no CSV that begins like one: %j",
    async (csv) => {
      expect(await read(csv)).toMatchObject({ container: "csv", rejections: [{ code: "FORMAT_UNKNOWN" }] });
    },
  );
});

describe("packed files", () => {
  const text = Array.from({ length: 500 }, (_, n) => `${good(n)}\n`).join("");
  const packers = [
    ["gzip", gzipSync],
    // With a checksum, as the command line tool writes it; Node leaves the checksum out.
    ["zstd", (content: string | Buffer) => zstdCompressSync(content, { params: { [constants.ZSTD_c_checksumFlag]: 1 } })],
  ] as const;

  it.each(packers)("%s that was cut off is an error that says how many rows were read", async (name, pack) => {
    const whole = pack(text);
    const error = await read(whole.subarray(0, whole.length - 20)).catch((caught: unknown) => caught);
    expect(error).toMatchObject({
      code: "FILE_TRUNCATED",
      message: expect.stringMatching(new RegExp(`the ${name} data ends too early.*Upload it again`)) as string,
    });
    const begun = pack(text.slice(0, 9000));
    await expect(read(Buffer.concat([begun, whole.subarray(0, 30)]))).rejects.toMatchObject({
      code: "FILE_TRUNCATED",
      message: expect.stringMatching(/\(Rows read until there: [1-9]\d*\.\)$/) as string,
    });
  });

  it.each(packers)("%s with damage or something else behind it is an error", async (name, pack) => {
    const whole = pack(text);
    const damaged = Buffer.from(whole);
    damaged.fill(0xa5, whole.length >> 1, (whole.length >> 1) + 20);
    await expect(read(damaged)).rejects.toMatchObject({ code: "FILE_CORRUPT", message: expect.stringContaining(name) as string });
    await expect(read(Buffer.concat([whole, Buffer.from("and more")]))).rejects.toMatchObject({ code: "FILE_CORRUPT" });
  });

  it.each(packers)("%s that unpacks to far too much stops early", async (_, pack) => {
    const bomb = pack(Buffer.alloc(40_000_000, "\n"));
    const unpackLimits = { maxUnpackedBytes: 1e9, maxRatio: 100, ratioFromBytes: 1_000_000 };
    await expect(read(bomb, { unpackLimits, step: 65_536 })).rejects.toMatchObject({
      code: "FILE_TOO_LARGE",
      message: expect.stringMatching(/100 times its size/) as string,
    });
    await expect(read(pack(text), { unpackLimits: { ...unpackLimits, maxUnpackedBytes: 5000 } })).rejects.toMatchObject({
      code: "FILE_TOO_LARGE",
    });
  });

  it("are unpacked twice, and not for ever", async () => {
    expect((await read(gzipSync(zstdCompressSync(text)))).records).toHaveLength(500);
    await expect(read(gzipSync(gzipSync(gzipSync(text))))).rejects.toMatchObject({
      code: "CONTAINER_UNSUPPORTED",
      message: expect.stringMatching(/packed more than 2 times/) as string,
    });
  });
});

describe("text", () => {
  it("with NUL bytes, lone surrogates or broken UTF-16 costs the row it is in", async () => {
    const text = [
      good(1),
      '{"question":"a\0b","answer":"c"}',
      String.raw`{"question":"\ud83d","answer":"c"}`,
      String.raw`{"question":"\u0000","answer":"d"}`,
    ];
    expect(codesOf(await read(text.join("\n")))).toEqual([
      [2, "NOT_JSON"],
      [3, "LONE_SURROGATE"],
    ]);
    const utf16 = Buffer.from(`\uFEFF${good(1)}\n{"question":"\ud83d","answer":"c"}\n${good(3)}`, "utf16le");
    const broken = await read(utf16, { step: 3 });
    expect([linesOf(broken), codesOf(broken)]).toEqual([[1, 3], [[2, "NOT_UTF8"]]]);
    const odd = await read(utf16.subarray(0, utf16.length - 1), { step: 3 });
    expect([linesOf(odd), codesOf(odd)]).toEqual([
      [1],
      [
        [2, "NOT_UTF8"],
        [3, "NOT_UTF8"],
      ],
    ]);
  });

  it("with a broken byte among many is rejected alone, with what to do", async () => {
    const lines = Array.from({ length: 40 }, (_, n) => good(n));
    lines[7] = '{"question":"caf\u0001","answer":"x"}';
    const bytes = Buffer.from(lines.join("\n"));
    bytes[bytes.indexOf(1)] = 0x81;
    const { records, rejections } = await read(bytes);
    expect(records).toHaveLength(39);
    expect(rejections).toMatchObject([
      { line: 8, code: "NOT_UTF8", message: expect.stringMatching(/Save the file as UTF-8.*GBK/) as string },
    ]);
  });

  it("in lines of any size takes the memory of a row", async () => {
    const before = process.memoryUsage().arrayBuffers;
    let most = 0;
    async function* endless(): AsyncGenerator<Uint8Array> {
      yield Buffer.from(`${good(1)}\n{"question":"`);
      const block = Buffer.alloc(1_000_000, "x");
      for (let n = 0; n < 100; n++) {
        most = Math.max(most, process.memoryUsage().arrayBuffers - before);
        yield block;
      }
      yield Buffer.from(`"}\n${good(3)}\n`);
    }
    const reading = await readRecords(endless(), options);
    const all: Batch = { records: [], rejections: [] };
    for await (const batch of reading?.batches ?? []) {
      all.records.push(...batch.records);
      all.rejections.push(...batch.rejections);
    }
    expect(linesOf(all)).toEqual([1, 3]);
    expect(all.rejections).toMatchObject([
      { line: 2, code: "ROW_TOO_LARGE", message: expect.stringMatching(/^line 2 has 1000000\d\d bytes/) as string },
    ]);
    expect(most).toBeLessThan(20_000_000);
  });

  it("in very short lines takes no more memory than in long ones", async () => {
    const text = Buffer.from("a\n".repeat(1_500_000));
    let [before, most] = [0, 0];
    async function* lines(): AsyncGenerator<Uint8Array> {
      before = process.memoryUsage().rss;
      for (let at = 0; at < text.length; at += 100_000) {
        yield text.subarray(at, at + 100_000);
        most = Math.max(most, process.memoryUsage().rss - before);
      }
    }
    const reading = await readRecords(lines(), { ...options, maxRowBytes: 4_000_000, name: "a.txt" });
    let records = 0;
    for await (const batch of reading?.batches ?? []) records += batch.records.length;
    expect(records).toBe(1);
    expect(most).toBeLessThan(200_000_000);
  });

  it("of one row, of duplicates only, of empty answers, is counted", async () => {
    expect(linesOf(await read(good(1)))).toEqual([1]);
    const same = await read(`${good(1)}\n`.repeat(50));
    expect([same.records.length, new Set(same.records.map(({ id }) => id)).size]).toEqual([50, 1]);
    expect(codesOf(await read('{"question":"a","answer":""}\n'.repeat(3)))).toEqual([1, 2, 3].map((line) => [line, "EMPTY_ANSWER"]));
  });
});

describe("CSV", () => {
  it("keeps delimiters, quotes and line ends inside of quotes, and the line where a row begins", async () => {
    const csv = 'question,answer\r\n"a, ""b""","c\r\nd"\r\n\r\ne,f"g"\r\n"h" ,i\r\n';
    const { container, records, rejections } = await read(csv, { step: 3 });
    expect([container, rejections]).toEqual(["csv", []]);
    expect(records.map(({ meta, messages }) => [meta.line, messages?.at(-2)?.content, messages?.at(-1)?.content])).toEqual([
      [2, 'a, "b"', "c\r\nd"],
      [5, "e", 'f"g"'],
      [6, "h", "i"],
    ]);
  });

  it.each<[string, string, (string | number)[][], number[]]>([
    ["too few cells", "question,answer\na\nb,c\n", [[2, "CSV_RAGGED"]], [3]],
    ["too many cells", "question,answer\na,b,c\nb,c,\n", [[2, "CSV_RAGGED"]], [3]],
    ["a quote inside of a quoted cell", 'question,answer\n"a "b" c",d\ne,f\n', [[2, "CSV_QUOTES"]], [3]],
    ["backslashes before quotes", 'question,answer\n"a \\"b\\" c",d\ne,f\n', [[2, "CSV_QUOTES"]], [3]],
    ["a quote that never ends", 'question,answer\na,b\n"c,d\ne,f\ng,h\n', [[3, "CSV_QUOTES"]], [2, 4, 5]],
    ["a quote that never ends in the last row", 'question,answer\na,b\nc,"d', [[3, "CSV_QUOTES"]], [2]],
    ["a row that is too large", `question,answer\na,${"b".repeat(3000)}\nc,d\n`, [[2, "ROW_TOO_LARGE"]], [3]],
    ["a row that is too large at the end", `question,answer\nc,d\na,${"b".repeat(3000)}`, [[3, "ROW_TOO_LARGE"]], [2]],
    [
      "an empty answer",
      "question,answer\na,\n,\nc,d\n",
      [
        [2, "EMPTY_ANSWER"],
        [3, "EMPTY_ANSWER"],
      ],
      [4],
    ],
  ])("with %s loses that row only", async (_, csv, codes, lines) => {
    for (const step of [1, 7, 100_000]) {
      const all = await read(csv, { step });
      expect([codesOf(all), linesOf(all)]).toEqual([codes, lines]);
    }
  });

  it("names the quote that is never closed, however long the file goes on", async () => {
    const csv = `question,answer\n"open,x\n${"a,b\n".repeat(5000)}`;
    const { records, rejections } = await read(csv, { step: 4096 });
    expect(records).toHaveLength(5000);
    expect(rejections).toMatchObject([
      { line: 2, code: "CSV_QUOTES", message: expect.stringMatching(/^line 2: a quoted cell begins here and does not end/) as string },
    ]);
  });

  it("full of them is an error, not a day's work", async () => {
    const csv = `question,answer\n${`"a${"x".repeat(300)}\n${"b,c\n".repeat(10)}"d" e,f\n`.repeat(5000)}`;
    const outcome = await read(csv, { step: 65_536 }).then(
      ({ records, rejections }) => (records.length + rejections.length > 0 ? "read" : "nothing"),
      (error: { code?: string }) => error.code,
    );
    expect(["read", "CSV_QUOTES"]).toContain(outcome);
  });

  it.each([["a name twice", "question,answer,question\na,b,c\n", /two are called "question"/]])(
    "whose header has %s is an error",
    async (_, csv, message) => {
      await expect(read(csv)).rejects.toMatchObject({
        code: expect.stringMatching(/^CSV_/) as string,
        message: expect.stringMatching(message) as string,
      });
    },
  );

  it("takes an index without a name, empty columns at the end, one column, tabs, semicolons", async () => {
    expect((await read(",question,answer\n0,a,b\n")).records).toHaveLength(1);
    expect((await read("question,answer,,\na,b,,\n")).records).toHaveLength(1);
    expect(await read("text\nA whole line, with a comma\n")).toMatchObject({ container: "csv", rejections: [{ code: "CSV_RAGGED" }] });
    expect(await read('text\nA line\n"Another, quoted"\n')).toMatchObject({
      container: "csv",
      records: [{ text: "A line" }, { text: "Another, quoted" }],
    });
    expect(await read("question\tanswer\na, b\tc\n")).toMatchObject({ container: "tsv", records: [{}] });
    expect(await read("question;answer\na, b;c\n")).toMatchObject({ container: "csv", records: [{}] });
  });

  it("reads lists in cells of columns that are lists, and text everywhere else", async () => {
    const csv = 'tokens,labels\n"[""John"",""ran""]","[""B-PER"",""O""]"\n';
    expect(await read(csv)).toMatchObject({ records: [{ meta: { format: "token-labels" } }] });
    const asText = await read('question,answer\n"[1, 2]","{""a"": 1.0}"\n');
    expect(asText.records[0]?.messages?.map(({ content }) => content)).toEqual(["[1, 2]", '{"a": 1.0}']);
  });

  it("gives back any cells that were written into it, in pieces of any size", async () => {
    const cell = fc
      .string({ unit: fc.constantFrom("a", "é", "🙂", '"', ",", "\n", "\r", " ", "\t", "'"), minLength: 1, maxLength: 8 })
      .filter((text) => text.trim() !== "");
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(cell, cell), { minLength: 1, maxLength: 8 }),
        fc.integer({ min: 1, max: 40 }),
        fc.constantFrom(",", "\t", ";"),
        async (rows, step, delimiter) => {
          const quoted = (text: string): string => `"${text.replaceAll('"', '""')}"`;
          const csv = [["question", "answer"], ...rows].map((row) => `${row.map(quoted).join(delimiter)}\n`).join("");
          const { records, rejections } = await read(csv, { step });
          expect(rejections).toEqual([]);
          expect(records.map(({ messages }) => messages?.slice(-2).map(({ content }) => content))).toEqual(rows);
        },
      ),
      { numRuns: 200 },
    );
  });

  it("with any damage counts each row once or says why it stops", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: fc.constantFrom('"', ",", "\n", "a", "\r\n", '""', " "), maxLength: 60 }),
        fc.integer({ min: 1, max: 20 }),
        async (body, step) => {
          const outcomes = await Promise.all(
            [step, 1000].map((size) =>
              read(`question,answer\n${body}`, { step: size }).then(
                (all) => JSON.stringify([linesOf(all), codesOf(all)]),
                (error: { code?: string }) => error.code,
              ),
            ),
          );
          expect(outcomes[0]).toBe(outcomes[1]);
          expect(outcomes[0]).toMatch(/^(\[|CSV_)/);
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe("any bytes at all", () => {
  it("give a result or a named error with words", async () => {
    const magic = fc.constantFrom(
      [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
      [0x28, 0xb5, 0x2f, 0xfd],
      [...Buffer.from("PAR1\u0015")],
      [...Buffer.from("ARROW1\0\0")],
      [0xff, 0xff, 0xff, 0xff],
      [0xff, 0xff, 0xff, 0xff, 0x10, 0, 0, 0],
      [0xff, 0xfe],
      [0xfe, 0xff],
      [0xef, 0xbb, 0xbf],
      [...Buffer.from("PK\u0003\u0004")],
      [...Buffer.from("[")],
      [...Buffer.from("a,b\n")],
      [],
    );
    const tail = fc.constantFrom(
      [],
      [...Buffer.from("PAR1")],
      [200, 0, 0, 0, ...Buffer.from("PAR1")],
      [8, 0, 0, 0, ...Buffer.from("PAR1")],
      [...Buffer.from("ARROW1")],
    );
    await fc.assert(
      fc.asyncProperty(magic, fc.uint8Array({ maxLength: 80 }), tail, fc.integer({ min: 1, max: 50 }), async (start, bytes, end, step) => {
        const outcome = await read(Buffer.concat([Buffer.from(start), bytes, Buffer.from(end)]), { step }).then(
          () => "read: without an error",
          (error: { code?: string; message: string }) => `${error.code}: ${error.message}`,
        );
        expect(outcome).toMatch(
          /^(read|CONTAINER_UNSUPPORTED|FILE_TRUNCATED|FILE_CORRUPT|FILE_ENCODING_UNCLEAR|FILE_TOO_LARGE|CSV_HEADER|CSV_QUOTES): .{10,}$/s,
        );
      }),
      { numRuns: 1000 },
    );
  });
});
