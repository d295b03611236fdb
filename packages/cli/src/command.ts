/** What every command is made with: its words, its options' values, and what it needs of the program. */
import type { ApiClient } from "@loraline/client";
import { Command, InvalidArgumentError } from "commander";
import type { Line, Terminal } from "./terminal.ts";

/** Everything of the process that commands may know. */
export interface Context {
  /** Of the checkout. */
  root: string;
  env: Record<string, string | undefined>;
  pid: number;
  /** Path of this Node. */
  node: string;
  terminal: Terminal;
}

/** Options of the program itself, which every command has. */
export interface Globals {
  url?: string;
  key?: string;
  state: string;
  json: boolean;
}

export interface CommandTools extends Context {
  globals(): Globals;
  /** @throws Failure NO_LINE, API_KEY_MISSING */
  connect(): Promise<ApiClient>;
  /** Prints a value as JSON, or as lines. */
  print(value: unknown, lines: () => readonly Line[]): void;
  /** Sets the exit code. Default 0. */
  exitWith(code: number): void;
}

/** Adds commands to the program. Each file `*-command.ts` or `*-commands.ts` has one of these, and program.ts lists it. */
export type AddCommands = (program: Command, tools: CommandTools) => void;

export const defaultBase = "smollm2-135m-instruct";

/** Of two mistakes in one call the unknown option is told: a required option that is misspelt is not simply "missing". */
export class ProgramCommand extends Command {
  override createCommand(name?: string): Command {
    return new ProgramCommand(name);
  }
  override parseOptions(argv: string[]): ReturnType<Command["parseOptions"]> {
    const parsed = super.parseOptions(argv);
    const isUnknown = (word: string): boolean => /^--?[^-]/.test(word) && word !== "-h" && word !== "--help";
    // Commander looks for required options first; without any it comes to the unknown one.
    if (this.commands.length === 0 && parsed.unknown.some(isUnknown)) for (const option of this.options) option.makeOptionMandatory(false);
    return parsed;
  }
}

export const examples = (...lines: readonly string[]): string => `\nExamples:\n${lines.map((line) => `  ${line}`).join("\n")}\n`;

/* values of options and arguments */

export const wholeNumber =
  (least: number, most = Number.MAX_SAFE_INTEGER) =>
  (text: string): number => {
    const value = Number(text);
    if (!/^-?\d+$/.test(text.trim()) || value < least || value > most) {
      throw new InvalidArgumentError(`Give a whole number from ${least}${most === Number.MAX_SAFE_INTEGER ? "" : ` to ${most}`}.`);
    }
    return value;
  };

/** Bytes: a whole number, or one with a unit, such as 50GiB or 2TB. */
export const byteSize = (text: string): number => {
  const [, digits, prefix = "", binary] = /^(\d+(?:\.\d+)?)\s*(?:([kKMGT])(i)?)?B?$/.exec(text.trim()) ?? [];
  const value = Number(digits) * (binary === undefined ? 1000 : 1024) ** ["", "K", "M", "G", "T"].indexOf(prefix.toUpperCase());
  if (!Number.isSafeInteger(Math.round(value))) throw new InvalidArgumentError("Give bytes, such as 500000000, 500MB or 50GiB.");
  return Math.round(value);
};

/** A value, or `none`, which lifts the limit. The word stays, because Commander takes null for a value that is missing. */
export const orNone =
  (parse: (text: string) => number) =>
  (text: string): number | "none" =>
    text === "none" ? text : parse(text);

/** Of an option that may be repeated. */
export const repeated = (text: string, earlier: readonly string[] | undefined): string[] => [...(earlier ?? []), text];

export const decimal = (text: string): number => {
  const value = Number(text);
  if (text.trim() === "" || !(value >= 0)) throw new InvalidArgumentError("Give a number from 0.");
  return value;
};

export const decimals = (text: string): number[] => text.split(",").map((part) => decimal(part));

/** `local/pirate` and `pirate` name the same adapter of the key's tenant. */
export const ownName = (name: string): string => name.replace(/^[^/]*\//, "");
