/** Pure: the response object, and its items, made of what the engine answers to a chat. */
import type { ConversationItem, OutputItem, ResponseBody, ResponseObject } from "@loraline/contracts";

/** What is known of a response before the engine answers. */
export interface ResponseHead {
  /** ULID. */
  id: string;
  /** Unix seconds. */
  createdAt: number;
  body: ResponseBody;
}

export interface ChatUsage {
  prompt_tokens: number;
  completion_tokens?: number;
  total_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number } | null;
}

const responseIdPrefix = "resp_";
export const responseIdOf = (id: string): string => responseIdPrefix + id;

/** Ids of items name their response, so that a reference to one finds it. */
export const itemIdOf = (kind: "msg" | "fc" | "rs", { id }: ResponseHead, index: number): string => `${kind}_${id}_${index}`;

/** An item of a stored conversation as OpenAI lists it: with an id, its content in parts. */
export function inputItemOf(item: ConversationItem, id: string, index: number): { id: string; type: string } & Record<string, unknown> {
  const own = "id" in item && typeof item["id"] === "string" ? item["id"] : `in_${id}_${index}`;
  const { type } = item;
  if (type !== undefined && type !== "message") return { status: "completed", ...item, id: own, type };
  const kind = item.role === "assistant" ? "output_text" : "input_text";
  const content = typeof item.content === "string" ? [{ type: kind, text: item.content }] : item.content;
  const parts = content.map((part) => (part.type === "output_text" ? { annotations: [], ...part } : part));
  return { status: "completed", ...item, id: own, type: "message", content: parts };
}

/** @returns the response's ULID in its own id, or in that of one of its items; undefined: it is none of ours. */
export const responseUlid = (id: string): string | undefined => /^resp_([0-9A-HJKMNP-TV-Z]{26})$/.exec(id)?.[1];
export const itemUlid = (id: string): string | undefined => /^(?:msg|fc|rs)_([0-9A-HJKMNP-TV-Z]{26})_\d{1,4}$/.exec(id)?.[1];

export function responseOf(
  { id, createdAt, body }: ResponseHead,
  at: Pick<ResponseObject, "status" | "output" | "model" | "store"> & {
    error?: ResponseObject["error"];
    usage?: ChatUsage | undefined;
    completedAt?: number;
  },
): ResponseObject {
  const { status, output, model, store, error = null, usage, completedAt } = at;
  return {
    id: responseIdOf(id),
    object: "response",
    created_at: createdAt,
    completed_at: status === "completed" ? (completedAt ?? createdAt) : null,
    status,
    background: false,
    error,
    incomplete_details: status === "incomplete" ? { reason: "max_output_tokens" } : null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    max_tool_calls: body.max_tool_calls ?? null,
    metadata: body.metadata ?? {},
    model,
    output,
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: body.previous_response_id ?? null,
    prompt_cache_key: body.prompt_cache_key ?? null,
    reasoning: { effort: null, summary: null },
    safety_identifier: body.safety_identifier ?? null,
    service_tier: "default",
    store,
    temperature: body.temperature ?? null,
    text: { format: body.text?.format ?? { type: "text" } },
    tool_choice: body.tool_choice ?? "auto",
    tools: body.tools ?? [],
    top_logprobs: 0,
    top_p: body.top_p ?? null,
    truncation: "disabled",
    usage: usage === undefined ? null : usageOf(usage),
    user: body.user ?? null,
  };
}

const usageOf = ({ prompt_tokens, completion_tokens = 0, total_tokens, prompt_tokens_details }: ChatUsage): ResponseObject["usage"] => ({
  input_tokens: prompt_tokens,
  input_tokens_details: { cached_tokens: prompt_tokens_details?.cached_tokens ?? 0, cache_write_tokens: 0 },
  output_tokens: completion_tokens,
  output_tokens_details: { reasoning_tokens: 0 },
  total_tokens,
});

/** What an engine with a parser of thoughts says beside the answer; vLLM calls it `reasoning`, others as it was called before. */
export interface Thoughts {
  reasoning?: string | null;
  reasoning_content?: string | null;
}
export const thoughtsOf = ({ reasoning, reasoning_content }: Thoughts): string => reasoning || reasoning_content || "";
export const reasoningPartOf = (text: string) => ({ type: "reasoning_text" as const, text });

export const textPartOf = (text: string) => ({ type: "output_text" as const, text, annotations: [], logprobs: [] });

interface ChatAnswer {
  model: string;
  choices: {
    message: Thoughts & { content?: string | null; tool_calls?: { id: string; function: { name: string; arguments: string } }[] | null };
    finish_reason?: string | null;
  }[];
  usage?: ChatUsage | null;
}

/** The response to an answer that is not streamed. */
export function responseOfChat(
  head: ResponseHead,
  answer: ChatAnswer,
  { store, completedAt }: { store: boolean; completedAt: number },
): ResponseObject {
  const [choice] = answer.choices;
  const { content, tool_calls } = choice?.message ?? {};
  const thoughts = thoughtsOf(choice?.message ?? {});
  const status = statusOf(choice?.finish_reason);
  const output: OutputItem[] = [];
  if (thoughts !== "") {
    output.push({ id: itemIdOf("rs", head, 0), type: "reasoning", status, summary: [], content: [reasoningPartOf(thoughts)] });
  }
  if (content) {
    output.push({ id: itemIdOf("msg", head, output.length), type: "message", status, role: "assistant", content: [textPartOf(content)] });
  }
  for (const { id, function: called } of tool_calls ?? []) {
    output.push({
      id: itemIdOf("fc", head, output.length),
      type: "function_call",
      status,
      call_id: id,
      name: called.name,
      arguments: called.arguments,
    });
  }
  return responseOf(head, { status, output, model: answer.model, store, usage: answer.usage ?? undefined, completedAt });
}

/** An answer that reached its most tokens is not complete. */
export const statusOf = (finish: string | null | undefined): "completed" | "incomplete" =>
  finish === "length" ? "incomplete" : "completed";
