import { parseRunSpec } from "@loraline/contracts";
import { expect, test } from "vitest";
import { judgeRunSpec } from "./judge-run-spec.ts";

const minimal = { base: "smollm2-135m-instruct", adapter: "pirate", dataset: "01KB0000000000000000000DS1" };
const specOf = (raw: unknown) => {
  const parsed = parseRunSpec(raw);
  if ("problems" in parsed) throw new Error(JSON.stringify(parsed.problems));
  return parsed.spec;
};

const engine = {
  engine: "local",
  base: { name: "smollm2-135m-instruct", revision: "1", digest: `sha256:${"a".repeat(64)}` as const },
  maxLoraRank: 32,
  maxLoras: 4,
  maxCpuLoras: 16,
  maxModelLen: 2048,
  updatedAt: "2026-11-24T00:00:00.000Z",
};

test.each([
  [{ base: "gpt-9" }, "BASE_UNKNOWN", "base", /smollm2-135m-instruct/],
  [{ lora: { r: 64 } }, "RANK_TOO_HIGH", "lora.r", /up to 32/],
  [
    { lora: { r: 32, init_lora_weights: "pissa" } },
    "RANK_TOO_HIGH",
    "lora.r",
    /is 32, which init_lora_weights pissa publishes as 64, .*up to 32/,
  ],
  [{ init_from: "pirate@3", lora: { init_lora_weights: "olora" } }, "SPEC_INVALID", "lora.init_lora_weights", /Remove one/],
  [{ training: { fsdp: true }, lora: { init_lora_weights: "olora" } }, "SPEC_INVALID", "training.fsdp", /Remove one/],
  [{ training: { fsdp: "full_shard" }, method: { type: "dpo" } }, "SETTING_NOT_FOR_METHOD", "training.fsdp", /reference/],
  [{ lora: { rank_pattern: { q_proj: 64 } } }, "RANK_TOO_HIGH", "lora.rank_pattern.q_proj", /up to 32/],
  [{ tokenize: { max_length: 4096 } }, "MAX_LENGTH_TOO_HIGH", "tokenize.max_length", /2048/],
  [{ lora: { target_modules: "(q_proj" } }, "TARGET_MODULES_INVALID", "lora.target_modules", /regular expression/],
])("%j is judged before anything is spent", (change, code, param, message) => {
  expect(judgeRunSpec(specOf({ ...minimal, ...change }), [engine])).toEqual([{ code, param, message: expect.stringMatching(message) }]);
});

test.each(["dpo", "orpo", "simpo", "kto"] as const)("%s goes with all that a run says when it says nothing else", (type) => {
  expect(judgeRunSpec(specOf({ ...minimal, method: { type } }), [engine])).toEqual([]);
});

test("a run for a base whose files are missing is refused with the reason, unless another engine has it", () => {
  const problem = { code: "BASE_MISSING", message: 'engine "local": base "smollm2-135m-instruct" is not here', param: "base" };
  const broken = { ...engine, problem };
  expect(judgeRunSpec(specOf(minimal), [broken])).toEqual([
    { code: "BASE_UNAVAILABLE", param: "base", message: `base "smollm2-135m-instruct" cannot be used now: ${problem.message}` },
  ]);
  expect(judgeRunSpec(specOf(minimal), [broken, { ...engine, engine: "other" }])).toEqual([]);
});

test("a base is held in fewer bits only as a whole, and only where it is no part of a wrapper", () => {
  expect(judgeRunSpec(specOf({ ...minimal, quantization: "nf4" }), [engine])).toEqual([]);
  expect(judgeRunSpec(specOf({ ...minimal, quantization: "nf4", training: { fsdp: true } }), [engine])).toMatchObject([
    { code: "SPEC_INVALID", param: "training.fsdp" },
  ]);
  const modules = [{ names: "model.language_model.layers.{0-1}.self_attn.q_proj", shape: [64, 64] as [number, number] }];
  expect(judgeRunSpec(specOf({ ...minimal, quantization: "int8" }), [{ ...engine, modules }])).toMatchObject([
    { code: "QUANTIZATION_UNSUPPORTED", param: "quantization" },
  ]);
});

test("a base that is served only as a quantised copy of it is judged by the copy's engine; one that is served itself by its own", () => {
  const derivedFrom = { name: "smollm2-135m-instruct", digest: engine.base.digest };
  const twin = { ...engine, engine: "twin", base: { ...engine.base, name: "smollm2-gptq" }, derivedFrom, maxLoraRank: 16 };
  const spec = specOf({ ...minimal, lora: { r: 32 } });
  expect(judgeRunSpec(spec, [twin])).toMatchObject([{ code: "RANK_TOO_HIGH", message: expect.stringContaining('"twin"') as string }]);
  expect(judgeRunSpec(spec, [twin, engine])).toEqual([]);
  expect(judgeRunSpec(spec, [{ ...twin, derivedFrom: { ...derivedFrom, name: "another" } }])).toMatchObject([{ code: "BASE_UNKNOWN" }]);
});

test("a regular expression that only Python knows is left to the trainer", () => {
  const spec = specOf({ ...minimal, lora: { target_modules: String.raw`(?i).*\.(?P<which>q|v)_proj\Z` } });
  expect(judgeRunSpec(spec, [engine])).toEqual([]);
});

test("what the engine serves has no problems", () => {
  expect(judgeRunSpec(specOf({ ...minimal, lora: { r: 32, target_modules: ".*\\.(q|v)_proj" } }), [engine])).toEqual([]);
});

const layers = "model.layers.{0-29}";
const described = {
  ...engine,
  modules: [
    { names: `${layers}.self_attn.q_proj`, shape: [576, 576] as [number, number] },
    { names: `${layers}.self_attn.v_proj`, shape: [192, 576] as [number, number] },
    { names: `${layers}.mlp.down_proj`, shape: [576, 1536] as [number, number] },
  ],
};
const problemsWith = (lora: object) =>
  judgeRunSpec(specOf({ ...minimal, lora }), [described]).map(({ code, param, message }) => [code, param, message]);

test.each([
  [{ target_modules: ["q_proj", "q_prj"] }, "NO_TARGET_MODULES", "lora.target_modules", /"q_prj".*down_proj, q_proj, v_proj/],
  [{ target_modules: "q_prj" }, "NO_TARGET_MODULES", "lora.target_modules", /matches nothing/],
  [{ target_modules: String.raw`.*\.attn\.(q|v)_proj` }, "NO_TARGET_MODULES", "lora.target_modules", /matches nothing/],
  [{ target_modules: ["lm_head"] }, "NO_TARGET_MODULES", "lora.target_modules", /no linear module/],
  [{ target_modules: ["q_proj"], exclude_modules: ["q_proj"] }, "NO_TARGET_MODULES", "lora.exclude_modules", /leaves out everything/],
  [{ layers_to_transform: [0, 30] }, "LAYERS_UNKNOWN", "lora.layers_to_transform", /no layer 30; its layers are 0 to 29/],
  [{ layers_to_transform: [0], layers_pattern: "blocks" }, "LAYERS_UNKNOWN", "lora.layers_to_transform", /no layer 0/],
  [{ layers_pattern: "layers" }, "LAYERS_NEED_NAMES", "lora.layers_pattern", /together/],
  [{ target_modules: ".*_proj", layers_to_transform: 1 }, "LAYERS_NEED_NAMES", "lora.layers_to_transform", /list of names/],
  [{ rank_pattern: { k_proj: 4 } }, "PATTERN_UNUSED", "lora.rank_pattern.k_proj", /ignored/],
  [{ target_modules: ["q_proj"], alpha_pattern: { v_proj: 4 } }, "PATTERN_UNUSED", "lora.alpha_pattern.v_proj", /ignored/],
  [{ target_modules: "(.+)+_proj" }, "PATTERN_TOO_COSTLY", "lora.target_modules", /repetitions/],
  [{ rank_pattern: { "(a|b)+": 4 } }, "PATTERN_TOO_COSTLY", "lora.rank_pattern.(a|b)+", /repetitions/],
])("%j finds nothing in the base, which is said at once", (lora, code, param, message) => {
  expect(problemsWith(lora)).toEqual([[code, param, expect.stringMatching(message)]]);
});

test.each([
  {},
  { target_modules: "q_proj" },
  { target_modules: ["self_attn.q_proj", "model.layers.3.mlp.down_proj"] },
  { target_modules: String.raw`.*\.(q|v)_proj`, exclude_modules: String.raw`model\.layers\.0\..*` },
  { layers_to_transform: [0, 29], layers_pattern: "layers" },
  { layers_to_transform: 29 },
  { rank_pattern: { "layers.0.self_attn.q_proj": 4, "mlp.*": 8 }, alpha_pattern: { v_proj: 4 } },
  { target_modules: String.raw`(?i).*\.Q_proj`, layers_pattern: "(?i)layers", layers_to_transform: [0] },
])("%j means modules of the base", (lora) => {
  expect(problemsWith(lora).filter(([code]) => code !== "LAYERS_NEED_NAMES")).toEqual([]);
});

test("many expressions cost no more together than one may: a hundred slow ones would stop whoever judges them for seconds", () => {
  const slow = (n: number): string => `.*.*.*.*x${n}`;
  const rank_pattern = Object.fromEntries(Array.from({ length: 100 }, (_, n) => [slow(n), 4]));
  const problems = problemsWith({ rank_pattern });
  expect(problems.filter(([code]) => code === "PATTERN_TOO_COSTLY").length).toBeGreaterThan(90);
});
