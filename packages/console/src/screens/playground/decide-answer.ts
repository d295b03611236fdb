/** Pure: puts an answer together from the pieces in which it comes: text, tokens with their probabilities, calls of tools. */
import type { Answer } from "@loraline/client";
import { z } from "zod";

type Choice = Answer<"createChatCompletion">["choices"][number];
/** A choice of one event of a stream. */
export type Piece = Pick<Choice, "finish_reason"> & { delta: Record<string, unknown> } & Record<string, unknown>;

export interface Token {
  text: string;
  /** 0 to 1. */
  probability: number;
}
interface ToolCall {
  name: string;
  /** JSON, as far as it has come. */
  arguments: string;
}
interface Told {
  text: string;
  tokens: readonly TokenLogprob[];
  calls: readonly ToolCall[];
  finish: string | null;
}
export const nothingTold: Told = { text: "", tokens: [], calls: [], finish: null };

const tokenLogprob = z.object({ token: z.string(), logprob: z.number(), bytes: z.array(z.int()).nullish() });
type TokenLogprob = z.infer<typeof tokenLogprob>;
const logprobs = z.object({ content: z.array(tokenLogprob).nullish() });
const callPieces = z.array(
  z.object({ index: z.int(), function: z.object({ name: z.string().nullish(), arguments: z.string().nullish() }).optional() }),
);

export function withPiece(told: Told, { delta, finish_reason: finish, logprobs: given }: Piece): Told {
  const calls = [...told.calls];
  for (const { index, function: piece } of callPieces.safeParse(delta["tool_calls"]).data ?? []) {
    const before = calls[index] ?? { name: "", arguments: "" };
    calls[index] = { name: before.name + (piece?.name ?? ""), arguments: before.arguments + (piece?.arguments ?? "") };
  }
  const tokens = logprobs.safeParse(given).data?.content ?? [];
  const { content } = delta;
  return {
    text: told.text + (typeof content === "string" ? content : ""),
    tokens: tokens.length === 0 ? told.tokens : [...told.tokens, ...tokens],
    calls,
    finish: finish ?? told.finish,
  };
}

/**
 * The tokens of the text with their probabilities. Tokens that are parts of one character are one, with the product of theirs; what
 * ends an answer is no part of it.
 * @returns empty when the tokens are not those of the text.
 */
export function tokensOf({ text, tokens }: Told): Token[] {
  const found: Token[] = [];
  let [rest, begun, probability]: [string, number[], number] = [text, [], 1];
  for (const { token, logprob, bytes } of tokens) {
    if (rest === "") break;
    begun.push(...(bytes ?? new TextEncoder().encode(token)));
    probability *= Math.exp(logprob);
    const read = decoded(begun);
    if (read === undefined) continue;
    if (!rest.startsWith(read)) return [];
    found.push({ text: read, probability });
    [rest, begun, probability] = [rest.slice(read.length), [], 1];
  }
  return rest === "" ? found : [];
}

/** undefined: it ends inside of a character. */
function decoded(bytes: readonly number[]): string | undefined {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes));
  } catch {
    return undefined;
  }
}

const toolList = z.array(z.looseObject({ type: z.literal("function"), function: z.looseObject({ name: z.string().min(1) }) }));

/** @returns undefined: it is no list of tools. Empty text is none. */
export function toolsOf(text: string): Record<string, unknown>[] | undefined {
  if (text.trim() === "") return [];
  try {
    return toolList.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}
