/** JSON whose numbers survive being written again. Pure. */

/** A number that comes out of `JSON.stringify` as it is written here. TypeScript's types do not have `JSON.rawJSON` yet. */
export const asWritten = (number: string): unknown => (JSON as unknown as { rawJSON(source: string): unknown }).rawJSON(number);

/** Each number is kept as it is written, so that `1.0` and integers beyond 2^53 come out of `JSON.stringify` as they went in. */
export function parseExact(text: string): unknown {
  const keep = (_key: string, value: unknown, context?: { source?: string }): unknown =>
    typeof value === "number" && context?.source !== undefined ? asWritten(context.source) : value;
  return JSON.parse(text, keep);
}

/** @returns the parsed value; undefined when the text is not JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
