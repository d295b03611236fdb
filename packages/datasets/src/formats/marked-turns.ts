/**
 * Conversations that stand in one text, with marks for who speaks: guanaco's `### Human: … ### Assistant: …`, Alpaca's `### Instruction:` and
 * `### Response:`, Anthropic's `Human:` and `Assistant:`. As a plain text the questions would be learned, too, and in a shape in which nobody
 * asks: chats are written by the base's chat template. Pure.
 */
import type { Row } from "./signature.ts";

const roles: Readonly<Record<string, "system" | "user" | "assistant">> = {
  System: "system",
  Human: "user",
  User: "user",
  Instruction: "user",
  Input: "user",
  Assistant: "assistant",
  Response: "assistant",
};
const mark = /### ?(System|Human|User|Instruction|Input|Assistant|Response): ?/g;
const plainMark = /(?<=^\s*|\n\n)(Human|Assistant): ?/g;

/**
 * @returns the turns, what stands before the first mark as the system's; undefined: the text is no conversation, which begins with a question
 * and holds an answer.
 */
export function turnsOfMarkedText(text: string): Row[] | undefined {
  const marks = [...text.matchAll(text.includes("### ") || text.includes("###H") ? mark : plainMark)];
  const speaks = marks.map(([, name]) => roles[name as string]).filter((role) => role !== "system");
  if (speaks[0] !== "user" || !speaks.includes("assistant")) return undefined;
  const before = text.slice(0, marks[0]?.index).trim();
  const turns: { role: string; content: string }[] = before === "" ? [] : [{ role: "system", content: before }];
  for (const [index, found] of marks.entries()) {
    const role = roles[found[1] as string] as string;
    const content = text.slice(found.index + found[0].length, marks[index + 1]?.index).trim();
    const last = turns.at(-1);
    // Alpaca's input belongs to its instruction.
    if (found[1] === "Input" && last?.role === "user") last.content = `${last.content}\n${content}`.trim();
    else turns.push({ role, content });
  }
  return turns;
}
