import { datasetReport, type Rec } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { createReport, readContents } from "./dataset-report.ts";
import { type Body } from "../formats/detect.ts";
import { recordId } from "../formats/record-id.ts";

const chat = (line: number, question: string, answer: string, task = "instruct"): Rec => {
  const body: Body = {
    kind: "chat",
    task,
    messages: [
      { role: "user", content: question },
      { role: "assistant", content: answer },
    ],
  };
  return { v: "lrec/1", id: recordId(body), ...body, meta: { line, format: "instruction" } };
};
const long = "The ship leaves the harbour of Saint-Malo at dawn, with forty sailors, two cooks and a parrot that nobody admits to own.";

async function reportOn(records: Rec[], validation?: Rec[]) {
  const contents =
    validation === undefined
      ? undefined
      : await readContents(
          (async function* () {
            yield { records: validation };
          })(),
        );
  const builder = createReport({ validation: contents });
  await builder.add({ records, rejections: [] });
  const report = builder.report(null);
  expect(datasetReport.parse(report)).toEqual(report);
  return report;
}
const codes = (report: Awaited<ReturnType<typeof reportOn>>): string[] => report.warnings.map(({ code }) => code);

describe("dataset report", () => {
  it("counts rows, kinds, lengths and languages", async () => {
    const report = await reportOn([
      chat(1, "你是谁？请详细介绍一下你自己的身世和经历。", "我是甄嬛，家父是大理寺少卿甄远道。"),
      chat(2, "Who are you, and where do you come from?", "I am the captain of this ship, from the north."),
    ]);
    expect(report).toMatchObject({ rows: 2, records: 2, rejections: 0, kinds: { chat: 2 }, formats: { instruction: 2 } });
    expect(report.languages).toEqual({ examined: 2, counts: { en: 1, zh: 1 } });
    expect(report.characters).toMatchObject({ count: 2, max: 87 });
    expect(report.characters?.histogram.reduce((sum, { count }) => sum + count, 0)).toBe(2);
    expect(report.warnings).toEqual([]);
  });

  const compared = (line: number, body: Partial<Rec>): Rec => {
    const whole = { kind: "preference", task: "preference", messages: [{ role: "user", content: `Question ${line}?` }], ...body } as Body;
    return { v: "lrec/1", id: recordId(whole), ...whole, meta: { line, format: "preference" } };
  };
  const pair = (line: number, chosen: string, rejected: string, question = `Question ${line}?`): Rec =>
    compared(line, {
      messages: [{ role: "user", content: question }],
      chosen: [{ role: "assistant", content: chosen }],
      rejected: [{ role: "assistant", content: rejected }],
    });

  it("compares the answers of preferences: lengths, ties, and what contradicts itself", async () => {
    const report = await reportOn([
      pair(1, "Yes, and here is why.", "No."),
      pair(2, "Yes.", "Perhaps, but who can tell?", "Same?"),
      pair(3, "Perhaps, but who can tell?", "Yes.", "Same?"),
      pair(4, "Yes.", "No.!"),
      compared(5, {
        kind: "ranked",
        candidates: [
          { content: "a", score: 1 },
          { content: "bb", score: 3 },
          { content: "ccc", score: 1 },
        ],
      }),
      compared(6, { kind: "ranked", candidates: [{ content: "a" }, { content: "b" }] }),
      compared(7, { kind: "unpaired", messages: [...(pair(7, "", "").messages ?? []), { role: "assistant", content: "x" }], label: true }),
      compared(8, { kind: "unpaired", messages: [...(pair(7, "", "").messages ?? []), { role: "assistant", content: "x" }], label: false }),
    ]);
    expect(report.preferences).toMatchObject({
      pairs: 6,
      longerWins: 3,
      shorterWins: 2,
      chosen: { count: 6, max: 26 },
      rejected: { count: 6, max: 26 },
      ties: { count: 1, lines: [5] },
      unranked: { count: 1, lines: [6] },
      contradictions: { count: 2, lines: [3, 8] },
      good: 1,
      bad: 1,
    });
    expect(codes(report)).toEqual(expect.arrayContaining(["CONTRADICTING_PAIRS", "TIED_ANSWERS", "UNRANKED_ANSWERS"]));
    expect(codes(report)).not.toContain("LENGTH_DECIDES");
  });

  it("warns where length alone tells which answer is chosen, whichever way round", async () => {
    const many = (chosen: string, rejected: string, others: number): Rec[] =>
      Array.from({ length: 20 }, (_, index) => (index < others ? pair(index, rejected, chosen) : pair(index, chosen, rejected)));
    const [longer, shorter, mixed] = [
      await reportOn(many("A long answer.", "Short.", 2)),
      await reportOn(many("Short.", "A long answer.", 0)),
      await reportOn(many("A long answer.", "Short.", 3)),
    ];
    const told = (report: typeof longer) => report.warnings.find(({ code }) => code === "LENGTH_DECIDES")?.message;
    expect(told(longer)).toMatch(/^in 90 % of 20 pairs the longer answer is the chosen one/);
    expect(told(shorter)).toMatch(/^in 100 % of 20 pairs the shorter answer/);
    expect(told(mixed)).toBeUndefined();
    expect((await reportOn([chat(1, "q", "a")])).preferences).toBeNull();
  });

  it("warns of labels that are nearly all the same", async () => {
    const labelled = (bad: number): Rec[] =>
      Array.from({ length: 22 }, (_, index) =>
        compared(index, {
          kind: "unpaired",
          messages: [
            { role: "user", content: `q${index}` },
            { role: "assistant", content: "a" },
          ],
          label: index >= bad,
        }),
      );
    expect(codes(await reportOn(labelled(1)))).toContain("ONE_SIDED_LABELS");
    expect(codes(await reportOn(labelled(2)))).not.toContain("ONE_SIDED_LABELS");
  });

  it("tells triples with several objects, and preferred responses that are preferred to nothing", async () => {
    const { warnings } = await reportOn([
      chat(1, "What is the child of Marie?", "Irène", "kg"),
      chat(2, "What is the child of Marie?", "Ève", "kg"),
      chat(3, "What is the child of Marie?", "Irène", "kg"),
      { ...chat(4, "q", "a", "qa"), meta: { line: 4, format: "preferred-response" } },
    ]);
    expect(warnings).toMatchObject([
      { code: "EXACT_DUPLICATES" },
      { code: "SEVERAL_OBJECTS", count: 1, lines: [2] },
      { code: "PREFERRED_ALONE", count: 1 },
    ]);
  });

  it("cuts labels that are no names, which would keep their rows", async () => {
    const { labels } = await reportOn([chat(1, "q", "x".repeat(10_000), "classification"), chat(2, "q", "good", "classification")]);
    expect(labels).toEqual({ good: 1, [`${"x".repeat(200)}…`]: 1 });
  });

  it("tells exact from near duplicates, and neither from what is different", async () => {
    const report = await reportOn([
      chat(1, "Tell me a story.", `${long} It returned late.`),
      chat(2, "Tell me a story.", `${long} It returned soon.`),
      chat(3, "Tell me a story.", `${long} It returned late.`),
      chat(4, "What is for dinner on the royal yacht tonight?", "Fish, as on every Friday since the queen was born."),
    ]);
    expect(report.exactDuplicates).toBe(1);
    expect(report.nearDuplicates).toMatchObject({ examined: 4, count: 1, examples: [{ line: 2, of: 1 }] });
    expect(codes(report)).toEqual(["EXACT_DUPLICATES", "NEAR_DUPLICATES"]);
  });

  it("tells what the validation file holds too", async () => {
    const report = await reportOn(
      [
        chat(1, "Tell me a story.", `${long} It returned late.`),
        chat(2, "Tell me a story.", `${long} It returned soon.`),
        chat(3, "Something else entirely", "Yes"),
      ],
      [chat(1, "Tell me a story.", `${long} It returned late.`)],
    );
    expect(report.overlap).toEqual({ exact: { count: 1, lines: [1] }, near: { count: 1, lines: [2] } });
    expect(codes(report)).toEqual(expect.arrayContaining(["IN_VALIDATION", "NEARLY_IN_VALIDATION"]));
  });

  it("counts labels, and says when one outweighs another", async () => {
    const rows = Array.from({ length: 21 }, (_, n) =>
      chat(n + 1, `Review number ${n}: it was ${n * 7} times fine`, n === 0 ? "negative" : "positive", "classification"),
    );
    const report = await reportOn(rows);
    expect(report.labels).toEqual({ positive: 20, negative: 1 });
    expect(codes(report)).toContain("LABELS_UNBALANCED");
  });

  it("says where secrets, personal data and control tokens are, without repeating them", async () => {
    const token = ["ghp_", "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx"].join("");
    const report = await reportOn([
      chat(7, "What is the token?", `It is ${token}`),
      chat(8, "Who may I write to?", "To jane.doe@corp.io <|im_end|>"),
    ]);
    expect(report.secrets).toEqual({ "github-pat": { count: 1, lines: [7] } });
    expect(report.personalData).toEqual({ email: { count: 1, lines: [8] } });
    expect(report.controlTokens).toEqual({ "<|im_end|>": { count: 1, lines: [8] } });
    expect(JSON.stringify({ ...report, samples: [] })).not.toContain(token);
    expect(codes(report)).toEqual(["CONTROL_TOKENS", "SECRETS", "PERSONAL_DATA"]);
  });

  it("shows the same twenty samples whatever the order, with what is trained", async () => {
    const rows = Array.from({ length: 100 }, (_, n) => chat(n + 1, `Question ${n}`, `Answer ${n}`));
    const [one, other] = [await reportOn(rows), await reportOn(rows.toReversed())];
    expect(one.samples).toHaveLength(20);
    expect(other.samples).toEqual(one.samples);
    const { line, segments } = one.samples?.[0] ?? { line: 0, segments: [] };
    expect(segments.filter(({ trained }) => trained)).toEqual([{ text: `Answer ${line - 1}`, trained: true }]);
  });
});
