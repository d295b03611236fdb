import {
  type AdapterState,
  type EngineRecord,
  type Evaluation,
  type Method,
  method,
  type PreferenceEvaluation,
  type ProbeRecord,
} from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { decideGate, gateDoubt, type GateInput } from "./decide-gate.ts";

const digest = `sha256:${"a".repeat(64)}` as const;
const base = { name: "small", revision: "1", digest: `sha256:${"b".repeat(64)}` as const };
const blob = { kind: "adapter-file" as const, digest, size: 1 };
const probe: ProbeRecord = {
  name: "p",
  input_ids: [1],
  base: { tokens: [], logprobs: [] },
  adapter: { tokens: [], logprobs: [], base_logprobs: [] },
  first: { tokens: [1, 2], base: [-1, -2], adapter: [-3, -1] },
};
const module = "model.layers.0.self_attn.q_proj";
const weight = (part: "A" | "B", shape: number[], over: object = {}) => ({
  name: `base_model.model.${module}.lora_${part}.weight`,
  dtype: "BF16",
  shape,
  ...over,
});
const config = { peft_type: "LORA", r: 8, lora_alpha: 8, target_modules: ["q_proj"], base_model_name_or_path: "small" };
const parts = { config, tensors: [weight("A", [8, 64]), weight("B", [32, 8])] };
const evaluation: Evaluation = { base_loss: 3, adapter_loss: 2, rows: 10, supervised_tokens: 200 };
const input: GateInput = {
  spec: { base: "small", adapter: "pirate", gate: "better-than-base", method: { type: "supervised" } },
  digest,
  manifest: {
    version: 1,
    base,
    rank: 8,
    targetModules: ["q_proj"],
    parameters: 1,
    files: [
      { path: "adapter_config.json", blob },
      { path: "adapter_model.safetensors", blob },
    ],
  },
  parts,
  evidence: {
    version: 1,
    runId: "r",
    adapter: digest,
    tokens: { ...blob, kind: "tokens" },
    templateDigest: digest,
    evaluation,
    probes: [probe],
    lossHistory: [],
  },
  evaluation,
  engine: {
    engine: "local",
    base,
    maxLoraRank: 16,
    maxLoras: 1,
    maxCpuLoras: 1,
    maxModelLen: 2048,
    modules: [{ names: "model.layers.{0-3}.self_attn.q_proj", shape: [32, 64] }],
    templateDigest: digest,
    updatedAt: "2026-01-01T00:00:00.000Z",
  },
  adapter: undefined,
};
const twinOf = (derivedFrom: EngineRecord["derivedFrom"]): GateInput => ({
  ...input,
  engine: { ...(input.engine as EngineRecord), base: { name: "small-awq", revision: "1", digest }, derivedFrom },
});
const promoted = (loss: number, over: Partial<Evaluation> = {}): AdapterState => ({
  tenant: "acme",
  adapter: "pirate",
  engine: "local",
  base: "small",
  alias: 1,
  history: [],
  versions: [
    {
      version: 1,
      digest,
      manifest: { ...blob, kind: "adapter" },
      evidence: { ...blob, kind: "evidence" },
      runId: "r0",
      rank: 8,
      engineName: "e",
      status: "desired",
      reason: null,
      promote: "auto",
      evaluation: { ...evaluation, adapter_loss: loss, ...over },
      lastStepAt: "",
      createdAt: "",
      servedAt: null,
      trace: null,
    },
  ],
});
const doubt = (over: Partial<GateInput>) => gateDoubt({ ...input, ...over });
const verdict = (over: Partial<GateInput>) => decideGate({ ...input, ...over })?.code ?? "accepted";

describe("decideGate", () => {
  it("accepts what is better than the base, and what nobody evaluated", () => {
    expect(verdict({})).toBe("accepted");
    expect(verdict({ evaluation: null })).toBe("accepted");
  });

  it("accepts an adapter of the base that the engine's own was made of", () => {
    expect(verdict(twinOf({ name: "small", digest: base.digest }))).toBe("accepted");
    expect(verdict(twinOf(undefined))).toBe("ADAPTER_BASE_MISMATCH");
  });

  it.each<[string, Partial<GateInput>, string]>([
    ["no engine serves the base", { engine: undefined }, "BASE_UNKNOWN"],
    ["the base has other bytes", { manifest: { ...input.manifest, base: { ...base, digest } } }, "ADAPTER_BASE_MISMATCH"],
    ["the engine serves another base's twin", twinOf({ name: "large", digest: base.digest }), "ADAPTER_BASE_MISMATCH"],
    ["the engine serves a twin of what its base was before", twinOf({ name: "small", digest }), "ADAPTER_BASE_MISMATCH"],
    ["the adapter has another base", { adapter: { ...promoted(1), base: "large" } }, "ADAPTER_BASE_CHANGED"],
    ["its rank is too high", { manifest: { ...input.manifest, rank: 32 } }, "ADAPTER_RANK_TOO_HIGH"],
    ["a file is missing", { manifest: { ...input.manifest, files: [{ path: "adapter_model.bin", blob }] } }, "ADAPTER_FILES_MISSING"],
    ["the evidence is another adapter's", { evidence: { ...input.evidence, adapter: base.digest } }, "EVIDENCE_MISMATCH"],
    ["there are no probes", { evidence: { ...input.evidence, probes: [] } }, "PROOF_WITHOUT_PROBES"],
    [
      "training changed nothing",
      { evidence: { ...input.evidence, probes: [{ ...probe, first: { tokens: [1], base: [-1], adapter: [-1.001] } }] } },
      "NO_EFFECT",
    ],
    ["it is no better than the base", { evaluation: { ...evaluation, adapter_loss: 3 } }, "NOT_BETTER_THAN_BASE"],
    ["its loss is not a number", { evaluation: { ...evaluation, adapter_loss: Number.NaN } }, "NOT_BETTER_THAN_BASE"],
  ])("refuses when %s", (_when, over, code) => {
    expect(verdict(over)).toBe(code);
  });

  it.each<[string, GateInput["parts"], string]>([
    ["DoRA", { ...parts, config: { ...config, use_dora: true } }, "ADAPTER_FEATURE_UNSUPPORTED"],
    ["whole modules", { ...parts, config: { ...config, modules_to_save: ["lm_head"] } }, "ADAPTER_FEATURE_UNSUPPORTED"],
    ["biases", { ...parts, config: { ...config, bias: "all" } }, "ADAPTER_FEATURE_UNSUPPORTED"],
    ["scalings of its own for a module", { ...parts, config: { ...config, alpha_pattern: { q_proj: 4 } } }, "ADAPTER_NOT_CANONICAL"],
    ["a rank in its file that no engine serves", { ...parts, config: { ...config, r: 32 } }, "ADAPTER_RANK_TOO_HIGH"],
    ["integers", { ...parts, tensors: [weight("A", [8, 64], { dtype: "I8" }), weight("B", [32, 8])] }, "ADAPTER_DTYPE"],
    ["shapes of another base", { ...parts, tensors: [weight("A", [8, 63]), weight("B", [32, 8])] }, "ADAPTER_BASE_MISMATCH"],
    [
      "modules that the base lacks",
      { ...parts, tensors: parts.tensors.map((one) => ({ ...one, name: one.name.replace(".0.", ".4.") })) },
      "ADAPTER_MODULE_UNKNOWN",
    ],
    ["a file that cannot be read", { code: "ADAPTER_UNREADABLE", message: "it has 3 bytes" }, "ADAPTER_UNREADABLE"],
  ])("refuses %s by the headers of its files, before any replica loads it", (_what, found, code) => {
    expect(verdict({ parts: found })).toBe(code);
  });

  it("refuses what was made for another chat template than the engine applies, where it is known", () => {
    const applies = (templateDigest: typeof digest | null) => verdict({ engine: { ...(input.engine as EngineRecord), templateDigest } });
    expect(applies(`sha256:${"c".repeat(64)}`)).toBe("TEMPLATE_MISMATCH");
    expect(applies(null)).toBe("accepted");
  });

  it("gate: none asks for no evaluation, but still for the facts", () => {
    const none = { spec: { ...input.spec, gate: "none" as const } };
    expect(verdict({ ...none, evaluation: { ...evaluation, adapter_loss: 9 } })).toBe("accepted");
    expect(verdict({ ...none, manifest: { ...input.manifest, rank: 99 } })).toBe("ADAPTER_RANK_TOO_HIGH");
  });

  it("compares with the promoted version only when asked, and only on the same rows", () => {
    const strict = { spec: { ...input.spec, gate: "better-than-promoted" as const } };
    expect(verdict({ adapter: promoted(1.5) })).toBe("accepted");
    expect(verdict({ ...strict, adapter: promoted(1.5) })).toBe("NOT_BETTER_THAN_PROMOTED");
    expect(verdict({ ...strict, adapter: promoted(2.5) })).toBe("accepted");
    expect(verdict({ ...strict, adapter: promoted(1.5, { rows: 11 }) })).toBe("accepted");
    expect(verdict({ ...strict, adapter: promoted(1.5, { base_loss: 2.5 }) })).toBe("accepted");
    expect(verdict({ ...strict, adapter: undefined })).toBe("accepted");
  });

  it("knows the same rows by their digest, though another processor gives the base another loss", () => {
    const strict = { spec: { ...input.spec, gate: "better-than-promoted" as const } };
    const rows_digest = `sha256:${"1".repeat(64)}` as const;
    const here = { ...strict, evaluation: { ...evaluation, rows_digest } };
    const elsewhere = promoted(1.5, { rows_digest, base_loss: 3.01 });
    expect(verdict({ ...here, adapter: elsewhere })).toBe("NOT_BETTER_THAN_PROMOTED");
    expect(doubt({ ...here, adapter: elsewhere })).toBeUndefined();
    const otherRows = promoted(1.5, { rows_digest: `sha256:${"2".repeat(64)}` });
    expect(verdict({ ...here, adapter: otherRows })).toBe("accepted");
    expect(doubt({ ...here, adapter: otherRows })).toContain("on other rows");
    // Of an older trainer: no digest.
    expect(verdict({ ...here, adapter: promoted(1.5) })).toBe("NOT_BETTER_THAN_PROMOTED");
  });

  it("asks for accuracy only when told to", () => {
    const judged = (own: number | null, gate: GateInput["spec"]["gate"], other?: number) =>
      verdict({
        spec: { ...input.spec, gate, gate_accuracy: true },
        evaluation: { ...evaluation, base_accuracy: 0.4, adapter_accuracy: own },
        adapter: other === undefined ? undefined : promoted(2.5, { adapter_accuracy: other }),
      });
    expect(judged(0.4, "better-than-base")).toBe("accepted");
    expect(judged(0.39, "better-than-base")).toBe("LESS_ACCURATE_THAN_BASE");
    expect(judged(0.39, "none")).toBe("accepted");
    expect(judged(0.5, "better-than-promoted", 0.6)).toBe("LESS_ACCURATE_THAN_PROMOTED");
    expect(judged(0.5, "better-than-base", 0.6)).toBe("accepted");
    expect(verdict({ evaluation: { ...evaluation, base_accuracy: 0.4, adapter_accuracy: 0.1 } })).toBe("accepted");
    expect(judged(null, "better-than-base")).toBe("accepted");
    expect(gateDoubt({ ...input, spec: { ...input.spec, gate_accuracy: true } })).toContain("not measured");
  });

  it("says what it could not judge", () => {
    const strict = { spec: { ...input.spec, gate: "better-than-promoted" as const } };
    expect(doubt({})).toBeUndefined();
    expect(doubt({ adapter: promoted(1.5, { rows: 11 }) })).toBeUndefined(); // not asked
    expect(doubt({ ...strict, adapter: promoted(1.5) })).toBeUndefined();
    expect(doubt({ ...strict, adapter: undefined })).toBeUndefined();
    expect(doubt({ evaluation: null })).toContain("no rows were held out");
    const file = { kind: "adapter-file" as const, digest, size: 1 };
    const method = { type: "import" as const, source: "x", config: file, weights: file };
    expect(doubt({ evaluation: null, spec: { ...input.spec, method } })).toContain("was trained elsewhere");
    expect(doubt({ evaluation: null, spec: { ...input.spec, gate: "none" } })).toBeUndefined();
    expect(doubt({ ...strict, adapter: promoted(1.5, { rows: 11 }) })).toMatch(/on other rows \(11 rows, .*; this one: 10 rows/);
    expect(doubt({ ...strict, adapter: promoted(1.5, { base_loss: 2.5 }) })).toContain("base loss 2.5");
    const [version] = promoted(1.5).versions;
    const unjudged = { ...promoted(1.5), versions: version === undefined ? [] : [{ ...version, evaluation: null }] };
    expect(doubt({ ...strict, adapter: unjudged })).toContain("which was not evaluated");
    const accurate = {
      spec: { ...strict.spec, gate_accuracy: true },
      evaluation: { ...evaluation, base_accuracy: 0.4, adapter_accuracy: 0.5 },
    };
    expect(doubt({ ...accurate, adapter: promoted(2.5) })).toContain("accuracy of the promoted version 1 was not measured");
    expect(doubt({ ...accurate, adapter: promoted(2.5, { adapter_accuracy: 0.1 }) })).toBeUndefined();
  });
});

describe("of what learned from preferences the gate", () => {
  const measured: PreferenceEvaluation = {
    pairs: 40,
    accuracy: 0.75,
    accuracy_low: 0.6,
    accuracy_high: 0.86,
    margin: 0.3,
    chosen_logprob_change: -0.2,
    loss: 0.55,
  };
  const learned = (of: { type: string } & Record<string, unknown>, over: Partial<PreferenceEvaluation> = {}, gate = input.spec.gate) => ({
    spec: { ...input.spec, gate, method: method.parse(of) satisfies Method },
    // Chosen answers that became less likely are usual, and refuse nothing.
    evaluation: { ...evaluation, adapter_loss: 3.5, preference: { ...measured, ...over } },
  });

  it("asks whether the right side is preferred more often than by chance, whatever became of its loss as text", () => {
    for (const type of ["dpo", "orpo", "simpo", "kto"]) {
      expect(verdict(learned({ type }))).toBe("accepted");
      expect(verdict(learned({ type }, { accuracy_low: 0.5 }))).toBe("PREFERENCE_NOT_LEARNED");
      expect(verdict(learned({ type }, { accuracy_low: Number.NaN }))).toBe("PREFERENCE_NOT_LEARNED");
      expect(verdict(learned({ type }, { accuracy_low: 0.5 }, "none"))).toBe("accepted");
    }
    expect(verdict({ ...learned({ type: "dpo" }), spec: input.spec })).toBe("NOT_BETTER_THAN_BASE");
  });

  it.each<[{ type: string } & Record<string, unknown>, number]>([
    [{ type: "dpo" }, Math.LN2],
    [{ type: "dpo", loss_type: "robust", label_smoothing: 0.1 }, Math.LN2],
    [{ type: "dpo", loss_type: "hinge" }, 1],
    [{ type: "dpo", loss_type: "ipo", beta: 0.5 }, 1],
  ])("asks of %j for a loss below that of the base alone", (of, limit) => {
    expect(verdict(learned(of, { loss: limit - 0.01 }))).toBe("accepted");
    expect(verdict(learned(of, { loss: limit }))).toBe("PREFERENCE_LOSS_NOT_LOWER");
    expect(verdict(learned(of, { loss: Number.NaN }))).toBe("PREFERENCE_LOSS_NOT_LOWER");
    expect(verdict(learned(of, { loss: limit }, "none"))).toBe("accepted");
  });

  it("knows no such limit where the loss holds a supervised one", () => {
    expect(verdict(learned({ type: "dpo", sft_weight: 1 }, { loss: 3 }))).toBe("accepted");
    expect(verdict(learned({ type: "orpo" }, { loss: 3 }))).toBe("accepted");
  });

  it("compares with the promoted version by how often the right side is preferred, on the same rows", () => {
    const strict = learned({ type: "dpo" }, {}, "better-than-promoted");
    const other = (accuracy: number, over: Partial<Evaluation> = {}) => promoted(1, { preference: { ...measured, accuracy }, ...over });
    expect(verdict({ ...strict, adapter: other(0.8) })).toBe("NOT_BETTER_THAN_PROMOTED");
    expect(verdict({ ...strict, adapter: other(0.75) })).toBe("accepted");
    expect(verdict({ ...strict, adapter: other(0.8, { rows: 11 }) })).toBe("accepted");
    expect(doubt({ ...strict, adapter: other(0.8, { rows: 11 }) })).toContain("on other rows");
    expect(verdict({ ...strict, adapter: promoted(1) })).toBe("accepted");
    expect(doubt({ ...strict, adapter: promoted(1) })).toContain("which learned from no preferences");
  });
});
