/**
 * This gateway's slices of the budgets that all gateways share (KV budgets, changed by compare-and-set).
 *
 * A slice grows with demand, up to an eighth of what is left. So a busy limit needs one round trip for hundreds of requests, and any
 * gateway can still admit the last requests of a small limit. A gateway gives back what it does not need within a second or two. What a
 * gateway that died had taken is free again in the next minute (slots: after 15 s).
 */
import type { KvBucket } from "@loraline/bus";
import type { BudgetState } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { type Amounts, decideReturn, decideSlice, type Holding, type Kind, kinds, none, slotMs, windowOf } from "./decide-slice.ts";

const renewAfterMs = slotMs / 3;
/** How long the budget is not asked again after a refusal, so that a flood of refused requests needs no round trips. */
const refusedForMs = 200;

/** A budget as far as this gateway knows: others may have taken more since. */
interface KnownBudget {
  key: string;
  /** @param most - its limit now. */
  left(kind: "requests" | "tokens", most: number): number;
}

export interface Grant extends KnownBudget {
  refused?: undefined;
  /**
   * To be called once, when the request is over.
   * @param tokens - the tokens that it used, which may be more than it took; Infinity: unknown, so it counts as what it took.
   */
  end(tokens: number): void;
  /** To be called instead of `end` if the request was not admitted after all. */
  undo(): void;
}

export interface Refusal extends KnownBudget {
  /** The kind of limit of which not enough is left. */
  refused: Kind;
  most: Amounts;
}

interface BudgetSlices extends AsyncDisposable {
  /** Takes what a request needs of one budget, from KV only where this gateway's slice is spent. */
  take(key: string, need: Amounts): Promise<Grant | Refusal>;
  /** To be called when the limit was changed or removed, so that what was taken under the old limit is not spent under the new one. */
  limitChanged(key: string): void;
}

interface Lease extends Holding {
  key: string;
  /** Taken by all, as last seen. */
  taken: Amounts;
  refusedUntil: Amounts;
  /** The amount that was refused; smaller amounts may still be left. */
  refusedNeed: Amounts;
  spentSinceTick: Amounts;
  slotsUntil: number;
  /** The compare-and-set that is under way; there is only one at a time, since the sums would be wrong otherwise. */
  asking: Promise<void> | undefined;
}

export function createBudgetSlices({
  budgets,
  mostOf,
  log,
  gateway,
  tickMs,
  now,
}: {
  budgets: Pick<KvBucket<BudgetState>, "change">;
  /** The limit of a key, Infinity for what it does not limit; undefined: there is none, or no more. */
  mostOf: (key: string) => Amounts | undefined;
  log: Log;
  /** Names the holder of slots; new with each start. */
  gateway: string;
  /** How often a gateway gives back what it does not need, in ms. */
  tickMs: number;
  /** A clock that all gateways share, in milliseconds since the epoch. */
  now: () => number;
}): BudgetSlices {
  const leases = new Map<string, Lease>();
  const leaseOf = (key: string): Lease => {
    const lease = leases.get(key) ?? newLease(key);
    leases.set(key, lease);
    return lease;
  };

  const ask = async (lease: Lease, most: Amounts, need: Amounts): Promise<void> => {
    const short = { ...need };
    for (const kind of kinds) short[kind] = Math.max(0, need[kind] - lease.left[kind]);
    let slice = { needed: short, granted: none(), taken: none() };
    let { window } = lease;
    await budgets.change(lease.key, (current) => {
      const { entry, ...decided } = decideSlice(current, { holding: lease, most, need, short, gateway, now: now() });
      slice = decided;
      window = entry.window;
      return entry;
    });
    roll(lease, window);
    lease.slotsUntil = now() + slotMs;
    const { needed, granted, taken } = slice;
    for (const kind of kinds) {
      lease.left[kind] += granted[kind];
      lease.taken[kind] = taken[kind] + granted[kind];
      if (granted[kind] > 0) lease.slice[kind] = Math.max(1, granted[kind] * 2);
      // Kinds of which the slice had enough were not asked for; other gateways may have spent those meanwhile, which is no refusal.
      else if (needed[kind] > 0 && lease.left[kind] < need[kind]) {
        lease.refusedUntil[kind] = now() + refusedForMs;
        lease.refusedNeed[kind] = need[kind];
      }
    }
  };

  /** Gives back what nobody here needs, and renews the slots. */
  const tidy = async (lease: Lease): Promise<void> => {
    const excess = none();
    for (const kind of kinds) {
      excess[kind] = Math.max(0, lease.left[kind] - lease.spentSinceTick[kind] * 2);
      lease.spentSinceTick[kind] = 0;
    }
    const mine = lease.held + lease.left.concurrency;
    const renew = mine > 0 && lease.slotsUntil - now() < slotMs - renewAfterMs;
    if (!renew && kinds.every((kind) => excess[kind] === 0)) return;
    // Subtracted first, so that it is not spent while it is being given back.
    for (const kind of kinds) lease.left[kind] -= excess[kind];
    const { window } = lease;
    const keep = mine - excess.concurrency;
    await budgets.change(lease.key, (current) => decideReturn(current, { excess, window, keep, gateway, now: now() }));
    lease.slotsUntil = now() + slotMs;
    for (const kind of kinds) lease.taken[kind] = Math.max(0, lease.taken[kind] - excess[kind]);
  };
  const rollToNow = (lease: Lease): void => {
    // The minute never goes back, because another gateway's clock may be ahead.
    if (windowOf(now()) > lease.window) roll(lease, windowOf(now()));
  };
  const tidyAll = async (): Promise<void> => {
    for (const [key, lease] of leases) {
      rollToNow(lease);
      if (mostOf(key) === undefined && lease.held === 0) {
        leases.delete(key);
        continue;
      }
      if (lease.asking !== undefined) continue;
      lease.asking = tidy(lease)
        .catch((error: unknown) => log.warn({ err: error, limit: key }, "what is left of a limit was not given back"))
        .finally(() => {
          lease.asking = undefined;
        });
      await lease.asking;
    }
  };
  let tidying: Promise<void> | undefined;
  const timer = setInterval(() => {
    tidying ??= tidyAll().finally(() => {
      tidying = undefined;
    });
  }, tickMs);
  timer.unref();

  return {
    async take(key, need) {
      const lease = leaseOf(key);
      for (;;) {
        const most = mostOf(key);
        if (most === undefined) {
          lease.held += need.concurrency; // lifted meanwhile
          return grant(lease, need);
        }
        rollToNow(lease);
        const missing = kinds.find((kind) => need[kind] > lease.left[kind]);
        if (missing === undefined) {
          for (const kind of kinds) {
            lease.left[kind] -= need[kind];
            lease.spentSinceTick[kind] += need[kind];
          }
          lease.held += need.concurrency;
          return grant(lease, need);
        }
        if (now() < lease.refusedUntil[missing] && need[missing] >= lease.refusedNeed[missing])
          return { ...knownOf(lease), refused: missing, most };
        if (lease.asking !== undefined) {
          await lease.asking; // it may have brought enough for this one too
          continue;
        }
        lease.asking = ask(lease, most, need).finally(() => {
          lease.asking = undefined;
        });
        await lease.asking;
      }
    },
    limitChanged(key) {
      const lease = leases.get(key);
      if (lease !== undefined) Object.assign(lease, { left: none(), refusedUntil: none() });
    },
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await tidying;
      for (const lease of leases.values()) lease.spentSinceTick = none();
      await tidyAll();
    },
  };
}

const newLease = (key: string): Lease => ({
  key,
  window: 0,
  left: none(),
  slice: { requests: 1, tokens: 1, concurrency: 1 },
  held: 0,
  taken: none(),
  refusedUntil: none(),
  refusedNeed: none(),
  spentSinceTick: none(),
  slotsUntil: 0,
  asking: undefined,
});

/** Begins a new minute, in which what is left of the old one does not count. Slots do not depend on minutes. */
function roll(lease: Lease, window: number): void {
  if (window === lease.window) return;
  lease.window = window;
  for (const kind of ["requests", "tokens"] as const) {
    lease.left[kind] = 0;
    lease.taken[kind] = 0;
    lease.refusedUntil[kind] = 0;
  }
}

const knownOf = (lease: Lease): KnownBudget => ({
  key: lease.key,
  left: (kind, most) => Math.max(0, most - lease.taken[kind] + lease.left[kind]),
});

function grant(lease: Lease, spent: Amounts): Grant {
  const { window } = lease;
  const end = (tokens: number): void => {
    lease.held -= spent.concurrency;
    lease.left.concurrency += spent.concurrency;
    // If tokens are not limited, nothing was reserved.
    if (lease.window !== window || spent.tokens === 0 || tokens === Number.POSITIVE_INFINITY) return;
    lease.left.tokens += spent.tokens - tokens;
  };
  return {
    ...knownOf(lease),
    end,
    undo() {
      if (lease.window === window) lease.left.requests += spent.requests;
      end(0);
    },
  };
}
