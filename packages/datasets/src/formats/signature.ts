/** Parts of a format's definition: typed fields with their spellings, and the conversion of their values to a record's body. Pure. */
import type { DatasetFormat, DatasetMapping, Rec } from "@loraline/contracts";
import type { Template } from "./prompt-templates.ts";

export type Body = Omit<Rec, "v" | "id" | "meta">;
/** Why a row gives no record. */
export interface Refusal {
  readonly code: string;
  readonly message: string;
}
export const refuse = (code: string, message: string): Refusal => ({ code, message });

export type Row = Readonly<Record<string, unknown>>;

/* --- types of values --- */

/**
 * A value's type as one letter, so that one string describes the shape of a row: `z` empty text, `s` text, `j` text that may be the JSON of
 * a list, `i` integer, `n` other number, `b` boolean, `o` object; lists: `e` empty, `S` of texts, `I` of integers, `l` of anything else.
 */
export function tagOf(value: unknown): string {
  switch (typeof value) {
    case "string":
      return value === "" ? "z" : value.startsWith("[") ? "j" : "s";
    case "number":
      return Number.isInteger(value) ? "i" : "n";
    case "boolean":
      return "b";
    default:
  }
  if (!Array.isArray(value)) return "o";
  if (value.length === 0) return "e";
  const first = typeof value[0];
  if (first === "string") return value.every((item) => typeof item === "string") ? "S" : "l";
  if (first === "number") return value.every((item) => Number.isInteger(item)) ? "I" : "l";
  return "l";
}
/** In CSV a missing value is an empty text. */
export const isNothing = (value: unknown): boolean => value === undefined || value === null || value === "";

interface Type<T> {
  readonly called: string;
  /** The letters of the values that fit this type. */
  readonly tags: string;
  readonly example?: T;
}
const type = <T>(called: string, tags: string): Type<T> => ({ called, tags });
export const text = type<string>("text", "zsj");
export const flag = type<boolean | number | string>("true or false", "bis");
export const integers = type<readonly number[]>("a list of integers", "Ie");
export const texts = type<readonly string[]>("a list of texts", "Se");
export const list = type<readonly unknown[]>("a list", "eSIl");
export const object = type<Row>("an object", "o");
export const textsOrIntegers = type<readonly (string | number)[]>("a list of texts", "SIe");
export const textOrNumber = type<string | number | boolean>("text or a number", "zsjib");
export const textOrTexts = type<string | readonly string[]>("text or a list of texts", "zsjSe");
/** In CSV a list can only stand as JSON text. */
export const listOrJson = type<string | readonly unknown[]>("a list, or one as JSON text", "jeSIl");
export const textOrList = type<string | readonly unknown[]>("text or a list", "zsjeSIl");
export const textListOrObject = type<string | readonly unknown[] | Row>("text, a list or an object", "zsjeSIlo");

/* --- signatures --- */

interface Field<T = unknown, Optional extends boolean = boolean> {
  /** Other spellings of the field's name, best first. The name itself may be among them, if other spellings are more specific. */
  readonly spellings: readonly string[];
  readonly type: Type<T>;
  readonly optional: Optional;
}
export const needs = <T>(of: Type<T>, ...spellings: string[]): Field<T, false> => ({ spellings, type: of, optional: false });
export const may = <T>(of: Type<T>, ...spellings: string[]): Field<T, true> => ({ spellings, type: of, optional: true });

type Fields = Readonly<Record<string, Field>>;
type Values<F extends Fields> = {
  readonly [K in keyof F]: F[K] extends Field<infer T, infer Optional> ? (Optional extends true ? T | undefined : T) : never;
};

/** What a conversion gets besides the values of its fields. */
export interface Context {
  readonly mapping: Pick<DatasetMapping, "format" | "language" | "roles" | "labels">;
  /** The mapping's `instruction_template`. */
  readonly template: Template | undefined;
  /** Classes of the whole file; null: too many for a prompt, or nobody knows; undefined: they have not been counted yet. */
  readonly labels: readonly string[] | null | undefined;
  /** The row as it stands in the file. */
  readonly row: Row;
  /** Field to the key that was read. */
  readonly names: Readonly<Record<string, string>>;
  /** Responses to questions of earlier rows. */
  readonly answered: Pick<Map<string, readonly string[]>, "get" | "set">;
  /** A field's value with numbers spelled as in the file. Only values that are kept as JSON text need it. */
  readonly exact: (field: string) => unknown;
}

export interface Converted {
  readonly body: Body;
  /** The format to report, if earlier rows show that the row was of another format. */
  readonly format?: DatasetFormat;
  readonly seed?: NonNullable<Rec["meta"]["seed"]>;
  readonly template?: string | undefined;
  readonly slice?: string | undefined;
  readonly unusedKeys?: readonly string[];
}
/** The result when the file's classes must be collected before this row can be converted. */
export const needsLabels = "needs-labels";
export type Conversion = Converted | Refusal | typeof needsLabels;

export interface Signature {
  readonly format: DatasetFormat;
  readonly kind: Rec["kind"];
  readonly fields: Fields;
  /** Keys that exclude this format, because their content would be lost. */
  readonly unless?: readonly string[];
  /** It is tried only where the mapping names it. Without a mapping another format's conversion finds it. */
  readonly byName?: boolean;
  readonly convert: (values: never, context: Context) => Conversion;
}
export const signature = <F extends Fields>(
  def: Omit<Signature, "fields" | "convert"> & {
    readonly fields: F;
    readonly convert: (values: Values<F>, context: Context) => Conversion;
  },
): Signature => def;

/** Keys that hold the answers to choose from: a question without them teaches to say a letter. */
export const choices: ReadonlySet<string> = new Set(["choices", "options", "option_a", "option_b", "opa", "opb", "b"]);

/* --- words --- */

export const isObject = (value: unknown): value is Row => typeof value === "object" && value !== null && !Array.isArray(value);
const visible = /\S/;
export const isBlank = (value: string): boolean => !visible.test(value);
export const isBlankValue = (value: unknown): boolean =>
  value === undefined || value === null || (typeof value === "string" && isBlank(value));
export const shorten = (value: string): string => (value.length > 60 ? `${value.slice(0, 60)}…` : value).toWellFormed();
export const nameOf = (value: unknown): string => {
  if (value === undefined) return "missing";
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "an object";
  if (typeof value === "string") return "text";
  return typeof value === "number" ? "a number" : typeof value === "boolean" ? "true or false" : typeof value;
};

/** Deepest nesting that is written as JSON, because writing recurses. Real tool schemas are far less deep. */
export const deepest = 64;
export function isDeeperThan(value: unknown, levels: number): boolean {
  if (typeof value !== "object" || value === null) return false;
  if (levels === 0) return true;
  const members: readonly unknown[] = Array.isArray(value) ? value : Object.values(value);
  return members.some((member) => isDeeperThan(member, levels - 1));
}
