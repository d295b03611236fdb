import { expect, it } from "vitest";
import { chosenOf, judgePreferences, type PreferenceDemoSummary } from "./demo-preferences.ts";

const summary: PreferenceDemoSummary = {
  runIds: { supervised: "s", dpo: "d" },
  answers: { base: ["A bridge is a structure that..."], supervised: ["A road over water."], dpo: ["A road over water."] },
  preference: { pairs: 13, accuracy: 1, accuracy_low: 0.77, accuracy_high: 1, margin: 1, chosen_logprob_change: 0.1, loss: 0.3 },
  proof: { probes: 8, tokens: 80, agreement: 0.1, agreementLimit: 0.3, effect: 2, effectExpected: 2, provenAt: "2026-11-24T00:00:00.000Z" },
  trainMs: { supervised: 1, dpo: 1 },
};
const failing = (over: Partial<PreferenceDemoSummary>): string[] =>
  judgePreferences({ ...summary, ...over }).flatMap(({ claim, holds }) => (holds ? [] : [claim]));

it("each claim of the preference demo can fail", () => {
  const { preference, proof } = summary;
  expect(failing({})).toEqual([]);
  expect(failing({ answers: { ...summary.answers, dpo: [""] } })).toEqual(["the preference run's adapter answers"]);
  expect(failing({ answers: { ...summary.answers, dpo: ["A bridge is a long structure."] } })).toEqual([
    expect.stringContaining("29 characters, not 31"),
  ]);
  expect(failing({ preference: preference && { ...preference, accuracy_low: 0.5 } })).toEqual([
    expect.stringContaining("more often than by chance"),
  ]);
  expect(failing({ preference: preference && { ...preference, loss: 0.7 } })).toEqual([expect.stringContaining("ln 2")]);
  expect(failing({ proof: proof && { ...proof, agreement: 0.4 } })).toEqual([expect.stringContaining("proof")]);
  expect(failing({ proof: null, preference: null })).toHaveLength(3);
});

it("the supervised run gets the chosen answers alone", () => {
  expect(chosenOf('{"prompt": "q", "chosen": "y", "rejected": "n"}\n')).toBe('{"instruction":"q","output":"y"}\n');
});
