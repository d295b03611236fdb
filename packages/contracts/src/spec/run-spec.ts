/** The run spec: what a user asks for. One schema for HTTP, NATS, `run.yaml` and the `FineTune` resource. */
import { z } from "zod";
import { priorityRange } from "../quotas.ts";
import { adapterName, type Problem, ulid, versionName } from "../names.ts";
import { isObject, movesOf, type Notice, notice, noticesOf, reasonOf } from "./judged-fields.ts";
import { beginsWithTheBase, judgedLoraFields, loraSpec } from "./lora-fields.ts";
import { adapterImport, datasetRules, type Method, method, usualLearningRates } from "./method.ts";
import { quantization } from "./quantization.ts";
import { judgedTrainingFields, trainingSpec } from "./training-fields.ts";

export const templates = z.enum(["base", "seed"]);
export const olderTemplates = z
  .enum(["chatml", "seed"])
  .optional()
  .meta({ deprecated: true, description: "Older spelling of `template`; `chatml` means `base`." });
/** The template, given in the current or in the older spelling. */
export const templateOf = (of: {
  template?: z.infer<typeof templates> | undefined;
  profile?: z.infer<typeof olderTemplates>;
}): z.infer<typeof templates> => of.template ?? (of.profile === "seed" ? "seed" : "base");

export const tokenizeSpec = z
  .strictObject({
    template: templates.optional().meta({
      default: "base",
      description:
        "`base`: the base's own chat template, of whatever family; the end-of-turn token is trained. `seed`: the well-known process_func, bit for bit.",
    }),
    profile: olderTemplates,
    system: z.string().max(100_000).optional().describe("System prompt for records that have none; `seed` puts it on every record."),
    max_length: z.int().min(8).max(1_048_576).default(1024).describe("Tokens per sequence."),
    too_long: z
      .enum(["drop", "trim-prompt", "split"])
      .default("split")
      .describe(
        "What happens to a longer record. `split` makes several sequences of raw text, and reports and drops anything else, because a cut answer would teach to stop too early; `trim-prompt` removes the oldest turns first; `drop` drops raw text too. (`seed` always cuts on the right.)",
      ),
    packing: z
      .union([z.literal("auto"), z.boolean()])
      .default("auto")
      .describe(
        "`auto` packs when at least 64 optimizer steps per epoch remain afterwards (`seed` only when asked to); packing changes the effective batch.",
      ),
  })
  .describe("How records become tokens.")
  .transform(({ template, profile, ...settings }) => ({ template: templateOf({ template, profile }), ...settings }));

const percent = z.number().gt(0).lt(100);

/** How a new version takes over in steps. Times are in seconds; each step is judged by what was measured since it began. */
export const canarySettings = z
  .strictObject({
    steps: z
      .array(percent)
      .min(1)
      .max(20)
      .refine((steps) => steps.every((share, i) => i === 0 || share > (steps[i - 1] ?? 0)), "each step must be above the one before it")
      .default([5, 25, 50])
      .describe("Percent of the alias's users that get the new version, ascending. After the last step the alias moves."),
    interval_s: z.number().min(1).max(604_800).default(60).describe("Shortest time of a step."),
    min_requests: z.int().min(0).max(1_000_000).default(50).describe("Answers of the new version that a step takes at least."),
    max_error_rate: z
      .number()
      .min(0)
      .max(1)
      .default(0.02)
      .describe("Failed answers per answer, at most this much above the current version's; more rolls back."),
    max_latency_ratio: z
      .number()
      .min(1)
      .max(1000)
      .default(2)
      .describe("95th percentile of the time to the first byte, at most this many times the current version's; more rolls back."),
    max_loss_increase: z
      .number()
      .min(0)
      .optional()
      .describe(
        "Held-out loss, at most this much above the current version's on the same rows (natural logarithm, per token). A canary that cannot be judged so does not begin. Absent: not asked.",
      ),
  })
  .describe("Canary: the new version gets a growing share of the alias's users, and loses it again when it does worse.");
export type CanarySettings = z.infer<typeof canarySettings>;

export const placement = z
  .discriminatedUnion("mode", [
    z.strictObject({ mode: z.literal("all") }),
    z.strictObject({ mode: z.literal("spread"), replicas: z.int().min(1).max(10_000).describe("On so many replicas.") }),
    z.strictObject({
      mode: z.literal("pinned"),
      pins: z.array(z.string().min(1).max(253)).min(1).max(1000).describe("On these replicas and no others."),
    }),
  ])
  .describe("Which replicas hold an adapter. `all` means as many as have room, which is all of them until max_cpu_loras is reached.");
export type Placement = z.infer<typeof placement>;

/** How many versions of an adapter stay loaded if nobody has set `keep`. */
export const defaultKeep = 3;

export const keepPolicy = z
  .union([z.int().min(1).max(1000), z.literal("all")], { error: 'must be a whole number from 1 to 1000, or "all"' })
  .describe(
    "How many of the newest served versions stay loaded on replicas, besides the promoted one, the one before it, a canary, and those that were asked for by name lately. The others are retired: their bytes stay in the object store, and they are loaded again when somebody asks for them. `all`: none is retired.",
  );
export type KeepPolicy = z.infer<typeof keepPolicy>;

/** Fewer records than this teach a model hardly anything but themselves. */
export const defaultMinRecords = 10;

/**
 * Every field of a run spec, without the rules about several fields together. This is the only list of the fields: each API derives its
 * own from it, and leaves out those that it expresses in another way.
 */
export const runSpecFields = z
  .strictObject({
    base: z.string().min(1).max(200).describe("Name of the base, as `GET /v1/models` shows it."),
    adapter: adapterName,
    dataset: ulid.optional().describe("Dataset to train on."),
    method: method.optional().meta({ default: { type: "supervised" } }),
    import: adapterImport.optional().meta({ deprecated: true, description: "Older spelling of `method: {type: import, …}`." }),
    validation: ulid.optional().describe("Dataset to evaluate on. Without it `holdout` rows are held out."),
    init_from: versionName
      .optional()
      .describe(
        "Training begins with this version of one of your adapters (`pirate@3`; `pirate`: the one that its alias names then), whatever its rank was, up to `lora.r`. Absent: with an adapter that changes nothing yet.",
      ),
    holdout: z
      .number()
      .min(0)
      .max(0.5)
      .default(0.1)
      .describe("Share of the records held out for evaluation when there is no validation dataset."),
    validation_overlap: z
      .enum(["drop", "keep"])
      .optional()
      .describe(
        "What happens to training records that the validation dataset holds too: `drop` (default) leaves them out and reports them.",
      ),
    dedupe: z
      .enum(["none", "exact", "near"])
      .optional()
      .describe(
        "`none` is the default; `exact` keeps the first of records that say the same; `near` also leaves out those that say nearly what an earlier one says, and looks for overlap with the validation dataset in the same way. What is left out is reported.",
      ),
    min_records: z.int().min(1).default(defaultMinRecords).describe("Fewer usable records than this reject the run."),
    lora: loraSpec.prefault({}),
    training: trainingSpec.prefault({}),
    tokenize: tokenizeSpec.prefault({}),
    quantization: quantization.optional(),
    gate: z
      .enum(["better-than-base", "better-than-promoted", "none"])
      .default("better-than-base")
      .describe(
        "`better-than-base` refuses a version whose held-out loss is not below the base's; `better-than-promoted` also one that does worse on the same held-out rows than the version it would replace.",
      ),
    gate_accuracy: z
      .boolean()
      .optional()
      .describe("The gate also asks that the share of held-out tokens that are the likeliest one is no lower; against the same as `gate`."),
    promote: z
      .enum(["auto", "manual", "canary"])
      .default("auto")
      .describe(
        "When the version is proven on every replica: `auto` moves the alias, `canary` moves it step by step and back when the version does worse, `manual` leaves it.",
      ),
    canary: canarySettings.optional().describe("Settings of `promote: canary`."),
    placement: placement.optional().describe("Sets the adapter's placement; absent: as it is (at first: all replicas)."),
    keep: keepPolicy
      .optional()
      .meta({ description: `${keepPolicy.description} Absent: as the adapter is set (at first: ${defaultKeep}).` }),
    gpus: z
      .int()
      .min(0)
      .max(64)
      .optional()
      .describe("GPUs of an attempt, on Kubernetes; of each of its `nodes`. Absent: as the installation says."),
    nodes: z
      .int()
      .min(1)
      .max(64)
      .optional()
      .describe("Machines of an attempt, on a Kubernetes with JobSet: one training over the GPUs of all of them. Absent: one."),
    priority: z.int().min(priorityRange.min).max(priorityRange.max).optional().meta({
      default: 0,
      description:
        "Runs with a higher one train first. A tenant may ask for its quota `highestPriority` at most, and always for less. Among equals the tenant that has the fewest GPUs in use is next.",
    }),
    profile: z
      .string()
      .regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/, "lower-case letters, digits and dashes, at most 63")
      .optional()
      .describe(
        "Kind of pod of an attempt, on Kubernetes: one of those that the installation offers, by name (nodes, CPU and memory, queue, priority class). Absent: as the base's, or everybody's.",
      ),
    max_attempts: z
      .int()
      .min(1)
      .max(20)
      .default(5)
      .describe("Attempts that may end by a fault of their own before the run fails. Preemption and a killed machine do not count."),
    metadata: z.record(z.string().max(64), z.string().max(512)).optional().describe("Pairs of your own, which the run carries."),
  })
  .describe("What a user asks for: one fine-tuning run, or the import of an adapter.");

/** The sections into which users paste a configuration, with the tables that say how unknown fields are treated. */
const pasted = { lora: judgedLoraFields, training: judgedTrainingFields } as const;

/**
 * Fills in the learning rate that is usual with the method. Moves fields that belong to another section (such as SFTConfig's `max_length`), and adds to `notices` those that have no effect, which
 * the sections' schemas then drop. Applying it again changes nothing, because a spec may pass through several APIs.
 */
function acceptPasted(input: RunSpecInput, context: z.core.$RefinementCtx): unknown {
  const raw: unknown = input;
  if (!isObject(raw)) return raw;
  const spec: Record<string, unknown> = { ...raw };
  const notices: unknown[] = Array.isArray(raw["notices"]) ? [...(raw["notices"] as unknown[])] : [];
  for (const [name, fields] of Object.entries(pasted)) {
    const section = raw[name];
    if (!isObject(section)) continue;
    notices.push(...noticesOf(name, section, fields));
    const rest: Record<string, unknown> = { ...section };
    for (const { name: field, to, why, value } of movesOf(section, fields)) {
      const [target = "", key = ""] = to.split(".");
      if (target === name) continue;
      const there = spec[target] ?? {};
      if (!isObject(there)) continue;
      if (there[key] !== undefined && there[key] !== value)
        context.addIssue({
          code: "custom",
          path: [name, field],
          message: `is ${to} here, which is given too and says something else; remove one of the two`,
        });
      spec[target] = { ...there, [key]: value };
      delete rest[field];
      notices.push({ param: `${name}.${field}`, message: `${name}.${field} is ${to} here, and was taken as such: ${why}.` });
    }
    spec[name] = rest;
  }
  const usual = rateOf(spec["method"]);
  const training = spec["training"] ?? {};
  if (usual !== undefined && isObject(training)) spec["training"] = { learning_rate: usual, ...training };
  return notices.length === 0 ? spec : { ...spec, notices };
}

/** @returns the learning rate that is usual with a method as somebody wrote it; undefined: there is no such method. */
const rateOf = (written: unknown): number | undefined =>
  isObject(written) ? (usualLearningRates as Readonly<Record<string, number>>)[String(written["type"])] : undefined;

type Fields = z.output<typeof runSpecFields>;

/** Most characters of a spec as JSON. State and events contain the spec, and must fit into a NATS message. */
const largestSpec = 192 * 1024;

const methodOf = ({ method: given, import: older }: Pick<Fields, "method" | "import">): Method =>
  older === undefined ? (given ?? { type: "supervised" }) : { type: "import", ...older };

const anyRun = runSpecFields
  .extend({
    notices: z
      .array(notice)
      .max(500)
      .optional()
      .describe("Written by Loraline: fields that were given and change nothing here, or were taken as another one."),
  })
  .superRefine((spec, context) => {
    const wrong = (path: string, message: string): void => context.addIssue({ code: "custom", path: [path], message });
    const bytes = JSON.stringify(spec).length;
    if (bytes > largestSpec) {
      context.addIssue({ code: "custom", path: [], message: `the run spec has ${bytes} characters, and at most ${largestSpec} are taken` });
    }
    if (spec.method !== undefined && spec.import !== undefined) wrong("import", "says what `method` says already; remove it");
    if (spec.training.load_best_model_at_end === true && spec.validation === undefined && spec.holdout === 0) {
      context.addIssue({
        code: "custom",
        path: ["training", "load_best_model_at_end"],
        message: "needs held-out rows to find the best step: give a validation dataset, or a holdout above 0",
      });
    }
    if (spec.quantization !== undefined && beginsWithTheBase(spec.lora.init_lora_weights)) {
      context.addIssue({
        code: "custom",
        path: ["lora", "init_lora_weights"],
        message: `${spec.lora.init_lora_weights} changes the base's weights, which quantization ${spec.quantization} packs; remove one of the two`,
      });
    }
    const { needs, refuses } = datasetRules[methodOf(spec).type];
    const isGiven = (field: string): boolean => spec[field as keyof Fields] !== undefined;
    for (const [field, message] of Object.entries(needs)) if (!isGiven(field)) wrong(field, message);
    for (const [field, message] of Object.entries(refuses)) if (isGiven(field)) wrong(field, message);
  })
  .meta({
    oneOf: [
      { required: ["dataset"] },
      { required: ["method"], properties: { method: { properties: { type: { const: "import" } } } } },
      { required: ["import"] },
    ],
  })
  .transform(({ method: given, import: older, ...spec }) => ({ ...spec, method: methodOf({ method: given, import: older }) }));

export const runSpec = z.preprocess(acceptPasted, anyRun);
export type RunSpec = z.output<typeof runSpec>;
export type RunSpecInput = z.input<typeof runSpecFields>;

/** Turns zod's issues into problems that a user can correct; `prefix` is put before each path. */
export function problemsOf(error: z.core.$ZodError, code = "SPEC_INVALID", prefix = ""): Problem[] {
  return error.issues.flatMap((issue) => problemsOfIssue(issue, code, prefix));
}

function problemsOfIssue(issue: z.core.$ZodIssue, code: string, prefix: string): Problem[] {
  const path = [...(prefix === "" ? [] : [prefix]), ...issue.path.map(String)].join(".");
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => {
      const param = path === "" ? key : `${path}.${key}`;
      const section = String(issue.path.at(-1));
      const reason = section === "lora" || section === "training" ? reasonOf(pasted[section], key) : undefined;
      return reason === undefined
        ? { code, param, message: `${param}: there is no such field. Check the spelling, or remove it.` }
        : { code: section === "lora" ? "LORA_FIELD_REFUSED" : "TRAINING_FIELD_REFUSED", param, message: `${param} is refused: ${reason}` };
    });
  }
  const param = path === "" ? null : path;
  return [{ code, param, message: `${param === null ? "" : `${param}: `}${issue.message}` }];
}

/**
 * Parses a run spec that came through any API. Never throws. Where only one problem can be shown, it is the first.
 * @returns the spec, and the notices about fields that are not used as written (the same as `spec.notices`).
 */
export function parseRunSpec(raw: unknown): { spec: RunSpec; notices: Notice[] } | { problems: [Problem, ...Problem[]] } {
  const parsed = runSpec.safeParse(raw);
  if (parsed.success) return { spec: parsed.data, notices: parsed.data.notices ?? [] };
  return { problems: problemsOf(parsed.error) as [Problem, ...Problem[]] };
}
