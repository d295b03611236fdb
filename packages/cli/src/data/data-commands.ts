/** `loraline data …` and `loraline tokenize`: datasets in files, read and tokenized here without any line; and what a line found in its own. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { templateOf } from "@loraline/contracts";
import { type Command, InvalidArgumentError, Option } from "commander";
import type { LineClient } from "../connect-line.ts";
import { describeData, describeSample } from "./data-report.ts";
import { exitCodes, Failure } from "../failure.ts";
import { readMapping } from "./mapping-file.ts";
import { followDataset, importDataset, type Narrowed, requiredSource } from "./import-source.ts";
import { dim, green, pairs, red, shortPath, table, type Terminal, writeJson, writeLine, yellow } from "../terminal.ts";

export interface DataCommandsContext {
  /** Of the checkout: bases are looked for by name in its `.loraline/bases`. */
  root: string;
  terminal: Terminal;
  line: () => Promise<LineClient>;
  json: () => boolean;
  onExit: (code: number) => void;
}

/** What these commands need of the line's code, and nothing of the line. */
const offline = () => import("@loraline/local/data-files");

const wholeNumber =
  (least: number) =>
  (text: string): number => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < least) throw new InvalidArgumentError(`Give a whole number from ${least}.`);
    return value;
  };

interface TokenizeFlags {
  template?: "base" | "seed";
  profile?: "chatml" | "seed";
  maxLength: number;
  system?: string;
  tooLong: "drop" | "trim-prompt";
}
const tokenizeOptions = (made: Command): Command =>
  made
    .addOption(
      new Option(
        "--template <name>",
        "base (default): the base's own chat template; seed: the article's process_func, bit for bit",
      ).choices(["base", "seed"]),
    )
    .addOption(new Option("--profile <name>", "older spelling of --template").choices(["chatml", "seed"]).hideHelp())
    .addOption(new Option("--max-length <n>", "tokens per sequence").default(1024).argParser(wholeNumber(8)))
    .option("--system <text>", "system prompt for records that have none (template seed: for all)")
    .addOption(new Option("--too-long <what>", "what happens to longer records").choices(["drop", "trim-prompt"]).default("drop"));
const tokenizeOf = ({ template, profile, maxLength, system, tooLong }: TokenizeFlags) => ({
  template: templateOf({ template, profile }),
  max_length: maxLength,
  too_long: tooLong,
  ...(system === undefined ? {} : { system }),
});

const mappingHelp = "how the rows are read, instead of by detection (docs/formats.md)";
const mappingOf = async (path: string | undefined) => (path === undefined ? undefined : readMapping(path));

export function addDataCommands(program: Command, data: Command, { root, terminal, line, json, onExit }: DataCommandsContext): void {
  const { out, err } = terminal;
  /** A folder, or the name of a base of this checkout. */
  const baseDir = (given: string): string => {
    const named = join(root, ".loraline/bases", given);
    return !existsSync(given) && existsSync(named) ? named : given;
  };

  tokenizeOptions(
    data
      .command("check")
      .description("read a dataset as the line would, and report what is in it; needs no line")
      .argument("<file>", "JSON Lines, JSON, CSV, TSV, Parquet or Arrow; plain, gzip or zstd")
      .option("--base <dir|name>", "count tokens and show the mask with this base (a folder with its tokenizer's files)")
      .option("--validation <file>", "say what this evaluation file holds too")
      .option("--mapping <mapping.yaml>", mappingHelp)
      .addHelpText(
        "after",
        "\nExit code 1 when nothing in the file can be trained on.\n\nExamples:\n  loraline data check pirate.jsonl --base smollm2-135m-instruct\n  loraline data check pirate.csv --json\n",
      ),
  ).action(async (file: string, flags: TokenizeFlags & { base?: string; validation?: string; mapping?: string }) => {
    const { checkData } = await offline();
    const checked = await checkData({
      file,
      mapping: await mappingOf(flags.mapping),
      validation: flags.validation,
      baseDir: flags.base === undefined ? undefined : baseDir(flags.base),
      tokenize: tokenizeOf(flags),
    });
    const { report, rejections, tokens, problem } = checked;
    if (json()) {
      const { firstRejections: _first, allRejections: _all, ...said } = report;
      const list = rejections.map(({ line, code, message }) => ({ line, code, message }));
      writeJson(out, { ...said, rejections: list, ...(tokens === undefined ? {} : { tokens }), ...(problem === null ? {} : { problem }) });
    } else {
      for (const line of describeData(shortPath(file), checked, terminal.columns)) writeLine(out, line);
      writeLine(out);
      writeLine(out, problem === null ? green(verdict(report.records, tokens)) : red(`${problem.code}: ${problem.message}`));
    }
    onExit(problem === null ? exitCodes.ok : exitCodes.failed);
  });

  data
    .command("show")
    .description("print tokenized rows as text, with what is learned marked")
    .argument("<dir>", "folder that `loraline tokenize` wrote")
    .option("--row <n>", "this row, from 0; default: the first 20", wholeNumber(0))
    .option("--base <dir|name>", "folder of the tokenizer, when it is not where it was")
    .action(async (dir: string, flags: { row?: number; base?: string }) => {
      const { showTokens } = await offline();
      const base = flags.base === undefined ? undefined : baseDir(flags.base);
      const { manifest, rows } = await showTokens(dir, { row: flags.row, baseDir: base });
      if (json()) {
        writeJson(out, rows);
        return;
      }
      for (const { row, lines, sequences } of rows) {
        for (const [index, { tokens, supervised, segments }] of sequences.entries()) {
          const line = lines[index] ?? 0;
          const [, ...text] = describeSample({ line, format: "", segments });
          writeLine(out, dim(`row ${row}, line ${line}: ${tokens} tokens, ${supervised} learned`));
          for (const one of text) writeLine(out, one);
        }
      }
      const more = manifest.totals.rows - rows.length;
      if (flags.row === undefined && more > 0) writeLine(err, dim(`${more} more rows: --row N shows one`));
    });

  data
    .command("import")
    .description("let the line fetch a dataset by its URL or its name on the hub")
    .argument("<source>", "https://…, or organisation/name of a dataset on the hub (HF_ENDPOINT of the line)")
    .option("--file <path>", "one file of the hub's dataset; default: the files of the split, when they are plain to see")
    .option("--config <name>", "subset of the hub's dataset")
    .option("--split <name>", "split of the hub's dataset; default: train")
    .option("--revision <name>", "branch, tag or commit of the hub's dataset; default: main")
    .option("--mapping <mapping.yaml>", mappingHelp)
    .option("--no-follow", "print the dataset's id and return")
    .addHelpText(
      "after",
      "\nThe line fetches over https from public addresses only; LORALINE_IMPORT_ALLOW=host:port,… of the line names internal mirrors.\n`loraline run` takes https://… and hub:organisation/name in place of a file.\n\nExamples:\n  loraline data import https://example.org/pirate.jsonl.gz\n  loraline data import organisation/name --config en --split train\n",
    )
    .action(async (given: string, flags: Narrowed & { mapping?: string; follow: boolean }) => {
      const client = await line();
      const started = await importDataset(client, requiredSource(given, flags), await mappingOf(flags.mapping));
      const { datasetId } = started;
      const dataset = flags.follow ? await followDataset(client, datasetId, terminal.signal) : started;
      if (json()) writeJson(out, dataset);
      else if (!flags.follow) writeLine(out, datasetId);
      else if (dataset.error === null) {
        const { records, rejections, filename } = dataset;
        writeLine(out, `${green("imported")} ${filename} as ${datasetId}: ${records} records, ${rejections} rejected`);
        writeLine(out, dim(`loraline data report ${datasetId}`));
      } else writeLine(err, red(`${dataset.error.code}: ${dataset.error.message}`));
      onExit(dataset.error === null ? exitCodes.ok : exitCodes.failed);
    });

  data
    .command("ls")
    .description("list the line's datasets, newest first")
    .action(async () => {
      const datasets = await (await line()).datasets();
      if (json()) writeJson(out, datasets);
      else if (datasets.length === 0) writeLine(out, "no datasets yet");
      else {
        const rows = datasets.map((one) => [
          one.datasetId,
          one.status,
          one.filename,
          String(one.records ?? "-"),
          String(one.rejections ?? "-"),
          one.error?.message ?? (one.waiting === null ? "" : `waiting: ${one.waiting.message}`),
        ]);
        for (const text of table([["DATASET", "STATUS", "FILE", "RECORDS", "REJECTED", ""], ...rows])) writeLine(out, text);
      }
    });

  data
    .command("report")
    .description("what the line found in one of its datasets: the page of `data check`")
    .argument("<dataset>", "its id in `data ls`, the file's id, or `last`")
    .action(async (given: string) => {
      const client = await line();
      const id = given === "last" ? (await client.datasets())[0]?.datasetId : given;
      if (id === undefined) throw new Failure(exitCodes.notFound, "not_found", "there is no dataset yet.", { param: "dataset" });
      const report = await client.report(id);
      if (json()) writeJson(out, report);
      else
        for (const text of describeData(id, { report, rejections: report.firstRejections, tokens: undefined }, terminal.columns))
          writeLine(out, text);
    });

  tokenizeOptions(
    program
      .command("tokenize")
      .description("turn a dataset into Arrow shards of input_ids, labels and seq_lengths; needs no line")
      .argument("<file>", "the dataset")
      .requiredOption("--base <dir|name>", "folder with tokenizer.json and tokenizer_config.json, or a base of this checkout")
      .requiredOption("--out <dir>", "where the shards go: an empty or a new folder")
      .option("--mapping <mapping.yaml>", mappingHelp)
      .option("--packing", "put several sequences into a row of --max-length tokens", false)
      .option("--exact", "let the official tokenizers package encode everything (slower; the ids are the same)", false)
      .addHelpText(
        "after",
        "\nRows stand in the file's order (unless packed). manifest.json says what was made, dropped.jsonl which record gave none and why.\nPython reads a shard with datasets.Dataset.from_file(DIR/shard-00000.arrow).\n\nExample:\n  loraline tokenize pirate.jsonl --base smollm2-135m-instruct --template seed --max-length 384 --out tokens\n",
      ),
  ).action(
    async (file: string, flags: TokenizeFlags & { base: string; out: string; packing: boolean; exact: boolean; mapping?: string }) => {
      const { tokenizeFile } = await offline();
      const rejections: { line: number; code: string; message: string }[] = [];
      const dropped: { line: number; code: string; message: string; tokens: number }[] = [];
      const manifest = await tokenizeFile({
        file,
        mapping: await mappingOf(flags.mapping),
        baseDir: baseDir(flags.base),
        outDir: flags.out,
        tokenize: { ...tokenizeOf(flags), packing: flags.packing },
        exact: flags.exact,
        signal: terminal.signal,
        onRejected: ({ line, code, message }) => void rejections.push({ line, code, message }),
        onDropped: ({ line, code, message, tokens }) => void dropped.push({ line, code, message, tokens }),
      });
      const { totals, shards } = manifest;
      if (json()) {
        writeJson(out, { ...manifest, rejections, droppedRecords: dropped });
      } else {
        for (const { line, code, message } of [...rejections, ...dropped].slice(0, 10))
          writeLine(err, `${yellow(code)} line ${line}: ${message}`);
        const left = rejections.length + dropped.length;
        for (const line of pairs([
          [
            "rows",
            `${totals.records + rejections.length} read, ${rejections.length} rejected, ${totals.dropped} dropped${left > 10 ? " (the first 10 above)" : ""}`,
          ],
          ["tokens", `${totals.tokens} in ${totals.sequences} sequences (${totals.rows} rows), ${totals.supervised} learned`],
          ["shards", `${shards.length} in ${shortPath(flags.out)}`],
          ["show", `loraline data show ${shortPath(flags.out)} --row 0`],
        ])) {
          writeLine(out, line);
        }
      }
      onExit(totals.supervised === 0 ? exitCodes.failed : exitCodes.ok);
    },
  );
}

function verdict(records: number, tokens: { dropped: Record<string, number> } | undefined): string {
  const usable = Object.values(tokens?.dropped ?? {}).reduce((left, lost) => left - lost, records);
  return `${usable} of ${records} ${records === 1 ? "record" : "records"} can be trained on${tokens === undefined ? "" : " with this base"}.`;
}
