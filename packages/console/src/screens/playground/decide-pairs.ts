/** Pure: pairs of a better and a worse answer, as people choose them, and as a file to train on. */

interface Question {
  prompt: string;
  /** Empty: none. */
  system: string;
}
export interface Pair extends Question {
  /** Of one vote or correction; a new choice takes the place of the one before. */
  choice: string;
  better: string;
  worse: string;
}

/** Fewer are too few to train on. */
export const fewestPairs = 10;

/** @param others - the other models' answers; what is the same as `better` says nothing. */
export const pairsOf = (choice: string, { prompt, system }: Question, better: string, others: readonly string[]): Pair[] =>
  [...new Set(others)]
    .filter((worse) => worse.trim() !== better.trim() && worse.trim() !== "")
    .map((worse) => ({ choice, prompt, system, better, worse }));

export const withChoice = (pairs: readonly Pair[], chosen: readonly Pair[]): Pair[] => [
  ...pairs.filter(({ choice }) => choice !== chosen[0]?.choice),
  ...chosen,
];

/** One line for each pair, in the format `preferred-outputs` of docs/formats.md, which is OpenAI's. */
export const linesOf = (pairs: readonly Pair[]): string =>
  pairs
    .map(({ prompt, system, better, worse }) =>
      JSON.stringify({
        input: { messages: [...(system.trim() === "" ? [] : [{ role: "system", content: system }]), { role: "user", content: prompt }] },
        preferred_output: [{ role: "assistant", content: better }],
        non_preferred_output: [{ role: "assistant", content: worse }],
      }),
    )
    .map((line) => `${line}\n`)
    .join("");
