/** Pure: a request of the Responses API as the chat that the engine is asked. */
import type { ConversationItem, ResponseBody } from "@loraline/contracts";
import type { InferenceBody } from "../inference/judge-inference-body.ts";

interface ChatCall {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
}
type ChatMessage =
  | { role: "system" | "user"; content: string }
  | { role: "assistant"; content: string | null; reasoning?: string; tool_calls?: ChatCall[] }
  | { role: "tool"; tool_call_id: string; content: string };

/** Fields that a chat calls the same. */
const sameName = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "seed",
  "stop",
  "repetition_penalty",
  "presence_penalty",
  "frequency_penalty",
  "chat_template_kwargs",
  "cache_salt",
  "user",
] as const;

/** @param conversation - all items, those of the response that is gone on from included. */
export function chatOf(body: ResponseBody, conversation: readonly ConversationItem[]): InferenceBody {
  const { model, instructions, max_output_tokens, stream, tools, tool_choice, parallel_tool_calls, text } = body;
  const same = sameName.flatMap((field) => (body[field] === undefined || body[field] === null ? [] : [[field, body[field]] as const]));
  return {
    ...Object.fromEntries(same),
    model,
    messages: messagesOf(instructions ?? undefined, conversation),
    ...given("max_completion_tokens", max_output_tokens),
    ...given("stream", stream),
    ...(tools?.length
      ? {
          tools: tools.map(({ type, ...fields }) => ({ type, function: withoutNulls(fields) })),
          ...given(
            "tool_choice",
            typeof tool_choice === "object" && tool_choice !== null
              ? { type: "function", function: { name: tool_choice.name } }
              : tool_choice,
          ),
          ...given("parallel_tool_calls", parallel_tool_calls),
        }
      : {}),
    ...given("response_format", formatOf(text?.format)),
  };
}

const given = (field: string, value: unknown): Record<string, unknown> => (value === undefined || value === null ? {} : { [field]: value });
const withoutNulls = (fields: object): object =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined));

function formatOf(format: NonNullable<ResponseBody["text"]>["format"]): object | undefined {
  if (format === null || format === undefined || format.type === "text") return undefined;
  if (format.type === "json_object") return { type: "json_object" };
  const { type, ...schema } = format;
  return { type, json_schema: withoutNulls(schema) };
}

/**
 * Chat templates know one system prompt, at the beginning: instructions and leading messages of system and developer are one. Words of the assistant and
 * the calls after them are one message, too, with the thoughts before them.
 */
function messagesOf(instructions: string | undefined, items: readonly ConversationItem[]): ChatMessage[] {
  const messages: ChatMessage[] = instructions === undefined ? [] : [{ role: "system", content: instructions }];
  let thoughts: { reasoning?: string } = {};
  for (const item of items) {
    const last = messages.at(-1);
    if (item.type === "reasoning") {
      const text = textOf(item.content ?? []);
      thoughts = text === "" ? {} : { reasoning: text };
      continue;
    }
    const before = thoughts;
    thoughts = {};
    if (item.type === "function_call") {
      const call: ChatCall = { id: item.call_id, type: "function", function: { name: item.name, arguments: item.arguments } };
      if (last?.role === "assistant") (last.tool_calls ??= []).push(call);
      else messages.push({ role: "assistant", content: null, ...before, tool_calls: [call] });
    } else if (item.type === "function_call_output") {
      messages.push({ role: "tool", tool_call_id: item.call_id, content: textOf(item.output) });
    } else {
      const role = item.role === "developer" ? "system" : item.role;
      const content = textOf(item.content);
      if (role === "system" && last?.role === "system" && messages.length === 1) last.content += `\n\n${content}`;
      else if (role === "assistant") messages.push({ role, content, ...before });
      else messages.push({ role, content });
    }
  }
  return messages;
}

type Part = Exclude<Extract<ConversationItem, { role: unknown }>["content"], string>[number] | { type: "reasoning_text"; text: string };
const textOf = (content: string | readonly Part[]): string =>
  typeof content === "string" ? content : content.map((part) => (part.type === "refusal" ? part.refusal : part.text)).join("");
