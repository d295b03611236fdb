/** Pure: may a trained version be served? Static facts first, then what was measured on held-out rows. */
import { adapterFiles, type AdapterParts, expandModules, judgeAdapter, kinship } from "@loraline/models";
import {
  type AdapterManifest,
  type AdapterState,
  type AdapterVersion,
  byMethod,
  type Digest,
  type EngineRecord,
  engineRankFor,
  type Evaluation,
  type Evidence,
  isPreference,
  type MethodOf,
  type MethodTable,
  preferenceWords,
  type Problem,
  type RunSpec,
  unreadDigest,
} from "@loraline/contracts";
import { proofLimits, recordedEffect } from "../../decide-proof.ts";

export interface GateInput {
  spec: Pick<RunSpec, "base" | "adapter" | "gate" | "gate_accuracy" | "method">;
  digest: Digest;
  manifest: AdapterManifest;
  /** Configuration and tensors as the adapter's files declare them, or the reason why they cannot be read. */
  parts: AdapterParts | Problem;
  evidence: Evidence;
  evaluation: Evaluation | null;
  /** The engine that serves the base; undefined: there is none. */
  engine: EngineRecord | undefined;
  /** The adapter's state; undefined: this is its first version. */
  adapter: AdapterState | undefined;
}

type Judge = (input: GateInput) => Problem | undefined;

const lossText = (value: number): string => value.toFixed(4);

const engineServesBase: Judge = ({ spec, engine }) => {
  if (engine === undefined) return { code: "BASE_UNKNOWN", param: "base", message: `no engine serves base "${spec.base}" any more.` };
  // The base was read before, so its digest is known, and the replicas still serve that base.
  if (!engine.problem || engine.base.digest !== unreadDigest) return undefined;
  return { code: "BASE_UNAVAILABLE", param: "base", message: `nothing is known of the base: ${engine.problem.message}` };
};

const sameBaseOrTwin: Judge = ({ manifest, engine }) => {
  if (engine === undefined || kinship(engine, manifest.base) !== undefined) return undefined;
  const { base, derivedFrom } = engine;
  const madeOf = derivedFrom ? `, which was made of "${derivedFrom.name}" (${derivedFrom.digest})` : "";
  return {
    code: "ADAPTER_BASE_MISMATCH",
    param: "base",
    message: `trained on base "${manifest.base.name}" (${manifest.base.digest}), but engine "${engine.engine}" serves "${base.name}" (${base.digest})${madeOf}. Train it again on the base that is served; or, if that is a quantised copy of "${manifest.base.name}", have the engine say so (derivedFrom).`,
  };
};

const oneBasePerAdapter: Judge = ({ spec, adapter }) =>
  adapter !== undefined && adapter.base !== spec.base
    ? {
        code: "ADAPTER_BASE_CHANGED",
        param: "adapter",
        message: `adapter "${spec.adapter}" is one of base "${adapter.base}"; versions of one adapter share their base. Choose another name.`,
      }
    : undefined;

const rankFits: Judge = ({ manifest, engine }) =>
  engine !== undefined && manifest.rank > engine.maxLoraRank
    ? {
        code: "ADAPTER_RANK_TOO_HIGH",
        param: "lora.r",
        message: `rank ${manifest.rank} is above the ${engine.maxLoraRank} that engine "${engine.engine}" serves. Lower lora.r, or have the engine started for higher ranks (on one machine: \`loraline up --max-lora-rank ${engineRankFor(manifest.rank)}\`; in the chart: maxLoraRank).`,
      }
    : undefined;

const filesAreThere: Judge = ({ manifest }) => {
  const missing = Object.values(adapterFiles).filter((name) => !manifest.files.some(({ path }) => path === name));
  return missing.length > 0
    ? { code: "ADAPTER_FILES_MISSING", param: missing[0], message: `the adapter has no ${missing.join(" and no ")}.` }
    : undefined;
};

/** Judges the headers of the adapter's files alone, before a replica fetches them. Each agent checks the values of the tensors later. */
const filesAreRight: Judge = ({ parts, engine }) => {
  if ("code" in parts) return parts;
  if (engine === undefined) return undefined;
  const modules = engine.modules ? expandModules(engine.modules) : undefined;
  const { base, derivedFrom, maxLoraRank } = engine;
  return judgeAdapter(parts, { name: base.name, derivedFrom: derivedFrom?.name, maxLoraRank, modules })[0];
};

const sameTemplate: Judge = ({ evidence, engine }) => {
  const applied = engine?.templateDigest;
  return typeof applied === "string" && applied !== evidence.templateDigest
    ? {
        code: "TEMPLATE_MISMATCH",
        param: "tokenize",
        message: `it was made with the chat template ${evidence.templateDigest}, but engine "${engine?.engine}" applies ${applied}: it would be asked in a form it has never seen. Start the engine with the base's own template, or train again with the engine's.`,
      }
    : undefined;
};

const evidenceIsIts: Judge = ({ evidence, digest }) =>
  evidence.adapter === digest
    ? undefined
    : { code: "EVIDENCE_MISMATCH", param: "evidence", message: `the evidence is of adapter ${evidence.adapter}, not of ${digest}.` };

const canBeProven: Judge = ({ evidence }) => {
  if (evidence.probes.length === 0) {
    return {
      code: "PROOF_WITHOUT_PROBES",
      param: "evidence",
      message: "the trainer recorded no probes, so no replica could be proven to apply it.",
    };
  }
  const effect = recordedEffect(evidence.probes);
  return effect < proofLimits.bfloat16.leastEffect
    ? {
        code: "NO_EFFECT",
        message: `the adapter answers like the base (its logprobs on the probes differ by ${lossText(effect)}): training changed nothing. Raise training.learning_rate or the number of steps, or look at the dataset.`,
      }
    : undefined;
};

const betterThanBase: Judge = ({ spec, evaluation }) =>
  spec.gate !== "none" && evaluation !== null && !isPreference(spec.method) && !(evaluation.adapter_loss < evaluation.base_loss)
    ? {
        code: "NOT_BETTER_THAN_BASE",
        param: "gate",
        message: `held-out loss is ${lossText(evaluation.adapter_loss)} with the adapter and ${lossText(evaluation.base_loss)} without it (${evaluation.rows} rows). More or better data, fewer epochs or a lower learning rate may help; gate: none serves it anyway.`,
      }
    : undefined;

/** The loss of each kind of DPO where the adapter prefers nothing, as the base alone does. */
const lossOfBase: Record<MethodOf<"dpo">["loss_type"], (beta: number) => number> = {
  sigmoid: () => Math.LN2,
  robust: () => Math.LN2,
  hinge: () => 1,
  ipo: (beta) => 1 / (2 * beta) ** 2,
};

const prefersTheRightSide: Judge = ({ spec, evaluation }) => {
  const measured = evaluation?.preference;
  if (spec.gate === "none" || !measured || !isPreference(spec.method)) return undefined;
  if (!(measured.accuracy_low > 0.5)) {
    return {
      code: "PREFERENCE_NOT_LEARNED",
      param: "gate",
      message: `${preferenceWords(measured)}: that may be chance, since the interval reaches down to half. More pairs (holdout holds some out for judging), more steps or a higher learning rate may help; gate: none serves it anyway.`,
    };
  }
  const { method } = spec;
  const limit = method.type === "dpo" && method.sft_weight === 0 ? lossOfBase[method.loss_type](method.beta) : Number.POSITIVE_INFINITY;
  return measured.loss < limit
    ? undefined
    : {
        code: "PREFERENCE_LOSS_NOT_LOWER",
        param: "gate",
        message: `held-out loss is ${lossText(measured.loss)}, and ${lossText(limit)} is what the base alone has: a few answers are preferred much too little, or the wrong way round. Fewer epochs, a lower learning rate or method.label_smoothing may help; gate: none serves it anyway.`,
      };
};

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

const asAccurateAsBase: Judge = ({ spec, evaluation }) => {
  const { base_accuracy: base, adapter_accuracy: own, rows } = evaluation ?? {};
  if (spec.gate === "none" || spec.gate_accuracy !== true || typeof base !== "number" || typeof own !== "number") return undefined;
  return own >= base
    ? undefined
    : {
        code: "LESS_ACCURATE_THAN_BASE",
        param: "gate_accuracy",
        message: `${percent(own)} of the held-out tokens are the likeliest one with the adapter, ${percent(base)} without it (${rows} rows). Without gate_accuracy the held-out loss alone decides.`,
      };
};

/**
 * Losses are comparable only on the same rows. Evaluations of older trainers say no digest of them: there the rows are the same when the
 * base's loss on them is the same. Otherwise its loss does not decide, because it depends on the processor: on 113 tokens it was 5.070 in bf16
 * and 5.084 in float32.
 */
export const sameRows = (a: Evaluation, b: Evaluation): boolean =>
  a.rows_digest && b.rows_digest
    ? a.rows_digest === b.rows_digest
    : a.rows === b.rows && a.supervised_tokens === b.supervised_tokens && Math.abs(a.base_loss - b.base_loss) <= 1e-3 * a.base_loss;

const promotedOf = (adapter: AdapterState | undefined): AdapterVersion | undefined =>
  adapter?.versions.find(({ version }) => version === adapter.alias);

const betterThanPromoted: Judge = ({ spec, evaluation, adapter }) => {
  const promoted = promotedOf(adapter);
  if (spec.gate !== "better-than-promoted" || evaluation === null || !promoted?.evaluation || isPreference(spec.method)) return undefined;
  return sameRows(evaluation, promoted.evaluation) && evaluation.adapter_loss > promoted.evaluation.adapter_loss
    ? {
        code: "NOT_BETTER_THAN_PROMOTED",
        param: "gate",
        message: `held-out loss is ${lossText(evaluation.adapter_loss)}, that of the promoted version ${promoted.version} on the same ${evaluation.rows} rows ${lossText(promoted.evaluation.adapter_loss)}. gate: better-than-base serves it anyway.`,
      }
    : undefined;
};

const prefersAsOftenAsPromoted: Judge = ({ spec, evaluation, adapter }) => {
  const promoted = promotedOf(adapter);
  const [own, other] = [evaluation?.preference, promoted?.evaluation?.preference];
  if (spec.gate !== "better-than-promoted" || !evaluation || !promoted?.evaluation || !own || !other) return undefined;
  return sameRows(evaluation, promoted.evaluation) && own.accuracy < other.accuracy
    ? {
        code: "NOT_BETTER_THAN_PROMOTED",
        param: "gate",
        message: `the right side is preferred in ${percent(own.accuracy)} of the held-out comparisons, by the promoted version ${promoted.version} in ${percent(other.accuracy)} of the same. gate: better-than-base serves it anyway.`,
      }
    : undefined;
};

const asAccurateAsPromoted: Judge = ({ spec, evaluation, adapter }) => {
  const promoted = promotedOf(adapter);
  if (spec.gate !== "better-than-promoted" || spec.gate_accuracy !== true || !evaluation || !promoted?.evaluation) return undefined;
  const [own, other] = [evaluation.adapter_accuracy, promoted.evaluation.adapter_accuracy];
  if (typeof own !== "number" || typeof other !== "number" || !sameRows(evaluation, promoted.evaluation) || own >= other) return undefined;
  return {
    code: "LESS_ACCURATE_THAN_PROMOTED",
    param: "gate_accuracy",
    message: `${percent(own)} of the held-out tokens are the likeliest one, ${percent(other)} with the promoted version ${promoted.version} on the same ${evaluation.rows} rows. Without gate_accuracy the held-out loss alone decides.`,
  };
};

const chain: readonly Judge[] = [
  engineServesBase,
  oneBasePerAdapter,
  sameBaseOrTwin,
  rankFits,
  filesAreThere,
  filesAreRight,
  evidenceIsIts,
  sameTemplate,
  canBeProven,
  betterThanBase,
  prefersTheRightSide,
  asAccurateAsBase,
  betterThanPromoted,
  prefersAsOftenAsPromoted,
  asAccurateAsPromoted,
];

/** The first reason to refuse the version; undefined: it is accepted. */
export function decideGate(input: GateInput): Problem | undefined {
  for (const judge of chain) {
    const problem = judge(input);
    if (problem !== undefined) return problem;
  }
  return undefined;
}

const nothingHeldOut = (): string => "nothing was judged: no rows were held out, and there is no validation file.";
/** Says why there is no evaluation. */
const unjudged: MethodTable<[], string> = {
  supervised: nothingHeldOut,
  dpo: nothingHeldOut,
  orpo: nothingHeldOut,
  simpo: nothingHeldOut,
  kto: nothingHeldOut,
  judge: nothingHeldOut,
  import: () => "nothing was judged: an adapter that was trained elsewhere has no held-out rows here.",
};

/**
 * Says which comparison the gate was asked for and could not make; undefined: there is none. A version that could not be compared with
 * the promoted one is served under its number, and only a person can promote it.
 */
export function gateDoubt({ spec, evaluation, adapter }: Pick<GateInput, "spec" | "evaluation" | "adapter">): string | undefined {
  if (spec.gate === "none") return undefined;
  if (evaluation === null) return byMethod(unjudged, spec.method);
  if (spec.gate_accuracy === true && typeof evaluation.adapter_accuracy !== "number") return "its accuracy was not measured.";
  const promoted = promotedOf(adapter);
  if (spec.gate !== "better-than-promoted" || promoted === undefined) return undefined;
  const cannot = `its held-out loss cannot be compared with that of the promoted version ${promoted.version}`;
  const { evaluation: other } = promoted;
  if (!other) return `${cannot}, which was not evaluated.`;
  if (isPreference(spec.method) && !other.preference)
    return `it cannot be compared with the promoted version ${promoted.version}, which learned from no preferences.`;
  if (sameRows(evaluation, other)) {
    const unmeasured = spec.gate_accuracy === true && typeof other.adapter_accuracy !== "number";
    return unmeasured
      ? `its accuracy cannot be compared: the accuracy of the promoted version ${promoted.version} was not measured.`
      : undefined;
  }
  const of = (one: Evaluation): string => `${one.rows} rows, ${one.supervised_tokens} tokens, base loss ${lossText(one.base_loss)}`;
  return `${cannot}, which was evaluated on other rows (${of(other)}; this one: ${of(evaluation)}). Give both runs the same validation file.`;
}
