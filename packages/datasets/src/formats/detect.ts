/**
 * Recognises a row's format and converts the row to a record. Pure.
 *
 * A signature matches when every field it needs is there with its type. The first match wins. Another match of another kind that
 * reads something else of the row makes it ambiguous, unless it is a text that only spells out what the first one says. Which
 * signatures match depends on the row's shape alone (its keys and the types of their values), so it is worked out once for each.
 */
import type { DatasetMapping, Rec } from "@loraline/contracts";
import { closest, distance } from "fastest-levenshtein";
import { judgementMessage, mayJudge, refuseJudged, refuseJudgedInside } from "./judgements.ts";
import { namesIn, parseTemplate } from "./prompt-templates.ts";
import {
  type Body,
  choices,
  type Context,
  type Converted,
  isNothing,
  isObject,
  nameOf,
  type needsLabels,
  type Refusal,
  refuse,
  type Row,
  shorten,
  type Signature,
  tagOf,
} from "./signature.ts";
import { imageNames, labelText, signatures } from "./signatures.ts";

export type { Body, Refusal } from "./signature.ts";
export { needsLabels } from "./signature.ts";
export { signatures } from "./signatures.ts";

export interface Detected {
  readonly format: string;
  readonly body: Body;
  readonly unusedKeys: readonly string[];
  /** The original columns, which the template `seed` joins itself. */
  readonly seed?: NonNullable<Rec["meta"]["seed"]>;
  /** Name of the prompt template that was applied to the row. */
  readonly template?: string;
  readonly slice?: string;
}
export const isRefusal = (value: Detected | Refusal): value is Refusal => "code" in value;

/** The same row with numbers spelled as in the file. Only fields that are kept as JSON text need it. */
type ExactRow = () => unknown;

interface DetectorOptions {
  readonly mapping?: DatasetMapping | null | undefined;
  /**
   * Classes of the file, which a classification's prompt lists; null: too many to list; undefined: they have not been counted, and
   * the first row that asks for them gives {@link needsLabels}.
   */
  readonly labels?: readonly string[] | null | undefined;
}

export interface Detector {
  /** Recognises and converts `value` (one parsed row). Takes any JSON value and never throws. */
  detect(value: unknown, exact: ExactRow): Detected | Refusal | typeof needsLabels;
  /** The class of a classification; undefined for other rows. */
  labelOf(value: unknown): string | undefined;
  /** Sets the classes of the file; null: too many to list. */
  useLabels(labels: readonly string[] | null): void;
}

/** A signature and where its fields are in rows of one shape. */
interface Match {
  readonly signature: Signature;
  readonly names: Readonly<Record<string, string>>;
  readonly reads: readonly (readonly [field: string, key: string])[];
  readonly unused: readonly string[];
  /** Those of `unused` that may judge the answer, and do not only say again what a field was read from: `label` beside `label_text`. */
  readonly judging: readonly string[];
  /** Those of `unused` whose values are objects. */
  readonly objects: readonly string[];
  /** Those of `unused` that hold pictures, by their names. */
  readonly pictures: readonly string[];
  /** A required field is present but empty. */
  readonly isHollow: boolean;
}
/** What holds for all rows of one shape. */
type Plan = Refusal | { readonly first: Match; readonly rivals: readonly Match[] };

const mostShapes = 2000;
const mostKeys = 64;
/** Most characters of responses that are remembered until a row says which one is preferred. */
const mostRemembered = 8 * 1024 * 1024;
/** Prefix of a column that is renamed because a mapped column takes its name. */
const aside = "\u0000";

export function createDetector({ mapping, labels: counted }: DetectorOptions = {}): Detector {
  const { format, columns, system, instruction_template: source } = mapping ?? {};
  const ignored = mapping?.ignore === undefined ? undefined : new Set(mapping.ignore.map(plain));
  const candidates =
    format === undefined
      ? signatures.filter(({ byName }) => byName !== true)
      : signatures.filter((candidate) => candidate.format === format);
  const template = source === undefined ? undefined : parseTemplate(source);
  let labels = mapping?.labels ?? counted;
  const known = {
    format: mapping?.format,
    language: mapping?.language ?? "auto",
    roles: mapping?.roles,
    labels: mapping?.labels,
  } as Context["mapping"];
  const fixed = new Map(Object.entries(columns ?? {}));
  /** What the mapping reads although it is no field of the row itself: `data` of a column `data.answer`, and what its template names. */
  const readByMapping = new Set([
    ...Object.values(columns ?? {}).map((column) => plain(column.split(".")[0] as string)),
    ...(template === undefined ? [] : namesIn(template).map(plain)),
  ]);
  const view = columns === undefined ? (row: Row) => row : renamed(Object.entries(columns));
  /** Whether the mapping says what an unread key is for. */
  const isMeant = (key: string): boolean => ignored?.has(key) === true || readByMapping.has(key);
  const plans = new Map<string, Plan>();
  const answered = recentResponses();

  const planFor = (row: Row): Plan => {
    const keys = Object.keys(row);
    let shape = "";
    for (const key of keys) {
      const value = row[key];
      if (value !== null && value !== undefined) shape += `${key.length}:${key}${tagOf(value)}`;
    }
    const kept = plans.get(shape);
    if (kept !== undefined) return kept;
    const made = planOf(row, candidates, format, fixed);
    if (keys.length <= mostKeys && shape.length <= 4096) {
      if (plans.size >= mostShapes) plans.clear();
      plans.set(shape, made);
    }
    return made;
  };

  const convert = ({ signature, names, reads, unused, judging, objects, pictures }: Match, row: Row, original: Row, exact: ExactRow) => {
    const judged = refuseJudged(
      signature.format,
      judging.filter((key) => !isMeant(key)),
      original,
    );
    if (judged !== undefined) return judged;
    if (objects.length > 0) {
      const open = objects.filter((key) => !isMeant(key));
      const inside = refuseJudgedInside(signature.format, open, { row: original, isMeant });
      if (inside !== undefined) return inside;
    }
    const unseen = pictures.find((key) => !isMeant(key));
    if (unseen !== undefined) {
      const read = `the format "${signature.format}" reads no pictures: the answer would be learned blind`;
      return refuse("PICTURE_NOT_READ", `\`${shorten(unseen)}\` names a picture, and ${read}. Write messages, or question + answer.`);
    }
    const values: Record<string, unknown> = {};
    for (const field in signature.fields) values[field] = undefined;
    for (const [field, key] of reads) values[field] = row[key];
    // Parsed once per row, because each of its turns may ask for it.
    let written: Row | undefined;
    const context: Context = {
      mapping: known,
      template,
      labels,
      row: original,
      names,
      answered,
      exact: (field) => (written ??= view(exact() as Row))[names[field] as string],
    };
    const converted = signature.convert(values as never, context);
    if (typeof converted === "string" || "code" in converted) return converted;
    const judgedTurn = converted.unusedKeys?.find((key) => mayJudge(lastPart(key)) && !isMeant(plain(key)));
    if (judgedTurn !== undefined) return refuse("JUDGEMENT_NOT_READ", judgementMessage(`\`${judgedTurn}\``, judgedTurn, signature.format));
    const left = [...unused, ...(converted.unusedKeys ?? [])].filter((key) => !isMeant(plain(key)));
    return detectedOf(signature.format, converted, left, system);
  };

  return {
    detect(value, exact) {
      if (!isObject(value)) return refuse("NOT_AN_OBJECT", `the row is ${nameOf(value)}; a JSON object is expected`);
      const row = view(value);
      const plan = planFor(row);
      if ("code" in plan) return plan;
      const { first, rivals } = plan;
      if (rivals.length === 0) return convert(first, row, value, exact);

      // Another match that is empty, or only repeats the first match's text, does not make the row ambiguous.
      let winner: { match: Match; detected: Detected | Refusal | typeof needsLabels } | undefined;
      let empty: Refusal | undefined;
      for (const match of [first, ...rivals]) {
        const detected = convert(match, row, value, exact);
        if (typeof detected === "object" && "code" in detected && detected.code.startsWith("EMPTY_")) empty ??= detected;
        else if (winner === undefined) winner = { match, detected };
        else if (!spellsOut(match, winner.match, row)) return ambiguous(winner.match, match);
      }
      return winner?.detected ?? (empty as Refusal);
    },
    useLabels(all) {
      labels = mapping?.labels ?? all;
    },
    labelOf(value) {
      if (!isObject(value)) return undefined;
      const row = view(value);
      const plan = planFor(row);
      if ("code" in plan || plan.first.signature.format !== "classification") return undefined;
      return labelText(row[plan.first.names.label as string] as string, mapping?.labels);
    },
  };
}

/** `score` of `messages[].score`. */
const lastPart = (key: string): string => plain(key.slice(key.lastIndexOf(".") + 1));

function detectedOf(
  format: string,
  { body, format: better, seed, template, slice }: Converted,
  unusedKeys: readonly string[],
  system: string | undefined,
): Detected | Refusal {
  if (system !== undefined && body.messages !== undefined && body.messages[0]?.role !== "system") {
    body.messages.unshift({ role: "system", content: system });
  }
  const broken = brokenText(body);
  if (broken !== undefined) {
    return refuse("LONE_SURROGATE", `"${shorten(broken)}" holds half of a character (a lone surrogate escape). Repair the escape.`);
  }
  return {
    format: better ?? format,
    body,
    unusedKeys,
    ...(seed === undefined ? {} : { seed }),
    ...(template === undefined ? {} : { template }),
    ...(slice === undefined ? {} : { slice }),
  };
}

/** Remembers the responses to recent questions with several, so that a later row's preferred response is compared with them. */
function recentResponses(): Context["answered"] {
  const kept = new Map<string, readonly string[]>();
  let characters = 0;
  const sizeOf = (question: string): number => (kept.get(question) ?? []).reduce((sum, response) => sum + response.length, question.length);
  return {
    get: (question) => kept.get(question),
    set(question, responses) {
      if (kept.has(question)) characters -= sizeOf(question);
      kept.delete(question);
      kept.set(question, responses);
      characters += sizeOf(question);
      for (const oldest of kept.keys()) {
        if (characters <= mostRemembered) break;
        characters -= sizeOf(oldest);
        kept.delete(oldest);
      }
      return kept;
    },
  };
}

/* --- shapes --- */

/** @param fixed - fields to which the mapping assigns a column, with that column. Other spellings of these fields do not count. */
function planOf(row: Row, candidates: readonly Signature[], wanted: string | undefined, fixed: ReadonlyMap<string, string>): Plan {
  const names = new Map<string, string>();
  const twice = new Set<string>();
  for (const key of Object.keys(row)) {
    if (row[key] === null || row[key] === undefined) continue;
    const name = plain(key);
    if (names.has(name)) twice.add(name);
    else names.set(name, key);
  }
  const matches: Match[] = [];
  for (const candidate of candidates) {
    const match = matchOf(candidate, row, { names, fixed }, wanted !== undefined);
    if (match !== undefined) matches.push(match);
  }
  const [first, ...others] = matches.filter((match) => !isMeantOtherwise(match, matches));
  if (first === undefined) return explainMiss(row, { names, fixed }, candidates, wanted);
  const doubled = first.reads.map(([, key]) => plain(key)).find((name) => twice.has(name));
  if (doubled !== undefined) return refuse("KEY_TWICE", `two keys mean \`${shorten(doubled)}\`. Keep one.`);
  const read = new Set(first.reads.map(([, key]) => key));
  const rivals = others.filter(
    ({ signature, reads }) =>
      signature.kind !== first.signature.kind &&
      reads.some(([field, key]) => signature.fields[field]?.optional === false && !read.has(key)),
  );
  return { first, rivals };
}

/** Whether a match with an empty field gives way to another match. In a table of several formats each row also has the other formats' columns, empty. */
const isMeantOtherwise = ({ isHollow, names }: Match, matches: readonly Match[]): boolean => {
  if (!isHollow) return false;
  const own = new Set(Object.values(names));
  return matches.some((other) => !other.isHollow && other.reads.some(([, key]) => !own.has(key)));
};

/** A row's keys by their plain spelling (see `plain`). */
interface Keys {
  readonly names: ReadonlyMap<string, string>;
  readonly fixed: ReadonlyMap<string, string>;
}

function matchOf(signature: Signature, row: Row, keys: Keys, isForced: boolean): Match | undefined {
  if (!isForced && besideOf(signature, row, keys).length > 0) return undefined;
  const reads: [field: string, key: string][] = [];
  for (const [name, field] of Object.entries(signature.fields)) {
    const { key, fits } = find(name, field, row, keys);
    if (key === undefined ? !field.optional : !fits) return undefined;
    if (key !== undefined) reads.push([name, key]);
  }
  const used = new Set(reads.map(([, key]) => key));
  const unused = Object.keys(row)
    .filter((key) => !used.has(key) && !isNothing(row[key]))
    .map((key) => (key.endsWith(aside) ? key.slice(0, -aside.length) : plain(key)));
  const said = new Set(reads.flatMap(([name]) => [name, ...(signature.fields[name]?.spellings ?? [])]));
  return {
    signature,
    reads,
    isHollow: reads.some(([name, key]) => signature.fields[name]?.optional === false && "ze".includes(tagOf(row[key]))),
    names: Object.fromEntries(reads),
    unused,
    judging: unused.filter((key) => mayJudge(key) && !said.has(key)),
    pictures: unused.filter((key) => imageNames.has(key)),
    objects: Object.keys(row)
      .filter((key) => !used.has(key) && tagOf(row[key]) === "o" && !isNothing(row[key]))
      .map(plain),
  };
}

/** @returns the first spelling whose value has the right type; if none has, the first that is present. */
function find(
  name: string,
  { spellings, type, optional }: Signature["fields"][string],
  row: Row,
  { names, fixed }: Keys,
): { key: string | undefined; fits: boolean } {
  let there: string | undefined;
  for (const spelling of fixed.has(name) ? [name] : spellings.includes(name) ? spellings : [name, ...spellings]) {
    const key = names.get(spelling);
    if (key === undefined) continue;
    if (type.tags.includes(tagOf(row[key]))) return { key, fits: true };
    if (!optional || row[key] !== "") there ??= key;
  }
  return { key: there, fits: false };
}

/** @returns a key that is present beside the fields and excludes the format. */
const besideOf = ({ unless = [] }: Signature, row: Row, { names }: Keys): string[] =>
  unless.filter((name) => {
    const key = names.get(name);
    return key !== undefined && !isNothing(row[key]);
  });

const plainKey = /^[a-z0-9_]+$/;
/** ` Instruction` is `instruction`. */
const plain = (key: string): string =>
  plainKey.test(key)
    ? key
    : key
        .replace(/^\uFEFF/, "")
        .normalize("NFKC")
        .trim()
        .toLowerCase();

/** Renames the mapping's columns to the names of their fields. */
function renamed(columns: readonly (readonly [field: string, column: string])[]): (row: Row) => Row {
  const taken = new Set(columns.map(([, column]) => column));
  const fields = new Set(columns.map(([field]) => field));
  return (row) => {
    const seen = Object.create(null) as Record<string, unknown>;
    for (const [field, column] of columns) seen[field] = valueAt(row, column);
    for (const key of Object.keys(row)) {
      if (!taken.has(key)) seen[fields.has(plain(key)) ? key + aside : key] = row[key];
    }
    return seen;
  };
}

/** `a.b` is member b of column a, unless there is a column of that name. */
function valueAt(row: Row, column: string): unknown {
  if (Object.hasOwn(row, column)) return row[column];
  let value: unknown = row;
  for (const part of column.split(".")) {
    if (!isObject(value) || !Object.hasOwn(value, part)) return undefined;
    value = value[part];
  }
  return value;
}

/* --- rows that fit nothing, or too much --- */

/** Explains why no format matches: the closest format decides which change the message recommends. */
function explainMiss(row: Row, keys: Keys, candidates: readonly Signature[], wanted: string | undefined): Refusal {
  const share = (candidate: Signature): number => {
    const needed = Object.entries(candidate.fields).filter(([, field]) => !field.optional);
    const signs = needed.map(([name, field]) => {
      const { key, fits } = find(name, field, row, keys);
      // A field's own name is a stronger sign than a spelling that several formats share.
      return key === undefined ? 0 : (fits ? 1 : 0.5) + (keys.names.has(name) ? 0.01 : 0);
    });
    // A format that has this column is closer than a format that the column excludes.
    const weight = besideOf(candidate, row, keys).length === 0 ? 1 : 0.7;
    return (weight * signs.reduce((sum, sign) => sum + sign, 0)) / needed.length;
  };
  const [near, part] = candidates
    .map((candidate) => [candidate, share(candidate)] as const)
    .reduce((best, next) => (next[1] >= best[1] ? next : best));
  const found = Object.keys(row).slice(0, 12).map(shorten).join(", ") || "none";
  const meant = misspeltKeys(row, keys);
  // One field of three is no closeness: many columns are called `answer` or `text`.
  const isFar = part === 0 || (part < 0.4 && Object.values(near.fields).filter(({ optional }) => !optional).length > 2);
  if (isFar && wanted === undefined) {
    const list = Object.keys(row).find((key) => /^\w+$/.test(key) && isListOfRows(row[key]));
    const help =
      list !== undefined
        ? ` \`${shorten(list)}\` is a list of objects: if these are the rows, \`jq -c '.${shorten(list)}[]' FILE\` writes each on a line.`
        : meant === ""
          ? unknownAdvice(row)
          : meant;
    return refuse("FORMAT_UNKNOWN", `no known format. Keys found: ${found}.${help}`);
  }
  const asColumns = isOfColumns(row, near, keys)
    ? ' The file holds columns, not rows: pandas writes rows with `df.to_json(FILE, orient="records", lines=True)`.'
    : "";
  const faults = Object.entries(near.fields).flatMap(([name, field]) => {
    const { key, fits } = find(name, field, row, keys);
    const column = keys.fixed.get(name);
    const from = column === undefined ? "" : ` (its column is "${shorten(column)}")`;
    if (key === undefined) return field.optional ? [] : [`\`${name}\` is missing${from}`];
    return fits ? [] : [`\`${shorten(plain(key))}\` is ${nameOf(row[key])}; it must be ${field.type.called}`];
  });
  const beside = besideOf(near, row, keys).map(
    (name) => `\`${name}\` stands beside it, whose meaning is unknown${besideAdvice(name, near.format)}`,
  );
  const why = [...faults, ...(wanted === undefined ? beside : [])].join(", and ");
  return wanted === undefined
    ? refuse("FORMAT_UNKNOWN", `close to the format "${near.format}", but ${why}. Keys found: ${found}.${asColumns}${meant}`)
    : refuse("FORMAT_MISMATCH", `not of the mapping's format "${wanted}": ${why}. Keys found: ${found}.${meant}`);
}

/** What to do with keys that stand beside a format, and would be lost. */
function besideAdvice(name: string, format: string): string {
  if (name === "role" || name === "speaker" || name === "parent_id")
    return " (the turns of a conversation belong into one row, in order, as `messages`)";
  if (choices.has(name))
    return ` (to show it to the model, give a mapping with \`format: ${format}\` and an \`instruction_template\` that names it, such as "{question} {${name}}")`;
  return "";
}

/** Whether each field that a format needs is a list or an object of the same size: a table that was written by columns. */
function isOfColumns(row: Row, near: Signature, keys: Keys): boolean {
  const sizes = Object.entries(near.fields).flatMap(([name, field]) => {
    if (field.optional) return [];
    const { key } = find(name, field, row, keys);
    const value = key === undefined ? undefined : row[key];
    return [typeof value === "object" && value !== null ? Object.keys(value).length : 0];
  });
  return sizes.length > 1 && (sizes[0] as number) > 1 && sizes.every((size) => size === sizes[0]);
}

/** Names of columns are short and no sentences. */
const isSentence = (key: string): boolean => key.length > 40 || /[.?!:]\s*$/.test(key) || key.trim().split(/\s+/).length > 5;

/** What helps with a row whose keys are like those of no format. */
function unknownAdvice(row: Row): string {
  const keys = Object.keys(row);
  if (keys.some(isSentence))
    return " The first line names the columns: if it is an example already, put a line above it, such as `question,answer`.";
  const texts = keys.filter((key) => typeof row[key] === "string" && row[key] !== "" && !/(?:^|_)id$/i.test(key));
  const [first, last] = [texts[0], texts.at(-1)];
  const example =
    first !== undefined && last !== undefined && first !== last
      ? `, such as {"format": "question-answer", "columns": {"question": ${JSON.stringify(shorten(first))}, "answer": ${JSON.stringify(shorten(last))}}}`
      : "";
  const usual = "Usual are messages; instruction + output; question + answer; prompt + completion; text.";
  return ` ${usual} Say with a mapping which column is which${example}, or rename them as docs/formats.md lists.`;
}

const isListOfRows = (value: unknown): boolean =>
  Array.isArray(value) &&
  value.length > 0 &&
  value.every((item: unknown) => typeof item === "object" && item !== null && !Array.isArray(item) && Object.keys(item).length > 1);

const knownKeys = [
  ...new Set(signatures.flatMap(({ fields }) => Object.entries(fields).flatMap(([name, { spellings }]) => [name, ...spellings]))),
];

/** @returns ` Did you mean …?` for keys that are nearly the known spelling of a field; empty: none is. */
function misspeltKeys(row: Row, keys: Keys): string {
  const pairs = Object.keys(row)
    .slice(0, 12)
    .flatMap((key) => {
      const name = plain(key);
      if (name.length < 4 || knownKeys.includes(name)) return [];
      const near = closest(name, knownKeys);
      // Two letters may differ in a long word and one in a short one; a swap of two letters counts as two.
      const isNear = distance(name, near) <= (name.length < 6 ? 1 : 2) || sorted(name) === sorted(near);
      return isNear && !keys.names.has(near) ? [`\`${near}\` instead of \`${shorten(key)}\``] : [];
    });
  return pairs.length === 0 ? "" : ` Did you mean ${pairs.join(", ")}?`;
}
const sorted = (text: string): string => Array.from(text).toSorted().join("");

const keysOf = ({ fields }: Signature): string =>
  Object.keys(fields)
    .filter((name) => fields[name]?.optional === false)
    .join(" + ");

function ambiguous(one: Match, other: Match): Refusal {
  const message = `the row fits two formats, "${one.signature.format}" and "${other.signature.format}" (${keysOf(one.signature)}; ${keysOf(other.signature)}). Remove the columns that are not meant, or choose with the mapping's \`format\`.`;
  return refuse("AMBIGUOUS", message);
}

/** @returns the texts that a match reads, as they stand in the row. */
function textsRead({ reads }: Match, row: Row): string[] {
  const texts: string[] = [];
  const gather = (value: unknown, levels: number): void => {
    if (typeof value === "string") texts.push(value);
    else if (Array.isArray(value) && levels > 0) for (const item of value) gather(item, levels - 1);
    else if (isObject(value) && levels > 0) gather(value.content ?? value.value ?? value.text, levels - 1);
  };
  for (const [, key] of reads) gather(row[key], 4);
  return texts.map((each) => each.trim()).filter((each) => each !== "");
}

/** Whether a text contains everything that another match reads, so that it only repeats it. */
function spellsOut(rendering: Match, match: Match, row: Row): boolean {
  if (rendering.signature.kind !== "text") return false;
  const whole = textsRead(rendering, row).join("\n");
  const parts = textsRead(match, row);
  return parts.length > 0 && parts.every((part) => whole.includes(part));
}

/** @returns the first text in a body that is not valid Unicode. */
function brokenText(body: Body): string | undefined {
  const { messages, chosen, rejected, candidates, media, prompt, completion, text, tools } = body;
  for (const part of [prompt, completion, text, tools]) if (part !== undefined && !part.isWellFormed()) return part;
  for (const turns of [messages, chosen, rejected]) {
    if (turns === undefined) continue;
    for (const { content, reasoning, tool_calls: calls, name, tool_call_id: id } of turns) {
      if (!content.isWellFormed()) return content;
      for (const part of [reasoning, calls, name, id]) if (part !== undefined && !part.isWellFormed()) return part;
    }
  }
  for (const { content } of candidates ?? []) if (!content.isWellFormed()) return content;
  for (const { ref } of media ?? []) if (!ref.isWellFormed()) return ref;
  return undefined;
}
