/** Prompts on which base and adapter are compared, first by the trainer, then on every replica. */
import { digestOf } from "@loraline/objects";
import type { ProbePrompt, Rec } from "@loraline/contracts";
import { ignored, type Sequence } from "./encoder/encode-pieces.ts";
import type { RecordEncoder } from "./encoder/record-encoder.ts";

/** Asked of every adapter, whatever it was trained on: short, and unlike each other, as an adapter may show on some only. */
export const neutralQuestions = [
  "Who are you?",
  "What should I do today?",
  "Tell me a story.",
  "Summarise: the meeting moved from Monday to Thursday.",
  "What is 17 + 25?",
  "Write a function that adds two numbers.",
  "你好，请介绍一下自己。",
  "Hello!",
];

/** What stands before the last trained span; it ends as the server's prompt does. */
export function promptOf({ ids, labels }: Sequence): number[] {
  let start = labels.findLastIndex((label) => label !== ignored);
  while (start > 0 && labels[start - 1] !== ignored) start--;
  return [...ids.subarray(0, start)];
}

/**
 * What both sides of a pair begin with: the question, and the answer up to where the sides part. Right there a model that learned which side is
 * better differs most from its base.
 */
export function sharedStart({ ids: one }: Sequence, { ids: other }: Sequence): number[] {
  let end = 0;
  while (end < Math.min(one.length, other.length) - 1 && one[end] === other[end]) end++;
  return [...one.subarray(0, end)];
}

/** The questions as the server would present them: by the base's template, or as plain text where it has none. */
export async function promptsFor(encoder: RecordEncoder, name: string, questions: readonly string[]): Promise<ProbePrompt[]> {
  const answered = questions.map((question, at) =>
    recordOf(at, [
      { role: "user", content: question },
      { role: "assistant", content: "." },
    ]),
  );
  const encoded = await encoder.encode(answered);
  return encoded.flatMap(({ samples: [sample] }, at) => {
    const input_ids = sample === undefined ? [] : promptOf(sample);
    return input_ids.length === 0 ? [] : [{ name: `${name}-${at + 1}`, input_ids }];
  });
}

export async function plainPromptsFor(encoder: RecordEncoder, name: string, texts: readonly string[]): Promise<ProbePrompt[]> {
  const encoded = await encoder.encode(texts.map((text, at) => ({ ...recordOf(at), kind: "text", text })));
  return encoded.flatMap(({ samples: [sample] }, at) => {
    // Without the end of the text, which an answer does not come after.
    const input_ids = sample === undefined ? [] : [...sample.ids.subarray(0, -1)];
    return input_ids.length === 0 ? [] : [{ name: `${name}-${at + 1}`, input_ids }];
  });
}

const recordOf = (at: number, messages?: Rec["messages"]): Rec => ({
  v: "lrec/1",
  id: digestOf(String(at)),
  kind: "chat",
  task: "probe",
  ...(messages === undefined ? {} : { messages }),
  meta: { file: "probe", line: at + 1, format: "probe" },
});
