/** The content of a record, as text. Pure. */
import { isTrainedTurn, type Message, pictureMark, type Rec, type Sample } from "@loraline/contracts";

type Segments = Sample["segments"];

/** @returns every text of a record, in reading order. */
export function textsOf(record: Rec): string[] {
  const turns = [...(record.messages ?? []), ...(record.chosen ?? []), ...(record.rejected ?? [])];
  return [
    ...turns.flatMap(({ content, reasoning, tool_calls: calls }) => [reasoning, content, calls].filter((text) => text !== undefined)),
    ...(record.candidates ?? []).map(({ content }) => content),
    ...[record.prompt, record.completion, record.text, record.tools].filter((text) => text !== undefined),
  ].filter((text) => text !== "");
}

/** @returns the record as turns, without a base's template, with the information which turns are trained. */
export function segmentsOf(record: Rec): Segments {
  switch (record.kind) {
    case "completion":
      return [segment(record.prompt ?? "", false), segment(record.completion ?? "", true)];
    case "text":
      return [segment(record.text ?? "", true)];
    case "pretokenized":
      return [segment(`${record.input_ids?.length ?? 0} token ids`, false)];
    case "preference":
      return [...turnsOf(record.messages), ...turnsOf(record.chosen, "chosen "), ...turnsOf(record.rejected, "rejected ")].map(untrained);
    case "ranked":
      return [
        ...turnsOf(record.messages),
        ...(record.candidates ?? []).map(({ content }) => segment(`candidate: ${content}\n`, false)),
      ].map(untrained);
    case "unpaired":
      return [...turnsOf(record.messages), segment(`label: ${String(record.label)}`, false)].map(untrained);
    case "chat":
      return turnsOf(record.messages);
  }
}

const turnsOf = (messages: Rec["messages"] = [], before = ""): Segments =>
  messages.flatMap((message) => {
    const said = [message.reasoning, message.content, message.tool_calls].filter((text) => text !== undefined && text !== "").join("\n");
    return [segment(`${before}${message.role}: `, false), segment(pictured(said, message), isTrainedTurn(message)), segment("\n", false)];
  });
/** A text with `[image]` where pictures are shown. */
function pictured(said: string, { content, media = [] }: Pick<Message, "content" | "media">): string {
  if (media.length === 0) return said;
  const marks = content.split(pictureMark).length - 1;
  return `${"[image] ".repeat(Math.max(0, media.length - marks))}${said.replaceAll(pictureMark, "[image]")}`;
}
const segment = (text: string, trained: boolean): Segments[number] => ({ text, trained });
const untrained = ({ text }: Segments[number]): Segments[number] => segment(text, false);
