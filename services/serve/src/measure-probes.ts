/** Chooses which of the recorded probes (test prompts) a replica is asked, and asks it. decide-proof.ts judges the answers. */
import type { ProbeRecord } from "@loraline/contracts";
import { type Measured, recordedEffect } from "./decide-proof.ts";
import type { LoraEngine } from "./engines/lora-engine.ts";

/**
 * Pure: chooses the probes to ask: of those on which the adapter has an effect, the shortest ones that fit into the budget, but always
 * at least one. With a strong adapter a few probes show any fault; a weak one needs more, because its effect is near the rounding errors.
 * @param budget prompt tokens in all; each takes 3 to 12 ms on a CPU.
 */
export function chooseProbes(records: readonly ProbeRecord[], budget = { strong: 128, weak: 384 }): ProbeRecord[] {
  const effects = new Map(records.map((record) => [record, recordedEffect([record])]));
  const strongest = Math.max(0, ...effects.values());
  const telling = records.filter((record) => (effects.get(record) ?? 0) >= strongest / 4);
  const most = recordedEffect(telling) >= strongEffect ? budget.strong : budget.weak;
  const chosen: ProbeRecord[] = [];
  let tokens = 0;
  for (const record of telling.toSorted((a, b) => a.input_ids.length - b.input_ids.length)) {
    if (chosen.length > 0 && tokens + record.input_ids.length > most) break;
    chosen.push(record);
    tokens += record.input_ids.length;
  }
  return chosen;
}

/** Recorded effect, in nats, from which on an adapter counts as strong. */
const strongEffect = 2;

/** Groups prompts so that the tokens of a group fit into one request. A single prompt always fits: the trainer records no more tokens. */
function grouped(probes: readonly ProbeRecord[], tokensAtOnce: number): { probes: ProbeRecord[]; tokens: number[] }[] {
  const groups: { probes: ProbeRecord[]; tokens: Set<number> }[] = [];
  for (const probe of probes) {
    const last = groups.at(-1);
    const together = new Set([...(last?.tokens ?? []), ...probe.first.tokens]);
    if (last !== undefined && together.size <= tokensAtOnce) {
      last.probes.push(probe);
      last.tokens = together;
    } else groups.push({ probes: [probe], tokens: new Set(probe.first.tokens) });
  }
  return groups.map((group) => ({ probes: group.probes, tokens: [...group.tokens] }));
}

/**
 * Asks the replica for the logprobs, of the base and of the adapter. The base is asked each time, because its answers must come from
 * the same engine process and cost little. The two are asked one after the other, because some engines mix them up within a batch.
 */
export async function measureProbes(
  client: Pick<LoraEngine, "nextTokenLogprobs" | "maxLogprobTokens">,
  { base, loraName, probes }: { base: string; loraName: string; probes: readonly ProbeRecord[] },
): Promise<Measured[]> {
  const groups = grouped(probes, client.maxLogprobTokens);
  const ask = async (model: string): Promise<number[][]> => {
    const answers = await Promise.all(
      groups.map(async ({ probes: asked, tokens }) => {
        const found = await client.nextTokenLogprobs(
          model,
          asked.map(({ input_ids }) => input_ids),
          tokens,
        );
        return asked.map(({ first }, i) => first.tokens.map((token) => found[i]?.get(token) ?? Number.NaN));
      }),
    );
    return answers.flat();
  };
  const ofBase = await ask(base);
  const ofAdapter = await ask(loraName);
  return probes.map((record, i) => ({ record, base: ofBase[i] ?? [], adapter: ofAdapter[i] ?? [] }));
}
