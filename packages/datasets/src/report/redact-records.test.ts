import { datasetMapping, type Rec, type Rejection } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { readRecords } from "../read-records.ts";
import { createReport } from "./dataset-report.ts";
import { redact } from "./redact-records.ts";

/** Written in parts, so that scanners of repositories do not take the tests for leaks. */
const whole = (...parts: string[]): string => parts.join("");
const awsKey = whole("AK", "IA", "Z7QW2KXLM4RTYB3N");
const base64 = "Kj7Qw2Zx9Lm4Rt6Yb1Nc8Vd3Fg5Hs0PakJ7qW2zX9lM4rT6yB1nC8vD3fG5hS0pA";
const privateKey = whole("-----BEGIN RSA PRIV", "ATE KEY-----\n", base64, "\n", base64, "\n-----END RSA PRIV", "ATE KEY-----");

async function redacted(...rows: object[]) {
  const file = Buffer.from(rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  const reading = await readRecords(
    (async function* () {
      yield file;
    })(),
    { mapping: datasetMapping.parse({ redact: true }), maxRowBytes: 1e6 },
  );
  const report = createReport();
  const records: Rec[] = [];
  const rejections: Rejection[] = [];
  for await (const batch of reading?.batches ?? []) {
    await report.add(batch);
    records.push(...batch.records);
    rejections.push(...batch.rejections);
  }
  return { records, rejections, report: report.report(null) };
}
const contents = ({ messages = [] }: Rec): string[] => messages.map(({ content }) => content);

describe("redact: true", () => {
  it("replaces each secret and personal datum by its kind, leaves the rest, and the report says so", async () => {
    const { records, report } = await redacted(
      { instruction: "Write to jo.doe@corp-mail.de, or call +49 170 1234567.", output: `Use ${awsKey} for the bucket.` },
      { instruction: "What is 2 + 2?", output: "4" },
      { instruction: "Our key?", output: `It is\n${privateKey}\nand nothing else.` },
    );
    expect(records.map(contents)).toEqual([
      ["Write to [EMAIL], or call [PHONE].", "Use [AWS-ACCESS-TOKEN] for the bucket."],
      ["What is 2 + 2?", "4"],
      ["Our key?", "It is\n[PRIVATE-KEY]\nand nothing else."],
    ]);
    expect(report).toMatchObject({
      secrets: {},
      personalData: {},
      redacted: { email: { count: 1, lines: [1] }, "aws-access-token": { count: 1 }, "private-key": { count: 1, lines: [3] } },
    });
    expect(report.warnings.find(({ code }) => code === "REDACTED")?.message).toMatch(/email \(1\).*private-key \(1\)/);
  });

  it("sees a number's meaning in another turn, as the report does", async () => {
    const { records } = await redacted({
      messages: [
        { role: "user", content: "What is your social security number?" },
        { role: "assistant", content: "219099999" },
      ],
    });
    expect(records.map(contents)).toEqual([["What is your social security number?", "[US-SSN]"]]);
  });

  it("reaches preferences, rankings, raw text, tools, and the columns that the template `seed` joins", async () => {
    const mail = "jo.doe@corp-mail.de";
    const { records, rejections } = await redacted(
      { prompt: "Who?", chosen: `Ask ${mail}`, rejected: `Not ${mail}` },
      { text: `Mail ${mail}` },
      { instruction: "Who?", input: `Of ${mail}`, output: `It is ${mail}` },
      {
        messages: [
          { role: "user", content: "Send it" },
          {
            role: "assistant",
            content: null,
            tool_calls: [{ id: "a", type: "function", function: { name: "send", arguments: `{"to": "${mail}"}` } }],
          },
        ],
      },
    );
    expect(rejections).toEqual([]);
    expect(records).toHaveLength(4);
    expect(JSON.stringify(records)).not.toContain("corp-mail");
    expect(JSON.stringify(records).match(/\[EMAIL\]/g)?.length).toBeGreaterThanOrEqual(8);
    for (const calls of records.flatMap(({ messages = [] }) => messages.flatMap(({ tool_calls }) => tool_calls ?? [])))
      expect(JSON.parse(calls)).toMatchObject([{ function: { name: "send" } }]);
  });

  it("gives a record that was changed the id of what it says now", async () => {
    const { records } = await redacted(
      { instruction: "Who?", output: "jo.doe@corp-mail.de" },
      { instruction: "Who?", output: "anna@other-mail.fr" },
      { instruction: "Who?", output: "[EMAIL]" },
    );
    expect(new Set(records.map(({ id }) => id)).size).toBe(1);
  });

  it("leaves escapes of JSON whole", async () => {
    const { records, rejections } = await redacted({
      messages: [
        { role: "user", content: "Store it" },
        {
          role: "assistant",
          content: "",
          tool_calls: [{ id: "a", type: "function", function: { name: "store", arguments: JSON.stringify({ pem: `\t${privateKey}\n` }) } }],
        },
      ],
    });
    const said = records.map((record) => JSON.stringify(record)).join("");
    expect(said).not.toContain(base64);
    for (const { messages = [] } of records) for (const { tool_calls: calls } of messages) if (calls) JSON.parse(calls);
    expect(records.length + rejections.length).toBe(1);
    expect(rejections.every(({ code }) => code === "REDACTION_BREAKS_JSON")).toBe(true);
  });

  it("says where a row stands as its file counts, such as rows of Parquet", async () => {
    const tools = `[{"name": "pay", "default": 4111111111111111}]`;
    const broken: Rec = {
      v: "lrec/1",
      id: `sha256:${"0".repeat(64)}`,
      kind: "chat",
      task: "conversation",
      messages: [],
      tools,
      meta: { line: 7, format: "conversation" },
    };
    const { records, rejections } = await redact({ records: [broken], rejections: [] }, ["row 7"]);
    expect(records).toEqual([]);
    expect(rejections).toMatchObject([{ line: 7, code: "REDACTION_BREAKS_JSON", message: expect.stringMatching(/^row 7: /) }]);
  });

  it("keeps nothing of it in the reasons why rows are rejected, which quote them", async () => {
    const lines = [
      `{"messages": [{"role": "jo.doe@corp-mail.de", "content": "hi"}, {"role": "assistant", "content": "x"}]}`,
      `jo.doe@corp-mail.de`,
      `{"instruction": "a", "output": ${awsKey}}`,
    ];
    const reading = await readRecords(
      (async function* () {
        yield Buffer.from(lines.join("\n"));
      })(),
      { mapping: datasetMapping.parse({ redact: true }), maxRowBytes: 1e6, name: "rows.jsonl" },
    );
    const rejections: Rejection[] = [];
    for await (const batch of reading?.batches ?? []) rejections.push(...batch.rejections);
    expect(rejections.map(({ code }) => code)).toEqual(["ROLE_UNKNOWN", "NOT_JSON", "NOT_JSON"]);
    const said = JSON.stringify(rejections);
    for (const part of ["jo.doe", "corp-mail", awsKey.slice(0, 8), awsKey.slice(4, 9)]) expect(said).not.toContain(part);
    expect(rejections[1]?.message).toMatch(/^line 2: not JSON: Unexpected token/);
  });
});
