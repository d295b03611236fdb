/**
 * Prompts for rows that have none, such as classifications. Pure. A prompt is part of the record that is trained on, so it is never
 * changed: a better prompt gets a new version.
 */
import { templatePlaceholder } from "@loraline/contracts";

type Language = "zh" | "en";

/* --- templates --- */

/** Literal texts and names of values, alternating, beginning with a text. */
export interface Template {
  readonly parts: readonly string[];
}

/** `{name}` is a value, `{{` and `}}` are braces. */
export function parseTemplate(source: string): Template {
  const parts: string[] = [""];
  let at = 0;
  const say = (literal: string): void => {
    parts[parts.length - 1] += literal;
  };
  for (const match of source.matchAll(templatePlaceholder)) {
    say(source.slice(at, match.index));
    at = match.index + match[0].length;
    if (match[1] === undefined) say(match[0][0] as string);
    else parts.push(match[1].trim(), "");
  }
  say(source.slice(at));
  return { parts };
}

export const namesIn = ({ parts }: Template): string[] => parts.filter((_, index) => index % 2 === 1);

/**
 * @param values - by field; a field that a row leaves out is there with `undefined`.
 * @param row - by column.
 * @returns the text, or why there is none.
 */
export function fillTemplate(
  { parts }: Template,
  values: Readonly<Record<string, unknown>>,
  row?: Readonly<Record<string, unknown>>,
): string | { message: string } {
  let filled = parts[0] as string;
  for (let index = 1; index < parts.length; index += 2) {
    const name = parts[index] as string;
    const known = Object.hasOwn(values, name);
    if (!known && (row === undefined || !Object.hasOwn(row, name))) {
      return { message: `the mapping's instruction_template asks for {${name}}, and the row has no such column` };
    }
    const held = (known ? values[name] : row?.[name]) ?? "";
    const value = Array.isArray(held) && held.every((item) => typeof item !== "object") ? held.join("\n") : held;
    if (typeof value === "object") {
      return { message: `the mapping's instruction_template asks for {${name}}, which is no text in this row` };
    }
    filled += `${value as string | number | boolean}${parts[index + 1]}`;
  }
  return filled;
}

const both = (name: string, version: number, zh: string, en: string) => ({
  zh: { name: `${name}.zh/${version}`, ...parseTemplate(zh) },
  en: { name: `${name}.en/${version}`, ...parseTemplate(en) },
});

/** Most classes that a prompt lists. */
export const mostLabels = 50;

/** Every prompt by its name; docs/formats.md lists them. */
export const prompts = {
  entities: both(
    "entities",
    1,
    "找出下面文本中的命名实体，按出现的先后以 JSON 列表回答，每项有 text 和 type。\n{text}",
    "List the named entities of the following text in order of appearance, as a JSON list of objects with text and type.\n{text}",
  ),
  "parts-of-speech": both(
    "parts-of-speech",
    1,
    "将下面的文本分词并标注词性，写成“词/词性”，以空格分隔。\n{text}",
    "Tag each word of the following text with its part of speech, as word/TAG separated by spaces.\n{text}",
  ),
  tags: both(
    "tags",
    1,
    "将下面的文本分词并为每个词标注标签，写成“词/标签”，以空格分隔。\n{text}",
    "Label each token of the following text, as token/LABEL separated by spaces.\n{text}",
  ),
  triple: both("triple", 1, "{subject}的{predicate}是什么？", "What is the {predicate} of {subject}?"),
  caption: both("caption", 1, "描述这张图片。", "Describe this image."),
  summary: both("summary", 1, "为下面的文章写一段摘要。\n{document}", "Summarize the following text.\n{document}"),
  translation: both(
    "translation",
    1,
    "将下面的{source_lang}翻译成{target_lang}。\n{source}",
    "Translate the following {source_lang} text into {target_lang}.\n{source}",
  ),
  classification: both(
    "classification",
    1,
    "判断下面文本的类别，只回答其中之一：{labels}。\n{text}",
    "Classify the following text. Answer with exactly one of: {labels}.\n{text}",
  ),
  "open-classification": both(
    "open-classification",
    1,
    "判断下面文本的类别，只回答类别的名称。\n{text}",
    "Classify the following text. Answer with the name of its class only.\n{text}",
  ),
} as const;

/** @returns the prompt with its values, in the wanted language or else in the language of `text`. */
export function prompt(
  name: keyof typeof prompts,
  values: Readonly<Record<string, string>>,
  language: Language,
): { readonly user: string; readonly template: string } {
  const template = prompts[name][language];
  return { user: fillTemplate(template, values) as string, template: template.name };
}

/* --- languages --- */

const han = /\p{Script=Han}/u;
const kanaOrHangul = /[\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]/u;

/** @returns Chinese for a text with Chinese characters and without Japanese or Korean ones, else English. */
export const languageOf = (wanted: Language | "auto", text: string): Language =>
  wanted !== "auto" ? wanted : han.test(text) && !kanaOrHangul.test(text) ? "zh" : "en";

/** Characters that stand without blanks between words. */
export const isUnspaced = (character: string): boolean =>
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\u3000-\u303f\uff00-\uff65]/u.test(character);

/** ISO 639-1 code to the language's Chinese and English name. */
const languageNames: Readonly<Record<string, readonly [zh: string, en: string, ...others: string[]]>> = {
  zh: ["中文", "Chinese", "汉语", "简体中文", "繁体中文", "zho", "cmn", "mandarin"],
  en: ["英文", "English", "英语", "eng"],
  ja: ["日文", "Japanese", "日语", "jpn"],
  ko: ["韩文", "Korean", "韩语", "kor"],
  fr: ["法文", "French", "法语", "fra"],
  de: ["德文", "German", "德语", "deu"],
  es: ["西班牙文", "Spanish", "西班牙语", "spa"],
  pt: ["葡萄牙文", "Portuguese", "葡萄牙语", "por"],
  it: ["意大利文", "Italian", "意大利语", "ita"],
  nl: ["荷兰文", "Dutch", "荷兰语", "nld"],
  ru: ["俄文", "Russian", "俄语", "rus"],
  uk: ["乌克兰文", "Ukrainian", "乌克兰语", "ukr"],
  pl: ["波兰文", "Polish", "波兰语", "pol"],
  cs: ["捷克文", "Czech", "捷克语", "ces"],
  tr: ["土耳其文", "Turkish", "土耳其语", "tur"],
  ar: ["阿拉伯文", "Arabic", "阿拉伯语", "arb", "ara"],
  he: ["希伯来文", "Hebrew", "希伯来语", "heb"],
  hi: ["印地文", "Hindi", "印地语", "hin"],
  th: ["泰文", "Thai", "泰语", "tha"],
  vi: ["越南文", "Vietnamese", "越南语", "vie"],
  id: ["印尼文", "Indonesian", "印尼语", "ind"],
  el: ["希腊文", "Greek", "希腊语", "ell"],
};
const codeOfName = new Map(
  Object.entries(languageNames).flatMap(([code, names]) => [code, ...names].map((name) => [name.toLowerCase(), code])),
);

/** `en`, `en-US`, `eng_Latn`, `English`, `英文` → `en`; undefined: none that is known. */
export const languageCode = (written: string): string | undefined => {
  const given = written.trim().toLowerCase();
  return codeOfName.get(given) ?? codeOfName.get(given.split(/[-_]/, 1)[0] as string);
};
/** @returns a language's name in the prompt's language; an unknown language keeps the spelling of the row. */
export const languageName = (written: string, language: Language): string => {
  const names = languageNames[languageCode(written) ?? ""];
  return names === undefined ? written.trim() : names[language === "zh" ? 0 : 1];
};

const scripts: readonly (readonly [code: string, script: RegExp])[] = [
  ["ja", /[\p{Script=Hiragana}\p{Script=Katakana}]/gu],
  ["ko", /\p{Script=Hangul}/gu],
  ["zh", /\p{Script=Han}/gu],
  ["ru", /\p{Script=Cyrillic}/gu],
  ["ar", /\p{Script=Arabic}/gu],
  ["he", /\p{Script=Hebrew}/gu],
  ["hi", /\p{Script=Devanagari}/gu],
  ["th", /\p{Script=Thai}/gu],
  ["el", /\p{Script=Greek}/gu],
];
/** Counts characters by script; a word of Latin letters counts as one. */
const latinWords = /\p{Script=Latin}+/gu;

/**
 * Recognises a language by its script. @returns its code, or undefined when the script does not decide. Latin script counts as English
 * only if every letter is an English one; for other languages in Latin script the user is asked.
 */
export function languageByScript(text: string): string | undefined {
  const start = text.slice(0, 500);
  const count = (pattern: RegExp): number => start.match(pattern)?.length ?? 0;
  const latin = count(latinWords);
  let best: readonly [code: string, letters: number] = ["", 0];
  for (const [code, script] of scripts) {
    const letters = count(script);
    // Japanese uses Chinese characters too, but hardly ever without kana.
    if (letters > 0 && (code === "ja" || code === "ko") && letters > latin) return code;
    if (letters > best[1]) best = [code, letters];
  }
  if (best[1] > latin) return best[0];
  return latin > 0 && !/[^\p{ASCII}]/u.test(start.match(latinWords)?.join("") ?? "") ? "en" : undefined;
}
