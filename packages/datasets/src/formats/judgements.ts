/**
 * Keys by which datasets say that an answer is bad, counts less, or is not to be learned (TRL, LLaMA-Factory, axolotl, OpenAI,
 * OpenAssistant and others). A row with such a key that its format does not read is refused: read without it, the row would teach
 * the opposite of what its author meant. Pure.
 */
import { isNothing, isObject, nameOf, type Refusal, refuse, type Row, shorten } from "./signature.ts";

const words = (text: string): string[] => text.trim().split(/\s+/);

/** Keys that judge whatever their value is. */
const judging = new Set(
  words(`
    label labels kto_tag score scores rating ratings reward rewards quality quality_score rank ranking feedback thumbs vote votes
    chosen rejected chosen_by rejected_by preferred preference winner better worse best worst positive negative
    correct is_correct incorrect is_incorrect accepted is_accepted good is_good safe is_safe helpful is_helpful verdict
    loss train train_detail trainable loss_mask train_mask review_result
  `),
);
/** Keys that judge unless they say no (`false` or 0). */
const judgingIfSet = new Set(
  words(`
    bad is_bad ignore ignored skip skipped exclude excluded drop mask masked deleted is_deleted flagged is_flagged toxic is_toxic toxicity
    harmful is_harmful unsafe is_unsafe spam is_spam
  `),
);
/** Keys that judge unless they say that the row counts like any other (1). */
const weighing = new Set(words("weight weights sample_weight example_weight loss_weight importance"));

/** Keys that name a row's split: those of other splits than train are there to measure with. */
const splitting = new Set(["split"]);
const heldOut = /^(?:test|testing|valid|validation|val|dev|eval|evaluation|held[_-]?out)$/i;

/** Whether a key may judge the row or turn that it stands in. @param key - in lower case. */
export const mayJudge = (key: string): boolean => judging.has(key) || judgingIfSet.has(key) || weighing.has(key) || splitting.has(key);

/** Whether a key with this value judges the row or turn that it stands in. @param key - in lower case. */
export function judges(key: string, value: unknown): boolean {
  if (isNothing(value)) return false;
  if (judging.has(key)) return true;
  if (splitting.has(key)) return heldOut.test(String(value).trim());
  if (judgingIfSet.has(key)) return value !== false && value !== 0 && !/^(?:false|0|no)$/i.test(String(value));
  return weighing.has(key) && Number(value) !== 1;
}

/** @param judging - the row's unread keys that may judge it. */
export function refuseJudged(format: string, judging: readonly string[], row: Row): Refusal | undefined {
  const key = judging.find((name) => judges(name, valueOf(row, name)));
  if (key === undefined) return undefined;
  const value = valueOf(row, key);
  const said = typeof value === "object" ? nameOf(value) : shorten(JSON.stringify(value));
  return refuse("JUDGEMENT_NOT_READ", judgementMessage(`\`${key}\` (${said})`, key, format));
}

/**
 * A judgement inside of an object that no format reads, such as `metadata.quality`.
 * @param objects - the row's unread keys whose values are objects.
 */
export function refuseJudgedInside(
  format: string,
  objects: readonly string[],
  { row, isMeant }: { row: Row; isMeant: (key: string) => boolean },
): Refusal | undefined {
  for (const name of objects) {
    const held = valueOf(row, name);
    if (!isObject(held)) continue;
    for (const [key, value] of Object.entries(held)) {
      const plain = key.trim().toLowerCase();
      // A list of labels or scores there is more likely about something else, as of an annotation tool's regions.
      if (typeof value === "object" || !mayJudge(plain) || !judges(plain, value)) continue;
      const whole = `${name}.${plain}`;
      if (!isMeant(whole)) {
        return refuse("JUDGEMENT_NOT_READ", judgementMessage(`\`${whole}\` (${shorten(JSON.stringify(value))})`, whole, format));
      }
    }
  }
  return undefined;
}

/** The reason why a row is refused: its format does not read what may be a judgement. */
export const judgementMessage = (shown: string, key: string, format: string): string =>
  `${shown} may say that the answer is bad, counts less or is to be left out, and the format "${format}" does not read it. ` +
  `If it means nothing for the training, list "${key}" in the mapping's \`ignore\`; if it judges the answer, use a format that reads it ` +
  "(unpaired: prompt, completion, label; preference: chosen, rejected; ranked: responses, scores).";

/** The value of a key by its plain spelling. */
function valueOf(row: Row, name: string): unknown {
  if (Object.hasOwn(row, name)) return row[name];
  const key = Object.keys(row).find((each) => each.normalize("NFKC").trim().toLowerCase() === name);
  return key === undefined ? undefined : row[key];
}
