/**
 * Conversations as pieces of a token sequence. Pure.
 *
 * Control tokens are ids from the start, so that nothing inside of a message can become one. Where training starts, a text ends
 * and another begins: there the server stops reading and the model starts writing, so the two are tokenized apart.
 */

/** Part of a sequence: one control token, or a text. Neighbouring texts with equal `trained` are joined to one. */
export type Piece = ({ readonly control: string; readonly id: number } | { readonly text: string }) & { readonly trained: boolean };

/** Adds a piece and joins texts. An empty text is not added. */
export function append(pieces: Piece[], piece: Piece): void {
  const last = pieces.at(-1);
  if ("text" in piece) {
    if (piece.text === "") return;
    if (last !== undefined && "text" in last && last.trained === piece.trained) {
      pieces[pieces.length - 1] = { text: last.text + piece.text, trained: piece.trained };
      return;
    }
  }
  pieces.push(piece);
}

export type SplitText = (text: string, trained: boolean, into: Piece[]) => void;

/** Cuts a text at the control tokens in it. */
export function createSplit(controls: ReadonlyMap<string, number>): SplitText {
  const spelled = controlPattern(controls);
  return (text, trained, into) => {
    let at = 0;
    for (const match of spelled === undefined ? [] : text.matchAll(spelled)) {
      append(into, { text: text.slice(at, match.index), trained });
      into.push({ control: match[0], id: controls.get(match[0]) as number, trained });
      at = match.index + match[0].length;
    }
    append(into, { text: text.slice(at), trained });
  };
}

/** Matches the longest of the tokens at a place; undefined: there are none. */
export function controlPattern(controls: ReadonlyMap<string, number>): RegExp | undefined {
  if (controls.size === 0) return undefined;
  const spellings = [...controls.keys()].sort((a, b) => b.length - a.length).map((token) => RegExp.escape(token));
  return new RegExp(spellings.join("|"), "g");
}
