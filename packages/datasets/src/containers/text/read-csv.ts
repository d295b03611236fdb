/**
 * CSV and TSV to rows of text, with bounded memory.
 *
 * Only quotes, delimiters and line ends are known here, and each row is read by itself: a quote that is never closed costs one row and
 * not the rest of the file, a row can be refused for its size before it is in memory, and every row has its line. CSV libraries end
 * at the first broken quote, or take everything behind it for one cell (and papaparse took three times as long for twice the memory).
 */
import { PermanentError } from "@loraline/runtime";
import { decodeUtf8 } from "./decode-text.ts";
import { parseExact } from "../exact-json.ts";
import { type RawRow, refused, rowTooLarge } from "../raw-rows.ts";
import { notText } from "./split-rows.ts";

type Delimiter = "," | "\t" | ";" | "|";
const delimiters: readonly Delimiter[] = ["\t", ",", ";", "|"];

const newline = 0x0a;
const carriageReturn = 0x0d;
const quote = 0x22;

/** What Excel writes above a table, and takes as the delimiter. */
const separatorLine = /^sep=(.)\r?(?:\n|$)/i;

/**
 * Finds the delimiter of a file whose first row names columns; undefined when it is not CSV. JSON is never taken for CSV: its rows
 * begin with a bracket.
 * @param head - beginning of the text.
 */
export function recogniseCsv(head: string): Delimiter | undefined {
  const text = head.trimStart();
  if (/^[[{]/.test(text)) return undefined;
  const told = separatorLine.exec(text)?.[1];
  if (told !== undefined) return delimiters.find((delimiter) => delimiter === told);
  // A conversation that a chat template has written: `<|im_start|>user`.
  if (text.startsWith("<|")) return undefined;
  const end = endOfRow(text);
  const header = text.slice(0, end).trimEnd();
  // This is JSON Lines whose first line is broken.
  if (/^\s*\{/.test(text.slice(end).trimStart())) return undefined;
  const found = delimiters
    .map((delimiter) => ({ delimiter, cells: header.includes(delimiter) ? cellsOf(header, delimiter) : undefined }))
    .filter(({ cells }) => cells !== undefined && cells.filter((cell) => cell.trim() !== "").length > 1 && cells.every(couldBeName))
    .toSorted((a, b) => (b.cells?.length ?? 0) - (a.cells?.length ?? 0))[0];
  if (found !== undefined) return found.delimiter;
  // A table with one column has no delimiter.
  const name = header.replace(/^"(.*)"$/s, "$1");
  return end < text.length && /^[\p{L}_][\p{L}\p{N}_.-]{0,63}$/u.test(name) && !["null", "true", "false", "WEBVTT"].includes(name)
    ? ","
    : undefined;
}

/** How a line of a chat's export begins, such as WhatsApp's: `12/01/2024, 10:05 - Anna: `. */
const timeOfMessage = /^\s*\[?\d{1,4}[./-]\d{1,2}[./-]\d{1,4},? \d{1,2}[:.]\d\d/;

/** Whether the first rows have as many cells as the header: prose with a comma in its first line has not. */
export function isTable(head: string, delimiter: Delimiter): boolean {
  if (timeOfMessage.test(head)) return false;
  const lines = head.split("\n").slice(0, -1);
  const filled = lines.filter((line) => line.trim() !== "");
  // Paragraphs stand apart, rows do not.
  if (lines.length >= 2 * filled.length - 1 && filled.length > 1) return false;
  const rows = filled.slice(0, 20).map((row) => cellsOf(row.trimEnd(), delimiter)?.length);
  return rows.length > 1 && (rows[0] ?? 0) > 1 && rows.every((count) => count === rows[0]);
}

const couldBeName = (cell: string): boolean => cell.length <= 100 && !cell.includes("\n") && !/^\s*[[{]/.test(cell);

/** End of the first row, quotes considered. */
function endOfRow(text: string): number {
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === '"') quoted = !quoted;
    else if (character === "\n" && !quoted) return at;
  }
  const line = text.indexOf("\n");
  return line === -1 ? text.length : line;
}

/** The cells of one row, without its line end; undefined when its quotes are wrong. */
function cellsOf(row: string, delimiter: Delimiter): string[] | undefined {
  if (!row.includes('"')) return row.split(delimiter);
  const cells: string[] = [];
  for (let at = 0; ; at++) {
    if (row[at] !== '"') {
      const end = row.indexOf(delimiter, at);
      cells.push(row.slice(at, end === -1 ? undefined : end));
      if (end === -1) return cells;
      at = end;
      continue;
    }
    let end = row.indexOf('"', at + 1);
    let doubled = false;
    while (end !== -1 && row[end + 1] === '"') {
      doubled = true;
      end = row.indexOf('"', end + 2);
    }
    if (end === -1) return undefined;
    const cell = row.slice(at + 1, end);
    cells.push(doubled ? cell.replaceAll('""', '"') : cell);
    for (at = end + 1; row[at] === " " || row[at] === "\r";) at++;
    if (at >= row.length) return cells;
    if (row[at] !== delimiter) return undefined;
  }
}

/** Columns that are lists in every format that has them: there a cell that is a JSON list means a list. */
const listColumns = new Set([
  "messages",
  "conversation",
  "conversations",
  "history",
  "chosen",
  "rejected",
  "responses",
  "candidates",
  "completions",
  "tokens",
  "words",
  "labels",
  "tags",
  "ner_tags",
  "pos_tags",
  "input_ids",
  "images",
  "tools",
]);

/**
 * @throws PermanentError CSV_HEADER from the iteration.
 */
export async function* readCsv(
  source: AsyncIterable<Uint8Array>,
  { delimiter, maxRowBytes }: { delimiter: Delimiter; maxRowBytes: number },
): AsyncGenerator<RawRow[], void, undefined> {
  let columns: string[] | undefined;
  for await (const batch of splitCsv(source, delimiter.charCodeAt(0), maxRowBytes)) {
    const rows: RawRow[] = [];
    for (const { line, bytes, size, fault } of batch) {
      const place = `line ${line}`;
      if (columns === undefined) {
        if (fault !== undefined || bytes === undefined)
          throw headerFault(`its quotes are wrong, or it is longer than ${maxRowBytes} bytes`, line);
        const text = decodeUtf8(bytes);
        if (text !== undefined && separatorLine.test(text.replace(/^\uFEFF/, ""))) continue;
        const cells = text === undefined ? undefined : cellsOf(text, delimiter);
        if (cells === undefined) throw headerFault("it is not UTF-8 text, or its quotes are wrong", line);
        columns = columnsOf(cells, line);
        continue;
      }
      if (fault !== undefined) rows.push(refused(line, place, "CSV_QUOTES", `${place}: ${faults[fault]}`));
      else if (bytes === undefined) rows.push(rowTooLarge(line, place, size, maxRowBytes));
      else rows.push(readRow(bytes, line, columns, delimiter));
    }
    yield rows;
  }
}

const faults = {
  open: "a quoted cell begins here and does not end, at least not within the size of a row. Close it with a quote, and write quotes inside of it twice.",
  malformed: 'a quote stands inside of a quoted cell. Write it twice ("").',
};

function readRow(bytes: Uint8Array, line: number, columns: readonly string[], delimiter: Delimiter): RawRow {
  const place = `line ${line}`;
  const text = decodeUtf8(bytes);
  if (text === undefined) return notText(line, place);
  const cells = cellsOf(text, delimiter);
  if (cells === undefined) return refused(line, place, "CSV_QUOTES", `${place}: ${faults.malformed}`);
  return rowOfCells(cells, { line, place }, columns);
}

/** A row of values from its cells. Where a column's name means a list, JSON in a cell is one. */
export function rowOfCells(
  cells: string[],
  { line, place }: { line: number; place: string },
  columns: readonly string[],
  maxRowBytes?: number,
): RawRow {
  // Spreadsheets write empty cells to the right of the table.
  while (cells.length > columns.length && cells.at(-1)?.trim() === "") cells.pop();
  if (cells.length !== columns.length) {
    const message = `${place}: there are ${cells.length} ${cells.length === 1 ? "cell" : "cells"}; the header has ${columns.length}. Quote cells that hold a delimiter or a line end.`;
    return refused(line, place, "CSV_RAGGED", message);
  }
  const size = maxRowBytes === undefined ? 0 : cells.reduce((sum, cell) => sum + Buffer.byteLength(cell), 0);
  if (maxRowBytes !== undefined && size > maxRowBytes) return rowTooLarge(line, place, size, maxRowBytes);
  const value: Record<string, unknown> = {};
  const exact: Record<string, () => unknown> = {};
  for (const [index, name] of columns.entries()) {
    const cell = cells[index] as string;
    const list = listColumns.has(name.trim().toLowerCase()) && /^\s*\[/.test(cell) ? parsedList(cell) : undefined;
    define(value, name, list ?? cell);
    if (list !== undefined) define(exact, name, () => parseExact(cell));
  }
  return {
    line,
    place,
    value,
    exact: () =>
      Object.fromEntries(Object.entries(value).map(([name, cell]) => [name, Object.hasOwn(exact, name) ? exact[name]?.() : cell])),
  };
}

/** A column may be called `__proto__`. */
const define = (row: Record<string, unknown>, name: string, value: unknown): void => {
  if (name === "__proto__") Object.defineProperty(row, name, { value, enumerable: true, configurable: true, writable: true });
  else row[name] = value;
};

function parsedList(cell: string): unknown[] | undefined {
  try {
    const parsed: unknown = JSON.parse(cell);
    return Array.isArray(parsed) ? parsed : undefined;
  } catch {
    return undefined;
  }
}

const headerFault = (why: string, line: number): PermanentError =>
  new PermanentError("CSV_HEADER", `line ${line}: the first row must name the columns, but ${why}. Correct it.`);

export function columnsOf(cells: readonly string[], line: number): string[] {
  const named = cells.map((cell) => cell.replace(/^\uFEFF/, "").trim());
  while (named.length > 1 && named.at(-1) === "") named.pop();
  // pandas writes its index into a column without a name.
  const columns = named.map((cell, index) => (cell === "" ? `column_${index + 1}` : cell));
  const twice = columns.find((cell, index) => columns.indexOf(cell) !== index);
  if (twice !== undefined) throw headerFault(`two are called "${twice.slice(0, 60)}"`, line);
  return columns;
}

interface CsvRow {
  /** Line on which the row begins, from 1. */
  line: number;
  /** Absent: the row is too large, or its quotes are wrong. */
  bytes?: Uint8Array;
  size: number;
  fault?: keyof typeof faults;
}

/** How many unclosed quotes a file may have. For each, as many bytes as the largest row are read a second time. */
const mostRescans = 200;

/** Rows as bytes without their line end, valid until the next batch is asked for. Blank lines are not rows. */
async function* splitCsv(source: AsyncIterable<Uint8Array>, delimiter: number, maxRowBytes: number): AsyncGenerator<CsvRow[]> {
  // One block of memory for all chunks: rows are read out of it before the next one comes.
  let memory = Buffer.allocUnsafe(1024 * 1024);
  let buffer = memory.subarray(0, 0);
  /** Line on which the buffer begins. */
  let line = 1;
  let rescans = 0;
  /** Bytes that were dropped of a row that is too large; its rest is skipped up to the line end. */
  let skipped = 0;
  /** Line ends in the dropped part of that row. */
  let skippedLines = 0;
  let ended = false;
  /** How far the row was scanned, so that a row that comes in many chunks is scanned only once. */
  let scan = startOfScan();

  function take(): CsvRow[] {
    const rows: CsvRow[] = [];
    let start = 0;
    for (;;) {
      if (skipped > 0) {
        const end = buffer.indexOf(newline, start);
        if (end === -1) {
          skipped += buffer.length - start;
          start = buffer.length;
          break;
        }
        rows.push({ line, size: skipped + end - start });
        line += skippedLines + 1;
        skipped = skippedLines = 0;
        start = end + 1;
        scan = startOfScan(start);
        continue;
      }
      advance(scan, buffer, start, delimiter);
      if (scan.state === "end" || (ended && scan.state !== "quoted" && start < buffer.length)) {
        let end = scan.state === "end" ? scan.at - 1 : buffer.length;
        const { lines, malformed, at } = scan;
        if (end > start && buffer[end - 1] === carriageReturn) end--;
        const bytes = buffer.subarray(start, end);
        if (bytes.length > maxRowBytes) rows.push({ line, size: bytes.length });
        else if (malformed) rows.push({ line, size: bytes.length, fault: "malformed" });
        else if (!isBlankLine(bytes, delimiter)) rows.push({ line, bytes, size: bytes.length });
        line += lines;
        start = at;
        scan = startOfScan(start);
        if (start >= buffer.length) break;
        continue;
      }
      const size = buffer.length - start;
      if (scan.state === "quoted" && (ended ? size > 0 : size > maxRowBytes)) {
        // Only the line on which the cell begins is lost: the row is given up, and reading goes on after that line.
        rows.push({ line, size, fault: "open" });
        if (++rescans > mostRescans) {
          const message = `line ${line}: more than ${mostRescans} quoted cells begin and never end. Export the file again, with quotes inside of cells written twice.`;
          throw new PermanentError("CSV_QUOTES", message);
        }
        const end = buffer.indexOf(newline, start);
        line++;
        start = end === -1 ? buffer.length : end + 1;
        scan = startOfScan(start);
        if (start >= buffer.length) break;
        continue;
      }
      if (size > maxRowBytes) {
        skipped = size;
        skippedLines = scan.lines;
        start = buffer.length;
        scan = startOfScan(start);
      }
      break;
    }
    buffer = buffer.subarray(start);
    scan.at -= start;
    return rows;
  }

  for await (const chunk of source) {
    const rest = buffer.length;
    if (rest + chunk.byteLength > memory.length) memory = Buffer.allocUnsafe(2 * (rest + chunk.byteLength));
    // Source and target may overlap in the same memory, which `set` handles.
    memory.set(buffer, 0);
    memory.set(chunk, rest);
    buffer = memory.subarray(0, rest + chunk.byteLength);
    yield take();
  }
  ended = true;
  const rows = take();
  if (skipped > 0) rows.push({ line, size: skipped });
  yield rows;
}

interface Scan {
  at: number;
  state: "start" | "plain" | "quoted" | "closing" | "closed" | "end";
  /** Number of line ends passed, including the row's own. */
  lines: number;
  malformed: boolean;
}
const startOfScan = (at = 0): Scan => ({ at, state: "start", lines: 0, malformed: false });

/**
 * Goes on to the end of the row (`end`: `at` is behind its line end) or of the buffer. A quote counts where a cell begins; inside of a
 * quoted cell two of them are one.
 */
function advance(scan: Scan, buffer: Buffer, start: number, delimiter: number): void {
  // Most rows hold no quote at all.
  if (scan.at === start && scan.state === "start") {
    const end = buffer.indexOf(newline, start);
    if (end !== -1 && !buffer.subarray(start, end).includes(quote)) {
      scan.at = end + 1;
      scan.state = "end";
      scan.lines = 1;
      return;
    }
  }
  for (; scan.at < buffer.length && scan.state !== "end"; scan.at++) {
    if (scan.state === "quoted") {
      const next = buffer.indexOf(quote, scan.at);
      const end = next === -1 ? buffer.length : next;
      for (let at = buffer.indexOf(newline, scan.at); at !== -1 && at < end; at = buffer.indexOf(newline, at + 1)) scan.lines++;
      scan.at = end;
      if (next === -1) break;
    }
    const byte = buffer[scan.at] as number;
    if (byte === newline) scan.lines++;
    switch (scan.state) {
      case "quoted": {
        if (byte === quote) scan.state = "closing";
        break;
      }
      case "closing": {
        if (byte === quote) scan.state = "quoted";
        else if (byte === newline) scan.state = "end";
        else if (byte === delimiter) scan.state = "start";
        else if (byte === carriageReturn || byte === 0x20) scan.state = "closed";
        else {
          scan.malformed = true;
          scan.state = "plain";
        }
        break;
      }
      case "closed": {
        if (byte === newline) scan.state = "end";
        else if (byte === delimiter) scan.state = "start";
        else if (byte !== carriageReturn && byte !== 0x20) {
          scan.malformed = true;
          scan.state = "plain";
        }
        break;
      }
      case "start":
      case "plain": {
        if (byte === newline) scan.state = "end";
        else if (byte === delimiter) scan.state = "start";
        else if (byte === quote && scan.state === "start") scan.state = "quoted";
        else scan.state = "plain";
      }
    }
  }
}

const isBlankLine = (bytes: Uint8Array, delimiter: number): boolean =>
  bytes.every((byte) => byte === 0x20 || (byte === 0x09 && delimiter !== 0x09) || byte === carriageReturn);
