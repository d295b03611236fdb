/** A distribution of lengths in bounded memory. Pure. */
import type { Lengths } from "@loraline/contracts";

interface LengthCounter {
  add(length: number): void;
  /** @returns the distribution; null: nothing was added. */
  lengths(): Lengths | null;
}

/** Lengths below this have a bucket each; from here on buckets grow by a hundredth. */
const exactBelow = 4096;

export function countLengths(): LengthCounter {
  const counts = new Map<number, number>();
  let count = 0;
  let total = 0;
  let max = 0;
  return {
    add(length) {
      const bucket = bucketOf(length);
      counts.set(bucket, (counts.get(bucket) ?? 0) + 1);
      count++;
      total += length;
      max = Math.max(max, length);
    },
    lengths() {
      if (count === 0) return null;
      const sorted = [...counts].sort(([a], [b]) => a - b);
      const percentile = (share: number): number => {
        let seen = 0;
        for (const [bucket, n] of sorted) {
          seen += n;
          if (seen >= share * count) return Math.min(bucket, max);
        }
        return max;
      };
      return { count, total, p50: percentile(0.5), p95: percentile(0.95), max, histogram: histogramOf(sorted, max) };
    },
  };
}

/** @returns the largest length of the bucket, so that a percentile is never too small. */
function bucketOf(length: number): number {
  if (length < exactBelow) return length;
  const step = 1.01 ** Math.ceil(Math.log(length) / Math.log(1.01) - 1e-9);
  return Math.ceil(step);
}

/** @returns a histogram whose bars double: 16, 32, 64, … up to the longest. */
function histogramOf(sorted: readonly (readonly [number, number])[], max: number): Lengths["histogram"] {
  const bars: Lengths["histogram"] = [];
  let index = 0;
  for (let upTo = 16; index < sorted.length; upTo *= 2) {
    let count = 0;
    for (; index < sorted.length && ((sorted[index] as readonly [number, number])[0] <= upTo || upTo >= max); index++) {
      count += (sorted[index] as readonly [number, number])[1];
    }
    if (count > 0 || bars.length > 0) bars.push({ upTo, count });
  }
  return bars;
}
