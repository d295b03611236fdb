import { expect, it } from "vitest";
import { always, decideTurns } from "./decide-turns.ts";

const load = { limit: Number.POSITIVE_INFINITY, utilization: 0.95, tenants: 2, highest: 50 };

it("limits nobody while there is time left, or where there is one tenant only", () => {
  expect(decideTurns({ ...load, utilization: 0.7 })).toBe(Number.POSITIVE_INFINITY);
  expect(decideTurns({ ...load, utilization: 0.1, highest: 5000 })).toBe(Number.POSITIVE_INFINITY);
  expect(decideTurns({ ...load, tenants: 1 })).toBe(Number.POSITIVE_INFINITY);
  expect(decideTurns({ ...load, tenants: 1, limit: 5 })).toBe(Number.POSITIVE_INFINITY);
});

it("takes from the busiest one until there is time left, never the last few, and gives back", () => {
  let limit = decideTurns(load);
  expect(limit).toBe(40);
  const seen = [limit];
  for (let round = 0; round < 20; round++) seen.push((limit = decideTurns({ ...load, limit, highest: Math.floor(limit) })));
  expect(seen).toEqual(seen.toSorted((a, b) => b - a));
  expect(limit).toBe(always);
  expect(decideTurns({ ...load, limit, utilization: 0.7 })).toBe(always);
  let rounds = 0;
  for (; limit < Number.POSITIVE_INFINITY; rounds++) limit = decideTurns({ ...load, limit, utilization: 0.3 });
  expect(rounds).toBeLessThan(100);
});
