/** Pure: what a form asks for, as the body of a job, as `run.yaml`, for kubectl, and as code. */
import { type CreateJobBodyInput, type DatasetReport, type MethodType, parseRunSpec, type RunSpec } from "@loraline/contracts";

export const offeredMethods = ["supervised", "dpo", "orpo", "simpo", "kto", "judge"] as const satisfies MethodType[];
type OfferedMethod = (typeof offeredMethods)[number];

export interface Wish {
  base: string;
  adapter: string;
  method: OfferedMethod;
  /** As they were typed; empty: the default. */
  epochs: string;
  learningRate: string;
  rank: string;
  maxSteps: string;
  promote: "auto" | "canary" | "manual";
}

const adapterPattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

/** A name for the adapter of a file: `My Pirates.v2.csv` → `my-pirates-v2`. */
export const nameAfter = (filename: string): string =>
  filename
    .replace(/^.*[\\/]/, "")
    .replace(/(?:\.(?:jsonl?|ndjson|csv|tsv|txt|md|xlsx|parquet|arrow|zip|gz|zst))+$/i, "")
    .normalize("NFKD")
    .replace(/\p{Mark}/gu, "")
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .slice(0, 63)
    .replace(/^-+|-+$/g, "");

/** The methods that these records can be trained by, the likeliest first. */
export function methodsFor({ kinds }: Pick<DatasetReport, "kinds">): OfferedMethod[] {
  const has = (kind: string): boolean => (kinds[kind] ?? 0) > 0;
  if (has("preference") || has("ranked")) return ["dpo", "orpo", "simpo", "kto", "judge"];
  if (has("unpaired")) return ["kto"];
  return ["supervised"];
}

type Field = "adapter" | "base" | "epochs" | "learningRate" | "rank" | "maxSteps";

/** Fields that are wrong, each with the kind of its fault. */
export function problemsOf(wish: Wish): Partial<Record<Field, "required" | "badName" | "badNumber">> {
  const isNumber = (text: string): boolean => text.trim() === "" || (Number.isFinite(Number(text)) && Number(text) > 0);
  return {
    ...(wish.base === "" ? { base: "required" } : {}),
    ...(adapterPattern.test(wish.adapter) ? {} : { adapter: "badName" }),
    ...Object.fromEntries(
      (["epochs", "learningRate", "rank", "maxSteps"] as const)
        .filter((field) => !isNumber(wish[field]))
        .map((field) => [field, "badNumber" as const]),
    ),
  };
}

type Fields = Record<string, unknown>;
const isFields = (value: unknown): value is Fields => typeof value === "object" && value !== null && !Array.isArray(value);

/** What of `value` is not so in `plain`, however deep. */
function beyond(value: Fields, plain: Fields): Fields {
  return Object.fromEntries(
    Object.entries(value).flatMap(([name, inner]) => {
      const usual = plain[name];
      if (!isFields(inner)) return JSON.stringify(inner) === JSON.stringify(usual) ? [] : [[name, inner]];
      const rest = beyond(inner, isFields(usual) ? usual : {});
      return Object.keys(rest).length === 0 ? [] : [[name, rest]];
    }),
  );
}

/** What the form itself asks, and what is of one run only. */
const asked = new Set(["base", "adapter", "dataset", "notices", "promote", "method.type", "lora.r", "training.num_train_epochs"]);
for (const name of ["training.learning_rate", "training.max_steps", "import"]) asked.add(name);
const without = (fields: Fields, path: readonly string[] = []): Fields =>
  Object.fromEntries(
    Object.entries(fields).flatMap(([name, inner]) => {
      const here = [...path, name];
      if (asked.has(here.join("."))) return [];
      if (!isFields(inner)) return [[name, inner]];
      const rest = without(inner, here);
      return Object.keys(rest).length === 0 ? [] : [[name, rest]];
    }),
  );

/** What an earlier run was asked for and the form does not ask: run again, it is asked for again. Only what differs from the defaults. */
interface Kept {
  fields: Fields;
  /** With which the scaling `lora_alpha` was meant. */
  rank: number;
  method: string;
}
export function keptOf(spec: RunSpec): Kept {
  const { base, adapter, dataset, method } = spec;
  const type = method?.type ?? "supervised";
  const plain = parseRunSpec({ base, adapter, ...(dataset === undefined ? {} : { dataset }), method: { type } });
  return { fields: "spec" in plain ? without(beyond(spec, plain.spec)) : {}, rank: spec.lora.r, method: type };
}

/** The names of what is kept, as run.yaml has them. */
export const namesOf = (fields: Fields, path: readonly string[] = []): string[] =>
  Object.entries(fields).flatMap(([name, inner]) => (isFields(inner) ? namesOf(inner, [...path, name]) : [[...path, name].join(".")]));

/** Sections of the run spec that differ from the defaults. */
function sectionsOf({ epochs, learningRate, rank, maxSteps, promote, method }: Wish, kept: Kept | undefined): Fields {
  const given = (name: string, text: string) => (text.trim() === "" ? {} : { [name]: Number(text) });
  const { lora: keptLora, training: keptTraining, method: keptMethod, canary, ...others } = kept?.fields ?? {};
  const { lora_alpha: alpha, ...restLora } = isFields(keptLora) ? keptLora : {};
  const scaling =
    alpha !== undefined && Number(rank) === kept?.rank ? { lora_alpha: alpha } : rank.trim() === "" ? {} : { lora_alpha: 2 * Number(rank) };
  const lora = { ...restLora, ...given("r", rank), ...scaling };
  const training = {
    ...(isFields(keptTraining) ? keptTraining : {}),
    ...given("num_train_epochs", epochs),
    ...given("learning_rate", learningRate),
    ...given("max_steps", maxSteps),
  };
  const settings = kept?.method === method && isFields(keptMethod) ? keptMethod : {};
  return {
    ...(method === "supervised" ? {} : { method: { type: method, ...settings } }),
    ...others,
    ...(Object.keys(lora).length === 0 ? {} : { lora }),
    ...(Object.keys(training).length === 0 ? {} : { training }),
    ...(promote === "auto" ? {} : { promote }),
    ...(promote === "canary" && canary !== undefined ? { canary } : {}),
  };
}

/** @param kept - of the run that is run again. */
export function jobOf(wish: Wish, datasetId: string, kept?: Kept): CreateJobBodyInput {
  const { method, validation, ...sections } = sectionsOf(wish, kept);
  const { type, ...settings } = isFields(method) ? method : {};
  const own = Object.keys(settings).length === 0 ? {} : { [String(type)]: { hyperparameters: settings } };
  return {
    model: wish.base,
    training_file: `file-${datasetId}`,
    ...(typeof validation === "string" ? { validation_file: `file-${validation}` } : {}),
    ...(type === undefined ? {} : { method: { type, ...own } as CreateJobBodyInput["method"] }),
    loraline: { adapter: wish.adapter, ...sections },
  };
}

/** JSON is YAML, too; words that can be nothing else need no quotes. */
const scalarOf = (value: unknown): string =>
  typeof value === "string" &&
  /^(?=.*[a-z])[a-z0-9][\w./@-]*$/i.test(value) &&
  !/^(?:true|false|null|yes|no|on|off|[\d.]+e\d+)$/i.test(value)
    ? value
    : JSON.stringify(value);
const yamlOf = (value: Fields, indent = ""): string =>
  Object.entries(value)
    .map(([name, inner]) =>
      isFields(inner) ? `${indent}${name}:\n${yamlOf(inner, `${indent}  `)}` : `${indent}${name}: ${scalarOf(inner)}\n`,
    )
    .join("");

export function codeOf(wish: Wish, datasetId: string, filename: string, origin: string, kept?: Kept): { name: string; text: string }[] {
  const sections = sectionsOf(wish, kept);
  const spec = { base: wish.base, adapter: wish.adapter, ...sections };
  const body = JSON.stringify(jobOf(wish, datasetId, kept), null, 2);
  const { model, training_file: file, ...rest } = jobOf(wish, datasetId, kept) as Record<string, unknown>;
  const { loraline, ...others } = rest;
  const python = Object.entries({ model, training_file: file, ...others })
    .map(([name, value]) => `    ${name}=${JSON.stringify(value)},`)
    .join("\n");
  const yaml = yamlOf(sections);
  return [
    {
      name: "loraline",
      text: `${yaml === "" ? "" : `# run.yaml\n${yaml}\n`}loraline run "${filename}" --base ${wish.base} --name ${wish.adapter}${yaml === "" ? "" : " -f run.yaml"}`,
    },
    {
      name: "kubectl",
      text: `apiVersion: loraline.dev/v1alpha1\nkind: FineTune\nmetadata:\n  name: ${wish.adapter}\nspec:\n${yamlOf({ ...spec, dataset: { id: datasetId } }, "  ")}`,
    },
    {
      name: "Python",
      text: `from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key="YOUR_KEY")\njob = client.fine_tuning.jobs.create(\n${python}\n    extra_body={"loraline": ${JSON.stringify(loraline)}},\n)`,
    },
    {
      name: "curl",
      text: `curl ${origin}/v1/fine_tuning/jobs -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -d '${body}'`,
    },
  ];
}
