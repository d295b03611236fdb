/** Pure: what a form asks for, as the body of a job, as `run.yaml`, for kubectl, and as code. */
import type { CreateJobBodyInput, DatasetReport, MethodType } from "@loraline/contracts";

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

/** Sections of the run spec that differ from the defaults. */
function sectionsOf({ epochs, learningRate, rank, maxSteps, promote }: Wish) {
  const given = (name: string, text: string) => (text.trim() === "" ? {} : { [name]: Number(text) });
  const lora = { ...given("r", rank), ...(rank.trim() === "" ? {} : { lora_alpha: 2 * Number(rank) }) };
  const training = { ...given("num_train_epochs", epochs), ...given("learning_rate", learningRate), ...given("max_steps", maxSteps) };
  return {
    ...(Object.keys(lora).length === 0 ? {} : { lora }),
    ...(Object.keys(training).length === 0 ? {} : { training }),
    ...(promote === "auto" ? {} : { promote }),
  };
}

export function jobOf(wish: Wish, datasetId: string): CreateJobBodyInput {
  return {
    model: wish.base,
    training_file: `file-${datasetId}`,
    ...(wish.method === "supervised" ? {} : { method: { type: wish.method } }),
    loraline: { adapter: wish.adapter, ...sectionsOf(wish) },
  };
}

const yamlOf = (value: Record<string, unknown>, indent = ""): string =>
  Object.entries(value)
    .map(([name, inner]) =>
      typeof inner === "object" && inner !== null
        ? `${indent}${name}:\n${yamlOf(inner as Record<string, unknown>, `${indent}  `)}`
        : `${indent}${name}: ${String(inner)}\n`,
    )
    .join("");

export function codeOf(wish: Wish, datasetId: string, filename: string, origin: string): { name: string; text: string }[] {
  const sections = { ...(wish.method === "supervised" ? {} : { method: { type: wish.method } }), ...sectionsOf(wish) };
  const spec = { base: wish.base, adapter: wish.adapter, ...sections };
  const body = JSON.stringify(jobOf(wish, datasetId), null, 2);
  const { model, training_file: file, ...rest } = jobOf(wish, datasetId) as Record<string, unknown>;
  const python = Object.entries({ model, training_file: file, ...(rest["method"] === undefined ? {} : { method: rest["method"] }) })
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
      text: `from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key="YOUR_KEY")\njob = client.fine_tuning.jobs.create(\n${python}\n    extra_body={"loraline": ${JSON.stringify(rest["loraline"])}},\n)`,
    },
    {
      name: "curl",
      text: `curl ${origin}/v1/fine_tuning/jobs -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -d '${body}'`,
    },
  ];
}
