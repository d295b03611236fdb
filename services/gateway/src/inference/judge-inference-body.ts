/** Pure: refuses requests that an engine must not or cannot answer; says how many tokens a request may cost at most. */
import type { EngineRecord } from "@loraline/contracts";
import { badRequest } from "../errors.ts";
import { judgePictures } from "./engines/judge-pictures.ts";

export const inferencePaths = ["chat/completions", "completions", "embeddings"] as const;
export type InferencePath = (typeof inferencePaths)[number];
export type InferenceBody = Record<string, unknown> & { model: string };

type Body = Readonly<Record<string, unknown>>;

/**
 * Types of fields that the gateway itself reads. Most decide how many tokens are reserved, and an engine takes "8" for 8 and would make more
 * than was reserved.
 */
const read = {
  n: "number",
  best_of: "number",
  max_tokens: "number",
  max_completion_tokens: "number",
  stream: "boolean",
  cache_salt: "string",
} as const;

/** @throws PermanentError 400 with the field. An engine without a record is taken to generate, and not to bear prompt logprobs. */
export function judgeInferenceBody(
  path: InferencePath,
  body: Body,
  engine: Pick<EngineRecord, "tasks" | "promptLogprobs" | "toolCallParser" | "pictures"> | undefined,
): void {
  for (const [field, type] of Object.entries(read)) {
    const value = body[field] ?? undefined;
    if (value !== undefined && typeof value !== type)
      throw badRequest("invalid_type", `${field} must be a ${type}, not ${JSON.stringify(value).slice(0, 50)}.`, field);
  }
  const task = path === "embeddings" ? "embed" : "generate";
  if (!(engine?.tasks ?? ["generate"]).includes(task)) {
    const offers = task === "embed" ? "embeddings" : "chat and completions";
    throw badRequest(
      "unsupported_task",
      `The base of "${String(body["model"])}" does not offer ${offers}: its engine was not started for that.`,
      "model",
    );
  }
  if (path === "chat/completions" && engine?.toolCallParser === null && asksForTools(body)) {
    throw badRequest(
      "tools_unsupported",
      `tools: the engine of "${String(body["model"])}" has no parser for calls of tools, as the base's chat template shows it no tools or writes calls in a way that is not known. ` +
        'Remove tools (or set tool_choice: "none"), choose a base whose template has tools, or have the operator set toolCallParser of the engine (locally: `loraline up --tool-call-parser`).',
      "tools",
    );
  }
  judgePictures(body, engine);
  if (engine !== undefined && (engine.promptLogprobs ?? true)) return;
  const asks = given(body["prompt_logprobs"])
    ? "prompt_logprobs"
    : path === "completions" && body["echo"] === true && given(body["logprobs"])
      ? "echo"
      : undefined;
  if (asks !== undefined) {
    const what = asks === "echo" ? "echo together with logprobs" : "prompt_logprobs";
    throw badRequest(
      "unsupported",
      `${what}: this engine can be stopped by a request for logprobs of the prompt, so it is not asked. Remove it.`,
      asks,
    );
  }
}

const asksForTools = ({ tools, tool_choice }: Body): boolean => Array.isArray(tools) && tools.length > 0 && tool_choice !== "none";

const given = (value: unknown): boolean => value !== undefined && value !== null && value !== false;

/** What a chat template may put around each message, and around all of them. */
const tokensAroundMessage = 32;
const tokensAroundChat = 64;

/**
 * The most tokens, prompt and answer, that the request can use. A token of text is at least one byte of it, and no sequence is
 * longer than the engine takes.
 * @param limits.bytes - of the request's body.
 */
export function mostTokensOf(path: InferencePath, body: Body, { bytes, maxModelLen }: { bytes: number; maxModelLen: number }): number {
  const longest = maxModelLen === 0 ? Number.POSITIVE_INFINITY : maxModelLen;
  if (path === "embeddings") {
    const { input } = body;
    const texts = Array.isArray(input) && typeof input[0] !== "number" ? input.length : 1;
    return Math.min(bytes + tokensAroundMessage * texts, longest * texts);
  }
  const answers = Math.max(1, wholeNumber(body["n"]) ?? 1, wholeNumber(body["best_of"]) ?? 1);
  const { prompt, messages } = body;
  const prompts = Array.isArray(prompt) && typeof prompt[0] !== "number" ? Math.max(1, prompt.length) : 1;
  // Completions know only the old name.
  const asked =
    path === "completions"
      ? (wholeNumber(body["max_tokens"]) ?? 16)
      : (wholeNumber(body["max_completion_tokens"]) ?? wholeNumber(body["max_tokens"]));
  // What stands for an image or a sound in the text says nothing about its tokens.
  const hasMedia =
    Array.isArray(messages) && messages.some((message: unknown) => Array.isArray((message as { content?: unknown } | null)?.content));
  const promptTokens = hasMedia
    ? longest
    : bytes + tokensAroundChat + tokensAroundMessage * (Array.isArray(messages) ? messages.length : 0);
  const most = asked === undefined ? longest : Math.min(longest, asked);
  return Math.min(promptTokens + most * answers * prompts, longest * answers * prompts);
}

const wholeNumber = (value: unknown): number | undefined => (typeof value === "number" && value >= 0 ? Math.ceil(value) : undefined);
