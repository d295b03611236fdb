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

  it("of a comment and blank lines is judged in the time of its length", async () => {
    expect(codesOf(await read(`#${"\n".repeat(60)}!`))).toEqual([
      [1, "NOT_JSON"],
      [61, "NOT_JSON"],
    ]);
    await expect(read("# settings\n \t\n\r\n---\nname: x\nitems:\n  - a\n")).rejects.toMatchObject({
      message: expect.stringContaining("YAML") as string,
    });
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

const uint32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};

/** A part of a flatbuffer: bytes as they stand there, a text, a vector, or a table by its slots (4, 6, 8, …). */
type Flat = Uint8Array | string | readonly Flat[] | { readonly [slot: number]: number | Flat };

/** A part that is named several times is written once. */
function flatbuffer(root: Flat): Buffer {
  const parts = new Set<Flat>();
  const order: Flat[] = [];
  const visit = (part: Flat): void => {
    if (parts.has(part)) return;
    parts.add(part);
    if (typeof part !== "string" && !(part instanceof Uint8Array)) {
      for (const inner of Object.values(part)) if (typeof inner !== "number") visit(inner);
    }
    order.push(part);
  };
  visit([root]);
  // Offsets lead forwards: each part stands behind all that name it.
  const written = order.reverse().map((part) => {
    const links: [at: number, to: Flat][] = [];
    if (part instanceof Uint8Array) return { bytes: part, place: 0, links };
    if (typeof part === "string")
      return { bytes: Buffer.concat([uint32(Buffer.byteLength(part)), Buffer.from(`${part}\0`)]), place: 0, links };
    if (Array.isArray(part)) {
      for (const [index, to] of part.entries()) links.push([4 + 4 * index, to as Flat]);
      return { bytes: Buffer.concat([uint32(part.length), Buffer.alloc(4 * part.length)]), place: 0, links };
    }
    // The table's slots, then the table, in which each value has eight bytes.
    const slots = Object.entries(part).map(([slot, value]) => [Number(slot), value] as const);
    const size = 4 + Math.max(0, ...slots.map(([slot]) => slot - 2));
    const place = Math.ceil(size / 8) * 8;
    const bytes = Buffer.alloc(place + 8 + 4 * size);
    bytes.writeUInt16LE(size, 0);
    bytes.writeInt32LE(place, place);
    for (const [slot, value] of slots) {
      const offset = 4 * slot - 8;
      bytes.writeUInt16LE(offset, slot);
      if (typeof value === "number") bytes.writeBigInt64LE(BigInt(value), place + offset);
      else links.push([place + offset, value]);
    }
    return { bytes, place, links };
  });
  const places = new Map<Flat, number>();
  let end = 0;
  const starts = written.map(({ bytes, place }, index) => {
    const start = end;
    places.set(order[index] as Flat, start + place);
    end += Math.ceil(bytes.length / 8) * 8;
    return start;
  });
  const all = Buffer.alloc(end + 4);
  for (const [index, { bytes, links }] of written.entries()) {
    const start = starts[index] as number;
    all.set(bytes, start);
    for (const [at, to] of links) all.writeInt32LE((places.get(to) as number) - start - at, start + at);
  }
  // What is left of the vector of the root alone is the root's offset.
  return all.subarray(4);
}

describe("Arrow", () => {
  const [ofText, ofStruct, ofList, ofNull, ofDecimal] = [5, 13, 12, 1, 7];
  const column = (name: string, kind: number, children: readonly Flat[] = [], more: object = {}): Flat => ({
    4: name,
    8: kind,
    10: {},
    14: children,
    ...more,
  });
  const schema = (columns: readonly Flat[], metadata: readonly Flat[] = []): Flat => ({ 4: 4, 6: 1, 8: { 6: columns, 8: metadata } });
  /** A batch of one row: of each column and what is in it its length, and where its buffers lie in the body. */
  const batch = (lengths: readonly number[], buffers: readonly (readonly [offset: number, length: number])[], bodyBytes: number): Flat => ({
    4: 4,
    6: 3,
    8: { 4: 1, 6: pairs(lengths.map((length) => [length, 0])), 8: pairs(buffers) },
    10: bodyBytes,
  });
  const pairs = (of: readonly (readonly [number, number])[]): Buffer =>
    Buffer.concat([uint32(of.length), Buffer.from(BigInt64Array.from(of.flat(), BigInt).buffer)]);
  const mark = uint32(0xffffffff);
  /** Messages, each followed by its body if it has one. */
  const stream = (...parts: (Flat | { readonly body: Uint8Array })[]): Buffer =>
    Buffer.concat([
      ...parts.flatMap((part) => {
        if (typeof part === "object" && "body" in part) return [part.body];
        const header = flatbuffer(part);
        return [mark, uint32(header.length), header];
      }),
      mark,
      uint32(0),
    ]);
  const question = column("question", ofText);

  it("with a schema alone is a file without rows", async () => {
    expect(await read(stream(schema([question, column("x", ofStruct, [question])])))).toMatchObject({ container: "arrow", records: [] });
  });

  it.each<[string, () => Flat, object]>([
    [
      "one column named again and again",
      () => {
        let inner = question;
        for (let level = 0; level < 5; level++) inner = column("a", ofStruct, Array<Flat>(64).fill(inner));
        return schema([inner]);
      },
      { code: "FILE_TOO_LARGE", message: expect.stringMatching(/more than 100000 fields and entries of metadata/) as string },
    ],
    [
      "dictionaries nested in each other, each named twice",
      () => {
        const coded = (id: number, children: readonly Flat[]): Flat => column("a", ofStruct, children, { 12: { 4: id } });
        let inner = coded(0, [question]);
        for (let id = 1; id < 50; id++) inner = coded(id, [inner, coded(id - 1, [])]);
        return schema([inner]);
      },
      { code: "FILE_TOO_LARGE", message: expect.stringMatching(/more than 100000 fields/) as string },
    ],
    [
      "one long text named again and again",
      () => {
        const text = "x".repeat(1_000_000);
        return schema(
          [question],
          Array.from({ length: 20_000 }, (_, index) => ({ 4: `key ${index}`, 6: text })),
        );
      },
      { code: "FILE_TOO_LARGE", message: expect.stringMatching(/names and metadata .* take more than/) as string },
    ],
    [
      "columns in columns without an end",
      () => {
        let inner = question;
        for (let level = 0; level < 100; level++) inner = column("a", ofStruct, [inner]);
        return schema([inner]);
      },
      { code: "FILE_CORRUPT", message: expect.stringMatching(/nested more than 64 levels deep/) as string },
    ],
  ])("with %s is refused before that takes memory", async (_, message, refusal) => {
    await expect(read(stream(message()))).rejects.toMatchObject(refusal);
  });

  it("whose batch says that it has more parts than its header is refused", async () => {
    const endless: Flat = { 4: 4, 6: 3, 8: { 4: 1, 6: uint32(0x7fffffff) } };
    await expect(read(stream(schema([question]), endless))).rejects.toMatchObject({
      code: "FILE_CORRUPT",
      message: expect.stringMatching(/a list in a header is longer than the header/) as string,
    });
  });

  it("with a large header, or a second schema, is refused", async () => {
    await expect(read(Buffer.concat([mark, uint32(5_000_000), Buffer.alloc(100)]))).rejects.toMatchObject({ code: "FILE_CORRUPT" });
    await expect(read(stream(schema([question]), schema([question])))).rejects.toMatchObject({
      code: "FILE_CORRUPT",
      message: expect.stringMatching(/more than one schema/) as string,
    });
  });

  it("with a row of more structs of nulls than it may have loses that row", async () => {
    const [columns, structs] = [60_000, 100_000];
    const item = column("item", ofStruct, Array<Flat>(columns).fill(column("a", ofNull)));
    const lengths = [1, structs, ...Array<number>(columns).fill(structs)];
    const body = Buffer.concat([uint32(0), uint32(structs)]);
    const bytes = stream(
      schema([column("list", ofList, [item])]),
      batch(
        lengths,
        [
          [0, 0],
          [0, 8],
          [0, 0],
        ],
        8,
      ),
      { body },
    );
    expect(codesOf(await read(bytes, { step: 1_000_000, maxRowBytes: 8_000_000 }))).toEqual([[1, "ROW_TOO_LARGE"]]);
  });

  const decimals = (scale: number, bits: number, columns: number): Buffer => {
    const body = Buffer.alloc((bits / 8) * columns, 1);
    const names = Array.from({ length: columns }, (_, index) => `c${index}`);
    return stream(
      schema(names.map((name) => column(name, ofDecimal, [], { 10: { 4: 38, 6: scale, 8: bits } }))),
      batch(
        names.map(() => 1),
        names.flatMap(
          (_, index) =>
            [
              [0, 0],
              [(bits / 8) * index, bits / 8],
            ] as const,
        ),
        body.length,
      ),
      { body },
    );
  };

  it.each([1001, -1001, 400_000_000, -90_000_000])("with decimals of the scale %i is refused", async (scale) => {
    await expect(read(decimals(scale, 128, 1))).rejects.toMatchObject({
      code: "FILE_CORRUPT",
      message: expect.stringContaining(`${scale}`) as string,
    });
  });

  it("with decimals of more than 256 bits is refused", async () => {
    expect(codesOf(await read(decimals(2, 256, 1)))).toEqual([[1, "FORMAT_UNKNOWN"]]);
    await expect(read(decimals(2, 32 * 2_000_000, 1), { step: 1_000_000 })).rejects.toMatchObject({
      code: "FILE_CORRUPT",
      message: expect.stringMatching(/64000000 bits/) as string,
    });
  });

  it("counts the digits of decimals as bytes of their row", async () => {
    expect(codesOf(await read(decimals(900, 128, 2)))).toEqual([[1, "FORMAT_UNKNOWN"]]);
    expect(codesOf(await read(decimals(900, 128, 3)))).toEqual([[1, "ROW_TOO_LARGE"]]);
  });
});

/** A value in Thrift's compact protocol: its type, and its bytes. */
type Thrift = readonly [type: number, bytes: Uint8Array];

describe("Parquet", () => {
  const varint = (value: number): Buffer =>
    value < 128 ? Buffer.from([value]) : Buffer.concat([Buffer.from([(value % 128) + 128]), varint(Math.floor(value / 128))]);
  const int = (value: number): Thrift => [5, varint(value < 0 ? -2 * value - 1 : 2 * value)];
  const long = (value: number): Thrift => [6, int(value)[1]];
  const text = (bytes: string | Uint8Array): Thrift => [8, Buffer.concat([varint(bytes.length), Buffer.from(bytes as Uint8Array)])];
  const list = (of: number, length: number, bytes: Uint8Array): Thrift => [
    9,
    Buffer.concat([Buffer.from([0xf0 + of]), varint(length), bytes]),
  ];
  const listOf = (items: readonly Thrift[]): Thrift =>
    list(items[0]?.[0] ?? 12, items.length, Buffer.concat(items.map(([, bytes]) => bytes)));
  /** Fields by their numbers, of which each is written in full. */
  const struct = (fields: Readonly<Record<number, Thrift>>): Thrift => [
    12,
    Buffer.concat([
      ...Object.entries(fields).flatMap(([id, [type, bytes]]) => [Buffer.from([type]), int(Number(id))[1], bytes]),
      Buffer.from([0]),
    ]),
  ];
  const file = (footer: Uint8Array, pages: Uint8Array = Buffer.alloc(0)): Buffer =>
    Buffer.concat([Buffer.from("PAR1\u0015"), pages, footer, uint32(footer.length), Buffer.from("PAR1")]);
  const footerOf = (schema: readonly Thrift[], groups: readonly Thrift[] = [], rows = 0): Buffer =>
    struct({ 1: int(1), 2: listOf(schema), 3: long(rows), 4: listOf(groups) })[1] as Buffer;
  const [ofInt, ofText, ofFixed] = [1, 6, 7];
  const group = (name: string, children: number, more: Readonly<Record<number, Thrift>> = {}): Thrift =>
    struct({ 4: text(name), 5: int(children), ...more });
  const leaf = (name: string, type: number, more: Readonly<Record<number, Thrift>> = {}): Thrift =>
    struct({ 1: int(type), 3: int(0), 4: text(name), ...more });
  const chunk = (type: number, path: readonly string[], bytes: number, more: Readonly<Record<number, Thrift>> = {}): Thrift =>
    struct({
      3: struct({ 1: int(type), 3: listOf(path.map(text)), 4: int(0), 5: long(1), 6: long(bytes), 7: long(bytes), 9: long(5), ...more }),
    });
  const rowGroup = (columns: readonly Thrift[], rows: number): Thrift => struct({ 1: listOf(columns), 2: long(1), 3: long(rows) });
  /** A file of one column and row, whose page has this header. */
  const page = (type: number, header: Thrift, data: Uint8Array): Buffer => {
    const bytes = Buffer.concat([header[1], data]);
    return file(footerOf([group("root", 1), leaf("a", type)], [rowGroup([chunk(type, ["a"], bytes.length)], 1)], 1), bytes);
  };
  const plain = struct({ 1: int(1), 2: int(0), 3: int(3), 4: int(3) });

  it("by hand is read", async () => {
    const bytes = page(ofInt, struct({ 1: int(0), 2: int(4), 3: int(4), 5: plain }), uint32(7));
    expect(await read(bytes)).toMatchObject({ container: "parquet", rejections: [{ line: 1, code: "FORMAT_UNKNOWN" }] });
  });

  const deep = (levels: number): Thrift =>
    Array.from({ length: levels }).reduce<Thrift>((inner) => list(9, 1, inner[1]), list(5, 0, Buffer.alloc(0)));
  it.each<[string, Uint8Array, object]>([
    [
      "millions of empty structs",
      struct({ 1: int(1), 4: list(12, 2_100_000, Buffer.alloc(2_100_000)) })[1],
      {
        code: "FILE_TOO_LARGE",
        message: expect.stringMatching(/^the table of contents has more than 2000000 fields and elements\. Write larger/) as string,
      },
    ],
    ["a list that says any length", struct({ 1: int(1), 4: list(12, 2 ** 31 - 1, Buffer.alloc(0)) })[1], { code: "FILE_TOO_LARGE" }],
    [
      "lists in lists without an end",
      struct({ 20: deep(100) })[1],
      { code: "FILE_CORRUPT", message: expect.stringMatching(/the table of contents is nested more than 64 levels deep/) as string },
    ],
    [
      "a number that is cut off",
      Buffer.from([0x16, 0x80, 0x80]),
      { code: "FILE_CORRUPT", message: expect.stringMatching(/the table of contents ends too early/) as string },
    ],
    [
      "a number without an end",
      struct({ 1: [6, Buffer.alloc(8_000_000, 0xff)] })[1],
      { code: "FILE_CORRUPT", message: expect.stringMatching(/a number of more than 10 bytes/) as string },
    ],
    [
      "columns in columns without an end",
      footerOf([...Array.from({ length: 100 }, () => group("a", 1)), leaf("b", ofInt)]),
      { code: "FILE_CORRUPT", message: expect.stringMatching(/its columns are nested more than 64 levels deep/) as string },
    ],
    [
      "a column of Variants",
      footerOf([group("root", 1), group("v", 2, { 10: struct({ 16: struct({}) }) }), leaf("metadata", ofText), leaf("value", ofText)]),
      { code: "CONTAINER_UNSUPPORTED", message: expect.stringMatching(/"v" .* is of the type Variant/) as string },
    ],
  ])("with %s in its table of contents is refused", async (_, footer, refusal) => {
    await expect(read(file(footer), { step: 1_000_000 })).rejects.toMatchObject(refusal);
  });

  it("with statistics of any length is read", async () => {
    const decimal = leaf("a", ofFixed, { 2: int(4), 6: int(5), 7: int(2), 8: int(9) });
    const statistics = struct({ 5: text(Buffer.alloc(4_000_000, 7)) });
    const footer = footerOf([group("root", 1), decimal], [rowGroup([chunk(ofFixed, ["a"], 0, { 12: statistics })], 0)]);
    expect(await read(file(footer), { step: 1_000_000 })).toMatchObject({ records: [], rejections: [] });
  });

  it("with a page whose header is large, or contradicts itself, is refused", async () => {
    const large = struct({ 1: int(0), 2: int(4), 3: int(4), 5: plain, 20: list(12, 5000, Buffer.alloc(5000)) });
    await expect(read(page(ofInt, large, uint32(7)))).rejects.toMatchObject({
      code: "FILE_TOO_LARGE",
      message: expect.stringMatching(/the header of a page of column "a" has more than 1000 fields/) as string,
    });
    const second = (more: Readonly<Record<number, Thrift>>): Thrift =>
      struct({ 1: int(3), 2: int(4), 3: int(4), 8: struct({ 1: int(1), 2: int(0), 3: int(1), 4: int(0), 5: int(0), 6: int(0), ...more }) });
    const words = struct({ 1: int(2), 2: int(4), 3: int(4), 5: plain, 7: struct({ 1: int(2 ** 31 - 1), 2: int(0) }) });
    for (const header of [second({ 2: int(-(2 ** 31)) }), second({ 2: int(2) }), second({ 5: int(-1_000_000_000) })]) {
      await expect(read(page(ofInt, header, uint32(7)))).rejects.toMatchObject({
        code: "FILE_CORRUPT",
        message: expect.stringMatching(/a page of column "a" does not fit/) as string,
      });
    }
    await expect(read(page(ofInt, words, uint32(7)))).rejects.toMatchObject({ code: "FILE_TOO_LARGE" });
  });

  const withLength = (bytes: Uint8Array): Buffer => Buffer.concat([uint32(bytes.length), bytes]);
  const minusOne = Buffer.from([0xff, 0xff, 0xff, 0xff, 0x0f]);
  /** Numbers of which each is larger than the one before by the same, in one block. */
  const evenly = (from: number, by: number, count: number): Buffer =>
    Buffer.concat([varint(2 ** 23), varint(1), varint(count), int(from)[1], int(by)[1], Buffer.from([0])]);
  const texts = 20_000;
  it.each<
    [
      string,
      { type: number; optional?: boolean; encoding: number; count?: number; data: Uint8Array; column?: Record<number, Thrift> },
      object,
    ]
  >([
    [
      "a run that says any length",
      {
        type: ofInt,
        optional: true,
        encoding: 0,
        data: Buffer.concat([withLength(Buffer.concat([varint(2 ** 32 - 2), Buffer.from([1])])), uint32(7)]),
      },
      { code: "FILE_CORRUPT", message: expect.stringMatching(/a page has a run of 2147483647 values/) as string },
    ],
    [
      "blocks of a negative number of parts",
      { type: ofInt, encoding: 5, count: 2, data: Buffer.concat([varint(128), minusOne, varint(2), varint(0), varint(0)]) },
      { code: "FILE_CORRUPT", message: expect.stringMatching(/a page has blocks of a size that cannot be/) as string },
    ],
    [
      "a number without an end",
      { type: 2, encoding: 5, data: Buffer.concat([varint(128), varint(4), varint(1), Buffer.alloc(4_000_000, 0xff), varint(1)]) },
      { code: "FILE_CORRUPT", message: expect.stringMatching(/a page has a number of more than 10 bytes/) as string },
    ],
    [
      "texts that each repeat the one before",
      {
        type: ofText,
        encoding: 7,
        count: texts,
        data: Buffer.concat([evenly(0, 1, texts), evenly(1, 0, texts), Buffer.alloc(texts, "a")]),
      },
      { code: "FILE_TOO_LARGE", message: expect.stringMatching(/the texts of a page .* have 200010000 bytes/) as string },
    ],
    [
      "far fewer bytes than its values take",
      { type: ofFixed, encoding: 9, count: 1_000_000, data: Buffer.alloc(1_000_000), column: { 2: int(2 ** 30) } },
      { code: "FILE_CORRUPT", message: expect.stringMatching(/a page has fewer bytes than its values take/) as string },
    ],
  ])(
    "with a page of %s is refused before that takes time or memory",
    async (_, { type, optional, encoding, count = 1, data, column }, refusal) => {
      const header = struct({
        1: int(0),
        2: int(data.length),
        3: int(data.length),
        5: struct({ 1: int(count), 2: int(encoding), 3: int(3), 4: int(3) }),
      });
      const pages = Buffer.concat([header[1], data]);
      const schema = [group("root", 1), leaf("a", type, { ...column, 3: int(optional === true ? 1 : 0) })];
      const footer = footerOf(schema, [rowGroup([chunk(type, ["a"], pages.length)], count)], count);
      await expect(read(file(footer, pages), { step: 1_000_000 })).rejects.toMatchObject(refusal);
    },
  );

  it("with a long decimal number, or decimals of a scale that cannot be, is refused", async () => {
    const decimalPage = (bytes: Uint8Array, scale: number): Buffer => {
      const size = bytes.length + 4;
      const pages = Buffer.concat([struct({ 1: int(0), 2: int(size), 3: int(size), 5: plain })[1], uint32(bytes.length), bytes]);
      const decimal = leaf("a", ofText, { 6: int(5), 7: int(scale), 8: int(9) });
      return file(footerOf([group("root", 1), decimal], [rowGroup([chunk(ofText, ["a"], pages.length)], 1)], 1), pages);
    };
    expect(codesOf(await read(decimalPage(Buffer.alloc(16, 1), 2)))).toEqual([[1, "FORMAT_UNKNOWN"]]);
    for (const bytes of [decimalPage(Buffer.alloc(401, 1), 2), decimalPage(Buffer.alloc(16, 1), 1001)]) {
      await expect(read(bytes)).rejects.toMatchObject({ code: "FILE_CORRUPT", message: expect.stringMatching(/decimal number/) as string });
    }
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
