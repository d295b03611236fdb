/**
 * Encodes pairs for a judge: an adapter that says which of two answers is better. Each pair is asked in both orders, so that the place
 * of an answer teaches nothing. Only the letter is trained: what is measured on held-out rows is then how often the judge is right.
 */
import type { Message, Rec } from "@loraline/contracts";
import { ignored, type Sequence } from "./encode-pieces.ts";
import { type Examples, judgeSide, type Side, sidesOf } from "./encode-preferences.ts";
import { drop, type Encoded, type RecordEncoder } from "./record-encoder.ts";

/** The question to a judge. A user asks it in the same words (docs/preferences.md). */
const questionOf = (prompt: string, a: string, b: string): string =>
  `Which answer is better, A or B? Say the letter.\n\nQuestion:\n${prompt}\n\nAnswer A:\n${a}\n\nAnswer B:\n${b}`;

/**
 * @param encoder - of single conversations; it must neither cut nor drop what is too long.
 * @param maxLength - of a question with both answers, in tokens.
 */
export function comparisonEncoder(
  encoder: RecordEncoder,
  examples: Extract<Examples, `${string}-comparisons`>,
  maxLength: number,
): RecordEncoder {
  const pairs = examples === "best-comparisons" ? "best-pairs" : "all-pairs";
  return {
    async encode(records) {
      const sides = records.map((record) => (record.media === undefined || record.media.length === 0 ? sidesOf(record, pairs) : pictured));
      const asked = records.flatMap((record, index) => {
        const found = sides[index] as ReturnType<typeof sidesOf>;
        return "code" in found ? [] : comparisonsOf(record, found);
      });
      const encoded = (await encoder.encode(asked)).values();
      return sides.map((found): Encoded => {
        if ("code" in found) return drop(found.code, found.message);
        const orders = found.map(() => encoded.next().value as Encoded);
        return wholePairs(orders, maxLength);
      });
    },
    ask: (question) => encoder.ask(question),
    get family() {
      return encoder.family;
    },
  };
}

/** A judge is asked in one text, in which a picture has no place. */
const pictured = {
  code: "KIND_NOT_TRAINED",
  message: 'the record shows pictures, and a judge is shown none; the methods "dpo", "orpo", "simpo" and "kto" train it.',
};

/** For each pair two conversations: the better answer first, and last. */
function comparisonsOf({ v, id, task, messages = [], meta }: Rec, sides: readonly Side[]): Rec[] {
  const prompt = textOf(messages);
  const made: Rec[] = [];
  for (let at = 0; at < sides.length; at += 2) {
    const [good, bad] = [sides[at], sides[at + 1]].map((side) => (side?.answer ?? []).map(said).join("\n")) as [string, string];
    for (const [a, b, letter] of [
      [good, bad, "A"],
      [bad, good, "B"],
    ] as const) {
      const turns: Message[] = [
        { role: "user", content: questionOf(prompt, a, b) },
        { role: "assistant", content: letter },
      ];
      made.push({ v, id, task, kind: "chat", messages: turns, meta });
    }
  }
  return made;
}

const said = ({ content, tool_calls: calls }: Message): string =>
  [content, calls].filter((text) => text !== undefined && text !== "").join("\n");
/** A single question is itself; several turns are shown with who speaks. */
const textOf = (turns: readonly Message[]): string =>
  turns.length === 1 && turns[0]?.role === "user" ? said(turns[0]) : turns.map((turn) => `${turn.role}: ${said(turn)}`).join("\n");

/** Keeps the pairs both of whose orders are whole. The record is dropped if none is left, for the first reason. */
function wholePairs(orders: readonly Encoded[], maxLength: number): Encoded {
  const samples: Sequence[] = [];
  const notes = new Map<string, Encoded["notes"][number]>();
  let refused: Encoded["dropped"] = null;
  for (let at = 0; at < orders.length; at += 2) {
    const pair = orders.slice(at, at + 2);
    const reason = pair.map((one) => judgeSide(one, "the comparison", maxLength)).find((one) => one !== null);
    if (reason !== undefined) refused ??= reason;
    else samples.push(...pair.map(({ samples: [sample] }) => letterAlone(sample as Sequence)));
  }
  if (samples.length === 0) return { samples, dropped: refused, notes: [] };
  if (refused !== null) notes.set(refused.code, refused);
  return { samples, dropped: null, notes: [...notes.values()] };
}

/** Without the end of the turn, of which a judge is asked nothing: it answers with one token. */
function letterAlone({ ids, labels }: Sequence): Sequence {
  const letter = labels.findIndex((label) => label !== ignored);
  return { ids: ids.slice(0, letter + 1), labels: labels.slice(0, letter + 1) };
}
