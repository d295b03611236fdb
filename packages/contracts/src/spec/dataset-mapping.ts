/** The formats of rows that ingest knows, and the explicit mapping that takes the place of guessing. */
import { z } from "zod";

/**
 * Formats in the order in which they are tried, each with its fields. A mapping's `columns` says which column of a file is which
 * field; without one a field goes by its own name and by the spellings that ingest knows (docs/formats.md).
 */
export const datasetFormats = {
  pretokenized: ["input_ids", "labels", "attention_mask"],
  "token-labels": ["tokens", "labels"],
  preference: ["prompt", "input", "system", "messages", "chosen", "rejected"],
  "preferred-of-responses": ["prompt", "system", "responses", "preferred_response"],
  "preferred-response": ["prompt", "system", "preferred_response"],
  ranked: ["prompt", "system", "responses", "scores"],
  "unpaired-conversation": ["messages", "system", "label"],
  unpaired: ["prompt", "input", "system", "completion", "label"],
  conversation: ["messages", "system", "tools", "image"],
  triple: ["subject", "predicate", "object"],
  adversarial: ["sentence", "question", "answer"],
  "context-question-answer": ["context", "question", "answer"],
  "image-caption": ["image", "caption"],
  instruction: ["instruction", "input", "output", "system", "history", "image"],
  summary: ["document", "summary"],
  translation: ["source", "target", "source_lang", "target_lang"],
  "translation-object": ["translation"],
  code: ["description", "code"],
  "question-answer": ["question", "answer", "system", "history", "image"],
  "input-output": ["input", "output", "system"],
  "prompt-completion-turns": ["prompt", "completion", "tools"],
  "prompt-completion": ["prompt", "completion"],
  classification: ["text", "label"],
  text: ["text"],
} as const satisfies Record<string, readonly string[]>;
export type DatasetFormat = keyof typeof datasetFormats;

const formatNames = Object.keys(datasetFormats) as DatasetFormat[];
const allFields: readonly string[] = [...new Set(Object.values(datasetFormats).flat())];

/** Formats whose user turn is written by ingest, so that a template can write it otherwise. */
const askedByTemplate: readonly DatasetFormat[] = [
  "token-labels",
  "triple",
  "adversarial",
  "context-question-answer",
  "image-caption",
  "instruction",
  "summary",
  "translation",
  "translation-object",
  "code",
  "question-answer",
  "input-output",
  "classification",
];
const withoutTurns: readonly DatasetFormat[] = ["pretokenized", "prompt-completion", "text"];
const withRoles: readonly DatasetFormat[] = ["conversation", "unpaired-conversation", "preference", "prompt-completion-turns"];

/** `{name}` in an instruction template; `{{` and `}}` are braces. */
export const templatePlaceholder = /\{\{|\}\}|\{([^{}\n]{1,100})\}/g;

const name = z.string().min(1).max(200);

export const datasetMapping = z
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
    on_unknown: z
      .enum(["fail", "drop"])
      .default("fail")
      .describe("What becomes of a file many of whose rows are of no known format, or of several at once: `drop` trains on the others."),
  })
  .superRefine((mapping, context) => {
    const { format, columns, roles, system, instruction_template: template, labels } = mapping;
    const fields = format === undefined ? allFields : datasetFormats[format];
    const refuse = (path: string[], message: string): void => context.addIssue({ code: "custom", path, message });
    for (const field of Object.keys(columns ?? {})) {
      if (fields.includes(field)) continue;
      const none = format === undefined ? "no format has a" : `the format ${format} has no`;
      refuse(["columns", field], `${none} field "${field}". Fields: ${fields.join(", ")}.`);
    }
    const unless = (path: string, given: unknown, takes: boolean, why: string): void => {
      if (given !== undefined && format !== undefined && !takes) refuse([path], `the format ${format} ${why}. Remove it.`);
    };
    unless("roles", roles, format !== undefined && withRoles.includes(format), "has no roles");
    unless(
      "system",
      system,
      format !== undefined && !withoutTurns.includes(format),
      "is trained without a chat template, so it has no system prompt",
    );
    unless("instruction_template", template, format !== undefined && askedByTemplate.includes(format), "has its own prompt");
    unless("labels", labels, format === "classification" || format === "token-labels", "has no labels to name");
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
  .describe("How the rows of a file are read, instead of by detection.");
export type DatasetMapping = z.output<typeof datasetMapping>;
