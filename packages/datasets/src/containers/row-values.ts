/** Converts values of typed columns (Parquet, Arrow) to JSON. Numbers that JavaScript cannot hold keep their digits. */
import { PermanentError } from "@loraline/runtime";
import { decodeUtf8 } from "./text/decode-text.ts";
import { asWritten, parseExact } from "./exact-json.ts";
import { type RawRow, rowTooLarge } from "./raw-rows.ts";
import { kindOfPicture } from "../pictures/kind-of-picture.ts";
import { notText } from "./text/split-rows.ts";

/** A number by its digits: a decimal, or an integer of any size. */
class Digits {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}
/** Bytes that are not text. A picture becomes a data URL, as JSON would have it; others an object, so a field that must be text is refused. */
class Binary {
  readonly bytes: Uint8Array;
  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }
}
/** A list of more values than a row may have, which are not read: its row is refused for its size. */
export class TooMany {
  readonly values: number;
  constructor(values: number) {
    this.values = values;
  }
}
/** Parses a value of a JSON column. */
export class JsonText {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}
/** The value of a text column whose bytes are not UTF-8. */
export const brokenText: unique symbol = Symbol("not UTF-8");

export const textOf = (bytes: Uint8Array): string | typeof brokenText => decodeUtf8(bytes) ?? brokenText;
/** Bytes of a column without a type: old writers do not mark text columns, so valid UTF-8 is taken for text. */
export const textOrBinary = (bytes: Uint8Array): string | Binary =>
  kindOfPicture(bytes) === undefined ? (decodeUtf8(bytes) ?? new Binary(bytes)) : new Binary(bytes);

/** Most digits behind a decimal's point, or zeros before it. A file may name any number; databases have at most a few hundred. */
const mostDigits = 1000;

/** `unscaled` / 10^scale, with all its digits. @throws PermanentError FILE_CORRUPT */
export function decimalOf(unscaled: bigint, scale: number): Digits {
  if (!Number.isInteger(scale) || Math.abs(scale) > mostDigits) {
    throw new PermanentError("FILE_CORRUPT", `the file has decimal numbers of the scale ${scale}, which cannot be. Write it again.`);
  }
  if (scale <= 0) return new Digits(String(unscaled * 10n ** BigInt(-scale)));
  const digits = String(unscaled < 0n ? -unscaled : unscaled).padStart(scale + 1, "0");
  return new Digits(`${unscaled < 0n ? "-" : ""}${digits.slice(0, -scale)}.${digits.slice(-scale)}`);
}

const perSecond = { second: 1n, milli: 1000n, micro: 1_000_000n, nano: 1_000_000_000n } as const;

/** ISO 8601 in UTC, with as many digits of the second as there are; the number itself where no calendar has that day. */
export function timeOf(count: bigint, unit: keyof typeof perSecond): string | Digits {
  const scale = perSecond[unit];
  const fraction = ((count % scale) + scale) % scale;
  const date = new Date(Number((count - fraction) / scale) * 1000);
  if (Number.isNaN(date.getTime())) return new Digits(String(count));
  const digits =
    unit === "second"
      ? ""
      : String(fraction)
          .padStart(String(scale).length - 1, "0")
          .replace(/0+$/, "");
  return `${date.toISOString().slice(0, -5)}${digits === "" ? "" : `.${digits}`}Z`;
}

export function dayOf(days: number): string | Digits {
  const date = new Date(days * 86_400_000);
  return Number.isNaN(date.getTime()) ? new Digits(String(days)) : date.toISOString().replace(/T.*/, "");
}

interface Seen {
  size: number;
  broken: boolean;
}

/** Bytes of values after which a batch of rows is handed on: rows may refer to one large value again and again. */
const batchBytes = 1024 * 1024;

/** Collects rows of column values, of which there may be far more bytes than the file has. */
export function createRowBatch({ maxRowBytes, maxBytes }: { maxRowBytes: number; maxBytes: number }) {
  let rows: RawRow[] = [];
  let size = 0;
  let total = 0;
  return {
    /** @returns whether the batch is full. @throws PermanentError FILE_TOO_LARGE */
    add(line: number, columns: Readonly<Record<string, unknown>>): boolean {
      const seen: Seen = { size: 0, broken: false };
      rows.push(valueRow(line, columns, maxRowBytes, seen));
      size += seen.size;
      total += seen.size;
      if (total > maxBytes) {
        throw new PermanentError("FILE_TOO_LARGE", `the rows up to row ${line} hold more than ${maxBytes} bytes. Split the file.`);
      }
      return size >= batchBytes;
    },
    take(): RawRow[] {
      const taken = rows;
      rows = [];
      size = 0;
      return taken;
    },
  };
}

function valueRow(line: number, columns: Readonly<Record<string, unknown>>, maxRowBytes: number, seen: Seen): RawRow {
  const place = `row ${line}`;
  const value = toJson(columns, (text) => Number(text), JSON.parse, seen) as Readonly<Record<string, unknown>>;
  if (seen.broken) return notText(line, place);
  if (seen.size > maxRowBytes) return rowTooLarge(line, place, seen.size, maxRowBytes);
  return { line, place, value, exact: () => toJson(columns, asWritten, parseExact, { size: 0, broken: false }) };
}

function toJson(value: unknown, number: (text: string) => unknown, json: (text: string) => unknown, seen: Seen): unknown {
  seen.size += 8;
  switch (typeof value) {
    case "string": {
      seen.size += value.length;
      return value;
    }
    case "number":
      return Number.isFinite(value) ? value : null;
    case "boolean":
      return value;
    case "bigint":
      return number(String(value));
    case "symbol": {
      seen.broken = true;
      return null;
    }
    case "object":
      break;
    default:
      return null;
  }
  if (value === null) return null;
  if (Array.isArray(value)) return value.map((item) => toJson(item, number, json, seen));
  if (value instanceof Digits) {
    seen.size += value.text.length;
    return number(value.text);
  }
  if (value instanceof Binary) return ofBytes(value.bytes, seen);
  if (value instanceof TooMany) {
    seen.size += value.values * 8;
    return null;
  }
  if (value instanceof JsonText) {
    seen.size += value.text.length;
    try {
      return json(value.text);
    } catch {
      return value.text;
    }
  }
  if (value instanceof Uint8Array) return ofBytes(value, seen);
  const row: Record<string, unknown> = {};
  for (const [name, item] of Object.entries(value)) {
    const converted = toJson(item, number, json, seen);
    if (name === "__proto__") Object.defineProperty(row, name, { value: converted, enumerable: true });
    else row[name] = converted;
  }
  return row;
}

function ofBytes(bytes: Uint8Array, seen: Seen): unknown {
  const kind = kindOfPicture(bytes);
  if (kind === undefined) return { bytes: bytes.byteLength };
  const url = `data:${kind};base64,${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64")}`;
  seen.size += url.length;
  return url;
}
