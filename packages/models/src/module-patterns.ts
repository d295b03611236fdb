/** Pure: finds the modules of a base that the names and patterns of a LoRA config select, as PEFT does, in bounded time. */

/** Syntax that only Python's regular expressions have. Such patterns are judged by the trainer, which applies them. */
const onlyInPython = /\(\?(?:P[<=>]|[aiLmsux]|\(|#|>)|\\[AZ]|[*+?}]\+|\[\^?\]/;

const longestPattern = 1000;
/** Most ways in which all patterns of one spec together may be tried on one name. A few hundred names then take well below a second. */
const mostWays = 2 ** 20;
/** Ways of an open repetition such as `.*`: about the length of a module's name. */
const waysOfRepetition = 32;

type PatternVerdict =
  | { kind: "usable"; test(name: string): boolean }
  | { kind: "only-python" }
  | { kind: "invalid" | "costly"; why: string };

/** The ways that patterns may still use. All patterns of a spec share one budget, because their number is not limited. */
interface PatternBudget {
  ways: number;
}
export const patternBudget = (): PatternBudget => ({ ways: mostWays });

/**
 * Judges a pattern that has to match a whole name.
 * @param wrap - puts it into the expression that PEFT makes of it; default: as it is.
 * @param budget - reduced by this pattern's ways.
 */
export function judgePattern(
  source: string,
  wrap: (source: string) => string = (text) => `^(?:${text})$`,
  budget: PatternBudget = patternBudget(),
): PatternVerdict {
  if (source.length > longestPattern) return { kind: "costly", why: `it is longer than ${longestPattern} characters` };
  const ways = waysOf(source);
  if (ways > mostWays) {
    return { kind: "costly", why: "it has repetitions inside repetitions, or so many of them that matching may take for ever" };
  }
  budget.ways -= ways;
  if (budget.ways < 0) return { kind: "costly", why: "with the other expressions before it, matching may take for ever" };
  if (onlyInPython.test(source)) return { kind: "only-python" };
  try {
    // Compiled without its wrapping: an extra parenthesis would pair with the wrapping's and make another expression.
    new RegExp(source);
    const expression = new RegExp(wrap(source));
    return { kind: "usable", test: (name) => expression.test(name) };
  } catch (error) {
    return { kind: "invalid", why: (error as Error).message };
  }
}

/**
 * @returns an upper bound of the ways in which a backtracking matcher may try an expression on a short text. Infinite for expressions
 * with exponential time: a repetition of something that can itself match in several ways.
 */
export function waysOf(source: string): number {
  let at = 0;
  const alternatives = (): number => {
    let ways = 0;
    for (;;) {
      ways += sequence();
      if (source[at] !== "|") return ways;
      at++;
    }
  };
  const sequence = (): number => {
    let ways = 1;
    while (at < source.length && source[at] !== "|" && source[at] !== ")") ways *= repeated(atom());
    return ways;
  };
  const atom = (): number => {
    const character = source[at++];
    if (character === "\\") at++;
    else if (character === "[") {
      if (source[at] === "^") at++;
      if (source[at] === "]") at++;
      while (at < source.length && source[at] !== "]") at += source[at] === "\\" ? 2 : 1;
      at++;
    } else if (character === "(") {
      at += /^(?:\?(?:P?<\w+>|P=\w*|<[=!]|[:=!>#]|\(\w*\)|[aiLmsux-]+:?))?/.exec(source.slice(at))?.[0].length ?? 0;
      const ways = alternatives();
      if (source[at] === ")") at++;
      return ways;
    }
    return 1;
  };
  const repeated = (ways: number): number => {
    for (;;) {
      const [text, least, , most] = /^(?:[*+?]|\{(\d*)(,(\d*))?\})/.exec(source.slice(at)) ?? [];
      if (text === undefined) return ways;
      at += text.length;
      const lazy = source[at] === "?" || source[at] === "+";
      if (lazy) at++;
      if (text === "?") ways += 1;
      else if (!text.startsWith("{") || (text.includes(",") && (most === undefined || most === "")))
        ways = ways === 1 ? waysOfRepetition : Infinity;
      else {
        const [from, to] = [Number(least), Number(most ?? least)];
        ways = ways === 1 ? Math.max(1, to - from + 1) : ways ** Math.max(to, 1) * Math.max(1, to - from + 1);
      }
    }
  };
  let ways = alternatives();
  // There is a parenthesis too many, which the compiler of the expression reports.
  while (at < source.length) {
    at++;
    ways *= alternatives();
  }
  return ways;
}

/** Whether a name is one of a list, as PEFT takes lists: the whole name, or its end after a dot. */
export const isNamed = (name: string, list: readonly string[]): boolean =>
  list.some((given) => name === given || name.endsWith(`.${given}`));

/** @returns the last parts of the names, sorted: what people call modules. */
export const shortNames = (names: Iterable<string>): string[] =>
  [...new Set([...names].map((name) => name.slice(name.lastIndexOf(".") + 1)))].sort();
