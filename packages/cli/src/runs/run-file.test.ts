import { expect, it } from "vitest";
import { parseRunFile } from "./run-file.ts";

const refusal = (text: string): string => {
  try {
    parseRunFile(text, "run.yaml");
  } catch (error) {
    expect(error).toMatchObject({ code: "RUN_FILE_INVALID", exitCode: 2, param: "run.yaml" });
    return (error as Error).message;
  }
  throw new Error("was accepted");
};

it("takes sections of the run spec as they are written, without defaults of its own", () => {
  const text = "lora: { r: 16, target_modules: [q_proj, v_proj] }\ntraining:\n  learning_rate: 5.0e-4\nholdout: 0.2\npromote: manual\n";
  expect(parseRunFile(text, "run.yaml")).toEqual({
    lora: { r: 16, target_modules: ["q_proj", "v_proj"] },
    training: { learning_rate: 0.0005 },
    holdout: 0.2,
    promote: "manual",
  });
  expect(parseRunFile("# nothing yet\n", "run.yaml")).toEqual({});
});

it("takes a pasted recipe as it is; the server says what of it changes nothing", () => {
  const text = "lora:\n  task_type: CAUSAL_LM\n  r: 8\ntraining:\n  output_dir: ./out\n  fp16: false\n  max_seq_length: 512\n";
  expect(parseRunFile(text, "run.yaml").training).toEqual({ output_dir: "./out", fp16: false, max_seq_length: 512 });
  expect(refusal("training:\n  seed: 1\n  fp16: true\n")).toMatch(/^run\.yaml:3: training\.fp16 is refused: .*bf16/);
});

it.each([
  [
    "a misspelt section",
    "lora:\n  r: 8\ntrainin:\n  seed: 1\n",
    /^run\.yaml:3: trainin: there is no such field.* Known sections: .*training/,
  ],
  ["a misspelt field", "training:\n  seed: 1\n  learnig_rate: 1\n", /^run\.yaml:3: training\.learnig_rate: there is no such field/],
  ["a wrong value", "lora:\n  lora_alpha: 16\n  r: many\n", /^run\.yaml:3: lora\.r: /],
  [
    "a field that cannot be served, with the reason",
    "lora:\n  use_dora: true\n",
    /^run\.yaml:2: lora\.use_dora is refused: vLLM cannot serve DoRA/,
  ],
  ["something that is not YAML", "lora: {r: 8\ntraining: 1\n", /^run\.yaml:\d: not YAML: /],
  ["something that is no mapping", "- lora\n", /^run\.yaml: /],
])("names file, line and field of %s", (_, text, message) => {
  expect(refusal(text)).toMatch(message);
});

it("names every problem at once", () => {
  expect(refusal("lora: { r: 0 }\nholdout: 2\n").split("\n")).toEqual([
    expect.stringMatching(/^run\.yaml:2: holdout: /),
    expect.stringMatching(/^run\.yaml:1: lora\.r: /),
  ]);
});
