/** One question and its answer as a conversation. Pure. */
import type { Message } from "@loraline/contracts";
import type { Turns } from "./convert-conversation.ts";
import { type Media, mediaOf, placeImages } from "./place-images.ts";
import { fillTemplate } from "./prompt-templates.ts";
import { type Body, type Context, isBlank, isBlankValue, type Refusal, refuse } from "./signature.ts";

interface Question {
  readonly task: string;
  /** The user's turn, unless the mapping has a template for it. */
  readonly user: string;
  /** Fields of the user's turn; at least one must not be empty. */
  readonly asks: readonly string[];
  readonly answer: string;
  readonly answers: string;
  /** Values by field, for the mapping's template. */
  readonly values: Readonly<Record<string, unknown>>;
  readonly system?: string | undefined;
  readonly history?: Turns | undefined;
  /** The row's images, as it has them. */
  readonly image?: unknown;
}

/** A conversation of one question and its answer. */
export function ask(question: Question, { template, row, names }: Context): { body: Body } | Refusal {
  const { task, asks, answer, answers, values, system, history, image } = question;
  if (isBlank(answer)) return refuse("EMPTY_ANSWER", `\`${names[answers] ?? answers}\` is empty: there is nothing to learn from it`);
  if (asks.length > 0 && asks.every((field) => isBlankValue(values[field]))) {
    const said = asks.flatMap((field) => names[field] ?? []).map((name) => `\`${name}\``);
    return refuse("EMPTY_PROMPT", `${said.join(" and ")} ${said.length === 1 ? "is" : "are both"} empty`);
  }
  let { user } = question;
  if (template !== undefined) {
    const filled = fillTemplate(template, values, row);
    if (typeof filled !== "string") return refuse("COLUMN_MISSING", filled.message);
    user = filled;
  }
  const messages: Message[] = [];
  if (system !== undefined && system !== "") messages.push({ role: "system", content: system });
  if (history !== undefined) messages.push(...history.messages);
  const asked: Message = { role: "user", content: user };
  messages.push(asked, { role: "assistant", content: answer });
  const images = mediaOf(image, names.image ?? "image");
  if ("code" in images) return images;
  const media: Media = [...(history?.media ?? [])];
  const misplaced = placeImages(messages, media, images, { parts: history?.imageParts, question: asked });
  if (misplaced !== undefined) return misplaced;
  const body: Body = { kind: "chat", task, messages };
  if (media.length > 0) body.media = media;
  return { body };
}
