/** Pure: judges an adapter before any engine loads it. Settings that vLLM would silently ignore are refused here. */
import { z } from "zod";
import { spellingsOf } from "./architectures.ts";
import type { ModuleShapes } from "./base-modules.ts";
import { judgedLoraFields, type Problem, refusedIn } from "@loraline/contracts";
import type { Tensor } from "./safetensors-header.ts";

export const adapterFiles = { config: "adapter_config.json", weights: "adapter_model.safetensors" } as const;

/** A tensor, with findings about its values if they were read; else only its header is known. */
export interface JudgedTensor extends Tensor {
  /** Values that are NaN or infinite. */
  notFinite?: number;
  allZero?: boolean;
}

export interface AdapterParts {
  /** Parsed adapter_config.json. */
  config: unknown;
  tensors: readonly JudgedTensor[];
}

export interface ServedBase {
  name: string;
  /** The unquantised base that this one was made of, whose adapters it serves, too. */
  derivedFrom?: string | undefined;
  /** Ranks the engine was started for. */
  maxLoraRank: number;
  /** The base's own modules, where they are known: names and shapes are then compared with them. */
  modules?: ModuleShapes | undefined;
}

export interface JudgeOptions {
  /**
   * The adapter was trained elsewhere and will be made canonical later. So different ranks and scalings for some modules are accepted, and
   * the name of its base may be longer (`HuggingFaceTB/SmolLM2-135M-Instruct`).
   */
  imported?: boolean;
  /** True: the base's name in the config is not compared. */
  anyBase?: boolean;
}

const configShape = z.looseObject({
  peft_type: z.literal("LORA"),
  r: z.int().min(1),
  lora_alpha: z.number(),
  target_modules: z.union([z.string(), z.array(z.string())]),
  base_model_name_or_path: z.string().nullish(),
  rank_pattern: z.record(z.string(), z.number()).nullish(),
  alpha_pattern: z.record(z.string(), z.number()).nullish(),
});

/** PEFT's name of a low-rank weight: `base_model.model.<module>.lora_A.weight`. */
const loraWeight = /^base_model\.model\.(.+)\.lora_(A|B)\.weight$/;

/** Initialisations that also change the base's weights. */
const changesBase = /^(?:pissa|olora|corda|loftq|lora_ga)/;

const isSet = (value: unknown): boolean =>
  !(
    value === null ||
    value === undefined ||
    value === false ||
    value === "none" ||
    (typeof value === "object" && Object.keys(value).length === 0)
  );

/** `HuggingFaceTB/SmolLM2-135M-Instruct`, `/models/smollm2_135m_instruct/` → `smollm2-135m-instruct` */
const bareName = (name: string): string =>
  (name.split(/[\\/]/).findLast((part) => part !== "") ?? name).toLowerCase().replaceAll(/[^a-z0-9]+/g, "-");

/** @returns all problems, the most basic ones first; empty: nothing found. */
export function judgeAdapter(
  { config: raw, tensors }: AdapterParts,
  base: ServedBase,
  { imported = false, anyBase = false }: JudgeOptions = {},
): Problem[] {
  const parsed = configShape.safeParse(raw);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    return [
      {
        code: "ADAPTER_CONFIG_INVALID",
        param: `${adapterFiles.config}: ${issue?.path.join(".") ?? ""}`,
        message: `${adapterFiles.config} is not the config of a LoRA: ${issue?.path.join(".")}: ${issue?.message}.`,
      },
    ];
  }
  const config = parsed.data;
  const problems: Problem[] = [];

  const named = config.base_model_name_or_path;
  const names = [base.name, ...(base.derivedFrom === undefined ? [] : [base.derivedFrom])];
  const isBase = typeof named !== "string" || names.some((name) => named === name || (imported && bareName(named) === bareName(name)));
  if (!isBase && !anyBase) {
    problems.push({
      code: "ADAPTER_BASE_MISMATCH",
      param: "base_model_name_or_path",
      message: `the adapter was trained on "${named}", but this engine serves "${base.name}". ${imported ? "If these are two names of one base, say so (--any-base); otherwise serve" : "Serve"} it on an engine of its own base.`,
    });
  }
  const ranks = tensors.flatMap(({ name, shape }) => (name.includes(".lora_A.") ? shape.slice(0, 1) : []));
  const rank =
    imported && ranks.length > 0
      ? ranks.reduce((most, one) => Math.max(most, one), 0)
      : Math.max(config.r, ...Object.values(config.rank_pattern ?? {}));
  if (rank > base.maxLoraRank) {
    problems.push({
      code: "ADAPTER_RANK_TOO_HIGH",
      param: "r",
      message: `the adapter has rank ${rank}, the engine serves ranks up to ${base.maxLoraRank}. Train a lower rank, or start the engine with a higher --max-lora-rank.`,
    });
  }
  for (const { name, why } of refusedIn(config, judgedLoraFields))
    problems.push({ code: "ADAPTER_FEATURE_UNSUPPORTED", param: name, message: `${adapterFiles.config} sets ${name}: ${why}.` });
  if (typeof config["init_lora_weights"] === "string" && changesBase.test(config["init_lora_weights"])) {
    problems.push({
      code: "ADAPTER_FEATURE_UNSUPPORTED",
      param: "init_lora_weights",
      message: `${adapterFiles.config} says init_lora_weights "${config["init_lora_weights"]}", which changes the base: the adapter alone would be wrong on the served one. Convert it with PEFT's path_initial_model_for_weight_conversion.`,
    });
  }
  if (!imported && (isSet(config.rank_pattern) || isSet(config.alpha_pattern))) {
    problems.push({
      code: "ADAPTER_NOT_CANONICAL",
      param: isSet(config.rank_pattern) ? "rank_pattern" : "alpha_pattern",
      message:
        "the adapter has ranks or scalings per module, which some versions of vLLM ignore without a word. Fold the scaling into lora_B and pad to one rank.",
    });
  }
  return [...problems, ...judgeTensors(tensors, imported && isSet(config.rank_pattern) ? undefined : config.r, base, imported)];
}

/** Keeps one problem of each kind, that of the first tensor, because an adapter has hundreds of tensors. */
function judgeTensors(tensors: readonly JudgedTensor[], expected: number | undefined, base: ServedBase, imported: boolean): Problem[] {
  const found = new Map<string, Problem>();
  const report = (code: string, param: string, message: string): void => {
    if (!found.has(code)) found.set(code, { code, param, message });
  };
  const pairs = new Map<string, { A?: JudgedTensor; B?: JudgedTensor }>();

  for (const tensor of tensors) {
    const { name, dtype, notFinite = 0 } = tensor;
    const [, module, part] = loraWeight.exec(name) ?? [];
    if (module === undefined || part === undefined) {
      report(
        "ADAPTER_TENSOR_UNKNOWN",
        name,
        `tensor "${name}" is no low-rank weight (base_model.model.<module>.lora_A.weight); vLLM would refuse or ignore it.`,
      );
      continue;
    }
    if (!["BF16", "F16", "F32"].includes(dtype)) {
      report("ADAPTER_DTYPE", name, `tensor "${name}" has type ${dtype}; LoRA weights are BF16, F16 or F32.`);
    }
    if (notFinite > 0)
      report(
        "ADAPTER_NAN",
        name,
        `tensor "${name}" holds ${notFinite} values that are NaN or infinite: the training diverged. Lower the learning rate.`,
      );
    const pair = pairs.get(module) ?? {};
    pair[part as "A" | "B"] = tensor;
    pairs.set(module, pair);
  }

  for (const [module, { A, B }] of pairs) {
    if (A === undefined || B === undefined) {
      report(
        "ADAPTER_TENSOR_MISSING",
        module,
        `module "${module}" has lora_${A === undefined ? "B" : "A"} but no lora_${A === undefined ? "A" : "B"}.`,
      );
      continue;
    }
    if (/\.experts(?:\.|$)/.test(module)) {
      report(
        "ADAPTER_FEATURE_UNSUPPORTED",
        module,
        `the adapter adapts experts ("${module}"), and engines are started without LoRA on experts: it takes a slot for each expert, and vLLM's CPU build has no kernel for it. Train it on the other modules, such as those of attention.`,
      );
      continue;
    }
    const [rankA, inputs] = A.shape;
    const [outputs, rankB] = B.shape;
    const rank = expected ?? rankA;
    if (A.shape.length !== 2 || B.shape.length !== 2 || rankA !== rank || rankB !== rank) {
      report(
        "ADAPTER_SHAPE_MISMATCH",
        module,
        `module "${module}" has lora_A [${A.shape.join(", ")}] and lora_B [${B.shape.join(", ")}]; with r = ${rank} they must be [${rank}, inputs] and [outputs, ${rank}].`,
      );
      continue;
    }
    if (base.modules === undefined) continue;
    const { modules } = base;
    // One from elsewhere gets the names of its base when it is made canonical.
    const named = imported ? spellingsOf(module).find((each) => modules.has(each)) : module;
    const weight = named === undefined ? undefined : modules.get(named);
    if (weight === undefined) {
      report(
        "ADAPTER_MODULE_UNKNOWN",
        module,
        `base "${base.name}" has no linear module "${module}": vLLM would ignore these weights without a word.`,
      );
    } else if (weight[0] !== outputs || weight[1] !== inputs) {
      report(
        "ADAPTER_BASE_MISMATCH",
        module,
        `module "${module}" of the adapter maps ${inputs} to ${outputs}, that of base "${base.name}" ${weight[1]} to ${weight[0]}: it was trained on another base.`,
      );
    }
  }
  if (pairs.size === 0) {
    report("ADAPTER_EMPTY", adapterFiles.weights, `${adapterFiles.weights} holds no low-rank weights.`);
  } else if ([...pairs.values()].every(({ B }) => B?.allZero === true)) {
    report(
      "ADAPTER_ZERO",
      adapterFiles.weights,
      "every lora_B is zero: the adapter does nothing. Check the learning rate and the dataset.",
    );
  }
  return [...found.values()];
}
