/**
 * Sends every field of the run spec through every API that takes one. The fields come from the schema, so a new field fails here until it
 * has a sample value, and until each API passes it on or `lacks` says why it does not.
 */
import { Ajv } from "ajv";
import addFormats from "ajv-formats";
import { describe, expect, it } from "vitest";
import type { z } from "zod";
import { fileIdIn, jobBodyOf, jobMethodOf } from "../packages/cli/src/runs/job-body.ts";
import { parseRunFile } from "../packages/cli/src/runs/run-file.ts";
import {
  addAdapterSettings,
  crds,
  foldRun,
  jobObject,
  type MethodType,
  methodTypes,
  parseRunSpec,
  runRequested,
  type RunSpec,
  runSpec,
  runSpecFields,
  type RunSpecInput,
  trainingOnlyFields,
  usualLearningRates,
} from "../packages/contracts/src/index.ts";
import { jsonSchemas } from "../packages/contracts/src/generate/generate.ts";
import { runSpecFromSettings } from "../services/gateway/src/adapters/add-adapter.ts";
import { base, engineRecord, refOf } from "../services/gateway/src/gateway-under-test.ts";
import { jobObjectOf } from "../services/gateway/src/jobs/job-object.ts";
import { jobParamOf, parseJobBody, runSpecFromJob } from "../services/gateway/src/jobs/run-spec-from-job.ts";
import { decideWanted } from "../services/operator/src/decide-fine-tune.ts";

type Values = Record<string, unknown>;

const dataset = "01JD000000000000000000000D";
const file = (letter: string) => ({ ...refOf("raw", letter), kind: "adapter-file" as const });
const adapterFromElsewhere = {
  source: "./pirate",
  config: file("a"),
  weights: file("b"),
  probes: ["Ahoy?"],
  system: "You are a pirate.",
  any_base: true,
};

/** Path of a field to a value other than its default. Of a field with several shapes (`placement.mode`), one for each. */
const samples: Record<string, unknown> = {
  base,
  adapter: "parrot",
  dataset,
  "method.type=supervised": { type: "supervised" },
  "method.type=import": { type: "import", ...adapterFromElsewhere },
  "method.type=dpo": { type: "dpo", beta: 0.3, label_smoothing: 0.1, loss_type: "robust", sft_weight: 0.2, pairs: "all" },
  "method.type=orpo": { type: "orpo", beta: 0.3, pairs: "all" },
  "method.type=simpo": { type: "simpo", beta: 3, simpo_gamma: 1, cpo_alpha: 0.5, pairs: "all" },
  "method.type=judge": { type: "judge", pairs: "all" },
  "method.type=kto": { type: "kto", beta: 0.3, desirable_weight: 1.5, undesirable_weight: 2 },
  import: adapterFromElsewhere,
  validation: "01JD000000000000000000000V",
  init_from: "pirate@2",
  holdout: 0.25,
  validation_overlap: "keep",
  dedupe: "near",
  min_records: 3,
  "lora.r": 16,
  "lora.lora_alpha": 33,
  "lora.lora_dropout": 0.05,
  "lora.target_modules": ["q_proj"],
  "lora.exclude_modules": ["k_proj"],
  "lora.use_rslora": true,
  "lora.layers_to_transform": [0, 1],
  "lora.layers_pattern": "layers",
  "lora.rank_pattern": { q_proj: 4 },
  "lora.alpha_pattern": { q_proj: 8 },
  "lora.init_lora_weights": "gaussian",
  "training.per_device_train_batch_size": 2,
  "training.gradient_accumulation_steps": 3,
  "training.num_train_epochs": 1.5,
  "training.max_steps": 7,
  "training.learning_rate": 5e-4,
  "training.lr_scheduler_type": "cosine",
  "training.lr_scheduler_kwargs": { num_cycles: 2 },
  "training.warmup_steps": 0.1,
  "training.optim": "adamw_torch",
  "training.adam_beta1": 0.8,
  "training.adam_beta2": 0.98,
  "training.adam_epsilon": 1e-7,
  "training.loraplus_lr_ratio": 16,
  "training.weight_decay": 0.01,
  "training.max_grad_norm": 0.5,
  "training.label_smoothing_factor": 0.1,
  "training.neftune_noise_alpha": 5,
  "training.logging_steps": 4,
  "training.save_steps": 20,
  "training.save_total_limit": 5,
  "training.eval_steps": 10,
  "training.eval_budget": "all",
  "training.load_best_model_at_end": true,
  "training.early_stopping_patience": 2,
  "training.early_stopping_threshold": 0.01,
  "training.fsdp": true,
  "training.gradient_checkpointing": true,
  "training.seed": 9,
  "training.data_seed": 8,
  "training.full_determinism": true,
  "training.bf16": false,
  "tokenize.template": "seed",
  "tokenize.profile": "seed",
  "tokenize.system": "You are a parrot.",
  "tokenize.max_length": 512,
  "tokenize.too_long": "trim-prompt",
  "tokenize.packing": true,
  quantization: "nf4",
  gate: "better-than-promoted",
  gate_accuracy: true,
  promote: "canary",
  "canary.steps": [10, 50],
  "canary.interval_s": 5,
  "canary.min_requests": 7,
  "canary.max_error_rate": 0.5,
  "canary.max_latency_ratio": 3,
  "canary.max_loss_increase": 0.2,
  "placement.mode=all": { mode: "all" },
  "placement.mode=spread": { mode: "spread", replicas: 2 },
  "placement.mode=pinned": { mode: "pinned", pins: ["replica-1"] },
  keep: 7,
  gpus: 2,
  priority: -1,
  nodes: 2,
  profile: "large",
  max_attempts: 2,
  metadata: { team: "sea" },
};

/** Other fields that a field needs beside it for the spec to be valid. */
const beside: Record<string, Values> = {
  canary: { promote: "canary" },
  "lora.layers_pattern": { lora: { layers_to_transform: [0] } },
  "training.early_stopping_patience": { training: { load_best_model_at_end: true } },
  "training.lr_scheduler_kwargs": { training: { lr_scheduler_type: "cosine_with_restarts" } },
};

/** Older spellings: what they become. */
const becomes: Record<string, [path: string, value: unknown]> = {
  import: ["method", samples["method.type=import"]],
  "tokenize.profile": ["tokenize.template", "seed"],
};

interface Api {
  /** @returns the run spec that the API makes of a spec as a user writes it; `path` is what is tried. */
  send(spec: Values, path: string): RunSpec;
  /** Field, or section, to why the API has none. */
  lacks: Record<string, string>;
}

const without = (spec: Values, ...fields: string[]): Values =>
  Object.fromEntries(Object.entries(spec).filter(([field]) => !fields.includes(field)));
function specOr<T extends object>(made: { spec: RunSpec } | T): RunSpec {
  if ("spec" in made) return made.spec;
  throw new Error(JSON.stringify(made));
}
const sendJob = (body: unknown): RunSpec => {
  const parsed = parseJobBody(JSON.parse(JSON.stringify(body)));
  if ("problems" in parsed) throw new Error(JSON.stringify(parsed.problems));
  return specOr(
    runSpecFromJob(parsed.body, { datasetId: "01JD000000000000000000000D", filename: "pirate.jsonl", engines: [engineRecord()] }),
  );
};
const stateOf = (spec: unknown) => {
  const data = runRequested.data.parse({ spec });
  const at = { tenant: "acme", id: "01JD000000000000000000000R" };
  const state = foldRun(undefined, { type: "run.requested.v1", at, data, seq: 1, time: "2026-11-24T12:00:00.000Z", trace: null });
  if (state === undefined) throw new Error("no state");
  return state;
};

const ajv = new Ajv({ strict: false });
(addFormats as unknown as (ajv: Ajv) => void)(ajv);
const validate = ajv.compile(without(jsonSchemas()["run-spec"] as Values, "$schema"));

const isAJob = "an adapter from elsewhere is no job; it is sent to POST /v1/loraline/adapters";
const nothingIsTrained = "nothing is trained where an adapter comes from elsewhere";

const apis: Record<string, Api> = {
  "NATS: run.requested": {
    send(spec) {
      expect(validate(spec), JSON.stringify(validate.errors)).toBe(true);
      return runRequested.data.parse({ spec }).spec;
    },
    lacks: {},
  },
  "HTTP: POST /v1/fine_tuning/jobs": {
    send: ({ base: model, dataset: id, validation, method, metadata, ...loraline }) =>
      sendJob({
        model,
        training_file: `file-${id as string}`,
        ...(validation === undefined ? {} : { validation_file: `file-${validation as string}` }),
        method: method && jobMethodOf(method as NonNullable<RunSpecInput["method"]>),
        metadata,
        loraline,
      }),
    lacks: { "method.type=import": isAJob, import: isAJob },
  },
  "CLI: run.yaml": {
    send(spec) {
      // JSON is YAML.
      const settings = parseRunFile(JSON.stringify(without(spec, "base", "adapter", "dataset")), "run.yaml");
      const { base: ofBase, adapter, dataset: id } = spec as Record<string, string>;
      const validation = settings.validation === undefined ? undefined : fileIdIn(settings.validation);
      return sendJob(jobBodyOf({ base: ofBase ?? "", adapter: adapter ?? "", training: `file-${id}`, validation, settings }));
    },
    lacks: { "method.type=import": isAJob, import: isAJob },
  },
  "HTTP: POST /v1/loraline/adapters": {
    send({ adapter: name, method = samples["method.type=import"], ...given }, path) {
      const { config, weights, type: _type, ...ofMethod } = method as typeof adapterFromElsewhere & { type: string };
      const settings = addAdapterSettings.parse({ ...without(given, path === "dataset" ? "" : "dataset"), name, ...ofMethod });
      return specOr(runSpecFromSettings(settings, { config, weights }, "upload"));
    },
    lacks: {
      ...Object.fromEntries(trainingOnlyFields.map((field) => [field, nothingIsTrained])),
      ...Object.fromEntries(methodTypes.filter((type) => type !== "import").map((type) => [`method.type=${type}`, nothingIsTrained])),
      import: "its settings stand beside the others, and always did",
    },
  },
  "Kubernetes: FineTune": {
    send(spec) {
      const asked = { ...spec };
      for (const field of ["dataset", "validation"]) if (spec[field] !== undefined) asked[field] = { id: spec[field] };
      expect(pruned(asked)).toEqual(asked);
      const ids = { dataset: "01JD000000000000000000000X", validation: "01JD000000000000000000000Y" };
      return specOr(decideWanted(asked, ids, { namespace: "n", namespaceUid: "u", name: "f", uid: "v" }));
    },
    lacks: {},
  },
  "HTTP: the job that is answered": {
    send: (spec) => runSpec.parse(jobObject.parse(JSON.parse(JSON.stringify(jobObjectOf(stateOf(spec))))).loraline?.run.spec),
    lacks: {},
  },
};

/* --- the fields, as the schema has them --- */

interface Def {
  type: string;
  in?: z.ZodType;
  out?: z.ZodType;
  innerType?: z.ZodType;
  shape?: Record<string, z.ZodType>;
  options?: readonly z.ZodType[];
  discriminator?: string;
  values?: readonly unknown[];
}
const defOf = (schema: z.ZodType): Def => schema._zod.def;

/** Without what is wrapped around a schema: default, optional, a preparation before or a change after it. */
function bare(schema: z.ZodType): z.ZodType {
  const def = defOf(schema);
  if (def.innerType !== undefined) return bare(def.innerType);
  if (def.type !== "pipe" || def.in === undefined || def.out === undefined) return schema;
  return bare(defOf(def.in).type === "transform" ? def.out : def.in);
}

/** Path to the fields that a value there has, if it is an object. An object that has a sample of its own is not looked into. */
function fieldsOf(schema: z.ZodType, path = ""): Map<string, string[]> {
  const { shape, options, discriminator } = defOf(bare(schema));
  const at = (field: string): string => (path === "" ? field : `${path}.${field}`);
  if (shape !== undefined && !(path in samples))
    return new Map(Object.entries(shape).flatMap(([field, one]) => [...fieldsOf(one, at(field))]));
  if (discriminator === undefined) return new Map([[path, Object.keys(shape ?? {})]]);
  return new Map(
    (options ?? []).map((option) => {
      const fields = defOf(bare(option)).shape ?? {};
      const [value] = defOf(fields[discriminator] as z.ZodType).values ?? [];
      return [`${at(discriminator)}=${String(value)}`, Object.keys(fields)];
    }),
  );
}

/** Where a sample's value goes: `placement.mode=all` is a value of `placement`. */
const placeOf = (path: string): string => path.replace(/\.[^.]*=.*$/, "");
const valueAt = (spec: unknown, path: string): unknown => path.split(".").reduce((at, field) => (at as Values | undefined)?.[field], spec);

function specWith(path: string): Values {
  const spec: Values = { base, adapter: "pirate", dataset, ...structuredClone(beside[path] ?? beside[path.split(".")[0] ?? ""] ?? {}) };
  const isImport = path === "import" || path === "method.type=import";
  if (isImport) delete spec["dataset"];
  const fields = placeOf(path).split(".");
  const last = fields.pop() as string;
  const into = fields.reduce<Values>((at, field) => (at[field] ??= {}) as Values, spec);
  into[last] = samples[path];
  return spec;
}

/** What the API server keeps of a FineTune's spec: nothing that the CustomResourceDefinition does not name. */
function pruned(spec: Values): unknown {
  const crd = crds()["finetunes.yaml"] as { spec: { versions: { schema: { openAPIV3Schema: { properties: { spec: Values } } } }[] } };
  const keep = (value: unknown, schema: Values): unknown => {
    if (Array.isArray(value)) return value.map((item) => keep(item, (schema["items"] ?? {}) as Values));
    if (typeof value !== "object" || value === null || schema["x-kubernetes-preserve-unknown-fields"] === true) return value;
    const known = schema["properties"] as Record<string, Values> | undefined;
    return Object.fromEntries(
      Object.entries(value).flatMap(([field, one]) => {
        const of = known?.[field] ?? (schema["additionalProperties"] as Values | undefined);
        return of === undefined ? [] : [[field, keep(one, of)]];
      }),
    );
  };
  return keep(spec, crd.spec.versions[0]?.schema.openAPIV3Schema.properties.spec ?? {});
}

const fields = fieldsOf(runSpecFields);
const whyLacking = ({ lacks }: Api, path: string): string | undefined => lacks[path] ?? lacks[path.split(".")[0] ?? ""];

describe("samples", () => {
  it("are there for every field, and for nothing else", () => {
    expect(Object.keys(samples).toSorted()).toEqual([...fields.keys()].toSorted());
  });

  it.each([...fields].filter(([, within]) => within.length > 0))("%s is whole", (path, within) => {
    expect(Object.keys(samples[path] as Values).toSorted()).toEqual(within.toSorted());
  });

  const usual = specOr(parseRunSpec({ base: "another", adapter: "pirate", dataset: "01JD00000000000000000000AA" }));
  it.each([...fields.keys()].filter((path) => path !== "method.type=supervised"))("%s is not what is taken anyway", (path) => {
    expect(valueAt(usual, placeOf(path))).not.toEqual(samples[path]);
  });
});

describe.each(Object.entries(apis))("%s", (_, api) => {
  it.each([...fields.keys()].filter((path) => whyLacking(api, path) === undefined))("passes on %s", (path) => {
    const [where, value] = becomes[path] ?? [placeOf(path), samples[path]];
    // Of metadata, a FineTune's run has more.
    expect({ value: valueAt(api.send(specWith(path), path), where) }).toMatchObject({ value });
  });

  it.each([...fields.keys()].filter((path) => whyLacking(api, path) !== undefined))("refuses %s, instead of dropping it", (path) => {
    expect(() => api.send(specWith(path), path)).toThrow(/unrecognized key|no such field|POST \/v1\/loraline\/adapters|method\.config/i);
  });

  it("leaves the learning rate to the method", () => {
    if (whyLacking(api, "method.type=dpo") !== undefined) return;
    expect(api.send(specWith("method.type=dpo"), "method.type=dpo").training.learning_rate).toBe(usualLearningRates.dpo);
  });

  it("lacks nothing that is no field", () => {
    const sections = [...fields.keys()].flatMap((path) => [path, path.split(".")[0]]);
    expect(sections).toEqual(expect.arrayContaining(Object.keys(api.lacks)));
  });
});

describe("OpenAI's own fields", () => {
  const hyperparameters = { n_epochs: 5, batch_size: 2, learning_rate_multiplier: 3 };
  const job = {
    model: base,
    training_file: `file-${dataset}`,
    validation_file: `file-${samples["validation"] as string}`,
    seed: 9,
    suffix: "parrot",
    metadata: samples["metadata"],
    method: { type: "supervised", supervised: { hyperparameters } },
  };

  it("become the run's, and come back as they were sent", () => {
    const spec = sendJob(job);
    expect(spec).toMatchObject({
      base,
      dataset,
      validation: samples["validation"],
      adapter: "parrot",
      metadata: { team: "sea" },
      method: { type: "supervised" },
      training: { seed: 9, num_train_epochs: 5, per_device_train_batch_size: 2, learning_rate: 3 * 2e-4 },
    });
    const { suffix: _asTheModelsName, ...sent } = job;
    expect(jobObjectOf(stateOf(spec))).toMatchObject({ ...sent, hyperparameters });
  });

  const own: Partial<Record<MethodType, Values>> = {
    dpo: { beta: 0.2, loss_type: "hinge", sft_weight: 0.5 },
    orpo: { beta: 0.2 },
    simpo: { beta: 4, simpo_gamma: 1 },
    kto: { beta: 0.2, undesirable_weight: 1.5 },
  };
  it.each(Object.entries(own))("have a place for what %s has of its own, with its own usual learning rate", (type, settings) => {
    const spec = sendJob({ ...job, method: { type, [type]: { hyperparameters: { ...hyperparameters, ...settings } } } });
    const usual = usualLearningRates[type as MethodType];
    expect(spec).toMatchObject({ method: { type, ...settings }, training: { num_train_epochs: 5 } });
    expect(spec.training.learning_rate).toBeCloseTo(3 * usual, 12);
    expect(jobObject.parse(jobObjectOf(stateOf(spec))).method).toMatchObject({
      type,
      [type]: { hyperparameters: { ...hyperparameters, ...settings } },
    });
    const auto = Object.fromEntries(Object.keys({ ...hyperparameters, ...settings }).map((name) => [name, "auto"]));
    const byDefault = sendJob({ ...job, method: { type, [type]: { hyperparameters: auto } } });
    expect(byDefault).toEqual(sendJob({ ...job, method: { type } }));
    expect(byDefault.training.learning_rate).toBe(usual);
    expect(() => sendJob({ ...job, method: { type, [type]: { hyperparameters: { ...settings, telepathy: 1 } } } })).toThrow(
      new RegExp(`method\\.${type}\\.hyperparameters\\.telepathy`),
    );
    expect(() => sendJob({ ...job, method: { type, [type]: { hyperparameters: { beta: -1 } } } })).toThrow(
      new RegExp(`method\\.${type}\\.hyperparameters\\.beta`),
    );
  });

  it("name an import by where it came from", () => {
    const imported = jobObjectOf(stateOf(specWith("method.type=import")));
    expect(jobObject.parse(imported)).toMatchObject({
      training_file: "import:./pirate",
      method: { type: "import", import: { source: "./pirate" } },
    });
  });

  it("refuse a method that is not offered, naming what is", () => {
    expect(() => sendJob({ ...job, method: { type: "telepathy", telepathy: {} } })).toThrow(
      /method\.type: \\"telepathy\\" is not offered; use one of \\"supervised\\", \\"dpo\\", \\"orpo\\", \\"simpo\\", \\"kto\\"/,
    );
    expect(() => sendJob({ ...job, method: { type: "import" } })).toThrow(/method\.type: .*POST \/v1\/loraline\/adapters/);
  });

  it("have a name for every field that a job's body takes", () => {
    const named = [...new Set([...fields.keys()].map(placeOf))].filter((path) => path !== "import").map(jobParamOf);
    expect(named.filter((name) => !name.startsWith("loraline.")).toSorted()).toEqual([
      "metadata",
      "method",
      "model",
      "training_file",
      "validation_file",
    ]);
  });
});
