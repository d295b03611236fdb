/**
 * Parses JSON as Python does, for templates that print it again. Pure.
 *
 * `json.loads` and `json.dumps` keep `1.0`, integers of any size and the order of all keys; JavaScript's JSON keeps none of the three,
 * and a model that saw `{"minimum": 1}` in training gets `{"minimum": 1.0}` from the server.
 */
import { randomUUID } from "node:crypto";

export type Json =
  | string
  | number
  | boolean
  | null
  | PythonNumber
  | readonly Json[]
  | { readonly [key: string]: Json }
  | ReadonlyMap<string, Json>;

/** Marks numbers for Loraline's patch of @huggingface/jinja; see patches/. */
const written = Symbol.for("loraline.pythonNumber");
/** A number that JavaScript cannot hold or prints differently. Holds Python's spelling. */
interface PythonNumber {
  readonly [written]: string;
}
export const isPythonNumber = (value: Json): value is PythonNumber => typeof value === "object" && value !== null && written in value;

/** A random prefix for keys that look like integers: JavaScript would move such keys to the front of an object. */
const mark = `${randomUUID()}-`;

/** @throws SyntaxError */
export function parseExact(text: string): Json {
  // JSON is checked first: in a text that is not JSON the search below could take quadratic time.
  JSON.parse(text);
  const marked = text.replaceAll(/"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?/g, (whole, inner: string, colon: string | undefined) =>
    colon !== undefined && /^\d+$/.test(inner) ? `"${mark}${inner}"${colon}` : whole,
  );
  return JSON.parse(marked, (_, value: unknown, context?: { source?: string }): unknown => {
    if (typeof value === "number" && context?.source !== undefined) {
      const python = pythonNumber(context.source);
      return python === JSON.stringify(value) ? value : { [written]: python };
    }
    if (typeof value === "object" && value !== null && !Array.isArray(value) && Object.keys(value).some((key) => key.startsWith(mark))) {
      return new Map(Object.entries(value).map(([key, item]) => [key.startsWith(mark) ? key.slice(mark.length) : key, item as Json]));
    }
    return value;
  }) as Json;
}

/** @returns a number of a JSON text in the spelling of Python's `repr`. */
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
