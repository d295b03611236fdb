/** How codes of errors, warnings and states are declared: by area, each with its meaning and its remedy. */

/** Who can correct it: a user of the command line or the API, the operator of the servers, or a developer who changes the code. */
export type Audience = "user" | "operator" | "developer";

export interface CodeEntry {
  readonly audience: Audience;
  /** What the code means. */
  readonly meaning: string;
  /** What to do. */
  readonly remedy: string;
}

interface CodeArea<Code extends string = string> {
  readonly title: string;
  /** What these codes come from, in a user's words: an action or a program. */
  readonly where: string;
  /** The packages and services that raise them. */
  readonly sources: string;
  readonly codes: Readonly<Record<Code, CodeEntry>>;
}

/** Meaning and remedy; the audience only where it differs from the area's. */
type Row = readonly [meaning: string, remedy: string, audience?: Audience];

export function defineArea<Code extends string>(
  of: { title: string; where: string; sources: string; audience: Audience },
  rows: Readonly<Record<Code, Row>>,
): CodeArea<Code> {
  const entries = Object.entries<Row>(rows).map(([code, [meaning, remedy, audience = of.audience]]) => [
    code,
    { audience, meaning, remedy },
  ]);
  // One entry for each key of `rows`.
  return { title: of.title, where: of.where, sources: of.sources, codes: Object.fromEntries(entries) as Record<Code, CodeEntry> };
}
