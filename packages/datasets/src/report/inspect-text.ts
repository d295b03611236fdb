/** What is found in a text that its owner should check; first of all spellings of control tokens. */
/** Something found in a text, by its kind; never the secret itself. */
export interface Hit {
  /** Index of the text. */
  readonly text: number;
  readonly kind: string;
}

/** Where in a text something was found: from `start` to before `end`, in UTF-16 units. */
export interface Span {
  readonly start: number;
  readonly end: number;
  readonly kind: string;
}

/** Control tokens of the template families. In a record they stay text, but the author hardly ever wants that. */
const controlToken =
  /<\|[a-z][a-z0-9_]{1,40}\|>|<\/?s>|\[\/?INST\]|<<\/?SYS>>|<(?:start|end)_of_turn>|<[｜|][^<>｜|]{1,40}[｜|]>|<\/?think>|<\/?tool_call>/gu;

/** @returns each control token that is spelled in a text, once. */
export const findControlTokens = (texts: readonly string[]): Hit[] =>
  unique(
    texts.flatMap((text, index) =>
      text.includes("<") || text.includes("[") ? [...text.matchAll(controlToken)].map(([kind]) => ({ text: index, kind })) : [],
    ),
  );

/**
 * UTF-8 that was read as windows-1252 and saved: `Ã¼` is ü, `â€™` an apostrophe. What stands behind `Ã` there is never a capital letter, so
 * Portuguese in capitals (`SÃO`) is none.
 */
const garbled = /[ÃÂ][\u0080-\u00BF€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘“”•–—˜™š›œžŸ]|â€[™œ\u009D“”¦˜]/u;

/** @returns the first garbled spelling of each text. */
export const findGarbledText = (texts: readonly string[]): Hit[] =>
  texts.flatMap((text, index) => {
    const kind = garbled.exec(text)?.[0];
    return kind === undefined ? [] : [{ text: index, kind }];
  });

/** Each kind once for each text. */
export const unique = (hits: readonly Hit[]): Hit[] => [...new Map(hits.map((hit) => [`${hit.text} ${hit.kind}`, hit])).values()];
