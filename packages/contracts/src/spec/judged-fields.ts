/**
 * What becomes of the fields of PEFT's and Hugging Face's configurations that are no fields of the run spec, so that a configuration
 * can be pasted as people have it. Each field is judged in one table per class: `lora-fields.ts`, `training-fields.ts`. Pure.
 */
import { z } from "zod";

/** Dropped. The user is told once why, unless the value is among `silent`. */
interface Neutral {
  readonly as: "neutral";
  readonly why: string;
}
/** An error, unless the value is among `silent`: to drop it would change the result without a word. */
interface Refused {
  readonly as: "refused";
  readonly why: string;
  readonly remedy: string;
}
/** Another field of the run spec says it; the value goes there. */
interface Moved {
  readonly as: "moved";
  /** Path in the run spec: `tokenize.max_length`. */
  readonly to: string;
  readonly why: string;
}
export type JudgedField = (Neutral | Refused | Moved) & {
  /** Values that mean nothing, such as the class's own default. `null` always does. They are dropped without a word. */
  readonly silent: readonly unknown[];
  /** Only older versions of the library have the field. */
  readonly older?: true;
  /** The class it is of, where the section's own class does not have it. */
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

/** A field that was given and is not used as written. */
export const notice = z.object({ param: z.string().max(200), message: z.string().max(2000) });
export type Notice = z.infer<typeof notice>;

/** For the JSON Schema of a section: judged fields may stand there too. What their values may be is said by the tables alone. */
export const judgedPattern = (fields: JudgedFields): { patternProperties: Record<string, object> } => ({
  patternProperties: {
    [`^(?:${Object.keys(fields).join("|")})$`]: {
      description: "Accepted so that a configuration can be pasted: dropped, taken as another field, or refused with the reason.",
    },
  },
});

type Values = Readonly<Record<string, unknown>>;
export const isObject = (raw: unknown): raw is Values => typeof raw === "object" && raw !== null && !Array.isArray(raw);

/** Whether the value says nothing: null, or one of the field's silent values. */
const isSilent = ({ silent }: JudgedField, value: unknown): boolean =>
  value === null || value === undefined || silent.some((one) => sameJson(one, value));

function sameJson(a: unknown, b: unknown): boolean {
  if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((one, i) => sameJson(one, b[i]));
  if (!isObject(a)) return a === b;
  return isObject(b) && Object.keys(a).length === Object.keys(b).length && Object.keys(a).every((key) => sameJson(a[key], b[key]));
}

/**
 * What is left of a section when neutral and moved fields, and refused ones whose value says nothing, are dropped. What remains of
 * refused fields is an error of the strict schema, to which `reasonOf` gives the reason.
 */
export function withoutNeutral(section: Values, fields: JudgedFields): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(section).filter(([name, value]) => {
      const field = fieldOf(fields, name);
      return field === undefined ? value !== null : field.as === "refused" && !isSilent(field, value);
    }),
  );
}

/** What the user is told of the neutral fields of a section. */
export function noticesOf(name: string, section: Values, fields: JudgedFields): Notice[] {
  return Object.entries(section).flatMap(([key, value]): Notice[] => {
    const field = fieldOf(fields, key);
    if (field?.as !== "neutral" || isSilent(field, value)) return [];
    const param = `${name}.${key}`;
    return [{ param, message: `${param} changes nothing here: ${field.why}.` }];
  });
}

/** The moved fields of a section that say something. */
export function movesOf(section: Values, fields: JudgedFields): { name: string; to: string; why: string; value: unknown }[] {
  return Object.entries(section).flatMap(([name, value]) => {
    const field = fieldOf(fields, name);
    return field?.as === "moved" && !isSilent(field, value) ? [{ name, to: field.to, why: field.why, value }] : [];
  });
}

/** The refused fields of a section whose values say something. */
export function refusedIn(section: Values, fields: JudgedFields): { name: string; why: string }[] {
  return Object.entries(section).flatMap(([name, value]) => {
    const field = fieldOf(fields, name);
    return field?.as === "refused" && !isSilent(field, value) ? [{ name, why: field.why }] : [];
  });
}

/** Reason and remedy of a refused field; undefined: it is not one. */
export function reasonOf(fields: JudgedFields, name: string): string | undefined {
  const field = fieldOf(fields, name);
  return field?.as === "refused" ? `${field.why}. ${field.remedy}.` : undefined;
}

const fieldOf = (fields: JudgedFields, name: string): JudgedField | undefined => (Object.hasOwn(fields, name) ? fields[name] : undefined);
