/** OpenAI's Responses API, as far as it is offered: text in and out, and calls of functions. */
import { z } from "zod";

const metadata = z.record(z.string().max(64), z.string().max(512));
/** What is echoed in every event must not be large, and no engine judges it. */
const echoed = z.string().max(1024);
const text = z.string();

const textPart = z.looseObject({ type: z.enum(["input_text", "output_text", "text"]), text });
const refusalPart = z.looseObject({ type: z.literal("refusal"), refusal: text });

const messageItem = z.looseObject({
  type: z.literal("message").optional(),
  role: z.enum(["user", "assistant", "system", "developer"]),
  content: z.union([text, z.array(z.union([textPart, refusalPart]))]),
});
const functionCall = z.looseObject({ type: z.literal("function_call"), call_id: text.min(1), name: text.min(1), arguments: text });
const functionCallOutput = z.looseObject({
  type: z.literal("function_call_output"),
  call_id: text.min(1),
  output: z.union([text, z.array(textPart)]),
});
const reasoningItem = z.looseObject({
  type: z.literal("reasoning"),
  content: z.array(z.looseObject({ type: z.literal("reasoning_text"), text })).nullish(),
});
const itemReference = z.looseObject({ type: z.literal("item_reference"), id: text });

export const conversationItem = z.union([messageItem, functionCall, functionCallOutput, reasoningItem]);
export type ConversationItem = z.infer<typeof conversationItem>;
const inputItem = z.union([messageItem, functionCall, functionCallOutput, reasoningItem, itemReference]);
export type InputItem = z.infer<typeof inputItem>;

const functionTool = z.strictObject({
  type: z.literal("function"),
  name: text.min(1),
  description: text.nullish(),
  parameters: z.record(z.string(), z.unknown()).nullish(),
  strict: z.boolean().nullish(),
});
const format = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text") }),
  z.strictObject({ type: z.literal("json_object") }),
  z.strictObject({
    type: z.literal("json_schema"),
    name: text,
    schema: z.record(z.string(), z.unknown()),
    description: text.nullish(),
    strict: z.boolean().nullish(),
  }),
]);

export const responseBody = z.strictObject({
  model: text.min(1).describe("As in a chat."),
  input: z
    .union([text, z.array(inputItem)])
    .describe("Text, or items: messages, `function_call`, `function_call_output`, `reasoning`, `item_reference`."),
  instructions: text.nullish().describe("The system prompt of this response only: `previous_response_id` does not carry it on."),
  previous_response_id: text
    .nullish()
    .describe("A response that was stored: its conversation comes before `input`. Responses are kept for three days."),
  store: z.boolean().nullish().describe("false: nothing is kept. Default: true."),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_obfuscation: z.boolean().optional() }).nullish(),
  max_output_tokens: z.int().min(1).nullish(),
  temperature: z.number().nullish(),
  top_p: z.number().nullish(),
  text: z.strictObject({ format: format.nullish(), verbosity: z.literal("medium").nullish() }).nullish(),
  tools: z.array(functionTool).max(1024).nullish().describe("Functions only."),
  tool_choice: z.union([z.enum(["none", "auto", "required"]), z.strictObject({ type: z.literal("function"), name: text })]).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  metadata: metadata.refine((pairs) => Object.keys(pairs).length <= 16, "at most 16 pairs").nullish(),
  user: echoed.nullish(),
  safety_identifier: echoed.nullish(),
  prompt_cache_key: echoed.nullish().describe("Changes nothing."),
  prompt_cache_retention: text.nullish().describe("Changes nothing."),
  service_tier: text.nullish().describe("Changes nothing."),
  max_tool_calls: z.int().nullish().describe("Changes nothing: it counts calls of built-in tools."),
  truncation: z.literal("disabled").nullish(),
  top_logprobs: z.literal(0).nullish(),
  background: z.literal(false).nullish(),
  include: z.array(z.unknown()).max(0).nullish(),
  // Fields of vLLM's, as in a chat.
  top_k: z.int().nullish(),
  min_p: z.number().nullish(),
  seed: z.int().nullish(),
  stop: z.union([text, z.array(text)]).nullish(),
  repetition_penalty: z.number().nullish(),
  presence_penalty: z.number().nullish(),
  frequency_penalty: z.number().nullish(),
  chat_template_kwargs: z.record(z.string(), z.unknown()).nullish(),
  cache_salt: text.nullish(),
});
export type ResponseBody = z.infer<typeof responseBody>;

const status = z.enum(["in_progress", "completed", "incomplete", "failed"]);
const outputItem = z.union([
  z.object({
    id: text,
    type: z.literal("message"),
    status,
    role: z.literal("assistant"),
    content: z.array(z.object({ type: z.literal("output_text"), text, annotations: z.array(z.unknown()), logprobs: z.array(z.unknown()) })),
  }),
  z.object({
    id: text,
    type: z.literal("reasoning"),
    status,
    summary: z.array(z.unknown()).describe("Empty: nothing here summarises."),
    content: z.array(z.object({ type: z.literal("reasoning_text"), text })),
  }),
  z.object({ id: text, type: z.literal("function_call"), status, call_id: text, name: text, arguments: text }),
]);
export type OutputItem = z.infer<typeof outputItem>;

export const responseObject = z.object({
  id: z.string().regex(/^resp_/),
  object: z.literal("response"),
  created_at: z.int().describe("Unix seconds."),
  completed_at: z.int().nullable(),
  status,
  background: z.literal(false),
  error: z.object({ code: text, message: text }).nullable(),
  incomplete_details: z.object({ reason: z.literal("max_output_tokens") }).nullable(),
  instructions: text.nullable(),
  max_output_tokens: z.int().nullable(),
  max_tool_calls: z.int().nullable(),
  metadata: metadata.nullable(),
  model: text.describe("The base, or the version that answered: `<tenant>/<adapter>@<version>`."),
  output: z.array(outputItem),
  parallel_tool_calls: z.boolean(),
  previous_response_id: text.nullable(),
  prompt_cache_key: text.nullable(),
  reasoning: z.object({ effort: z.null(), summary: z.null() }),
  safety_identifier: text.nullable(),
  service_tier: text,
  store: z.boolean().describe("Whether it can be asked for, and gone on from."),
  temperature: z.number().nullable(),
  text: z.object({ format }),
  tool_choice: z.union([text, z.object({ type: z.literal("function"), name: text })]),
  tools: z.array(functionTool),
  top_logprobs: z.literal(0),
  top_p: z.number().nullable(),
  truncation: z.literal("disabled"),
  usage: z
    .object({
      input_tokens: z.int(),
      input_tokens_details: z.object({ cached_tokens: z.int(), cache_write_tokens: z.int() }),
      output_tokens: z.int(),
      output_tokens_details: z.object({ reasoning_tokens: z.int() }),
      total_tokens: z.int(),
    })
    .nullable(),
  user: text.nullable(),
});
export type ResponseObject = z.infer<typeof responseObject>;

/** The data of one event of a streamed response; `event:` says its type, too. */
export const responseEvent = z.looseObject({ type: text, sequence_number: z.int() });

/** One page of what a response was asked: items as they were sent or answered, each with an id. */
export const responseItems = z.object({
  object: z.literal("list"),
  data: z.array(z.looseObject({ id: text, type: text })),
  first_id: text.nullable(),
  last_id: text.nullable(),
  has_more: z.boolean(),
});

export const responseDeleted = z.object({ id: text, object: z.literal("response"), deleted: z.literal(true) });
