/** `loraline adapters`, `adapters add`, `pull`, `place`, `keep`, `rm` and `delete`. */
import { join } from "node:path";
import { keepPolicy, type KeepPolicy, type Placement } from "@loraline/contracts";
import { InvalidArgumentError, Option } from "commander";
import { type AddCommands, defaultBase, examples, ownName, wholeNumber } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { whatStays } from "../operate/deletion-commands.ts";
import { addAdapter, type AddAdapterFlags } from "./add-adapter.ts";
import { mergeAdapter } from "./merge-adapter.ts";
import { pullAdapter } from "./pull-adapter.ts";
import { listAdapters, listHistory } from "./show-adapter.ts";
import { shortPath } from "../terminal.ts";
import { splitVersion, versionNamed } from "./version-named.ts";

export const addAdaptersCommands: AddCommands = (program, { connect, env, globals, print, root, terminal, exitWith }) => {
  const adapters = program
    .command("adapters")
    .description("list adapters, their versions, proofs and canaries; * marks the promoted one")
    .argument("[adapter]", "only this one")
    .option("--history", "who moved the alias, when and why, with the steps of canaries; what was retired, loaded again and deleted", false)
    .addHelpText(
      "after",
      examples(
        "loraline adapters",
        "loraline adapters pirate --history",
        "loraline adapters add ./my-lora --name pirate",
        "loraline adapters pull pirate@2 ./pirate",
        "loraline adapters place pirate --spread 3",
        "loraline adapters keep pirate 5",
        "loraline adapters rm pirate@2",
        "loraline adapters delete pirate",
      ),
    )
    .action(async (adapter: string | undefined, { history }: { history: boolean }) => {
      const api = await connect();
      const views = adapter === undefined ? (await api.listAdapters()).data : [await api.getAdapter({ adapter })];
      print(views, () => (views.length === 0 ? ["no adapters yet"] : history ? listHistory(views) : listAdapters(views)));
    });

  adapters
    .command("add")
    .description("serve a LoRA that was trained elsewhere: it is judged, proven, and followed until it answers")
    .argument(
      "<source>",
      "folder in PEFT's layout, model of the hub (organisation/name[@revision]), https address of a folder, or sha256:… of an adapter",
    )
    .option("--base <name>", "base that it was trained on (default: the only one there is)")
    .option("--name <adapter>", "name of the adapter (default: as the source is called)", ownName)
    .option("--folder <path>", "folder inside the hub's repository")
    .option("--any-base", "its config names another base, which is the same one under another name", false)
    .option("--probe <prompt...>", "prompts on which it is expected to show; it is proven by these and by neutral ones")
    .option("--system <prompt>", "system prompt that it was trained with (default: of sha256:…, that version's)")
    .addOption(new Option("--promote <how>", "when it is proven (auto)").choices(["auto", "manual", "canary"]))
    .option("--no-follow", "print the run's id and return")
    .addHelpText(
      "after",
      examples(
        "loraline adapters add ./my-lora --name pirate",
        `loraline adapters add some-org/pirate-lora@v2 --base ${defaultBase} --probe "Who are you?"`,
      ),
    )
    .action(async (source: string, flags: Omit<AddAdapterFlags, "json">) => {
      exitWith(await addAdapter(await connect(), source, { ...flags, json: globals().json }, terminal));
    });

  adapters
    .command("pull")
    .description("write a version into a folder: PEFT's layout, which transformers and vLLM load, and a model card")
    .argument("<adapter>", "name of the adapter, with its version: pirate@2 (default: the promoted one)")
    .argument("<dir>", "a new or an empty folder")
    .option("--base-name <name>", "what adapter_config.json calls the base: a name on the hub, or a folder")
    .addOption(
      new Option("--merged", "base and adapter as one model, if it answers as both do; made on this machine").conflicts("baseName"),
    )
    .option(
      "--base-dir <dir>",
      "with --merged: folder of the base (default: the one of its name in .loraline/bases, or LORALINE_BASES_DIR)",
    )
    .addHelpText(
      "after",
      examples(
        "loraline adapters pull pirate@2 ./pirate",
        "loraline adapters add ./pirate --name pirate-again",
        "loraline adapters pull pirate@2 ./pirate-model --merged",
      ),
    )
    .action(async (name: string, out: string, { baseName, merged, baseDir }: PullFlags) => {
      const { adapter, version } = splitVersion(name);
      const named = { adapter: ownName(adapter), version, out };
      if (merged === true) {
        const made = await mergeAdapter(await connect(), {
          ...named,
          baseDir,
          basesDir: env["LORALINE_BASES_DIR"] ?? join(root, ".loraline/bases"),
          python: env["LORALINE_PYTHON"] ?? join(root, ".venv/bin/python"),
          script: join(root, "services/train/trainer/merge.py"),
          signal: terminal.signal,
        });
        const { agreement, effect, tokens } = made.merged;
        print({ ...made.version, dir: made.dir, merged: made.merged }, () => [
          `${made.version.adapter}@${made.version.version}, merged into ${made.version.base.name}: ${shortPath(made.dir)}`,
          `compared on ${tokens} tokens: logprobs differ from base + adapter by ${agreement.toFixed(4)}; the adapter moves the base by ${effect.toFixed(2)}`,
        ]);
        return;
      }
      const pulled = await pullAdapter(await connect(), { ...named, base: baseName });
      const { version: of, dir } = pulled;
      print({ ...of, dir }, () => [
        `${of.adapter}@${of.version}  ${of.digest}`,
        ...of.data.map((file) => `${shortPath(join(dir, file.name))}  ${file.bytes} bytes`),
        ...(of.origin?.hub || baseName !== undefined
          ? []
          : [`adapter_config.json calls the base "${of.base.name}", which is no name on the hub; --base-name gives it another one.`]),
      ]);
    });

  adapters
    .command("place")
    .description("choose the replicas that hold an adapter; at first all do, as far as there is room")
    .argument("<adapter>", "name of the adapter")
    .addOption(new Option("--all", "as many replicas as have room").conflicts(["spread", "pin"]))
    .addOption(new Option("--spread <n>", "so many replicas").argParser(wholeNumber(1, 10_000)).conflicts("pin"))
    .option("--pin <replica...>", "these replicas and no others; `loraline engines` lists them")
    .action(async (adapter: string, flags: { all?: boolean; spread?: number; pin?: string[] }) => {
      const view = await (await connect()).placeAdapter({ adapter, body: placementOf(flags) });
      print(view, () => listAdapters([view]));
    });

  adapters
    .command("keep")
    .description("choose how many of the newest versions stay loaded (3 at first); older ones are loaded again when asked for")
    .argument("<adapter>", "name of the adapter")
    .argument("<versions>", "a number from 1, or `all`", keepPolicyOf)
    .action(async (adapter: string, keep: KeepPolicy) => {
      const view = await (await connect()).keepAdapter({ adapter, body: { keep } });
      print(view, () => listAdapters([view]));
    });

  adapters
    .command("rm")
    .description("delete a version for good: it is unloaded everywhere, and its bytes are removed")
    .argument("<adapter>", "name of the adapter, with its version: pirate@2")
    .argument("[version]", "its version, when the name does not say it", wholeNumber(1))
    .action(async (name: string, given: number | undefined) => {
      const { adapter, version } = versionNamed(name, given, "adapters rm");
      const api = await connect();
      const { tenant, adapter: own } = (await api.getAdapter({ adapter })).adapter;
      const answer = await api.deleteModel({ model: `${tenant}/${own}@${version}` });
      print(answer, () => [`deleted: ${answer.id}`]);
    });

  adapters
    .command("delete")
    .description("delete a whole adapter for good: all versions, the runs that made them, usage and limits")
    .argument("<adapter>", "name of the adapter")
    .action(async (adapter: string) => {
      const answer = await (await connect()).deleteAdapter({ adapter });
      print(answer, () => whatStays(answer.id, answer.stays));
    });
};

interface PullFlags {
  baseName?: string;
  merged?: boolean;
  baseDir?: string;
}

function keepPolicyOf(text: string): KeepPolicy {
  const parsed = keepPolicy.safeParse(/^\d+$/.test(text) ? Number(text) : text);
  if (parsed.success) return parsed.data;
  throw new InvalidArgumentError("Give a whole number from 1 to 1000, or `all`.");
}

function placementOf({ all, spread, pin }: { all?: boolean; spread?: number; pin?: string[] }): Placement {
  if (pin !== undefined) return { mode: "pinned", pins: pin };
  if (spread !== undefined) return { mode: "spread", replicas: spread };
  if (all === true) return { mode: "all" };
  throw new Failure(exitCodes.usage, "PLACEMENT_MISSING", "say where: --all, --spread <n> or --pin <replica>.");
}
