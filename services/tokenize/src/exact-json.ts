/**
 * JSON as Python would print it again. Pure.
 *
 * `json.loads` and `json.dumps` keep `1.0`, integers of any size and the order of all keys; JavaScript keeps none of the three,
 * and a model that saw `{"minimum": 1}` in training gets `{"minimum": 1.0}` from the server. What would change is carried through
 * the template as a sealed text, and put in its place afterwards.
 */
import { randomUUID } from "node:crypto";

export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };

/** Which nobody can know, so that nothing in the data can be taken for a seal. JSON escapes the control character, so that it shows whether a value was printed as JSON. */
const seal = `\u0001${randomUUID()}:`;
const jsonSeal = JSON.stringify(seal).slice(1, -1);
const printed = new RegExp(`"${jsonSeal.replaceAll("\\", "\\\\")}([^"]*)"`, "g");
const bare = new RegExp(`${seal}([^\u0001]*)\u0001`, "g");
const keySeal = `\u0001${randomUUID()}-`;
const jsonKeySeal = JSON.stringify(keySeal).slice(1, -1);

/** @throws SyntaxError */
export function parseExact(text: string): Json {
  // Keys that look like integers would move to the front of an object.
  const sealedKeys = text.replaceAll(/"((?:[^"\\]|\\.)*)"(\s*:)?/g, (whole, inner: string, colon: string | undefined) =>
    colon !== undefined && /^\d+$/.test(inner) ? `"${jsonKeySeal}${inner}"${colon}` : whole,
  );
  return JSON.parse(sealedKeys, (_, value: unknown, context?: { source?: string }) => {
    if (typeof value !== "number" || context?.source === undefined) return value;
    const python = pythonNumber(context.source);
    return python === JSON.stringify(value) ? value : `${seal}${python}\u0001`;
  }) as Json;
}

/** A rendered text with everything in its place again. */
export const unsealNumbers = (text: string): string =>
  text.includes("\u0001") || text.includes("\\u0001")
    ? text
        .replaceAll(printed, (_, number: string) => number.slice(0, number.lastIndexOf("\\u0001")))
        .replaceAll(bare, "$1")
        .replaceAll(jsonKeySeal, "")
        .replaceAll(keySeal, "")
    : text;

/** A number of a JSON text as Python's `repr` gives it. */
export function pythonNumber(source: string): string {
  if (/^-?\d+$/.test(source)) return BigInt(source).toString();
  const value = Number(source);
  if (!Number.isFinite(value)) return value < 0 ? "-Infinity" : "Infinity";
  if (value === 0) return source.startsWith("-") ? "-0.0" : "0.0";
  const [mantissa = "", exponent = ""] = value.toExponential().split("e");
  const power = Number(exponent);
  if (power < -4 || power >= 16) return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  const sign = mantissa.startsWith("-") ? "-" : "";
  const digits = mantissa.replace("-", "").replace(".", "");
  if (power < 0) return `${sign}0.${"0".repeat(-power - 1)}${digits}`;
  const whole = digits.slice(0, power + 1).padEnd(power + 1, "0");
  return `${sign}${whole}.${digits.slice(power + 1) || "0"}`;
}
