/**
 * The proof that a replica applies an adapter: it is asked for the logprobs of the first token after some prompts, of the same
 * tokens that the trainer recorded while it held both models. Two requests: all prompts to the adapter, all to the base.
 *
 * Where the limits come from. PEFT in bf16 against vLLM 0.32 in bf16, both on the CPU, SmolLM2-135M, six probes, the union of the 8
 * likeliest tokens of base and adapter; mean over tokens in nats. Adapters: persona r = 8 (two of them) and r = 16 overfitted, all
 * linear modules, recorded effect 10.6, 13.5 and 13.6; and one hardly trained (r = 4, four steps), recorded effect 0.08.
 *
 *                                agreement                        effect on the replica
 *                                r8     r8'    r16    hardly     r8     r8'    r16    hardly
 *   the right bytes              0.13   0.21   0.22   0.06       10.7   13.6   13.6   0.06
 *   lora_B zero                  10.6   13.6   13.6   0.07       0      0      0      0
 *   modules misnamed             10.6   13.6   13.6   0.07       0      0      0      0         (vLLM loads it without a word)
 *   scaling × 2                  3.9    3.5    3.2    0.09       10.5   13.6   13.9   0.10
 *   scaling × 0.5                3.1    4.0    2.9    0.07       8.2    9.8    11.0   0.06
 *   scaling × 1.25               1.0    2.7    1.3    0.08
 *   scaling × 0.8                1.1    2.4    1.4    0.09
 *   layers shifted by one        10.6   13.5   13.6   0.08       0.4    0.4    0.5    0.07
 *   one layer of 30 zeroed       0.46   1.06   1.13   0.06
 *   another adapter              ≥ 3.7                ≥ 16
 *   replica's base               0.10 (at most 0.15 on one probe)
 *
 * So rounding costs 0.1 nats plus 1 % of the effect: the limit is 0.25 + 1.5 % of the recorded effect. Below an effect of about half a
 * nat a wrong scale drowns in rounding; then only a missing effect is caught, which is exact (zero or misnamed: identical logits).
 * With three of the six probes the figures are the same, so few are asked: one prompt token costs an adapter 3 to 12 ms on a CPU.
 */
import type { ProbeRecord, Problem, Proof } from "@loraline/contracts";
import type { VllmClient } from "./vllm-client.ts";

export interface ProofLimits {
  /** Nats: what two correct implementations in bf16 differ by, as a constant and as a share of the effect. */
  agreement: number;
  agreementShare: number;
  /** Nats: the same between the trainer's base and the replica's. */
  base: number;
  /** Share of the recorded effect that must show on the replica. */
  effectShare: number;
  /** Nats: a recorded effect below this is none. */
  leastEffect: number;
}

export const proofLimits: ProofLimits = { agreement: 0.25, agreementShare: 0.015, base: 0.35, effectShare: 0.25, leastEffect: 0.005 };

/** Logprobs of `record.first.tokens` on the replica, in their order. */
export interface Measured {
  record: ProbeRecord;
  base: readonly number[];
  adapter: readonly number[];
}

export type ProofDecision = { kind: "proven"; proof: Proof } | { kind: "refused"; problem: Problem; proof: Proof };

const mean = (values: readonly number[]): number =>
  values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
const rounded = (value: number): number => Math.round(value * 10_000) / 10_000;

/** Mean |logprob with the adapter − logprob of the base| as the trainer recorded it, in nats. */
export const recordedEffect = (records: readonly ProbeRecord[]): number =>
  mean(records.flatMap(({ first }) => first.tokens.map((_, i) => Math.abs((first.adapter[i] ?? 0) - (first.base[i] ?? 0)))));

/** Pure: does this replica apply these bytes? `at` is the time of the measurement, ISO 8601. */
export function decideProof(measured: readonly Measured[], at: string, limits: ProofLimits = proofLimits): ProofDecision {
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
  const effect = mean(rows.map((row) => Math.abs(row.adapter - row.base)));
  const effectExpected = mean(rows.map((row) => Math.abs(row.recorded - row.recordedBase)));
  const agreementLimit = limits.agreement + limits.agreementShare * effectExpected;
  const proof: Proof = {
    probes: measured.length,
    tokens: rows.length,
    agreement: finite(agreement),
    agreementLimit: rounded(agreementLimit),
    effect: finite(effect),
    effectExpected: finite(effectExpected),
    provenAt: at,
  };
  const refused = (code: string, message: string): ProofDecision => ({ kind: "refused", problem: { code, message }, proof });
  const nats = (value: number): string => `${value.toFixed(2)} nats`;

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
      `the adapter answers like the base already in the trainer's own record (difference ${effectExpected.toFixed(4)} nats): training changed nothing. Raise the learning rate, the number of steps, or look at the dataset.`,
    );
  }
  if (baseAgreement > limits.base) {
    return refused(
      "PROOF_BASE_DIFFERS",
      `the replica's base is not the one this was trained on: their logprobs differ by ${nats(baseAgreement)} (limit ${nats(limits.base)}).`,
    );
  }
  if (effect < limits.effectShare * effectExpected) {
    return refused(
      "PROOF_WITHOUT_EFFECT",
      `the replica lists the adapter but answers like the base: it changes logprobs by ${nats(effect)}, in the trainer it was ${nats(effectExpected)}. Are its module names those of the served model?`,
    );
  }
  if (agreement > agreementLimit) {
    const how = `logprobs differ from the trainer's by ${nats(agreement)} (limit ${nats(agreementLimit)})`;
    return sameDirection(rows) >= 0.9
      ? refused(
          "PROOF_SCALING",
          `the replica applies the adapter in the right direction but not by the right amount: ${how}. Wrong lora_alpha, rank or scaling?`,
        )
      : refused("PROOF_DISAGREES", `the replica answers like another adapter: ${how}.`);
  }
  return { kind: "proven", proof };
}

const finite = (value: number): number => (Number.isFinite(value) ? rounded(value) : 1e6);

/** Cosine between the effect on the replica and the recorded one: 1 for the right adapter at any scale. (Measured: × 0.5 … × 2 ≥ 0.91, other adapters ≤ 0.85, of the same data 0.98.) */
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

/**
 * Pure: the probes worth asking. The shortest ones within the budget, but always one, and preferably some that show an effect.
 * @param budget prompt tokens in all.
 */
export function chooseProbes(records: readonly ProbeRecord[], budget = 128): ProbeRecord[] {
  const effects = new Map(records.map((record) => [record, recordedEffect([record])]));
  const strongest = Math.max(0, ...effects.values());
  const telling = records.filter((record) => (effects.get(record) ?? 0) >= strongest / 4);
  const chosen: ProbeRecord[] = [];
  let tokens = 0;
  for (const record of telling.toSorted((a, b) => a.input_ids.length - b.input_ids.length)) {
    if (chosen.length > 0 && tokens + record.input_ids.length > budget) break;
    chosen.push(record);
    tokens += record.input_ids.length;
  }
  return chosen;
}

/**
 * Asks the replica. The base's answers are asked for each time: they cost little beside the adapter's, and they must come from the
 * same process. One after the other, because an engine computes both in one batch anyway.
 */
export async function measureProbes(
  client: Pick<VllmClient, "nextTokenLogprobs">,
  { base, engineName, probes }: { base: string; engineName: string; probes: readonly ProbeRecord[] },
): Promise<Measured[]> {
  if (probes.length === 0) return [];
  const tokens = [...new Set(probes.flatMap(({ first }) => first.tokens))];
  const prompts = probes.map(({ input_ids }) => input_ids);
  const ofBase = await client.nextTokenLogprobs(base, prompts, tokens);
  const ofAdapter = await client.nextTokenLogprobs(engineName, prompts, tokens);
  const pick = (answer: ReadonlyMap<number, number> | undefined, record: ProbeRecord): number[] =>
    record.first.tokens.map((token) => answer?.get(token) ?? Number.NaN);
  return probes.map((record, i) => ({ record, base: pick(ofBase[i], record), adapter: pick(ofAdapter[i], record) }));
}
