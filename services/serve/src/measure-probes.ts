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

/** What the base of one engine process said to probes. Most probes are asked of every adapter, and a base always says the same. */
export interface BaseAnswers {
  /** Logprobs of the probe's tokens, in their order; undefined: not all of them are known. */
  of(probe: ProbeRecord): number[] | undefined;
  keep(measured: readonly Measured[]): void;
}

/** Prompts whose answers are remembered: the neutral questions, and those of the adapters that were proven last. */
const promptsKept = 1024;

export function createBaseAnswers(): BaseAnswers {
  /** By prompt, then by token. */
  const logprobs = new Map<string, Map<number, number>>();
  return {
    of({ input_ids, first, messages }) {
      // What a picture makes of a prompt does not stand in its tokens.
      const known = messages ? undefined : logprobs.get(input_ids.join());
      if (known === undefined) return undefined;
      const found: number[] = [];
      for (const token of first.tokens) {
        const logprob = known.get(token);
        if (logprob === undefined) return undefined;
        found.push(logprob);
      }
      return found;
    },
    keep(measured) {
      for (const { record, base } of measured) {
        if (record.messages || this.of(record) !== undefined) continue;
        const prompt = record.input_ids.join();
        if (logprobs.size >= promptsKept) logprobs.clear();
        const known = logprobs.get(prompt) ?? new Map<number, number>();
        for (const [at, token] of record.first.tokens.entries()) known.set(token, base[at] ?? Number.NaN);
        logprobs.set(prompt, known);
      }
    },
  };
}

/**
 * Asks the replica for the logprobs, of the base and of the adapter. The base's answers must come from the same engine process: those that
 * are `known` of it are not asked for again. The two are asked one after the other, because some engines mix them up within a batch.
 */
export async function measureProbes(
  client: Pick<LoraEngine, "nextTokenLogprobs" | "nextTokenLogprobsInChat" | "maxLogprobTokens">,
  { base, loraName, probes, known }: { base: string; loraName: string; probes: readonly ProbeRecord[]; known?: BaseAnswers | undefined },
): Promise<Measured[]> {
  const logprobsOf = ({ first }: ProbeRecord, found: Map<number, number> | undefined): number[] =>
    first.tokens.map((token) => found?.get(token) ?? Number.NaN);
  const ask = async (model: string, asked: readonly ProbeRecord[]): Promise<Map<ProbeRecord, number[]>> => {
    const groups = grouped(
      asked.filter(({ messages }) => !messages),
      client.maxLogprobTokens,
    );
    const inChat = asked.map(async (probe): Promise<[ProbeRecord, number[]][]> => {
      if (!probe.messages) return [];
      const found = await client.nextTokenLogprobsInChat(model, probe.messages, probe.first.tokens, probe.input_ids);
      return [[probe, logprobsOf(probe, found)]];
    });
    const answers = await Promise.all(
      groups.map(async ({ probes: together, tokens }) => {
        const found = await client.nextTokenLogprobs(
          model,
          together.map(({ input_ids }) => input_ids),
          tokens,
        );
        return together.map((probe, i): [ProbeRecord, number[]] => [probe, logprobsOf(probe, found[i])]);
      }),
    );
    return new Map([...answers, ...(await Promise.all(inChat))].flat());
  };
  const before = new Map(probes.map((probe) => [probe, known?.of(probe)]));
  const ofBase = await ask(
    base,
    probes.filter((probe) => before.get(probe) === undefined),
  );
  const ofAdapter = await ask(loraName, probes);
  return probes.map((record) => ({
    record,
    base: before.get(record) ?? ofBase.get(record) ?? [],
    adapter: ofAdapter.get(record) ?? [],
  }));
}
