/**
 * All formats, in the order in which they are tried: a format that reads more of a row stands before one that reads less. A new
 * format is one entry here and one in `datasetFormats` (contracts). Pure.
 */
import type { Message } from "@loraline/contracts";
import {
  convertContents,
  convertConversation,
  convertGlaive,
  convertToolCalls,
  judgeMessages,
  readHistory,
  readTurns,
  toolsOf,
} from "./convert-conversation.ts";
import {
  convertPreference,
  convertPreferred,
  convertPreferredAlone,
  convertPreferredOutputs,
  convertRanked,
  convertUnpaired,
  convertUnpairedConversation,
  labelled,
} from "./convert-preference.ts";
import { convertTags } from "./convert-tags.ts";
import { languageByScript, languageCode, languageName, languageOf, mostLabels, namesIn, prompt } from "./prompt-templates.ts";
import { ask } from "./ask.ts";
import { turnsOfMarkedText } from "./marked-turns.ts";
import { mediaOf, placeImages } from "./place-images.ts";
import {
  type Body,
  choices,
  type Context,
  type Conversion,
  type Converted,
  flag,
  integers,
  isBlank,
  isObject,
  list,
  listOrJson,
  may,
  nameOf,
  needs,
  needsLabels,
  object,
  type Refusal,
  refuse,
  type Row,
  type Signature,
  signature,
  text,
  textListOrObject,
  textOrList,
  textOrNumber,
  textOrTexts,
  texts,
  textsOrIntegers,
} from "./signature.ts";

const system = may(text, "system_prompt", "系统提示");
const history = may(list);
const pictureNames = ["images", "image_url", "image_urls", "image_path", "image_paths", "img", "imgs", "picture", "pictures"] as const;
/** Names that say by themselves that a field holds pictures. `file_name` does not. */
export const imageNames: ReadonlySet<string> = new Set(["image", ...pictureNames]);
const image = may(textListOrObject, ...pictureNames, "file_name");
const turns = needs(listOrJson, "conversation", "conversations", "dialogue", "dialog", "对话");
const prompts = ["question", "instruction", "query"] as const;
const preferred = ["preferred", "preferred_answer"] as const;
const textField = needs(text, "content", "文本");
/** Keys that say that a text is not all there is to learn. */
const besideText =
  "prompt instruction question query answer answers response responses output completion label labels entities tags spans summary chosen rejected role speaker parent_id".split(
    " ",
  );

export const signatures: readonly Signature[] = [
  signature({
    format: "pretokenized",
    kind: "pretokenized",
    fields: { input_ids: needs(integers), labels: may(integers), attention_mask: may(integers) },
    convert: convertPretokenized,
  }),
  signature({
    format: "token-labels",
    kind: "chat",
    fields: {
      tokens: needs(texts, "words"),
      labels: needs(textsOrIntegers, "tags", "ner_tags", "ner", "pos_tags", "upos", "pos"),
    },
    convert: convertTags,
  }),
  signature({
    format: "preference",
    kind: "preference",
    fields: {
      prompt: may(textOrList, ...prompts),
      input: may(text),
      system,
      messages: may(listOrJson, "conversation", "conversations"),
      chosen: needs(textListOrObject),
      rejected: needs(textListOrObject),
      tools: may(textOrList, "functions"),
      image,
    },
    convert: convertPreference,
  }),
  signature({
    format: "preferred-outputs",
    kind: "preference",
    fields: { input: needs(object), preferred_output: needs(list), non_preferred_output: needs(list) },
    convert: convertPreferredOutputs,
  }),
  signature({
    format: "preferred-of-responses",
    kind: "preference",
    fields: { prompt: needs(text, ...prompts), system, responses: needs(texts), preferred_response: needs(text, ...preferred), image },
    convert: convertPreferred,
  }),
  signature({
    format: "preferred-response",
    kind: "chat",
    fields: { prompt: needs(text, ...prompts), system, preferred_response: needs(text, ...preferred), image },
    convert: convertPreferredAlone,
  }),
  signature({
    format: "ranked",
    kind: "ranked",
    fields: {
      prompt: needs(text, ...prompts),
      input: may(text),
      system,
      responses: needs(list, "candidates", "completions", "generations"),
      scores: may(list, "ratings", "rating"),
      ranks: may(list, "rankings", "ranking", "rank"),
      image,
    },
    convert: convertRanked,
  }),
  signature({
    format: "unpaired-conversation",
    kind: "unpaired",
    fields: { messages: turns, system, label: needs(flag, "kto_tag"), tools: may(textOrList, "functions"), image },
    convert: convertUnpairedConversation,
  }),
  signature({
    format: "unpaired-turns",
    kind: "unpaired",
    fields: { prompt: needs(list), completion: needs(list), label: needs(flag, "kto_tag"), tools: may(textOrList), image },
    convert(values, context) {
      const read = convertPromptAndCompletion(values, context);
      if ("code" in read) return read;
      return labelled(values.label, context, (label) => ({ ...read, body: { ...read.body, kind: "unpaired", task: "preference", label } }));
    },
  }),
  signature({
    format: "unpaired",
    kind: "unpaired",
    fields: {
      prompt: needs(text, ...prompts),
      input: may(text),
      system,
      completion: needs(text, "response", "answer", "output"),
      label: needs(flag, "kto_tag"),
      image,
    },
    convert: convertUnpaired,
  }),
  signature({
    format: "conversation",
    kind: "chat",
    fields: { messages: turns, system, tools: may(textOrList, "functions"), image },
    convert: convertConversation,
  }),
  signature({
    format: "contents",
    kind: "chat",
    fields: {
      contents: needs(list),
      system_instruction: may(textListOrObject, "systeminstruction"),
      tools: may(textOrList, "functions"),
    },
    convert: convertContents,
  }),
  signature({
    format: "tool-calls",
    kind: "chat",
    fields: {
      question: needs(text, "query", "prompt", "instruction"),
      calls: needs(listOrJson, "answers", "tool_calls", "function_calls"),
      tools: needs(textOrList, "functions"),
      system,
    },
    convert: convertToolCalls,
  }),
  signature({
    format: "glaive",
    kind: "chat",
    fields: { chat: needs(text), system },
    convert: convertGlaive,
  }),
  signature({
    format: "triple",
    kind: "chat",
    fields: {
      subject: needs(text, "head", "主语", "头实体"),
      predicate: needs(text, "relation", "谓语", "关系"),
      object: needs(textOrTexts, "tail", "宾语", "尾实体"),
    },
    convert(values, context) {
      const { subject, predicate } = values;
      const language = languageOf(context.mapping.language, subject + predicate);
      const { user, template } = prompt("triple", { subject, predicate }, language);
      const answer = typeof values.object === "string" ? values.object : values.object.join(language === "zh" ? "、" : ", ");
      const blank = isBlank(subject) ? "subject" : isBlank(predicate) ? "predicate" : undefined;
      if (blank !== undefined) return refuse("EMPTY_PROMPT", `\`${context.names[blank] ?? blank}\` is empty`);
      return written(ask({ task: "kg", user, asks: [], answer, answers: "object", values }, context), context, template);
    },
  }),
  signature({
    format: "adversarial",
    kind: "chat",
    fields: { sentence: needs(text), question: needs(text, "query"), answer: needs(text, "response") },
    convert(values, context) {
      const { sentence, question, answer } = values;
      const user = `${sentence}\n${question}`;
      const asked = ask({ task: "adversarial", user, asks: ["question"], answer, answers: "answer", values }, context);
      return "code" in asked ? asked : { ...asked, slice: "adversarial" };
    },
  }),
  signature({
    format: "context-question-answer",
    kind: "chat",
    unless: [...choices],
    fields: {
      context: needs(text, "article", "passage", "document", "paragraph"),
      question: needs(text, "query"),
      answer: needs(textListOrObject, "answers", "response"),
      image,
    },
    convert(values, context) {
      const { context: passage, question } = values;
      const answer = answerOf(values.answer);
      if (typeof answer !== "string")
        return refuse("EMPTY_ANSWER", `\`${context.names.answer ?? "answer"}\` holds no text: there is nothing to learn from it`);
      const user = isBlank(passage) ? question : `${passage}\n${question}`;
      return ask({ task: "context-qa", user, asks: ["question"], answer, answers: "answer", values, image: values.image }, context);
    },
  }),
  signature({
    format: "image-caption",
    kind: "chat",
    fields: { image: needs(textListOrObject, ...pictureNames, "file_name"), caption: needs(text, "text", "描述") },
    convert(values, context) {
      const media = mediaOf(values.image, context.names.image ?? "image");
      if ("code" in media) return media;
      if (media.length === 0)
        return refuse("IMAGE_UNREADABLE", `\`${context.names.image ?? "image"}\` is empty. Give the image's path or URL.`);
      // A caption that marks the place of its picture does not show one.
      const answer = values.caption.replaceAll(/<image>\n?/g, "");
      const { user, template } = prompt("caption", {}, languageOf(context.mapping.language, values.caption));
      return written(
        ask({ task: "caption", user, asks: [], answer, answers: "caption", values, image: values.image }, context),
        context,
        template,
      );
    },
  }),
  signature({
    format: "instruction",
    kind: "chat",
    unless: [...choices],
    fields: {
      instruction: needs(text, "指令"),
      output: needs(text, "response", "answer", "输出", "回答"),
      input: may(text, "context", "输入"),
      system,
      history,
      image,
    },
    convert(values, context) {
      const { instruction, input = "", output, system: own } = values;
      const earlier = readHistory(values.history, context);
      if ("code" in earlier) return earlier;
      const user = input === "" ? instruction : `${instruction}\n${input}`;
      const asks = ["instruction", "input"];
      const asked = ask(
        { task: "instruct", user, asks, answer: output, answers: "output", values, system: own, history: earlier, image: values.image },
        context,
      );
      const alone = earlier.messages.length === 0 && context.template === undefined;
      return "code" in asked || !alone ? asked : { ...asked, seed: { instruction, input, output } };
    },
  }),
  signature({
    format: "summary",
    kind: "chat",
    fields: {
      document: needs(text, "article", "text", "content", "dialogue", "passage", "文章", "正文"),
      summary: needs(text, "highlights", "abstract", "摘要"),
    },
    convert(values, context) {
      const { document, summary } = values;
      const { user, template } = prompt("summary", { document }, languageOf(context.mapping.language, document));
      return written(
        ask({ task: "summarization", user, asks: ["document"], answer: summary, answers: "summary", values }, context),
        context,
        template,
      );
    },
  }),
  signature({
    format: "translation",
    kind: "chat",
    fields: {
      source: needs(text, "src", "source_text", "原文"),
      target: needs(text, "tgt", "target_text", "译文"),
      source_lang: may(text, "src_lang", "source_language"),
      target_lang: may(text, "tgt_lang", "target_language"),
    },
    convert: (values, context) => convertTranslation(values, context),
  }),
  signature({
    format: "translation-object",
    kind: "chat",
    fields: { translation: needs(object) },
    convert({ translation }, context) {
      const pair = Object.entries(translation).filter(([, value]) => typeof value === "string");
      const [[source_lang, source] = [], [target_lang, target] = []] = pair;
      if (pair.length !== 2 || typeof source !== "string" || typeof target !== "string") {
        const message = `\`translation\` holds ${pair.length} texts; two are expected, such as {"en": …, "zh": …}. Choose two with the mapping's \`columns\`.`;
        return refuse("TRANSLATION_INVALID", message);
      }
      return convertTranslation({ source, target, source_lang, target_lang }, context);
    },
  }),
  signature({
    format: "code",
    kind: "chat",
    fields: { description: needs(text, "docstring"), code: needs(text) },
    convert: (values, context) =>
      ask({ task: "codegen", user: values.description, asks: ["description"], answer: values.code, answers: "code", values }, context),
  }),
  signature({
    format: "question-answer",
    kind: "chat",
    unless: [...choices],
    fields: {
      question: needs(text, "query", "prompt", "problem", "human", "user", "问题", "質問"),
      answer: needs(text, "response", "output", "solution", "assistant", "答案", "回答"),
      system,
      history,
      image,
    },
    convert(values, context) {
      const { question, answer, system: own } = values;
      const earlier = readHistory(values.history, context);
      if ("code" in earlier) return earlier;
      return ask(
        {
          task: "qa",
          user: question,
          asks: ["question"],
          answer,
          answers: "answer",
          values,
          system: own,
          history: earlier,
          image: values.image,
        },
        context,
      );
    },
  }),
  signature({
    format: "input-output",
    kind: "chat",
    fields: { input: needs(text, "inputs"), output: needs(text, "outputs", "target", "targets"), system, image },
    convert({ input, output, system: own, image: shown }, context) {
      const values = { input, output };
      return ask(
        { task: "instruct", user: input, asks: ["input"], answer: output, answers: "output", values, system: own, image: shown },
        context,
      );
    },
  }),
  signature({
    format: "prompt-completion-turns",
    kind: "chat",
    fields: { prompt: needs(list), completion: needs(list), tools: may(textOrList), image },
    convert: convertPromptAndCompletion,
  }),
  signature({
    format: "prompt-completion",
    kind: "completion",
    fields: { prompt: needs(text), completion: needs(text) },
    convert({ prompt: asked, completion }, { names }) {
      if (isBlank(completion))
        return refuse("EMPTY_ANSWER", `\`${names.completion ?? "completion"}\` is empty: there is nothing to learn from it`);
      return { body: { kind: "completion", task: "completion", prompt: asked, completion } };
    },
  }),
  signature({
    format: "classification",
    kind: "chat",
    fields: {
      text: needs(text, "sentence", "content", "review", "文本"),
      label: needs(textOrNumber, "label_text", "label_name", "label", "sentiment", "intent", "标签"),
    },
    convert: convertClassification,
  }),
  signature({
    format: "text",
    kind: "text",
    fields: { text: textField },
    unless: besideText,
    convert: convertText,
  }),
  // Of texts without a mapping `convertText` finds the marks.
  signature({
    format: "marked-turns",
    kind: "text",
    byName: true,
    fields: { text: textField },
    unless: besideText,
    convert(values, context) {
      const expected =
        "`### Human: … ### Assistant: …`, `### Instruction: … ### Response: …` or `Human: …`, an empty line and `Assistant: …`";
      const message = `\`${context.names.text ?? "text"}\` holds no marked turns; ${expected} is expected`;
      return convertMarkedText(values.text, context) ?? refuse("MESSAGE_INVALID", message);
    },
  }),
];

function convertMarkedText(text: string, context: Context): Conversion | undefined {
  const turns = turnsOfMarkedText(text);
  if (turns === undefined) return undefined;
  const read = convertConversation(
    { messages: turns, system: undefined, tools: undefined, image: undefined },
    { ...context, exact: () => turns },
  );
  return typeof read === "object" && "body" in read ? { ...read, format: "marked-turns" } : read;
}

function convertText(values: { text: string }, context: Context): Conversion {
  const { names, mapping, row } = context;
  if (isBlank(values.text)) return refuse("EMPTY_TEXT", `\`${names.text ?? "text"}\` is empty: there is nothing to learn from it`);
  if (mapping.format === undefined && row["type"] === "message" && typeof row["ts"] === "string") {
    const message =
      "the row is one message of a Slack export, which says nothing of what it answers. Join questions and answers first, as messages, or learn each message as a text of its own with the mapping's `format: text`.";
    return refuse("FORMAT_UNKNOWN", message);
  }
  const turns = mapping.format === undefined ? convertMarkedText(values.text, context) : undefined;
  return turns ?? { body: { kind: "text", task: "text", text: values.text } };
}

/** Records the name of the prompt template that was used, unless the mapping has its own template. */
function written(asked: ReturnType<typeof ask>, context: Context, template: string): Conversion {
  return "code" in asked || context.template !== undefined ? asked : { ...asked, template };
}

/* --- formats of some length --- */

/** Only the completion is trained; answers inside the prompt are context. */
function convertPromptAndCompletion(
  values: { prompt: readonly unknown[]; completion: readonly unknown[]; tools: string | readonly unknown[] | undefined; image: unknown },
  context: Context,
): Converted | Refusal {
  const asked = readTurns(values.prompt, "prompt", context);
  if ("code" in asked) return asked;
  const answered = readTurns(values.completion, "completion", context);
  if ("code" in answered) return answered;
  if (answered.media.length + answered.imageParts > 0)
    return refuse("CONTENT_NOT_TEXT", `\`${context.names.completion ?? "completion"}\` holds images; text is expected`);
  const messages: Message[] = asked.messages.map((message) => (message.role === "assistant" ? { ...message, train: false } : message));
  messages.push(...answered.messages);
  const images = mediaOf(values.image, context.names.image ?? "image");
  if ("code" in images) return images;
  const media = [...asked.media];
  const problem = judgeMessages(messages) ?? placeImages(messages, media, images, { parts: asked.imageParts });
  if (problem !== undefined) return problem;
  const body: Body = { kind: "chat", task: "chat", messages };
  if (media.length > 0) body.media = media;
  const tools = toolsOf(values.tools, context);
  if (typeof tools === "object") return tools;
  if (tools !== undefined) body.tools = tools;
  return { body, unusedKeys: [...asked.unusedKeys, ...answered.unusedKeys] };
}

function convertPretokenized(
  values: { input_ids: readonly number[]; labels: readonly number[] | undefined; attention_mask: readonly number[] | undefined },
  { names }: Context,
): Conversion {
  const { input_ids, labels, attention_mask: mask } = values;
  for (const [field, other] of [["labels", labels] as const, ["attention_mask", mask] as const]) {
    if (other !== undefined && other.length !== input_ids.length) {
      const message = `there are ${input_ids.length} input_ids and ${other.length} of \`${names[field] ?? field}\`; one for each id is expected`;
      return refuse("LENGTHS_DIFFER", message);
    }
  }
  // Padding is not part of the text.
  const isText = (_: number, index: number): boolean => mask?.[index] !== 0;
  const ids = input_ids.filter(isText);
  if (ids.length === 0) return refuse("EMPTY_TEXT", "`input_ids` holds no token");
  const bad = ids.findIndex((id) => id < 0 || id > 0x7f_ff_ff_ff);
  if (bad !== -1) return refuse("TOKEN_IDS_INVALID", `input_ids[${bad}] is ${ids[bad]}, which is no token id`);
  if (labels === undefined) return { body: { kind: "pretokenized", task: "pretokenized", input_ids: ids } };
  const kept = labels.filter(isText);
  const wrong = kept.findIndex((label, index) => label !== -100 && label !== ids[index]);
  if (wrong !== -1) {
    const message = `labels[${wrong}] is ${kept[wrong]}; it must be -100 (not trained) or input_ids[${wrong}], which is ${ids[wrong]}. Labels are not shifted.`;
    return refuse("TOKEN_IDS_INVALID", message);
  }
  if (kept.every((label) => label === -100)) return refuse("NOTHING_TRAINED", "every label is -100: nothing would be learned");
  return { body: { kind: "pretokenized", task: "pretokenized", input_ids: ids, labels: kept } };
}

/** SQuAD keeps several people's answers: the first one counts. */
function answerOf(answer: string | readonly unknown[] | Row): string | undefined {
  if (typeof answer === "string") return answer;
  const many = isObject(answer) ? answer.text : answer;
  const first: unknown = Array.isArray(many) ? many[0] : many;
  if (isObject(first)) return typeof first.text === "string" ? first.text : undefined;
  return typeof first === "string" ? first : undefined;
}

function convertTranslation(
  values: { source: string; target: string; source_lang?: string | undefined; target_lang?: string | undefined },
  context: Context,
): Conversion {
  const { source, target } = values;
  const question = (user: string, named: { source_lang: string; target_lang: string }) =>
    ask({ task: "translation", user, asks: ["source"], answer: target, answers: "target", values: { source, target, ...named } }, context);
  const given = (lang: string | undefined): string | undefined => (lang === undefined || isBlank(lang) ? undefined : lang);
  const from = given(values.source_lang) ?? languageByScript(source);
  const to = given(values.target_lang) ?? languageByScript(target);
  const language = languageOf(context.mapping.language, `${source}${target}`);
  const named = { source_lang: languageName(from ?? "", language), target_lang: languageName(to ?? "", language) };
  const isAsked = context.template === undefined || namesIn(context.template).some((name) => Object.hasOwn(named, name));
  const isSame = from !== undefined && to !== undefined && (languageCode(from) ?? from) === (languageCode(to) ?? to);
  if (isAsked && (from === undefined || to === undefined || isSame) && !isBlank(source) && !isBlank(target)) {
    const why = isSame
      ? `the scripts of both sides tell only one language, ${languageName(from, "en")}`
      : `the script of the ${from === undefined ? "source" : "target"} does not tell its language`;
    const message = `${why}. Add the columns source_lang and target_lang, or give the mapping an instruction_template.`;
    return refuse("LANGUAGE_UNKNOWN", message);
  }
  const { user, template } = prompt("translation", { source, ...named }, language);
  return written(question(user, named), context, template);
}

function convertClassification({ text: given, label }: { text: string; label: string | number | boolean }, context: Context): Conversion {
  const { mapping, labels, template: own } = context;
  const isAsked = own === undefined || namesIn(own).includes("labels");
  if (isAsked && labels === undefined) return needsLabels;
  const answer = labelText(label, mapping.labels);
  if (answer === undefined) {
    const message = `the label is ${nameOf(label)}, ${String(label)}, which is none of the ${mapping.labels?.length} \`labels\` of the mapping`;
    return refuse("LABEL_UNKNOWN", message);
  }
  const language = languageOf(mapping.language, given);
  // Loraline's prompts list a limited number of classes. A template with `{labels}` gets all classes that have names.
  const isListed = labels !== null && labels !== undefined && (own !== undefined || labels.length <= mostLabels);
  const classes = isListed ? labels.join(language === "zh" ? "、" : ", ") : undefined;
  if (own !== undefined && isAsked && classes === undefined) {
    const message = `the mapping's instruction_template asks for {labels}, and the file has more than ${mostLabels}. Name them in the mapping's \`labels\`, or leave {labels} out.`;
    return refuse("LABEL_NAMES_MISSING", message);
  }
  const { user, template } =
    classes === undefined
      ? prompt("open-classification", { text: given }, language)
      : prompt("classification", { text: given, labels: classes }, language);
  const values = { text: given, label: answer, labels: classes ?? "" };
  return written(ask({ task: "classification", user, asks: ["text"], answer, answers: "label", values }, context), context, template);
}

/** @returns the class as text, numbers by the mapping's names; undefined: the value is none of the classes. */
export function labelText(label: string | number | boolean, names: readonly string[] | undefined): string | undefined {
  if (names === undefined) return typeof label === "string" ? label.trim() : String(label);
  if (typeof label === "number") return names[label];
  const given = String(label).trim();
  return names.includes(given) ? given : /^\d+$/.test(given) ? names[Number(given)] : undefined;
}
