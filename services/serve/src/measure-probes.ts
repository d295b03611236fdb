/** Which of the recorded probes a replica is asked for its proof, and what it answers. What the answers prove: decide-proof.ts. */
import type { ProbeRecord } from "@loraline/contracts";
import { type Measured, recordedEffect } from "./decide-proof.ts";
import type { LoraEngine } from "./engines/lora-engine.ts";

/**
 * Pure: the probes worth asking. The shortest ones within the budget, but always one, and preferably some that show an effect. Whatever
 * is wrong with a strong adapter shows on a few; a weak one takes more of them, as its effect has to be told from rounding.
 * @param budget prompt tokens in all: one costs an adapter 3 to 12 ms on a CPU.
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

/** Nats. */
const strongEffect = 2;

/** Groups prompts so that the tokens of a group fit into one request. Each prompt fits by itself: the trainer records no more tokens. */
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
 * Asks the replica. The base's answers are asked for each time: they cost little beside the adapter's, and they must come from the
 * same process. Base and adapter one after the other, as there are engines that mix them up within a batch.
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
