/** Judges a run spec, and an adapter from elsewhere, against the engines before any work is done. */
import { isInWrapper } from "./architectures.ts";
import { expandModules } from "./base-modules.ts";
import {
  beginsWithTheBase,
  byMethod,
  type EngineRecord,
  engineRankFor,
  type Method,
  type MethodOf,
  type MethodTable,
  type Problem,
  publishedRank,
  type RunSpec,
  isPreference,
} from "@loraline/contracts";
import { type AdapterParts, judgeAdapter } from "./judge-adapter.ts";
import { isNamed, judgePattern, patternBudget, shortNames } from "./module-patterns.ts";
import { enginesServing } from "./twins.ts";

/** Pure. @returns the problems of a spec that the engines can never serve; empty: nothing found. */
export function judgeRunSpec(spec: RunSpec, engines: readonly EngineRecord[]): Problem[] {
  const those = enginesServing(engines, spec.base);
  const engine = those.find((candidate) => !candidate.problem) ?? those[0];
  if (engine?.problem) {
    const message = `base "${spec.base}" cannot be used now: ${engine.problem.message}`;
    return [{ code: "BASE_UNAVAILABLE", param: "base", message }];
  }
  if (engine === undefined) {
    const known = engines.map((candidate) => candidate.base.name).sort();
    return [
      {
        code: "BASE_UNKNOWN",
        param: "base",
        message: `base "${spec.base}" is not served here. ${known.length === 0 ? "No engine is registered yet." : `Served: ${[...new Set(known)].join(", ")}. (On one machine \`loraline bases\` lists what can be; \`loraline up --base A --base B\` serves several.)`}`,
      },
    ];
  }
  const problems: Problem[] = [];
  if (spec.canary !== undefined && spec.promote !== "canary") {
    problems.push({
      code: "CANARY_UNUSED",
      param: "canary",
      message: `canary has settings, but promote is "${spec.promote}", which does not use them. Set promote: canary, or remove canary.`,
    });
  }
  return [...problems, ...byMethod(judges, spec.method, spec, engine)];
}

/** The checks for each method. */
const judges: MethodTable<[spec: RunSpec, engine: EngineRecord], Problem[]> = {
  supervised: (_, spec, engine) => judgeTraining(spec, engine),
  dpo: judgePreferences,
  orpo: judgePreferences,
  simpo: judgePreferences,
  kto: judgePreferences,
  judge: judgePreferences,
  // An import trains nothing, so ranks, lengths and targets in the spec have no effect. The adapter is judged by its files.
  import: () => [],
};

/** Settings that are right for a supervised run and would have no effect, or a harmful one, on preferences. A judge is trained like others. */
function judgePreferences(method: Method, spec: RunSpec, engine: EngineRecord): Problem[] {
  const { tokenize, training, gate_accuracy } = spec;
  const smooths = method.type === "dpo" && method.label_smoothing > 0 && (method.loss_type === "hinge" || method.loss_type === "ipo");
  const compares = isPreference(method);
  const unfit: [param: string, isUnfit: boolean, why: string][] = [
    [
      "tokenize.too_long",
      tokenize.too_long === "trim-prompt",
      "an answer that is cut cannot be compared; a pair with a longer side is dropped and told",
    ],
    [
      "training.label_smoothing_factor",
      compares && (training.label_smoothing_factor ?? 0) > 0,
      "the loss compares answers; dpo has method.label_smoothing",
    ],
    [
      "training.neftune_noise_alpha",
      compares && (training.neftune_noise_alpha ?? 0) > 0,
      "noise would be taken for a difference between the answers",
    ],
    ["gate_accuracy", compares && gate_accuracy === true, "the gate judges how often the chosen answer is preferred, anyway"],
    [
      "lora.init_lora_weights",
      (method.type === "dpo" || method.type === "kto") && beginsWithTheBase(spec.lora.init_lora_weights),
      "it changes the base during training, with which the method compares",
    ],
    [
      "training.fsdp",
      (method.type === "dpo" || method.type === "kto") && isSharded(spec),
      "its reference is computed by each GPU by itself, which needs the whole base",
    ],
    ["method.label_smoothing", smooths, `loss_type ${method.type === "dpo" ? method.loss_type : ""} does not use it`],
  ];
  const problems = unfit.flatMap(([param, isUnfit, why]): Problem[] =>
    isUnfit
      ? [{ code: "SETTING_NOT_FOR_METHOD", param, message: `${param} does not go with the method ${method.type}: ${why}. Remove it.` }]
      : [],
  );
  return [...problems, ...judgeTraining(spec, engine)];
}

function judgeTraining(spec: RunSpec, engine: EngineRecord): Problem[] {
  const problems: Problem[] = [];
  const ranks: [string, number][] = [["lora.r", spec.lora.r]];
  for (const [pattern, rank] of Object.entries(spec.lora.rank_pattern ?? {})) ranks.push([`lora.rank_pattern.${pattern}`, rank]);
  const init = spec.lora.init_lora_weights;
  for (const [param, trained] of ranks) {
    const rank = publishedRank(trained, init);
    if (rank > engine.maxLoraRank) {
      const doubled = rank === trained ? "" : `, which init_lora_weights ${init} publishes as ${rank}`;
      problems.push({
        code: "RANK_TOO_HIGH",
        param,
        message: `${param} is ${trained}${doubled}, but engine "${engine.engine}" serves ranks up to ${engine.maxLoraRank}. Lower it, or have the engine started for higher ranks (on one machine: \`loraline up --max-lora-rank ${engineRankFor(rank)}\`; in the chart: maxLoraRank).`,
      });
    }
  }
  if (spec.tokenize.max_length > engine.maxModelLen) {
    problems.push({
      code: "MAX_LENGTH_TOO_HIGH",
      param: "tokenize.max_length",
      message: `tokenize.max_length is ${spec.tokenize.max_length}, but engine "${engine.engine}" serves sequences up to ${engine.maxModelLen} tokens. Lower it, or, if the base was made for it, have the engine started with a longer context (on one machine: \`loraline up --max-model-len ${spec.tokenize.max_length}\`; in the chart: maxModelLen).`,
    });
  }
  if (spec.quantization !== undefined && isSharded(spec)) {
    problems.push({
      code: "SPEC_INVALID",
      param: "training.fsdp",
      message: `training.fsdp shares the base out among the GPUs, and with quantization ${spec.quantization} each holds all of it. Remove one of them.`,
    });
  }
  if (spec.quantization !== undefined && engine.modules?.some(({ names }) => isInWrapper(names)) === true) {
    problems.push({
      code: "QUANTIZATION_UNSUPPORTED",
      param: "quantization",
      message: `quantization: base "${engine.base.name}" is a language model in a multimodal wrapper, which is trained as it is. Remove quantization, or choose another base.`,
    });
  }
  if (spec.init_from !== undefined && beginsWithTheBase(init)) {
    problems.push({
      code: "SPEC_INVALID",
      param: "lora.init_lora_weights",
      message: `lora.init_lora_weights ${init} begins with a part of the base, and init_from with a version. Remove one of them.`,
    });
  }
  if (isSharded(spec) && beginsWithTheBase(init)) {
    problems.push({
      code: "SPEC_INVALID",
      param: "training.fsdp",
      message: `training.fsdp leaves the base as it is, and lora.init_lora_weights ${init} changes it. Remove one of them.`,
    });
  }
  return [...problems, ...judgeTargets(spec.lora, engine)];
}

const isSharded = ({ training: { fsdp = false } }: RunSpec): boolean => fsdp === true || (fsdp !== false && fsdp.length > 0);

/** Pure. @returns the problems of an imported adapter that the engine of its base can never serve; empty: nothing found, or no such engine. */
export function judgeImport(
  parts: AdapterParts,
  { base: name, any_base }: { base: string } & Pick<MethodOf<"import">, "any_base">,
  engines: readonly EngineRecord[],
): Problem[] {
  const [engine] = enginesServing(engines, name);
  if (engine === undefined) return [];
  const modules = engine.modules ? expandModules(engine.modules) : undefined;
  const served = { name: engine.base.name, derivedFrom: engine.derivedFrom?.name, maxLoraRank: engine.maxLoraRank, modules };
  return judgeAdapter(parts, served, { imported: true, anyBase: any_base === true });
}

/** Checks which modules of the base the LoRA's patterns match. A pattern that matches nothing is a typing error, found before a device is waited for. */
function judgeTargets(lora: RunSpec["lora"], { base, modules }: EngineRecord): Problem[] {
  const problems: Problem[] = [];
  const budget = patternBudget();
  const names = modules === null || modules === undefined ? undefined : [...expandModules(modules).keys()];
  const exist = names === undefined ? "" : ` Names in base "${base.name}": ${shortNames(names).join(", ")}.`;
  const refuse = (code: string, param: string, message: string): void => {
    problems.push({ code, param, message: `${param}${message}` });
  };
  /** @returns the matches of a pattern; undefined: they are not known here, or the pattern is refused. */
  const matcher = (param: string, pattern: string, wrap?: (source: string) => string): ((name: string) => boolean) | undefined => {
    const verdict = judgePattern(pattern, wrap, budget);
    if (verdict.kind === "usable") return verdict.test;
    if (verdict.kind === "costly") {
      refuse(
        "PATTERN_TOO_COSTLY",
        param,
        ` "${pattern.slice(0, 100)}" is refused: ${verdict.why}. Give a list of module names, or a simpler expression.`,
      );
    } else if (verdict.kind === "invalid") {
      refuse(
        "TARGET_MODULES_INVALID",
        param,
        ` "${pattern}" is not a valid regular expression: ${verdict.why}. Give a list of module names, a valid regular expression, or "all-linear".`,
      );
    }
    return undefined;
  };
  /** @returns the modules that a list, a name or an expression selects. */
  const chosen = (param: string, given: string | string[]): string[] | undefined => {
    if (given === "all-linear") return names;
    const list = typeof given !== "string" ? given : names === undefined || !shortNames(names).includes(given) ? undefined : [given];
    if (list === undefined) {
      const matches = matcher(param, given as string);
      return matches === undefined || names === undefined ? undefined : names.filter(matches);
    }
    if (names === undefined) return undefined;
    const unknown = list.filter((each) => !names.some((name) => isNamed(name, [each])));
    if (unknown.length > 0 && param === "lora.target_modules") {
      refuse(
        "NO_TARGET_MODULES",
        param,
        `: no linear module of base "${base.name}" is called ${unknown.map((each) => `"${each}"`).join(", ")}.${exist}`,
      );
      return undefined;
    }
    return names.filter((name) => isNamed(name, list));
  };

  const targets = chosen("lora.target_modules", lora.target_modules);
  const excluded = lora.exclude_modules === undefined ? [] : chosen("lora.exclude_modules", lora.exclude_modules);
  if (targets?.length === 0) refuse("NO_TARGET_MODULES", "lora.target_modules", ` matches nothing in base "${base.name}".${exist}`);
  const left = excluded === undefined ? undefined : targets?.filter((name) => !excluded.includes(name));
  if (left?.length === 0 && targets?.length !== 0) {
    refuse("NO_TARGET_MODULES", "lora.exclude_modules", " leaves out everything that lora.target_modules matches.");
  }

  const layerPatterns = typeof lora.layers_pattern === "string" ? [lora.layers_pattern] : (lora.layers_pattern ?? []);
  const layersFound = layerPatterns.map((pattern) => matcher("lora.layers_pattern", pattern)).every((matches) => matches !== undefined);
  const asList = Array.isArray(lora.target_modules) || lora.target_modules === "all-linear" || names === undefined;
  if (lora.layers_to_transform !== undefined && !asList && !shortNames(names).includes(lora.target_modules as string)) {
    refuse(
      "LAYERS_NEED_NAMES",
      "lora.layers_to_transform",
      " works with a list of names in lora.target_modules only; put the layers into the expression.",
    );
  }
  if (lora.layers_pattern !== undefined && lora.layers_to_transform === undefined) {
    refuse("LAYERS_NEED_NAMES", "lora.layers_pattern", " works together with lora.layers_to_transform only.");
  }
  if (lora.layers_to_transform !== undefined && layersFound && left !== undefined && problems.length === 0) {
    const wanted = [lora.layers_to_transform].flat();
    const layers = new Set(left.flatMap((name) => layerOf(name, layerPatterns)));
    const unknown = wanted.filter((layer) => !layers.has(layer));
    if (unknown.length > 0) {
      const has = layers.size === 0 ? "none that lora.layers_pattern finds" : `${Math.min(...layers)} to ${Math.max(...layers)}`;
      refuse(
        "LAYERS_UNKNOWN",
        "lora.layers_to_transform",
        `: base "${base.name}" has no layer ${unknown.slice(0, 5).join(", ")}; its layers are ${has}.`,
      );
    }
  }
  for (const field of ["rank_pattern", "alpha_pattern"] as const) {
    for (const key of Object.keys(lora[field] ?? {})) {
      const param = `lora.${field}.${key}`;
      const matches = matcher(param, key, (source) => String.raw`^(?:.*\.)?(?:${source})$`);
      if (matches !== undefined && left !== undefined && left.length > 0 && !left.some(matches)) {
        refuse("PATTERN_UNUSED", param, ` matches none of the modules that are trained, so it would be ignored.${exist}`);
      }
    }
  }
  return problems;
}

/** @returns the number of a module's layer, taken from its name as PEFT does. */
function layerOf(name: string, patterns: readonly string[]): number[] {
  const expressions = patterns.length === 0 ? [String.raw`[^.]*`] : patterns;
  for (const pattern of expressions) {
    const found = new RegExp(String.raw`^.*\.(?:${pattern})\.(\d+)\.`).exec(name)?.[1];
    if (found !== undefined) return [Number(found)];
  }
  return [];
}
