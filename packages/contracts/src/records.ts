/** The canonical record `lrec/1`, and what ingest and tokenize store about a set of records. */
import { z } from "zod";
import { olderTemplates, templateOf, templates } from "./spec/run-spec.ts";
import { baseRef } from "./engine.ts";
import { adapterName, blobRef, digest } from "./names.ts";

const message = z.object({
  role: z.enum(["system", "user", "assistant", "tool"]),
  content: z.string(),
  name: z.string().optional(),
  tool_calls: z.string().optional().describe("Verbatim JSON, so that numbers and key order survive."),
  tool_call_id: z.string().optional(),
  train: z.boolean().optional().describe("Whether an assistant turn is trained; absent: yes."),
  weight: z
    .union([z.literal(0), z.literal(1)])
    .optional()
    .describe("OpenAI's spelling of `train`."),
  reasoning: z.string().optional().describe("The assistant's thinking, apart from its answer (`reasoning_content`, `<think>`)."),
  media: z
    .array(z.int().nonnegative())
    .optional()
    .describe(
      "Indexes into the record's `media`, in the order in which they are shown: where U+FFFC stands in the content, others before it.",
    ),
});
export type Message = z.infer<typeof message>;

/** Whether a message is trained on: those of the assistant are, unless `train` or `weight` excludes them. */
export const isTrainedTurn = (turn: Message): boolean => turn.role === "assistant" && turn.train !== false && turn.weight !== 0;

/**
 * Unicode's object replacement character, which stands in a content where a picture is shown. A content stays one text, so that
 * everything that reads, redacts, counts or compares texts need not know of pictures.
 */
export const pictureMark = "\uFFFC";

/** What a picture may be. Ingest refuses a row with any other. */
export const pictureLimits = {
  /** Bytes of the file. */
  bytes: 20 * 1024 ** 2,
  /** Width times height. */
  pixels: 50_000_000,
  side: 16_384,
  /** The longer side by the shorter. */
  ratio: 200,
  ofRecord: 32,
  ofDataset: 1_000_000,
} as const;

const pictureTypes = ["image/png", "image/jpeg", "image/webp", "image/gif"] as const;

/** A line of the table of a dataset's or run's pictures (JSONL, a blob of kind `pictures`). The picture is the blob of kind `picture` with this digest. */
export const pictureEntry = z.object({
  digest,
  bytes: z.int().positive(),
  media_type: z.enum(pictureTypes),
  width: z
    .int()
    .positive()
    .describe("Pixels, as it is shown: after the orientation that a JPEG may tell. Of a moving picture its first frame."),
  height: z.int().positive(),
});
export type PictureEntry = z.infer<typeof pictureEntry>;

/** The pictures of a dataset or a run. */
const pictureTable = z.object({
  table: blobRef.describe("JSONL: a `pictureEntry` for each picture, once."),
  count: z.int().positive(),
  bytes: z.int().positive().describe("Of all pictures."),
});
export type PictureTable = z.infer<typeof pictureTable>;

const recordMeta = z.object({
  file: z
    .string()
    .optional()
    .describe("Where an upload holds several files: the one among them. An upload's own name is no part of its records."),
  line: z
    .int()
    .describe(
      "1-based line (JSON Lines; CSV: where the row begins), or number of the element or row (JSON array, Parquet, Arrow); runs on through the parts of a dataset.",
    ),
  format: z.string().describe("Name of the format that the row was read as, such as `instruction`."),
  template: z.string().optional().describe("Name and version of the prompt that ingest wrote around the row, such as `translation.zh/1`."),
  slice: z.string().optional().describe("Part of the dataset that is evaluated for itself, such as `adversarial`."),
  unusedKeys: z.array(z.string()).optional(),
  redacted: z.array(z.string()).optional().describe("Kinds of what was replaced in its texts, because the mapping says `redact`."),
  /** Columns of the original row, which the template `seed` joins without a newline. */
  seed: z.object({ instruction: z.string(), input: z.string(), output: z.string() }).optional(),
});

const recordKinds = ["chat", "completion", "text", "preference", "ranked", "unpaired", "pretokenized"] as const;

/**
 * One training example in canonical form. `id` is the sha256 of everything except `meta`.
 *
 * | kind | fields | trained by |
 * |---|---|---|
 * | chat | messages, tools?, media? | supervised (with media: only where the base can see) |
 * | completion | prompt, completion | supervised, without a chat template |
 * | text | text | supervised |
 * | pretokenized | input_ids, labels | supervised |
 * | preference | messages (the common prompt), chosen, rejected | dpo, orpo, simpo, kto, judge |
 * | ranked | messages, candidates | dpo, orpo, simpo, kto, judge |
 * | unpaired | messages (with the answer), label | kto |
 */
export const record = z.object({
  v: z.literal("lrec/1"),
  id: digest,
  kind: z.enum(recordKinds),
  task: z.string(),
  messages: z.array(message).min(1).optional(),
  prompt: z.string().optional(),
  completion: z.string().optional(),
  text: z.string().optional(),
  tools: z.string().optional().describe("Verbatim JSON."),
  chosen: z.array(message).min(1).optional(),
  rejected: z.array(message).min(1).optional(),
  candidates: z
    .array(z.object({ content: z.string(), score: z.number().optional() }))
    .min(1)
    .optional(),
  label: z.boolean().optional().describe("unpaired: whether the answer is wanted."),
  media: z
    .array(
      z.object({
        type: z.enum(["image", "audio", "video"]),
        ref: z
          .string()
          .describe(
            "Digest of a picture in the object store. By older code: URL, path or data URI as the row gives it, which nobody fetched.",
          ),
        ...pictureEntry.omit({ digest: true }).partial().shape,
        source: z.string().optional().describe("Where the row says that the picture is; of bytes in the row nothing."),
      }),
    )
    .optional(),
  input_ids: z.array(z.int().nonnegative()).min(1).optional(),
  labels: z.array(z.int()).min(1).optional().describe("As long as input_ids; -100 is not trained on."),
  meta: recordMeta,
});
export type Rec = z.infer<typeof record>;

const rejection = z.object({
  file: z.string().optional().describe("Where an upload holds several files: the one among them."),
  line: z.int(),
  code: z.string(),
  message: z.string(),
});
export type Rejection = z.infer<typeof rejection>;

/** A distribution in a few numbers. Each bar of `histogram` counts the values above the bar before it, up to and including `upTo`. */
const lengths = z.object({
  count: z.int(),
  total: z.int(),
  p50: z.int(),
  p95: z.int(),
  max: z.int(),
  histogram: z.array(z.object({ upTo: z.int(), count: z.int() })),
});
export type Lengths = z.infer<typeof lengths>;

/** Text as the trainer sees it: trained spans are learned, the rest is only read. */
const sample = z.object({
  line: z.int(),
  format: z.string(),
  segments: z.array(z.object({ text: z.string(), trained: z.boolean() })),
});
export type Sample = z.infer<typeof sample>;

/** Where something was found in texts: the number of records, and the lines of the first ones. */
const finding = z.object({ count: z.int(), lines: z.array(z.int()) });

/** The records' tokens with a base; only if the base is known when the report is made. */
const tokenReport = z.object({
  base: z.string(),
  template: z.string().describe("`base` or `seed`, as in the run spec."),
  maxLength: z.int(),
  lengths,
  supervised: z.int().describe("Tokens that are trained on, of `lengths.total`."),
  dropped: z.record(z.string(), z.int()).describe("Reason to records that give no tokens at `maxLength`."),
  atMaxLength: z
    .array(z.object({ maxLength: z.int(), tooLong: z.int() }))
    .describe("How many records would be dropped or cut at other lengths."),
});
export type TokenReport = z.infer<typeof tokenReport>;

export const datasetReport = z.object({
  rows: z.int(),
  records: z.int(),
  rejections: z.int(),
  formats: z.record(z.string(), z.int()),
  kinds: z.record(z.string(), z.int()).default({}),
  reasons: z.record(z.string(), z.int()).describe("Rejection code to count."),
  exactDuplicates: z.int(),
  nearDuplicates: z
    .object({
      examined: z.int().describe("Records compared: the first ones."),
      count: z.int().describe("Records that say nearly what an earlier one says, exact duplicates not counted."),
      examples: z.array(z.object({ line: z.int(), of: z.int(), similarity: z.number() })),
    })
    .nullish(),
  overlap: z.object({ exact: finding, near: finding }).nullish().describe("Records that the validation file holds too; null without one."),
  characters: lengths.nullish().describe("Length of each record's text."),
  preferences: z
    .object({
      pairs: z.int().describe("A chosen answer against a rejected one; of a list, the best against each worse one."),
      chosen: lengths.nullable().describe("Characters of the better answers; null: there are no pairs."),
      rejected: lengths.nullable(),
      longerWins: z.int().describe("Pairs whose better answer is the longer one."),
      shorterWins: z.int(),
      identical: z.int().describe("Rows that were refused because both sides say the same."),
      ties: finding.describe("Lists with answers of the same score."),
      unranked: finding.describe("Lists that do not say which answer is better."),
      contradictions: finding.describe("Records that say the opposite of an earlier one."),
      good: z.int().describe("Answers labelled good."),
      bad: z.int(),
    })
    .nullish()
    .describe("What compares answers; null when nothing does."),
  labels: z.record(z.string(), z.int()).nullish().describe("Classification labels to records; null when there are none."),
  languages: z
    .object({ examined: z.int(), counts: z.record(z.string(), z.int()).describe("ISO 639-1 code, or `?`, to records.") })
    .nullish(),
  controlTokens: z.record(z.string(), finding).nullish().describe("Spellings of control tokens inside texts; trained as plain text."),
  secrets: z.record(z.string(), finding).nullish().describe("Kind of secret to where it was seen."),
  personalData: z.record(z.string(), finding).nullish(),
  redacted: z.record(z.string(), finding).nullish().describe("Kind of what the mapping's `redact` replaced to the records that had it."),
  samples: z.array(sample).nullish().describe("Twenty records, chosen by their hash."),
  pictures: z
    .object({
      records: z.int().describe("Records that show pictures."),
      count: z.int().describe("Different pictures."),
      bytes: z.int(),
      notFetched: z.int().describe("Pictures at URLs that nobody fetched, as in a check of a file."),
      samples: z
        .array(
          pictureEntry.extend({
            line: z.int(),
            thumbnail: z
              .string()
              .startsWith("data:image/webp;base64,")
              .optional()
              .describe("At most 128 × 128 pixels. Absent: by older code, or of a file that is only checked."),
          }),
        )
        .describe("The first ones, each once. `GET /v1/loraline/datasets/{dataset_id}/pictures/{digest}` shows them."),
    })
    .nullish()
    .describe("What the records show; null: no pictures. Rows whose pictures cannot be used are among the rejections."),
  warnings: z.array(z.object({ code: z.string(), count: z.int(), message: z.string(), lines: z.array(z.int()) })),
  firstRejections: z.array(rejection).describe("The first 100."),
  allRejections: blobRef.nullable().describe("Every rejection, JSONL; null when there is none."),
});
export type DatasetReport = z.infer<typeof datasetReport>;

/** The manifest of a dataset: JSON object of kind `dataset`, written last, so its existence means that the dataset is complete. */
export const datasetManifest = z.object({
  version: z.literal(1),
  source: blobRef,
  filename: z.string().optional().describe("Written by older code; an upload's name is no part of what its bytes give."),
  records: z.int(),
  rejections: z.int(),
  formats: z.record(z.string(), z.int()),
  chunks: z.array(z.object({ blob: blobRef, records: z.int() })).describe("Canonical records, JSONL."),
  pictures: pictureTable.optional().describe("What its records show; absent: no pictures."),
  report: blobRef,
  code: z.string().describe("Version of the ingest code."),
});
export type DatasetManifest = z.infer<typeof datasetManifest>;

export const tokenShard = z.object({
  blob: blobRef,
  rows: z.int().describe("Arrow rows: packed sequences, or one sequence each."),
  sequences: z.int(),
  tokens: z.int(),
  supervised: z.int().describe("Tokens whose label is not -100."),
});

export const probePrompt = z.object({
  name: z.string(),
  input_ids: z.array(z.int().nonnegative()).min(1),
  pictures: z.array(digest).optional().describe("Pictures whose tokens stand in `input_ids`, in their order."),
  messages: z
    .array(
      z.object({
        role: z.enum(["system", "user", "assistant", "tool"]),
        content: z.array(
          z.discriminatedUnion("type", [
            z.object({ type: z.literal("text"), text: z.string() }),
            z.object({ type: z.literal("image"), digest }),
          ]),
        ),
      }),
    )
    .optional()
    .describe("The same question as a conversation, because engines take pictures in conversations only."),
});
export type ProbePrompt = z.infer<typeof probePrompt>;

export const droppedRecord = z.object({
  id: digest,
  file: z.string().optional().describe("Where an upload holds several files: the one among them."),
  line: z.int(),
  code: z.string(),
  tokens: z.int(),
  message: z.string(),
});

export const tokenTotals = z.object({
  sequences: z.int(),
  tokens: z.int(),
  supervised: z.int(),
  evalSequences: z.int(),
  evalSupervised: z.int(),
  dropped: z.int(),
});

/** The version with which a training begins, as its name was understood when the run was tokenized. */
export const initialAdapter = z.object({ adapter: adapterName, version: z.int().min(1), manifest: blobRef.describe("Adapter manifest.") });
export type InitialAdapter = z.infer<typeof initialAdapter>;

/** A quantised base made of the run's, on which the adapter will be served. */
export const twin = z.object({ name: z.string(), digest });
export type Twin = z.infer<typeof twin>;

/** The manifest of a run's tokens: JSON object of kind `tokens`, written last. */
export const tokenManifest = z
  .object({
    version: z.literal(1),
    cacheKey: digest,
    base: baseRef,
    tokenizerDigest: digest,
    templateDigest: digest.describe("sha256 of the chat template's text, as the engine must apply it."),
    templateFamily: z.string().nullable().default(null).describe("What the template was recognised as; null: none was needed."),
    template: templates.optional().describe("Which of the run spec's `tokenize.template`."),
    profile: olderTemplates,
    maxLength: z.int(),
    packed: z.boolean(),
    seed: z.int(),
    code: z.string(),
    train: z.array(tokenShard),
    eval: z.array(tokenShard),
    pictures: pictureTable
      .optional()
      .describe("What its sequences and probes show; absent: no pictures, and no columns of them in shards."),
    totals: tokenTotals,
    dropped: z.array(droppedRecord).describe("The first 1000."),
    reasons: z.record(z.string(), z.int()).default({}).describe("Code to how many records were dropped for it."),
    noted: z
      .array(droppedRecord)
      .default([])
      .describe("Kept, with something to know about them, such as PROMPT_TRIMMED or NO_SUPERVISED (template `seed`); the first 1000."),
    notes: z.record(z.string(), z.int()).default({}).describe("Code to how many records it was noted of."),
    probes: z.array(probePrompt),
  })
  .transform(({ template, profile, ...manifest }) => ({ ...manifest, template: templateOf({ template, profile }) }));
export type TokenManifest = z.infer<typeof tokenManifest>;
