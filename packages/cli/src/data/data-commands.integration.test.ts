/** `data check`, `tokenize` and `data show` as a person types them: a process, a file, no line. */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "../../../..");
const base = "smollm2-135m-instruct";
let dir: string;
let file: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "loraline-data-"));
  file = join(dir, "mixed.jsonl");
  await writeFile(
    file,
    [
      '{"instruction":"你是谁？","input":"","output":"我是甄嬛，家父是大理寺少卿甄远道。"}',
      '{"instruction":"Who are you?","output":"I am the captain."}',
      '{"instruction":"Who are you?","output":"I am the captain."}',
      '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"Ahoy! Write to bones@ship.io <|im_end|>"}]}',
      '{"prompt":"Once upon a time","completion":" there was a ship."}',
      '{"instruction":"Nothing","output":""}',
      '{"instruction":"broken',
      '{"colour":"blue"}',
      "[1, 2, 3]",
      "",
    ].join("\n"),
  );
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const run = async (...args: string[]): Promise<{ code: number; out: string; err: string }> => {
  const { NO_COLOR: _no, FORCE_COLOR: _force, ...env } = process.env;
  try {
    const { stdout, stderr } = await promisify(execFile)(join(root, "loraline"), args, { cwd: dir, env });
    return { code: 0, out: stdout, err: stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, out: stdout, err: stderr };
  }
};

// Each call is a process of its own, which loads the tokenizer: on a busy machine one takes many seconds.
describe("loraline data check", { timeout: 180_000 }, () => {
  it("--json: every row is a record or a rejection with its line", async () => {
    const { code, out } = await run("data", "check", file, "--no-base", "--min-records", "5", "--json");
    expect(code).toBe(0);
    const report = JSON.parse(out) as { rejections: { line: number; code: string; message: string }[] } & Record<string, unknown>;
    expect(report).toMatchObject({
      rows: 9,
      records: 5,
      formats: { instruction: 3, conversation: 1, "prompt-completion": 1 },
      exactDuplicates: 1,
      personalData: { email: { count: 1, lines: [4] } },
      controlTokens: { "<|im_end|>": { count: 1, lines: [4] } },
    });
    expect(report).not.toHaveProperty("tokens");
    expect(report.rejections.map(({ line, code }) => [line, code])).toEqual([
      [6, "EMPTY_ANSWER"],
      [7, "NOT_JSON"],
      [8, "FORMAT_UNKNOWN"],
      [9, "NOT_AN_OBJECT"],
    ]);
    expect(report.rejections.every(({ message }) => message.length > 20)).toBe(true);
  });

  it("with a base: tokens, what other lengths would lose, and the mask", async () => {
    const { out } = await run("data", "check", file, "--base", base, "--max-length", "48", "--json");
    const { tokens } = JSON.parse(out) as { tokens: Record<string, unknown> };
    expect(tokens).toMatchObject({ base, maxLength: 48, template: "base", lengths: { count: 5 }, dropped: { TOO_LONG: 2 } });
    expect(tokens.atMaxLength).toEqual([
      { maxLength: 48, tooLong: 2 },
      { maxLength: 256, tooLong: 0 },
    ]);
    const page = (await run("data", "check", file, "--min-records", "5")).out;
    expect(page).toContain("⟦I am the captain.<|im_end|>⟧");
    expect(page).toMatch(/rejected +EMPTY_ANSWER 1/);
    expect(page).toMatch(/line 7 +NOT_JSON/);
    expect(page).toMatch(/PERSONAL_DATA.*\(line 4\)/);
    expect(page.trimEnd().endsWith(`5 of 5 records can be trained on with the base ${base}.`)).toBe(true);
  });

  it("says a reason once, with the lines that it was given for", async () => {
    const misspelled = join(dir, "misspelled.jsonl");
    const rows = [...Array.from({ length: 7 }, (_, n) => ({ Quesiton: `q${n}`, anwser: "a" })), { instruction: "Who?", output: "" }];
    await writeFile(misspelled, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
    const page = (await run("data", "check", misspelled)).out;
    expect(page).toMatch(/7 rows: lines 1, 2, 3, 4, 5, … +FORMAT_UNKNOWN/);
    expect(page.split("\n\n")[1]?.match(/Did you mean `question`/g)).toHaveLength(1);
    expect(page).toMatch(/line 8 +EMPTY_ANSWER/);
    const shots = join(dir, "shots.jsonl");
    await writeFile(
      shots,
      Array.from({ length: 7 }, (_, n) => `${JSON.stringify({ file_name: `${n}.png`, text: `shot ${n}` })}\n`).join(""),
    );
    const missing = (await run("data", "check", shots)).out.split("\n\n")[1];
    expect(missing?.match(/PICTURE_MISSING\n/g)).toHaveLength(1);
    expect(missing).toMatch(/7 rows: lines 1, 2, 3, 4, 5, … +PICTURE_MISSING\n.*"0\.png" is not in the file/);
  });

  it("counts what is too long at this length as what cannot be trained on, unless it is to be trimmed", async () => {
    const short = await run("data", "check", file, "--base", base, "--max-length", "48", "--min-records", "3");
    expect(short.out.trimEnd().endsWith(`3 of 5 records can be trained on with the base ${base}.`)).toBe(true);
    const none = await run("data", "check", file, "--base", base, "--max-length", "8", "--json");
    expect(none.code).toBe(1);
    expect(JSON.parse(none.out)).toMatchObject({
      tokens: { supervised: 0 },
      problem: { code: "TOO_FEW_RECORDS", message: expect.stringContaining("Raise tokenize.max_length") as string },
    });

    const long = join(dir, "long.jsonl");
    const turns = [0, 1, 2, 3].flatMap((n) => [
      { role: "user", content: `Question ${n} ${"word ".repeat(20)}` },
      { role: "assistant", content: `Answer ${n}` },
    ]);
    await writeFile(long, `${JSON.stringify({ messages: turns })}\n`);
    const check = ["data", "check", long, "--base", base, "--max-length", "100", "--json"];
    expect(JSON.parse((await run(...check)).out)).toMatchObject({ tokens: { dropped: { TOO_LONG: 1 }, supervised: 0 } });
    const { tokens } = JSON.parse((await run(...check, "--too-long", "trim-prompt")).out) as { tokens: { supervised: number } };
    expect(tokens).toMatchObject({ dropped: {} });
    expect(tokens.supervised).toBeGreaterThan(0);
  });

  it("judges pairs for a method that compares, with each side's tokens", async () => {
    const rows = join(dir, "pairs.jsonl");
    await writeFile(
      rows,
      Array.from({ length: 12 }, (_row, n) =>
        JSON.stringify({ prompt: `q${n}`, chosen: `yes ${n}`, rejected: "no ".repeat(n === 5 ? 200 : 3) }),
      ).join("\n"),
    );
    const checked = await run("data", "check", rows, "--base", base, "--method", "dpo", "--max-length", "100", "--json");
    expect(checked.code).toBe(0);
    expect(JSON.parse(checked.out)).toMatchObject({
      tokens: { dropped: { TOO_LONG: 1 }, lengths: { count: 24 } },
      preferences: { pairs: 12 },
    });
    const page = (await run("data", "check", rows, "--base", base, "--method", "dpo")).out;
    expect(page).toContain("12 of 12 records can be trained on");
    expect(page).toMatch(/the longer answer is chosen in 0 %, the shorter in 100 %/);
    expect(page).toMatch(/\[better\][^]*\[worse\]/);
    expect((await run("data", "check", rows, "--method", "kto")).code).toBe(0);
  });

  it.each([
    [
      "preferences",
      (n: number) => ({ prompt: `q${n}`, chosen: "a", rejected: "b" }),
      "KIND_NOT_TRAINED",
      /Set method to dpo, .* or give rows with one answer each/,
    ],
    ["captions", (n: number) => ({ image_url: `https://e.org/${n}.png`, caption: "a ship" }), "BASE_CANNOT_SEE", /rows of text only/],
  ])("says of %s what a run would say, with the remedy that helps", async (_, row, code, remedy) => {
    const rows = join(dir, `${code}.jsonl`);
    await writeFile(rows, Array.from({ length: 20 }, (_row, n) => JSON.stringify(row(n))).join("\n"));
    const checked = await run("data", "check", rows, "--json");
    expect(checked.code).toBe(1);
    expect(JSON.parse(checked.out)).toMatchObject({ problem: { code, message: expect.stringMatching(remedy) as string } });
    expect(checked.out).not.toContain("lower min_records");
  });

  it("says that a run needs more than a few rows", async () => {
    const checked = await run("data", "check", file);
    expect(checked).toMatchObject({
      code: 1,
      out: expect.stringContaining(
        "5 of the 5 records can be trained on, and min_records is 10. Add records, or lower min_records.",
      ) as string,
    });
  });

  it("compares with a validation file", async () => {
    const validation = join(dir, "validation.jsonl");
    await writeFile(validation, '{"instruction":"Who are you?","output":"I am the captain."}\n');
    const report = JSON.parse((await run("data", "check", file, "--validation", validation, "--json")).out) as Record<string, unknown>;
    expect(report).toMatchObject({ overlap: { exact: { count: 2, lines: [2, 3] } } });
  });

  it("reads as a mapping says, and says where the mapping is wrong", async () => {
    const table = join(dir, "table.csv");
    await writeFile(table, "Frage,Antwort\nWho?,Me.\nWhere?,\n");
    const mapping = join(dir, "mapping.yaml");
    await writeFile(mapping, "format: question-answer\ncolumns: { question: Frage, answer: Antwort }\n");
    const { code, out } = await run("data", "check", table, "--mapping", mapping, "--min-records", "1", "--json");
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject({
      rows: 2,
      records: 1,
      formats: { "question-answer": 1 },
      rejections: [{ line: 3, code: "EMPTY_ANSWER" }],
    });
    await writeFile(mapping, "format: question-answer\ncolumns: { source: Frage }\n");
    expect(await run("data", "check", table, "--mapping", mapping)).toMatchObject({
      code: 2,
      err: expect.stringMatching(/mapping\.yaml:2: columns\.source: the format question-answer has no field "source"/) as string,
    });
  });

  it("a file or a base that is not there is wrong usage, as the help says of exit code 2", async () => {
    expect(await run("data", "check", "nosuch.jsonl")).toEqual({
      code: 2,
      out: "",
      err: "loraline: there is no file or folder nosuch.jsonl. [FILE_MISSING]\n",
    });
    expect(await run("data", "check", file, "--base", dir)).toMatchObject({
      code: 2,
      err: expect.stringContaining("tokenizer.json") as string,
    });
    expect(await run("data", "check", file, "--base", "nosuch")).toMatchObject({
      code: 2,
      err: expect.stringMatching(/no folder nosuch and no base of this name; the bases here are .*smollm2-135m-instruct/) as string,
    });
  });

  it("says plainly what cannot be used, with exit code 1", async () => {
    const hopeless = join(dir, "hopeless.jsonl");
    await writeFile(hopeless, '{"colour":"blue"}\n');
    const { code, out } = await run("data", "check", hopeless, "--json");
    expect(code).toBe(1);
    expect(JSON.parse(out)).toMatchObject({ rows: 1, records: 0, problem: { code: "ALL_ROWS_REJECTED", param: "file" } });
    await writeFile(hopeless, "");
    expect(await run("data", "check", hopeless)).toMatchObject({ code: 1, out: expect.stringContaining("EMPTY_FILE") });
    expect(await run("data", "check", file, "--max-length", "x")).toMatchObject({ code: 2 });
  });
});

describe("loraline tokenize", { timeout: 180_000 }, () => {
  it("writes shards in the file's order, says what gave no row, and data show decodes them", async () => {
    const tokens = join(dir, "tokens");
    const made = await run("tokenize", file, "--base", base, "--max-length", "48", "--out", tokens, "--json");
    expect(made.code).toBe(0);
    const manifest = JSON.parse(made.out) as { totals: Record<string, number>; rejections: unknown[]; droppedRecords: unknown[] };
    expect(manifest.totals).toMatchObject({ records: 5, rows: 3, dropped: 2 });
    expect(manifest.rejections).toHaveLength(4);
    expect(manifest.droppedRecords).toMatchObject([
      { line: 1, code: "TOO_LONG" },
      { line: 4, code: "TOO_LONG" },
    ]);
    const rows = JSON.parse((await run("data", "show", tokens, "--json")).out) as {
      row: number;
      lines: number[];
      sequences: { segments: { text: string; trained: boolean }[] }[];
    }[];
    expect(rows.map(({ lines }) => lines)).toEqual([[2], [3], [5]]);
    expect(rows[0]?.sequences[0]?.segments.filter(({ trained }) => trained)).toEqual([
      { text: "I am the captain.<|im_end|>", trained: true },
    ]);
    const shown = await run("data", "show", tokens, "--row", "2");
    expect(shown.out).toContain("row 2, line 5");
    expect(shown.out).toContain("Once upon a time⟦ there was a ship.");
    expect(await run("data", "show", tokens, "--row", "3")).toMatchObject({ code: 1, err: expect.stringContaining("rows 0 to 2") });
    expect(await run("data", "show", dir)).toMatchObject({ code: 1, err: expect.stringContaining("loraline tokenize") });
    // Somebody's files are never written over.
    expect(await run("tokenize", file, "--base", base, "--out", dir)).toMatchObject({
      code: 1,
      err: expect.stringContaining("holds other files"),
    });
  });

  it("puts both sides of a pair into one row, for a method that compares", async () => {
    const pairs = join(dir, "pairs.jsonl");
    const pair = (n: number) => ({ prompt: `Question ${n}?`, chosen: `Aye, ${n}.`, rejected: "No." });
    await writeFile(pairs, [1, 2].map((n) => `${JSON.stringify(pair(n))}\n`).join(""));
    expect((await run("tokenize", pairs, "--base", base, "--out", join(dir, "none"))).err).toMatch(/KIND_NOT_TRAINED.+dpo/);
    const compared = await run("tokenize", pairs, "--base", base, "--method", "dpo", "--out", join(dir, "compared"), "--json");
    expect(JSON.parse(compared.out)).toMatchObject({ examples: "best-pairs", totals: { records: 2, rows: 2, sequences: 4, dropped: 0 } });
    const sides = await run("data", "show", join(dir, "compared"), "--row", "1");
    expect(sides.out).toMatch(/line 2, the better answer[\s\S]+Aye, 2\.[\s\S]+line 2, the worse answer[\s\S]+No\./);
  });
});

describe("loraline data import", () => {
  it("needs a server, also where a file would do without one", async () => {
    const { code, err } = await run("--state", join(dir, "none"), "data", "import", "acme/pirates");
    expect(code).toBe(3);
    expect(err).toMatch(/no server runs on/);
  });
});
