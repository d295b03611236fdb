/** Finds out whether a base's chat template is of the ChatML family, and proves it before anything is trained on it. */
import { Template } from "@huggingface/jinja";
import type { Message } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { Base } from "./load-base.ts";
import { type Chatml, type Piece, renderChatml, renderChatmlText, withSystem } from "./render-chatml.ts";

/** Conversations whose rendering must be equal, text and ids. They hold what renderers differ in: blanks at the edges, several turns, no system. */
const proofs: readonly (readonly Message[])[] = [
  [{ role: "user", content: "Hello!" }],
  [
    { role: "system", content: "Be brief." },
    { role: "user", content: "  What is 1 + 1? \n" },
  ],
  [
    { role: "system", content: "你是一只小狐狸 🦊" },
    { role: "user", content: "你好" },
    { role: "assistant", content: "你好!" },
    { role: "user", content: "今天天气怎么样?" },
    { role: "assistant", content: "Sunny.\n\nAnd warm. " },
  ],
  [
    { role: "user", content: "a" },
    { role: "assistant", content: "b" },
    { role: "user", content: "c" },
  ],
];

/**
 * @throws PermanentError TEMPLATE_MISSING; TEMPLATE_UNSUPPORTED with both renderings.
 */
export async function recogniseTemplate(base: Base): Promise<Chatml> {
  const { ref, template, encoder, stopIds } = base;
  if (template === null) {
    const message = `base "${ref.name}" has no chat template, so it cannot be trained on conversations. Use prompt/completion rows, or a base with a template.`;
    throw new PermanentError("TEMPLATE_MISSING", message, { param: "base" });
  }
  const unsupported = (why: string, cause?: unknown): PermanentError =>
    new PermanentError("TEMPLATE_UNSUPPORTED", `the chat template of base "${ref.name}" is not supported: ${why}`, {
      param: "base",
      cause,
    });
  const render = createRender(base, unsupported);

  const chatml = findMarkers(base, render, unsupported);
  if (!stopIds.has(chatml.end.id)) {
    throw unsupported(
      `a turn ends with ${quote(chatml.end.text)}, but the engine would not stop there. Add id ${chatml.end.id} to eos_token_id in its generation_config.json.`,
    );
  }
  for (const messages of proofs) {
    for (const forGeneration of [false, true]) {
      const theirs = render(messages, forGeneration);
      const ours = renderChatmlText(messages, chatml, forGeneration);
      if (theirs !== ours) throw unsupported(`it renders ${quote(theirs)}, where ChatML is ${quote(ours)}`);
    }
    // Piece by piece must give what the server gets from the whole text; a tokenizer that joins or prefixes pieces does not.
    const theirs = (await encoder.encode([render(messages, false)], "raw"))[0] as Int32Array;
    const pieces = renderChatml(
      withSystem(messages, chatml, undefined).map((message) => ({ ...message, train: false })),
      chatml,
    ).flatMap((turn) => turn.pieces);
    const ours = await encodePieces(base, pieces);
    if (theirs.length !== ours.length || theirs.some((id, index) => id !== ours[index])) {
      throw unsupported(
        `its tokenizer gives [${theirs.join(" ")}] for the whole text ${quote(render(messages, false))}, but [${ours.join(" ")}] for its pieces`,
      );
    }
  }
  return chatml;
}

type Render = (messages: readonly Message[], forGeneration: boolean) => string;

function createRender({ template, special }: Base, unsupported: (why: string, cause: unknown) => Error): Render {
  try {
    const parsed = new Template(template ?? "");
    return (messages, forGeneration) =>
      parsed.render({
        messages,
        add_generation_prompt: forGeneration,
        ...Object.fromEntries(Object.entries(special).map(([name, token]) => [`${name}_token`, token ?? ""])),
      });
  } catch (error) {
    throw unsupported(`it cannot be parsed: ${(error as Error).message}`, error);
  }
}

function findMarkers({ encoder }: Base, render: Render, unsupported: (why: string, cause?: unknown) => Error): Chatml {
  let whole: string;
  let bare: string;
  try {
    whole = render(
      [
        { role: "system", content: "SYS" },
        { role: "user", content: "USR" },
      ],
      true,
    );
    bare = render([{ role: "user", content: "USR" }], true);
  } catch (error) {
    throw unsupported(`it cannot render a plain conversation: ${(error as Error).message}`, error);
  }
  const [, start, end] = /^(.+)system\nSYS(.+)\n\1user\nUSR\2\n\1assistant\n$/s.exec(whole) ?? [];
  if (start === undefined || end === undefined) {
    throw unsupported(
      `it renders ${quote(whole)}, where ChatML is ${quote("<|im_start|>system\nSYS<|im_end|>\n<|im_start|>user\nUSR<|im_end|>\n<|im_start|>assistant\n")}`,
    );
  }
  const [startId, endId] = [encoder.controlId(start), encoder.controlId(end)];
  if (startId === undefined || endId === undefined)
    throw unsupported(`${quote(start)} and ${quote(end)} are not control tokens of its tokenizer`);
  const rest = `${start}user\nUSR${end}\n${start}assistant\n`;
  const opening = bare.endsWith(rest) ? bare.slice(0, -rest.length) : undefined;
  const head = `${start}system\n`;
  const tail = `${end}\n`;
  const hasSystem = opening?.startsWith(head) === true && opening.endsWith(tail);
  return {
    family: "chatml",
    start: { text: start, id: startId },
    end: { text: end, id: endId },
    // Anything else before the first turn shows as a difference in the proofs.
    defaultSystem: hasSystem ? opening.slice(head.length, -tail.length) : null,
  };
}

/** Ids of pieces, each encoded by itself. */
export async function encodePieces({ encoder }: Pick<Base, "encoder">, pieces: readonly Piece[]): Promise<number[]> {
  const texts = pieces.flatMap((piece) => ("text" in piece ? [piece.text] : []));
  const encoded = (await encoder.encode(texts, "plain")).values();
  return pieces.flatMap((piece) => ("token" in piece ? [piece.token] : [...(encoded.next().value as Int32Array)]));
}

const quote = (text: string): string => JSON.stringify(text.length > 600 ? `${text.slice(0, 600)}…` : text);
