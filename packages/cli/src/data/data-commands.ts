/** `loraline data`: datasets in files, looked at before they cost a training; and those of the server. */
import { type DatasetReport, defaultMinRecords, type MethodType, methodTypes, type TokenReport } from "@loraline/contracts";
import { Option } from "commander";
import { type AddCommands, wholeNumber } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { whatStays } from "../operate/deletion-commands.ts";
import { showBytes } from "../show-progress.ts";
import { dim, green, red, shortPath, table, writeJson, writeLine, writeLines } from "../terminal.ts";
import { describeData, describeSample } from "./data-report.ts";
import { followDataset, importDataset, type Narrowed, requiredSource } from "./import-source.ts";
import {
  baseDirOf,
  localData,
  mappingHelp,
  mappingOf,
  onlyBase,
  sizeOf,
  tellLeft,
  tokenizeOf,
  type TokenizeFlags,
  withTokenizeOptions,
} from "./tokenize-options.ts";

export const addDataCommands: AddCommands = (program, { root, terminal, connect, globals, print, exitWith }) => {
  const { out, err } = terminal;
  const data = program.command("data").description("datasets: look at files before they cost a training, and at those of the server");

  withTokenizeOptions(
    data
      .command("check")
      .description("read a dataset as the server would, and report what is in it; needs no server")
      .argument(
        "<files...>",
        "files or a folder: JSON Lines, JSON, CSV, TSV, Excel, Parquet, Arrow, CoNLL, text or Markdown; plain, gzip, zstd or ZIP",
      )
      .option(
        "--base <dir|name>",
        "count tokens and show the mask with this base (its name or folder); default: the server's, if it has one base here",
      )
      .option("--no-base", "count no tokens")
      .option("--min-records <n>", `fewer usable records than this reject a run; default: ${defaultMinRecords}`, wholeNumber(1))
      .addOption(
        new Option("--method <type>", "judge the file for a run by this method").choices(methodTypes.filter((type) => type !== "import")),
      )
      .option("--validation <file>", "say what this evaluation file holds too")
      .option("--mapping <mapping.yaml>", mappingHelp)
      .addHelpText(
        "after",
        "\nExit code 1 when a run on the file would be rejected.\n\nExamples:\n  loraline data check pirate.jsonl --base smollm2-135m-instruct\n  loraline data check pirate.csv --json\n",
      ),
  ).action(
    async (
      files: string[],
      flags: TokenizeFlags & { base?: string | false; validation?: string; mapping?: string; minRecords?: number; method?: MethodType },
    ) => {
      const { checkData, packFiles } = await localData();
      await using packed = await packFiles(files);
      tellLeft(terminal, packed.left);
      const [file] = files;
      const name = files.length === 1 && file !== undefined ? shortPath(file) : packed.name;
      const shown = showBytes(terminal, "reading", await sizeOf(packed.path));
      const checked = await checkData({
        onRead: shown.add,
        file: packed.path,
        name,
        mapping: await mappingOf(flags.mapping),
        validation: flags.validation,
        baseDir: flags.base === false ? undefined : flags.base === undefined ? onlyBase(root) : baseDirOf(root, flags.base),
        tokenize: tokenizeOf(flags),
        method: flags.method,
        minRecords: flags.minRecords,
      }).finally(shown.end);
      const { report, rejections, tokens, problem } = checked;
      if (globals().json) {
        const { firstRejections: _first, allRejections: _all, ...said } = report;
        const list = rejections.map(({ line, code, message }) => ({ line, code, message }));
        writeJson(out, {
          ...said,
          rejections: list,
          ...(tokens === undefined ? {} : { tokens }),
          ...(problem === null ? {} : { problem }),
        });
      } else {
        for (const line of describeData(name, checked, terminal.columns)) writeLine(out, line);
        writeLine(out);
        writeLine(out, problem === null ? green(verdict(report, tokens, flags.method)) : red(`${problem.code}: ${problem.message}`));
      }
      exitWith(problem === null ? exitCodes.ok : exitCodes.failed);
    },
  );

  data
    .command("show")
    .description("print tokenized rows as text, with what is learned marked")
    .argument("<dir>", "folder that `loraline tokenize` wrote")
    .option("--row <n>", "this row, from 0; default: the first 20", wholeNumber(0))
    .option("--base <dir|name>", "folder of the tokenizer, when it is not where it was")
    .action(async (dir: string, flags: { row?: number; base?: string }) => {
      const { showTokens } = await localData();
      const base = flags.base === undefined ? undefined : baseDirOf(root, flags.base);
      const { manifest, rows } = await showTokens(dir, { row: flags.row, baseDir: base });
      if (globals().json) {
        writeJson(out, rows);
        return;
      }
      for (const { row, lines, sequences } of rows) {
        for (const [index, { tokens, supervised, segments, side }] of sequences.entries()) {
          const line = lines[index] ?? 0;
          const [, ...text] = describeSample({ line, format: "", segments });
          const which = side === undefined ? "" : side === 1 ? ", the better answer" : ", the worse answer";
          writeLine(out, dim(`row ${row}, line ${line}${which}: ${tokens} tokens, ${supervised} learned`));
          for (const one of text) writeLine(out, one);
        }
      }
      const more = manifest.totals.rows - rows.length;
      if (flags.row === undefined && more > 0) writeLine(err, dim(`${more} more rows: --row N shows one`));
    });

  data
    .command("import")
    .description("let the server fetch a dataset by its URL or its name on the hub")
    .argument("<source>", "https://…, or organisation/name of a dataset on the hub (HF_ENDPOINT of the server)")
    .option("--file <path>", "one file of the hub's dataset; default: the files of the split, when they are plain to see")
    .option("--config <name>", "subset of the hub's dataset")
    .option("--split <name>", "split of the hub's dataset; default: train")
    .option("--revision <name>", "branch, tag or commit of the hub's dataset; default: main")
    .option("--mapping <mapping.yaml>", mappingHelp)
    .option("--no-follow", "print the dataset's id and return")
    .addHelpText(
      "after",
      "\nThe server fetches over https from public addresses only; its LORALINE_IMPORT_ALLOW=host:port,… names internal mirrors.\n`loraline run` takes https://… and hub:organisation/name in place of a file.\n\nExamples:\n  loraline data import https://example.org/pirate.jsonl.gz\n  loraline data import organisation/name --config en --split train\n",
    )
    .action(async (given: string, flags: Narrowed & { mapping?: string; follow: boolean }) => {
      const api = await connect();
      const started = await importDataset(api, requiredSource(given, flags), await mappingOf(flags.mapping));
      const { datasetId } = started;
      const dataset = flags.follow ? await followDataset(api, datasetId, terminal) : started;
      if (globals().json) writeJson(out, dataset);
      else if (!flags.follow) writeLine(out, datasetId);
      else if (dataset.error === null) {
        const { records, rejections, filename } = dataset;
        writeLine(out, `${green("imported")} ${filename} as ${datasetId}: ${records} records, ${rejections} rejected`);
        writeLine(out, dim(`loraline data report ${datasetId}`));
      } else writeLine(err, red(`${dataset.error.code}: ${dataset.error.message}`));
      exitWith(dataset.error === null ? exitCodes.ok : exitCodes.failed);
    });

  data
    .command("ls")
    .description("list the server's datasets, newest first")
    .option("--after <dataset>", "go on after this one")
    .action(async ({ after }: { after?: string }) => {
      const query = after === undefined ? {} : { after };
      const { data: datasets, has_more: hasMore } = await (await connect()).listDatasets({ query });
      if (globals().json) writeJson(out, datasets);
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
        writeLines(terminal, table([["DATASET", "STATUS", "FILE", "RECORDS", "REJECTED", ""], ...rows]));
        if (hasMore) writeLine(out, `older ones: --after ${datasets.at(-1)?.datasetId ?? ""}`);
      }
    });

  data
    .command("delete")
    .description("delete a dataset for good, with all that was made of it; adapters that were trained on it stay")
    .argument("<dataset>", "its id in `data ls`, or the file's id")
    .action(async (given: string) => {
      const id = given.startsWith("file-") ? given : `file-${given}`;
      const answer = await (await connect()).deleteFile({ file_id: id });
      print(answer, () => whatStays(given, answer.loraline?.stays ?? []));
    });

  data
    .command("report")
    .description("show what the server found in one of its datasets: the page of `data check`")
    .argument("<dataset>", "its id in `data ls`, the file's id, or `last`")
    .action(async (given: string) => {
      const api = await connect();
      const id = given === "last" ? (await api.listDatasets()).data[0]?.datasetId : given;
      if (id === undefined) throw new Failure(exitCodes.notFound, "not_found", "there is no dataset yet.", { param: "dataset" });
      const report = await api.getDatasetReport({ dataset_id: id });
      if (globals().json) writeJson(out, report);
      else
        for (const text of describeData(id, { report, rejections: report.firstRejections, tokens: undefined }, terminal.columns))
          writeLine(out, text);
    });
};

function verdict({ records, kinds }: DatasetReport, tokens: TokenReport | undefined, method: MethodType = "supervised"): string {
  const compared = (kinds.preference ?? 0) + (kinds.ranked ?? 0);
  const labelled = kinds.unpaired ?? 0;
  const trained = method === "supervised" ? records - compared - labelled : compared + (method === "kto" ? labelled : 0);
  const usable = tokens === undefined ? trained : Object.values(tokens.dropped).reduce((left, lost) => left - lost, records);
  return `${usable} of ${records} ${records === 1 ? "record" : "records"} can be trained on${tokens === undefined ? "" : ` with the base ${tokens.base}`}.`;
}
