import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { countLengths } from "./measure-lengths.ts";

const measured = (values: readonly number[]) => {
  const counter = countLengths();
  for (const value of values) counter.add(value);
  return counter.lengths();
};

describe("lengths", () => {
  it("is nothing when nothing was added", () => {
    expect(measured([])).toBeNull();
  });

  it("gives percentiles: exact ones below 4096, never too small and within a hundredth above", () => {
    expect(measured(Array.from({ length: 100 }, (_, n) => n + 1))).toMatchObject({ count: 100, total: 5050, p50: 50, p95: 95, max: 100 });
    fc.assert(
      fc.property(fc.array(fc.nat(5_000_000), { minLength: 1, maxLength: 200 }), (values) => {
        const sorted = values.toSorted((a, b) => a - b);
        const exact = sorted[Math.ceil(0.95 * sorted.length) - 1] as number;
        const found = measured(values);
        expect(found?.max).toBe(sorted.at(-1));
        expect(found?.p95).toBeGreaterThanOrEqual(exact);
        expect(found?.p95).toBeLessThanOrEqual(exact * 1.011 + 1);
        expect(found?.histogram.reduce((sum, { count }) => sum + count, 0)).toBe(values.length);
      }),
    );
  });
});
