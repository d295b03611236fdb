import type { ProbeRecord } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { chooseProbes, createBaseAnswers, measureProbes } from "./measure-probes.ts";

const record = (base: number[], adapter: number[], tokens = base.map((_, i) => i), length = 4): ProbeRecord => ({
  name: "p",
  input_ids: Array.from({ length }, (_, i) => i),
  base: { tokens: [], logprobs: [] },
  adapter: { tokens: [], logprobs: [], base_logprobs: [] },
  first: { tokens, base, adapter },
});

describe("measureProbes", () => {
  it("never asks for more tokens at once than vLLM answers for, and keeps the order", async () => {
    const probes = [0, 1, 2, 3].map((n) => {
      const tokens = Array.from({ length: 60 }, (_, i) => n * 60 + i);
      return record(
        tokens.map(() => -1),
        tokens.map(() => -2),
        tokens,
        4 + n,
      );
    });
    const asked: [string, number, number][] = [];
    const client = {
      maxLogprobTokens: 128,
      async nextTokenLogprobsInChat(): Promise<Map<number, number>> {
        throw new Error("no probe has a picture");
      },
      async nextTokenLogprobs(model: string, prompts: readonly (readonly number[])[], tokens: readonly number[]) {
        asked.push([model, prompts.length, tokens.length]);
        return prompts.map(() => new Map(tokens.map((token) => [token, model === "base" ? token : -token])));
      },
    };
    const measured = await measureProbes(client, { base: "base", loraName: "adapter", probes });
    expect(asked).toEqual([
      ["base", 2, 120],
      ["base", 2, 120],
      ["adapter", 2, 120],
      ["adapter", 2, 120],
    ]);
    for (const [n, one] of measured.entries()) {
      expect(one.record).toBe(probes[n]);
      expect(one.base).toEqual(one.record.first.tokens);
      expect(one.adapter).toEqual(one.record.first.tokens.map((token) => -token));
    }
  });

  it("does not ask the base for what it has said already, but for each token that it has not", async () => {
    const asked: [string, number, readonly number[]][] = [];
    const client = {
      maxLogprobTokens: 128,
      nextTokenLogprobsInChat: async (_: string, __: unknown, tokens: readonly number[]) => new Map(tokens.map((token) => [token, -1])),
      async nextTokenLogprobs(model: string, prompts: readonly (readonly number[])[], tokens: readonly number[]) {
        asked.push([model, prompts.length, tokens]);
        return prompts.map((prompt) => new Map(tokens.map((token) => [token, model === "base" ? -token - prompt.length : -token])));
      },
    };
    const known = createBaseAnswers();
    const ask = async (probes: ProbeRecord[]) => {
      asked.length = 0;
      const measured = await measureProbes(client, { base: "base", loraName: "adapter", probes, known });
      known.keep(measured);
      return measured.map(({ base }) => base);
    };
    const [short, long] = [record([0, 0], [0, 0], [5, 6]), record([0, 0], [0, 0], [5, 7], 9)];
    expect(await ask([short])).toEqual([[-9, -10]]);
    expect(await ask([short, long])).toEqual([
      [-9, -10],
      [-14, -16],
    ]);
    expect(asked).toEqual([
      ["base", 1, [5, 7]],
      ["adapter", 2, [5, 6, 7]],
    ]);
    expect(await ask([long, { ...short, first: { ...short.first, tokens: [6, 5] } }])).toEqual([
      [-14, -16],
      [-10, -9],
    ]);
    expect(asked.map(([model]) => model)).toEqual(["adapter"]);
    expect(await ask([record([0], [0], [8])])).toEqual([[-12]]);
    expect(asked[0]).toEqual(["base", 1, [8]]);
    // A picture's tokens do not say what it shows.
    await ask([{ ...short, messages: [] }]);
    expect(await ask([{ ...short, input_ids: [9], messages: [] }])).toEqual([[-1, -1]]);
  });

  it("asks one with a picture in a conversation, and keeps its place", async () => {
    const seen = { ...record([-1, -2], [-3, -4], [5, 6]), messages: [] };
    const probes = [seen, record([-1], [-2], [7])];
    const client = {
      maxLogprobTokens: 128,
      nextTokenLogprobs: async (_: string, prompts: readonly unknown[]) => prompts.map(() => new Map([[7, -7]])),
      async nextTokenLogprobsInChat(model: string, _: unknown, tokens: readonly number[], expected: readonly number[]) {
        expect(expected).toBe(seen.input_ids);
        return new Map(tokens.map((token) => [token, model === "base" ? -token : -2 * token]));
      },
    };
    const measured = await measureProbes(client, { base: "base", loraName: "adapter", probes });
    expect(measured.map(({ base, adapter }) => [base, adapter])).toEqual([
      [
        [-5, -6],
        [-10, -12],
      ],
      [[-7], [-7]],
    ]);
  });
});

describe("chooseProbes", () => {
  const long = record([-1], [-9], [0], 80);
  const short = record([-1], [-8], [0], 10);
  const mute = record([-1], [-1.01], [0], 2);
  it("takes short ones within the budget, and none that shows nothing", () => {
    expect(chooseProbes([long, mute, short], { strong: 96, weak: 0 })).toEqual([short, long]);
    expect(chooseProbes([long, short], { strong: 60, weak: 0 })).toEqual([short]);
  });
  it("takes one with a picture first", () => {
    const seen = { ...long, messages: [] };
    expect(chooseProbes([long, short, seen], { strong: 90, weak: 0 })).toEqual([seen, short]);
  });
  it("always asks one", () => {
    expect(chooseProbes([long], { strong: 10, weak: 10 })).toEqual([long]);
    expect(chooseProbes([mute], { strong: 10, weak: 10 })).toEqual([mute]);
    expect(chooseProbes([])).toEqual([]);
  });
});
