/** What the report says of preferences: lengths of both sides, and pairs from which nothing, or the wrong thing, would be learned. */
import { hash } from "node:crypto";
import type { DatasetReport, Message, Rec } from "@loraline/contracts";
import { Finding, NumberSet } from "./bounded-counters.ts";
import { countLengths } from "./measure-lengths.ts";

type Preferences = NonNullable<DatasetReport["preferences"]>;

interface AnswerComparison {
  add(record: Rec): void;
  /** @param identical - rows that were refused because both sides say the same. @returns null: there was nothing to compare. */
  value(identical: number): Preferences | null;
}

/** Grows by 16 to 32 bytes for each pair. */
export function createAnswerComparison(): AnswerComparison {
  const chosen = countLengths();
  const rejected = countLengths();
  const counts = { pairs: 0, longerWins: 0, shorterWins: 0, good: 0, bad: 0 };
  const ties = new Finding();
  const unranked = new Finding();
  const contradictions = new Finding();
  const seen = new NumberSet();
  let lists = 0;

  /** Notes what a record claims of a question; it is contradicted when the opposite was claimed before. */
  const claim = (line: number, question: string, claimed: readonly string[], opposite: readonly string[]): void => {
    if (seen.has(hashOf([question, ...opposite]))) contradictions.add(line);
    seen.add(hashOf([question, ...claimed]));
  };
  const compare = (line: number, question: string, better: string, worse: string): void => {
    counts.pairs++;
    if (better.length > worse.length) counts.longerWins++;
    if (better.length < worse.length) counts.shorterWins++;
    chosen.add(better.length);
    rejected.add(worse.length);
    claim(line, question, ["better", better, worse], ["better", worse, better]);
  };

  return {
    add(record) {
      const { kind, messages = [], candidates = [], label, meta } = record;
      if (kind === "preference") {
        compare(meta.line, textOf(messages), textOf(record.chosen ?? []), textOf(record.rejected ?? []));
      } else if (kind === "unpaired") {
        counts[label === true ? "good" : "bad"]++;
        const end = messages.findLastIndex(({ role }) => role === "user") + 1;
        const answer = textOf(messages.slice(end));
        claim(meta.line, textOf(messages.slice(0, end)), [String(label), answer], [String(label !== true), answer]);
      } else if (kind === "ranked") {
        lists++;
        const scored = candidates.flatMap(({ content, score }) => (score === undefined ? [] : [{ content, score }]));
        if (scored.length < candidates.length) return unranked.add(meta.line);
        if (new Set(scored.map(({ score }) => score)).size < scored.length) ties.add(meta.line);
        const best = scored.reduce((one, other) => (other.score > one.score ? other : one), scored[0] ?? { content: "", score: 0 });
        for (const other of scored) {
          if (other.score < best.score && other.content !== best.content) compare(meta.line, textOf(messages), best.content, other.content);
        }
      }
    },
    value(identical) {
      if (counts.pairs + counts.good + counts.bad + lists === 0) return null;
      return {
        ...counts,
        chosen: chosen.lengths(),
        rejected: rejected.lengths(),
        identical,
        ties: ties.value,
        unranked: unranked.value,
        contradictions: contradictions.value,
      };
    },
  };
}

const textOf = (messages: readonly Pick<Message, "role" | "content" | "tool_calls">[]): string =>
  messages.map(({ content, tool_calls: calls = "" }) => content + calls).join("\n");
/** 52 bits, and never 0, which the set takes for an empty place. */
const hashOf = (parts: readonly string[]): number => Number.parseInt(hash("sha256", JSON.stringify(parts), "hex").slice(0, 13), 16) + 1;

/** From so many pairs on a share says something. */
const pairsForShare = 20;
const suspiciousShare = 0.9;

type Warn = (code: string, count: number, message: string, lines?: number[]) => void;

/** @param warn - drops a warning whose count is 0. */
export function warnOfAnswers(of: Preferences, warn: Warn): void {
  const { pairs, longerWins, shorterWins, contradictions, ties, unranked, good, bad } = of;
  const [wins, which] = longerWins >= shorterWins ? [longerWins, "longer"] : [shorterWins, "shorter"];
  if (pairs >= pairsForShare && wins >= suspiciousShare * pairs) {
    warn(
      "LENGTH_DECIDES",
      wins,
      `in ${Math.round((100 * wins) / pairs)} % of ${pairs} pairs the ${which} answer is the chosen one: length is the easiest thing to learn from them. Unless that is meant, add pairs where it is the other way round.`,
    );
  }
  warn(
    "CONTRADICTING_PAIRS",
    contradictions.count,
    `${contradictions.count} say the opposite of an earlier record about the same answers. They teach nothing together: remove one of each two.`,
    contradictions.lines,
  );
  warn(
    "TIED_ANSWERS",
    ties.count,
    `${ties.count} lists have answers of the same score, which are not compared with each other`,
    ties.lines,
  );
  warn(
    "UNRANKED_ANSWERS",
    unranked.count,
    `${unranked.count} lists of answers do not say which is better: give scores, ranks, or a preferred_response`,
    unranked.lines,
  );
  const [few, many] = [Math.min(good, bad), Math.max(good, bad)];
  if (good + bad >= pairsForShare && many > 10 * few) {
    const message = `${good} answers are labelled good and ${bad} bad. Learning from both needs some of each; method.desirable_weight and method.undesirable_weight weigh them.`;
    warn("ONE_SIDED_LABELS", many, message);
  }
}
