/** Rows as public datasets spell them, and what each becomes. */
import fc from "fast-check";
import { type DatasetFormat, datasetFormats, datasetMapping, record } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { createDetector, type Detected, isRefusal, needsLabels, type Refusal, signatures } from "./detect.ts";
import { parseExact } from "../containers/exact-json.ts";
import { prompts } from "./prompt-templates.ts";
import { recordId } from "./record-id.ts";

const read = (row: unknown) => createDetector({ labels: null }).detect(row, () => row) as Detected | Refusal;
const user = (content: string) => ({ role: "user", content });
const assistant = (content: string, more: Record<string, unknown> = {}) => ({ role: "assistant", content, ...more });
const system = (content: string) => ({ role: "system", content });
const turns = [user("hi"), assistant("ho")];
/** From the source text, so that numbers are seen as written. */
const readText = (json: string) => createDetector({ labels: null }).detect(JSON.parse(json), () => parseExact(json));
const mapped = (mapping: object, row: unknown, labels: readonly string[] | null = null): Detected | Refusal =>
  createDetector({ mapping: datasetMapping.parse(mapping), labels }).detect(row, () => row) as Detected | Refusal;

it("signatures and the contract know the same formats and fields, in the same order", () => {
  expect(signatures.map(({ format, fields }) => [format, Object.keys(fields)])).toEqual(
    Object.entries(datasetFormats).map(([format, { fields }]) => [format, expect.arrayContaining([...fields]) as string[]]),
  );
  for (const { format, fields } of signatures) expect(Object.keys(fields)).toHaveLength(datasetFormats[format].fields.length);
});

describe("a row as it is in", () => {
  it.each<[string, Record<string, unknown>, DatasetFormat, Record<string, unknown>]>([
    [
      "Alpaca, with the rendered text beside it",
      { instruction: "Add", input: "1+1", output: "2", text: "### Instruction:\nAdd\n### Input:\n1+1\n### Response:\n2" },
      "instruction",
      { messages: [user("Add\n1+1"), assistant("2")] },
    ],
    [
      "Dolly",
      { instruction: "Who?", context: "Tom.", response: "Tom", category: "qa" },
      "instruction",
      { messages: [user("Who?\nTom."), assistant("Tom")] },
    ],
    [
      "LLaMA-Factory's Alpaca with history",
      { instruction: "b", input: "", output: "c", system: "s", history: [["x", "y"]] },
      "instruction",
      { messages: [system("s"), user("x"), assistant("y"), user("b"), assistant("c")] },
    ],
    ["Firefly", { kind: "Poem", input: "写诗", target: "诗" }, "input-output", { messages: [user("写诗"), assistant("诗")] }],
    ["xP3", { inputs: "a", targets: "b" }, "input-output", { messages: [user("a"), assistant("b")] }],
    ["GSM8K", { question: "1+1?", answer: "#### 2" }, "question-answer", { task: "qa", messages: [user("1+1?"), assistant("#### 2")] }],
    [
      "OpenOrca",
      { id: "x", system_prompt: "s", question: "q", response: "r" },
      "question-answer",
      { messages: [system("s"), user("q"), assistant("r")] },
    ],
    [
      "guanaco, in one text",
      { text: "### Human: hi### Assistant: ho### Human: and?\n### Assistant: so" },
      "marked-turns",
      { messages: [user("hi"), assistant("ho"), user("and?"), assistant("so")] },
    ],
    [
      "Alpaca's prompt, in one text",
      { text: "Below is an instruction.\n\n### Instruction:\nAdd.\n\n### Input:\n1+1\n\n### Response:\n2" },
      "marked-turns",
      { messages: [system("Below is an instruction."), user("Add.\n1+1"), assistant("2")] },
    ],
    ["Anthropic's transcripts", { text: "\n\nHuman: q\n\nAssistant: a" }, "marked-turns", { messages: [user("q"), assistant("a")] }],
    ["a text with headings", { text: "### Input:\na number\n### Output:\nits square" }, "text", { kind: "text" }],
    ["a text that names people", { text: "He said: Human: I am. Assistant: I am not." }, "text", { kind: "text" }],
    ["MetaMathQA", { query: "q", response: "r", type: "t" }, "question-answer", { messages: [user("q"), assistant("r")] }],
    ["prompt and response", { prompt: "q", response: "r" }, "question-answer", { messages: [user("q"), assistant("r")] }],
    ["Chinese keys", { 问题: "天?", 答案: "蓝" }, "question-answer", { messages: [user("天?"), assistant("蓝")] }],
    [
      "Chinese keys of an instruction",
      { 指令: "答", 输入: "天?", 输出: "蓝" },
      "instruction",
      { messages: [user("答\n天?"), assistant("蓝")] },
    ],
    [
      "ShareGPT",
      {
        id: "1",
        conversations: [
          { from: "human", value: "hi" },
          { from: "gpt", value: "ho" },
        ],
      },
      "conversation",
      { messages: turns },
    ],
    ["UltraChat", { prompt: "hi", prompt_id: "1", messages: turns }, "conversation", { messages: turns }],
    [
      "speaker and text",
      {
        dialog: [
          { speaker: "User", text: "hi" },
          { speaker: "Bot", text: "ho" },
        ],
      },
      "conversation",
      { messages: turns },
    ],
    ["pairs of prompt and response", { conversation: [{ prompt: "hi", response: "ho" }] }, "conversation", { messages: turns }],
    ["messages as JSON text, as in CSV", { messages: JSON.stringify(turns) }, "conversation", { messages: turns }],
    [
      "OpenAI's content parts",
      {
        messages: [
          {
            role: "user",
            content: [
              { type: "text", text: "a" },
              { type: "text", text: "b" },
            ],
          },
          assistant("c"),
        ],
      },
      "conversation",
      { messages: [user("a\nb"), assistant("c")] },
    ],
    [
      "DeepSeek's reasoning",
      { messages: [user("q"), { ...assistant("a"), reasoning_content: "so" }] },
      "conversation",
      { messages: [user("q"), { ...assistant("a"), reasoning: "so" }] },
    ],
    [
      "thoughts inside of the answer, which stay there",
      { messages: [user("q"), assistant("<think>\nso\n</think>\n\na")] },
      "conversation",
      { messages: [user("q"), assistant("<think>\nso\n</think>\n\na")] },
    ],
    [
      "keys that a merged schema made null",
      {
        messages: [
          { ...user("hi"), name: null, tool_calls: null, train: null },
          { ...assistant("ho"), weight: null },
        ],
        tools: null,
      },
      "conversation",
      { messages: turns },
    ],
    [
      "LLaVA",
      {
        image: "a.jpg",
        conversations: [
          { from: "human", value: "<image>\nWhat?" },
          { from: "gpt", value: "A dog." },
        ],
      },
      "conversation",
      { messages: [{ ...user("What?"), media: [0] }, assistant("A dog.")], media: [{ type: "image", ref: "a.jpg" }] },
    ],
    [
      "TRL's pictures, which the row holds apart",
      {
        prompt: [{ role: "user", content: [{ type: "image" }, { type: "text", text: "What?" }] }],
        completion: [{ role: "assistant", content: [{ type: "text", text: "A dog.", index: null }] }],
        images: ["a.jpg"],
      },
      "prompt-completion-turns",
      { messages: [{ ...user("What?"), media: [0] }, assistant("A dog.")], media: [{ type: "image", ref: "a.jpg" }] },
    ],
    [
      "TRL's preferences with pictures",
      {
        prompt: [
          {
            role: "user",
            content: [
              { type: "text", text: "What?" },
              { type: "image", text: null },
            ],
          },
        ],
        chosen: [assistant("A dog.")],
        rejected: [assistant("A cat.")],
        images: [{ path: "a.jpg", bytes: null }],
      },
      "preference",
      {
        messages: [{ ...user("What?\uFFFC"), media: [0] }],
        chosen: [assistant("A dog.")],
        rejected: [assistant("A cat.")],
        media: [{ type: "image", ref: "a.jpg" }],
      },
    ],
    [
      "a preference whose two sides begin with the same picture",
      Object.fromEntries(
        ["chosen", "rejected"].map((side) => [
          side,
          [{ role: "user", content: [{ type: "image_url", image_url: { url: "http://x/y.png" } }] }, assistant(side)],
        ]),
      ),
      "preference",
      {
        messages: [{ ...user(""), media: [0] }],
        chosen: [assistant("chosen")],
        rejected: [assistant("rejected")],
        media: [{ type: "image", ref: "http://x/y.png" }],
      },
    ],
    [
      "a preference that speaks of the mark",
      { prompt: "Which tag?", chosen: "Use <image> here.", rejected: "None." },
      "preference",
      { messages: [user("Which tag?")], chosen: [assistant("Use <image> here.")], rejected: [assistant("None.")] },
    ],
    [
      "a labelled answer about a picture",
      { prompt: "What?", completion: "A dog.", label: true, image: "a.jpg" },
      "unpaired",
      { messages: [{ ...user("What?"), media: [0] }, assistant("A dog.")], label: true, media: [{ type: "image", ref: "a.jpg" }] },
    ],
    [
      "ranked answers about a picture",
      { prompt: "<image>\nWhat?", responses: ["A dog.", "A cat."], scores: [2, 1], image: "a.jpg" },
      "ranked",
      { messages: [{ ...user("What?"), media: [0] }], media: [{ type: "image", ref: "a.jpg" }] },
    ],
    [
      "pictures in earlier turns",
      { instruction: "And?", output: "A cat.", history: [["<image>What?", "A dog."]], images: ["a.jpg"] },
      "instruction",
      {
        messages: [{ ...user("What?"), media: [0] }, assistant("A dog."), user("And?"), assistant("A cat.")],
        media: [{ type: "image", ref: "a.jpg" }],
      },
    ],
    [
      "a caption that marks its picture's place",
      { image: "a.jpg", text: "<image>\nA dog." },
      "image-caption",
      { messages: [{ ...user("Describe this image."), media: [0] }, assistant("A dog.")] },
    ],
    [
      "OpenAI's images",
      {
        messages: [
          {
            role: "user",
            content: [
              { type: "image_url", image_url: { url: "http://x/y.png" } },
              { type: "text", text: "What?" },
            ],
          },
          assistant("A dog."),
        ],
      },
      "conversation",
      { messages: [{ ...user("What?"), media: [0] }, assistant("A dog.")], media: [{ type: "image", ref: "http://x/y.png" }] },
    ],
    [
      "VQA",
      { image: { path: "a.jpg", bytes: null }, question: "What?", answer: "A dog." },
      "question-answer",
      { messages: [{ ...user("What?"), media: [0] }, assistant("A dog.")] },
    ],
    [
      "CoNLL-2003 with names",
      { tokens: ["EU", "rejects", "German", "call"], ner_tags: ["B-ORG", "O", "B-MISC", "O"] },
      "token-labels",
      { task: "ner", messages: [{}, assistant('[{"text":"EU","type":"ORG"},{"text":"German","type":"MISC"}]')] },
    ],
    [
      "BIOES",
      { tokens: ["New", "York", "and", "Rome"], tags: ["B-LOC", "E-LOC", "O", "S-LOC"] },
      "token-labels",
      { task: "ner", messages: [{}, assistant('[{"text":"New York","type":"LOC"},{"text":"Rome","type":"LOC"}]')] },
    ],
    [
      "BMES, one character a token",
      { tokens: ["中", "华", "人", "民", "在"], labels: ["B-GPE", "M-GPE", "M-GPE", "E-GPE", "O"] },
      "token-labels",
      { task: "ner", messages: [{}, assistant('[{"text":"中华人民","type":"GPE"}]')] },
    ],
    [
      "BILOU",
      { tokens: ["A", "B", "C"], labels: ["B-X", "L-X", "U-Y"] },
      "token-labels",
      { task: "ner", messages: [{}, assistant('[{"text":"A B","type":"X"},{"text":"C","type":"Y"}]')] },
    ],
    [
      "Penn Treebank's tags",
      { words: ["The", "dog", "'s", "gone", "."], pos: ["DT", "NN", "VBZ", "VBN", "."] },
      "token-labels",
      { task: "pos", messages: [{}, assistant("The/DT dog/NN 's/VBZ gone/VBN ./.")] },
    ],
    [
      "other tags",
      { tokens: ["a", "b"], labels: ["yes", "no"] },
      "token-labels",
      { task: "tagging", messages: [{}, assistant("a/yes b/no")] },
    ],
    [
      "opus",
      { translation: { en: "Good day", zh: "你好" } },
      "translation-object",
      { messages: [user("将下面的英文翻译成中文。\nGood day"), assistant("你好")] },
    ],
    [
      "translation with languages",
      { source: "Bonjour", target: "Hallo", source_lang: "fr", target_lang: "deu_Latn" },
      "translation",
      { messages: [user("Translate the following French text into German.\nBonjour"), assistant("Hallo")] },
    ],
    [
      "CNN/DailyMail",
      { article: "Long.", highlights: "Short.", id: "1" },
      "summary",
      { messages: [user("Summarize the following text.\nLong."), assistant("Short.")] },
    ],
    ["SAMSum", { dialogue: "A: hi", summary: "Hi." }, "summary", { task: "summarization" }],
    ["LCSTS", { text: "长文", summary: "摘要" }, "summary", { messages: [user("为下面的文章写一段摘要。\n长文"), assistant("摘要")] }],
    [
      "SQuAD",
      { id: "1", title: "t", context: "Tom ran.", question: "Who?", answers: { text: ["Tom", "tom"], answer_start: [0, 0] } },
      "context-question-answer",
      { task: "context-qa", messages: [user("Tom ran.\nWho?"), assistant("Tom")] },
    ],
    ["IMDB", { text: "Great", label: 1 }, "classification", { task: "classification", messages: [{}, assistant("1")] }],
    ["SetFit", { text: "Great", label: 1, label_text: "positive" }, "classification", { messages: [{}, assistant("positive")] }],
    ["C4", { text: "Web.", timestamp: "t", url: "u" }, "text", { text: "Web." }],
    [
      "UltraFeedback, binarized",
      {
        prompt: "q",
        prompt_id: "1",
        chosen: [user("q"), assistant("y")],
        rejected: [user("q"), assistant("n")],
        messages: [user("q"), assistant("y")],
        score_chosen: 8,
      },
      "preference",
      { messages: [user("q")], chosen: [assistant("y")], rejected: [assistant("n")] },
    ],
    [
      "HH-RLHF",
      {
        chosen: "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: y",
        rejected: "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: n",
      },
      "preference",
      { messages: [user("q"), assistant("a"), user("r")], chosen: [assistant("y")], rejected: [assistant("n")] },
    ],
    [
      "LLaMA-Factory's DPO",
      { conversations: [{ from: "human", value: "q" }], chosen: { from: "gpt", value: "y" }, rejected: { from: "gpt", value: "n" } },
      "preference",
      { messages: [user("q")], chosen: [assistant("y")], rejected: [assistant("n")] },
    ],
    [
      "question, chosen, rejected",
      { system: "s", question: "q", chosen: "y", rejected: "n" },
      "preference",
      { messages: [system("s"), user("q")] },
    ],
    [
      "KTO",
      { prompt: "q", completion: "y", label: false },
      "unpaired",
      { kind: "unpaired", messages: [user("q"), assistant("y")], label: false },
    ],
    ["KTO, as messages", { messages: turns, label: true }, "unpaired-conversation", { messages: turns, label: true }],
    [
      "UltraFeedback",
      {
        instruction: "q",
        completions: [
          { response: "a", score: 1 },
          { response: "b", score: 2 },
        ],
      },
      "ranked",
      {
        candidates: [
          { content: "a", score: 1 },
          { content: "b", score: 2 },
        ],
      },
    ],
    [
      "OpenAI's preferences",
      {
        input: {
          messages: [system("s"), user("q")],
          tools: [{ type: "function", function: { name: "look" } }],
          parallel_tool_calls: true,
        },
        preferred_output: [assistant("y")],
        non_preferred_output: [assistant("n")],
      },
      "preferred-outputs",
      {
        kind: "preference",
        messages: [system("s"), user("q")],
        tools: '[{"type":"function","function":{"name":"look"}}]',
        chosen: [assistant("y")],
        rejected: [assistant("n")],
      },
    ],
    [
      "UltraFeedback, as it was published",
      {
        source: "evol_instruct",
        instruction: "q",
        models: ["m1", "m2"],
        completions: [
          { model: "m1", principle: "p", response: "a", critique: "c", "fine-grained_score": 2.5, overall_score: 4 },
          { model: "m2", principle: "p", response: "b", critique: "c", "fine-grained_score": 4.5, overall_score: 7.5 },
        ],
      },
      "ranked",
      {
        candidates: [
          { content: "a", score: 4 },
          { content: "b", score: 7.5 },
        ],
      },
    ],
    [
      "distilabel's generations with ratings",
      { instruction: "q", input: "i", generations: ["a", "b"], rating: [3, 1] },
      "ranked",
      {
        messages: [user("q\ni")],
        candidates: [
          { content: "a", score: 3 },
          { content: "b", score: 1 },
        ],
      },
    ],
    [
      "responses in ranks, of which the first is the best",
      { prompt: "q", responses: ["a", "b", "c"], ranks: [2, 1, 3] },
      "ranked",
      {
        candidates: [
          { content: "a", score: -2 },
          { content: "b", score: -1 },
          { content: "c", score: -3 },
        ],
      },
    ],
    [
      "TRL's preferences with tools",
      {
        prompt: [user("Weather?")],
        chosen: [assistant("", { tool_calls: [{ type: "function", function: { name: "look", arguments: { city: "Ulm" } } }] })],
        rejected: [assistant("Sunny.")],
        tools: [{ type: "function", function: { name: "look" } }],
      },
      "preference",
      {
        tools: '[{"type":"function","function":{"name":"look"}}]',
        chosen: [
          { role: "assistant", content: "", tool_calls: '[{"type":"function","function":{"name":"look","arguments":{"city":"Ulm"}}}]' },
        ],
        rejected: [assistant("Sunny.")],
      },
    ],
    [
      "LLaMA-Factory's KTO",
      { messages: [user("q"), assistant("y")], label: false },
      "unpaired-conversation",
      { label: false, messages: [user("q"), assistant("y")] },
    ],
    [
      "KTO with tools, as JSON text",
      { messages: [user("q"), assistant("y")], label: true, tools: '[{"name": "look"}]' },
      "unpaired-conversation",
      { label: true, tools: '[{"type":"function","function":{"name":"look"}}]' },
    ],
    [
      "LLaMA-Factory's ranking in Alpaca's form",
      { instruction: "q", input: "i", chosen: "y", rejected: "n" },
      "preference",
      { messages: [user("q\ni")], chosen: [assistant("y")], rejected: [assistant("n")] },
    ],
    [
      "responses with the preferred one",
      { prompt: "q", responses: ["a", "b", "c"], preferred_response: "b" },
      "preferred-of-responses",
      {
        kind: "ranked",
        candidates: [
          { content: "b", score: 1 },
          { content: "a", score: 0 },
          { content: "c", score: 0 },
        ],
      },
    ],
    [
      "a preferred response alone",
      { prompt: "q", preferred_response: "b" },
      "preferred-response",
      { kind: "chat", messages: [user("q"), assistant("b")] },
    ],
    [
      "TRL's prompt and completion in turns",
      { prompt: [user("a"), assistant("b"), user("c")], completion: [assistant("d")] },
      "prompt-completion-turns",
      { messages: [user("a"), { ...assistant("b"), train: false }, user("c"), assistant("d")] },
    ],
    [
      "a tokenized dataset, padded",
      { input_ids: [5, 6, 0], attention_mask: [1, 1, 0], labels: [-100, 6, -100] },
      "pretokenized",
      { kind: "pretokenized", input_ids: [5, 6], labels: [-100, 6] },
    ],
    ["a question and its answer by who speaks", { human: "hi", assistant: "ho" }, "question-answer", { messages: turns }],
    [
      "a triple with several objects",
      { subject: "居里夫人", predicate: "孩子", object: ["伊雷娜", "艾芙"] },
      "triple",
      { messages: [user("居里夫人的孩子是什么？"), assistant("伊雷娜、艾芙")] },
    ],
    [
      "a triple in English",
      { head: "Einstein", relation: "birthplace", tail: "Ulm" },
      "triple",
      { messages: [user("What is the birthplace of Einstein?"), assistant("Ulm")] },
    ],
  ])("%s", (_, row, format, body) => {
    const detected = read(row);
    expect(detected).toMatchObject({ format, body });
    const made = (detected as Detected).body;
    record.parse({ v: "lrec/1", id: recordId(made), ...made, meta: { line: 1, format } });
  });

  it("OpenAI's tools, with arguments that are objects, text or a call of the old kind", () => {
    const source =
      '{"messages":[{"role":"user","content":"q"},{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":{"x":1.0,"n":12345678901234567890}}}]},{"role":"tool","tool_call_id":"c","content":{"r":2.50}},{"role":"assistant","function_call":{"name":"f","arguments":"{}"}},{"role":"function","name":"f","content":"r"},{"role":"assistant","content":"a"}],"functions":[{"name":"f","max":1.0}]}';
    expect(readText(source)).toMatchObject({
      format: "conversation",
      body: {
        tools: '[{"type":"function","function":{"name":"f","max":1.0}}]',
        messages: [
          user("q"),
          {
            content: "",
            tool_calls: '[{"id":"c","type":"function","function":{"name":"f","arguments":{"x":1.0,"n":12345678901234567890}}}]',
          },
          { role: "tool", tool_call_id: "c", content: '{"r":2.50}' },
          { content: "", tool_calls: '[{"name":"f","arguments":"{}"}]' },
          { role: "tool", name: "f", content: "r" },
          assistant("a"),
        ],
      },
    });
    const glaive = {
      conversations: [
        { from: "human", value: "q" },
        { from: "function_call", value: '{"name":"f","arguments":{"x":1.0}}' },
        { from: "observation", value: "r" },
        { from: "gpt", value: "a" },
      ],
      tools: '[{"name":"f","max":1.0}]',
    };
    expect(read(glaive)).toMatchObject({
      body: {
        tools: '[{"type":"function","function":{"name":"f","max":1.0}}]',
        messages: [user("q"), { tool_calls: '[{"name":"f","arguments":{"x":1.0}}]' }, {}, {}],
      },
    });
  });
});

describe("a row is refused", () => {
  it.each<[string, unknown, string, RegExp]>([
    ["messages and another text", { messages: turns, text: "ho" }, "AMBIGUOUS", /"conversation" and "text".*mapping's `format`/],
    ["an instruction and a completion", { instruction: "a", output: "b", prompt: "a", completion: "c" }, "AMBIGUOUS", /two formats/],
    ["tokenized, with its text", { input_ids: [1], text: "a" }, "AMBIGUOUS", /"pretokenized" and "text"/],
    [
      "text with a label of another kind",
      { text: "a", label: { name: {} } },
      "FORMAT_UNKNOWN",
      /`label` is an object; it must be text or a number/,
    ],
    [
      "a premise",
      { premise: "a", hypothesis: "b", label: 0 },
      "FORMAT_UNKNOWN",
      /close to the format "classification", but `text` is missing/,
    ],
    [
      "a completion that is a list",
      { prompt: "a", completion: ["b"] },
      "FORMAT_UNKNOWN",
      /close to the format "prompt-completion", but `completion` is a list/,
    ],
    [
      "a message of Slack",
      { type: "message", user: "U1", text: "ok", ts: "1700000000.0001" },
      "FORMAT_UNKNOWN",
      /one message of a Slack export.*format: text/,
    ],
    ["text with entities", { text: "a", entities: [] }, "FORMAT_UNKNOWN", /close to the format "text", but `entities` stands beside it/],
    ["more tokens than labels", { tokens: ["a", "b"], labels: ["O"] }, "LENGTHS_DIFFER", /2 tokens and 1 labels/],
    ["an entity that begins inside", { tokens: ["a", "b"], labels: ["O", "I-PER"] }, "TAGS_ILLEGAL", /label 2, "I-PER", follows "O"/],
    ["an entity that changes its type", { tokens: ["a", "b"], labels: ["B-PER", "I-LOC"] }, "TAGS_ILLEGAL", /"I-LOC", follows "B-PER"/],
    ["an entity without its end", { tokens: ["a", "b", "c"], labels: ["B-X", "O", "S-X"] }, "TAGS_ILLEGAL", /not ended by E or L/],
    ["tags that are numbers", { tokens: ["a"], ner_tags: [3] }, "LABEL_NAMES_MISSING", /mapping's `labels`/],
    ["an empty token", { tokens: ["a", ""], labels: ["O", "O"] }, "TOKEN_EMPTY", /token 2 is empty/],
    ["no tokens", { tokens: [], labels: [] }, "EMPTY_PROMPT", /empty list/],
    ["labels that are other ids", { input_ids: [1, 2], labels: [2, -100] }, "TOKEN_IDS_INVALID", /labels\[0\] is 2/],
    ["nothing but -100", { input_ids: [1, 2], labels: [-100, -100] }, "NOTHING_TRAINED", /-100/],
    ["fewer labels than ids", { input_ids: [1, 2], labels: [1] }, "LENGTHS_DIFFER", /2 input_ids and 1 of `labels`/],
    ["negative ids", { input_ids: [1, -2] }, "TOKEN_IDS_INVALID", /input_ids\[1\] is -2/],
    ["the same answer twice", { prompt: "q", chosen: "a", rejected: "a" }, "SAME_ANSWERS", /say the same/],
    ["chosen without a question", { chosen: "a", rejected: "b" }, "EMPTY_PROMPT", /no question/],
    ["an empty rejected", { prompt: "q", chosen: "a", rejected: " " }, "EMPTY_ANSWER", /`rejected` is empty/],
    ["no responses", { prompt: "q", responses: [] }, "EMPTY_ANSWER", /`responses` is empty/],
    ["scores that are too few", { prompt: "q", responses: ["a", "b"], scores: [1] }, "LENGTHS_DIFFER", /2 responses and 1 scores/],
    ["two languages of one script", { source: "古文", target: "白话" }, "LANGUAGE_UNKNOWN", /tell only one language, Chinese.*source_lang/],
    ["a language that its script does not tell", { source: "Où est-il ?", target: "他在哪" }, "LANGUAGE_UNKNOWN", /script of the source/],
    ["three languages", { translation: { en: "a", de: "b", zh: "c" } }, "TRANSLATION_INVALID", /3 texts/],
    ["an image without a place", { image: { bytes: "x" }, caption: "c" }, "IMAGE_UNREADABLE", /path or URL/],
    [
      "more marks than images",
      { image: "a.jpg", messages: [user("<image><image>"), assistant("x")] },
      "IMAGES_DIFFER",
      /2 times.*1 images/,
    ],
    [
      "nobody's answer",
      { context: "c", question: "q", answers: { text: [], answer_start: [] } },
      "EMPTY_ANSWER",
      /`answers` holds no text/,
    ],
    ["an empty text", { text: " " }, "EMPTY_TEXT", /`text` is empty/],
    ["an empty subject", { subject: "", predicate: "p", object: "o" }, "EMPTY_PROMPT", /`subject` is empty/],
    [
      "a picture that its format does not read",
      { document: "d", summary: "s", images: ["a.png"] },
      "PICTURE_NOT_READ",
      /`images`.*"summary"/,
    ],
    ["LLaVA's mark and no picture", { question: "<image>\nWhat?", answer: "A dog." }, "IMAGES_DIFFER", /names no image/],
    [
      "a part that stands for a picture, and no picture",
      { messages: [{ role: "user", content: [{ type: "image" }, { type: "text", text: "What?" }] }, assistant("A dog.")] },
      "IMAGES_DIFFER",
      /names no image/,
    ],
    [
      "a picture in one of two answers",
      {
        prompt: "Which?",
        chosen: [{ role: "assistant", content: [{ type: "image_url", image_url: { url: "http://x/y.png" } }] }],
        rejected: "no",
      },
      "CONTENT_NOT_TEXT",
      /answer in `chosen` holds images/,
    ],
    ["a history that is none", { instruction: "a", output: "b", history: [["x"]] }, "HISTORY_INVALID", /`history` 1/],
    ["tools nested without end", { messages: turns, tools: [{ a: deep(100) }] }, "NESTED_TOO_DEEPLY", /64/],
  ])("with %s", (_, row, code, message) => {
    expect(read(row)).toEqual({ code, message: expect.stringMatching(message) as string });
  });
  it("unless the other format says nothing", () => {
    expect(read({ instruction: "", output: "", text: "some text" })).toMatchObject({ format: "text" });
    expect(read({ messages: turns, prompt: "", completion: "" })).toMatchObject({ format: "conversation" });
    expect(read({ messages: [], text: "some text" })).toMatchObject({ format: "text" });
  });
  it("in a table of several formats, by the columns that are empty in it", () => {
    const table = (row: object) =>
      read({ instruction: "", input: "", output: "", question: "", answer: "", text: "", label: "", messages: "", system: "", ...row });
    expect(table({ text: "Great", label: "good" })).toMatchObject({ format: "classification" });
    // Nobody can tell raw text from a text whose label is missing.
    expect(table({ text: "Raw." })).toMatchObject({ code: "EMPTY_ANSWER" });
    expect(table({ question: "q", answer: "a" })).toMatchObject({
      format: "question-answer",
      body: { messages: [user("q"), assistant("a")] },
    });
    expect(table({ instruction: "q", output: "a" })).toMatchObject({ format: "instruction" });
    expect(table({ input: "q", output: "a" })).toMatchObject({ format: "instruction" });
    expect(table({ messages: JSON.stringify(turns) })).toMatchObject({ format: "conversation" });
    expect(table({ question: "q" })).toMatchObject({ code: expect.stringMatching(/^EMPTY_/) as string });
    expect(table({})).toMatchObject({ code: expect.stringMatching(/^EMPTY_/) as string });
  });
});

function deep(levels: number): unknown {
  let value: unknown = 1;
  for (let level = 0; level < levels; level++) value = [value];
  return value;
}

describe("classes", () => {
  it("are asked for by the first row that needs them, and stand in the prompt", () => {
    const row = { text: "Great", label: "good" };
    const detector = createDetector();
    expect(detector.detect(row, () => row)).toBe(needsLabels);
    expect([
      detector.labelOf(row),
      detector.labelOf({ text: "a", label: 3 }),
      detector.labelOf({ text: "a" }),
      detector.labelOf(7),
    ]).toEqual(["good", "3", undefined, undefined]);
    const known = createDetector({ labels: ["bad", "good"] });
    expect(known.detect(row, () => row)).toMatchObject({
      template: "classification.en/1",
      body: { messages: [user("Classify the following text. Answer with exactly one of: bad, good.\nGreat"), assistant("good")] },
    });
    expect(read(row)).toMatchObject({
      template: "open-classification.en/1",
      body: { messages: [user("Classify the following text. Answer with the name of its class only.\nGreat"), {}] },
    });
  });
  it("get their names from the mapping", () => {
    const mapping = { labels: ["negative", "positive"] };
    expect(mapped(mapping, { text: "Great", label: 1 })).toMatchObject({ body: { messages: [{}, assistant("positive")] } });
    expect(mapped(mapping, { text: "Great", label: "0" })).toMatchObject({ body: { messages: [{}, assistant("negative")] } });
    expect(mapped(mapping, { text: "Great", label: 2 })).toMatchObject({ code: "LABEL_UNKNOWN" });
    expect(mapped({ labels: ["O", "B-PER"] }, { tokens: ["Tom", "ran"], ner_tags: [1, 0] })).toMatchObject({
      body: { messages: [{}, assistant('[{"text":"Tom","type":"PER"}]')] },
    });
    const many = Array.from({ length: 51 }, (_, n) => `class ${n}`);
    expect(mapped({ labels: many }, { text: "Great", label: 50 })).toMatchObject({ template: "open-classification.en/1" });
    const listing = { instruction_template: "{text} [{labels}]" };
    expect(mapped({ ...listing, labels: many }, { text: "Great", label: 50 })).toMatchObject({
      body: { messages: [user(`Great [${many.join(", ")}]`), assistant("class 50")] },
    });
    expect(mapped(listing, { text: "Great", label: 50 })).toMatchObject({ code: "LABEL_NAMES_MISSING" });
    expect(mapped({ labels: ["O"] }, { tokens: ["Tom"], ner_tags: [1] })).toMatchObject({ code: "LABEL_NAMES_MISSING" });
  });
});

describe("a mapping", () => {
  it("names the columns, also members of a column, and tells what it leaves", () => {
    const row = { Frage: "q", meta: { a: "r" }, answer: "an older one", id: 7 };
    expect(mapped({ format: "question-answer", columns: { question: "Frage", answer: "meta.a" } }, row)).toMatchObject({
      format: "question-answer",
      body: { messages: [user("q"), assistant("r")] },
      unusedKeys: expect.arrayContaining(["answer", "id"]) as string[],
    });
  });
  it("chooses between formats, or says why a row is not of the one", () => {
    const both = { messages: turns, text: "other" };
    const marked = { text: "### Human: hi### Assistant: ho" };
    expect(mapped({ format: "text" }, marked)).toMatchObject({ format: "text", body: { text: marked.text } });
    expect(mapped({ format: "marked-turns", system: "s" }, marked)).toMatchObject({
      body: { messages: [system("s"), user("hi"), assistant("ho")] },
    });
    expect(mapped({ format: "marked-turns" }, { text: "hi" })).toMatchObject({ code: "MESSAGE_INVALID" });
    expect(mapped({ format: "text" }, { type: "message", text: "ok", ts: "1" })).toMatchObject({ format: "text" });
    expect(mapped({ format: "text" }, both)).toMatchObject({ format: "text", body: { text: "other" }, unusedKeys: ["messages"] });
    expect(mapped({ format: "conversation" }, both)).toMatchObject({ format: "conversation" });
    expect(mapped({ format: "code" }, both)).toMatchObject({
      code: "FORMAT_MISMATCH",
      message: expect.stringMatching(/`description` is missing/) as string,
    });
  });
  it("says which column a row has not", () => {
    const mapping = { columns: { question: "Frage" } };
    const message =
      'close to the format "question-answer", but `question` is missing (its column is "Frage"). Keys found: question, answer.';
    expect(mapped(mapping, { Frage: null, answer: "a" })).toMatchObject({ code: "FORMAT_UNKNOWN", message });
  });
  it("puts a system prompt where there is none", () => {
    expect(mapped({ system: "s" }, { question: "q", answer: "a" })).toMatchObject({
      body: { messages: [system("s"), user("q"), assistant("a")] },
    });
    expect(mapped({ system: "s" }, { messages: [system("own"), ...turns] })).toMatchObject({
      body: { messages: [system("own"), ...turns] },
    });
    expect(mapped({ system: "s" }, { text: "t" })).toMatchObject({ body: { text: "t" } });
  });
  it("names roles", () => {
    const row = {
      messages: [
        { role: "Kunde", content: "hi" },
        { role: "gpt", content: "ho" },
      ],
    };
    expect(read(row)).toMatchObject({ code: "ROLE_UNKNOWN" });
    expect(mapped({ roles: { Kunde: "user" } }, row)).toMatchObject({ body: { messages: turns } });
  });
  it("writes the user's turn by its template, from fields and columns", () => {
    const mapping = {
      format: "classification",
      columns: { text: "premise" },
      instruction_template: "{premise}\n{{{hypothesis}}}? [{labels}]",
    };
    expect(mapped(mapping, { premise: "p", hypothesis: "h", label: 0 }, ["0", "1"])).toMatchObject({
      body: { messages: [user("p\n{h}? [0, 1]"), assistant("0")] },
    });
    expect(mapped(mapping, { premise: "p", label: 0 }, ["0"])).toMatchObject({
      code: "COLUMN_MISSING",
      message: expect.stringContaining("{hypothesis}") as string,
    });
    const own = { instruction_template: "{instruction} <{input}>" };
    expect(mapped(own, { instruction: "a", output: "b" })).toMatchObject({ body: { messages: [user("a <>"), assistant("b")] } });
    expect(mapped({ instruction_template: "Say it in modern Chinese: {source}" }, { source: "古文", target: "白话" })).toMatchObject({
      body: { messages: [user("Say it in modern Chinese: 古文"), assistant("白话")] },
    });
    expect(mapped(own, { messages: turns })).toMatchObject({ body: { messages: turns } });
  });
  it("chooses the language of our prompts", () => {
    expect(mapped({ language: "zh" }, { article: "Long.", summary: "Short." })).toMatchObject({ template: "summary.zh/1" });
    expect(mapped({ language: "en" }, { article: "长文", summary: "短" })).toMatchObject({ template: "summary.en/1" });
  });
});

it("prompts have names, versions and all their values", () => {
  for (const [name, { zh, en }] of Object.entries(prompts)) {
    expect([zh.name, en.name]).toEqual([`${name}.zh/1`, `${name}.en/1`]);
    const valuesIn = (parts: readonly string[]): string[] => parts.filter((_, index) => index % 2 === 1).sort();
    expect(valuesIn(zh.parts)).toEqual(valuesIn(en.parts));
  }
});

describe("any JSON value", () => {
  const names = [
    ...new Set(signatures.flatMap(({ fields }) => Object.entries(fields).flatMap(([name, field]) => [name, ...field.spellings]))),
  ];
  const turn = fc.dictionary(
    fc.constantFrom("role", "from", "content", "value", "human", "assistant", "tool_calls", "weight", "train", "reasoning"),
    fc.oneof(fc.constantFrom("user", "assistant", "system", "tool", "function_call"), fc.jsonValue({ maxDepth: 2 })),
  );
  const value = fc.oneof(
    fc.string(),
    fc.constantFrom("", " ", "\ud800", "__proto__", "constructor"),
    fc.array(fc.string(), { maxLength: 4 }),
    fc.array(fc.integer(), { maxLength: 4 }),
    fc.array(turn, { maxLength: 4 }),
    fc.jsonValue({ maxDepth: 3 }),
  );
  const key = fc.oneof(
    { weight: 8, arbitrary: fc.constantFrom(...names) },
    fc.constantFrom("__proto__", "constructor", " Text ", "\uFEFFmessages", "4:texts"),
    fc.string(),
  );
  const row = fc.oneof({ weight: 6, arbitrary: fc.dictionary(key, value, { maxKeys: 7 }) }, fc.jsonValue());
  const mapping = fc.constantFrom(
    {},
    { columns: { question: "a.b", text: "__proto__" }, system: "s" },
    { format: "classification", instruction_template: "{text} {labels} {x}" },
    { format: "conversation", roles: { x: "user" } },
    { format: "token-labels", labels: ["O", "B-X"] },
  );

  /** What is wrong with a result; undefined: nothing. */
  const faultOf = (detected: Detected | Refusal | typeof needsLabels, mayNeedLabels: boolean): string | undefined => {
    if (detected === needsLabels) return mayNeedLabels ? undefined : "asks for labels that it has";
    if (isRefusal(detected)) {
      const { code, message } = detected;
      const isNamed = /^[A-Z0-9_]+$/.test(code) && message.length > 10 && message.length < 3000 && message.isWellFormed();
      return isNamed ? undefined : `refused as ${code}: ${message}`;
    }
    const made = record.safeParse({
      v: "lrec/1",
      id: recordId(detected.body),
      ...detected.body,
      meta: { line: 1, format: detected.format },
    });
    return made.success ? undefined : made.error.message;
  };

  it("gives a record that keeps the contract, or a named refusal", () => {
    const seen = new Set<string>();
    fc.assert(
      fc.property(row, mapping, fc.constantFrom(null, ["a"], undefined), (any, chosen, labels) => {
        const source = JSON.stringify(any);
        const parsed = JSON.parse(source) as unknown;
        const detector = createDetector({ mapping: datasetMapping.parse(chosen), labels });
        const detected = detector.detect(parsed, () => parseExact(source));
        seen.add(detected === needsLabels ? detected : isRefusal(detected) ? detected.code : detected.format);
        detector.labelOf(parsed);
        expect(faultOf(detected, labels === undefined)).toBeUndefined();
      }),
      { numRuns: 5000 },
    );
    // Not a test of refusals only.
    expect(seen.size).toBeGreaterThan(15);
  });
});

it("turns of a marked text hold its words, in their order, and nothing else", () => {
  const marks = [
    "### Human:",
    "### Assistant: ",
    "###Human:",
    "### Instruction:\n",
    "### Input:",
    "### Response:",
    "\n\nHuman: ",
    "\n\nAssistant:",
    "###",
    "\n",
  ];
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.constantFrom(...marks), fc.string({ maxLength: 8 })), { maxLength: 12 }), (parts) => {
      const text = parts.join("");
      const found = read({ text });
      if (isRefusal(found)) return;
      let at = 0;
      for (const { content } of found.body.messages ?? []) {
        for (const word of content.split(/\s+/)) {
          at = text.indexOf(word, at);
          expect(at, `${word} of ${JSON.stringify(text)}`).not.toBe(-1);
          at += word.length;
        }
      }
    }),
    { numRuns: 500 },
  );
});
