/** `loraline explain`: what a code means, from the table from which docs/errors.md is made. */
import { type CodeEntry, codeAreas, explainCode } from "@loraline/contracts";
import { type AddCommands, examples } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";

type Explained = CodeEntry & { code: string; area: string; where: string };

const doneBy = {
  user: "you",
  operator: "the operator of the servers",
  developer: "a developer of Loraline: report it",
} as const;

/** @throws Failure CODE_UNKNOWN */
export function explain(given: string): Explained {
  // People type a code as they saw it in a message: in brackets, or in lower case.
  const word = given.replace(/^\[|\]$/g, "");
  for (const code of [word, word.toUpperCase(), word.toLowerCase()]) {
    const found = explainCode(code);
    if (found !== undefined) return { code, ...found };
  }
  const all = codeAreas.flatMap(({ codes }) => Object.keys(codes));
  const [first = ""] = word.toUpperCase().split("_");
  const alike = all.filter((code) => code.toUpperCase().startsWith(first)).slice(0, 10);
  const hint = alike.length === 0 ? "docs/errors.md lists all." : `Alike: ${alike.join(", ")}.`;
  throw new Failure(exitCodes.notFound, "CODE_UNKNOWN", `there is no code "${given}". ${hint}`, { param: "code" });
}

export const explainedLines = ({ code, where, audience, meaning, remedy }: Explained): string[] => [
  `${code}: ${meaning}`,
  `What to do: ${remedy}`,
  `Who can do it: ${doneBy[audience]}.`,
  `Where it comes from: ${where}.`,
];

export const addExplainCommand: AddCommands = (program, { print }) => {
  program
    .command("explain")
    .description("say what an error code means and what to do")
    .argument("<code>", "the code, as a message shows it")
    .addHelpText("after", examples("loraline explain SPEC_INVALID"))
    .action((code: string) => {
      const explained = explain(code);
      print(explained, () => explainedLines(explained));
    });
};
