/**
 * HTTP shapes. Files, fine-tuning and inference follow OpenAI's wire format (SDK 6/7 read in their sources);
 * what OpenAI has no word for lives under the extension field `loraline` or below `/v1/loraline/`.
 */
import { z } from "zod";
import { datasetMapping } from "./spec/dataset-mapping.ts";
import { hubSource, urlSource } from "./spec/import-source.ts";
import { adapterName, digest, isoTime, problem } from "./names.ts";
import { notice } from "./spec/judged-fields.ts";
import { adapterImport, type MethodType, trainingOnlyFields } from "./spec/method.ts";
import { canarySettings, keepPolicy, placement, runSpecFields } from "./spec/run-spec.ts";
import { adapterState, datasetState, limitState, replicaReport, replicaState, runState, usageRow } from "./state.ts";
import { scopes } from "./api-key.ts";

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

export const fileDeleted = z.object({ id: z.string(), object: z.literal("file"), deleted: z.literal(true) });

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

/** Each method as OpenAI's field `method` spells it: in the request, unless it is asked for in another way, and in the answer. */
const jobMethods = {
  supervised: {
    asked: z.object({
      type: z.literal("supervised"),
      supervised: z.object({ hyperparameters: hyperparameters.nullish() }).nullish(),
    }),
    answered: z.object({ type: z.literal("supervised"), supervised: z.object({ hyperparameters: usedHyperparameters }) }),
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
  return `"${type}" is not offered; use ${offered.join(" or ")}`;
}

/** Fields of the run spec that OpenAI has a name for. */
export const openAiFields = {
  base: "model",
  dataset: "training_file",
  validation: "validation_file",
  method: "method",
  metadata: "metadata",
} as const satisfies Partial<Record<keyof typeof runSpecFields.shape, string>>;

/** For zod's `omit`. */
const these = <K extends string>(...fields: readonly K[]): Record<K, true> =>
  Object.fromEntries(fields.map((field) => [field, true])) as Record<K, true>;

/** Fields of the run spec that stand under `loraline` in a job's body: all that OpenAI has no name for. */
export const jobExtension = runSpecFields
  .omit(these(...(Object.keys(openAiFields) as (keyof typeof openAiFields)[]), "import"))
  .extend({ adapter: runSpecFields.shape.adapter.optional() })
  .describe("Loraline's own settings: the sections of the run spec.");

/**
 * Body of `POST /v1/fine_tuning/jobs`. Field by field OpenAI's; `loraline` takes the run spec's sections. Strict, as OpenAI's is:
 * a setting that is misspelt or in the wrong place must not be ignored.
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
    .describe("Name of the adapter, made a slug. Without it the name derives from the file's name."),
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
export type CreateJobBody = z.infer<typeof createJobBody>;
export type CreateJobBodyInput = z.input<typeof createJobBody>;

export const jobStatuses = ["validating_files", "queued", "running", "succeeded", "failed", "cancelled"] as const;

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
    })
    .optional(),
});
export type ModelObject = z.infer<typeof modelObject>;
export const modelList = z.object({ object: z.literal("list"), data: z.array(modelObject) });

export const modelDeleted = z.object({ id: z.string(), object: z.literal("model"), deleted: z.literal(true) });

/* below /v1/loraline/ */

/** One span of a trace, in milliseconds since the epoch. */
export const spanView = z.object({
  traceId: z.string(),
  spanId: z.string(),
  parentSpanId: z.string().nullable(),
  service: z.string(),
  name: z.string(),
  startMs: z.number(),
  durationMs: z.number(),
  status: z.enum(["ok", "error"]),
  attributes: z.record(z.string(), z.unknown()),
  links: z.array(z.object({ traceId: z.string(), spanId: z.string() })),
});
export type SpanView = z.infer<typeof spanView>;

/** Body of `POST /v1/loraline/datasets/import`: `url`, or `hub` with what narrows it down. */
export const importBody = z.union(
  [urlSource.extend({ mapping: datasetMapping.optional() }), hubSource.extend({ mapping: datasetMapping.optional() })],
  { error: "give `url`, or `hub` (organisation/name) with `file`, `config`, `split` or `revision`; and `mapping` with either" },
);
export const datasetList = z.object({ data: z.array(datasetState) });
export const runList = z.object({ data: z.array(runState) });
const canarySide = z.object({
  requests: z.int().describe("Answers since the step began."),
  errors: z.int(),
  firstByteP95Ms: z.number().nullable().describe("Of the last minute."),
});
export const adapterView = z.object({
  adapter: adapterState,
  replicas: z.array(replicaState),
  canary: z
    .object({ version: canarySide, from: canarySide })
    .nullish()
    .describe("What all gateways have counted of the canary under way, and of the promoted version."),
});
export const adapterList = z.object({ data: z.array(adapterView) });
export const traceView = z.object({ traceId: z.string(), spans: z.array(spanView) });

/** What is said about an adapter from elsewhere; the form field `settings` of an upload. */
export const addAdapterSettings = runSpecFields.omit(these(...trainingOnlyFields, "adapter", "method", "import")).extend({
  name: adapterName,
  source: adapterImport.shape.source.optional(),
  probes: adapterImport.shape.probes,
  any_base: adapterImport.shape.any_base,
});

/**
 * `POST /v1/loraline/adapters`: serve a LoRA that was trained elsewhere. As multipart/form-data with the field `settings` and the two
 * files, or as JSON that says where they are. Answers with the run that takes it in.
 */
export const addAdapterBody = addAdapterSettings.extend({
  from: z.union([
    z.strictObject({
      hub: z
        .string()
        .regex(/^(?:[\w-][\w.-]{0,95}\/)?[\w-][\w.-]{0,95}$/, 'name a model of the hub as "organisation/name"')
        .describe("A model of the hub."),
      revision: z.string().min(1).max(200).optional().describe("Branch, tag or commit; `main` when absent."),
      folder: z
        .string()
        .regex(/^[\w-][\w.-]*(?:\/[\w-][\w.-]*)*$/, "must be a path inside the repository")
        .max(500)
        .optional(),
    }),
    z.strictObject({ url: z.string().min(1).max(4096).describe("https address of the folder that holds the two files.") }),
    z.strictObject({ object: digest.describe("An adapter's manifest in the tenant's own store, as a version's `digest` names it.") }),
  ]),
});

export const promoteBody = z.strictObject({
  version: z.int().min(1),
  canary: canarySettings.optional().describe("Step by step, instead of at once; `{}`: with the defaults."),
});
export const placeBody = placement;
export const keepBody = z.strictObject({ keep: keepPolicy });
export const rollbackBody = z.strictObject({ version: z.int().min(1).optional() });

/** An engine as a tenant that may use it sees it: other tenants' adapters only as numbers. */
export const engineView = z.object({
  engine: z.string(),
  base: z.string(),
  maxLoraRank: z.int(),
  maxLoras: z.int(),
  maxCpuLoras: z.int(),
  maxModelLen: z.int(),
  replicas: z.array(replicaReport.pick({ replica: true, ready: true, incarnation: true, counts: true, problem: true })),
  versions: z.int().describe("Adapter versions that are wanted on it, of all tenants."),
  asked: z.object({
    adapters: z.int().describe("Adapter versions that were asked for, of all tenants."),
    windowMs: z.int().describe("How long was looked; less than five minutes after a start of the gateway."),
  }),
  advice: z.array(z.object({ level: z.enum(["warn", "info"]), code: z.string(), message: z.string() })).describe("Most pressing first."),
});
export type EngineView = z.infer<typeof engineView>;
export const engineList = z.object({ data: z.array(engineView) });

export const deadLetterView = z.object({
  seq: z.int().describe("Sequence in the DLQ stream; names the letter in `dlq show` and `dlq redrive`."),
  stream: z.string(),
  durable: z.string(),
  subject: z.string(),
  code: z.string(),
  message: z.string(),
  deliveries: z.int(),
  at: isoTime,
  data: z.unknown(),
  omittedBytes: z.int().optional().describe("The message had so many bytes, too many for a copy; `data` is null then."),
});
export type DeadLetterView = z.infer<typeof deadLetterView>;
export const deadLetterList = z.object({ data: z.array(deadLetterView) });

export const createKeyBody = z.strictObject({
  name: z
    .string()
    .regex(/^[\w.@-][\w.@ -]{0,62}$/, "use 1 to 63 letters, digits, spaces, dots, dashes, underscores or @")
    .describe("Shown wherever the key did something."),
  scopes: z.array(z.enum(scopes)).min(1).optional().describe("Absent: all of them."),
  expires_at: isoTime.optional().describe("Absent: never."),
});
export const keyView = z.object({
  id: z.string().describe("Names the key in `keys revoke`; says nothing about the key itself."),
  name: z.string(),
  scopes: z.array(z.enum(scopes)),
  createdAt: isoTime,
  createdBy: z.string().nullable(),
  expiresAt: isoTime.nullable(),
});
export type KeyView = z.infer<typeof keyView>;
export const keyList = z.object({ data: z.array(keyView) });
export const createdKey = keyView.extend({ key: z.string().describe("Shown this once; only its hash is kept.") });

export const keyDeleted = z.object({ id: z.string(), deleted: z.literal(true) });

const limit = z.int().min(1).nullable().optional();
export const limitBody = z.strictObject({ requests_per_minute: limit, tokens_per_minute: limit, concurrency: limit });
export const limitView = limitState.extend({ adapter: z.string().nullable().describe("null: of the whole tenant.") });
export const limitList = z.object({ data: z.array(limitView) });

export const limitDeleted = z.object({ adapter: z.string().nullable(), deleted: z.literal(true) });

export const usageView = z.object({
  from: z.iso.date(),
  to: z.iso.date(),
  data: z.array(usageRow.extend({ day: z.iso.date() })).describe("One row for each day and model, oldest first."),
});

/* outside of /v1: the server itself */

export const health = z.object({ status: z.literal("ok"), version: z.string() });
export const readiness = z.object({
  status: z.enum(["ready", "not ready"]),
  reason: z.string().optional().describe("What is missing, when it is not ready."),
});
