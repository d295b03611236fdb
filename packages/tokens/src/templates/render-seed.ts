/**
 * The well-known `process_func`, bit for bit. Pure.
 *
 *     instruction = tokenizer(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{instruction + input}<|im_end|>\n<|im_start|>assistant\n")
 *     response    = tokenizer(output)
 *     input_ids   = instruction + response + [pad]        labels = -100 for the instruction; both cut on the right
 *
 * As in `process_func`, control tokens that are spelled in the data become control tokens, and a record that is cut loses its last token.
 */
import type { Rec } from "@loraline/contracts";

/** The system prompt that `process_func` puts on every record. */
export const seedSystem = "现在你要扮演皇帝身边的女人--甄嬛";

interface SeedRow {
  prompt: string;
  answer: string;
}

/** The two texts of a record; undefined when it is not one question and one answer. */
export function renderSeed(record: Rec, system: string): SeedRow | undefined {
  const columns = record.meta.seed ?? columnsOf(record);
  if (columns === undefined) return undefined;
  return { prompt: seedPrompt(columns.instruction + columns.input, system), answer: columns.output };
}

export const seedPrompt = (user: string, system: string): string =>
  `<|im_start|>system\n${system}<|im_end|>\n<|im_start|>user\n${user}<|im_end|>\n<|im_start|>assistant\n`;

/** A conversation of one question and one answer has the same columns; its own system prompt gives way to the fixed one. */
function columnsOf(record: Rec): { instruction: string; input: string; output: string } | undefined {
  if (record.kind !== "chat" || record.tools !== undefined) return undefined;
  const [user, assistant, more] = (record.messages ?? []).filter((message) => message.role !== "system");
  if (user?.role !== "user" || assistant?.role !== "assistant" || more !== undefined || assistant.tool_calls !== undefined)
    return undefined;
  return { instruction: user.content, input: "", output: assistant.content };
}
