/** The program `loraline`: its commands in groups, and the options that all of them have. */
import { join } from "node:path";
import { inspect } from "node:util";
import { createApiClient } from "@loraline/client";
import { version } from "@loraline/contracts";
import { type Command, CommanderError, Option } from "commander";
import { addAdaptersCommands } from "./adapters/adapters-commands.ts";
import { addChatCommand } from "./adapters/chat-command.ts";
import { addPromoteCommands } from "./adapters/promote-commands.ts";
import { type AddCommands, type CommandTools, type Context, type Globals, ProgramCommand } from "./command.ts";
import { addDataCommands } from "./data/data-commands.ts";
import { addTokenizeCommand } from "./data/tokenize-command.ts";
import { exitCodes, failureOf } from "./failure.ts";
import { findServer } from "./find-server.ts";
import { addCompletionCommand } from "./help/completion-command.ts";
import { addExplainCommand } from "./help/explain-command.ts";
import { addVersionCommand } from "./help/version-command.ts";
import { addAuditCommand } from "./operate/audit-command.ts";
import { addDeletionCommands } from "./operate/deletion-commands.ts";
import { addDlqCommands } from "./operate/dlq-commands.ts";
import { addEnginesCommand } from "./operate/engines-command.ts";
import { addEnsureStreamsCommand } from "./operate/ensure-streams-command.ts";
import { addKeysCommands } from "./operate/keys-commands.ts";
import { addLimitsCommands } from "./operate/limits-commands.ts";
import { addStorageCommand } from "./operate/storage-command.ts";
import { addUsageCommand } from "./operate/usage-command.ts";
import { addRunCommand } from "./runs/run-command.ts";
import { addCompareCommands } from "./compare/compare-commands.ts";
import { addRunsCommands } from "./runs/runs-commands.ts";
import { addBackupCommands } from "./server/backup-commands.ts";
import { addBasesCommands } from "./server/bases-command.ts";
import { addConsoleCommand } from "./server/console-command.ts";
import { addDemoCommand } from "./server/demo-command.ts";
import { addNatsContextCommand } from "./server/nats-context-command.ts";
import { addStatusCommands } from "./server/status-commands.ts";
import { addUpCommand } from "./server/up-command.ts";
import { dim, red, shaped, writeJson, writeLine, writeLines } from "./terminal.ts";

/** A new command is one file beside these, and its line here. Groups and commands stand in `--help` in this order. */
const groups: Readonly<Record<string, readonly AddCommands[]>> = {
  "A server on this machine:": [
    addUpCommand,
    addConsoleCommand,
    addNatsContextCommand,
    addStatusCommands,
    addBasesCommands,
    addBackupCommands,
    addDemoCommand,
  ],
  "Train and ask:": [addRunCommand, addRunsCommands, addCompareCommands, addChatCommand],
  "Datasets:": [addDataCommands, addTokenizeCommand],
  "Adapters and their versions:": [addAdaptersCommands, addPromoteCommands],
  "For operators and admins:": [
    addEnginesCommand,
    addKeysCommands,
    addLimitsCommands,
    addUsageCommand,
    addStorageCommand,
    addDeletionCommands,
    addDlqCommands,
    addAuditCommand,
    addEnsureStreamsCommand,
  ],
  "About this program:": [addExplainCommand, addVersionCommand, addCompletionCommand],
};

const footer = `
Finding the server: --url and --key, or LORALINE_URL and LORALINE_API_KEY, or the server that runs on the state directory.

Exit codes: 0 done · 1 the run failed, or the server refused · 2 wrong usage or file · 3 the server cannot be reached or is not ready
            4 no such thing · 5 API key missing or refused · 130 interrupted

Examples:
  loraline up
  loraline run samples/persona.jsonl --name persona
  loraline chat local/persona "Who are you?"
`;

/** @param exitWith - gets the command's exit code. */
export function createProgram(context: Context, exitWith: (code: number) => void): Command {
  const { root, terminal } = context;
  const { out, err } = terminal;
  const program = new ProgramCommand("loraline");
  program
    .description("A LoRA production line: a dataset goes in, a proven adapter comes out and answers.")
    .version(version, "-V, --version", "print the version of this program")
    .addOption(new Option("--url <url>", "the server's address").env("LORALINE_URL"))
    .addOption(new Option("--key <key>", "API key").env("LORALINE_API_KEY"))
    .addOption(
      new Option("--state <dir>", "state directory of the server on this machine")
        .env("LORALINE_STATE")
        .default(join(root, ".loraline/state"), ".loraline/state"),
    )
    .option("--json", "print JSON instead of words", false)
    .addHelpText("after", footer)
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError("(--help shows how)")
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void out.write(text),
      writeErr: (text) => void err.write(text),
      outputError: (text, write) => write(text.replace(/^error: /, "loraline: usage error: ")),
    });

  const globals = (): Globals => program.opts<Globals>();
  const tools: CommandTools = {
    ...context,
    globals,
    connect: async () => createApiClient(await findServer(globals())),
    print(value, lines) {
      if (globals().json) writeJson(out, value);
      else writeLines(terminal, lines());
    },
    exitWith,
  };
  for (const [heading, commands] of Object.entries(groups)) {
    program.commandsGroup(heading);
    for (const add of commands) add(program, tools);
  }
  program.helpCommand("help [command]", "show how a command is used");
  return program;
}

/**
 * Runs one command, and tells what went wrong with it.
 * @param args - as typed, without the program's name.
 * @returns the exit code.
 */
export async function runProgram(args: readonly string[], context: Context): Promise<number> {
  const { out, err, signal } = context.terminal;
  let exitCode: number = exitCodes.ok;
  const program = createProgram(context, (code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync(args, { from: "user" });
    return exitCode;
  } catch (error) {
    // Commander has told it already.
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
    if (signal.aborted) return exitCodes.interrupted;
    const { message, code, param, exitCode: failed } = failureOf(error);
    if (program.opts<Globals>().json) writeJson(out, { error: { code, message, param } });
    else
      for (const text of shaped([`${red("loraline:")} ${message} ${dim(`[${code}]`)}`], context.terminal.width ?? Infinity))
        writeLine(err, text);
    if (context.env.LORALINE_DEBUG) writeLine(err, inspect(error));
    return failed;
  }
}
