/** Remedies in other languages name the same settings as the table of codes. */
import { explainCode } from "@loraline/contracts";
import { expect, it } from "vitest";
import { remedies } from "./remedies-zh.ts";

it("what is to be typed as it stands is the same in both", () => {
  const typed = (text: string): string[] => [...text.matchAll(/`([^`]+)`/g)].map(([, code = ""]) => code);
  for (const [code, text] of Object.entries(remedies)) {
    const remedy = explainCode(code)?.remedy ?? "";
    for (const word of typed(text)) expect(`${remedy} ${code}`, code).toContain(word.split(/[{: ]/, 1)[0]);
  }
});
