import type { BudgetState } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { decideReturn, decideSlice, type Holding, none, windowOf } from "./decide-slice.ts";

const now = Date.parse("2026-03-01T12:00:30Z");
const window = windowOf(now);
const in15s = "2026-03-01T12:00:45.000Z";
const gateway = "a";

const budget = (over: Partial<BudgetState> = {}): BudgetState => ({ window, requests: 0, tokens: 0, slots: {}, ...over });
const holding = (over: Partial<Holding> = {}): Holding => ({
  window,
  left: none(),
  slice: { requests: 1, tokens: 1, concurrency: 1 },
  held: 0,
  ...over,
});
const most = { requests: 80, tokens: Number.POSITIVE_INFINITY, concurrency: Number.POSITIVE_INFINITY };
const one = { ...none(), requests: 1 };
const slot = { ...none(), concurrency: 1 };

describe("a slice", () => {
  const requests = (current: BudgetState | undefined, wanted: number, over: Partial<Holding> = {}) =>
    decideSlice(current, {
      holding: holding({ slice: { requests: wanted, tokens: 1, concurrency: 1 }, ...over }),
      most,
      need: one,
      short: one,
      gateway,
      now,
    });

  it("is what the gateway would like, and at most an eighth of what is left", () => {
    expect(requests(undefined, 4)).toMatchObject({ granted: { requests: 4 }, entry: { window, requests: 4 } });
    expect(requests(undefined, 64)).toMatchObject({ granted: { requests: 10 }, entry: { requests: 10 } });
    expect(requests(budget({ requests: 64 }), 64)).toMatchObject({ granted: { requests: 2 }, taken: { requests: 64 } });
  });

  it("is what is needed where an eighth is less, and nothing where less than that is left", () => {
    expect(requests(budget({ requests: 79 }), 64)).toMatchObject({ granted: { requests: 1 }, entry: { requests: 80 } });
    expect(requests(budget({ requests: 80 }), 64)).toMatchObject({ granted: { requests: 0 }, entry: { requests: 80 } });
  });

  it("is of a full budget when the minute of the entry is over, and of the entry's where its clock is ahead by one", () => {
    expect(requests(budget({ window: window - 1, requests: 80 }), 1).entry).toMatchObject({ window, requests: 1 });
    expect(requests(budget({ window: window + 1, requests: 80 }), 1).entry).toMatchObject({ window: window + 1, requests: 80 });
    expect(requests(budget({ window: window + 2, requests: 80 }), 1).entry).toMatchObject({ window, requests: 1 });
  });

  it("covers the whole need in a new minute, in which nothing counts that was taken in the old one", () => {
    const need = { ...none(), requests: 3 };
    const old = holding({ window: window - 1, left: { ...none(), requests: 2 } });
    expect(decideSlice(undefined, { holding: old, most, need, short: one, gateway, now })).toMatchObject({
      needed: { requests: 3 },
      granted: { requests: 3 },
    });
  });

  it("of slots leaves those that other gateways hold, and takes those of a gateway that is gone", () => {
    const slots = { b: { count: 2, until: in15s } };
    const limit = { ...most, concurrency: 3 };
    const asked = { most: limit, need: slot, short: slot, gateway, now };
    expect(decideSlice(budget({ slots }), { ...asked, holding: holding() }).entry.slots).toEqual({
      ...slots,
      a: { count: 1, until: in15s },
    });
    expect(decideSlice(budget({ slots }), { ...asked, holding: holding({ held: 1 }) }).granted.concurrency).toBe(0);
    const gone = { b: { count: 3, until: new Date(now).toISOString() } };
    expect(decideSlice(budget({ slots: gone }), { ...asked, holding: holding() }).entry.slots).toEqual({ a: { count: 1, until: in15s } });
  });
});

describe("giving back", () => {
  const excess = { requests: 5, tokens: 100, concurrency: 1 };

  it("frees what was taken in this minute, and nothing of another one", () => {
    const current = budget({ requests: 8, tokens: 300 });
    expect(decideReturn(current, { excess, window, keep: 0, gateway, now })).toEqual(budget({ requests: 3, tokens: 200 }));
    expect(decideReturn(current, { excess, window: window - 1, keep: 0, gateway, now })).toEqual(current);
  });

  it("renews the slots that stay, and leaves the other gateways'", () => {
    const slots = { a: { count: 4, until: "2026-03-01T12:00:31.000Z" }, b: { count: 1, until: in15s } };
    const back = (keep: number) => decideReturn(budget({ slots }), { excess, window, keep, gateway, now }).slots;
    expect(back(3)).toEqual({ ...slots, a: { count: 3, until: in15s } });
    expect(back(0)).toEqual({ b: slots.b });
  });
});
