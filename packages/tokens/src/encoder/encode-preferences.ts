/**
 * Encodes preferences to the sequences that are compared: pairs of a chosen and a rejected answer, or single answers labelled good or bad.
 * Each side is rendered as the conversation that it is, so every template and every check of supervised runs holds for it, too.
 */
import type { Message, Method, Rec } from "@loraline/contracts";
import type { Sequence } from "./encode-pieces.ts";
import { drop, type Encoded, type RecordEncoder } from "./record-encoder.ts";

/**
 * What a method trains: `answers` one by one; `best-pairs` and `all-pairs` of answers, which differ in what a list of answers gives;
 * `labelled` answers, each good or bad; for a judge `best-comparisons` and `all-comparisons` of the same pairs.
 */
export const exampleKinds = ["answers", "best-pairs", "all-pairs", "labelled", "best-comparisons", "all-comparisons"] as const;
export type Examples = (typeof exampleKinds)[number];

export const examplesOf = (method: Method): Examples => {
  if (method.type === "kto") return "labelled";
  if (method.type === "judge") return `${method.pairs}-comparisons`;
  return "pairs" in method ? `${method.pairs}-pairs` : "answers";
};

type Compared = Extract<Examples, `${string}-pairs` | "labelled">;

/** Whether sequences have sides, which are compared with each other in training. */
export const isSided = (examples: Examples): examples is Compared => examples.endsWith("-pairs") || examples === "labelled";
/** Sequences of an example: both sides of a pair, a judge's question in both orders, or one answer. They are held out together. */
export const sequencesPerExample = (examples: Examples): 1 | 2 =>
  examples.endsWith("-pairs") || examples.endsWith("-comparisons") ? 2 : 1;
/** Sequences that must be in one row. */
export const sequencesTogether = (examples: Examples): 1 | 2 => (examples.endsWith("-pairs") ? 2 : 1);

/** One answer: good (or chosen), or bad (or rejected). */
export interface Side {
  readonly isGood: boolean;
  readonly answer: readonly Message[];
}

/**
 * @param encoder - of single conversations; it must neither cut nor drop what is too long.
 * @param maxLength - of each side, in tokens.
 */
export function preferenceEncoder(encoder: RecordEncoder, examples: Compared, maxLength: number): RecordEncoder {
  const together = sequencesTogether(examples);
  return {
    async encode(records) {
      const sides = records.map((record) => sidesOf(record, examples));
      const conversations = records.flatMap((record, index) => {
        const found = sides[index] as ReturnType<typeof sidesOf>;
        return "code" in found ? [] : found.map(({ answer }) => conversationOf(record, answer));
      });
      const encoded = (await encoder.encode(conversations)).values();
      return sides.map((found): Encoded => {
        if ("code" in found) return drop(found.code, found.message);
        return judgeSides(
          found.map(({ isGood }) => ({ isGood, encoded: encoded.next().value as Encoded })),
          together,
          maxLength,
        );
      });
    },
    ask: (question) => encoder.ask(question),
    get family() {
      return encoder.family;
    },
  };
}

/** @returns a record's answers in the order in which they are compared (of pairs: chosen, rejected, chosen, …), or why it has none. */
export function sidesOf(record: Rec, examples: Compared): Side[] | { code: string; message: string } {
  const { kind, messages = [], chosen = [], rejected = [] } = record;
  switch (kind) {
    case "preference":
      return [
        { isGood: true, answer: chosen },
        { isGood: false, answer: rejected },
      ];
    case "ranked":
      return rankedSides(record, examples);
    case "unpaired":
      return examples === "labelled"
        ? [{ isGood: record.label === true, answer: messages.slice(promptLength(messages)) }]
        : notTrained("an answer that is labelled good or bad", 'method "kto" trains it');
    default:
      return notTrained("one answer, with nothing to compare it with", 'method "supervised" trains it');
  }
}

const notTrained = (what: string, remedy: string) => ({
  code: "KIND_NOT_TRAINED",
  message: `the record is ${what}, which this run's method does not train; ${remedy}.`,
});

/** The answer of a labelled conversation is its last turn; with what a tool was asked for it, where it was. */
function promptLength(messages: readonly Message[]): number {
  const question = messages.findLastIndex(({ role }) => role === "user" || role === "system");
  return question + 1;
}

function rankedSides({ candidates = [] }: Rec, examples: Compared): ReturnType<typeof sidesOf> {
  const unknown = (message: string) => ({ code: "RANKING_UNKNOWN", message });
  const scored = candidates.flatMap(({ content, score }) => (score === undefined ? [] : [{ content, score }]));
  if (scored.length < candidates.length) {
    return unknown(
      `${candidates.length} answers, and not all have a score, so it is not known which is better. Give \`scores\` or \`ranks\`.`,
    );
  }
  // Equal scores keep the order of the list.
  scored.sort((a, b) => b.score - a.score);
  const best = scored[0]?.score ?? 0;
  const side = (isGood: boolean, { content }: { content: string }): Side => ({ isGood, answer: [{ role: "assistant", content }] });
  if (scored.every(({ score }) => score === best)) {
    return unknown(`${scored.length} answers with the same score: none is better than another.`);
  }
  if (examples === "labelled") return scored.map((one) => side(one.score === best, one));
  const winners = examples === "best-pairs" ? scored.slice(0, 1) : scored;
  return winners.flatMap((winner) =>
    scored
      .filter((other) => other.score < winner.score && other.content !== winner.content)
      .flatMap((other) => [side(true, winner), side(false, other)]),
  );
}

/** The record as a conversation that ends in this answer, the only part that is trained. */
const conversationOf = ({ v, id, task, messages = [], kind, tools, media, meta }: Rec, answer: readonly Message[]): Rec => ({
  v,
  id,
  task,
  kind: "chat",
  messages: [
    ...(kind === "unpaired" ? messages.slice(0, promptLength(messages)) : messages).map((turn) =>
      turn.role === "assistant" ? { ...turn, train: false } : turn,
    ),
    ...answer,
  ],
  ...(tools === undefined ? {} : { tools }),
  ...(media === undefined ? {} : { media }),
  meta,
});

/** Keeps the examples all of whose sides are whole. The record is dropped if none is left, for the first reason. */
function judgeSides(sides: readonly { isGood: boolean; encoded: Encoded }[], together: 1 | 2, maxLength: number): Encoded {
  const samples: Sequence[] = [];
  const notes = new Map<string, Encoded["notes"][number]>();
  let refused: Encoded["dropped"] = null;
  for (let at = 0; at < sides.length; at += together) {
    const example = sides.slice(at, at + together);
    const reason = example
      .map(({ encoded, isGood }) => judgeSide(encoded, nameOf(isGood, together), maxLength))
      .find((one) => one !== null);
    const whole =
      reason === undefined ? example.map(({ encoded, isGood }) => ({ ...(encoded.samples[0] as Sequence), side: isGood ? 1 : 0 })) : [];
    const alike = whole.length === 2 && isEqual(whole[0]?.ids, whole[1]?.ids);
    if (reason === undefined && !alike) {
      samples.push(...(whole as Sequence[]));
      for (const { encoded } of example) for (const note of encoded.notes) notes.set(note.code, note);
    } else {
      refused ??= reason ?? {
        code: "SIDES_ALIKE",
        message: "chosen and rejected are the same tokens: nothing can be told from them. Give two answers that differ.",
        tokens: whole[0]?.ids.length ?? 0,
      };
    }
  }
  if (samples.length === 0) return { samples, dropped: refused, notes: [] };
  // Some pairs of a list may be left out although others are kept.
  if (refused !== null) notes.set(refused.code, refused);
  return { samples, dropped: null, notes: [...notes.values()] };
}

const nameOf = (isGood: boolean, together: 1 | 2): string =>
  together === 1 ? "the answer" : isGood ? "the chosen side" : "the rejected side";

/** @returns why this side cannot be compared; null: it can. */
export function judgeSide({ samples, dropped }: Encoded, name: string, maxLength: number): Encoded["dropped"] {
  if (dropped !== null) return { ...dropped, message: `${name}: ${dropped.message}` };
  const [sample, another] = samples;
  if (sample === undefined || another !== undefined) {
    const message = `${name}: the base's template shows it as ${samples.length} texts, as it removes thoughts from earlier turns. Compare the last answer only, with the turns before it in the prompt.`;
    return { code: "SIDE_IN_PARTS", message, tokens: sample?.ids.length ?? 0 };
  }
  const tokens = sample.ids.length;
  if (tokens <= maxLength) return null;
  const message = `${name}: ${tokens} tokens with its question; tokenize.max_length is ${maxLength}. Raise it; what is compared is never cut.`;
  return { code: "TOO_LONG", message, tokens };
}

const isEqual = (a: Int32Array | undefined, b: Int32Array | undefined): boolean =>
  a !== undefined && b !== undefined && a.length === b.length && a.every((id, index) => id === b[index]);
