import { describe, expect, it } from "vitest";
import { pairs, shaped, table } from "./terminal.ts";

const id = "01M8J9KY00QWK3RB1J9XDS6Z9T";
const rows = [
  ["RUN", "PHASE", "ADAPTER", "WAITS FOR", ""],
  [id, "served", "local/pirate@2", "-", ""],
  [id, "failed", "local/poet", "-", "loss is not a number after step 12; lower training.learning_rate"],
];

describe("a table", () => {
  it("has a line for each row where there is room, and where another program reads it", () => {
    for (const columns of [Infinity, 200]) expect(shaped(table(rows), columns)).toHaveLength(3);
    expect(shaped(table(rows), Infinity)[1]).toBe(`${id}  served  local/pirate@2  -`);
  });

  it("leaves out columns that say nothing, and breaks the last one between words", () => {
    const lines = shaped(table(rows), 90);
    expect(lines).toEqual([
      "RUN                         PHASE   ADAPTER",
      `${id}  served  local/pirate@2`,
      `${id}  failed  local/poet      loss is not a number after step 12;`,
      `${" ".repeat(52)}lower training.learning_rate`,
    ]);
  });

  it("stands row by row where even that is too wide, and loses nothing", () => {
    expect(shaped(table(rows), 60)).toEqual([
      `run      ${id}`,
      "phase    served",
      "adapter  local/pirate@2",
      "",
      `run      ${id}`,
      "phase    failed",
      "adapter  local/poet",
      "         loss is not a number after step 12; lower",
      "         training.learning_rate",
    ]);
    for (const columns of [40, 60, 80, 100, 120]) {
      const lines = shaped(table(rows), columns);
      for (const line of lines) expect(line.length, `${columns}: ${line}`).toBeLessThanOrEqual(columns);
      const words = rows.slice(1).flatMap((row) => row.flatMap((cell) => cell.split(" ")));
      for (const word of words.filter((each) => each !== "-")) expect(lines.join("\n")).toContain(word);
    }
  });

  it("counts columns as a terminal does", () => {
    const lines = shaped(
      table([
        ["FILE", "X"],
        ["海盗.jsonl", "1"],
        ["a.jsonl", "2"],
      ]),
      60,
    );
    expect(lines).toEqual(["FILE        X", "海盗.jsonl  1", "a.jsonl     2"]);
  });
});

it("pairs keep their left edge when a value is broken", () => {
  expect(
    shaped(pairs([["run", id], undefined, ["proof", "8 prompts, 361 tokens: logprobs of engine and trainer differ by 0.0596"]]), 40),
  ).toEqual([`run    ${id}`, "proof  8 prompts, 361 tokens: logprobs", "       of engine and trainer differ by", "       0.0596"]);
});
