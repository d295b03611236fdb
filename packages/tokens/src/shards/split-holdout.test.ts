import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { holdOut, inSeededOrder, shortId } from "./split-holdout.ts";

const ids = fc.array(fc.integer({ min: 0, max: 2 ** 52 - 1 }), { minLength: 2, maxLength: 200 });

describe("holdOut", () => {
  it("takes the asked share of the different ids, at least one, never all", () => {
    fc.assert(
      fc.property(ids, fc.double({ min: 0.001, max: 0.5, noNaN: true }), fc.nat(), (all, share, seed) => {
        const held = holdOut(all, share, seed);
        const different = new Set(all).size;
        expect(held.size).toBe(different < 2 ? 0 : Math.min(different - 1, Math.max(1, Math.round(different * share))));
        for (const id of held) expect(all).toContain(id);
      }),
    );
  });

  it("does not depend on the order, nor on how often an id comes", () => {
    fc.assert(
      fc.property(ids, fc.nat(), (all, seed) => {
        expect([...holdOut([...all, ...all].reverse(), 0.3, seed)]).toEqual([...holdOut(all, 0.3, seed)]);
      }),
    );
  });

  it("holds nothing out when nothing is asked for", () => {
    expect(holdOut([1, 2, 3], 0, 1).size).toBe(0);
  });

  it("chooses others with another seed, and each id about equally often", () => {
    const all = Array.from({ length: 100 }, (_, index) => shortId(`sha256:${(index * 7919).toString(16).padStart(64, "0")}`) + index);
    const times = new Map(all.map((id) => [id, 0]));
    for (let seed = 0; seed < 400; seed++) for (const id of holdOut(all, 0.1, seed)) times.set(id, (times.get(id) ?? 0) + 1);
    // 40 expected; a fair choice is outside of 15 … 75 less than once in a million tests.
    expect(Math.min(...times.values())).toBeGreaterThan(15);
    expect(Math.max(...times.values())).toBeLessThan(75);
    expect(inSeededOrder(all, 1)).not.toEqual(inSeededOrder(all, 2));
  });
});
