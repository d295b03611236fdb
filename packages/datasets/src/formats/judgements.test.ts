/** Rows that say something about their answer which their format does not read are refused, never learned without it. */
import type { DatasetMapping } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { createDetector } from "./detect.ts";

const read = (row: unknown, mapping?: Partial<DatasetMapping>) =>
  createDetector({ labels: null, mapping: mapping && { language: "auto", on_unknown: "fail", ...mapping } }).detect(row, () => row);
const turn = (role: string, content: string) => ({ role, content });
const ask = [turn("user", "How are you?")];
const rude = [turn("assistant", "None of your business.")];

describe("an answer that is marked as bad", () => {
  it.each([
    ["TRL's KTO, as conversations", { prompt: ask, completion: rude, label: false }],
    ["TRL's KTO, as text", { prompt: "How are you?", completion: "None of your business.", label: false }],
    ["KTO from a CSV", { prompt: "How are you?", completion: "None of your business.", label: "False" }],
    ["KTO with numbers", { prompt: "How are you?", completion: "None of your business.", label: 0 }],
    ["LLaMA-Factory's KTO", { messages: [...ask, ...rude], kto_tag: false }],
  ])("is kept as an unpaired preference: %s", (_, row) => {
    expect(read(row)).toMatchObject({ body: { kind: "unpaired", label: false, messages: [...ask, ...rude] }, unusedKeys: [] });
  });

  it.each<[string, Record<string, unknown>, string]>([
    ["a score beside a conversation", { messages: [...ask, ...rude], score: 0.1 }, "score"],
    ["a rejected answer beside question and answer", { question: "a", answer: "b", rejected: "c" }, "rejected"],
    ["a weight beside an instruction", { instruction: "a", output: "b", weight: 0 }, "weight"],
    ["a verdict of people", { instruction: "a", output: "b", is_correct: false }, "is_correct"],
    ["what is to be left out", { question: "a", answer: "b", ignore: true }, "ignore"],
    ["TRL's stepwise supervision", { prompt: "a", completions: ["b", "c"], labels: [true, false] }, "labels"],
    ["who chose it", { prompt: "a", completion: "b", chosen_by: "annotator 3" }, "chosen_by"],
    ["in capitals", { Instruction: "a", Output: "b", Rating: 1 }, "rating"],
    ["a judgement of a turn", { messages: [...ask, { ...rude[0], rating: 1 }] }, "messages[].rating"],
    ["a verdict among the metadata", { messages: [...ask, ...rude], metadata: { source: "x", quality: "bad" } }, "metadata.quality"],
    ["a row of another split", { question: "a", answer: "b", split: "test" }, "split"],
    ["axolotl's parts of a turn", { messages: [...ask, { ...rude[0], train_detail: [] }] }, "messages[].train_detail"],
  ])("is refused where the format does not read it: %s", (_, row, key) => {
    const refused = { code: "JUDGEMENT_NOT_READ", message: expect.stringContaining(`\`${key}\``) as string };
    expect(read(row)).toMatchObject(refused);
    expect(read(row)).toMatchObject({ message: expect.stringContaining(`list "${key}" in the mapping's \`ignore\``) as string });
    expect(read(row, { ignore: [key] })).toMatchObject({
      format: expect.any(String) as string,
      unusedKeys: expect.not.arrayContaining([key]) as string[],
    });
  });

  it("whose label is no truth value is refused", () => {
    expect(read({ prompt: "a", completion: "b", label: "meh" })).toMatchObject({
      code: "LABEL_NOT_BOOLEAN",
      message: '`label` is "meh"; true (a good answer) or false (a bad one) is expected',
    });
  });
});

it.each([
  ["metadata that judges nothing", { question: "a", answer: "b", metadata: { source: "x", deleted: false, tags: ["rank"] } }],
  ["the split that is trained on", { question: "a", answer: "b", split: "train" }],
  ["a weight of one", { instruction: "a", output: "b", weight: 1 }],
  ["nothing that is to be left out", { question: "a", answer: "b", ignore: false, deleted: 0, flagged: "False" }],
  ["a class by number beside its name", { text: "a", label: 0, label_text: "good" }],
  ["an empty score", { question: "a", answer: "b", score: null, rating: "" }],
  ["a turn that nobody deleted", { messages: [...ask, { ...rude[0], deleted: false }] }],
])("a row with %s is read", (_, row) => {
  expect(read(row)).toMatchObject({ body: { kind: "chat" } });
});

describe("shapes of others", () => {
  it("reads OpenAI's preferences", () => {
    const row = {
      input: { messages: [turn("system", "s"), ...ask], tools: [], parallel_tool_calls: true },
      preferred_output: [turn("assistant", "Fine, thanks.")],
      non_preferred_output: rude,
    };
    expect(read(row)).toEqual({
      format: "preferred-outputs",
      body: {
        kind: "preference",
        task: "preference",
        messages: [turn("system", "s"), ...ask],
        chosen: [turn("assistant", "Fine, thanks.")],
        rejected: rude,
      },
      unusedKeys: [],
    });
    const { input, ...outputs } = row;
    expect(read({ ...outputs, input: { prompt: "a" } })).toMatchObject({ code: "MESSAGE_INVALID" });
    const tools = [{ type: "function", function: { name: "f", parameters: { maximum: 1e21 } } }];
    expect(read({ ...outputs, input: { ...input, tools } })).toMatchObject({ body: { tools: JSON.stringify(tools) } });
  });

  it("reads Gemini's contents", () => {
    const parts = (text: string) => [{ text }];
    const row = {
      systemInstruction: { role: "system", parts: parts("s") },
      contents: [
        { role: "user", parts: [{ text: "How" }, { text: "are you?" }] },
        { role: "model", parts: parts("Fine.") },
      ],
    };
    expect(read(row)).toMatchObject({
      format: "contents",
      body: { kind: "chat", messages: [turn("system", "s"), turn("user", "How\nare you?"), turn("assistant", "Fine.")] },
      unusedKeys: [],
    });
    expect(read({ contents: [{ role: "user", parts: [{ inlineData: { mimeType: "image/png" } }] }, row.contents[1]] })).toMatchObject({
      code: "CONTENT_NOT_TEXT",
    });
    expect(read({ contents: [{ role: "user", content: "a" }] })).toMatchObject({ code: "MESSAGE_INVALID" });
  });
});

it("names the key that was meant", () => {
  expect(read({ Quesiton: "a", anwser: "b" })).toMatchObject({
    code: "FORMAT_UNKNOWN",
    message: "no known format. Keys found: Quesiton, anwser. Did you mean `question` instead of `Quesiton`, `answer` instead of `anwser`?",
  });
  expect(read({ instruction: "a", outputt: "b" })).toMatchObject({
    message: expect.stringContaining("Did you mean `output` instead of `outputt`?") as string,
  });
  expect(read({ foo: "a", bar: "b" })).toMatchObject({ message: expect.not.stringContaining("Did you mean") as string });
});

it("does not report what a mapping reads as unused", () => {
  const mapping = {
    columns: { answer: "data.antwort" },
    format: "question-answer",
    instruction_template: "Nenne {Thema}: {question}",
  } as const;
  expect(read({ data: { antwort: "b", quelle: "c" }, Thema: "t", question: "a" }, mapping)).toMatchObject({
    body: { messages: [turn("user", "Nenne t: a"), turn("assistant", "b")] },
    unusedKeys: [],
  });
});

it("refuses a preference whose own scores say the opposite", () => {
  const pair = { prompt: "a", chosen: "b", rejected: "c" };
  expect(read({ ...pair, score_chosen: 2, score_rejected: 9 })).toMatchObject({
    code: "SCORES_REVERSED",
    message:
      "`score_chosen` (2) is less than `score_rejected` (9): the rejected answer has the higher score. Swap the two answers, or remove the scores.",
  });
  for (const scores of [
    { score_chosen: 9, score_rejected: 2 },
    { score_chosen: 2, score_rejected: 2 },
    { score_chosen: null, score_rejected: 2 },
  ])
    expect(read({ ...pair, ...scores })).toMatchObject({ body: { kind: "preference" } });
});
