/**
 * The custom resources and their CustomResourceDefinitions. Pure. `FineTune` and `Adapter` are another way to give the commands that HTTP and
 * NATS take, so their specs are those of the commands; `Base` and `Engine` are of those who run the line. The state that NATS has is copied into statuses.
 *
 * Kubernetes supports only a part of JSON Schema (its documentation: "structural schema"), so the schemas are converted. What it does not
 * support becomes a CEL rule where that is possible, and the operator checks it in any case.
 */
import { z } from "zod";
import { baseResourceSpec, baseResourceStatus } from "./base-resource.ts";
import { conditions, time } from "./conditions.ts";
import { engineResourceSpec, engineResourceStatus } from "./engine-resource.ts";
import { datasetMapping } from "../spec/dataset-mapping.ts";
import { importSource } from "../spec/import-source.ts";
import { problem, traceparent, ulid } from "../names.ts";
import type { JudgedField, JudgedFields } from "../spec/judged-fields.ts";
import { judgedLoraFields } from "../spec/lora-fields.ts";
import { method } from "../spec/method.ts";
import { canarySettings, defaultKeep, keepPolicy, placement, runSpecFields } from "../spec/run-spec.ts";
import { judgedTrainingFields } from "../spec/training-fields.ts";

export const crdGroup = "loraline.dev";
export const crdVersion = "v1alpha1";
/** Annotation of a FineTune: the W3C traceparent of the trace that its run continues. */
export const traceparentAnnotation = `${crdGroup}/traceparent`;

const mapping = datasetMapping.optional().describe("How its rows are read; absent: each row's format is detected.");

/** Where a FineTune's records come from. */
const datasetOfResource = z
  .strictObject({
    id: ulid.optional().describe("A dataset that is there already."),
    source: importSource.optional().describe("Fetched by the server: a URL, or a dataset of the hub."),
    configMap: z
      .strictObject({
        name: z
          .string()
          .max(253)
          .regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/)
          .describe("In the resource's namespace."),
        key: z
          .string()
          .max(253)
          .regex(/^[-._a-zA-Z0-9]+$/)
          .describe("Its ending says how the file is packed, as a file's name does: `data.jsonl`, `data.csv.gz`."),
      })
      .optional()
      .describe("Small data out of a ConfigMap (`data` or `binaryData`). It is read once, when the run is asked for."),
    mapping,
  })
  .refine(({ id, source, configMap }) => [id, source, configMap].filter((one) => one !== undefined).length === 1, {
    error: "give exactly one of id, source and configMap",
  })
  .refine(({ id, mapping: given }) => id === undefined || given === undefined, {
    error: "a dataset that is there already has been read; a mapping goes with source or configMap",
    path: ["mapping"],
  });
export type DatasetOfResource = z.infer<typeof datasetOfResource>;

/** Every field of `FineTune.spec`. The content of `lora`, `training` and so on is checked as in a run spec. */
export const fineTuneSpec = runSpecFields.omit({ dataset: true, validation: true }).extend({
  dataset: datasetOfResource.optional().describe("Dataset to train on."),
  validation: datasetOfResource.optional().describe("Dataset to evaluate on. Without it `holdout` rows are held out."),
});

const heldOutLoss = z
  .object({ base: z.string(), adapter: z.string() })
  .describe("Loss (natural logarithm, per token) on the rows held out.");

const fineTunePhases = [
  "Pending",
  "Requested",
  "Tokenized",
  "Queued",
  "Running",
  "Trained",
  "Served",
  "Rejected",
  "Failed",
  "Cancelled",
] as const;
export type FineTunePhase = (typeof fineTunePhases)[number];

const fineTuneStatus = z.object({
  observedGeneration: z.int().optional(),
  phase: z.enum(fineTunePhases).optional().describe("The run's phase. Pending: not asked for yet; the condition Accepted says why."),
  message: z.string().optional().describe("What it waits for, or why it ended."),
  runId: ulid.optional().describe("The run, as the other APIs name it."),
  datasetId: ulid.optional(),
  attempt: z.int().optional(),
  step: z.string().optional().describe("Steps done, of all."),
  loss: z.string().optional().describe("Of the last step: natural logarithm, per token."),
  eta: z.string().optional().describe("Until the last step, or the end of an evaluation, as the trainer guesses."),
  heldOutLoss: heldOutLoss.optional(),
  version: z.int().optional().describe("Version of the adapter that came of it."),
  digest: z.string().optional(),
  model: z.string().optional().describe("What to ask the gateway for: the pinned version."),
  promoted: z.boolean().optional().describe("Whether the alias moved to it when it was served."),
  converged: z.string().optional().describe("Replicas that have the version proven, of those that should; as it was when it was served."),
  error: problem.optional(),
  traceId: z.string().optional(),
  startedAt: time.optional(),
  finishedAt: time.optional(),
  conditions: conditions
    .optional()
    .describe(
      "Accepted, Tokenized, Trained, Served: True when done, False when it will never be (Accepted: not, or not yet), Unknown while it is under way. Finished: True when it has ended in any way; its reason says how.",
    ),
});
export type FineTuneStatus = z.infer<typeof fineTuneStatus>;

const adapterResourceSpec = z.strictObject({
  version: z
    .int()
    .min(1)
    .optional()
    .describe(
      "Absent: whatever version is promoted, through whichever API. Set: this version is to be promoted (or rolled back to), asked for once, as soon as some replica has it proven. The last word counts, whichever API it comes through: when the alias is moved elsewhere afterwards, or a run promotes itself, it is not moved back, and the condition Promoted says so. To ask again, remove the field and set it again.",
    ),
  canary: canarySettings.optional().describe("The version gets a growing share of the alias's users first."),
  placement: placement
    .optional()
    .describe("Which replicas hold the adapter; asked for once, as `version` is. Absent: as it is (at first: all replicas)."),
  keep: keepPolicy
    .optional()
    .meta({ description: `${keepPolicy.description} Asked for once, as \`version\` is. Absent: as it is (at first: ${defaultKeep}).` }),
});
export type AdapterResourceSpec = z.infer<typeof adapterResourceSpec>;

/** The commands that the operator has already given for this resource, so that each edit causes a command only once. */
const asked = z.object({
  version: z.int().optional(),
  placement: z.string().optional().describe("JSON."),
  versionSeq: z.int().optional().describe("Sequence of the command in ADAPTERS; absent: nothing had to be asked."),
  placementSeq: z.int().optional(),
  keep: z.string().optional(),
  keepSeq: z.int().optional(),
});

const adapterStatus = z.object({
  observedGeneration: z.int().optional(),
  base: z.string().optional(),
  engine: z.string().optional(),
  model: z.string().optional().describe("What to ask the gateway for: the alias."),
  promoted: z.int().optional().describe("The version that the alias points to."),
  canary: z.string().optional().describe("Version and its share of the users, while a canary is under way."),
  converged: z.string().optional().describe("Replicas that have the promoted (or else the newest) version proven, of those that should."),
  versionCount: z.int().optional(),
  versions: z
    .array(
      z.object({
        version: z.int(),
        digest: z.string(),
        status: z.string().describe("desired, refused, retired or deleted."),
        proven: z.string().optional().describe("Replicas that have it proven, of those that should."),
        runId: ulid,
        heldOutLoss: heldOutLoss.optional(),
        reason: z.string().optional(),
        message: z.string().optional(),
      }),
    )
    .meta({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["version"] })
    .optional()
    .describe("Newest first, at most 20."),
  asked: asked.optional().describe("What of the spec was asked for already."),
  conditions: conditions
    .optional()
    .describe(
      "Ready: the promoted version answers on some replica. Converged: every version that should be held is proven on every replica that should hold it. Promoted, Placed and Kept: whether what the spec asks for is so, and if not, why.",
    ),
});
export type AdapterStatus = z.infer<typeof adapterStatus>;

type Json = Record<string, unknown>;
interface Rule {
  rule: string;
  message: string;
  fieldPath?: string;
}

const exactlyOne = (...fields: string[]): string =>
  `[${fields.map((field) => `has(self.${field})`).join(", ")}].filter(given, given).size() == 1`;
const oneDataset: Rule[] = [
  { rule: exactlyOne("id", "source", "configMap"), message: "give exactly one of id, source and configMap" },
  {
    rule: "!has(self.mapping) || !has(self.id)",
    message: "a dataset that is there already has been read; a mapping goes with source or configMap",
    fieldPath: ".mapping",
  },
];
const oneSource: Rule[] = [
  { rule: exactlyOne("url", "hub"), message: "give `url`, or `hub` (organisation/name) with file, config, split or revision" },
  {
    rule: "has(self.hub) || !(has(self.file) || has(self.config) || has(self.split) || has(self.revision))",
    message: "file, config, split and revision go with `hub` only",
  },
];
const ascending: Rule[] = [
  {
    rule: "self.isSorted() && self.all(step, self.exists_one(other, other == step))",
    message: "each step must be above the one before it",
  },
];
const keepRules: Rule[] = [
  {
    rule: "type(self) == int ? self >= 1 && self <= 1000 : self == 'all'",
    message: "must be a whole number from 1 to 1000, or all",
  },
];
const placementRules: Rule[] = [
  {
    rule: "(self.mode == 'spread') == has(self.replicas)",
    message: "replicas goes with mode: spread, which needs it",
    fieldPath: ".replicas",
  },
  { rule: "(self.mode == 'pinned') == has(self.pins)", message: "pins goes with mode: pinned, which needs it", fieldPath: ".pins" },
];

/** CEL: whether a FineTune only imports an adapter, so that nothing is trained. */
const isImport = "has(self.import) || (has(self.method) && self.method.type == 'import')";
const methodRules: Rule[] = method.options.flatMap(({ shape: { type, ...shape } }) =>
  Object.entries(shape)
    .filter(([, schema]) => !schema.safeParse(undefined).success)
    .map(([field]) => ({
      rule: `self.type != '${type.value}' || has(self.${field})`,
      message: `method ${type.value} needs ${field}`,
      fieldPath: `.${field}`,
    })),
);

/** Types of PEFT's refused fields, for those where Kubernetes can tell a value without effect from one with an effect. */
const refusedTypes: Readonly<Record<string, Json>> = {
  ...Object.fromEntries(["use_dora", "lora_bias", "use_qalora"].map((field) => [field, { type: "boolean" }])),
  bias: { type: "string", maxLength: 100 },
  ...Object.fromEntries(
    Object.entries({
      modules_to_save: { type: "string" },
      target_parameters: { type: "string" },
      layer_replication: { type: "array", items: { type: "integer" } },
      alora_invocation_tokens: { type: "integer" },
      trainable_token_indices: { type: "integer" },
    }).map(([field, items]) => [field, { type: "array", items }]),
  ),
};
const neutral: Readonly<Record<string, (field: string) => string>> = {
  boolean: (field) => `!self.${field}`,
  string: (field) => `self.${field} == 'none'`,
  array: (field) => `size(self.${field}) == 0`,
};

/** The description of a field that the run spec does not have. Kubernetes must keep such a field until the operator has checked its value. */
const descriptionOf = (field: JudgedField): string =>
  ({
    neutral: () => "Changes nothing here.",
    moved: ({ to }: { to: string }) => `Is ${to} here.`,
    refused: ({ why }: { why: string }) => `Refused: ${why}.`,
  })[field.as](field as { to: string; why: string });

const judgedProperties = (fields: JudgedFields): Json =>
  Object.fromEntries(
    Object.entries(fields).map(([name, field]) => [
      name,
      { description: descriptionOf(field), nullable: true, "x-kubernetes-preserve-unknown-fields": true },
    ]),
  );

/** Rules by which the API server itself refuses LoraConfig's refused fields, where it can check their values. */
function refusedLora(): { properties: Json; rules: Rule[] } {
  const properties: Json = {};
  const rules: Rule[] = [];
  for (const [field, judged] of Object.entries(judgedLoraFields)) {
    if (judged.as !== "refused" || field === "task_type" || field === "peft_type") continue;
    const typed = refusedTypes[field];
    // CEL cannot check whether an object is empty, so the schema does, and keeps unknown keys so that they are not pruned before.
    const object = { type: "object", maxProperties: 0, "x-kubernetes-preserve-unknown-fields": true };
    properties[field] = { description: descriptionOf(judged), nullable: true, ...(typed ?? object) };
    if (typed === undefined) continue;
    rules.push({
      rule: `!has(self.${field}) || ${(neutral[typed["type"] as string] as (field: string) => string)(field)}`,
      message: `${field} is refused: ${judged.why}. ${judged.remedy}.`,
      fieldPath: `.${field}`,
    });
  }
  return { properties, rules };
}

/** Converts JSON Schema to the part that Kubernetes supports. */
function structural(node: Json): Json {
  const { default: byDefault, anyOf, oneOf, additionalProperties, properties, items, maximum, minimum, ...rest } = node;
  // Kubernetes does not support these two keywords; judged fields are listed one by one instead.
  const { deprecated: _told, patternProperties: _judged, ...kept } = rest;
  const variants = (anyOf ?? oneOf) as Json[] | undefined;
  const description = describe(kept["description"] as string | undefined, byDefault);
  const common = { ...kept, ...(description === undefined ? {} : { description }) };
  if (variants !== undefined) {
    const one = variants.filter(({ type }) => type !== "null");
    const objects = one.every(({ type }) => type === "object");
    if (one.length === 1 && one[0] !== undefined) return { ...structural(one[0]), ...common };
    if (one.every(({ type }) => type === "integer" || type === "string")) {
      // It holds for texts only.
      const [pattern] = one.flatMap((variant) => (typeof variant["pattern"] === "string" ? [variant["pattern"]] : []));
      return { ...common, ...(pattern === undefined ? {} : { pattern }), "x-kubernetes-int-or-string": true };
    }
    return objects ? { ...common, ...merged(one) } : { ...common, "x-kubernetes-preserve-unknown-fields": true };
  }
  const schema: Json = { ...common };
  // These are the limits of JavaScript's whole numbers, not rules of the run spec.
  if (minimum !== undefined && minimum !== Number.MIN_SAFE_INTEGER) schema["minimum"] = minimum;
  if (maximum !== undefined && maximum !== Number.MAX_SAFE_INTEGER) schema["maximum"] = maximum;
  if (schema["type"] === "integer") schema["format"] = "int64";
  // The format says the same as zod's pattern, which has 300 characters.
  if (schema["format"] === "date-time") delete schema["pattern"];
  if (properties !== undefined)
    schema["properties"] = Object.fromEntries(
      Object.entries(properties as Record<string, Json>).map(([name, value]) => [name, structural(value)]),
    );
  if (items !== undefined) schema["items"] = structural(items as Json);
  if (typeof additionalProperties === "object" && additionalProperties !== null && Object.keys(additionalProperties).length > 0)
    schema["additionalProperties"] = structural(additionalProperties as Json);
  return schema;
}

/** Merges several shapes of an object into one; CEL rules say which fields go together. */
function merged(variants: readonly Json[]): Json {
  const properties: Record<string, Json> = {};
  for (const variant of variants) {
    for (const [name, value] of Object.entries(variant["properties"] as Record<string, Json>)) {
      const known = properties[name];
      const values = [...((known?.["enum"] as unknown[] | undefined) ?? []), ...((value["enum"] as unknown[] | undefined) ?? [])];
      const own = structural(value);
      const descriptions = new Set([known?.["description"], own["description"]].filter((one) => typeof one === "string"));
      properties[name] = {
        ...own,
        ...(values.length === 0 ? {} : { enum: [...new Set(values)] }),
        ...(descriptions.size === 0 ? {} : { description: [...descriptions].join(" — ") }),
      };
    }
  }
  const required = variants
    .map((variant) => (variant["required"] as string[] | undefined) ?? [])
    .reduce((common, names) => common.filter((name) => names.includes(name)));
  return { type: "object", properties, ...(required.length === 0 ? {} : { required }) };
}

/** Adds the default to the description instead of filling it in, so that a resource stays as its author wrote it. */
function describe(text: string | undefined, byDefault: unknown): string | undefined {
  if (byDefault === undefined || (typeof byDefault === "object" && Object.keys(byDefault as object).length === 0)) return text;
  return [text, `Default: ${typeof byDefault === "string" ? byDefault : JSON.stringify(byDefault)}.`]
    .filter((part) => part !== undefined)
    .join(" ");
}

function schemaOf(schema: z.ZodType): Json {
  const { $schema: _dropped, ...rest } = z.toJSONSchema(schema, { target: "openapi-3.0", io: "input", reused: "inline" }) as Json;
  return structural(rest);
}

function propertyOf(schema: Json, path: string): Json {
  let at = schema;
  for (const name of path === "" ? [] : path.split(".")) at = (at["properties"] as Record<string, Json>)[name] as Json;
  return at;
}

function withRules(schema: Json, rules: Readonly<Record<string, readonly Rule[]>>): Json {
  for (const [path, added] of Object.entries(rules)) propertyOf(schema, path)["x-kubernetes-validations"] = added;
  return schema;
}

function fineTuneSchema(): Json {
  const spec = schemaOf(fineTuneSpec);
  const refused = refusedLora();
  Object.assign(propertyOf(spec, "lora")["properties"] as Json, judgedProperties(judgedLoraFields), refused.properties);
  Object.assign(propertyOf(spec, "training")["properties"] as Json, judgedProperties(judgedTrainingFields));
  return withRules(spec, {
    "": [
      { rule: "self == oldSelf", message: "a FineTune is one run and cannot be changed; make a new one with another name" },
      { rule: "!has(self.method) || !has(self.import)", message: "says what `method` says already; remove it", fieldPath: ".import" },
      {
        rule: `has(self.dataset) != (${isImport})`,
        message: "an adapter is either trained on `dataset` or imported: give one of the two",
      },
      {
        rule: `!has(self.validation) || !(${isImport})`,
        message: "an imported adapter is not evaluated; remove it",
        fieldPath: ".validation",
      },
      {
        rule: "!has(self.canary) || (has(self.promote) && self.promote == 'canary')",
        message: "canary has settings, but promote is not canary. Set promote: canary, or remove canary.",
        fieldPath: ".canary",
      },
    ],
    dataset: oneDataset,
    "dataset.source": oneSource,
    validation: oneDataset,
    "validation.source": oneSource,
    lora: refused.rules,
    method: methodRules,
    "canary.steps": ascending,
    placement: placementRules,
    keep: keepRules,
  });
}

const adapterSchema = (): Json =>
  withRules(schemaOf(adapterResourceSpec), {
    "": [{ rule: "!has(self.canary) || has(self.version)", message: "a canary is of a version: set version", fieldPath: ".canary" }],
    "canary.steps": ascending,
    placement: placementRules,
    keep: keepRules,
  });

const engineSchema = (): Json =>
  withRules(schemaOf(engineResourceSpec), {
    "": [
      {
        rule: "self.base == oldSelf.base",
        message: "an Engine's base cannot be changed, for its adapters are of this base: make another Engine, and delete this one",
        fieldPath: ".base",
      },
      {
        rule: "!has(self.maxLoras) || !has(self.maxCpuLoras) || self.maxCpuLoras >= self.maxLoras",
        message: "vLLM keeps at least as many adapters in memory as it has slots: raise maxCpuLoras to maxLoras or more",
        fieldPath: ".maxCpuLoras",
      },
      {
        rule: "!has(self.tensorParallelSize) || !has(self.gpus) || self.tensorParallelSize == 1 || self.tensorParallelSize <= self.gpus",
        message: "each shard needs a GPU: tensorParallelSize may be at most gpus",
        fieldPath: ".tensorParallelSize",
      },
    ],
  });
const baseSchema = (): Json =>
  withRules(schemaOf(baseResourceSpec), {
    "": [
      {
        rule: "self == oldSelf",
        message: "a Base is one base for good, because adapters are of its bytes; make a new one with another name",
      },
      { rule: "has(self.hub) || !has(self.revision)", message: "revision goes with hub, which it is of", fieldPath: ".revision" },
    ],
  });
const baseNameRules: Rule[] = [
  { rule: "size(self.metadata.name) <= 63", message: "a Base's name has at most 63 characters: it is the folder's and a label of pods" },
];
/** Of the object itself, because rules of the spec do not see its name. */
const engineNameRules: Rule[] = [
  {
    rule: "self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$')",
    message: "an Engine's name has lower-case letters, digits and dashes, at most 40",
  },
];

interface Column {
  name: string;
  type: "string" | "integer" | "date" | "boolean";
  jsonPath: string;
  /** 1: shown with `-o wide` only. */
  priority?: number;
  description?: string;
}
const age: Column = { name: "Age", type: "date", jsonPath: ".metadata.creationTimestamp" };

function crd(of: {
  kind: string;
  plural: string;
  shortNames: string[];
  description: string;
  spec: Json;
  status: Json;
  required: string[];
  columns: Column[];
  /** About the whole object. */
  rules?: Rule[];
  /** Paths for `kubectl scale` and autoscalers. */
  scale?: { specReplicasPath: string; statusReplicasPath: string; labelSelectorPath: string };
}): Json {
  return {
    apiVersion: "apiextensions.k8s.io/v1",
    kind: "CustomResourceDefinition",
    metadata: { name: `${of.plural}.${crdGroup}`, labels: { "app.kubernetes.io/name": "loraline" } },
    spec: {
      group: crdGroup,
      scope: "Namespaced",
      names: {
        kind: of.kind,
        listKind: `${of.kind}List`,
        plural: of.plural,
        singular: of.kind.toLowerCase(),
        shortNames: of.shortNames,
        categories: ["all", "loraline"],
      },
      versions: [
        {
          name: crdVersion,
          served: true,
          storage: true,
          subresources: { status: {}, ...(of.scale === undefined ? {} : { scale: of.scale }) },
          additionalPrinterColumns: of.columns,
          schema: {
            openAPIV3Schema: {
              type: "object",
              description: of.description,
              required: of.required,
              properties: { spec: of.spec, status: of.status },
              ...(of.rules === undefined ? {} : { "x-kubernetes-validations": of.rules }),
            },
          },
        },
      ],
    },
  };
}

/** By file name. */
export const crds = (): Record<string, Json> => ({
  "finetunes.yaml": crd({
    kind: "FineTune",
    plural: "finetunes",
    shortNames: ["ft"],
    description:
      "One fine-tuning run, from its dataset to an adapter that is served. Deleting a FineTune whose run has not ended cancels the run; deleting one that has ended leaves the adapter served.",
    spec: fineTuneSchema(),
    status: schemaOf(fineTuneStatus),
    required: ["spec"],
    columns: [
      { name: "Adapter", type: "string", jsonPath: ".spec.adapter" },
      { name: "Phase", type: "string", jsonPath: ".status.phase" },
      { name: "Step", type: "string", jsonPath: ".status.step" },
      { name: "Loss", type: "string", jsonPath: ".status.loss" },
      { name: "ETA", type: "string", jsonPath: ".status.eta" },
      { name: "Version", type: "integer", jsonPath: ".status.version" },
      { name: "Converged", type: "string", jsonPath: ".status.converged" },
      age,
      { name: "Message", type: "string", jsonPath: ".status.message", priority: 1 },
      { name: "Run", type: "string", jsonPath: ".status.runId", priority: 1 },
    ],
  }),
  "adapters.yaml": crd({
    kind: "Adapter",
    plural: "adapters",
    shortNames: ["lora"],
    description:
      "An adapter and its versions. The operator makes one for each adapter of the namespace's tenant; its spec is for promoting, rolling back and placing. Deleting it deletes nothing of the adapter, and it is made again.",
    spec: adapterSchema(),
    status: schemaOf(adapterStatus),
    required: [],
    columns: [
      { name: "Base", type: "string", jsonPath: ".status.base" },
      { name: "Promoted", type: "integer", jsonPath: ".status.promoted" },
      { name: "Versions", type: "integer", jsonPath: ".status.versionCount" },
      { name: "Converged", type: "string", jsonPath: ".status.converged" },
      { name: "Canary", type: "string", jsonPath: ".status.canary" },
      age,
      { name: "Ready", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].reason", priority: 1 },
    ],
  }),
  "bases.yaml": crd({
    kind: "Base",
    plural: "bases",
    shortNames: ["bs"],
    description:
      "A base on the volume of the bases, in the folder of its name. The operator has its files fetched once, in the namespace of the release and nowhere else, and tells which bytes they are. An Engine serves it. Deleting it leaves the folder.",
    spec: baseSchema(),
    status: schemaOf(baseResourceStatus),
    required: ["spec"],
    rules: baseNameRules,
    columns: [
      { name: "Hub", type: "string", jsonPath: ".spec.hub" },
      { name: "Ready", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].status" },
      { name: "Reason", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].reason" },
      { name: "Digest", type: "string", jsonPath: ".status.digest" },
      age,
      { name: "Revision", type: "string", jsonPath: ".status.revision", priority: 1 },
      { name: "Message", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
    ],
  }),
  "engines.yaml": crd({
    kind: "Engine",
    plural: "engines",
    shortNames: ["eng"],
    description:
      "An engine: copies of one base in vLLM that serve its adapters. The operator makes its Deployment, in the namespace of the release and nowhere else; all that the spec leaves out is as the chart's engineDefaults say. Deleting it ends the copies; the adapters of its base stay, and are served again by another engine of that base.",
    spec: engineSchema(),
    status: schemaOf(engineResourceStatus),
    required: ["spec"],
    rules: engineNameRules,
    scale: { specReplicasPath: ".spec.replicas", statusReplicasPath: ".status.replicas", labelSelectorPath: ".status.selector" },
    columns: [
      { name: "Base", type: "string", jsonPath: ".spec.base" },
      { name: "Replicas", type: "integer", jsonPath: ".status.replicas" },
      { name: "Serving", type: "integer", jsonPath: ".status.readyReplicas" },
      { name: "Ready", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].status" },
      { name: "Reason", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].reason" },
      age,
      { name: "Message", type: "string", jsonPath: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
    ],
  }),
});

export const isTraceparent = (text: string | undefined): text is string => traceparent.safeParse(text).success;
