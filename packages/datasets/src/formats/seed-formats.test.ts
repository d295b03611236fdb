/** The examples of ten categories of training data in samples/seed-formats.jsonl, and the record that each becomes. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { record } from "@loraline/contracts";
import { expect, it } from "vitest";
import { createDetector } from "./detect.ts";
import { recordId } from "./record-id.ts";

const rows = readFileSync(join(import.meta.dirname, "../../../../samples/seed-formats.jsonl"), "utf8")
  .trimEnd()
  .split("\n")
  .map((line) => JSON.parse(line) as Record<string, unknown>);

const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });
const [micro, interaction] = ["量子力学是研究微观粒子行为的物理学分支。", "量子力学探讨物质和能量在微观尺度上的性质和相互作用。"] as const;

const golden: [category: string, format: string, body: Record<string, unknown>, rest?: Record<string, unknown>][] = [
  [
    "指令数据格式",
    "instruction",
    { kind: "chat", task: "instruct", messages: [user("回答以下用户问题,仅输出答案。\n1+1等于几?"), assistant("2")] },
    { seed: { instruction: "回答以下用户问题,仅输出答案。", input: "1+1等于几?", output: "2" } },
  ],
  [
    "1.1 问答对",
    "question-answer",
    { kind: "chat", task: "qa", messages: [user("地球有多重?"), assistant("地球的质量约为5.97 × 10²⁴千克。")] },
  ],
  [
    "1.2 翻译对",
    "translation",
    { kind: "chat", task: "translation", messages: [user("将下面的英文翻译成中文。\nHello, how are you?"), assistant("你好,你怎么样?")] },
    { template: "translation.zh/1" },
  ],
  [
    "1.3 文本分类",
    "classification",
    {
      kind: "chat",
      task: "classification",
      messages: [user("判断下面文本的类别，只回答其中之一：积极。\n这部电影真是太棒了!"), assistant("积极")],
    },
    { template: "classification.zh/1" },
  ],
  [
    "1.4 摘要生成",
    "summary",
    { kind: "chat", task: "summarization", messages: [user("为下面的文章写一段摘要。\n长篇文章内容..."), assistant("文章摘要。")] },
    { template: "summary.zh/1" },
  ],
  [
    "2. 多轮对话",
    "conversation",
    {
      kind: "chat",
      task: "chat",
      messages: [user("你好!"), assistant("你好!有什么我可以帮忙的吗?"), user("今天天气怎么样?"), assistant("今天天气晴朗,气温适中。")],
    },
  ],
  [
    "3.1 命名实体识别",
    "token-labels",
    {
      kind: "chat",
      task: "ner",
      messages: [
        user("找出下面文本中的命名实体，按出现的先后以 JSON 列表回答，每项有 text 和 type。\n张三去了北京"),
        assistant('[{"text":"张三","type":"PER"},{"text":"北京","type":"LOC"}]'),
      ],
    },
    { template: "entities.zh/1" },
  ],
  [
    "3.2 词性标注",
    "token-labels",
    {
      kind: "chat",
      task: "pos",
      messages: [user("将下面的文本分词并标注词性，写成“词/词性”，以空格分隔。\n我喜欢学习"), assistant("我/PRON 喜欢/VERB 学习/VERB")],
    },
    { template: "parts-of-speech.zh/1" },
  ],
  [
    "4. 无监督学习",
    "text",
    { kind: "text", task: "text", text: "不需要明确的标签,仅使用大量文本数据进行预训练或微调,如自回归语言模型训练。" },
  ],
  [
    "5.1 初始对话生成",
    "ranked",
    {
      kind: "ranked",
      task: "preference",
      messages: [user("请解释量子力学。")],
      candidates: [{ content: micro }, { content: interaction }],
    },
  ],
  [
    "5.1 人类反馈",
    "preferred-of-responses",
    {
      kind: "preference",
      task: "preference",
      messages: [user("请解释量子力学。")],
      chosen: [assistant(interaction)],
      rejected: [assistant(micro)],
    },
  ],
  [
    "6. 指令-响应",
    "instruction",
    {
      kind: "chat",
      task: "instruct",
      messages: [user("将以下英文句子翻译成中文。\nThe quick brown fox jumps over the lazy dog."), assistant("敏捷的棕色狐狸跳过懒狗。")],
    },
    {
      seed: {
        instruction: "将以下英文句子翻译成中文。",
        input: "The quick brown fox jumps over the lazy dog.",
        output: "敏捷的棕色狐狸跳过懒狗。",
      },
    },
  ],
  [
    "7. 多模态",
    "image-caption",
    {
      kind: "chat",
      task: "caption",
      messages: [{ ...user("描述这张图片。"), media: [0] }, assistant("一只在草地上奔跑的狗。")],
      media: [{ type: "image", ref: "http://example.com/image.jpg" }],
    },
    { template: "caption.zh/1" },
  ],
  [
    "8.1 文本生成",
    "prompt-completion",
    { kind: "completion", task: "completion", prompt: "从前有一只小狐狸,它", completion: "在森林中快乐地生活着。" },
  ],
  [
    "8.2 编程代码生成",
    "code",
    { kind: "chat", task: "codegen", messages: [user("编写一个函数,计算两个数的和。"), assistant("def add(a, b):\n    return a + b")] },
  ],
  [
    "9. 知识图谱",
    "triple",
    { kind: "chat", task: "kg", messages: [user("爱因斯坦的出生地是什么？"), assistant("德国乌尔姆")] },
    { template: "triple.zh/1" },
  ],
  [
    "10. 对抗性",
    "adversarial",
    { kind: "chat", task: "adversarial", messages: [user("我看到她带着望远镜。\n谁带着望远镜?"), assistant("她带着望远镜。")] },
    { slice: "adversarial" },
  ],
];

const { detect } = createDetector({ labels: ["积极"] });
it.each(golden.map((entry, index) => [...entry.slice(0, 1), index] as [string, number]))("%s", (_, index) => {
  const [, format, body, rest] = golden[index] as (typeof golden)[number];
  const row = rows[index];
  // The rows before it, so that what earlier rows say is known.
  for (const earlier of rows.slice(0, index)) detect(earlier, () => earlier);
  const detected = detect(row, () => row);
  expect(detected).toEqual({
    format,
    body,
    unusedKeys: [],
    ...rest,
  });
  record.parse({ v: "lrec/1", id: recordId(body as never), ...body, meta: { line: 1, format } });
});
it("are all there", () => expect(rows).toHaveLength(golden.length));
