/** Other languages say what to do about each code that pages can show. */
import { codeAreas } from "@loraline/contracts";
import { expect, it } from "vitest";
import { remedies } from "./remedies-zh.ts";

/** Their codes end programs and commands, and reach no page. */
const elsewhere = [
  "The command line",
  "Programs and their environment",
  "Settings of an engine",
  "NATS and the object store",
  "Kubernetes resources",
];

const shown = codeAreas.filter(({ title }) => !elsewhere.includes(title)).map(({ codes }) => codes as Record<string, { remedy: string }>);

it("every code of a page has its remedy in Chinese, and there is none for a code that is gone", () => {
  expect(codeAreas.filter(({ title }) => elsewhere.includes(title))).toHaveLength(elsewhere.length);
  expect(Object.keys(remedies).toSorted()).toEqual(shown.flatMap((codes) => Object.keys(codes)).toSorted());
});

it("what is to be typed as it stands is the same in both", () => {
  const typed = (text: string): string[] => [...text.matchAll(/`([^`]+)`/g)].map(([, code = ""]) => code).toSorted();
  for (const codes of shown)
    for (const [code, { remedy }] of Object.entries(codes)) {
      for (const word of typed(remedies[code] ?? "")) expect(`${remedy} ${code}`, code).toContain(word.split(/[{: ]/, 1)[0]);
    }
});
