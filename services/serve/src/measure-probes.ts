/** Chooses which of the recorded probes (test prompts) a replica is asked, and asks it. decide-proof.ts judges the answers. */
import type { ProbeRecord } from "@loraline/contracts";
import { type Measured, recordedEffect } from "./decide-proof.ts";
import type { LoraEngine } from "./engines/lora-engine.ts";

/**
 * Pure: chooses the probes to ask: of those on which the adapter has an effect, the shortest ones that fit into the budget, but always
 * at least one, and one with a picture if there are such. With a strong adapter a few probes show any fault; a weak one needs more, because its effect is near the rounding errors.
 * @param budget prompt tokens in all; each takes 3 to 12 ms on a CPU.
 */
export function chooseProbes(records: readonly ProbeRecord[], budget = { strong: 128, weak: 384 }): ProbeRecord[] {
  const effects = new Map(records.map((record) => [record, recordedEffect([record])]));
  const strongest = Math.max(0, ...effects.values());
  const telling = records.filter((record) => (effects.get(record) ?? 0) >= strongest / 4);
  const most = recordedEffect(telling) >= strongEffect ? budget.strong : budget.weak;
  const chosen: ProbeRecord[] = [];
  let tokens = 0;
  const shortest = telling.toSorted((a, b) => a.input_ids.length - b.input_ids.length);
  // One with a picture proves the tower and its projector, too.
  const seen = shortest.find(({ messages }) => messages);
  for (const record of seen === undefined ? shortest : [seen, ...shortest.filter((each) => each !== seen)]) {
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
  client: Pick<LoraEngine, "nextTokenLogprobs" | "nextTokenLogprobsInChat" | "maxLogprobTokens">,
  { base, loraName, probes }: { base: string; loraName: string; probes: readonly ProbeRecord[] },
): Promise<Measured[]> {
  const logprobsOf = ({ first }: ProbeRecord, found: Map<number, number> | undefined): number[] =>
    first.tokens.map((token) => found?.get(token) ?? Number.NaN);
  const groups = grouped(
    probes.filter(({ messages }) => !messages),
    client.maxLogprobTokens,
  );
  const ask = async (model: string): Promise<Map<ProbeRecord, number[]>> => {
    const inChat = probes.map(async (probe): Promise<[ProbeRecord, number[]][]> => {
      if (!probe.messages) return [];
      const found = await client.nextTokenLogprobsInChat(model, probe.messages, probe.first.tokens, probe.input_ids);
      return [[probe, logprobsOf(probe, found)]];
    });
    const answers = await Promise.all(
      groups.map(async ({ probes: asked, tokens }) => {
        const found = await client.nextTokenLogprobs(
          model,
          asked.map(({ input_ids }) => input_ids),
          tokens,
        );
        return asked.map((probe, i): [ProbeRecord, number[]] => [probe, logprobsOf(probe, found[i])]);
      }),
    );
    return new Map([...answers, ...(await Promise.all(inChat))].flat());
  };
  const ofBase = await ask(base);
  const ofAdapter = await ask(loraName);
  return probes.map((record) => ({ record, base: ofBase.get(record) ?? [], adapter: ofAdapter.get(record) ?? [] }));
}
