/** `loraline run` */
import { type AddCommands, defaultBase, examples } from "../command.ts";
import { withSettingFlags } from "./setting-flags.ts";
import { runAndFollow, type RunFlags } from "./start-run.ts";

export const addRunCommand: AddCommands = (program, { connect, globals, terminal, exitWith }) => {
  const command = program
    .command("run")
    .description("train an adapter on a file, and follow until it answers")
    .argument("<files...>", "the dataset: files, a folder, https://… or hub:organisation/name")
    .option("--base <name>", "base to train on (default: the only one there is)")
    .requiredOption("--name <adapter>", "name of the adapter: lowercase letters, digits, dashes")
    .option("--validation <file>", "dataset to evaluate on, instead of held-out rows")
    .option("--mapping <mapping.yaml>", "how the rows of the files are read, instead of by detection (docs/formats.md)")
    .option("-f, --settings <run.yaml>", "sections of the run spec; the flags below count more");
  withSettingFlags(command)
    .option("--no-follow", "print the run's id and return")
    .addHelpText(
      "after",
      examples(
        "loraline run pirate.jsonl --name pirate",
        "loraline run pirate.jsonl --name pirate --epochs 3 --learning-rate 5e-4 --rank 16",
        `loraline run pirate.jsonl --base ${defaultBase} --name pirate -f run.yaml`,
        "loraline run notes/ --name notes",
        "",
        "run.yaml holds sections of the run spec, with PEFT's and transformers' own names:",
        "  lora: { r: 16, lora_alpha: 32, target_modules: all-linear }",
        "  training: { num_train_epochs: 3, learning_rate: 5.0e-4 }",
        "  holdout: 0.1",
        "  promote: manual",
      ),
    )
    .action(async (files: string[], flags: Omit<RunFlags, "files" | "json">) => {
      exitWith(await runAndFollow(await connect(), { files, ...flags, json: globals().json }, terminal));
    });
};
