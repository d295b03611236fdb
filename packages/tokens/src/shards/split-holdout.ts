/**
 * Which records are held out for evaluation. Pure.
 *
 * Decided by each record's id and the seed, so the order of the file does not matter, and records that say the same thing
 * are on the same side.
 */

/** The first 52 bits of a record's id, which are enough to distinguish records. */
export const shortId = (id: string): number => Number.parseInt(id.slice("sha256:".length, "sha256:".length + 13), 16);

/** @returns the different ids in an order that the seed decides. */
export function inSeededOrder(ids: Iterable<number>, seed: number): number[] {
  return [...new Set(ids)]
    .map((id) => [mix(id, seed), id] as const)
    .sort(([a, x], [b, y]) => a - b || x - y)
    .map(([, id]) => id);
}

/** The ids held out: `share` of the different ones, at least one when anything is to be held out and something stays. */
export function holdOut(ids: Iterable<number>, share: number, seed: number): Set<number> {
  const order = inSeededOrder(ids, seed);
  if (share === 0 || order.length < 2) return new Set();
  const count = Math.min(order.length - 1, Math.max(1, Math.round(order.length * share)));
  return new Set(order.slice(0, count));
}

function mix(id: number, seed: number): number {
  let h = Math.imul((id >>> 0) ^ Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b), 0xc2b2ae35);
  h ^= Math.imul(Math.floor(id / 2 ** 32), 0x27d4eb2f);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39);
  return (h ^ (h >>> 15)) >>> 0;
}
