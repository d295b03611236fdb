/** The formats of rows that ingest knows, and the mapping with which a user names the format instead of having it detected. */
import { z } from "zod";

interface FormatFacts {
  readonly fields: readonly string[];
  /** The settings of a mapping, beside `columns`, that this format allows; others are refused. */
  readonly takes: readonly ("roles" | "system" | "instruction_template" | "labels")[];
}

/**
 * Formats in the order in which they are tried, each with its fields. A mapping's `columns` says which column of a file is which
 * field; without a mapping a field is found by its own name and by the other spellings that ingest knows (docs/formats.md).
 */
export const datasetFormats = {
  pretokenized: { fields: ["input_ids", "labels", "attention_mask"], takes: [] },
  "token-labels": { fields: ["tokens", "labels"], takes: ["system", "instruction_template", "labels"] },
  preference: { fields: ["prompt", "input", "system", "messages", "chosen", "rejected", "tools", "image"], takes: ["roles", "system"] },
  "preferred-outputs": { fields: ["input", "preferred_output", "non_preferred_output"], takes: ["roles", "system"] },
  "preferred-of-responses": { fields: ["prompt", "system", "responses", "preferred_response", "image"], takes: ["system"] },
  "preferred-response": { fields: ["prompt", "system", "preferred_response", "image"], takes: ["system"] },
  ranked: { fields: ["prompt", "input", "system", "responses", "scores", "ranks", "image"], takes: ["system"] },
  "unpaired-conversation": { fields: ["messages", "system", "label", "tools", "image"], takes: ["roles", "system"] },
  "unpaired-turns": { fields: ["prompt", "completion", "label", "tools", "image"], takes: ["roles", "system"] },
  unpaired: { fields: ["prompt", "input", "system", "completion", "label", "image"], takes: ["system"] },
  conversation: { fields: ["messages", "system", "tools", "image"], takes: ["roles", "system"] },
  contents: { fields: ["contents", "system_instruction", "tools"], takes: ["roles", "system"] },
  "tool-calls": { fields: ["question", "calls", "tools", "system"], takes: ["system"] },
  glaive: { fields: ["chat", "system"], takes: ["system"] },
  triple: { fields: ["subject", "predicate", "object"], takes: ["system", "instruction_template"] },
  adversarial: { fields: ["sentence", "question", "answer"], takes: ["system", "instruction_template"] },
  "context-question-answer": { fields: ["context", "question", "answer", "image"], takes: ["system", "instruction_template"] },
  "image-caption": { fields: ["image", "caption"], takes: ["system", "instruction_template"] },
  instruction: { fields: ["instruction", "input", "output", "system", "history", "image"], takes: ["system", "instruction_template"] },
  summary: { fields: ["document", "summary"], takes: ["system", "instruction_template"] },
  translation: { fields: ["source", "target", "source_lang", "target_lang"], takes: ["system", "instruction_template"] },
  "translation-object": { fields: ["translation"], takes: ["system", "instruction_template"] },
  code: { fields: ["description", "code"], takes: ["system", "instruction_template"] },
  "question-answer": { fields: ["question", "answer", "system", "history", "image"], takes: ["system", "instruction_template"] },
  "input-output": { fields: ["input", "output", "system", "image"], takes: ["system", "instruction_template"] },
  "prompt-completion-turns": { fields: ["prompt", "completion", "tools", "image"], takes: ["roles", "system"] },
  "prompt-completion": { fields: ["prompt", "completion"], takes: [] },
  classification: { fields: ["text", "label"], takes: ["system", "instruction_template", "labels"] },
  text: { fields: ["text"], takes: [] },
  "marked-turns": { fields: ["text"], takes: ["system"] },
} as const satisfies Record<string, FormatFacts>;
export type DatasetFormat = keyof typeof datasetFormats;

const formatNames = Object.keys(datasetFormats) as DatasetFormat[];
const allFields: readonly string[] = [...new Set(Object.values(datasetFormats).flatMap(({ fields }) => fields))];

/** Matches `{name}` in an instruction template; `{{` and `}}` stand for braces. */
export const templatePlaceholder = /\{\{|\}\}|\{([^{}\n]{1,100})\}/g;

const name = z.string().min(1).max(200);

/** Labels of WHATWG's Encoding Standard. */
const textEncodings = [
  "utf-8",
  "gb18030",
  "big5",
  "shift_jis",
  "euc-jp",
  "iso-2022-jp",
  "euc-kr",
  "koi8-r",
  "iso-8859-2",
  "iso-8859-15",
  "windows-1250",
  "windows-1251",
  "windows-1252",
  "windows-1253",
  "windows-1254",
  "windows-1257",
  "macintosh",
] as const;

/** Most characters of a mapping as JSON. Every list and every pass over a tenant's datasets meets it again, and it is told in events. */
const largestMapping = 64 * 1024;

const what = "How the rows of a file are read, instead of by detection.";

/** As it is kept: one that an earlier release took must stay readable. */
export const storedMapping = z
  .strictObject({
    format: z
      .enum(formatNames, { error: ({ input }) => `there is no format "${String(input)}". Known: ${formatNames.join(", ")}.` })
      .optional()
      .describe("The format of every row; absent: each row's is detected."),
    columns: z
      .record(name, name)
      .optional()
      .describe('Field to the column that holds it, such as {"instruction": "Question"}; "a.b" is member b of column a.'),
    roles: z
      .record(name, z.enum(["system", "user", "assistant", "tool"]))
      .optional()
      .describe('Who else speaks in conversations: a role as the file spells it to what it is, such as {"narrator": "user"}.'),
    system: z.string().min(1).optional().describe("System prompt of every conversation that has none of its own."),
    instruction_template: z
      .string()
      .min(1)
      .optional()
      .describe("The user's turn, with {field} or {column} where a value goes, and {labels} for the classes of a classification."),
    language: z
      .enum(["zh", "en", "auto"])
      .default("auto")
      .describe("Language of the prompts that ingest writes; `auto`: Chinese where the row has Chinese characters."),
    labels: z
      .array(z.string().min(1))
      .min(1)
      .optional()
      .describe("Names of the classes or tags, in the order of their numbers; absent: those that occur in the file."),
    ignore: z
      .array(name)
      .max(100)
      .optional()
      .describe(
        "Columns that mean nothing for the training, such as a `score` that judges no answer; of messages as `messages[].score`. Without it a row with a judgement that its format does not read is refused.",
      ),
    encoding: z
      .enum(textEncodings, { error: ({ input }) => `there is no encoding "${String(input)}". Known: ${textEncodings.join(", ")}.` })
      .optional()
      .describe("Encoding of a text file without a byte order mark; absent: UTF-8, or the one that is detected and told."),
    text_rows: z
      .enum(["document", "paragraph"])
      .optional()
      .describe(
        "The file is plain text or Markdown: one record of each document, or of each paragraph. Absent: files that end in .txt or .md are documents.",
      ),
    redact: z
      .boolean()
      .optional()
      .describe(
        "Secrets and personal data that the report would warn of are replaced by their kind, such as `[EMAIL]`, before anything is stored but the file itself. The report says what was replaced.",
      ),
    on_unknown: z
      .enum(["fail", "drop"])
      .default("fail")
      .describe("What becomes of a file many of whose rows are of no known format, or of several at once: `drop` trains on the others."),
  })
  .describe(what);

export const datasetMapping = storedMapping
  .superRefine((mapping, context) => {
    const refuse = (path: string[], message: string): void => context.addIssue({ code: "custom", path, message });
    const size = JSON.stringify(mapping).length;
    if (size > largestMapping) {
      // What follows takes long for many columns.
      refuse([], `the mapping has ${size} characters as JSON, and at most ${largestMapping} are taken. Shorten it.`);
      return;
    }
    const { format, columns, instruction_template: template, labels } = mapping;
    const facts: FormatFacts | undefined = format === undefined ? undefined : datasetFormats[format];
    const fields = facts?.fields ?? allFields;
    for (const field of Object.keys(columns ?? {})) {
      if (fields.includes(field)) continue;
      const none = format === undefined ? "no format has a" : `the format ${format} has no`;
      refuse(["columns", field], `${none} field "${field}". Fields: ${fields.join(", ")}.`);
    }
    const onlyWhereTaken = (setting: FormatFacts["takes"][number], why: string): void => {
      if (mapping[setting] !== undefined && facts?.takes.includes(setting) === false)
        refuse([setting], `the format ${format} ${why}. Remove it.`);
    };
    onlyWhereTaken("roles", "has no roles");
    onlyWhereTaken("system", "is trained without a chat template, so it has no system prompt");
    onlyWhereTaken("instruction_template", "has its own prompt");
    onlyWhereTaken("labels", "has no labels to name");
    if (template !== undefined && ![...template.matchAll(templatePlaceholder)].some(([, field]) => field !== undefined)) {
      refuse(
        ["instruction_template"],
        "it names no field, so every row would ask the same. Write a field in braces, such as {instruction}.",
      );
    }
    if (labels !== undefined && new Set(labels).size !== labels.length) refuse(["labels"], "a name stands there twice");
    const used = Object.values(columns ?? {});
    const twice = used.find((column, index) => used.indexOf(column) !== index);
    if (twice !== undefined) refuse(["columns"], `the column "${twice}" is two fields. A column is one field.`);
  })
  .describe(what);
export type DatasetMapping = z.output<typeof datasetMapping>;
