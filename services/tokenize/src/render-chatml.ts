/**
 * Conversations of the ChatML family as pieces of a token sequence. Pure.
 *
 *     <|im_start|>system\n…<|im_end|>\n<|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n…<|im_end|>\n
 *                                                                                             trained
 *
 * Control tokens are ids from the start, so that nothing inside of a message can become one (M6). A trained turn is tokenized
 * apart from its header, because that is where the server stops reading and the model starts writing (M2).
 */
import { isTrainedTurn, type Message } from "@loraline/contracts";

export interface Chatml {
  readonly family: "chatml";
  /** Such as `<|im_start|>` and `<|im_end|>`. */
  readonly start: { readonly text: string; readonly id: number };
  readonly end: { readonly text: string; readonly id: number };
  /** The system prompt that the template adds when a conversation has none; null: it adds none. */
  readonly defaultSystem: string | null;
}

/** Part of a sequence: one token, or a text to be encoded by itself. */
export type Piece = ({ readonly token: number } | { readonly text: string }) & { readonly trained: boolean };

export interface Turn {
  readonly role: Message["role"];
  readonly trained: boolean;
  readonly pieces: readonly Piece[];
}

/** The conversation with the system prompt that the server would use, so that the trained prompt is the served one (M7). */
export function withSystem(messages: readonly Message[], chatml: Chatml, system: string | undefined): readonly Message[] {
  const content = system ?? chatml.defaultSystem;
  if (messages[0]?.role === "system" || content === null) return messages;
  return [{ role: "system", content }, ...messages];
}

export function renderChatml(messages: readonly Message[], chatml: Chatml): Turn[] {
  const { start, end } = chatml;
  return messages.map((message) => {
    const { role, content } = message;
    // An empty answer has nothing to teach but silence.
    const trained = isTrainedTurn(message) && content.trim() !== "";
    const body: Piece[] = trained
      ? [
          { text: "assistant\n", trained: false },
          { text: content, trained: true },
        ]
      : [{ text: `${role}\n${content}`, trained: false }];
    return {
      role,
      trained,
      pieces: [{ token: start.id, trained: false }, ...body, { token: end.id, trained }, { text: "\n", trained: false }],
    };
  });
}

/** What the server puts behind the conversation to make the model answer. */
export const generationPrompt = (chatml: Chatml): Piece[] => [
  { token: chatml.start.id, trained: false },
  { text: "assistant\n", trained: false },
];

/** The same as text, to be compared with what the base's own template renders. */
export const renderChatmlText = (messages: readonly Message[], chatml: Chatml, forGeneration: boolean): string =>
  withSystem(messages, chatml, undefined)
    .map(({ role, content }) => `${chatml.start.text}${role}\n${content}${chatml.end.text}\n`)
    .join("") + (forGeneration ? `${chatml.start.text}assistant\n` : "");
