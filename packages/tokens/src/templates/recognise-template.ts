/** Finds out how a base's chat template works from texts that it renders, and proves the result before a run is trained with it. */
import type { Message } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime/errors";
import { encodePieces } from "../encoder/encode-pieces.ts";
import type { Base } from "../encoder/load-base.ts";
import { createSplit, type Piece } from "./pieces.ts";
import { type Conversation, createJinja, type Jinja, quote, type Refused, type Rendered } from "./render-jinja.ts";
import { createTurnRenderer, type Slot, type SlotName, type Strip, type TurnRenderer, type Turns } from "./render-turns.ts";

export interface ChatTemplate {
  /** `chatml`, `llama2`, `llama3`, `mistral`, `gemma`, `phi`, `deepseek`; `turns`: another template that is as regular; `jinja`: rendered only by its own source. */
  readonly family: string;
  render(conversation: Conversation): Rendered | Refused;
  /** Renders a conversation as the server presents it to the model. @throws Error that the template raises */
  prompt(conversation: Conversation): Piece[];
}

/** Most messages of a conversation. Each trained turn is rendered with everything before it, which takes quadratic time: ten seconds at this limit. */
const mostMessages = 2000;
const tooMany = ({ messages }: Conversation): Refused => ({
  code: "TOO_LONG",
  message: `the conversation has ${messages.length} messages; at most ${mostMessages} are taken. Split it.`,
});

const user = (content: string): Message => ({ role: "user", content });
const assistant = (content: string): Message => ({ role: "assistant", content });
const system = (content: string): Message => ({ role: "system", content });

const recognised = new WeakMap<Base, Promise<ChatTemplate>>();

/**
 * Call it once per base: the proof takes a few hundred renderings.
 * @throws PermanentError TEMPLATE_MISSING; TEMPLATE_UNSUPPORTED with what it renders.
 */
export function recogniseTemplate(base: Base): Promise<ChatTemplate> {
  const found = recognised.get(base) ?? recognise(base);
  recognised.set(base, found);
  return found;
}

async function recognise(base: Base): Promise<ChatTemplate> {
  const { ref, template, encoder } = base;
  if (template === null) {
    const message = `base "${ref.name}" has no chat template, so it cannot be trained on conversations. Use prompt/completion rows, or a base with a template.`;
    throw new PermanentError("TEMPLATE_MISSING", message, { param: "base" });
  }
  const unsupported = (why: string, cause?: unknown): PermanentError =>
    new PermanentError("TEMPLATE_UNSUPPORTED", `the chat template of base "${ref.name}" is not supported: ${why}`, {
      param: "base",
      cause,
    });
  let stopIds: ReadonlySet<number>;
  let jinja: Jinja;
  try {
    stopIds = base.stopIds ?? findStops(base);
    jinja = createJinja(base, stopIds);
  } catch (error) {
    throw unsupported(`it cannot be parsed: ${(error as Error).message}`, error);
  }
  judgePlain(jinja, stopIds, base, unsupported);

  const turns = findTurns((messages, forGeneration) => jinja.text({ messages }, forGeneration));
  const split = createSplit(encoder.controls);
  const isStop = (control: string): boolean => stopIds.has(encoder.controls.get(control) ?? -1);
  const fast = turns === undefined ? undefined : createTurnRenderer(turns, split, isStop);
  const regular = fast !== undefined && isProven(fast, jinja) ? fast : undefined;
  await proveIds(base, jinja, regular ?? jinja, unsupported);
  const isTooMany = ({ messages }: Conversation): boolean => messages.length > mostMessages;
  if (regular === undefined || turns === undefined) {
    const render: ChatTemplate["render"] = (conversation) => (isTooMany(conversation) ? tooMany(conversation) : jinja.render(conversation));
    return { family: "jinja", render, prompt: jinja.prompt };
  }

  // The proof holds only for contents without words that the template itself looks for.
  const known = wordsOf(template);
  return {
    family: familyOf(turns, base.special.bos),
    prompt: jinja.prompt,
    render: (conversation) => {
      if (isTooMany(conversation)) return tooMany(conversation);
      const isPlain = ({ content, media }: Message): boolean => media === undefined && known?.test(content) !== true;
      return regular.takes(conversation) && conversation.messages.every(isPlain)
        ? regular.render(conversation)
        : jinja.render(conversation);
    },
  };
}

/** Checks a plain conversation, which every usable template can render. */
function judgePlain(jinja: Jinja, stopIds: ReadonlySet<number>, { encoder }: Base, unsupported: (why: string) => Error): void {
  const plain = [user("QUESTION"), assistant("ANSWER")];
  let text: string;
  let prompt: string;
  try {
    text = jinja.text({ messages: plain }, false);
    prompt = jinja.text({ messages: [user("QUESTION")] }, true);
  } catch (error) {
    throw unsupported(`it cannot render a plain conversation: ${(error as Error).message}`);
  }
  const shown = `For a question and an answer it renders ${quote(text)}; to make the model answer, ${quote(prompt)}.`;
  if (!prompt.includes("QUESTION") || !text.includes("ANSWER")) throw unsupported(`it leaves out what is said. ${shown}`);
  if (!text.startsWith(prompt)) throw unsupported(`the answer does not stand where the server lets the model write. ${shown}`);
  const [end] = [...encoder.controls.keys()]
    .flatMap((token) => {
      const at = text.indexOf(token, text.indexOf("ANSWER"));
      return at === -1 ? [] : [{ token, at }];
    })
    .sort((a, b) => a.at - b.at);
  if (end === undefined) throw unsupported(`a turn does not end with a control token of its tokenizer. ${shown}`);
  const id = encoder.controls.get(end.token) as number;
  if (!stopIds.has(id)) {
    throw unsupported(
      `a turn ends with ${quote(end.token)}, but the engine would not stop there. Add id ${id} to eos_token_id in its generation_config.json.`,
    );
  }
}

/** Finds stop tokens at the ends of the template's turns, for a base whose files do not name any. */
function findStops(base: Base): ReadonlySet<number> {
  const { encoder, special } = base;
  const eos = special.eos === null ? undefined : encoder.controls.get(special.eos);
  const stops = new Set(eos === undefined ? [] : [eos]);
  let text = "";
  try {
    text = createJinja(base, stops).text({ messages: [user("QUESTION"), assistant("ANSWER"), user("QUESTION")] }, false);
  } catch {
    return stops; // a template that cannot render this is refused later, with its error
  }
  const pieces: Piece[] = [];
  createSplit(encoder.controls)(text.slice(text.indexOf("ANSWER")), false, pieces);
  const end = pieces.find((piece) => "id" in piece);
  return end === undefined ? stops : stops.add((end as { id: number }).id);
}

/* --- the turns of a template --- */

type Render = (messages: readonly Message[], forGeneration: boolean) => string;

const words: Readonly<Record<string, string>> = { S: "Qsystemq", U: "Qfirstq", A: "Qearlyq", V: "Qsecondq", B: "Qlateq" };
const [S, U, A, V, B] = ["S", "U", "A", "V", "B"].map((name) => words[name] as string) as [string, string, string, string, string];

/** @returns the turns of a template; undefined: it does not consist of turns. */
function findTurns(render: Render): Turns | undefined {
  try {
    const plain = cutAt(render([user(U), assistant(A), user(V), assistant(B)], false), [U, A, V, B]);
    const short = cutAt(render([user(U), assistant(B)], false), [U, B]);
    const generation = cutAt(render([user(U)], true), [U])?.[1];
    const later = cutAt(render([user(U), assistant(A), user(V)], true), [U, A, V])?.[3];
    if (plain === undefined || short === undefined || generation === undefined || later !== generation) return undefined;
    const [opening, toAnswer, toQuestion, toLastAnswer, closing] = plain as [string, string, string, string, string];
    if (short[0] !== opening || short[1] !== toLastAnswer || short[2] !== closing) return undefined;
    if (!toAnswer.startsWith(generation) || !toLastAnswer.startsWith(generation)) return undefined;
    const turns = { opening, toAnswer, toLastAnswer, generation, toQuestion, closing, system: findSystem(render, plain) };
    const slots = findSlots(render, turns.system !== null);
    return slots === undefined ? undefined : { ...turns, slots };
  } catch {
    return undefined; // the template raises an error, or puts an answer before its question
  }
}

function findSystem(render: Render, plain: readonly string[]): Turns["system"] {
  try {
    const cut = cutAt(render([system(S), user(U), assistant(A), user(V), assistant(B)], false), [S, U, A, V, B]);
    if (cut === undefined || cut.slice(2).join("\0") !== plain.slice(1).join("\0")) return null;
    return { before: cut[0] as string, after: cut[1] as string };
  } catch {
    return null;
  }
}

/** Finds the blanks that the template removes at each place. */
function findSlots(render: Render, withSystem: boolean): Turns["slots"] | undefined {
  const blanks = "\n \n";
  const find = (name: string, names: readonly string[], make: (say: (name: string) => string) => readonly Message[]): Slot | undefined => {
    const marks = names.map((one) => words[one] as string);
    const bare = cutAt(
      render(
        make((one) => words[one] as string),
        false,
      ),
      marks,
    );
    const padded = cutAt(
      render(
        make((one) => (one === name ? `${blanks}${words[one]}${blanks}` : (words[one] as string))),
        false,
      ),
      marks,
    );
    const at = names.indexOf(name);
    const [before, after] = [bare?.[at], bare?.[at + 1]];
    const [left, right] = [padded?.[at], padded?.[at + 1]];
    if (before === undefined || after === undefined || left?.startsWith(before) !== true || right?.endsWith(after) !== true)
      return undefined;
    const kept: Readonly<Record<string, Strip>> = { [blanks]: "none", " \n": "newlines", "\n ": "newlines", "": "blanks" };
    const [l, r] = [kept[left.slice(before.length)], kept[right.slice(0, right.length - after.length)]];
    return l === undefined || r === undefined ? undefined : { left: l, right: r };
  };
  const two = (say: (name: string) => string): Message[] => [user(say("U")), assistant(say("A")), user(say("V")), assistant(say("B"))];
  const three = (say: (name: string) => string): Message[] => [system(say("S")), ...two(say)];
  const none: Slot = { left: "none", right: "none" };
  const slots: Record<SlotName, Slot | undefined> = {
    firstQuestion: find("U", ["U", "A", "V", "B"], two),
    question: find("V", ["U", "A", "V", "B"], two),
    answer: find("A", ["U", "A", "V", "B"], two),
    lastAnswer: find("B", ["U", "A", "V", "B"], two),
    system: withSystem ? find("S", ["S", "U", "A", "V", "B"], three) : none,
    questionAfterSystem: withSystem ? find("U", ["S", "U", "A", "V", "B"], three) : none,
  };
  return Object.values(slots).includes(undefined) ? undefined : (slots as Turns["slots"]);
}

/** @returns the texts before, between and after the marks; undefined unless each mark stands there once, in this order. */
function cutAt(text: string, marks: readonly string[]): string[] | undefined {
  const parts: string[] = [];
  let rest = text;
  for (const mark of marks) {
    const [before, after, more] = rest.split(mark);
    if (before === undefined || after === undefined || more !== undefined) return undefined;
    parts.push(before);
    rest = after;
  }
  return [...parts, rest];
}

/* --- proofs --- */

/** Contents for which renderers may give different texts. */
const contents = [
  "a",
  " a ",
  "\n\na\n\n",
  "\t a\n",
  "a\nb",
  "a\n\n\nb ",
  "0",
  "None",
  "true",
  "[]",
  "{}",
  '{"a": 1}',
  "{{ x }}",
  "{% if x %}",
  "'",
  '"',
  "\\",
  "\\n",
  "<b>&amp;</b>",
  "|",
  "a|b",
  "/",
  "# Title",
  "你好",
  "你是一只小狐狸 🦊",
  "e\u0301",
  "مرحبا",
  "\u200b",
  "\u00a0a\u00a0",
  "\u3000a\u3000",
  "\u2028",
  "\r\n a \r\n",
  "user",
  "system",
  "assistant",
  "model",
];

/** Whether the pieces of the turns, joined, are the text that the template renders. */
function isProven(turns: TurnRenderer, jinja: Jinja): boolean {
  const same = (messages: readonly Message[]): boolean => {
    const conversation = { messages };
    if (!turns.takes(conversation)) return true;
    const [ours, theirs] = [turns.render(conversation), jinja.render(conversation)];
    return "samples" in theirs && JSON.stringify(ours) === JSON.stringify(theirs);
  };
  const conversation = (say: (slot: string) => string): Message[] => [
    user(say("U")),
    { ...assistant(say("A")), train: false },
    user(say("V")),
    assistant(say("B")),
  ];
  for (const content of contents) {
    for (const slot of ["S", "U", "A", "V", "B"]) {
      const say = (name: string): string => (name === slot ? content : (words[name] as string));
      if (!same([system(say("S")), ...conversation(say)])) return false;
    }
    const everywhere = conversation(() => content);
    if (!same(everywhere) || !same(everywhere.slice(2))) return false;
  }
  const plain = conversation((name) => words[name] as string).map(({ role, content }) => ({ role, content }));
  return same(plain) && same([...plain, ...plain]) && same([system(S), ...plain, ...plain]);
}

const spoken: readonly (readonly Message[])[] = [
  [user("Hello!"), assistant("Hi.")],
  [user("  What is 1 + 1? \n"), assistant(" 2\n")],
  [user("你好"), assistant("你好!"), user("今天天气怎么样?"), assistant("Sunny.\n\nAnd warm. ")],
  [user("a"), assistant("b"), user("c"), assistant("e\u0301 🦊")],
];

/** Checks that the ids of the pieces are the ids of the whole text, which the server gets. A tokenizer that joins or prefixes pieces can differ. */
async function proveIds(
  base: Base,
  jinja: Jinja,
  renderer: Pick<ChatTemplate, "render">,
  unsupported: (why: string) => Error,
): Promise<void> {
  for (const messages of spoken) {
    const untrained = messages.map((message) => ({ ...message, train: false }));
    const rendered = renderer.render({ messages: untrained });
    if (!("samples" in rendered)) throw unsupported(rendered.message);
    const text = jinja.unseal(jinja.text({ messages }, false));
    const theirs = (await base.encoder.encode([text], "raw"))[0] as Int32Array;
    const ours =
      (
        await encodePieces(
          base,
          rendered.samples.map((sample) => sample.pieces),
        )
      )[0]?.ids ?? [];
    if (theirs.length !== ours.length || theirs.some((id, index) => id !== ours[index])) {
      throw unsupported(
        `its tokenizer gives [${theirs.join(" ")}] for the whole text ${quote(text)}, but [${ours.join(" ")}] for its pieces`,
      );
    }
  }
}

/** Makes a pattern for contents that the template may treat specially: with any text of its source that is not just a name or a blank, or with names that it searches for. */
function wordsOf(template: string): RegExp | undefined {
  const found = new Set<string>();
  for (const { 0: whole, 2: inner = "", index } of template.matchAll(/(["'])((?:(?!\1)[^\\]|\\.)*)\1/gs)) {
    const text = inner.replaceAll(/\\(.)/gs, (_, letter: string) => ({ n: "\n", t: "\t", r: "\r" })[letter] ?? letter).trim();
    const [before, after] = [
      template.slice(Math.max(0, index - 14), index),
      template.slice(index + whole.length, index + whole.length + 10),
    ];
    const searched = /(?:with|split|replace|strip|find|count)\(\s*$|[=!]=\s*$/.test(before) || /^\s*(?:not\s+)?in\b/.test(after);
    if (text !== "" && (/\W/.test(text) || (searched && !roleNames.has(text)))) found.add(text);
  }
  return found.size === 0 ? undefined : new RegExp([...found].map((text) => RegExp.escape(text)).join("|"));
}
const roleNames = new Set(["system", "user", "assistant", "tool"]);

/** Recognises the family by the texts around an answer. */
function familyOf({ toAnswer, toQuestion }: Turns, bos: string | null): string {
  if (/^(\S+)\n(\S+)assistant\n(<think>\s*(<\/think>\s*)?)?$/.test(toAnswer) && /^(\S+)\n(\S+)user\n$/.test(toQuestion)) return "chatml";
  if (/^\S+assistant\S+\n\n$/.test(toAnswer)) return "llama3";
  if (/^\S+\n\S+model\n$/.test(toAnswer)) return "gemma";
  if (/\[\/INST\]\s*$/.test(toAnswer)) return bos !== null && toQuestion.includes(bos) ? "llama2" : "mistral";
  if (/<\|assistant\|>\n?$/.test(toAnswer) || /^\S+assistant<\|im_sep\|>$/.test(toAnswer)) return "phi";
  if (/^<.Assistant.>(<\/think>)?$/u.test(toAnswer)) return "deepseek";
  return "turns";
}
