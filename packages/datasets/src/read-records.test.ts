import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { datasetMapping, record } from "@loraline/contracts";
import { type Batch, readRecords, type ReadRecordsOptions } from "./read-records.ts";

const options: ReadRecordsOptions = { maxRowBytes: 2000 };
const good = (n: number): string => JSON.stringify({ instruction: `q${n}`, output: `a${n} 你好 🙂` });

/** Reads `text` in pieces of `step` bytes. The reader joins the first 64 KiB; boundaries are cut in chunk-boundaries.test.ts. */
async function read(text: string | Uint8Array, step = 7, settings = options) {
  const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text;
  async function* pieces() {
    for (let at = 0; at < bytes.length; at += step) yield bytes.subarray(at, at + step);
  }
  const reading = await readRecords(pieces(), settings);
  if (reading === undefined) return undefined;
  const all: Batch = { records: [], rejections: [] };
  for await (const batch of reading.batches) {
    all.records.push(...batch.records);
    all.rejections.push(...batch.rejections);
  }
  return { container: reading.container, ...all };
}

describe("JSON Lines", () => {
  it("gives records that keep the contract, with line and format", async () => {
    const all = await read(`${good(1)}\n\n${good(2)}\r\n`);
    expect(all?.container).toBe("jsonl");
    expect(all?.rejections).toEqual([]);
    expect(all?.records.map((one) => record.parse(one).meta)).toMatchObject([
      { line: 1, format: "instruction", seed: { instruction: "q1", input: "", output: "a1 你好 🙂" } },
      { line: 3, format: "instruction" },
    ]);
  });

  it("reads a byte order mark, and a last line without an end", async () => {
    expect(await read(`\uFEFF${good(1)}\n${good(2)}`)).toMatchObject({ records: [{}, {}], rejections: [] });
  });

  it("says at which line and column the JSON is wrong, and goes on", async () => {
    const all = await read(`${good(1)}\n{"instruction": "a" "output": "b"}\n${good(3)}\n{"instr`);
    expect(all?.records.map((one) => one.meta.line)).toEqual([1, 3]);
    expect(all?.rejections).toEqual([
      { line: 2, code: "NOT_JSON", message: "line 2: not JSON: Expected ',' or '}' after property value at column 21" },
      { line: 4, code: "NOT_JSON", message: "line 4: not JSON: Unterminated string at column 8" },
    ]);
  });

  it.each([
    ["objects over several lines", '{\n "instruction": "a",\n "output": "b"\n}', /jq -c \. FILE/],
    ["a list in an object over several lines", '{\n "data": [\n]}', /jq -c '\.data\[\]' FILE/],
    ["a list in an object", JSON.stringify({ train: [JSON.parse(good(1)), JSON.parse(good(2))] }), /jq -c '\.train\[\]' FILE/],
    ["Python's own form", "{'instruction': 'a', 'output': 'b'}", /json\.dumps/],
    ["quotes of a text", "{\u201cinstruction\u201d: \u201ca\u201d}", /straight/],
    ["pandas' missing values", '{"instruction": "a", "input": NaN, "output": "b"}', /write null/],
  ])("says what helps with %s", async (_, text, advice) => {
    const all = await read(`${text}\n`);
    expect(all?.records).toEqual([]);
    expect(all?.rejections[0]?.message).toMatch(advice);
  });

  it("rejects what is no UTF-8, one row only", async () => {
    const all = await read(
      Buffer.concat([Buffer.from(`${good(1)}\n{"instruction":"`), Buffer.from([0xff]), Buffer.from(`"}\n${good(3)}`)]),
    );
    expect(all?.records.map((one) => one.meta.line)).toEqual([1, 3]);
    expect(all?.rejections).toMatchObject([{ line: 2, code: "NOT_UTF8", message: /^line 2/ }]);
  });

  it("rejects a row above the limit without keeping it", async () => {
    const all = await read(`${good(1)}\n${JSON.stringify({ instruction: "x".repeat(3000), output: "y" })}\n${good(3)}`, 64);
    expect(all?.records.map((one) => one.meta.line)).toEqual([1, 3]);
    expect(all?.rejections).toMatchObject([{ line: 2, code: "ROW_TOO_LARGE", message: /line 2 has 30\d\d bytes; a row may have 2000/ }]);
  });

  it("survives nesting that no stack holds", async () => {
    const bomb = `{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","tool_calls":[${"[".repeat(200_000)}${"]".repeat(200_000)}]}]}`;
    const all = await read(`${bomb}\n${good(2)}`, 65_536, { ...options, maxRowBytes: 1_000_000 });
    expect(all?.records.map((one) => one.meta.line)).toEqual([2]);
    expect(all?.rejections).toMatchObject([{ line: 1, code: expect.stringMatching(/^(NESTED_TOO_DEEPLY|MESSAGE_INVALID)$/) as string }]);
  });
});

describe("JSON array", () => {
  it("numbers elements and names their line", async () => {
    const all = await read(` [\n${good(1)},\n\n{"instruction": "a",\n "output" "b"},\n"x", ${good(4)}\n]\n`);
    expect(all?.container).toBe("json-array");
    expect(all?.records.map((one) => one.meta.line)).toEqual([1, 4]);
    expect(all?.rejections).toEqual([
      {
        line: 2,
        code: "NOT_JSON",
        message: "element 2 (line 4): not JSON: Expected ':' after property name at line 5, column 11",
      },
      { line: 3, code: "NOT_AN_OBJECT", message: "element 3 (line 6): the row is text; a JSON object is expected" },
    ]);
  });

  it("is not misled by brackets, commas and escaped quotes inside of text", async () => {
    const row = { instruction: 'a "],[{" \\', output: '}],\\"' };
    const all = await read(JSON.stringify([row, row]), 3);
    expect(all?.rejections).toEqual([]);
    expect(all?.records.map((one) => one.meta.seed)).toEqual([
      { ...row, input: "" },
      { ...row, input: "" },
    ]);
  });

  it.each([
    ["cut inside of an element", `[${good(1)}, {"instruction": "a`, /element 2 \(line 1\): the file ends inside/],
    ["cut after a comma", `[${good(1)},`, /ends before the JSON array/],
    ["text after the end", `[${good(1)}]\n[`, /line 2: there is text after the end/],
    ["a comma too many", `[${good(1)},\n]`, /element 2 \(line 2\) is empty/],
    ["a missing comma", `[${good(1)}, ${good(2)} ${good(3)}]`, /element 2 \(line 1\): not JSON: .*after JSON/],
  ])("reports %s and keeps the rest", async (_, text, message) => {
    const all = await read(text);
    expect(all?.records.map((one) => one.meta.line)).toEqual([1]);
    expect(all?.rejections).toMatchObject([{ code: "NOT_JSON", message }]);
  });

  it("rejects an element above the limit without keeping it", async () => {
    const all = await read(`[${good(1)},{"instruction":"${"x".repeat(3000)}","output":"y"},${good(3)}]`, 64);
    expect(all?.records.map((one) => one.meta.line)).toEqual([1, 3]);
    expect(all?.rejections).toMatchObject([{ line: 2, code: "ROW_TOO_LARGE", message: /element 2 \(line 1\) has 30\d\d bytes/ }]);
  });
});

describe("any file", () => {
  it.each(["", " \n\t\r\n", "\uFEFF", "\uFEFF\n "])("is empty: %j", async (text) => {
    expect(await read(text)).toBeUndefined();
  });

  it("gives as many records and rejections as it has rows, however it is cut into pieces, in both containers", async () => {
    const row = fc.oneof(
      fc.record({ instruction: fc.string({ unit: "grapheme" }), output: fc.string({ unit: "grapheme" }) }),
      fc.record({ prompt: fc.string(), completion: fc.string() }),
      fc.record({
        messages: fc.array(fc.record({ role: fc.constantFrom("user", "assistant", "x"), content: fc.string() }), { maxLength: 3 }),
      }),
      fc.jsonValue(),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(row, { maxLength: 20 }), fc.integer({ min: 1, max: 50 }), async (more, step) => {
        const rows = [{ first: "a first row that is a list would make the file an array" }, ...more];
        const settings = { ...options, maxRowBytes: 100_000 };
        const lines = await read(rows.map((one) => JSON.stringify(one)).join("\n"), step, settings);
        const array = await read(JSON.stringify(rows, null, 1), step, settings);
        const counted = (all: typeof lines): number => (all?.records.length ?? 0) + (all?.rejections.length ?? 0);
        expect([counted(lines), counted(array)]).toEqual([rows.length, rows.length]);
        expect(array?.records.map((one) => one.id)).toEqual(lines?.records.map((one) => one.id));
      }),
      { numRuns: 200 },
    );
  });

  it("gives a result or a named error on damaged text", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ maxLength: 60 }),
        fc.constantFrom("", "[", '{"a":', '[{"instruction":"', "a,b\n", "\u001f\u008b"),
        async (bytes, start) => {
          const outcome = await read(Buffer.concat([Buffer.from(start), bytes])).then(
            () => "read",
            (error: { code?: string; message: string }) => error.code ?? error.message,
          );
          expect(outcome).toMatch(/^(read|CONTAINER_UNSUPPORTED|FILE_TRUNCATED|FILE_CORRUPT|FILE_ENCODING_UNCLEAR|CSV_HEADER)$/);
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe("classes", () => {
  const rows = [
    { question: "q", answer: "a" },
    { text: "Great", label: "good" },
    { text: "Bad", label: "bad" },
    { text: "", label: "" },
  ];
  const text = rows.map((row) => JSON.stringify(row)).join("\n");
  const answers = (all: Awaited<ReturnType<typeof read>>) => all?.records.map(({ messages }) => messages?.[0]?.content);
  const bytes = async function* (given: string) {
    yield new TextEncoder().encode(given);
  };

  it("are counted where the first row needs them, and stand in every prompt", async () => {
    const reopened: number[] = [];
    const reopen = async () => {
      reopened.push(1);
      return bytes(text);
    };
    expect(answers(await read(text, 7, { ...options, reopen }))).toEqual([
      "q",
      "Classify the following text. Answer with exactly one of: bad, good.\nGreat",
      "Classify the following text. Answer with exactly one of: bad, good.\nBad",
    ]);
    expect(reopened).toHaveLength(1);
  });
  it("are not listed when nobody can count them, or when they are many", async () => {
    expect(answers(await read(text))?.[1]).toBe("Classify the following text. Answer with the name of its class only.\nGreat");
    const many = Array.from({ length: 51 }, (_, n) => JSON.stringify({ text: "t", label: n })).join("\n");
    expect(answers(await read(many, 7, { ...options, reopen: async () => bytes(many) }))?.[0]).toMatch(/the name of its class only/);
  });
  it("are never asked for in files without them", async () => {
    const reopen = () => Promise.reject(new Error("was read twice"));
    expect((await read(`${good(1)}\n{"text":"t"}`, 7, { ...options, reopen }))?.records).toHaveLength(2);
  });
});

it("a mapping decides how rows are read, and rows of other formats are rejected with their line", async () => {
  const mapping = datasetMapping.parse({ format: "question-answer", columns: { question: "Frage", answer: "Antwort" } });
  const all = await read('{"Frage":"q","Antwort":"a"}\n{"instruction":"a","output":"b"}', 7, { ...options, mapping });
  expect(all?.records).toMatchObject([{ meta: { line: 1, format: "question-answer" } }]);
  expect(all?.rejections).toMatchObject([{ line: 2, code: "FORMAT_MISMATCH", message: /^line 2: .*`question` is missing/ }]);
});

it("prompts and slices are named", async () => {
  const all = await read('{"article":"a","summary":"b"}\n{"sentence":"s","question":"q","answer":"a"}');
  expect(all?.records.map(({ meta }) => meta)).toEqual([
    { line: 1, format: "summary", template: "summary.en/1" },
    { line: 2, format: "adversarial", slice: "adversarial" },
  ]);
});

it("reading a large file lets whatever else the process does go on in between", async () => {
  const rows = Array.from({ length: 20_000 }, (_, n) => JSON.stringify({ prompt: `What is ${n}?`, completion: `It is ${n}.` })).join("\n");
  let turns = 0;
  let isReading = true;
  const other = (): void => {
    turns += 1;
    if (isReading) setImmediate(other);
  };
  setImmediate(other);
  const all = await read(rows, Buffer.byteLength(rows));
  isReading = false;
  expect(all?.records).toHaveLength(20_000);
  expect(all?.records.at(-1)?.meta.line).toBe(20_000);
  expect(turns).toBeGreaterThan(10);
});

describe("a record's id", () => {
  it("depends on what it says, and not on file, line or the order of keys", async () => {
    const all = await read(`{"instruction":"a","output":"b"}\n{"output":"b","instruction":"a","note":1}\n{"instruction":"a","output":"c"}`);
    const [one, two, three] = all?.records.map((each) => each.id) ?? [];
    expect(one).toBe(two);
    expect(one).not.toBe(three);
  });

  it("stays what it was", async () => {
    const all = await read(`{"instruction":"回答","input":"1+1","output":"2"}`);
    // sha256 of {"kind":"chat","messages":[{"content":"回答\n1+1","role":"user"},{"content":"2","role":"assistant"}],"task":"instruct","v":"lrec/1"}
    expect(all?.records[0]?.id).toBe("sha256:a895a8228cc576441abf1d9da73bc774f2504526a58837e083c90ab2a5e77657");
  });
});
