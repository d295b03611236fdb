/** Replaces secrets and personal data by the name of their kind, such as `[EMAIL]`: in records, and in what is said about rejected rows. */
import type { Rec, Rejection } from "@loraline/contracts";
import { recordId } from "../formats/record-id.ts";
import { personalSpans } from "./find-personal-data.ts";
import { secretSpans } from "./find-secrets.ts";
import type { Span } from "./inspect-text.ts";

/** One text of a record. */
interface Slot {
  readonly text: string;
  /** The text is JSON, and must stay so. */
  readonly isJson: boolean;
  put(text: string): void;
}

/** @returns every text of a record, which `put` changes in the record itself. */
function slotsOf(record: Rec): Slot[] {
  const slots: Slot[] = [];
  const add = <K extends string>(of: { [Key in K]?: string | undefined } | undefined, ...keys: K[]): void => {
    for (const key of keys) {
      const text = of?.[key];
      if (of !== undefined && text !== undefined && text !== "")
        slots.push({ text, isJson: key === "tools" || key === "tool_calls", put: (changed) => void (of[key] = changed) });
    }
  };
  for (const turn of [...(record.messages ?? []), ...(record.chosen ?? []), ...(record.rejected ?? [])])
    add(turn, "reasoning", "content", "tool_calls");
  for (const candidate of record.candidates ?? []) add(candidate, "content");
  add(record, "prompt", "completion", "text", "tools");
  add(record.meta.seed, "instruction", "input", "output");
  return slots;
}

const between = "\n";

interface Read {
  records: Rec[];
  rejections: Rejection[];
}

/**
 * @param places - where each record stands, for people.
 * @returns the records with other ids; with the rejections those whose tools would be no JSON any more.
 */
export async function redact({ records, rejections }: Readonly<Read>, places: readonly string[]): Promise<Read> {
  const [made, told] = [await redactRecords(records, places), await redactMessages(rejections)];
  return { records: made.records, rejections: [...told, ...made.rejections] };
}

/** The part of a row that V8 quotes in its message. It may begin or end within a secret, which no rule would know then. */
const quotedByJson = /, (?:\.\.\.)?".*"(?:\.\.\.)? is not valid JSON/s;

/** Messages quote values of the rows that they are about. */
async function redactMessages(rejections: readonly Rejection[]): Promise<Rejection[]> {
  if (rejections.length === 0) return [];
  const messages = rejections.map(({ message }) => message.replace(quotedByJson, ""));
  const secrets = await secretSpans(messages);
  return rejections.map((rejection, index) => {
    let message = messages[index] as string;
    const put = (changed: string): void => void (message = changed);
    replaceAll([{ text: message, isJson: false, put }], merged([...(secrets[index] ?? []), ...personalSpans(message)]));
    return { ...rejection, message };
  });
}

/** Words that tell what a number is may stand in another turn, so all texts of a record are searched as one, as the report does. */
async function redactRecords(records: readonly Rec[], rowPlaces: readonly string[]): Promise<Read> {
  const copies = records.map((record) => structuredClone(record));
  const slots = copies.map(slotsOf);
  const texts = slots.map((of) => of.map(({ text }) => text).join(between));
  const secrets = texts.length === 0 ? [] : await secretSpans(texts);
  const result: Read = { records: [], rejections: [] };
  for (const [index, record] of copies.entries()) {
    const places = merged([...(secrets[index] ?? []), ...personalSpans(texts[index] as string)]);
    if (places.length === 0) {
      result.records.push(record);
      continue;
    }
    if (!replaceAll(slots[index] as Slot[], places)) {
      const message = `${rowPlaces[index]}: what is to be redacted in its tools is more than a value, so that they would be no JSON any more. Redact it in the file.`;
      result.rejections.push({ line: record.meta.line, code: "REDACTION_BREAKS_JSON", message });
      continue;
    }
    const { v, id: _, meta, ...body } = record;
    result.records.push({ v, id: recordId(body), ...body, meta: { ...meta, redacted: [...new Set(places.map(({ kind }) => kind))] } });
  }
  return result;
}

/** Spans that overlap become one, of the kind of the first that was found there. */
function merged(spans: readonly Span[]): Span[] {
  const places: { start: number; end: number; kind: string }[] = [];
  for (const { start, end, kind } of spans.toSorted((a, b) => a.start - b.start)) {
    const last = places.at(-1);
    if (last !== undefined && start < last.end) last.end = Math.max(last.end, end);
    else places.push({ start, end, kind });
  }
  return places;
}

/** @returns false: the JSON of a text would be broken. */
function replaceAll(slots: readonly Slot[], places: readonly Span[]): boolean {
  let from = 0;
  for (const { text, isJson, put } of slots) {
    const within = places
      .filter(({ start, end }) => start < from + text.length && end > from)
      .map(({ start, end, kind }) => ({ start: Math.max(0, start - from), end: Math.min(text.length, end - from), kind }));
    from += text.length + between.length;
    if (within.length === 0) continue;
    let changed = "";
    let at = 0;
    for (const place of within) {
      const { start, end } = isJson ? wholeEscapes(text, place) : place;
      changed += `${text.slice(at, start)}[${place.kind.toUpperCase()}]`;
      at = end;
    }
    changed += text.slice(at);
    if (isJson && !isValidJson(changed)) return false;
    put(changed);
  }
  return true;
}

/** A span must not begin or end between a backslash and what it escapes. */
function wholeEscapes(text: string, { start, end }: Span): { start: number; end: number } {
  const isEscaped = (at: number): boolean => {
    let from = at;
    while (text[from - 1] === "\\") from--;
    return (at - from) % 2 === 1;
  };
  return { start: isEscaped(start) ? start - 1 : start, end: isEscaped(end) ? end + 1 : end };
}

function isValidJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
