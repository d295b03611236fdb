/** The id of a record: sha256 over its content. */
import { hash } from "node:crypto";
import type { Digest, Message } from "@loraline/contracts";
import type { Body } from "./signature.ts";

/** Every member of a record, checked by the type, so that a new member of the contract cannot be forgotten here. `undefined` is not written. */
type Sorted<T> = { readonly [K in keyof Required<T>]: unknown };

const sortedTurn = ({ content, media, name, reasoning, role, tool_call_id, tool_calls, train, weight }: Message): Sorted<Message> => ({
  content,
  media,
  name,
  reasoning,
  role,
  tool_call_id,
  tool_calls,
  train,
  weight,
});
const sortedTurns = (turns: readonly Message[] | undefined): unknown => turns?.map((turn) => sortedTurn(turn));

/**
 * sha256 over everything but `meta`, as canonical JSON (RFC 8785). Members stand in the order of their names here, and
 * `JSON.stringify` writes strings and numbers as the RFC does, so that it needs no sorting of its own.
 */
export function recordId(body: Body): Digest {
  const sorted: Sorted<Body & { v: string }> = {
    candidates: body.candidates?.map(({ content, score }) => ({ content, score })),
    chosen: sortedTurns(body.chosen),
    completion: body.completion,
    input_ids: body.input_ids,
    kind: body.kind,
    label: body.label,
    labels: body.labels,
    media: body.media?.map(({ ref, type }) => ({ ref, type })),
    messages: sortedTurns(body.messages),
    prompt: body.prompt,
    rejected: sortedTurns(body.rejected),
    task: body.task,
    text: body.text,
    tools: body.tools,
    v: "lrec/1",
  };
  return `sha256:${hash("sha256", JSON.stringify(sorted))}`;
}
