import { describe, expect, it } from "vitest";
import type { Rec } from "@loraline/contracts";
import { comparedText, createNearDuplicates } from "./near-duplicates.ts";

const english = (n: number): string =>
  `Question ${n}: describe how a ship of type ${n * 7919} crosses the ${["northern", "southern", "inner", "outer"][n % 4]} sea number ${n * 104_729} in winter, and what its captain eats.`;
const chinese = "请写一首关于春天的诗，要求押韵，并且描写江南水乡的景色，不少于八句，语言优美，意境深远，能够打动读者。";

describe("near duplicates", () => {
  it("finds a text with one word changed, and says of which line it is one", () => {
    const index = createNearDuplicates();
    expect(index.add(`${english(1)} Answer in a long and friendly sentence, please, as a seaman would.`, 1)).toBeUndefined();
    const found = index.add(`${english(1)} Answer in a long and friendly sentence, please, as a sailor would.`, 9);
    expect(found?.of).toBe(1);
    expect(found?.similarity).toBeGreaterThan(0.8);
  });

  it("works on Chinese, where there are no words to split", () => {
    const index = createNearDuplicates();
    index.add(chinese, 1);
    expect(index.add(chinese.replace("八句", "十句"), 2)?.of).toBe(1);
    expect(index.add("把下面这段话翻译成英文，注意保持原文的语气和风格，不要遗漏任何信息，谢谢你的帮助。", 3)).toBeUndefined();
  });

  it("does not take different texts of one shape for the same", () => {
    const index = createNearDuplicates();
    const found = Array.from({ length: 2000 }, (_, n) => index.add(english(n), n + 1)).filter((one) => one !== undefined);
    expect(found.length).toBeLessThan(60);
    expect(index.examined).toBe(2000);
  });

  it("takes one question about two pictures for two, and about the same picture for one", () => {
    const about = (picture: string, line: number): Rec => ({
      v: "lrec/1",
      id: `sha256:${"0".repeat(64)}`,
      kind: "chat",
      task: "chat",
      messages: [
        { role: "user", content: `Look closely at this, and say in one sentence what it shows (${line}).` },
        { role: "assistant", content: "A red circle on a white ground, seen from above." },
      ],
      media: [{ type: "image", ref: `sha256:${picture.repeat(64)}` }],
      meta: { line, format: "messages" },
    });
    const index = createNearDuplicates();
    expect(["a", "b", "c", "a"].map((picture, i) => index.add(comparedText(about(picture, i + 1)), i + 1)?.of)).toEqual([
      undefined,
      undefined,
      undefined,
      1,
    ]);
  });

  it("says nothing of texts that are too short to compare", () => {
    const index = createNearDuplicates();
    index.add("Hello there", 1);
    expect(index.add("Hello there", 2)).toBeUndefined();
  });

  it("stops adding when it is full, and still finds", () => {
    const index = createNearDuplicates(1);
    index.add(chinese, 1);
    index.add(english(1), 2);
    expect(index.examined).toBe(1);
    expect(index.find(chinese)?.of).toBe(1);
    expect(index.find(english(1))).toBeUndefined();
  });
});
