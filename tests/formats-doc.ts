/** The generated parts of docs/formats.md: formats, prompts, and the examples of samples/seed-formats.jsonl from row to mask. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Rec, runSpecFields } from "@loraline/contracts";
import { prompts, readRecords, roles, signatures } from "@loraline/datasets";
import { createRecordEncoder, decodeMasked, loadBase } from "@loraline/tokens";

const root = join(import.meta.dirname, "..");
export const docPath = join(root, "docs/formats.md");
const samplePath = join(root, "samples/seed-formats.jsonl");
const basePath = join(root, ".loraline/bases/smollm2-135m-instruct");

/** Titles of the examples in samples/seed-formats.jsonl, in the order of its rows. */
const titles = [
  "指令数据格式 · instruction, input, output",
  "1.1 问答对 · question and answer",
  "1.2 翻译对 · translation",
  "1.3 文本分类 · classification",
  "1.4 摘要生成 · summarization",
  "2. 多轮对话 · conversation",
  "3.1 命名实体识别 · named entities",
  "3.2 词性标注 · parts of speech",
  "4. 无监督学习 · raw text",
  "5.1 RLHF 初始对话生成 · several responses",
  "5.1 RLHF 人类反馈 · the preferred response",
  "6. 指令-响应 · instruction and response",
  "7. 多模态 · image and caption",
  "8.1 文本生成 · prompt and completion",
  "8.2 编程代码生成 · description and code",
  "9. 知识图谱 · triple",
  "10. 对抗性 · sentence, question and answer",
];

/** @returns the document with its generated parts replaced by new ones. */
export async function writeFormatsDoc(document: string): Promise<string> {
  const sections: Record<string, string> = {
    formats: formatTable(),
    roles: roleTable(),
    prompts: promptTable(),
    seed: await seedExamples(),
  };
  let written = document;
  for (const [name, text] of Object.entries(sections)) {
    const start = `<!-- generated: ${name} -->`;
    const end = "<!-- /generated -->";
    const [from, to] = [written.indexOf(start) + start.length, written.indexOf(end, written.indexOf(start))];
    if (from < start.length || to < 0) throw new Error(`docs/formats.md has no place for "${name}"`);
    written = `${written.slice(0, from)}\n${text}\n${written.slice(to)}`;
  }
  return written;
}

const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [`| ${head.join(" | ")} |`, `|${head.map(() => "---|").join("")}`, ...rows.map((row) => `| ${row.join(" | ")} |`)].join("\n");
const code = (text: string): string => `\`${text}\``;

function formatTable(): string {
  const rows = signatures.map(({ format, kind, fields }) => {
    const list = (optional: boolean): string =>
      Object.entries(fields)
        .filter(([, field]) => field.optional === optional)
        .map(([name, { spellings }]) => {
          const others = spellings.filter((spelling) => spelling !== name);
          return `${code(name)}${others.length === 0 ? "" : ` (${others.join(", ")})`}`;
        })
        .join(" + ");
    return [code(format), list(false), list(true), kind];
  });
  return table(["format", "fields (other spellings)", "optional", "kind"], rows);
}

function roleTable(): string {
  const spelled = (role: string): string =>
    Object.entries(roles)
      .filter(([, meaning]) => meaning === role)
      .map(([name]) => name)
      .join(", ");
  const all = ["system", "user", "assistant", "tool", "function_call"] as const;
  return table(
    ["role", "spellings"],
    all.map((role) => [role === "function_call" ? "assistant, with a call" : role, spelled(role)]),
  );
}

function promptTable(): string {
  const asText = ({ parts }: { parts: readonly string[] }): string =>
    parts.map((part, index) => (index % 2 === 1 ? `{${part}}` : part)).join("");
  return table(
    ["prompt", "text"],
    Object.values(prompts).flatMap(({ zh, en }) => [zh, en].map((prompt) => [code(prompt.name), asText(prompt).replaceAll("\n", " ⏎ ")])),
  );
}

async function seedExamples(): Promise<string> {
  const rows = (await readFile(samplePath, "utf8")).trimEnd().split("\n");
  const base = await loadBase(basePath);
  const encoder = createRecordEncoder(base, runSpecFields.shape.tokenize.parse({}));
  const records: Rec[] = [];
  for await (const batch of (await readRecords({ file: samplePath }, { maxRowBytes: 1_000_000 }))?.batches ?? []) {
    if (batch.rejections.length > 0) throw new Error(`a row of the seed is rejected: ${batch.rejections[0]?.message}`);
    records.push(...batch.records);
  }
  const encoded = await encoder.encode(records);
  const examples = await Promise.all(
    rows.map(async (row, index) => {
      const { v: _v, id: _id, meta, ...body } = records[index] as Rec;
      const { samples, dropped } = encoded[index] as (typeof encoded)[number];
      const texts = await Promise.all(samples.map(async ({ ids, labels }) => (await decodeMasked(base.encoder, ids, labels)).segments));
      const shown = texts
        .flat()
        .map(({ text, trained }) => (trained ? `⟦${text}⟧` : text))
        .join("");
      const facts = [meta.format, meta.template, meta.slice && `slice ${meta.slice}`].filter((part) => part !== undefined).map(code);
      const outcome = dropped === null ? `\`\`\`text\n${shown.trimEnd()}\n\`\`\`` : `Left out: ${code(dropped.code)}, ${dropped.message}`;
      return `### ${titles[index]}\n\n\`\`\`json\n${row}\n\`\`\`\n\n${facts.join(" · ")}\n\n\`\`\`json\n${JSON.stringify(body, null, 1)}\n\`\`\`\n\n${outcome}`;
    }),
  );
  return `\n${examples.join("\n\n")}\n`;
}
