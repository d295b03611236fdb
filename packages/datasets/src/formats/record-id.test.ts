import { expect, it } from "vitest";
import { digestOf } from "@loraline/objects";
import { canonicalJson } from "../canonical-json.ts";
import { recordId } from "./record-id.ts";
import type { Body } from "./signature.ts";

it.each<Body>([
  {
    kind: "chat",
    task: "chat",
    messages: [
      { role: "user", content: 'a"\u2028\n' },
      {
        role: "assistant",
        content: "b",
        tool_calls: "[]",
        weight: 1,
        reasoning: "r",
        train: true,
        name: "n",
        tool_call_id: "t",
        media: [0],
      },
    ],
    tools: "[1.0]",
    media: [{ type: "image", ref: "x" }],
  },
  { kind: "ranked", task: "t", candidates: [{ content: "b", score: 1e21 }, { content: "a" }], messages: [{ role: "user", content: "é" }] },
  {
    kind: "preference",
    task: "t",
    chosen: [{ role: "assistant", content: "a" }],
    rejected: [{ role: "assistant", content: "b" }],
    label: false,
  },
  { kind: "pretokenized", task: "t", input_ids: [1, 2], labels: [-100, 2], text: "", prompt: "p", completion: "c" },
])("is the digest of canonical JSON (%#)", (body) => {
  expect(recordId(body)).toBe(digestOf(canonicalJson({ v: "lrec/1", ...body })));
});
