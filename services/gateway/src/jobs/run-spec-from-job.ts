/** Pure: makes a run spec from the body of OpenAI's `POST /v1/fine_tuning/jobs`; problems name the fields as the caller wrote them. */
import {
  createJobBody,
  type CreateJobBodyInput,
  type EngineRecord,
  jobExtension,
  type MethodType,
  openAiFields,
  parseRunSpec,
  type Problem,
  problemsOf,
  type RunSpec,
  type shapesWithSettings,
  type trainingFields,
  usualLearningRates,
} from "@loraline/contracts";
import { judgeRunSpec } from "@loraline/models";
import { datasetIdOf } from "../openai-ids.ts";

type Body = CreateJobBodyInput;
type Problems = [Problem, ...Problem[]];

/** The name that a field of the run spec has in a job's body. */
export function jobParamOf(param: string): string {
  const [section = ""] = param.split(".");
  const own = openAiFields[section as keyof typeof openAiFields] as string | undefined;
  if (own !== undefined) return own + param.slice(section.length);
  return section in jobExtension.shape ? `loraline.${param}` : param;
}

type BodyMethod = NonNullable<Body["method"]>;
interface FromJob {
  /** As in the run spec; its settings are checked there. */
  method: { type: MethodType } & Record<string, unknown>;
  /** OpenAI's hyperparameters, which are under the method's name. They set the training, whatever the method is. */
  hyperparameters: Body["hyperparameters"];
}
type PreferenceHyperparameters = NonNullable<Body["hyperparameters"]> & Record<string, unknown>;

/** What OpenAI's hyperparameters do not name is the method's own; "auto" is its default. */
function fromPreferences(type: keyof typeof shapesWithSettings, under: { hyperparameters?: unknown } | null | undefined): FromJob {
  const { n_epochs, batch_size, learning_rate_multiplier, ...own } = (under?.hyperparameters ?? {}) as PreferenceHyperparameters;
  const given = Object.entries(own).filter(([, value]) => value !== "auto");
  return { method: { type, ...Object.fromEntries(given) }, hyperparameters: { n_epochs, batch_size, learning_rate_multiplier } };
}

/** The run spec's method for OpenAI's `method`. */
const specMethods: { [T in BodyMethod["type"]]: (asked: Extract<BodyMethod, { type: T }>) => FromJob } = {
  supervised: ({ type, supervised }) => ({ method: { type }, hyperparameters: supervised?.hyperparameters }),
  dpo: ({ type, dpo }) => fromPreferences(type, dpo),
  orpo: ({ type, orpo }) => fromPreferences(type, orpo),
  simpo: ({ type, simpo }) => fromPreferences(type, simpo),
  kto: ({ type, kto }) => fromPreferences(type, kto),
  judge: ({ type, judge }) => fromPreferences(type, judge),
};
const fromJob = (asked: BodyMethod): FromJob => (specMethods[asked.type] as (asked: BodyMethod) => FromJob)(asked);

/** Checks the shape of the body. It is returned as the caller wrote it, without defaults, so that given values can be told from defaults. */
export function parseJobBody(raw: unknown): { body: Body } | { problems: Problems } {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw)) {
    return { problems: [{ code: "SPEC_INVALID", message: "The body must be a JSON object.", param: null }] };
  }
  const parsed = createJobBody.safeParse(raw);
  if (!parsed.success) return { problems: problemsOf(parsed.error) as Problems };
  const body = raw as Body;
  if (Object.keys(body.metadata ?? {}).length > 16) {
    return { problems: [{ code: "SPEC_INVALID", message: "metadata: at most 16 pairs.", param: "metadata" }] };
  }
  return { body };
}

/**
 * @param source - the training file; it names the adapter when the caller does not.
 * @param source.engines - those the tenant may use.
 */
export function runSpecFromJob(
  body: Body,
  source: { datasetId: string; filename: string; engines: readonly EngineRecord[] },
): { spec: RunSpec } | { problems: Problems } {
  const { loraline } = body;
  const asked = body.method ? fromJob(body.method) : undefined;
  /** Path in the run spec → the field as the caller wrote it. */
  const written = new Map<string, string>(Object.entries(openAiFields));
  if (loraline?.adapter === undefined) written.set("adapter", typeof body.suffix === "string" ? "suffix" : "training_file");

  const training: Record<string, unknown> = { ...loraline?.training };
  const wish = (field: keyof typeof trainingFields.shape, value: number | null | undefined, writtenAs: string): void => {
    // A field under `loraline` is more exact than OpenAI's field for the same setting, so it wins.
    if (value === undefined || value === null || training[field] !== undefined) return;
    training[field] = value;
    written.set(`training.${field}`, writtenAs);
  };
  const given = [
    [`method.${asked?.method.type}.hyperparameters`, asked?.hyperparameters],
    ["hyperparameters", body.hyperparameters],
  ] as const;
  for (const [where, hyperparameters] of given) {
    const number = (value: number | "auto" | undefined): number | undefined => (value === "auto" ? undefined : value);
    const multiplier = number(hyperparameters?.learning_rate_multiplier);
    wish("num_train_epochs", number(hyperparameters?.n_epochs), `${where}.n_epochs`);
    wish("per_device_train_batch_size", number(hyperparameters?.batch_size), `${where}.batch_size`);
    wish(
      "learning_rate",
      multiplier && multiplier * usualLearningRates[asked?.method.type ?? "supervised"],
      `${where}.learning_rate_multiplier`,
    );
  }
  wish("seed", body.seed, "seed");

  const validation = body.validation_file ?? undefined;
  const parsed = parseRunSpec(
    withoutUndefined({
      adapter: typeof body.suffix === "string" ? slugOf(body.suffix) : nameAfter(source),
      ...withoutUndefined({ ...loraline }),
      training,
      base: body.model,
      dataset: datasetIdOf(body.training_file) ?? body.training_file,
      validation: validation && (datasetIdOf(validation) ?? validation),
      method: asked?.method,
      metadata: body.metadata ?? undefined,
    }),
  );
  const inCallersWords = (problem: Problem): Problem => {
    const { param } = problem;
    if (typeof param !== "string") return problem;
    const name = written.get(param) ?? methodParamOf(param, asked?.method) ?? jobParamOf(param);
    const message = problem.message.startsWith(param) ? name + problem.message.slice(param.length) : problem.message;
    return { ...problem, param: name, message };
  };
  const problems = "problems" in parsed ? parsed.problems : judgeRunSpec(parsed.spec, source.engines);
  const [first, ...others] = problems.map(inCallersWords);
  if (first !== undefined) return { problems: [first, ...others] };
  return parsed;
}

/** A method's own settings stand among its hyperparameters: `method.beta` is `method.dpo.hyperparameters.beta`. */
function methodParamOf(param: string, method: FromJob["method"] | undefined): string | undefined {
  const [, field] = /^method\.([^.]+)$/.exec(param) ?? [];
  return field === undefined || field === "type" || method === undefined ? undefined : `method.${method.type}.hyperparameters.${field}`;
}

const withoutUndefined = (fields: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

/**
 * `train-0q8k2v` for `train.jsonl`: file names repeat, and two files called `train.jsonl` must not share an alias unasked. It follows
 * from the file, so a second job on it makes version 2.
 */
function nameAfter({ datasetId, filename }: { datasetId: string; filename: string }): string {
  const stem = slugOf(stemOf(filename)).slice(0, 56).replace(/-+$/, "") || "adapter";
  return `${stem}-${datasetId.slice(-6).toLowerCase()}`;
}

/** `data/Pirate Talk.v2.jsonl.gz` → `Pirate Talk.v2` */
const stemOf = (filename: string): string =>
  filename.replace(/^.*[\\/]/, "").replace(/(?:\.(?:jsonl?|ndjson|csv|tsv|txt|parquet|gz|zst))+$/i, "");

/** Makes an adapter's name of a text: `My Pirate!` → `my-pirate`. Empty if no character can be kept. */
function slugOf(text: string): string {
  const plain = text.normalize("NFKD").replace(/\p{Mark}/gu, "");
  return plain
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .slice(0, 63)
    .replace(/^-+|-+$/g, "");
}
