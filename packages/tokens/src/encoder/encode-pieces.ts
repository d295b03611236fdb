/** Encodes pieces to ids and labels. */
import type { PictureEntry, ProbePrompt } from "@loraline/contracts";
import type { Base } from "./load-base.ts";
import type { Piece } from "../templates/pieces.ts";

/** Label of a token that is not trained on. */
export const ignored = -100;

export interface Sequence {
  readonly ids: Int32Array;
  /** As long as `ids`: the id of each trained token, `ignored` for others. The first label is always `ignored`. */
  readonly labels: Int32Array;
  /** Of preferences: 1 of a chosen or good answer, 0 of another one. */
  readonly side?: 0 | 1;
  /** Pictures whose tokens stand in `ids`, in their order. Absent: none. */
  readonly pictures?: readonly PictureEntry[];
  /** With pictures: the conversation up to the last trained turn, where it can be asked of an engine. */
  question?(): NonNullable<ProbePrompt["messages"]> | undefined;
}

export interface EncodedPieces extends Sequence {
  /** Whether prompt and answer, tokenized together, would somewhere give other tokens than apart. */
  readonly joins: boolean;
}

type Encoding = Pick<Base, "encoder">;

/** Remembered ids of frequent texts: headers, system prompts, common words. */
export type Known = Map<string, Int32Array>;

/** One result per sample, in their order. */
export async function encodePieces(
  { encoder }: Encoding,
  samples: readonly (readonly Piece[])[],
  known: Known = new Map(),
): Promise<EncodedPieces[]> {
  if (!encoder.contextFree) return encodeInContext({ encoder }, samples);
  const texts = new Set<string>();
  const borders = samples.map((pieces) => bordersOf(pieces));
  for (const pieces of samples) for (const piece of pieces) if ("text" in piece) texts.add(piece.text);
  for (const { before, after } of borders.flat()) for (const text of [before, after, before + after]) texts.add(text);
  await learn({ encoder }, known, texts);
  const idsOf = (text: string): Int32Array => known.get(text) as Int32Array;
  return samples.map((pieces, index) => ({
    ...assemble(pieces, (piece) => ("text" in piece ? idsOf(piece.text) : [piece.id])),
    joins: (borders[index] ?? []).some(({ before, after }) => !isEqual(idsOf(before + after), [...idsOf(before), ...idsOf(after)])),
  }));
}

/** Encodes the texts that are not remembered yet. Long texts are not kept afterwards. */
async function learn({ encoder }: Encoding, known: Known, texts: ReadonlySet<string>): Promise<void> {
  if (known.size > 4096) known.clear();
  else for (const text of known.keys()) if (text.length > 200) known.delete(text);
  const missing = [...texts].filter((text) => !known.has(text));
  const encoded = await encoder.encode(missing, "plain");
  for (const [index, text] of missing.entries()) known.set(text, encoded[index] as Int32Array);
}

/** @returns for each place where training starts: the ends of the texts before and after it, if a token could span them. */
function bordersOf(pieces: readonly Piece[]): { before: string; after: string }[] {
  const found: { before: string; after: string }[] = [];
  for (let index = 1; index < pieces.length; index++) {
    const [left, right] = [pieces[index - 1] as Piece, pieces[index] as Piece];
    if (left.trained || !right.trained || !("text" in left) || !("text" in right)) continue;
    // Blanks form a token with blanks only: a newline at the end of a header can join the newlines at the beginning of an answer.
    if (/\s/.test(left.text.slice(-1)) && !/^\s/.test(right.text)) continue;
    const [before, after] = [left.text.slice(-borderLength), right.text.slice(0, borderLength)];
    // The cut must not be in the middle of a surrogate pair.
    found.push({ before: before.replace(/^[\uDC00-\uDFFF]/, ""), after: after.replace(/[\uD800-\uDBFF]$/, "") });
  }
  return found;
}
const borderLength = 64;

/**
 * For tokenizers whose ids depend on the place of a text, such as SentencePiece with its blank in front: the text up to each border is
 * encoded as a whole, and the answer's ids are those that are added.
 */
async function encodeInContext({ encoder }: Encoding, samples: readonly (readonly Piece[])[]): Promise<EncodedPieces[]> {
  const runs = samples.map((pieces) => {
    const list: { text: string; trained: boolean }[] = [];
    for (const piece of pieces) {
      const text = "text" in piece ? piece.text : encoder.sealOf(piece.control);
      const last = list.at(-1);
      if (last?.trained === piece.trained) last.text += text;
      else list.push({ text, trained: piece.trained });
    }
    return list;
  });
  const upTo = runs.flatMap((list) =>
    list.map((_, index) =>
      list
        .slice(0, index + 1)
        .map((run) => run.text)
        .join(""),
    ),
  );
  const alone = runs.flatMap((list) => list.map((run) => run.text));
  const [joint, apart] = [(await encoder.encode(upTo, "sealed")).values(), (await encoder.encode(alone, "sealed")).values()];
  return runs.map((list) => {
    const ids: number[] = [];
    const labels: number[] = [];
    let joins = false;
    for (const { trained } of list) {
      const [together, single] = [joint.next().value as Int32Array, apart.next().value as Int32Array];
      const fits = ids.every((id, index) => together[index] === id);
      if (!fits && trained) joins = true;
      const added = fits ? together.subarray(ids.length) : single;
      for (const id of added) {
        ids.push(id);
        labels.push(trained ? id : ignored);
      }
    }
    return { ids: Int32Array.from(ids), labels: Int32Array.from(labels), joins };
  });
}

function assemble(pieces: readonly Piece[], idsOf: (piece: Piece) => ArrayLike<number>): Sequence {
  const parts = pieces.map(idsOf);
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const ids = new Int32Array(length);
  const labels = new Int32Array(length).fill(ignored);
  let at = 0;
  for (const [index, part] of parts.entries()) {
    ids.set(part, at);
    if (pieces[index]?.trained === true) labels.set(part, at);
    at += part.length;
  }
  return { ids, labels };
}

const isEqual = (a: ArrayLike<number>, b: ArrayLike<number>): boolean => {
  if (a.length !== b.length) return false;
  for (let index = 0; index < a.length; index++) if (a[index] !== b[index]) return false;
  return true;
};
