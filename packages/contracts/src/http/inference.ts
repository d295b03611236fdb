/**
 * Bodies and answers of OpenAI's inference routes. The schemas name only the fields that the gateway itself reads, and allow any others:
 * those go to the engine and come back unchanged. vLLM's own reference describes them.
 */
import { z } from "zod";

const model = z
  .string()
  .min(1)
  .describe(
    "A base, `<tenant>/<adapter>` (its promoted version), `<tenant>/<adapter>@<version>`, or `ft:<base>:<tenant>:<adapter>:<version>`.",
  );
const stream = z.boolean().nullish().describe("true: the answer comes as server-sent events.");
const streamOptions = z.looseObject({ include_usage: z.boolean().optional() }).nullish();
const maxTokens = z.int().nullish().describe("Most tokens of the answer.");
const user = z
  .string()
  .nullish()
  .describe("Names the end user: while a canary is under way, one user keeps to one version (the header `x-loraline-sticky` comes first).");

export const chatMessage = z.looseObject({
  role: z.string().describe("`system`, `user`, `assistant` or `tool`."),
  content: z
    .union([z.string(), z.array(z.looseObject({ type: z.string() }))])
    .nullish()
    .describe("Text, or parts (`text`, `image_url`, …) where the base can read them."),
});

export const chatBody = z.looseObject({
  model,
  messages: z.array(chatMessage),
  stream,
  stream_options: streamOptions,
  max_completion_tokens: maxTokens,
  max_tokens: maxTokens,
  temperature: z.number().nullish(),
  top_p: z.number().nullish(),
  n: z.int().nullish(),
  seed: z.int().nullish(),
  user,
});
export const completionBody = z.looseObject({
  model,
  prompt: z
    .union([z.string(), z.array(z.string()), z.array(z.int()), z.array(z.array(z.int()))])
    .describe("Text or token ids, one or several."),
  stream,
  stream_options: streamOptions,
  max_tokens: maxTokens,
  temperature: z.number().nullish(),
  n: z.int().nullish(),
  user,
});
export const embeddingBody = z.looseObject({
  model,
  input: z
    .union([z.string(), z.array(z.string()), z.array(z.int()), z.array(z.array(z.int()))])
    .describe("Text or token ids, one or several."),
  user,
});

const usage = z.looseObject({ prompt_tokens: z.int(), completion_tokens: z.int().optional(), total_tokens: z.int() });
const answered = {
  id: z.string(),
  created: z.int().describe("Unix seconds."),
  model: z.string().describe("The base, or the version that answered: `<tenant>/<adapter>@<version>`."),
};
const finishReason = z.string().nullish();

export const chatAnswer = z.looseObject({
  ...answered,
  object: z.literal("chat.completion"),
  choices: z.array(z.looseObject({ index: z.int(), message: chatMessage, finish_reason: finishReason })),
  usage: usage.nullish(),
});
/** The data of one event of a streamed chat; the last event is `data: [DONE]`. */
export const chatChunk = z.looseObject({
  ...answered,
  object: z.literal("chat.completion.chunk"),
  choices: z.array(
    z.looseObject({
      index: z.int(),
      delta: z.looseObject({ role: z.string().optional(), content: z.string().nullish() }),
      finish_reason: finishReason,
    }),
  ),
  usage: usage.nullish(),
});
/** An answer, and the data of one event of a streamed one. */
export const completionAnswer = z.looseObject({
  ...answered,
  object: z.literal("text_completion"),
  choices: z.array(z.looseObject({ index: z.int(), text: z.string(), finish_reason: finishReason })),
  usage: usage.nullish(),
});
export const embeddingAnswer = z.looseObject({
  object: z.literal("list"),
  model: z.string(),
  data: z.array(
    z.looseObject({
      object: z.literal("embedding"),
      index: z.int(),
      embedding: z.union([z.array(z.number()), z.string()]).describe("Numbers, or base64 with `encoding_format: base64`."),
    }),
  ),
  usage: usage.nullish(),
});
