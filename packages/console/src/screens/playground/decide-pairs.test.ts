import { expect, test } from "vitest";
import { linesOf, pairsOf, withChoice } from "./decide-pairs.ts";

const question = { prompt: "Who are you?", system: "" };

test("a vote makes a pair with each answer that differs", () => {
  expect(pairsOf("1", question, "Wren.", ["Nobody.", "Wren. ", "", "Nobody.", "A bird."])).toMatchObject([
    { better: "Wren.", worse: "Nobody." },
    { better: "Wren.", worse: "A bird." },
  ]);
  expect(pairsOf("1", question, "Wren.", ["Wren."])).toEqual([]);
});

test("whoever votes again for the same answers has voted once", () => {
  const first = withChoice(pairsOf("0", question, "x", ["y"]), pairsOf("1", question, "a", ["b", "c"]));
  expect(first).toHaveLength(3);
  expect(withChoice(first, pairsOf("1", question, "b", ["a"]))).toMatchObject([{ better: "x" }, { better: "b", worse: "a" }]);
});

test("the file has one pair a line, with the system prompt where there is one", () => {
  const pairs = [
    ...pairsOf("1", question, "Wren.", ["Nobody."]),
    ...pairsOf("2", { prompt: "甲？", system: "Be brief." }, "乙\n丙", ["丁"]),
  ];
  const lines = linesOf(pairs).split("\n");
  expect(lines.pop()).toBe("");
  expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual([
    {
      input: { messages: [{ role: "user", content: "Who are you?" }] },
      preferred_output: [{ role: "assistant", content: "Wren." }],
      non_preferred_output: [{ role: "assistant", content: "Nobody." }],
    },
    {
      input: {
        messages: [
          { role: "system", content: "Be brief." },
          { role: "user", content: "甲？" },
        ],
      },
      preferred_output: [{ role: "assistant", content: "乙\n丙" }],
      non_preferred_output: [{ role: "assistant", content: "丁" }],
    },
  ]);
});
