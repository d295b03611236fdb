/**
 * Plain conversations (an optional system prompt, then question and answer in turn) at token level, by the turns of a template. Pure.
 *
 * ChatML, Llama 2 and 3, Mistral, Gemma, Phi and DeepSeek differ in the texts between the contents and in the blanks that they remove;
 * recognise-template.ts finds both.
 */
import type { Message } from "@loraline/contracts";
import { append, type Piece, type SplitText } from "./pieces.ts";
import { type Conversation, isTaught, type Rendered, type Sample } from "./render-jinja.ts";

/** Blanks that a template removes at one end of a content: none, newlines, or all. */
export type Strip = "none" | "newlines" | "blanks";
export interface Slot {
  readonly left: Strip;
  readonly right: Strip;
}

/** The texts of a template around contents, with control tokens in their usual spelling. */
export interface Turns {
  /** Text before the first question of a conversation without a system prompt; includes a default system prompt. */
  readonly opening: string;
  /** Texts around the system prompt, up to the first question; null: the template allows none. */
  readonly system: { readonly before: string; readonly after: string } | null;
  /** Texts between a question and its answer: if later questions follow, for the last answer, and the server's prompt for an answer. */
  readonly toAnswer: string;
  readonly toLastAnswer: string;
  readonly generation: string;
  readonly toQuestion: string;
  readonly closing: string;
  readonly slots: Readonly<Record<SlotName, Slot>>;
}
export type SlotName = "system" | "firstQuestion" | "questionAfterSystem" | "question" | "answer" | "lastAnswer";

export interface TurnRenderer {
  /** Whether a conversation is plain. The caller checks its contents. */
  takes(conversation: Conversation): boolean;
  render(conversation: Conversation): Rendered;
}

/** @param isStop - whether the engine stops at a control token. */
export function createTurnRenderer(turns: Turns, split: SplitText, isStop: (control: string) => boolean): TurnRenderer {
  const cut = (text: string, trained = false): readonly Piece[] => {
    const pieces: Piece[] = [];
    split(text, trained, pieces);
    return pieces;
  };
  /** Cuts the text after an answer. Its part up to the stop token is trained, because the model must write it. */
  const ending = (text: string): { trained: readonly Piece[]; rest: readonly Piece[] } => {
    const pieces = cut(text);
    const stop = pieces.findIndex((piece) => "control" in piece && isStop(piece.control)) + 1;
    return { trained: pieces.slice(0, stop).map((piece) => ({ ...piece, trained: true })), rest: pieces.slice(stop) };
  };
  /** @returns the text that the model writes before the answer, such as an empty thought. */
  const lead = (text: string): readonly Piece[] => cut(text.slice(turns.generation.length), true);

  const opening = cut(turns.opening);
  const system = turns.system === null ? undefined : { before: cut(turns.system.before), after: cut(turns.system.after) };
  const generation = cut(turns.generation);
  const untrained = {
    early: { head: cut(turns.toAnswer), tail: cut(turns.toQuestion) },
    last: { head: cut(turns.toLastAnswer), tail: cut(turns.closing) },
  };
  const trained = {
    early: { head: lead(turns.toAnswer), tail: ending(turns.toQuestion) },
    last: { head: lead(turns.toLastAnswer), tail: ending(turns.closing) },
  };
  const changesWhenLast = turns.toAnswer !== turns.toLastAnswer || !isSame(turns.slots.answer, turns.slots.lastAnswer);

  const put = (pieces: readonly Piece[], into: Piece[]): void => {
    for (const piece of pieces) append(into, piece);
  };
  const say = (text: string, slot: SlotName, isTrained: boolean, into: Piece[]): void =>
    append(into, { text: strip(text, turns.slots[slot]), trained: isTrained });

  const conversation = (messages: readonly Message[], isTrained: (index: number) => boolean, into: Piece[]): void => {
    const first = messages[0]?.role === "system" ? 1 : 0;
    if (first === 1 && system !== undefined) {
      put(system.before, into);
      say(messages[0]?.content ?? "", "system", false, into);
      put(system.after, into);
    } else put(opening, into);
    for (let index = first; index < messages.length; index++) {
      const { role, content } = messages[index] as Message;
      if (role === "user") {
        say(content, index > first ? "question" : first === 1 ? "questionAfterSystem" : "firstQuestion", false, into);
      } else answer(content, index === messages.length - 1 ? "last" : "early", isTrained(index), into);
    }
  };
  const answer = (content: string, when: "early" | "last", isTrained: boolean, into: Piece[]): void => {
    const slot = when === "last" ? "lastAnswer" : "answer";
    if (isTrained) {
      const { head, tail } = trained[when];
      put(generation, into);
      put(head, into);
      say(content, slot, true, into);
      put(tail.trained, into);
      put(tail.rest, into);
    } else {
      put(untrained[when].head, into);
      say(content, slot, false, into);
      put(untrained[when].tail, into);
    }
  };

  return {
    takes({ messages, tools }) {
      if (tools !== undefined) return false;
      const first = messages[0]?.role === "system" ? 1 : 0;
      if (first === 1 && system === undefined) return false;
      if ((messages.length - first) % 2 !== 0 || messages.length === first) return false;
      return messages.every(
        ({ role, content, tool_calls, reasoning, name }, index) =>
          (index < first || role === ((index - first) % 2 === 0 ? "user" : "assistant")) &&
          /\S/.test(content) &&
          tool_calls === undefined &&
          reasoning === undefined &&
          name === undefined,
      );
    },
    render({ messages }) {
      const taught = messages.flatMap((message, index) => (isTaught(message) ? [index] : []));
      const sample = (end: number, which: readonly number[]): Sample => {
        const pieces: Piece[] = [];
        conversation(messages.slice(0, end), (index) => which.includes(index), pieces);
        return { pieces, end, trained: which };
      };
      const whole = !changesWhenLast || taught.length === 0 || (taught.length === 1 && taught[0] === messages.length - 1);
      return { samples: whole ? [sample(messages.length, taught)] : taught.map((index) => sample(index + 1, [index])), notes: [] };
    },
  };
}

const isSame = (a: Slot, b: Slot): boolean => a.left === b.left && a.right === b.right;

/** Characters that Python's `strip()` removes; JavaScript's `trim()` removes others. */
const blanks = new Set(
  "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
);
const taken: Readonly<Record<Strip, ReadonlySet<string>>> = { none: new Set(), newlines: new Set("\n"), blanks };

function strip(text: string, { left, right }: Slot): string {
  let [start, end] = [0, text.length];
  while (start < end && taken[left].has(text.charAt(start))) start++;
  while (end > start && taken[right].has(text.charAt(end - 1))) end--;
  return text.slice(start, end);
}
