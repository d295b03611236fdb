/** `loraline tokenize` */
import { type MethodType, methodTypes } from "@loraline/contracts";
import { Option } from "commander";
import type { AddCommands } from "../command.ts";
import { exitCodes } from "../failure.ts";
import { showBytes } from "../show-progress.ts";
import { pairs, shortPath, writeJson, writeLine, writeLines, yellow } from "../terminal.ts";
import {
  baseDirOf,
  localData,
  mappingHelp,
  mappingOf,
  sizeOf,
  tokenizeOf,
  type TokenizeFlags,
  withTokenizeOptions,
} from "./tokenize-options.ts";

export const addTokenizeCommand: AddCommands = (program, { root, terminal, globals, exitWith }) => {
  const { out, err } = terminal;
  withTokenizeOptions(
    program
      .command("tokenize")
      .description("turn a dataset into Arrow shards of input_ids, labels and seq_lengths; needs no server")
      .argument("<file>", "the dataset")
      .requiredOption("--base <dir|name>", "folder with tokenizer.json and tokenizer_config.json, or a base of this checkout")
      .requiredOption("--out <dir>", "where the shards go: an empty or a new folder")
      .option("--mapping <mapping.yaml>", mappingHelp)
      .addOption(
        new Option(
          "--method <type>",
          "the method that the tokens are for (supervised); dpo and others: both sides of a pair in one row",
        ).choices(methodTypes.filter((type) => type !== "import")),
      )
      .option("--packing", "put several sequences into a row of --max-length tokens", false)
      .option("--exact", "let the official tokenizers package encode everything (slower; the ids are the same)", false)
      .addHelpText(
        "after",
        "\nRows stand in the file's order (unless packed). manifest.json says what was made, dropped.jsonl which record gave none and why.\nPython reads a shard with datasets.Dataset.from_file(DIR/shard-00000.arrow).\n\nExample:\n  loraline tokenize pirate.jsonl --base smollm2-135m-instruct --template seed --max-length 384 --out tokens\n",
      ),
  ).action(
    async (
      file: string,
      flags: TokenizeFlags & { base: string; out: string; packing: boolean; exact: boolean; mapping?: string; method?: MethodType },
    ) => {
      const { tokenizeFile } = await localData();
      const rejections: { line: number; code: string; message: string }[] = [];
      const dropped: { line: number; code: string; message: string; tokens: number }[] = [];
      const shown = showBytes(terminal, "tokenizing", await sizeOf(file));
      const manifest = await tokenizeFile({
        file,
        onRead: shown.add,
        mapping: await mappingOf(flags.mapping),
        baseDir: baseDirOf(root, flags.base),
        outDir: flags.out,
        tokenize: { ...tokenizeOf(flags), packing: flags.packing },
        method: flags.method,
        exact: flags.exact,
        signal: terminal.signal,
        onRejected: ({ line, code, message }) => void rejections.push({ line, code, message }),
        onDropped: ({ line, code, message, tokens }) => void dropped.push({ line, code, message, tokens }),
      }).finally(shown.end);
      const { totals, shards } = manifest;
      if (globals().json) {
        writeJson(out, { ...manifest, rejections, droppedRecords: dropped });
      } else {
        for (const { line, code, message } of [...rejections, ...dropped].slice(0, 10))
          writeLine(err, `${yellow(code)} line ${line}: ${message}`);
        const left = rejections.length + dropped.length;
        writeLines(
          terminal,
          pairs([
            [
              "rows",
              `${totals.records + rejections.length} read, ${rejections.length} rejected, ${totals.dropped} dropped${left > 10 ? " (the first 10 above)" : ""}`,
            ],
            ["tokens", `${totals.tokens} in ${totals.sequences} sequences (${totals.rows} rows), ${totals.supervised} learned`],
            ["shards", `${shards.length} in ${shortPath(flags.out)}`],
            ["show", `loraline data show ${shortPath(flags.out)} --row 0`],
          ]),
        );
      }
      exitWith(totals.supervised === 0 ? exitCodes.failed : exitCodes.ok);
    },
  );
};
