/** `loraline chat` */
import { type AddCommands, decimal, defaultBase, examples, repeated, wholeNumber } from "../command.ts";
import { chat, type ChatOptions } from "./chat.ts";
import { checkpointOf } from "./checkpoint-of.ts";

type ChatFlags = Pick<ChatOptions, "system" | "image" | "maxTokens" | "temperature"> & { checkpoint?: number };

export const addChatCommand: AddCommands = (program, { connect, globals, terminal }) => {
  program
    .command("chat")
    .description("ask a model; without a prompt: a conversation")
    .argument("<model>", "alias (local/persona), version (local/persona@1) or base")
    .argument("[prompt]", "what to ask; default: standard input, or a conversation on a terminal")
    .option("--system <text>", "system prompt")
    .option("--image <file>", "show a picture (PNG, JPEG, WebP, GIF) with the question; may be repeated", repeated)
    .option("--checkpoint <step>", "ask the checkpoint of this step, of the newest run of the adapter that has one", wholeNumber(1))
    .option("--max-tokens <n>", "longest answer", wholeNumber(1), 128)
    .option("--temperature <t>", "0: always the likeliest word", decimal, 0)
    .addHelpText(
      "after",
      examples(
        `loraline chat ${defaultBase} "Who are you?"`,
        'loraline chat local/persona@1 "Who are you?"',
        'loraline chat local/shapes --image circle.png "What is in the picture?"',
        'loraline chat persona --checkpoint 40 "Who are you?"',
        "echo 'Who are you?' | loraline chat local/persona --json",
      ),
    )
    .action(async (named: string, prompt: string | undefined, { checkpoint, ...flags }: ChatFlags) => {
      const api = await connect();
      const model = checkpoint === undefined ? named : await checkpointOf(api, named, checkpoint);
      await chat(api, { model, prompt, ...flags, json: globals().json }, terminal);
    });
};
