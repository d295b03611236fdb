/**
 * Fields of PEFT's and Hugging Face's configurations that the run spec does not have, and how each is treated (dropped, moved or refused),
 * so that users can paste a configuration unchanged. The tables are in `lora-fields.ts` and `training-fields.ts`, one per class. Pure.
 */
import { z } from "zod";

/** The field is dropped. The user is told why, unless the value is one of `silent`. */
interface Neutral {
  readonly as: "neutral";
  readonly why: string;
}
/** The field is an error, unless the value is one of `silent`: to drop it would change the result without the user knowing. */
interface Refused {
  readonly as: "refused";
  readonly why: string;
  readonly remedy: string;
}
/** The run spec has another field for this; the value is moved there. */
interface Moved {
  readonly as: "moved";
  /** Path in the run spec: `tokenize.max_length`. */
  readonly to: string;
  readonly why: string;
}
export type JudgedField = (Neutral | Refused | Moved) & {
  /** Values without effect, such as the class's own default. They are dropped without a notice, as `null` always is. */
  readonly silent: readonly unknown[];
  /** The field exists only in older versions of the library. */
  readonly older?: true;
  /** The class that has the field, if it is not the section's own class. */
  readonly of?: "SFTConfig";
};
export type JudgedFields = Readonly<Record<string, JudgedField>>;

export const neutral = (why: string, ...silent: unknown[]): JudgedField => ({ as: "neutral", why, silent });
export const refused = (why: string, remedy: string, ...silent: unknown[]): JudgedField => ({ as: "refused", why, remedy, silent });
export const moved = (to: string, why: string, ...silent: unknown[]): JudgedField => ({ as: "moved", to, why, silent });
/** Marks the fields of a table that only older versions of the library have. */
export const olderFields = (fields: JudgedFields): JudgedFields =>
  Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, { ...field, older: true }]));
/** Marks the fields of a table that are SFTConfig's own. */
export const sftFields = (fields: JudgedFields): JudgedFields =>
  Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, { ...field, of: "SFTConfig" }]));

/** What the user is told about a field that is not used as it was written. */
export const notice = z.object({ param: z.string().max(200), message: z.string().max(2000) });
export type Notice = z.infer<typeof notice>;

/** The part of a section's JSON Schema that allows the judged fields; it allows any value, because only the tables judge values. */
export const judgedPattern = (fields: JudgedFields): { patternProperties: Record<string, object> } => ({
  patternProperties: {
    [`^(?:${Object.keys(fields).join("|")})$`]: {
      description: "Accepted so that a configuration can be pasted: dropped, taken as another field, or refused with the reason.",
    },
  },
});

type Values = Readonly<Record<string, unknown>>;
export const isObject = (raw: unknown): raw is Values => typeof raw === "object" && raw !== null && !Array.isArray(raw);

/** Whether the value has no effect: null, or one of the field's silent values. */
const isSilent = ({ silent }: JudgedField, value: unknown): boolean =>
  value === null || value === undefined || silent.some((one) => sameJson(one, value));

function sameJson(a: unknown, b: unknown): boolean {
  if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((one, i) => sameJson(one, b[i]));
  if (!isObject(a)) return a === b;
  return isObject(b) && Object.keys(a).length === Object.keys(b).length && Object.keys(a).every((key) => sameJson(a[key], b[key]));
}

/**
 * The section without neutral fields, moved fields, and refused fields whose value has no effect. Refused fields that remain are errors
 * of the strict schema, and `reasonOf` gives their reason.
 */
export function withoutNeutral(section: Values, fields: JudgedFields): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(section).filter(([name, value]) => {
      const field = fieldOf(fields, name);
      return field === undefined ? value !== null : field.as === "refused" && !isSilent(field, value);
    }),
  );
}

/** The notices about a section's neutral fields. */
export function noticesOf(name: string, section: Values, fields: JudgedFields): Notice[] {
  return Object.entries(section).flatMap(([key, value]): Notice[] => {
    const field = fieldOf(fields, key);
    if (field?.as !== "neutral" || isSilent(field, value)) return [];
    const param = `${name}.${key}`;
    return [{ param, message: `${param} changes nothing here: ${field.why}.` }];
  });
}

/** The moved fields of a section whose values have an effect. */
export function movesOf(section: Values, fields: JudgedFields): { name: string; to: string; why: string; value: unknown }[] {
  return Object.entries(section).flatMap(([name, value]) => {
    const field = fieldOf(fields, name);
    return field?.as === "moved" && !isSilent(field, value) ? [{ name, to: field.to, why: field.why, value }] : [];
  });
}

/** The refused fields of a section whose values have an effect. */
export function refusedIn(section: Values, fields: JudgedFields): { name: string; why: string }[] {
  return Object.entries(section).flatMap(([name, value]) => {
    const field = fieldOf(fields, name);
    return field?.as === "refused" && !isSilent(field, value) ? [{ name, why: field.why }] : [];
  });
}

/** Reason and remedy of a refused field; undefined if the field is not refused. */
export function reasonOf(fields: JudgedFields, name: string): string | undefined {
  const field = fieldOf(fields, name);
  return field?.as === "refused" ? `${field.why}. ${field.remedy}.` : undefined;
}

const fieldOf = (fields: JudgedFields, name: string): JudgedField | undefined => (Object.hasOwn(fields, name) ? fields[name] : undefined);
