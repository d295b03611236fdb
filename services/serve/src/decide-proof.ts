/**
 * The proof that a replica applies an adapter. The trainer recorded, for some prompts (probes), the logprobs of candidates for the next
 * token, with the adapter and without it. The replica is asked for the same logprobs, and its answers are compared with the record.
 *
 * Two values are judged. The agreement: the mean difference between the replica's natural logprobs and the recorded ones, over tokens.
 * The angle: the adapter's effect on the replica is plotted against its recorded effect, and a line is fitted; 45° means that the
 * replica applies the adapter with the right scale. Both effects have the same rounding errors, so the line is fitted by total least
 * squares. Each probe is centred first, because a shift that all its logprobs share has no meaning. The standard error of the angle
 * comes from leaving out one probe at a time (jackknife).
 *
 * The limits depend on the two number formats in which was recorded and is answered.
 *
 * Both in bf16. The limits come from measurements: PEFT in bf16 against vLLM 0.32 in bf16, both on the CPU, SmolLM2-135M; the union of the 32 likeliest tokens
 * of base and adapter; eight prompts for weak adapters, four for strong ones. Adapters by training: persona, all linear modules, r = 8
 * and 16 (strong: effect 8.8 and 5.5; medium: 1.6 and 1.2; weak: 0.36), q and v only, r = 4 (0.15), hardly trained (five of 0.06 to 0.07).
 *
 *                          agreement                             angle, degrees ± standard error
 *   recorded effect        8.8   5.5   1.6   1.2   0.36  0.15    8.8    5.5    1.6    1.2    0.36    0.15
 *   the right bytes        0.09  0.12  0.06  0.07  0.06  0.07    45±0   45±0   45±0   45±0   45±0    39±2
 *   scaling × 2            2.3   3.8   0.45  0.80  0.43  0.18    53±0   54±1   48±1   52±2   67±3    65±2
 *   scaling × 0.5          4.3   2.5   0.65  0.65  0.28  0.11    34±1   33±1   33±2   25±2   19±1    19±2
 *   scaling × 1.25         0.90  1.7   0.16  0.25  0.13  0.08    48±0   48±0   46±0   48±1   53±1    53±3
 *   scaling × 0.8          1.2   1.2   0.18  0.23  0.12  0.09    42±0   41±0   43±1   41±0   37±1    38±4
 *   layers shifted by one  8.8   5.8   1.7   1.2   0.38  0.16    1±0    0±0    0±0    1±1    3±2     0±5
 *   one layer of 30 zero   0.38  0.56  0.08  0.08  0.06  0.08    44±0   44±0   44±0   44±0   44±0    36±3
 *   lora_B zero, misnamed  the effect is exactly 0 (vLLM loads misnamed modules without a word)
 *   the replica's base     0.075 to 0.084 (root mean square 0.10); another request for the same says the same to the last bit
 *
 * Limit of the agreement: rounding causes a difference of 0.1 plus 1 % of the effect, so 0.25 + 1.5 % are allowed. Limit of the angle:
 * 3° + 4 standard errors + the bend that rounding causes where it is not far below the effect (10° where both are equal). With these
 * limits a scale of half or twice the right one is found from an effect of 0.15 on; a scale that is wrong by a quarter is found for
 * strong adapters and for effects of 0.2 to 0.5, but rarely in between, where a trained persona saturates.
 *
 * Below an effect of about 0.15 the scale cannot be judged, and more tokens would not help: the recorded effect is then mostly rounding.
 * Hardly trained adapters have an effect of 0.03 to 0.12 in float32. In bf16 both PEFT and vLLM show 0.07 ± 0.1 of it, in directions that
 * agree neither with float32 nor with each other (slope 0.28 for an effect of 0.12), because what the adapter adds is smaller than the
 * last bit of the number it is added to. So for such an adapter it is proven only that it has an effect, and the proof says null for its scale.
 *
 * Both in float32, as on processors without bf16. The same programs and base; persona, all linear modules, r = 8 (q and v only, r = 4: 0.14):
 *
 *                          agreement, by recorded effect
 *   recorded effect        3.4      1.9      0.58     0.14     0.10
 *   the right bytes        0.00001  0.00001  0.00001  0.00001  0.00001
 *   one layer of 30 zero   0.037    0.050    0.0032   0.0008   0.0006     (the least of layers 0, 7, 15, 22, 29)
 *   one layer of 30 halved 0.060    0.029    0.010    0.0045   0.0021
 *   two layers swapped     0.23     0.13     0.051    0.019    0.010
 *   scaling × 0.8          0.64     0.36     0.10     0.028    0.019
 *   the replica's base     0.00001
 *
 * So 0.0005 are allowed, and every one of these faults is found. A base that differs by more than 0.0002 shows that the replica computes in
 * something else than float32, whatever its record says (a replica of before a change of `dtype`): then the next limits count.
 *
 * One in bf16 and one in float32. For effects of 1.8 and more these agree as two in bf16 do (0.05, 45 ± 0.5°). A weak effect is another one in
 * bf16: what is recorded as 0.58 in float32 is 0.33 on a replica in bf16 (agreement 0.25, 29°), and 0.36 in bf16 is 0.54 in float32 (0.20, 58°).
 * So 0.45 are allowed, and the scale is judged from an effect of 12 times the rounding on.
 *
 * A quantised base. Where the trainer had the quantised weights, it recorded the probes with them, unpacked, and the limits above count: the
 * engine multiplies with the same numbers. That is so for runs on the quantised base itself, and for runs on the base that it was made of
 * while an engine of it was registered. Otherwise (an adapter of before, a packing that the trainer cannot unpack, an engine that rounds
 * weights or its cache to FP8 itself) record and replica are of two bases, and the difference of the two bases, measured at the replica, is the
 * noise. PEFT in bf16 on SmolLM2-135M, and on its copies in 4 bit, groups of 64, rounded to nearest without data (the worst that there is):
 *
 *                          agreement with the record of the unquantised base; in brackets, with one of the quantised base
 *                          GPTQ, base differs by 1.5 to 1.7                 AWQ, base differs by 0.9 to 1.2
 *   recorded effect        7.9         9.1         1.5        0.51          7.9         9.1         1.5        0.51
 *   the right bytes        2.8 (0)     3.3 (0)     1.6 (0)    1.7 (0)       1.1 (0)     1.5 (0)     0.84 (0)   0.89 (0)
 *   scaling × 2            2.3 (2.2)   2.8 (3.9)   1.6 (1.0)  1.4 (0.44)    2.5 (3.2)   2.1 (2.5)   1.1 (0.69) 0.92 (0.28)
 *   scaling × 0.5          5.3 (2.9)   5.9 (4.7)   2.0 (0.66) 1.9 (0.23)    5.1 (4.7)   5.4 (4.9)   1.0 (0.48) 0.94 (0.18)
 *   one layer of 30 zero   2.6 (0.48)  3.2 (0.85)  1.6 (0.09) 1.7 (0.07)    1.3 (0.31)  2.0 (0.84)  0.86 (0.07) 0.90 (0.06)
 *   another adapter        5.3 (6.5)   8.2 (8.4)   2.1 (0.86) 1.4 (0.64)    6.3 (6.1)   8.5 (8.9)   1.1 (0.69) 1.1 (0.57)
 *
 * On vLLM's CPU engine in bf16, with the record of the quantised base: GPTQ agrees to 0.087 (effect 6.0) and 0.11 (0.32), its base to 0.09 to 0.12;
 * AWQ to 0.095 (7.6) and 0.076 (0.22), its base to 0.06 to 0.08; scales 1.00, 0.79 ± 0.04 (0.32) and 0.90 ± 0.05 (0.22). Half of the scale is found
 * for the strong ones and, with GPTQ, for the effect of 0.32; with AWQ not for that of 0.22 (0.38 ± 0.10).
 *
 * So with another base's record only presence is proven, and for strong adapters that it is this one and not half of it. Allowed are 0.25 +
 * a quarter of the effect + 1.2 × the difference of the bases, which itself may be 2.5; the scale is judged from an effect of 12 times the
 * noise on, which is so for FP8 only.
 *
 * How much of the adapter could be missing within these limits, each proof says itself (`unseenShare`).
 */
import type { ComputeType, ProbeRecord, Problem, Proof } from "@loraline/contracts";

interface ProofLimits {
  /** The difference, in nats, that is allowed between two correct implementations: a constant, plus a share of the effect. */
  agreement: number;
  agreementShare: number;
  /** The same: as a share of the difference between the trainer's base and the replica's. */
  agreementOfBase: number;
  /** The difference, in nats, that is allowed between the trainer's base and the replica's. */
  base: number;
  /** Share of the recorded effect that the replica must show at least. */
  effectShare: number;
  /** A recorded effect below this, in nats, counts as no effect. */
  leastEffect: number;
  /** Degrees by which the angle may differ from 45: always, more for each standard error, and more where rounding is as large as the effect. */
  angle: { least: number; perError: number; atNoise: number };
  /** The scale is judged only if the recorded effect is this many times larger than rounding (root mean squares), on at least so many probes. */
  scaleAboveNoise: number;
  scaleProbes: number;
}

const bfloat16: ProofLimits = {
  agreement: 0.25,
  agreementShare: 0.015,
  agreementOfBase: 0,
  base: 0.35,
  effectShare: 0.25,
  leastEffect: 0.005,
  angle: { least: 3, perError: 4, atNoise: 10 },
  scaleAboveNoise: 1.6,
  scaleProbes: 3,
};

export const proofLimits = {
  bfloat16,
  float32: { ...bfloat16, agreement: 0.0005, agreementShare: 0, base: 0.0002 },
  mixed: { ...bfloat16, agreement: 0.45, scaleAboveNoise: 12 },
  rounded: { ...bfloat16, agreementShare: 0.25, agreementOfBase: 1.2, base: 2.5, scaleAboveNoise: 12 },
} as const satisfies Record<string, ProofLimits>;

/** Null and undefined: not known, and taken for bf16: what trainers recorded in before they said it, and what most engines compute in. */
export interface ComputedIn {
  recorded?: ComputeType | null | undefined;
  replica?: ComputeType | null | undefined;
  /** The record is of a base whose weights the replica has rounded, and not of the rounded ones. */
  rounded?: boolean | undefined;
}

function limitsFor({ recorded, replica, rounded: isRounded }: ComputedIn, baseAgreement: number): ProofLimits {
  if (isRounded === true) return proofLimits.rounded;
  const [there, here] = [recorded ?? "bfloat16", replica ?? "bfloat16"];
  if (there !== here) return proofLimits.mixed;
  return there === "float32" && baseAgreement > proofLimits.float32.base ? proofLimits.mixed : proofLimits[there];
}

/** Logprobs of `record.first.tokens` on the replica, in their order. */
export interface Measured {
  record: ProbeRecord;
  base: readonly number[];
  adapter: readonly number[];
}

export type ProofDecision = { kind: "proven"; proof: Proof } | { kind: "refused"; problem: Problem; proof: Proof };

const mean = (values: readonly number[]): number =>
  values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
const rounded = (value: number): number => Math.round(value * 1e6) / 1e6;

/** Mean |logprob with the adapter − logprob of the base| as the trainer recorded it. */
export const recordedEffect = (records: readonly ProbeRecord[]): number =>
  mean(records.flatMap(({ first }) => first.tokens.map((_, i) => Math.abs((first.adapter[i] ?? 0) - (first.base[i] ?? 0)))));

/** Pure: decides whether the replica applies exactly this adapter. `at` is the time of the measurement, ISO 8601. */
export function decideProof(measured: readonly Measured[], at: string, computed: ComputedIn = {}): ProofDecision {
  const rows = measured.flatMap(({ record: { first }, base, adapter }) =>
    first.tokens.map((_, i) => ({
      recordedBase: first.base[i] ?? Number.NaN,
      recorded: first.adapter[i] ?? Number.NaN,
      base: base[i] ?? Number.NaN,
      adapter: adapter[i] ?? Number.NaN,
    })),
  );
  const agreement = mean(rows.map((row) => Math.abs(row.adapter - row.recorded)));
  const baseAgreement = mean(rows.map((row) => Math.abs(row.base - row.recordedBase)));
  const limits = limitsFor(computed, baseAgreement);
  const effect = mean(rows.map((row) => Math.abs(row.adapter - row.base)));
  const effectExpected = mean(rows.map((row) => Math.abs(row.recorded - row.recordedBase)));
  const agreementLimit = limits.agreement + limits.agreementShare * effectExpected + limits.agreementOfBase * baseAgreement;
  const slope = slopeOf(measured, limits);
  const proof: Proof = {
    probes: measured.length,
    tokens: rows.length,
    agreement: finite(agreement),
    agreementLimit: rounded(agreementLimit),
    effect: finite(effect),
    effectExpected: finite(effectExpected),
    baseAgreement: finite(baseAgreement),
    scale: slope === undefined ? null : { value: finite(slope.scale), error: finite(slope.error) },
    unseen: unseenShare(slope, { effectExpected, agreementLimit, baseAgreement }),
    answers: measured.flatMap(answerOf),
    provenAt: at,
  };
  const refused = (code: string, message: string): ProofDecision => ({ kind: "refused", problem: { code, message }, proof });
  const logprobText = (value: number): string => (value < 0.1 ? value.toPrecision(2) : value.toFixed(2));

  if (rows.length === 0)
    return refused("PROOF_WITHOUT_PROBES", "the trainer recorded no probes, so nothing can be proven. Train it again.");
  if (rows.some((row) => !Number.isFinite(row.adapter) || !Number.isFinite(row.base))) {
    return refused(
      "PROOF_NOT_FINITE",
      "the replica answered a probe with logprobs that are not numbers: with this adapter it computes NaN.",
    );
  }
  if (effectExpected < limits.leastEffect) {
    return refused(
      "NO_EFFECT",
      `the adapter answers like the base already in the trainer's own record (its logprobs differ by ${effectExpected.toFixed(4)}): training changed nothing. Raise the learning rate, the number of steps, or look at the dataset.`,
    );
  }
  if (baseAgreement > limits.base) {
    return refused(
      "PROOF_BASE_DIFFERS",
      `the replica's base is not the one this was trained on: their logprobs differ by ${logprobText(baseAgreement)} (limit ${logprobText(limits.base)}).`,
    );
  }
  if (effect < limits.effectShare * effectExpected) {
    return refused(
      "PROOF_WITHOUT_EFFECT",
      `the replica lists the adapter but answers like the base: it changes logprobs by ${logprobText(effect)}, in the trainer it was ${logprobText(effectExpected)}. Are its module names those of the served model?`,
    );
  }
  const rightDirection = sameDirection(rows) >= 0.86 || slope?.straight === true;
  if (agreement > agreementLimit) {
    const how = `logprobs differ from the trainer's by ${logprobText(agreement)} (limit ${logprobText(agreementLimit)})`;
    return rightDirection
      ? refused(
          "PROOF_SCALING",
          `the replica applies the adapter in the right direction but not by the right amount: ${how}. Wrong lora_alpha, rank or scaling, or a layer that is missing?`,
        )
      : refused("PROOF_DISAGREES", `the replica answers like another adapter: ${how}.`);
  }
  if (slope !== undefined && slope.off > slope.limit) {
    const how = `it moves the base by ${slope.scale.toFixed(2)} ± ${slope.error.toFixed(2)} of what the trainer recorded`;
    return rightDirection
      ? refused(
          "PROOF_SCALING",
          `the replica applies the adapter in the right direction but not by the right amount: ${how}. Wrong lora_alpha, rank or scaling, or a layer that is missing?`,
        )
      : refused("PROOF_DISAGREES", `the replica answers like another adapter: ${how}.`);
  }
  return { kind: "proven", proof };
}

/**
 * The largest share of the recorded effect that could be missing while the replica is proven. A replica that lacks a share x, measured along the
 * recorded effect, disagrees by x times the effect, give or take rounding, which the base's difference shows; and it has an angle of
 * atan(1 − x), measured with the angle's standard error, of which 2.33 leave one case in a hundred. Either is refused beyond its limit.
 */
function unseenShare(
  slope: Slope | undefined,
  { effectExpected, agreementLimit, baseAgreement }: Record<"effectExpected" | "agreementLimit" | "baseAgreement", number>,
): number {
  const byAgreement = (agreementLimit + baseAgreement) / effectExpected;
  const degrees = slope === undefined ? 45 : Math.min(45, slope.limit + 2.33 * slope.angleError);
  const share = Math.min(1, byAgreement, 1 - Math.tan(((45 - degrees) * Math.PI) / 180));
  return Number.isFinite(share) ? Math.ceil(share * 1e4) / 1e4 : 1;
}

interface Slope {
  /** How strongly the replica applies the adapter; 1: as strongly as the trainer recorded. */
  scale: number;
  error: number;
  /** One standard error of the angle, in degrees. */
  angleError: number;
  /** Degrees between the angle and 45°, and how many are allowed. */
  off: number;
  limit: number;
  /** The points are as near to the line as rounding allows: it is the same effect, only stronger or weaker. */
  straight: boolean;
}

/** The replica's effect against the recorded one; undefined where rounding hides it, or there are too few probes for a standard error. */
function slopeOf(measured: readonly Measured[], limits: ProofLimits): Slope | undefined {
  const effects = measured.map(({ record: { first }, base, adapter }) => {
    const there = centred(first.tokens.map((_, i) => (first.adapter[i] ?? Number.NaN) - (first.base[i] ?? Number.NaN)));
    const here = centred(first.tokens.map((_, i) => (adapter[i] ?? Number.NaN) - (base[i] ?? Number.NaN)));
    return { there: sum(there, there), here: sum(here, here), both: sum(there, here), tokens: first.tokens.length };
  });
  const total = effects.reduce(added, nothing);
  const noise = Math.sqrt(
    mean(measured.flatMap(({ record: { first }, base }) => first.tokens.map((_, i) => ((base[i] ?? 0) - (first.base[i] ?? 0)) ** 2))),
  );
  const recorded = Math.sqrt(total.there / total.tokens);
  if (effects.length < limits.scaleProbes || !(recorded > limits.scaleAboveNoise * noise) || !(total.here > 0)) return undefined;

  const angle = angleOf(total);
  const without = effects.map((left) =>
    angleOf(added(total, { there: -left.there, here: -left.here, both: -left.both, tokens: -left.tokens })),
  );
  const error = Math.sqrt(((effects.length - 1) / effects.length) * without.reduce((squares, one) => squares + (one - angle) ** 2, 0));
  const beside = (total.there + total.here - Math.hypot(total.there - total.here, 2 * total.both)) / 2;
  const degrees = 180 / Math.PI;
  return {
    scale: Math.tan(angle),
    error: error / Math.cos(angle) ** 2,
    angleError: error * degrees,
    off: Math.abs(angle * degrees - 45),
    limit: limits.angle.least + limits.angle.perError * error * degrees + limits.angle.atNoise * (noise / recorded) ** 2,
    straight: angle * degrees > 8 && Math.sqrt(beside / total.tokens) <= 1.7 * noise,
  };
}

interface Sums {
  there: number;
  here: number;
  both: number;
  tokens: number;
}
const nothing: Sums = { there: 0, here: 0, both: 0, tokens: 0 };
const added = (a: Sums, b: Sums): Sums => ({
  there: a.there + b.there,
  here: a.here + b.here,
  both: a.both + b.both,
  tokens: a.tokens + b.tokens,
});
/** The angle, in radians from −π/2 to π/2, of the line through the origin that is nearest to all points. */
const angleOf = ({ there, here, both }: Sums): number => Math.atan2(2 * both, there - here) / 2;
const sum = (a: readonly number[], b: readonly number[]): number => a.reduce((total, value, i) => total + value * (b[i] ?? 0), 0);
function centred(values: readonly number[]): number[] {
  const middle = mean(values);
  return values.map((value) => value - middle);
}

/** What base, trainer and replica say of the token that the adapter finds likeliest in the trainer. Empty where one of them is no number. */
function answerOf({ record: { first }, adapter: replied }: Measured): NonNullable<Proof["answers"]> {
  const likeliest = first.adapter.reduce((best, logprob, i) => (logprob > (first.adapter[best] ?? Number.NEGATIVE_INFINITY) ? i : best), 0);
  const [base = Number.NaN, trainer = Number.NaN, replica = Number.NaN] = [first.base, first.adapter, replied].map((all) => all[likeliest]);
  return [base, trainer, replica].every(Number.isFinite)
    ? [{ base: rounded(base), trainer: rounded(trainer), replica: rounded(replica) }]
    : [];
}

const finite = (value: number): number => (Number.isFinite(value) ? rounded(value) : 1e6);

/** Cosine between the effect on the replica and the recorded one: 1 for the right adapter at any scale. (Measured: × 0.5 … × 2 ≥ 0.87, other adapters ≤ 0.85, but of the same data 0.98.) */
function sameDirection(rows: readonly { recorded: number; recordedBase: number; adapter: number; base: number }[]): number {
  let dot = 0;
  let there = 0;
  let here = 0;
  for (const { recorded, recordedBase, adapter, base } of rows) {
    dot += (recorded - recordedBase) * (adapter - base);
    there += (recorded - recordedBase) ** 2;
    here += (adapter - base) ** 2;
  }
  return there === 0 || here === 0 ? 0 : dot / Math.sqrt(there * here);
}
