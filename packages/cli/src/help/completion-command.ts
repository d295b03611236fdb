/** `loraline completion` */
import { Argument } from "commander";
import { type AddCommands, examples } from "../command.ts";
import { completionScripts, type Shell } from "./shell-completion.ts";

export const addCompletionCommand: AddCommands = (program, { terminal }) => {
  program
    .command("completion")
    .description("print a script that completes commands, options and their values in your shell")
    .addArgument(new Argument("<shell>").choices(Object.keys(completionScripts)))
    .addHelpText(
      "after",
      examples(
        "loraline completion bash >~/.local/share/bash-completion/completions/loraline",
        'loraline completion zsh >"${fpath[1]}/_loraline"',
        "loraline completion fish >~/.config/fish/completions/loraline.fish",
      ),
    )
    .action((shell: Shell) => void terminal.out.write(completionScripts[shell](program)));
};
