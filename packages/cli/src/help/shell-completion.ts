/**
 * Pure: scripts that complete the words of a program in a shell, from commander's own description of it.
 *
 * All three work alike. They walk over the words before the cursor to find the command that these name: `$at`, with a space before
 * each word, such as " adapters add". A word after an option that takes a value is that value. Then they offer what fits there.
 */
import type { Command, Option } from "commander";

interface OptionWords {
  short: string | undefined;
  long: string | undefined;
  description: string;
  takesValue: boolean;
  /** Of its value; empty: any, so files are offered. */
  choices: readonly string[];
}
interface CommandWords {
  /** Such as " adapters add"; "" is the program itself. */
  at: string;
  commands: readonly { name: string; aliases: readonly string[]; description: string }[];
  options: readonly OptionWords[];
  /** Of its first argument. */
  choices: readonly string[];
  takesArguments: boolean;
}

/** The program and all its commands. */
function commandWords(command: Command, at = ""): CommandWords[] {
  const help = command.createHelp();
  const commands = help.visibleCommands(command);
  const own: CommandWords = {
    at,
    commands: commands.map((sub) => ({ name: sub.name(), aliases: sub.aliases(), description: help.subcommandDescription(sub) })),
    options: help.visibleOptions(command).map(optionWords),
    choices: command.registeredArguments[0]?.argChoices ?? [],
    takesArguments: command.registeredArguments.length > 0,
  };
  return [own, ...command.commands.flatMap((sub) => commandWords(sub, `${at} ${sub.name()}`))];
}

const optionWords = ({ short, long, description, required, optional, argChoices }: Option): OptionWords => ({
  short,
  long,
  description,
  takesValue: required || optional,
  choices: argChoices ?? [],
});

const namesOf = ({ short, long }: OptionWords): string[] => [long, short].filter((name) => name !== undefined);

interface Words {
  name: string;
  all: readonly CommandWords[];
  /** Options of the program itself, which every command has. */
  globals: readonly OptionWords[];
  /** Names of all options that take a value. */
  valued: readonly string[];
  /** Each way to write a command, behind the command it stands in, and the command that it names. */
  steps: readonly { written: string; at: string }[];
}

function wordsOf(program: Command): Words {
  const all = commandWords(program);
  const globals = all[0]?.options ?? [];
  const options = all.flatMap((command) => command.options);
  return {
    name: program.name(),
    all,
    globals,
    valued: [...new Set(options.filter(({ takesValue }) => takesValue).flatMap(namesOf))],
    steps: all.flatMap(({ at, commands }) =>
      commands.flatMap(({ name, aliases }) => [name, ...aliases].map((word) => ({ written: `${at} ${word}`, at: `${at} ${name}` }))),
    ),
  };
}

/** Every option that can stand behind a command. */
const optionsAt = ({ at, options }: CommandWords, globals: readonly OptionWords[]): OptionWords[] => {
  const own = new Set(options.flatMap(namesOf));
  return at === "" ? [...options] : [...options, ...globals.filter((option) => !namesOf(option).some((name) => own.has(name)))];
};

/** What stands before the cursor and has its own values: " adapters add:--promote" to auto, manual, canary. */
const valuesAt = ({ all }: Words): [string, readonly string[]][] =>
  all.flatMap(({ at, options }) =>
    options
      .filter(({ choices }) => choices.length > 0)
      .flatMap((option) => namesOf(option).map((name): [string, readonly string[]] => [`${at}:${name}`, option.choices])),
  );

/** In single quotes; the same in all three shells but for the quote itself. */
const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;
const lines = (...parts: readonly (string | readonly string[])[]): string => `${parts.flat().join("\n")}\n`;

function bash(program: Command): string {
  const words = wordsOf(program);
  const { name, all, globals, valued, steps } = words;
  return lines(
    `# bash completion for ${name}, printed by \`${name} completion bash\``,
    `_${name}() {`,
    `  local word=\${COMP_WORDS[COMP_CWORD]} at="" before="" commands="" options="" i`,
    `  local valued=${quoted(` ${valued.join(" ")} `)}`,
    "  COMPREPLY=()",
    "  for ((i = 1; i < COMP_CWORD; i++)); do",
    `    if [[ -n $before && $valued == *" $before "* ]]; then before=""; continue; fi`,
    "    before=${COMP_WORDS[i]}",
    `    case "$at $before" in`,
    steps.map(({ written, at }) => `      ${quoted(written)}) at=${quoted(at)} ;;`),
    "    esac",
    "  done",
    `  case "$at:$before" in`,
    valuesAt(words).map(
      ([before, choices]) => `    ${quoted(before)}) COMPREPLY=($(compgen -W ${quoted(choices.join(" "))} -- "$word")); return ;;`,
    ),
    "  esac",
    "  # Without an answer of ours, bash offers files.",
    `  if [[ -n $before && $valued == *" $before "* ]]; then return; fi`,
    `  case "$at" in`,
    all.map((command) => {
      const named = [...command.commands.map((sub) => sub.name), ...command.choices].join(" ");
      return `    ${quoted(command.at)}) commands=${quoted(named)} options=${quoted(optionsAt(command, globals).flatMap(namesOf).join(" "))} ;;`;
    }),
    "  esac",
    "  if [[ $word == -* ]]; then commands=$options; fi",
    `  COMPREPLY=($(compgen -W "$commands" -- "$word"))`,
    "}",
    `complete -o default -F _${name} ${name}`,
  );
}

function zsh(program: Command): string {
  const words = wordsOf(program);
  const { name, all, globals, valued, steps } = words;
  const described = (word: string, description: string): string => quoted(`${word.replaceAll(":", "\\:")}:${description}`);
  return lines(
    `#compdef ${name}`,
    `# zsh completion for ${name}, printed by \`${name} completion zsh\``,
    `_${name}() {`,
    `  local word=$words[CURRENT] at="" before="" i`,
    `  local valued=${quoted(` ${valued.join(" ")} `)}`,
    "  local -a commands options",
    "  for ((i = 2; i < CURRENT; i++)); do",
    `    if [[ -n $before && $valued == *" $before "* ]]; then before=""; continue; fi`,
    "    before=$words[i]",
    `    case "$at $before" in`,
    steps.map(({ written, at }) => `      ${quoted(written)}) at=${quoted(at)} ;;`),
    "    esac",
    "  done",
    `  case "$at:$before" in`,
    valuesAt(words).map(([before, choices]) => `    ${quoted(before)}) compadd -- ${choices.map(quoted).join(" ")}; return ;;`),
    "  esac",
    `  if [[ -n $before && $valued == *" $before "* ]]; then _files; return; fi`,
    `  case "$at" in`,
    all.flatMap((command) => [
      `    ${quoted(command.at)})`,
      `      commands=(${[...command.commands.map((sub) => described(sub.name, sub.description)), ...command.choices.map(quoted)].join(" ")})`,
      `      options=(${optionsAt(command, globals)
        .flatMap((option) => namesOf(option).map((word) => described(word, option.description)))
        .join(" ")})`,
      "      ;;",
    ]),
    "  esac",
    "  if [[ $word == -* ]]; then _describe -o option options",
    "  elif (($#commands)); then _describe command commands",
    "  else _files",
    "  fi",
    "}",
    `if [[ $funcstack[1] == _${name} ]]; then _${name} "$@"; else compdef _${name} ${name}; fi`,
  );
}

function fish(program: Command): string {
  const { name, all, globals, valued, steps } = wordsOf(program);
  const quote = (text: string): string => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
  const complete = (at: string | undefined, ...rest: readonly string[]): string =>
    [`complete -c ${name}`, ...(at === undefined ? [] : [`-n ${quote(`__${name}_is ${quote(at)}`)}`]), ...rest].join(" ");
  const option = (at: string | undefined, { short, long, description, takesValue, choices }: OptionWords): string =>
    complete(
      at,
      ...(short === undefined ? [] : [`-s ${short.slice(1)}`]),
      ...(long === undefined ? [] : [`-l ${long.slice(2)}`]),
      ...(choices.length > 0 ? [`-x -a ${quote(choices.join(" "))}`] : takesValue ? ["-r -F"] : []),
      `-d ${quote(description)}`,
    );
  return lines(
    `# fish completion for ${name}, printed by \`${name} completion fish\``,
    `function __${name}_is --description 'Whether the words before the cursor name this command'`,
    "  set -l words (commandline -opc)",
    "  set -e words[1]",
    `  set -l at ""`,
    `  set -l before ""`,
    "  for word in $words",
    `    if contains -- "$before" ${valued.join(" ")}`,
    `      set before ""`,
    "      continue",
    "    end",
    "    set before $word",
    `    switch "$at $word"`,
    steps.flatMap(({ written, at }) => [`      case ${quote(written)}`, `        set at ${quote(at)}`]),
    "    end",
    "  end",
    `  test "$at" = "$argv[1]"`,
    "end",
    all.flatMap(({ at, commands, options, choices, takesArguments }) => [
      ...(takesArguments && choices.length === 0 ? [] : [complete(at, "-f")]),
      ...commands.map((sub) => complete(at, `-a ${sub.name}`, `-d ${quote(sub.description)}`)),
      ...choices.map((choice) => complete(at, `-a ${quote(choice)}`)),
      ...(at === "" ? [] : options.filter((own) => !globals.some(({ long }) => long === own.long)).map((own) => option(at, own))),
    ]),
    globals.map((own) => option(undefined, own)),
  );
}

/** By the shell's name. */
export const completionScripts = { bash, zsh, fish } as const;
export type Shell = keyof typeof completionScripts;
