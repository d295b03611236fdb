/** Where the CLI reads and writes. main.ts hands it in, so that commands can be tested. */
import { relative } from "node:path";
import type { Writable } from "node:stream";
import { isatty } from "node:tty";
import pc from "picocolors";

export interface Terminal {
  /** Takes the result. With --json nothing but JSON is written to it. */
  out: Writable;
  /** Takes progress and remarks. */
  err: Writable & { isTTY?: boolean; columns?: number };
  /** Questions of an interactive chat, or a prompt from a pipe. */
  in: NodeJS.ReadableStream & { isTTY?: boolean };
  columns: number;
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

/** `label   value` lines with one left edge. */
export function pairs(rows: readonly (readonly [string, string] | undefined)[]): string[] {
  const present = rows.filter((row) => row !== undefined);
  const width = Math.max(...present.map(([label]) => label.length));
  return present.map(([label, value]) => `${dim(label.padEnd(width))}  ${value}`);
}

/** Columns as wide as their widest cell; the first row is the head. */
export function table(rows: readonly (readonly string[])[]): string[] {
  const [head] = rows;
  if (head === undefined) return [];
  const widths = head.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map((row, index) => {
    const line = row.map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0))).join("  ");
    return index === 0 ? dim(line) : line;
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
