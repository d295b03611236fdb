/** Converts preferences, which say which of several answers is better. They become records, but supervised fine-tuning does not use them. Pure. */
import type { Message, Rec } from "@loraline/contracts";
import { convertTurns, judgeMessages, putSystem, readTurns, toolsOf, type Turns } from "./convert-conversation.ts";
import { ask } from "./ask.ts";
import { imageMark, type Media, mediaOf, placeImages } from "./place-images.ts";
import { type Context, type Conversion, isBlank, isObject, nameOf, type Refusal, refuse, type Row, shorten } from "./signature.ts";

const user = (content: string): Message => ({ role: "user", content });
const assistant = (content: string): Message => ({ role: "assistant", content });
const joined = (prompt: string, input = ""): string => (input === "" ? prompt : `${prompt}\n${input}`);

/* --- chosen and rejected --- */

interface PreferenceValues {
  readonly prompt: string | readonly unknown[] | undefined;
  readonly input: string | undefined;
  readonly system: string | undefined;
  readonly messages: string | readonly unknown[] | undefined;
  readonly chosen: string | readonly unknown[] | Row;
  readonly rejected: string | readonly unknown[] | Row;
  readonly tools?: string | readonly unknown[] | undefined;
  readonly image?: unknown;
}

/** Scores of the two answers, as UltraFeedback, argilla and others write them. */
const scoredPairs = [
  ["score_chosen", "score_rejected"],
  ["chosen_score", "rejected_score"],
  ["chosen-rating", "rejected-rating"],
  ["chosen_rating", "rejected_rating"],
] as const;

/** @returns why the row contradicts itself: its own scores say that the rejected answer is the better one. */
function refuseReversed(row: Row): Refusal | undefined {
  for (const [better, worse] of scoredPairs) {
    const [high, low] = [row[better], row[worse]].map((score) => (score === null || score === "" ? Number.NaN : Number(score)));
    if ((high as number) < (low as number)) {
      return refuse(
        "SCORES_REVERSED",
        `\`${better}\` (${high}) is less than \`${worse}\` (${low}): the rejected answer has the higher score. Swap the two answers, or remove the scores.`,
      );
    }
  }
  return undefined;
}

export function convertPreference(values: PreferenceValues, context: Context): Conversion {
  const reversed = refuseReversed(context.row);
  if (reversed !== undefined) return reversed;
  const unused = new Set<string>();
  const read = (given: string | readonly unknown[] | Row, field: string): Turns | Refusal => {
    if (typeof given === "string")
      return { messages: turnsOfTranscript(given) ?? [assistant(given)], media: [], imageParts: 0, unusedKeys: unused };
    const turns: Turns | Refusal = convertTurns(Array.isArray(given) ? (given as unknown[]) : [given], field, context, () => {
      const exact = context.exact(field);
      return Array.isArray(exact) ? exact : [exact];
    });
    if ("code" in turns) return { code: turns.code, message: `\`${context.names[field] ?? field}\`: ${turns.message}` };
    for (const key of turns.unusedKeys) unused.add(key);
    return turns;
  };
  const better = read(values.chosen, "chosen");
  if ("code" in better) return better;
  const worse = read(values.rejected, "rejected");
  if ("code" in worse) return worse;
  const [chosen, rejected] = [better.messages, worse.messages];

  // The turns with which both begin are the question, unless they only repeat a question that has a field of its own.
  let shared = 0;
  const isShared = (at: number): boolean =>
    isSame(chosen[at], rejected[at]) && String(refsOf(better, chosen[at])) === String(refsOf(worse, rejected[at]));
  while (shared < Math.min(chosen.length, rejected.length) - 1 && isShared(shared)) shared++;
  for (const [turns, field] of [[better, "chosen"] as const, [worse, "rejected"] as const]) {
    // Where no part stood for a picture, the mark is a word of the text.
    const isMarked = turns.imageParts > 0;
    if (turns.messages.slice(shared).some(({ content, media: shown }) => shown !== undefined || (isMarked && content.includes(imageMark))))
      return refuse("CONTENT_NOT_TEXT", `an answer in \`${context.names[field] ?? field}\` holds images; text is expected`);
  }
  let prompt = chosen.slice(0, shared);
  // Those of the shared turns, which come first.
  const media: Media = [...better.media];
  let parts = better.imageParts;
  if (!prompt.some(({ role }) => role === "user")) {
    const apart = values.prompt ?? values.messages;
    if (typeof apart === "string" && values.prompt !== undefined) {
      prompt = isBlank(apart) && isBlank(values.input ?? "") ? [] : (turnsOfTranscript(apart) ?? [user(joined(apart, values.input))]);
    } else if (apart !== undefined) {
      const turns = readTurns(apart, values.prompt === undefined ? "messages" : "prompt", context);
      if ("code" in turns) return turns;
      prompt = withoutAnswer(turns.messages);
      media.splice(0, media.length, ...turns.media);
      parts = turns.imageParts;
    }
  }
  const images = mediaOf(values.image, context.names.image ?? "image");
  if ("code" in images) return images;
  const problem = putSystem(values.system, prompt) ?? placeImages(prompt, media, images, { parts });
  if (problem !== undefined) return problem;
  if (!prompt.some(({ role, content, media: shown }) => role === "user" && (!isBlank(content) || shown !== undefined))) {
    return refuse("EMPTY_PROMPT", "there is no question: `prompt` is missing or empty, and `chosen` and `rejected` do not begin with one");
  }
  const answers = [chosen.slice(shared), rejected.slice(shared)] as const;
  for (const [index, field] of (["chosen", "rejected"] as const).entries()) {
    const said = answers[index] as Message[];
    if (!said.some(({ content, tool_calls: calls }) => !isBlank(content) || calls !== undefined)) {
      return refuse("EMPTY_ANSWER", `\`${context.names[field] ?? field}\` is empty: it cannot be compared`);
    }
    if (said.some(({ role }) => role === "system"))
      return refuse("MESSAGE_INVALID", `\`${context.names[field] ?? field}\` ends in a system prompt`);
  }
  if (answers[0].length === answers[1].length && answers[0].every((message, index) => isSame(message, answers[1][index]))) {
    return refuse("SAME_ANSWERS", "`chosen` and `rejected` say the same: nothing can be told from it");
  }
  const tools = toolsOf(values.tools, context);
  if (typeof tools === "object") return tools;
  return {
    body: {
      kind: "preference",
      task: "preference",
      messages: prompt,
      chosen: answers[0],
      rejected: answers[1],
      ...(tools === undefined ? {} : { tools }),
      ...(media.length === 0 ? {} : { media }),
    },
    unusedKeys: [...unused],
  };
}

/** Removes the last turn of a conversation if it is an answer, so that the question remains. */
const withoutAnswer = (messages: Message[]): Message[] => (messages.at(-1)?.role === "assistant" ? messages.slice(0, -1) : messages);

const refsOf = ({ media }: Turns, message: Message | undefined): (string | undefined)[] =>
  (message?.media ?? []).map((at) => media[at]?.ref);

const isSame = (a: Message | undefined, b: Message | undefined): boolean =>
  a !== undefined && b !== undefined && a.role === b.role && a.content === b.content && a.tool_calls === b.tool_calls;

/** Parses Anthropic's spelling of conversations: `\n\nHuman: …\n\nAssistant: …`; undefined: it is none. */
function turnsOfTranscript(text: string): Message[] | undefined {
  if (!/^\s*Human:/.test(text)) return undefined;
  return text
    .replace(/^\s*/, "\n\n")
    .split(/\n\n(?=Human:|Assistant:)/)
    .slice(1)
    .map((turn) =>
      turn.startsWith("Human:") ? user(turn.slice("Human:".length).trim()) : assistant(turn.slice("Assistant:".length).trim()),
    );
}

/** OpenAI's shape: `{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}`. */
export function convertPreferredOutputs(
  {
    input,
    preferred_output: preferred,
    non_preferred_output: other,
  }: { input: Row; preferred_output: readonly unknown[]; non_preferred_output: readonly unknown[] },
  context: Context,
): Conversion {
  const { messages, tools, parallel_tool_calls: _parallel, ...rest } = input;
  if (!Array.isArray(messages))
    return refuse("MESSAGE_INVALID", `\`input.messages\` is ${nameOf(messages)}; a list of messages is expected`);
  const exactInput = (): Row => context.exact("input") as Row;
  const prompt = convertTurns(messages, "input", context, () => exactInput().messages);
  if ("code" in prompt) return { code: prompt.code, message: `\`input\`: ${prompt.message}` };
  const written = Array.isArray(tools) && tools.length > 0 ? JSON.stringify(exactInput().tools) : undefined;
  const compared = convertPreference(
    { prompt: messages, input: undefined, system: undefined, messages: undefined, chosen: preferred, rejected: other },
    {
      ...context,
      names: { ...context.names, chosen: "preferred_output", rejected: "non_preferred_output", prompt: "input" },
      exact: (field) =>
        field === "prompt" ? exactInput().messages : context.exact(field === "chosen" ? "preferred_output" : "non_preferred_output"),
    },
  );
  if (typeof compared === "string" || "code" in compared) return compared;
  return {
    ...compared,
    body: written === undefined ? compared.body : { ...compared.body, tools: written },
    unusedKeys: [...(compared.unusedKeys ?? []), ...Object.keys(rest).map((key) => `input.${key}`)],
  };
}

/* --- several responses --- */

interface RankedValues {
  readonly prompt: string;
  readonly system: string | undefined;
  readonly input?: string | undefined;
  readonly responses: readonly unknown[];
  readonly scores: readonly unknown[] | undefined;
  readonly ranks?: readonly unknown[] | undefined;
  readonly image?: unknown;
}
type Candidates = NonNullable<Rec["candidates"]>;

/** Keys of a response's own score, best first: UltraFeedback has the last two. */
const scoreKeys = ["score", "rating", "overall_score", "fine-grained_score"];

export function convertRanked({ prompt, input, system, responses, scores, ranks, image }: RankedValues, context: Context): Conversion {
  const { names, answered } = context;
  if (isBlank(prompt) && isBlank(input ?? "")) return refuse("EMPTY_PROMPT", `\`${names.prompt ?? "prompt"}\` is empty`);
  for (const [field, values] of [["scores", scores] as const, ["ranks", ranks] as const]) {
    if (values !== undefined && (values.length !== responses.length || !values.every((value) => typeof value === "number"))) {
      return refuse(
        "LENGTHS_DIFFER",
        `there are ${responses.length} responses and ${values.length} ${field}; one number for each is expected`,
      );
    }
  }
  const candidates: Candidates = [];
  for (const [index, response] of responses.entries()) {
    const [content, own] = isObject(response)
      ? [response.content ?? response.text ?? response.response, scoreOf(response)]
      : [response, undefined];
    if (typeof content !== "string") {
      return refuse(
        "RESPONSE_INVALID",
        `response ${index + 1} is ${nameOf(content)}; text, or an object with \`content\` and \`score\`, is expected`,
      );
    }
    if (isBlank(content)) return refuse("EMPTY_ANSWER", `response ${index + 1} is empty`);
    // The first rank is the best, and a higher score is better.
    const score = scores?.[index] ?? (ranks === undefined ? own : -(ranks[index] as number));
    candidates.push(typeof score === "number" ? { content, score } : { content });
  }
  if (candidates.length === 0) return refuse("EMPTY_ANSWER", `\`${names.responses ?? "responses"}\` is empty`);
  const said = candidates.map(({ content }) => content);
  answered.set(plainQuestion(prompt), said);
  const asked = seen(questionOf(joined(prompt, input), system), image, context);
  return "code" in asked ? asked : { body: { kind: "ranked", task: "preference", ...asked, candidates } };
}

function scoreOf(response: Row): unknown {
  const key = scoreKeys.find((name) => typeof response[name] === "number");
  return key === undefined ? (typeof response.rank === "number" ? -response.rank : undefined) : response[key];
}

interface PreferredValues {
  readonly prompt: string;
  readonly system: string | undefined;
  readonly responses: readonly string[];
  readonly preferred_response: string;
  readonly image?: unknown;
}

/** With one other response the record is a pair; with several it is a ranking with the preferred response first. */
export function convertPreferred(
  { prompt, system, responses, preferred_response: wanted, image }: PreferredValues,
  context: Context,
): Conversion {
  const { names } = context;
  if (isBlank(wanted)) return refuse("EMPTY_ANSWER", `\`${names.preferred_response ?? "preferred_response"}\` is empty`);
  const others = [...new Set(responses)].filter((response) => response !== wanted);
  const [only, ...more] = others;
  if (only === undefined) return refuse("SAME_ANSWERS", "no response differs from the preferred one: nothing can be told from it");
  if (more.length > 0) {
    const all = [wanted, ...others];
    const scores = all.map((response) => (response === wanted ? 1 : 0));
    return convertRanked({ prompt, system, responses: all, scores, image }, context);
  }
  return convertPreference({ prompt, system, input: undefined, messages: undefined, chosen: wanted, rejected: only, image }, context);
}

/**
 * Converts a row with a preferred response only. If an earlier row has responses to the same question, the preferred one is compared
 * with those. Otherwise the record is just question and answer.
 */
export function convertPreferredAlone(values: Omit<PreferredValues, "responses">, context: Context): Conversion {
  const { prompt, system, preferred_response: answer, image } = values;
  const responses = context.answered.get(plainQuestion(prompt));
  if (responses?.some((response) => response !== answer) === true) {
    const compared = convertPreferred({ ...values, responses }, context);
    return typeof compared === "string" || "code" in compared ? compared : { ...compared, format: "preferred-of-responses" };
  }
  const question = { task: "qa", user: prompt, asks: ["prompt"], answer, answers: "preferred_response", values, system, image };
  return ask(question, { ...context, template: undefined });
}

const plainQuestion = (question: string): string => question.normalize("NFKC").trim().replace(/\s+/g, " ");

function questionOf(prompt: string, system: string | undefined): Message[] {
  const messages = [user(prompt)];
  if (system !== undefined && system !== "") messages.unshift({ role: "system", content: system });
  return messages;
}

/** A question with the row's images. */
function seen(messages: Message[], image: unknown, { names }: Context): { messages: Message[]; media?: Media } | Refusal {
  const images = mediaOf(image, names.image ?? "image");
  if ("code" in images) return images;
  const media: Media = [];
  const misplaced = placeImages(messages, media, images);
  return misplaced ?? { messages, ...(media.length === 0 ? {} : { media }) };
}

/* --- one answer with a label --- */

/** Converts a row whose label says whether its answer is good: true and false, 1 and 0, or one of them as text (as CSV has them). */
export function labelled(
  label: boolean | number | string,
  { names }: Pick<Context, "names">,
  convert: (label: boolean) => Conversion,
): Conversion {
  const said = String(label).trim().toLowerCase();
  if (["true", "1", "yes", "good"].includes(said)) return convert(true);
  if (["false", "0", "no", "bad"].includes(said)) return convert(false);
  return refuse(
    "LABEL_NOT_BOOLEAN",
    `\`${names.label ?? "label"}\` is ${shorten(JSON.stringify(label))}; true (a good answer) or false (a bad one) is expected`,
  );
}

export function convertUnpaired(
  values: {
    prompt: string;
    input: string | undefined;
    system: string | undefined;
    completion: string;
    label: boolean | number | string;
    image: unknown;
  },
  context: Context,
): Conversion {
  const { names } = context;
  const { prompt, input, system, completion } = values;
  if (isBlank(prompt) && isBlank(input ?? "")) return refuse("EMPTY_PROMPT", `\`${names.prompt ?? "prompt"}\` is empty`);
  if (isBlank(completion)) return refuse("EMPTY_ANSWER", `\`${names.completion ?? "completion"}\` is empty`);
  const asked = seen([...questionOf(joined(prompt, input), system), assistant(completion)], values.image, context);
  if ("code" in asked) return asked;
  return labelled(values.label, context, (label) => ({ body: { kind: "unpaired", task: "preference", ...asked, label } }));
}

export function convertUnpairedConversation(
  values: {
    messages: string | readonly unknown[];
    system: string | undefined;
    label: boolean | number | string;
    tools: string | readonly unknown[] | undefined;
    image: unknown;
  },
  context: Context,
): Conversion {
  const turns = readTurns(values.messages, "messages", context);
  if ("code" in turns) return turns;
  const images = mediaOf(values.image, context.names.image ?? "image");
  if ("code" in images) return images;
  const media = [...turns.media];
  const problem =
    putSystem(values.system, turns.messages) ??
    judgeMessages(turns.messages) ??
    placeImages(turns.messages, media, images, { parts: turns.imageParts });
  if (problem !== undefined) return problem;
  const tools = toolsOf(values.tools, context);
  if (typeof tools === "object") return tools;
  return labelled(values.label, context, (label) => ({
    body: {
      kind: "unpaired",
      task: "preference",
      messages: turns.messages,
      label,
      ...(tools === undefined ? {} : { tools }),
      ...(media.length === 0 ? {} : { media }),
    },
    unusedKeys: [...turns.unusedKeys],
  }));
}
