import { describe, expect, it } from "vitest";
import { findPersonalData } from "./find-personal-data.ts";
import { findSecrets } from "./find-secrets.ts";
import { findControlTokens, findGarbledText } from "./inspect-text.ts";

const kinds = (hits: readonly { text: number; kind: string }[]): string[] => hits.map(({ text, kind }) => `${text} ${kind}`);

describe("inspecting texts", () => {
  it("tells text that was read in another encoding, and not what only looks like it", () => {
    const garble = (text: string): string => Buffer.from(text).toString("latin1");
    expect(
      kinds(findGarbledText([garble("größer"), "Itâ€™s late", "größer, à la carte, naïve", "NÃO, MANHÃ: GARÇON", "â la", garble("日本")])),
    ).toEqual(["0 Ã¶", "1 â€™"]);
  });

  it("tells secrets by the text they are in", async () => {
    const token = ["ghp_", "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx"].join("");
    const hits = await findSecrets([
      "nothing",
      `my token is ${token}, and again ${token}`,
      "",
      "postgres://me:hunter2hunter2@db.internal/x",
    ]);
    expect(kinds(hits)).toContain("1 github-pat");
    expect(hits.filter(({ text }) => text === 1)).toHaveLength(1);
    expect(hits.some(({ text }) => text === 3)).toBe(true);
    expect(hits.some(({ text }) => text === 0 || text === 2)).toBe(false);
  });

  it("tells personal data, and not what only looks like it", () => {
    expect(
      kinds(
        findPersonalData([
          "Write to jane.doe@corp.io please",
          "my number is 13812345678",
          "pay with 4111 1111 1111 1111",
          "身份证号 11010519491231002X",
          "account DE89 3704 0044 0532 0130 00",
          "someone@example.com is nobody; 4111 1111 1111 1112 has a wrong checksum; 3.14159265358979323846 is a number; order 20261124000017",
        ]),
      ),
    ).toEqual(["0 email", "1 phone", "2 card", "3 id-card", "4 iban"]);
  });

  it("names control tokens once per text", () => {
    expect(kinds(findControlTokens(["a <|im_end|> b <|im_end|>", "if (a < b) x[INSTALL]", "[INST] hi </s>"]))).toEqual([
      "0 <|im_end|>",
      "2 [INST]",
      "2 </s>",
    ]);
  });

  // A pattern that backtracks without end would run into the test's time limit.
  it("gets through hostile text", () => {
    expect(findPersonalData([`${"a".repeat(200_000)}@`, "1 ".repeat(200_000), `+${"1 ".repeat(100_000)}`])).toEqual([]);
    expect(findControlTokens(["<|a".repeat(100_000), "<｜".repeat(100_000)])).toEqual([]);
  });
});
