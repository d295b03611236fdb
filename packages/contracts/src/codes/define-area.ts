/** How codes of errors, warnings and states are declared: by area, each with its meaning and its remedy. */

/** Who can mend it: whoever uses the API, whoever runs the servers, or whoever changes the code. */
export type Audience = "user" | "operator" | "developer";

export interface CodeEntry {
  readonly audience: Audience;
  /** One sentence. */
  readonly meaning: string;
  /** One sentence: what to do. */
  readonly remedy: string;
}

interface CodeArea<Code extends string = string> {
  readonly title: string;
  /** The packages and services that raise these codes. */
  readonly where: string;
  readonly codes: Readonly<Record<Code, CodeEntry>>;
}

/** Meaning, remedy, and the audience where it is not the area's. */
type Row = readonly [meaning: string, remedy: string, audience?: Audience];

export function defineArea<Code extends string>(
  of: { title: string; where: string; audience: Audience },
  rows: Readonly<Record<Code, Row>>,
): CodeArea<Code> {
  const entries = Object.entries<Row>(rows).map(([code, [meaning, remedy, audience = of.audience]]) => [
    code,
    { audience, meaning, remedy },
  ]);
  // One entry for each key of `rows`.
  return { title: of.title, where: of.where, codes: Object.fromEntries(entries) as Record<Code, CodeEntry> };
}
