/** `loraline chat`: one answer, or a conversation. */
import { createInterface } from "node:readline/promises";
import type { ChatCompletionMessageParam } from "openai/resources/chat/completions";
import type { LineClient } from "../connect-line.ts";
import { exitCodes, Failure } from "../failure.ts";
import { bold, dim, type Terminal, writeJson, writeLine } from "../terminal.ts";

export interface ChatOptions {
  model: string;
  prompt?: string | undefined;
  system?: string | undefined;
  maxTokens: number;
  temperature: number;
  json: boolean;
}

export async function chatCommand(line: LineClient, options: ChatOptions, terminal: Terminal): Promise<number> {
  const messages: ChatCompletionMessageParam[] = options.system === undefined ? [] : [{ role: "system", content: options.system }];
  const prompt = options.prompt ?? (terminal.in.isTTY === true ? undefined : await readAll(terminal.in));
  if (prompt === undefined) return converse(line, options, messages, terminal);
  if (prompt.trim() === "")
    throw new Failure(exitCodes.usage, "PROMPT_EMPTY", "the prompt is empty. Give one as an argument or on standard input.");
  messages.push({ role: "user", content: prompt });
  if (options.json) {
    const { model, maxTokens: max_tokens, temperature } = options;
    const answer = await line.openai.chat.completions.create({ model, messages, max_tokens, temperature }, { signal: terminal.signal });
    writeJson(terminal.out, {
      model,
      answer: answer.choices[0]?.message.content ?? "",
      finishReason: answer.choices[0]?.finish_reason,
      usage: answer.usage,
    });
  } else {
    await stream(line, options, messages, terminal);
  }
  return exitCodes.ok;
}

/** Writes the answer as it comes and returns it. */
async function stream(
  line: LineClient,
  { model, maxTokens, temperature }: ChatOptions,
  messages: ChatCompletionMessageParam[],
  { out, signal }: Terminal,
): Promise<string> {
  const parts = await line.openai.chat.completions.create(
    { model, messages, max_tokens: maxTokens, temperature, stream: true },
    { signal },
  );
  let answer = "";
  for await (const part of parts) {
    const text = part.choices[0]?.delta.content ?? "";
    answer += text;
    out.write(text);
  }
  writeLine(out);
  return answer;
}

async function converse(
  line: LineClient,
  options: ChatOptions,
  messages: ChatCompletionMessageParam[],
  terminal: Terminal,
): Promise<number> {
  writeLine(terminal.err, dim(`${options.model}; an empty line or Ctrl-D ends the conversation`));
  const reader = createInterface({ input: terminal.in, output: terminal.err });
  try {
    for (;;) {
      const said = await reader.question(bold("> "), { signal: terminal.signal }).catch(() => "");
      if (said.trim() === "") return exitCodes.ok;
      messages.push({ role: "user", content: said });
      messages.push({ role: "assistant", content: await stream(line, options, messages, terminal) });
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
