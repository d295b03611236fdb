/** Bodies and answers of the routes below `/v1/loraline/`, and of the server's own state. */
import { z } from "zod";
import { datasetMapping } from "../spec/dataset-mapping.ts";
import { hubSource, urlSource } from "../spec/import-source.ts";
import { baseOrigin, baseRef, engineRecord } from "../engine.ts";
import { adapterName, digest, isoTime, storageGroups } from "../names.ts";
import { adapterImport, trainingOnlyFields } from "../spec/method.ts";
import { canarySettings, keepPolicy, placement, runSpecFields } from "../spec/run-spec.ts";
import {
  adapterState,
  datasetState,
  deletionState,
  limitState,
  replicaReport,
  replicaState,
  runPhases,
  runState,
  usageRow,
} from "../state.ts";
import { modelPattern, scopes } from "../api-key.ts";
import { quotaBodyShape, quotaNames } from "../quotas.ts";
import { auditEntry } from "../audit.ts";
import { maskOf } from "./mask-of.ts";
import { stays } from "./openai.ts";

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

/** Body of `POST /v1/loraline/datasets/import`: `url`, or `hub` with fields that choose files of the repository. */
export const importBody = z.union(
  [urlSource.extend({ mapping: datasetMapping.optional() }), hubSource.extend({ mapping: datasetMapping.optional() })],
  { error: "give `url`, or `hub` (organisation/name) with `file`, `config`, `split` or `revision`; and `mapping` with either" },
);
const hasMore = z.boolean().default(false).describe("Whether there are older ones: ask again with `after` and the last id.");
export const datasetList = z.object({ data: z.array(datasetState), has_more: hasMore });
export const runList = z.object({ data: z.array(runState), has_more: hasMore });
const canarySide = z.object({
  requests: z.int().describe("Answers since the step began."),
  errors: z.int(),
  firstByteP95Ms: z.number().nullable().describe("Of the last minute."),
});
/** Which runs a list shows. */
export const runFilters = z.object({
  phase: z.enum(runPhases).optional().describe("Only runs in this phase."),
  adapter: z.string().optional().describe("Only runs for this adapter."),
  base: z.string().optional().describe("Only runs on this base."),
  dataset: z.string().optional().describe("Only runs on this dataset: its id, or the file's."),
});
/** A run's curves. */
export const runMetrics = z.object({
  run_id: z.string(),
  data: z
    .array(
      z.object({
        step: z.int(),
        train_loss: z.number().nullable().describe("Mean since the point before."),
        valid_loss: z.number().nullable().describe("On the held-out rows, per supervised token."),
        valid_mean_token_accuracy: z.number().nullable(),
        learning_rate: z.number().nullish().describe("This and what follows: with `details=true`, for the seven days that steps are kept."),
        grad_norm: z.number().nullish().describe("Before clipping."),
        tokens_per_second: z.number().nullish(),
      }),
    )
    .describe("By step; a step has only what was measured at it."),
});
export const runMetricsQuery = z.object({
  details: z.enum(["true", "false"]).optional().describe("`true`: also learning rate, gradient norm and speed of each step."),
});
export type RunMetrics = z.infer<typeof runMetrics>;
export const adapterView = z.object({
  adapter: adapterState,
  replicas: z.array(replicaState),
  canary: z
    .object({ version: canarySide, from: canarySide })
    .nullish()
    .describe("What all gateways have counted of the canary under way, and of the promoted version."),
});
/** The files of a version, as other programs load it: PEFT's layout, and a model card. */
export const versionFiles = z.object({
  adapter: z.string(),
  version: z.int(),
  digest,
  base: baseRef,
  origin: baseOrigin.nullable(),
  data: z.array(
    z.object({
      name: z.string(),
      bytes: z.int(),
      sha256: z.string().nullable().describe("null: the file is made when it is asked for, of what is known then."),
    }),
  ),
});
export const adapterList = z.object({ data: z.array(adapterView) });
export const traceView = z.object({ traceId: z.string(), spans: z.array(spanView) });

/** Settings of an adapter that was trained elsewhere; the form field `settings` of an upload. */
export const addAdapterSettings = runSpecFields.omit(maskOf(...trainingOnlyFields, "adapter", "method", "import")).extend({
  name: adapterName,
  source: adapterImport.shape.source.optional(),
  probes: adapterImport.shape.probes,
  system: adapterImport.shape.system,
  any_base: adapterImport.shape.any_base,
});

/**
 * `POST /v1/loraline/adapters`: serves a LoRA that was trained elsewhere. The body is multipart/form-data with the field `settings` and the
 * two files, or JSON that says where the files are. The answer is the run that imports the adapter.
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

/** An engine, as it is shown to a tenant that may use it: other tenants' adapters appear only in counts. */
export const engineView = z.object({
  engine: z.string(),
  base: z.string(),
  derivedFrom: z.string().nullish().describe("The unquantised base that its base was made of, whose adapters it serves, too."),
  maxLoraRank: z.int(),
  maxLoras: z.int(),
  maxCpuLoras: z.int(),
  maxModelLen: z.int(),
  toolCallParser: engineRecord.shape.toolCallParser,
  pictures: engineRecord.shape.pictures,
  wake: engineRecord.shape.wake,
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
  omittedBytes: z
    .int()
    .optional()
    .describe(
      "The message has so many bytes, and `data` is null: in a list when there is no room for more, otherwise because it is too large for a copy.",
    ),
});
export type DeadLetterView = z.infer<typeof deadLetterView>;
export const deadLetterList = z.object({ data: z.array(deadLetterView) });

export const createKeyBody = z.strictObject({
  name: z
    .string()
    .regex(/^[\w.@-][\w.@ -]{0,62}$/, "use 1 to 63 letters, digits, spaces, dots, dashes, underscores or @")
    .describe("Shown wherever the key did something."),
  scopes: z.array(z.enum(scopes)).min(1).optional().describe("Absent: all of them."),
  models: z
    .array(modelPattern)
    .min(1)
    .max(50)
    .optional()
    .describe(
      "The only models that the key may name: `pirate` (the adapter: its alias, and commands on it), `pirate@2`, `pirate@*`, `base:NAME`; `*` stands for any characters. Absent: all. Such a key cannot have the scope `admin`.",
    ),
  expires_at: isoTime
    .optional()
    .describe("Absent: never, or the latest time that the installation, the maker's own key, or a maker with an OIDC token allows."),
});
export const keyView = z.object({
  id: z.string().describe("Names the key in `keys revoke`; says nothing about the key itself."),
  name: z.string(),
  scopes: z.array(z.enum(scopes)),
  models: z.array(z.string()).nullable().describe("The only models that the key may name; null: all."),
  createdAt: isoTime,
  createdBy: z.string().nullable(),
  expiresAt: isoTime.nullable(),
});
export type KeyView = z.infer<typeof keyView>;
export const keyList = z.object({ data: z.array(keyView) });
export const createdKey = keyView.extend({ key: z.string().describe("Shown this once; only its hash is kept.") });

export const auditList = z.object({
  data: z.array(auditEntry.extend({ seq: z.int(), time: isoTime.describe("NATS' own time, when the entry was stored.") })),
  next: z
    .int()
    .nullable()
    .describe("`before` of the next page, which may have entries also when this one has few; null: there are no more."),
});

export const keyDeleted = z.object({ id: z.string(), deleted: z.literal(true) });

const limit = z.int().min(1).nullable().optional();
/** Of one adapter. */
export const limitBody = z.strictObject({ requests_per_minute: limit, tokens_per_minute: limit, concurrency: limit });
/** Of the whole tenant. */
export const tenantLimitBody = limitBody.extend(quotaBodyShape);
export const limitView = limitState.extend({ adapter: z.string().nullable().describe("null: of the whole tenant.") });
export const quotaView = z.object({
  quota: z.enum(quotaNames),
  limit: z.int().nullable().describe("What applies; null: no limit."),
  granted: z.int().nullable().describe("What the operator grants. The tenant's admins may set less."),
  used: z.int().nullable().describe("null: not counted here."),
});
export type QuotaView = z.infer<typeof quotaView>;
export const limitList = z.object({ data: z.array(limitView), quotas: z.array(quotaView).describe("Of the whole tenant.") });

export const thingDeleted = z.object({
  id: z.string(),
  deleted: z.literal(true),
  stays: z.array(stays).describe("What is kept although it is gone, and why."),
});
export const storageView = z.object({
  tenant: z.string(),
  bytes: z.int().describe("In the object store, all together."),
  quota: z.int().nullable().describe("Most that the tenant may have; null: no limit."),
  groups: z.array(z.object({ group: z.enum(storageGroups), bytes: z.int() })),
});
export const deletionList = z.object({ data: z.array(deletionState) });

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
