/** Pure: the events of a streamed response, made of the events of a streamed chat. Names, order and fields are OpenAI's. */
import type { OutputItem, ResponseObject } from "@loraline/contracts";
import {
  type ChatUsage,
  itemIdOf,
  reasoningPartOf,
  type ResponseHead,
  responseOf,
  statusOf,
  textPartOf,
  type Thoughts,
  thoughtsOf,
} from "./response-object.ts";

interface ChatDelta extends Thoughts {
  content?: string | null;
  tool_calls?: { index: number; id?: string | null; function?: { name?: string | null; arguments?: string | null } | null }[] | null;
}
interface ChatEvent {
  model?: string;
  choices?: { delta?: ChatDelta; finish_reason?: string | null }[];
  usage?: ChatUsage | null;
  error?: { message?: string };
}

interface ResponseEvents {
  /** @param lines - whole lines of the chat's stream. Returns the response's events, as they go to the client. */
  push(lines: string): string;
  /** The response as it is now that the engine has ended; undefined: it failed, and the client was told. */
  finished(completedAt: number): ResponseObject | undefined;
  /** The last events. @param response - what `finished` gave. */
  end(response: ResponseObject | undefined): string;
  /** The engine broke off. */
  broken(message: string): string;
}

export function createResponseEvents(head: ResponseHead, { store }: { store: boolean }): ResponseEvents {
  let sequence = 0;
  let model: string | undefined;
  let usage: ChatUsage | undefined;
  let finish: string | null | undefined;
  let failed = false;
  const output: OutputItem[] = [];
  /** Place in `output` of the item that is being written. */
  let open: number | undefined;
  /** Which of the engine's calls that item is. */
  let openCall: number | undefined;
  let written: string[] = [];
  let events: string[] = [];

  const emit = (type: string, fields: object): void => {
    events.push(`event: ${type}\ndata: ${JSON.stringify({ type, sequence_number: sequence++, ...fields })}\n\n`);
  };
  const taken = (): string => {
    const text = events.join("");
    events = [];
    return text;
  };
  const snapshot = (status: ResponseObject["status"], more: Partial<Parameters<typeof responseOf>[1]> = {}): ResponseObject =>
    responseOf(head, { status, output, model: model ?? head.body.model, store, ...more });
  const begin = (): void => {
    if (sequence > 0) return;
    emit("response.created", { response: snapshot("in_progress") });
    emit("response.in_progress", { response: snapshot("in_progress") });
  };

  const close = (status: "completed" | "incomplete"): void => {
    const item = open === undefined ? undefined : output[open];
    if (item === undefined) return;
    const [output_index, text, item_id] = [open, written.join(""), item.id];
    [open, openCall, written] = [undefined, undefined, []];
    item.status = status;
    if (item.type === "message") {
      const part = textPartOf(text);
      item.content = [part];
      emit("response.output_text.done", { item_id, output_index, content_index: 0, text, logprobs: [] });
      emit("response.content_part.done", { item_id, output_index, content_index: 0, part });
    } else if (item.type === "reasoning") {
      const part = reasoningPartOf(text);
      item.content = [part];
      emit("response.reasoning_text.done", { item_id, output_index, content_index: 0, text });
      emit("response.content_part.done", { item_id, output_index, content_index: 0, part });
    } else {
      item.arguments = text;
      emit("response.function_call_arguments.done", { item_id, output_index, name: item.name, arguments: text });
    }
    emit("response.output_item.done", { output_index, item });
  };
  const openItem = (item: OutputItem): void => {
    close("completed");
    open = output.push(item) - 1;
    emit("response.output_item.added", { output_index: open, item });
  };

  const say = (delta: string): void => {
    if (open === undefined || output[open]?.type !== "message") {
      openItem({ id: itemIdOf("msg", head, output.length), type: "message", status: "in_progress", role: "assistant", content: [] });
      emit("response.content_part.added", { item_id: output[open ?? 0]?.id, output_index: open, content_index: 0, part: textPartOf("") });
    }
    written.push(delta);
    emit("response.output_text.delta", { item_id: output[open ?? 0]?.id, output_index: open, content_index: 0, delta, logprobs: [] });
  };
  const think = (delta: string): void => {
    if (open === undefined || output[open]?.type !== "reasoning") {
      openItem({ id: itemIdOf("rs", head, output.length), type: "reasoning", status: "in_progress", summary: [], content: [] });
      const part = reasoningPartOf("");
      emit("response.content_part.added", { item_id: output[open ?? 0]?.id, output_index: open, content_index: 0, part });
    }
    written.push(delta);
    emit("response.reasoning_text.delta", { item_id: output[open ?? 0]?.id, output_index: open, content_index: 0, delta });
  };
  const call = ({ index, id, function: called }: NonNullable<ChatDelta["tool_calls"]>[number]): void => {
    if (openCall !== index) {
      const call_id = id ?? `call_${head.id}_${index}`;
      openItem({
        id: itemIdOf("fc", head, output.length),
        type: "function_call",
        status: "in_progress",
        call_id,
        name: called?.name ?? "",
        arguments: "",
      });
      openCall = index;
    }
    const delta = called?.arguments ?? "";
    if (delta === "") return;
    written.push(delta);
    emit("response.function_call_arguments.delta", { item_id: output[open ?? 0]?.id, output_index: open, delta });
  };

  const fail = (message: string): void => {
    failed = true;
    begin();
    emit("response.failed", { response: snapshot("failed", { error: { code: "server_error", message } }) });
  };

  const read = (event: ChatEvent): void => {
    if (event.error !== undefined) return fail(event.error.message ?? "The engine failed while it answered. Ask again.");
    model ??= event.model;
    begin();
    usage = event.usage ?? usage;
    for (const { delta, finish_reason } of event.choices ?? []) {
      const thoughts = thoughtsOf(delta ?? {});
      if (thoughts !== "") think(thoughts);
      if (delta?.content) say(delta.content);
      for (const each of delta?.tool_calls ?? []) call(each);
      finish = finish_reason ?? finish;
    }
  };

  return {
    push(lines) {
      for (const line of lines.split("\n")) {
        if (failed || !line.startsWith("data: {")) continue;
        read(JSON.parse(line.slice("data: ".length)) as ChatEvent);
      }
      return taken();
    },
    finished(completedAt) {
      if (failed) return undefined;
      begin();
      const status = statusOf(finish);
      close(status);
      return snapshot(status, { usage, completedAt });
    },
    end(response) {
      if (response !== undefined) emit(`response.${response.status}`, { response });
      return taken();
    },
    broken(message) {
      if (!failed) fail(message);
      return taken();
    },
  };
}
