/**
 * OpenAI's wire format of errors, files, fine-tuning jobs and models, as the sources of its SDKs 6 and 7 have it. What OpenAI's API does
 * not have is in the extension field `loraline`, or below `/v1/loraline/` (loraline.ts).
 */
import { z } from "zod";
import { problem } from "../names.ts";
import { notice } from "../spec/judged-fields.ts";
import { adapterImport, type MethodType, shapesWithSettings } from "../spec/method.ts";
import { runSpecFields } from "../spec/run-spec.ts";
import { runState } from "../state.ts";
import { datasetMapping } from "../spec/dataset-mapping.ts";
import { maskOf } from "./mask-of.ts";

const unix = z.int().describe("Unix seconds.");
const autoOr = <T extends z.ZodType>(schema: T) => z.union([z.literal("auto"), schema]);

export const errorBody = z.object({
  error: z.object({ message: z.string(), type: z.string(), param: z.string().nullable(), code: z.string().nullable() }),
});
export type ErrorBody = z.infer<typeof errorBody>;

export const fileObject = z.object({
  id: z.string().regex(/^file-/),
  object: z.literal("file"),
  bytes: z.int(),
  created_at: unix,
  filename: z.string(),
  purpose: z.string(),
  status: z.enum(["uploaded", "processed", "error"]).describe("Deprecated by OpenAI, but `files.waitForProcessing` polls it."),
  status_details: z.string().nullable().optional(),
  loraline: z
    .object({
      sha256: z.string().nullable().describe("null while an import is fetched."),
      records: z.int().nullable(),
      rejections: z.int().nullable(),
      error: problem.nullable(),
    })
    .optional(),
});
export type FileObject = z.infer<typeof fileObject>;

export const stays = z.object({ what: z.string(), why: z.string() });
export type Stays = z.infer<typeof stays>;
export const fileDeleted = z.object({
  id: z.string(),
  object: z.literal("file"),
  deleted: z.literal(true),
  loraline: z.object({ stays: z.array(stays).describe("What is kept although the file is gone, and why.") }).optional(),
});

export const createUploadBody = z.strictObject({
  bytes: z.int().min(1).describe("Bytes of the whole file."),
  filename: z.string().min(1).max(512),
  mime_type: z.string().max(255).nullish().describe("Changes nothing: the format is found by the file's name and its content."),
  purpose: z.literal("fine-tune"),
  expires_after: z.null("files stay until they are deleted: remove it").optional(),
  mapping: datasetMapping.nullish().describe("How the rows are to be read; without it by detection. OpenAI has no such field."),
});
export const completeUploadBody = z.strictObject({
  part_ids: z.array(z.string()).min(1).max(2000).describe("Every part of the file, in its order."),
  md5: z
    .string()
    .regex(/^[0-9a-fA-F]{32}$/, "32 hex digits")
    .nullish()
    .describe("Of the whole file: it is only taken if it has this checksum."),
});
export const uploadObject = z.object({
  id: z.string().regex(/^upload_/),
  object: z.literal("upload"),
  bytes: z.int(),
  created_at: unix,
  expires_at: unix,
  filename: z.string(),
  purpose: z.string(),
  status: z.enum(["pending", "completed", "cancelled", "expired"]),
  file: fileObject.nullable(),
});
export type UploadObject = z.infer<typeof uploadObject>;
export const uploadPartObject = z.object({
  id: z.string().regex(/^part_/),
  object: z.literal("upload.part"),
  created_at: unix,
  upload_id: z.string(),
});

export const listOf = <T extends z.ZodType>(item: T) =>
  z.object({
    object: z.literal("list"),
    data: z.array(item),
    has_more: z.boolean(),
    first_id: z.string().nullable().optional(),
    last_id: z.string().nullable().optional(),
  });

const hyperparameters = z.strictObject({
  n_epochs: autoOr(z.number().positive()).optional(),
  batch_size: autoOr(z.int().positive()).optional(),
  learning_rate_multiplier: autoOr(z.number().positive()).optional(),
});

const usedHyperparameters = z.object({ n_epochs: z.number(), batch_size: z.int(), learning_rate_multiplier: z.number() });

/** A method's own settings stand in its `hyperparameters` beside OpenAI's, as OpenAI's own `beta` does; "auto" is the default. */
const ownSettings = (type: keyof typeof shapesWithSettings): Record<string, z.ZodDefault> => {
  const { type: _apart, ...settings } = shapesWithSettings[type].shape;
  return settings;
};
const askedOf = (type: keyof typeof shapesWithSettings) => {
  const own = Object.entries(ownSettings(type)).map(([field, schema]) => [field, autoOr(schema.unwrap() as z.ZodType).optional()] as const);
  return z.strictObject({ hyperparameters: hyperparameters.extend(Object.fromEntries(own)).nullish() }).nullish();
};
const answeredOf = (type: keyof typeof shapesWithSettings) => z.object({ hyperparameters: usedHyperparameters.extend(ownSettings(type)) });

/** How each method is written in OpenAI's field `method`: in the answer, and in a request that gives this field. */
const jobMethods = {
  supervised: {
    asked: z.object({
      type: z.literal("supervised"),
      supervised: z.object({ hyperparameters: hyperparameters.nullish() }).nullish(),
    }),
    answered: z.object({ type: z.literal("supervised"), supervised: z.object({ hyperparameters: usedHyperparameters }) }),
  },
  dpo: {
    asked: z.strictObject({ type: z.literal("dpo"), dpo: askedOf("dpo") }),
    answered: z.object({ type: z.literal("dpo"), dpo: answeredOf("dpo") }),
  },
  orpo: {
    asked: z.strictObject({ type: z.literal("orpo"), orpo: askedOf("orpo") }),
    answered: z.object({ type: z.literal("orpo"), orpo: answeredOf("orpo") }),
  },
  simpo: {
    asked: z.strictObject({ type: z.literal("simpo"), simpo: askedOf("simpo") }),
    answered: z.object({ type: z.literal("simpo"), simpo: answeredOf("simpo") }),
  },
  kto: {
    asked: z.strictObject({ type: z.literal("kto"), kto: askedOf("kto") }),
    answered: z.object({ type: z.literal("kto"), kto: answeredOf("kto") }),
  },
  judge: {
    asked: z.strictObject({ type: z.literal("judge"), judge: askedOf("judge") }),
    answered: z.object({ type: z.literal("judge"), judge: answeredOf("judge") }),
  },
  import: {
    asked: "is no job: send the adapter to POST /v1/loraline/adapters (`loraline adapters add`)",
    answered: z.object({ type: z.literal("import"), import: adapterImport.pick({ source: true }) }),
  },
} satisfies Record<MethodType, { asked: z.ZodObject | string; answered: z.ZodObject }>;

type AtLeastOne<T> = [T, ...T[]];
const asked = Object.values(jobMethods).flatMap(({ asked: schema }) => (typeof schema === "string" ? [] : [schema]));
const answered = Object.values(jobMethods).map(({ answered: schema }) => schema);

function unknownJobMethod(input: unknown): string {
  const type = String((input as { type?: unknown } | null)?.type);
  const elsewhere = Object.entries(jobMethods).find(([name]) => name === type)?.[1].asked;
  if (typeof elsewhere === "string") return `"${type}" ${elsewhere}`;
  const offered = asked.map(({ shape }) => `"${shape.type.value}"`);
  return `"${type}" is not offered; use one of ${offered.join(", ")}`;
}

/** Fields of the run spec for which OpenAI's job has a field. */
export const openAiFields = {
  base: "model",
  dataset: "training_file",
  validation: "validation_file",
  method: "method",
  metadata: "metadata",
} as const satisfies Partial<Record<keyof typeof runSpecFields.shape, string>>;

/** Fields of the run spec that are under `loraline` in a job's body: all for which OpenAI's job has no field. */
export const jobExtension = runSpecFields
  .omit(maskOf(...(Object.keys(openAiFields) as (keyof typeof openAiFields)[]), "import"))
  .extend({ adapter: runSpecFields.shape.adapter.optional() })
  .describe("Loraline's own settings: the sections of the run spec.");

/**
 * Body of `POST /v1/fine_tuning/jobs`: OpenAI's fields, and `loraline` with the run spec's sections. Unknown fields are refused, as
 * OpenAI does, because a setting that is misspelt or in the wrong place must not be ignored.
 */
export const createJobBody = z.strictObject({
  model: z.string(),
  training_file: z.string(),
  validation_file: z.string().nullish(),
  suffix: z
    .string()
    .min(1)
    .max(64)
    .nullish()
    .describe("Name of the adapter, made a slug. Without it: the file's name and the end of its id."),
  seed: z.int().nonnegative().nullish(),
  hyperparameters: hyperparameters.nullish().describe("Deprecated by OpenAI in favour of `method`."),
  method: z
    .discriminatedUnion("type", asked as AtLeastOne<(typeof asked)[number]>, {
      error: ({ code, input }) => (code === "invalid_union" ? unknownJobMethod(input) : undefined),
    })
    .nullish(),
  integrations: z.array(z.unknown()).max(0, "integrations are not supported: remove them").nullish(),
  metadata: z.record(z.string().max(64), z.string().max(512)).nullish(),
  loraline: jobExtension.nullish(),
});
export type CreateJobBodyInput = z.input<typeof createJobBody>;

export const jobStatuses = ["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"] as const;

export const jobObject = z.object({
  id: z.string().regex(/^ftjob-/),
  object: z.literal("fine_tuning.job"),
  created_at: unix,
  finished_at: unix.nullable(),
  estimated_finish: unix.nullable(),
  model: z.string(),
  fine_tuned_model: z.string().nullable().describe("`ft:<base>:<tenant>:<adapter>:<version>`"),
  organization_id: z.string(),
  result_files: z.array(z.string()),
  seed: z.int(),
  status: z.enum(jobStatuses),
  trained_tokens: z.int().nullable(),
  training_file: z.string(),
  validation_file: z.string().nullable(),
  hyperparameters: usedHyperparameters,
  method: z.discriminatedUnion("type", answered as AtLeastOne<(typeof answered)[number]>),
  integrations: z.array(z.unknown()),
  metadata: z.record(z.string(), z.string()).nullable(),
  error: z.object({ code: z.string(), message: z.string(), param: z.string().nullable() }).nullable(),
  loraline: z
    .object({
      run: runState,
      notices: z.array(notice).optional().describe("Fields that were given and change nothing here, or were taken as another one."),
    })
    .optional(),
});
export type JobObject = z.infer<typeof jobObject>;

export const jobEventObject = z.object({
  id: z.string().regex(/^ftevent-/),
  object: z.literal("fine_tuning.job.event"),
  created_at: unix,
  level: z.enum(["info", "warn", "error"]),
  message: z.string(),
  type: z.enum(["message", "metrics"]),
  data: z.record(z.string(), z.unknown()),
});
export type JobEventObject = z.infer<typeof jobEventObject>;

export const jobCheckpointObject = z.object({
  id: z.string().regex(/^ftckpt-/),
  object: z.literal("fine_tuning.job.checkpoint"),
  created_at: unix,
  fine_tuned_model_checkpoint: z.string(),
  fine_tuning_job_id: z.string(),
  step_number: z.int(),
  metrics: z.object({
    step: z.number().optional(),
    train_loss: z.number().optional(),
    valid_loss: z.number().optional(),
  }),
});
export type JobCheckpointObject = z.infer<typeof jobCheckpointObject>;

const modality = z.enum(["text", "image"]);
export type Modality = z.infer<typeof modality>;

export const modelObject = z.object({
  id: z.string(),
  object: z.literal("model"),
  created: unix,
  owned_by: z.string(),
  loraline: z
    .object({
      base: z.string(),
      adapter: z.string().nullable(),
      version: z.int().nullable(),
      digest: z.string().nullable(),
      provenReplicas: z.int(),
      readyReplicas: z.int(),
      modalities: z.array(modality).optional().describe("What a request may have. `image`: pictures, as data URLs in a conversation."),
    })
    .optional(),
});
export type ModelObject = z.infer<typeof modelObject>;
export const modelList = z.object({ object: z.literal("list"), data: z.array(modelObject) });

export const modelDeleted = z.object({ id: z.string(), object: z.literal("model"), deleted: z.literal(true) });
