/**
 * The commands and their words. Everything of the process comes in through `Context`. What only `up` and `demo` need, the whole
 * line, is loaded only then.
 */
import { join, resolve } from "node:path";
import type { Placement } from "@loraline/contracts";
import { Command, InvalidArgumentError, Option } from "commander";
import { addAdapterCommand, type AddAdapterFlags } from "./adapters/add-adapter.ts";
import { addAdminCommands } from "./line/admin-commands.ts";
import { chatCommand } from "./adapters/chat.ts";
import { addDataCommands } from "./data/data-commands.ts";
import { connectLine, findAddress, type LineClient } from "./connect-line.ts";
import { exitCodes, Failure } from "./failure.ts";
import { listAdapters, listHistory } from "./adapters/show-adapter.ts";
import { listEngines } from "./adapters/show-engine.ts";
import { describeRun, listRuns } from "./runs/show-run.ts";
import { followCommand, runCommand, showRun } from "./runs/start-run.ts";
import { table, type Terminal, writeJson, writeLine } from "./terminal.ts";
import { waterfall } from "./runs/waterfall.ts";

export interface Context {
  /** Of the checkout. */
  root: string;
  env: Record<string, string | undefined>;
  pid: number;
  /** Path of this Node. */
  node: string;
  terminal: Terminal;
}

const defaultBase = "smollm2-135m-instruct";

const footer = `
Finding the line: --url and --key, or LORALINE_URL and LORALINE_API_KEY, or the line that runs on the state directory.

Exit codes: 0 done · 1 the run failed, or the line refused · 2 wrong usage or file · 3 the line cannot be reached or is not ready
            4 no such thing · 5 API key missing or refused · 130 interrupted

Examples:
  loraline up
  loraline run samples/persona.jsonl --base ${defaultBase} --name persona
  loraline chat local/persona "Who are you?"
`;

const wholeNumber =
  (least: number, most = Number.MAX_SAFE_INTEGER) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isInteger(value) || value < least || value > most) {
      throw new InvalidArgumentError(`Give a whole number from ${least}${most === Number.MAX_SAFE_INTEGER ? "" : ` to ${most}`}.`);
    }
    return value;
  };
const decimal = (text: string): number => {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value) || value < 0) throw new InvalidArgumentError("Give a number from 0.");
  return value;
};

const numbers = (text: string): number[] => text.split(",").map((part) => decimal(part));

/** @param onExit - gets the command's exit code. */
export function createProgram({ root, env, pid, node, terminal }: Context, onExit: (code: number) => void): Command {
  const { out } = terminal;
  const defaultState = join(root, ".loraline/state");
  const program = new Command("loraline");
  program
    .description("A LoRA production line: a dataset goes in, a proven adapter comes out and answers.")
    .addOption(new Option("--url <url>", "the line's address").env("LORALINE_URL"))
    .addOption(new Option("--key <key>", "API key").env("LORALINE_API_KEY"))
    .addOption(
      new Option("--state <dir>", "state directory of the line on this machine")
        .env("LORALINE_STATE")
        .default(defaultState, ".loraline/state"),
    )
    .option("--json", "print JSON instead of words", false)
    .addHelpText("after", footer)
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError("(--help shows how)")
    .exitOverride()
    .configureOutput({ writeOut: (text) => void out.write(text), writeErr: (text) => void terminal.err.write(text) });

  interface Globals {
    url?: string;
    key?: string;
    state: string;
    json: boolean;
  }
  const globals = (): Globals => program.opts<Globals>();
  const line = async (): Promise<LineClient> => connectLine(await findAddress(globals()));
  /** Prints a value as JSON, or as lines. */
  const print = (value: unknown, lines: () => readonly string[]): void => {
    if (globals().json) writeJson(out, value);
    else for (const text of lines()) writeLine(out, text);
  };
  const command = (usage: string, description: string, examples: readonly string[]): Command => {
    const made = program.command(usage).description(description);
    if (examples.length > 0) made.addHelpText("after", `\nExamples:\n${examples.map((example) => `  ${example}`).join("\n")}\n`);
    return made;
  };

  /** Options of the two commands that start a line. */
  const lineOptions = (made: Command): Command =>
    made
      .addOption(new Option("--base <name>", "base that the engine serves").env("LORALINE_BASE").default(defaultBase))
      .addOption(
        new Option("--bases <dir>", "where the bases are")
          .env("LORALINE_BASES_DIR")
          .default(join(root, ".loraline/bases"), ".loraline/bases"),
      )
      .addOption(new Option("--slots <n>", "trainings at once").env("LORALINE_SLOTS").default(1).argParser(wholeNumber(1)))
      .addOption(new Option("--tenant <name>", "tenant of the line's API key").env("LORALINE_TENANT").default("local"));
  interface LineFlags {
    base: string;
    bases: string;
    slots: number;
    tenant: string;
  }
  const startOptions = ({ base, bases, slots, tenant }: LineFlags) => ({
    basesDir: resolve(bases),
    cacheDir: join(root, ".loraline/cache"),
    base,
    tenant,
    slots,
    node,
    python: env.LORALINE_PYTHON ?? join(root, ".venv/bin/python"),
    nats: env.LORALINE_NATS_SERVER ?? join(root, ".venv/bin/nats-server"),
    env,
    pid,
    otlpEndpoint: env.OTEL_EXPORTER_OTLP_ENDPOINT,
    logLevel: env.LOG_LEVEL,
  });

  lineOptions(
    command("up", "run the whole line on this machine, in the foreground", [
      "loraline up --port 9000",
      "loraline up --state /data/loraline",
    ]),
  )
    .addOption(new Option("--host <address>", "address to listen on").env("LORALINE_HOST").default("127.0.0.1"))
    .addOption(
      new Option("--port <n>", "port to listen on; 0: any free one").env("LORALINE_PORT").default(8420).argParser(wholeNumber(0, 65_535)),
    )
    .action(async (flags: LineFlags & { host: string; port: number }) => {
      const { state, json } = globals();
      const { upCommand } = await import("./line/up.ts");
      onExit(await upCommand({ ...startOptions(flags), stateDir: resolve(state), host: flags.host, port: flags.port, json }, terminal));
    });

  lineOptions(
    command("demo", "train the sample persona and check every claim; its state is made anew each time", ["loraline demo --json"]),
  ).action(async (flags: LineFlags) => {
    const { demoCommand } = await import("./line/demo.ts");
    const demoDir = join(root, ".loraline/demo");
    const options = { ...startOptions(flags), stateDir: join(demoDir, "state"), host: "127.0.0.1", port: 0 };
    onExit(await demoCommand({ ...options, demoDir, sample: join(root, "samples/persona.jsonl"), json: globals().json }, terminal));
  });

  command("run", "train an adapter on a file, and follow until it answers", [
    `loraline run pirate.jsonl --base ${defaultBase} --name pirate`,
    `loraline run pirate.jsonl --base ${defaultBase} --name pirate -f run.yaml`,
    "",
    "run.yaml holds sections of the run spec, with PEFT's and transformers' own names:",
    "  lora: { r: 16, lora_alpha: 32, target_modules: all-linear }",
    "  training: { num_train_epochs: 3, learning_rate: 5.0e-4 }",
    "  holdout: 0.1",
    "  promote: manual",
  ])
    .argument("<file>", "the dataset: a file, https://… or hub:organisation/name")
    .requiredOption("--base <name>", "base to train on")
    .requiredOption("--name <adapter>", "name of the adapter: lowercase letters, digits, dashes")
    .option("--validation <file>", "dataset to evaluate on, instead of held-out rows")
    .option("--mapping <mapping.yaml>", "how the rows of the files are read, instead of by detection (docs/formats.md)")
    .option("-f, --settings <run.yaml>", "sections of the run spec")
    .option("--no-follow", "print the run's id and return")
    .action(
      async (
        file: string,
        flags: { base: string; name: string; validation?: string; mapping?: string; settings?: string; follow: boolean },
      ) => {
        onExit(await runCommand(await line(), { file, ...flags, json: globals().json }, terminal));
      },
    );

  command("runs", "list runs, newest first", []).action(async () => {
    const runs = (await (await line()).runs()).toSorted((a, b) => (a.runId < b.runId ? 1 : -1));
    print(runs, () => (runs.length === 0 ? ["no runs yet"] : listRuns(runs)));
  });

  command("show", "show a run: proof, version, tokens, evaluation", ["loraline show last", "loraline show 01J9… --follow"])
    .argument("<run>", "id of the run, its unique beginning or end, or `last`")
    .option("--follow", "until it is over", false)
    .action(async (id: string, { follow }: { follow: boolean }) => {
      const client = await line();
      const run = await findRun(client, id);
      if (follow) {
        onExit(await followCommand(client, run.runId, globals(), terminal));
        return;
      }
      await showRun(client, run, globals(), terminal);
    });

  command("cancel", "stop a run", ["loraline cancel last"])
    .argument("<run>", "id of the run, or `last`")
    .action(async (id: string) => {
      const client = await line();
      const { runId } = await findRun(client, id);
      await client.openai.fineTuning.jobs.cancel(`ftjob-${runId}`);
      const run = await client.run(runId);
      print(run, () => describeRun(run, undefined));
    });

  const adaptersCommand = command("adapters", "list adapters, their versions, proofs and canaries; * marks the promoted one", [
    "loraline adapters",
    "loraline adapters pirate --history",
    "loraline adapters add ./my-lora --name pirate",
    "loraline adapters place pirate --spread 3",
  ]);
  adaptersCommand
    .argument("[adapter]", "only this one")
    .option("--history", "who moved the alias, when and why, with the steps of canaries", false)
    .action(async (adapter: string | undefined, { history }: { history: boolean }) => {
      const client = await line();
      const views = adapter === undefined ? await client.adapters() : [await client.adapter(adapter)];
      print(views, () => (views.length === 0 ? ["no adapters yet"] : history ? listHistory(views) : listAdapters(views)));
    });

  adaptersCommand
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
    .addOption(new Option("--promote <how>", "when it is proven (auto)").choices(["auto", "manual", "canary"]))
    .option("--no-follow", "print the run's id and return")
    .addHelpText(
      "after",
      `
Examples:
  loraline adapters add ./my-lora --name pirate
  loraline adapters add some-org/pirate-lora@v2 --base ${defaultBase} --probe "Who are you?"
`,
    )
    .action(async (source: string, flags: Omit<AddAdapterFlags, "json">) => {
      onExit(await addAdapterCommand(await line(), source, { ...flags, json: globals().json }, terminal));
    });

  adaptersCommand
    .command("place")
    .description("choose the replicas that hold an adapter; at first all do, as far as there is room")
    .argument("<adapter>", "name of the adapter")
    .addOption(new Option("--all", "as many replicas as have room").conflicts(["spread", "pin"]))
    .addOption(new Option("--spread <n>", "so many replicas").argParser(wholeNumber(1, 10_000)).conflicts("pin"))
    .option("--pin <replica...>", "these replicas and no others; `loraline engines` lists them")
    .action(async (adapter: string, { all, spread, pin }: { all?: boolean; spread?: number; pin?: string[] }) => {
      const placement: Placement | undefined =
        pin !== undefined
          ? { mode: "pinned", pins: pin }
          : spread !== undefined
            ? { mode: "spread", replicas: spread }
            : all === true
              ? { mode: "all" }
              : undefined;
      if (placement === undefined)
        throw new Failure(exitCodes.usage, "PLACEMENT_MISSING", "say where: --all, --spread <n> or --pin <replica>.");
      const view = await (await line()).place(adapter, placement);
      print(view, () => listAdapters([view]));
    });

  command("engines", "list engines, their replicas, and what would make them serve better", ["loraline engines"]).action(async () => {
    const engines = await (await line()).engines();
    print(engines, () => (engines.length === 0 ? ["no engines yet"] : listEngines(engines)));
  });

  interface CanaryFlags {
    canary: boolean;
    steps?: number[];
    interval?: number;
    minRequests?: number;
    maxErrorRate?: number;
    maxLatencyRatio?: number;
    maxLossIncrease?: number;
  }
  command("promote", "move the alias of an adapter to a version, at once or step by step", [
    "loraline promote pirate@2",
    "loraline promote pirate@2 --canary",
    "loraline promote pirate@2 --canary --steps 5,25,50 --interval 60 --max-error-rate 0.01",
  ])
    .argument("<adapter>", "name of the adapter, with its version: pirate@2")
    .argument("[version]", "its version, when the name does not say it", wholeNumber(1))
    .option("--canary", "give it a growing share of the users, and take it back when it does worse", false)
    .option("--steps <list>", "with --canary: percent of the users, step by step (5,25,50)", numbers)
    .option("--interval <seconds>", "with --canary: shortest time of a step (60)", decimal)
    .option("--min-requests <n>", "with --canary: answers that a step takes at least (50)", wholeNumber(0))
    .option("--max-error-rate <share>", "with --canary: failed answers per answer above the promoted version's (0.02)", decimal)
    .option("--max-latency-ratio <times>", "with --canary: p95 of the first byte against the promoted version's (2)", decimal)
    .option("--max-loss-increase <nats>", "with --canary: held-out loss above the promoted version's (not asked)", decimal)
    .action(async (name: string, given: number | undefined, { canary, ...flags }: CanaryFlags) => {
      const { adapter, version } = versionNamed(name, given);
      const { steps, interval, minRequests, maxErrorRate, maxLatencyRatio, maxLossIncrease } = flags;
      if (!canary && Object.keys(flags).length > 0) {
        throw new Failure(exitCodes.usage, "CANARY_MISSING", "settings of a canary need --canary.", { param: "--canary" });
      }
      const settings = {
        ...(steps === undefined ? {} : { steps }),
        ...(interval === undefined ? {} : { interval_s: interval }),
        ...(minRequests === undefined ? {} : { min_requests: minRequests }),
        ...(maxErrorRate === undefined ? {} : { max_error_rate: maxErrorRate }),
        ...(maxLatencyRatio === undefined ? {} : { max_latency_ratio: maxLatencyRatio }),
        ...(maxLossIncrease === undefined ? {} : { max_loss_increase: maxLossIncrease }),
      };
      const view = await (await line()).promote(adapter, version, canary ? settings : undefined);
      print(view, () => listAdapters([view]));
    });

  command("rollback", "move the alias back, or end a canary", ["loraline rollback pirate", "loraline rollback pirate --to 1"])
    .argument("<adapter>", "name of the adapter")
    .option("--to <version>", "this version; without it: the one before, or, while a canary is under way, the promoted one", wholeNumber(1))
    .action(async (adapter: string, { to }: { to?: number }) => {
      const view = await (await line()).rollback(adapter, to);
      print(view, () => listAdapters([view]));
    });

  command("chat", "ask a model; without a prompt: a conversation", [
    `loraline chat ${defaultBase} "Who are you?"`,
    'loraline chat local/persona@1 "Who are you?"',
    "echo 'Who are you?' | loraline chat local/persona --json",
  ])
    .argument("<model>", "alias (local/persona), version (local/persona@1) or base")
    .argument("[prompt]", "what to ask; default: standard input, or a conversation on a terminal")
    .option("--system <text>", "system prompt")
    .option("--max-tokens <n>", "longest answer", wholeNumber(1), 128)
    .option("--temperature <t>", "0: always the likeliest word", decimal, 0)
    .action(async (model: string, prompt: string | undefined, flags: { system?: string; maxTokens: number; temperature: number }) => {
      onExit(await chatCommand(await line(), { model, prompt, ...flags, json: globals().json }, terminal));
    });

  command("trace", "show where a run's time went", ["loraline trace last"])
    .argument("<run>", "id of the run, or `last`")
    .action(async (id: string) => {
      const client = await line();
      const { runId } = await findRun(client, id);
      const trace = await client.trace(runId);
      print(trace, () => [`trace ${trace.traceId}`, ...waterfall(trace.spans, terminal.columns)]);
    });

  const dlq = command("dlq", "messages that could not be processed", []);
  dlq
    .command("ls")
    .description("list dead letters, newest first")
    .action(async () => {
      const letters = await (await line()).letters();
      print(letters, () =>
        letters.length === 0
          ? ["no dead letters"]
          : table([
              ["SEQ", "CONSUMER", "SUBJECT", "CODE", "REASON"],
              ...letters.map((letter) => [String(letter.seq), letter.durable, letter.subject, letter.code, letter.message]),
            ]),
      );
    });
  dlq
    .command("show")
    .description("show one dead letter with its message")
    .argument("<seq>", "its number in `dlq ls`", wholeNumber(1))
    .action(async (seq: number) => writeJson(out, await (await line()).letter(seq)));
  dlq
    .command("redrive")
    .description("put a dead letter's message back on its stream")
    .argument("<seq>", "its number in `dlq ls`", wholeNumber(1))
    .action(async (seq: number) => {
      const letter = await (await line()).redrive(seq);
      print(letter, () => [`redriven: ${letter.subject}`]);
    });

  const data = command("data", "datasets in files: look at them before they cost a training", []);
  addDataCommands(program, data, { root, terminal, line, json: () => globals().json, onExit });

  addAdminCommands(program, { env, line, print });

  command("ensure-streams", "create or update streams, consumers, buckets and the object store on a NATS of your own; never deletes", [
    "loraline ensure-streams --nats nats://nats:4222 --replicas 3",
  ])
    .addOption(new Option("--nats <url>", "address of NATS").env("NATS_URL").makeOptionMandatory())
    .addOption(new Option("--replicas <n>", "copies of each stream").env("NATS_REPLICAS").argParser(wholeNumber(1)).default(1))
    .action(async ({ nats, replicas }: { nats: string; replicas: number }) => {
      const { applyStreams } = await import("@loraline/local");
      await applyStreams({ natsUrl: nats, replicas, user: env.NATS_USER, pass: env.NATS_PASS, token: env.NATS_TOKEN });
      print({ nats, replicas }, () => [`streams, consumers, buckets and the object store are in place on ${nats}`]);
    });

  return program;
}

/** `local/pirate` and `pirate` name the same adapter of the key's tenant. */
const ownName = (name: string): string => name.replace(/^[^/]*\//, "");

/** `pirate@2`, or `pirate` and `2`. */
function versionNamed(name: string, given: number | undefined): { adapter: string; version: number } {
  const [, adapter = name, own] = /^(.*)@([1-9]\d{0,8})$/.exec(name) ?? [];
  const version = own === undefined ? given : Number(own);
  if (version === undefined || (given !== undefined && given !== version)) {
    throw new Failure(exitCodes.usage, "VERSION_MISSING", `which version of ${adapter}? Say \`loraline promote ${adapter}@VERSION\`.`, {
      param: "version",
    });
  }
  return { adapter, version };
}

async function findRun(line: LineClient, given: string) {
  const id = given.replace(/^ftjob-/, "").toUpperCase();
  if (/^[0-9A-Z]{26}$/.test(id)) return line.run(id);
  const runs = (await line.runs()).toSorted((a, b) => (a.runId < b.runId ? 1 : -1));
  const found = given === "last" ? runs.slice(0, 1) : runs.filter(({ runId }) => runId.startsWith(id) || runId.endsWith(id));
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  throw new Failure(
    exitCodes.notFound,
    found.length === 0 ? "not_found" : "AMBIGUOUS",
    found.length === 0
      ? `there is no run "${given}". \`loraline runs\` lists them.`
      : `"${given}" fits ${found.length} runs. Give more of the id.`,
    { param: "run" },
  );
}
