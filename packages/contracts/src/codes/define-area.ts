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

/** Meaning and remedy; the audience only where it differs from the area's. */
type Row = readonly [meaning: string, remedy: string, audience?: Audience];

interface Area {
  title: string;
  /** What these codes come from, in a user's words: an action or a program. */
  where: string;
  /** The packages and services that raise them. */
  sources: string;
  audience: Audience;
}

// The type of what it returns has no name, so that declarations of the contracts can say it.
export function defineArea<Code extends string>(of: Area, rows: Readonly<Record<Code, Row>>) {
  const entries = Object.entries<Row>(rows).map(([code, [meaning, remedy, audience = of.audience]]) => [
    code,
    { audience, meaning, remedy },
  ]);
  // One entry for each key of `rows`.
  return { title: of.title, where: of.where, sources: of.sources, codes: Object.fromEntries(entries) as Readonly<Record<Code, CodeEntry>> };
}
