/** Where the CLI reads and writes. main.ts hands it in, so that commands can be tested. */
import { relative } from "node:path";
import type { Writable } from "node:stream";
import { isatty } from "node:tty";
import pc from "picocolors";
import stringWidth from "string-width";
import wrapAnsi from "wrap-ansi";

export interface Terminal {
  /** Takes the result. With --json nothing but JSON is written to it. */
  out: Writable;
  /** Takes progress and remarks. */
  err: Writable & { isTTY?: boolean; columns?: number };
  /** Questions of an interactive chat, or a prompt from a pipe. */
  in: NodeJS.ReadableStream & { isTTY?: boolean };
  /** For pictures, such as bars. */
  columns: number;
  /** Lines are broken and tables shaped for this width. Absent: not at all, as for another program that reads them. */
  width?: number | undefined;
  /** Aborted by Ctrl-C and SIGTERM. */
  signal: AbortSignal;
}

// A terminal is asked for too, because picocolors alone colours wherever CI is set, also what a script reads.
const coloured = pc.isColorSupported && isatty(1);
export const { bold, dim, green, red, yellow, cyan } = pc.createColors(coloured);
/** Whether trained text is marked by colour; if not, brackets mark it. */
export const marksTrained = coloured;

/** A path as a person would write it: relative where it lies below the working directory. */
export function shortPath(path: string): string {
  const short = relative("", path);
  return short === "" || short.startsWith("..") ? path : short;
}

export const writeLine = (to: Writable, line = ""): void => void to.write(`${line}\n`);
export const writeLines = ({ out, width = Infinity }: Pick<Terminal, "out" | "width">, lines: readonly Line[]): void => {
  for (const line of shaped(lines, width)) writeLine(out, line);
};
export const writeJson = (to: Writable, value: unknown): void => void to.write(`${JSON.stringify(value, null, 2)}\n`);

export function duration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** `1.5 GiB` */
export function byteWords(bytes: number): string {
  const power = Math.max(0, Math.min(4, Math.floor(Math.log2(Math.max(1, bytes)) / 10)));
  const scaled = bytes / 1024 ** power;
  return `${Number.isInteger(scaled) ? scaled : scaled.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** What takes its shape from the room that there is. */
export interface Shaped {
  /** @returns lines that are as wide as this at most, unless a word is wider. */
  shape(columns: number): string[];
}
export type Line = string | Shaped;

/** The lines for a terminal of this width, broken between words. Infinity: as wide as they are. */
export const shaped = (lines: readonly Line[], columns: number): string[] =>
  lines.flatMap((line) => (typeof line === "string" ? broken(line, columns) : line.shape(columns)));

const broken = (text: string, columns: number): string[] =>
  stringWidth(text) <= columns
    ? [text]
    : wrapAnsi(text, columns, { trim: false })
        .split("\n")
        .map((line) => line.trimEnd());
const padded = (text: string, width: number): string => text + " ".repeat(Math.max(0, width - stringWidth(text)));

/** `label   value` lines with one left edge. */
export function pairs(rows: readonly (readonly [string, string] | undefined)[]): Shaped[] {
  const present = rows.filter((row) => row !== undefined);
  const width = Math.max(...present.map(([label]) => stringWidth(label)));
  const shape = (columns: number): string[] =>
    present.flatMap(([label, value]) =>
      broken(value, columns - width - 2).map((text, index) => `${padded(dim(index === 0 ? label : ""), width)}  ${text.trimStart()}`),
    );
  return [{ shape }];
}

/** The last column needs so much room to be read when its text is broken. */
const readable = 24;

/**
 * The first row is the head. Columns are as wide as their widest cell. Where they do not fit, columns that say nothing go first, then the
 * last column's text is broken; where that is not enough, each row stands by itself, a line for each cell.
 */
export function table(rows: readonly (readonly string[])[]): Shaped[] {
  return [{ shape: (columns) => shapeTable(rows, columns) }];
}

function shapeTable(rows: readonly (readonly string[])[], columns: number): string[] {
  const wide = asTable(rows, Infinity);
  if (wide.every((line) => stringWidth(line) <= columns)) return wide;
  const says = (rows[0] ?? []).map((_, column) => rows.slice(1).some((row) => !isNothing(row[column])));
  const telling = rows.map((row) => row.filter((_, column) => says[column]));
  const narrow = asTable(telling, columns);
  if (narrow.every((line) => stringWidth(line) <= columns)) return narrow;
  const [head = [], ...body] = telling;
  return body.flatMap((row, index) => {
    const cells = head.flatMap((name, column) =>
      isNothing(row[column]) ? [] : [[name.toLowerCase().replace("(utc)", "(UTC)"), row[column] ?? ""] as const],
    );
    return [...(index === 0 ? [] : [""]), ...shaped(pairs(cells), columns)];
  });
}

const isNothing = (cell: string | undefined): boolean => cell === undefined || cell === "" || cell === "-";

function asTable(rows: readonly (readonly string[])[], columns: number): string[] {
  const [head = []] = rows;
  const widths = head.map((_, column) => Math.max(...rows.map((row) => stringWidth(row[column] ?? ""))));
  const last = head.length - 1;
  const indent = widths.slice(0, last).reduce((sum, width) => sum + width + 2, 0);
  const room = columns - indent >= readable ? columns - indent : Infinity;
  return rows.flatMap((row, index) => {
    const [text = "", ...more] = broken(row[last] ?? "", room);
    const cells = row.slice(0, last).map((cell, column) => padded(cell, widths[column] ?? 0));
    const lines = [[...cells, text].join("  ").trimEnd(), ...more.map((rest) => `${" ".repeat(indent)}${rest.trimStart()}`)];
    return index === 0 ? lines.map(dim) : lines;
  });
}

/** Breaks at spaces; no line is longer than `width` unless a word is. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const paragraph of text.split("\n")) {
    let line = "";
    for (const word of paragraph.split(" ")) {
      if (line !== "" && line.length + 1 + word.length > width) {
        lines.push(line);
        line = word;
      } else {
        line = line === "" ? word : `${line} ${word}`;
      }
    }
    lines.push(line);
  }
  return lines;
}
