/** `loraline chat`: one answer, or a conversation. */
import { createInterface } from "node:readline/promises";
import type { ApiClient, Request } from "@loraline/client";
import { exitCodes, Failure } from "../failure.ts";
import { picturePartsOf } from "./picture-parts.ts";
import { bold, dim, type Terminal, writeJson, writeLine } from "../terminal.ts";

type Message = Request<"createChatCompletion">["body"]["messages"][number];

export interface ChatOptions {
  model: string;
  prompt?: string | undefined;
  system?: string | undefined;
  /** Files of pictures, which go with the first question. */
  image?: readonly string[];
  maxTokens: number;
  temperature: number;
  json: boolean;
}

/** @throws Failure PROMPT_EMPTY, FILE_MISSING, PICTURE_UNSUPPORTED */
export async function chat(api: ApiClient, options: ChatOptions, terminal: Terminal): Promise<void> {
  const messages: Message[] = options.system === undefined ? [] : [{ role: "system", content: options.system }];
  const pictures = await picturePartsOf(options.image ?? []);
  const ask = (text: string): void => {
    // Before the text, as in the data that models learn from.
    const shown = pictures.splice(0);
    messages.push({ role: "user", content: shown.length === 0 ? text : [...shown, { type: "text", text }] });
  };
  const prompt = options.prompt ?? (terminal.in.isTTY === true ? undefined : await readAll(terminal.in));
  if (prompt === undefined) {
    await converse(api, options, { messages, ask }, terminal);
    return;
  }
  if (prompt.trim() === "")
    throw new Failure(exitCodes.usage, "PROMPT_EMPTY", "the prompt is empty. Give one as an argument or on standard input.");
  ask(prompt);
  if (!options.json) {
    await streamAnswer(api, options, messages, terminal);
    return;
  }
  const { model, maxTokens: max_tokens, temperature } = options;
  const answer = await api.createChatCompletion({ body: { model, messages, max_tokens, temperature }, signal: terminal.signal });
  writeJson(terminal.out, {
    model,
    answer: answer.choices[0]?.message.content ?? "",
    finishReason: answer.choices[0]?.finish_reason,
    usage: answer.usage,
  });
}

/** Writes the answer as it comes and returns it. */
async function streamAnswer(
  api: ApiClient,
  { model, maxTokens: max_tokens, temperature }: ChatOptions,
  messages: Message[],
  { out, signal }: Terminal,
): Promise<string> {
  let answer = "";
  for await (const { choices } of api.stream("createChatCompletion", { body: { model, messages, max_tokens, temperature }, signal })) {
    const text = choices[0]?.delta.content ?? "";
    answer += text;
    out.write(text);
  }
  writeLine(out);
  return answer;
}

async function converse(
  api: ApiClient,
  options: ChatOptions,
  { messages, ask }: { messages: Message[]; ask: (text: string) => void },
  terminal: Terminal,
): Promise<void> {
  writeLine(terminal.err, dim(`${options.model}; an empty line or Ctrl-D ends the conversation`));
  const reader = createInterface({ input: terminal.in, output: terminal.err });
  try {
    for (;;) {
      const said = await reader.question(bold("> "), { signal: terminal.signal }).catch(() => "");
      if (said.trim() === "") return;
      ask(said);
      messages.push({ role: "assistant", content: await streamAnswer(api, options, messages, terminal) });
    }
  } finally {
    reader.close();
  }
}

async function readAll(input: NodeJS.ReadableStream): Promise<string> {
  let text = "";
  for await (const chunk of input) text += chunk.toString();
  return text;
}
