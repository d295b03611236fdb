/** Options of the commands that read or tokenize a file on this machine: `data check` and `tokenize`. */
import { existsSync, readdirSync } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { templateOf } from "@loraline/contracts";
import { type Command, Option } from "commander";
import { wholeNumber } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { type Terminal, writeLine } from "../terminal.ts";
import { readMapping } from "./mapping-file.ts";

/** Reading and tokenizing, without a server. Loaded only when it is needed, since the libraries take long to load. */
export const localData = () => import("@loraline/local/data-files");

export interface TokenizeFlags {
  template?: "base" | "seed";
  profile?: "chatml" | "seed";
  maxLength: number;
  system?: string;
  tooLong: "split" | "trim-prompt" | "drop";
}
export const withTokenizeOptions = (command: Command): Command =>
  command
    .addOption(
      new Option(
        "--template <name>",
        "base (default): the base's own chat template; seed: the well-known process_func, bit for bit",
      ).choices(["base", "seed"]),
    )
    .addOption(new Option("--profile <name>", "older spelling of --template").choices(["chatml", "seed"]).hideHelp())
    .addOption(new Option("--max-length <n>", "tokens per sequence").default(1024).argParser(wholeNumber(8)))
    .option("--system <text>", "system prompt for records that have none (template seed: for all)")
    .addOption(
      new Option("--too-long <what>", "what happens to longer records; split: raw text becomes several sequences, anything else is dropped")
        .choices(["split", "trim-prompt", "drop"])
        .default("split"),
    );
/** The flags as the run spec says it. */
export const tokenizeOf = ({ template, profile, maxLength, system, tooLong }: TokenizeFlags) => ({
  template: templateOf({ template, profile }),
  max_length: maxLength,
  too_long: tooLong,
  ...(system === undefined ? {} : { system }),
});

/** In bytes; 0 of what is no file, which whoever reads it says better. */
export const sizeOf = (path: string): Promise<number> =>
  stat(path).then(
    ({ size }) => size,
    () => 0,
  );

export const mappingHelp = "how the rows are read, instead of by detection (docs/formats.md)";
export const mappingOf = async (path: string | undefined) => (path === undefined ? undefined : readMapping(path));

/** Says which files of a folder are not read. */
export function tellLeft({ err }: Pick<Terminal, "err">, left: readonly string[]): void {
  if (left.length === 0) return;
  const more = left.length > 10 ? ` and ${left.length - 10} more` : "";
  writeLine(err, `note: not read: ${left.slice(0, 10).join(", ")}${more} (of no known kind, of other splits, or text beside data)`);
}

const basesOf = (root: string): string => join(root, ".loraline/bases");
/** Names of the bases of this checkout. */
const basesHere = (root: string): string[] =>
  existsSync(basesOf(root)) ? readdirSync(basesOf(root)).filter((name) => existsSync(join(basesOf(root), name, "tokenizer.json"))) : [];

/** The folder of the only base of the server in this directory; undefined: there is none, or several. */
export function onlyBase(root: string): string | undefined {
  const [only, ...others] = basesHere(root);
  return only === undefined || others.length > 0 ? undefined : join(basesOf(root), only);
}

/**
 * @param given - a folder, or the name of a base of this checkout.
 * @throws Failure BASE_NOT_FOUND
 */
export function baseDirOf(root: string, given: string): string {
  if (existsSync(given)) return given;
  const named = join(basesOf(root), given);
  if (existsSync(named)) return named;
  const here = basesHere(root);
  const known = here.length === 0 ? "there are no bases here; `loraline bases add` makes one" : `the bases here are ${here.join(", ")}`;
  throw new Failure(exitCodes.usage, "BASE_NOT_FOUND", `there is no folder ${given} and no base of this name; ${known}.`, {
    param: "base",
  });
}
