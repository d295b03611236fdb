import fc from "fast-check";
import { expect, it } from "vitest";
import { findNewest } from "./find-newest.ts";

const streamOf = (sequences: number[]) => {
  const reads: number[] = [];
  const stored = sequences.toSorted((a, b) => a - b).map((seq) => ({ seq }));
  return {
    reads,
    async readFrom(from: number, count: number) {
      const some = stored.filter(({ seq }) => seq >= from).slice(0, count);
      reads.push(some.length);
      return some;
    },
  };
};

it("finds the newest ones, whatever lies between them", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(fc.oneof(fc.integer({ min: 1, max: 200 }), fc.integer({ min: 1, max: 1_000_000 })), { maxLength: 150 }),
      fc.integer({ min: 1, max: 1_100_000 }),
      fc.integer({ min: 1, max: 40 }),
      async (sequences, end, limit) => {
        const { readFrom } = streamOf(sequences);
        const newest = sequences.filter((seq) => seq <= end).toSorted((a, b) => b - a);
        expect((await findNewest(readFrom, end, limit)).map(({ seq }) => seq)).toEqual(newest.slice(0, limit));
      },
    ),
  );
});

it("reads a few times what it returns, of a hundred thousand in a row and of as many far back", async () => {
  for (const offset of [0, 20_000_000]) {
    const { readFrom, reads } = streamOf(Array.from({ length: 100_000 }, (_, index) => index + 1));
    expect(await findNewest(readFrom, 100_000 + offset, 20)).toHaveLength(20);
    expect(reads.reduce((sum, count) => sum + count, 0)).toBeLessThan(20 * 40);
  }
});

it("finds more than NATS gives at once", async () => {
  const { readFrom } = streamOf(Array.from({ length: 5000 }, (_, index) => index + 1));
  expect((await findNewest(async (from, count) => readFrom(from, Math.min(count, 1000)), 5000, 2500)).map(({ seq }) => seq)).toEqual(
    Array.from({ length: 2500 }, (_, index) => 5000 - index),
  );
});
