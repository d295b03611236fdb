import type { RunSpec } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { base, engineRecord } from "../gateway-under-test.ts";
import { parseJobBody, runSpecFromJob } from "./run-spec-from-job.ts";

const dataset = "01JD000000000000000000000D";
const made = (over: object, filename = "pirate.jsonl") => {
  const parsed = parseJobBody({ model: base, training_file: `file-${dataset}`, ...over });
  return "problems" in parsed ? parsed : runSpecFromJob(parsed.body, { datasetId: dataset, filename, engines: [engineRecord()] });
};
const specOf = (over: object, filename?: string): RunSpec => {
  const result = made(over, filename);
  if ("problems" in result) throw new Error(JSON.stringify(result.problems));
  return result.spec;
};
const firstProblem = (over: object) => {
  const result = made(over);
  return "problems" in result ? result.problems[0] : undefined;
};

describe("a job becomes a run spec", () => {
  it("also when a whole recipe was pasted", () => {
    const training = { output_dir: "./out", warmup_ratio: 0.1, max_seq_length: 256, report_to: "wandb", optim: "adamw_torch" };
    const spec = specOf({ loraline: { training, lora: { task_type: "CAUSAL_LM", inference_mode: false, bias: "none" } } });
    expect(spec).toMatchObject({ training: { warmup_steps: 0.1, optim: "adamw_torch" }, tokenize: { max_length: 256 } });
    expect(spec.notices?.map(({ param }) => param)).toEqual(["training.output_dir", "training.report_to", "training.max_seq_length"]);
    expect(firstProblem({ loraline: { training: { fp16: true } } })).toMatchObject({
      code: "TRAINING_FIELD_REFUSED",
      param: "loraline.training.fp16",
      message: expect.stringMatching(/^loraline\.training\.fp16 is refused: .*bf16/),
    });
  });

  it("with defaults for what is not said", () => {
    expect(specOf({})).toMatchObject({
      base,
      dataset,
      adapter: "pirate-00000d",
      holdout: 0.1,
      lora: { r: 8 },
      training: { seed: 42, learning_rate: 2e-4 },
    });
    expect(specOf({})).not.toHaveProperty("validation");
  });

  it.each([
    [{ hyperparameters: { n_epochs: 5 } }, { num_train_epochs: 5 }],
    [
      { hyperparameters: { n_epochs: "auto", batch_size: "auto", learning_rate_multiplier: "auto" } },
      { num_train_epochs: 3, per_device_train_batch_size: 4, learning_rate: 2e-4 },
    ],
    [{ hyperparameters: { learning_rate_multiplier: 0.5, batch_size: 16 } }, { learning_rate: 1e-4, per_device_train_batch_size: 16 }],
    [
      { hyperparameters: { n_epochs: 5 }, method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2 } } } },
      { num_train_epochs: 2 },
    ],
    [
      { hyperparameters: { n_epochs: 5 }, loraline: { training: { num_train_epochs: 1, save_steps: 7 } } },
      { num_train_epochs: 1, save_steps: 7 },
    ],
    [
      { seed: 9, loraline: { training: { save_steps: 7 } } },
      { seed: 9, save_steps: 7 },
    ],
    [{ seed: 0 }, { seed: 0 }],
    [{ seed: null, hyperparameters: null, method: null, metadata: null, suffix: null, loraline: null }, { seed: 42 }],
  ])("%j", (over, training) => {
    expect(specOf(over).training).toMatchObject(training);
  });

  it("with every section of the extension", () => {
    const loraline = {
      adapter: "parrot",
      lora: { r: 16, use_rslora: true },
      tokenize: { template: "seed", system: "You are a parrot." },
      holdout: 0,
      min_records: 1,
      gate: "none",
      promote: "manual",
      max_attempts: 2,
    };
    const { tokenize, lora, ...rest } = loraline;
    expect(specOf({ suffix: "ignored", loraline, validation_file: `file-${dataset}` })).toMatchObject({ ...rest, validation: dataset });
    expect(specOf({ loraline })).toMatchObject({ tokenize, lora });
  });

  it.each([
    [{ suffix: "My Pirate!" }, "x.jsonl", "my-pirate"],
    [{ suffix: "Žluťoučký kůň" }, "x.jsonl", "zlutoucky-kun"],
    [{ suffix: `${"a".repeat(62)} b` }, "x.jsonl", "a".repeat(62)],
    [{}, "C:\\data\\Sea Shanties.v2.jsonl.gz", "sea-shanties-v2-00000d"],
    [{}, "海盗.jsonl", "adapter-00000d"],
    [{}, ".jsonl", "adapter-00000d"],
    [{}, `${"a".repeat(80)}.jsonl`, `${"a".repeat(56)}-00000d`],
  ])("named by %j and %s: %s", (over, filename, adapter) => {
    expect(specOf(over, filename).adapter).toBe(adapter);
  });

  it("gives two files of one name an alias each, and the same file always the same", () => {
    const named = (datasetId: string): string => {
      const parsed = parseJobBody({ model: base, training_file: `file-${datasetId}` });
      if ("problems" in parsed) throw new Error(JSON.stringify(parsed.problems));
      const result = runSpecFromJob(parsed.body, { datasetId, filename: "train.jsonl", engines: [engineRecord()] });
      if ("problems" in result) throw new Error(JSON.stringify(result.problems));
      return result.spec.adapter;
    };
    expect(named("01JD0000000000000000ABCDEF")).toBe("train-abcdef");
    expect(named("01JD0000000000000000ABCDEG")).toBe("train-abcdeg");
    expect(named("01JD0000000000000000ABCDEF")).toBe("train-abcdef");
  });
});

describe("problems are named as the caller wrote the field", () => {
  it.each([
    [{ model: "gpt-4o" }, "BASE_UNKNOWN", "model"],
    [{ model: 5 }, "SPEC_INVALID", "model"],
    [{ training_file: "file-x" }, "SPEC_INVALID", "training_file"],
    [{ validation_file: "nope" }, "SPEC_INVALID", "validation_file"],
    [{ suffix: "海盗" }, "SPEC_INVALID", "suffix"],
    [{ suffix: "x".repeat(65) }, "SPEC_INVALID", "suffix"],
    [{ loraline: { adapter: "Not A Slug" } }, "SPEC_INVALID", "loraline.adapter"],
    [{ seed: 2 ** 33 }, "SPEC_INVALID", "seed"],
    [{ loraline: { training: { seed: -1 } } }, "SPEC_INVALID", "loraline.training.seed"],
    [{ hyperparameters: { batch_size: 100_000 } }, "SPEC_INVALID", "hyperparameters.batch_size"],
    [{ hyperparameters: { learning_rate_multiplier: 1e9 } }, "SPEC_INVALID", "hyperparameters.learning_rate_multiplier"],
    [
      { method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1e6 } } } },
      "SPEC_INVALID",
      "method.supervised.hyperparameters.n_epochs",
    ],
    [{ method: { type: "telepathy" } }, "SPEC_INVALID", "method.type"],
    [{ integrations: [{ type: "wandb" }] }, "SPEC_INVALID", "integrations"],
    [{ metadata: Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`k${n}`, "v"])) }, "SPEC_INVALID", "metadata"],
    [{ loraline: { lora: { r: 33 } } }, "RANK_TOO_HIGH", "loraline.lora.r"],
    [{ loraline: { lora: { target_modules: "*" } } }, "TARGET_MODULES_INVALID", "loraline.lora.target_modules"],
    [{ loraline: { lora: { use_dora: true } } }, "LORA_FIELD_REFUSED", "loraline.lora.use_dora"],
    [{ loraline: { tokenize: { max_length: 4096 } } }, "MAX_LENGTH_TOO_HIGH", "loraline.tokenize.max_length"],
    [{ loraline: { tokenise: {} } }, "SPEC_INVALID", "loraline.tokenise"],
  ])("%j", (over, code, param) => {
    expect(firstProblem(over)).toMatchObject({ code, param });
  });

  it("in the message too", () => {
    expect(firstProblem({ seed: 2 ** 33 })?.message).toMatch(/^seed: /);
    expect(firstProblem({ loraline: { lora: { r: 33 } } })?.message).toMatch(/^loraline\.lora\.r is 33, but engine/);
  });

  it.each([null, [], "x", undefined])("and a body that is %j is refused", (body) => {
    expect(parseJobBody(body)).toMatchObject({ problems: [{ message: "The body must be a JSON object." }] });
  });
});
