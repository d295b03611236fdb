/**
 * Converts labelled tokens to a task for a language model: entities as JSON, other tags written behind their tokens. (vLLM cannot
 * serve a LoRA with a token-classification head.) Pure.
 */
import { isUnspaced, languageOf, prompt } from "./prompt-templates.ts";
import { ask } from "./ask.ts";
import { type Context, type Conversion, type Refusal, refuse, shorten } from "./signature.ts";

const universal = new Set("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split(" "));
const pennTreebank = new Set(
  [
    ..."CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG VBN VBP VBZ".split(" "),
    ..."WDT WP WP$ WRB HYPH ADD NFP AFX . , : '' `` -LRB- -RRB- # $ ( )".split(" "),
  ].map((tag) => tag),
);
const inEntity = /^([BIESLUM])[-_](.+)$/s;

export function convertTags(
  { tokens, labels }: { tokens: readonly string[]; labels: readonly (string | number)[] },
  context: Context,
): Conversion {
  const { names, mapping } = context;
  if (tokens.length === 0) return refuse("EMPTY_PROMPT", `\`${names.tokens ?? "tokens"}\` is an empty list`);
  if (tokens.length !== labels.length) {
    return refuse("LENGTHS_DIFFER", `there are ${tokens.length} tokens and ${labels.length} labels; one label for each token is expected`);
  }
  const blank = tokens.findIndex((token) => token === "");
  if (blank !== -1) return refuse("TOKEN_EMPTY", `token ${blank + 1} is empty, so its label is nowhere in the text. Remove both.`);
  const tags: string[] = [];
  for (const [index, label] of labels.entries()) {
    const tag = typeof label === "string" ? label.trim() : mapping.labels?.[label];
    if (tag === undefined) {
      const message = `label ${index + 1} is the number ${label}. Name the labels, in the order of their numbers, in the mapping's \`labels\`.`;
      return refuse("LABEL_NAMES_MISSING", message);
    }
    tags.push(tag);
  }

  const text = joinTokens(tokens);
  const language = languageOf(mapping.language, text);
  const isEntities = tags.every((tag) => tag === "O" || inEntity.test(tag));
  if (isEntities) {
    const entities = entitiesOf(tokens, tags);
    if ("code" in entities) return entities;
    return converted("ner", "entities", JSON.stringify(entities));
  }
  const isPos = tags.every((tag) => universal.has(tag)) || tags.every((tag) => pennTreebank.has(tag));
  const tagged = tokens.map((token, index) => `${token}/${tags[index]}`).join(" ");
  return converted(isPos ? "pos" : "tagging", isPos ? "parts-of-speech" : "tags", tagged);

  function converted(task: string, by: Parameters<typeof prompt>[0], answer: string): Conversion {
    const { user, template } = prompt(by, { text }, language);
    const asked = ask({ task, user, asks: ["text"], answer, answers: "labels", values: { text, tokens: text } }, context);
    return "code" in asked ? asked : { ...asked, template };
  }
}

/** Joins tokens with blanks, except beside characters of scripts that are written without blanks. */
function joinTokens(tokens: readonly string[]): string {
  let text = "";
  let open = false;
  for (const token of tokens) {
    const [first] = token;
    if (open && first !== undefined && !isUnspaced(first)) text += " ";
    text += token;
    open = !isUnspaced(token.at(-1) as string);
  }
  return text;
}

interface Entity {
  text: string;
  type: string;
}

/** Reads entities from tags of BIO, BIOES, BILOU and BMES. A tag that none of these schemes allows at its place is refused. */
function entitiesOf(tokens: readonly string[], tags: readonly string[]): Entity[] | Refusal {
  // In a scheme that marks ends, every entity of several tokens must have an end.
  const marksEnds = tags.some((tag) => /^[ELMSU][-_]/.test(tag));
  const entities: Entity[] = [];
  let open: { type: string; from: number } | undefined;
  const close = (to: number): void => {
    if (open !== undefined) entities.push({ text: joinTokens(tokens.slice(open.from, to)), type: open.type });
    open = undefined;
  };
  for (const [index, tag] of [...tags, "O"].entries()) {
    const [, prefix = "O", type = ""] = inEntity.exec(tag) ?? [];
    const goes = prefix === "I" || prefix === "M" || prefix === "E" || prefix === "L";
    if (goes && open?.type !== type) {
      const before = index === 0 ? "stands first" : `follows "${shorten(tags[index - 1] as string)}"`;
      return refuse("TAGS_ILLEGAL", `label ${index + 1}, "${shorten(tag)}", ${before}; an entity begins with B (or S, U)`);
    }
    if (!goes && open !== undefined) {
      if (marksEnds) {
        const message = `the entity of label ${open.from + 1}, "${shorten(tags[open.from] as string)}", is not ended by E or L, as others of the row are`;
        return refuse("TAGS_ILLEGAL", message);
      }
      close(index);
    }
    if (prefix === "B") open = { type, from: index };
    else if (prefix === "S" || prefix === "U") {
      open = { type, from: index };
      close(index + 1);
    } else if (prefix === "E" || prefix === "L") close(index + 1);
  }
  return entities;
}
