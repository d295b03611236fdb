/** How much of a budget a gateway takes at once, and how the budget's entry in KV looks after taking or returning some. */
import type { BudgetState } from "@loraline/contracts";

export const minuteMs = 60_000;
/** How long slots last without renewal. */
export const slotMs = 15_000;

export const kinds = ["requests", "tokens", "concurrency"] as const;
export type Kind = (typeof kinds)[number];
/** Requests and tokens of one minute; concurrency: slots, which are of no minute. */
export type Amounts = Record<Kind, number>;
export const none = (): Amounts => ({ requests: 0, tokens: 0, concurrency: 0 });

/** What a gateway holds of one budget. */
export interface Holding {
  /** The minute that `left` is of, counted since the epoch. */
  window: number;
  /** Taken and not spent; below zero: spent and not taken yet. */
  left: Amounts;
  /** How much it would like to take at once. */
  slice: Amounts;
  /** Requests in flight. */
  held: number;
}

interface Here {
  gateway: string;
  /** Milliseconds since the epoch. */
  now: number;
}

interface Slice {
  entry: BudgetState;
  /** What had to be taken. */
  needed: Amounts;
  granted: Amounts;
  /** Taken by all gateways before that. */
  taken: Amounts;
}

export const windowOf = (now: number): number => Math.floor(now / minuteMs);

/**
 * Takes what is needed, and a slice more if there is plenty; nothing of a kind of which less is there than is needed.
 * @param options.most - the limit; Infinity where there is none.
 * @param options.need - what the request needs.
 * @param options.short - what of that the gateway had not taken already.
 */
export function decideSlice(
  current: BudgetState | undefined,
  { holding, most, need, short, gateway, now }: Here & { holding: Holding; most: Amounts; need: Amounts; short: Amounts },
): Slice {
  const { window, requests, tokens, slots } = currentEntry(current, now);
  // In a new minute nothing counts that was taken in the old one.
  const needed = window === holding.window ? short : { ...need, concurrency: short.concurrency };
  const mine = holding.held + holding.left.concurrency;
  // The gateway's own slots are counted by its own account: the entry's may have run out while the bus was away.
  const others = Object.values(without(slots, gateway)).reduce((sum, { count }) => sum + count, 0);
  const taken = { requests, tokens, concurrency: others + mine };
  const granted = none();
  for (const kind of kinds) {
    const room = most[kind] - taken[kind];
    if (needed[kind] === 0 || room < needed[kind]) continue;
    granted[kind] = Math.min(room, Math.max(needed[kind], Math.min(holding.slice[kind], Math.floor(room / 8))));
  }
  return {
    entry: {
      window,
      requests: requests + granted.requests,
      tokens: tokens + granted.tokens,
      slots: withSlots(slots, mine + granted.concurrency, { gateway, now }),
    },
    needed,
    granted,
    taken,
  };
}

/**
 * Gives back what is not needed, and renews the gateway's slots.
 * @param options.window - the minute in which `excess` was taken; in another one its requests and tokens are worth nothing.
 * @param options.keep - the slots that the gateway goes on holding.
 */
export function decideReturn(
  current: BudgetState | undefined,
  { excess, window, keep, gateway, now }: Here & { excess: Amounts; window: number; keep: number },
): BudgetState {
  const entry = currentEntry(current, now);
  const back = (kind: "requests" | "tokens"): number => Math.max(0, entry[kind] - (entry.window === window ? excess[kind] : 0));
  return {
    window: entry.window,
    requests: back("requests"),
    tokens: back("tokens"),
    slots: withSlots(entry.slots, keep, { gateway, now }),
  };
}

/**
 * The entry as of now: of this minute, and without the slots of gateways that are gone. A minute further ahead than clocks drift
 * apart is a mistake, and would hold everybody up until it comes.
 */
function currentEntry(entry: BudgetState | undefined, now: number): BudgetState {
  const window = windowOf(now);
  if (entry === undefined) return { window, requests: 0, tokens: 0, slots: {} };
  const slots = Object.fromEntries(Object.entries(entry.slots).filter(([, { until }]) => Date.parse(until) > now));
  const known = entry.window >= window && entry.window <= window + 1;
  return known ? { ...entry, slots } : { window, requests: 0, tokens: 0, slots };
}

const withSlots = (slots: BudgetState["slots"], count: number, { gateway, now }: Here): BudgetState["slots"] =>
  count === 0 ? without(slots, gateway) : { ...slots, [gateway]: { count, until: new Date(now + slotMs).toISOString() } };

function without<T>(record: Record<string, T>, key: string): Record<string, T> {
  const { [key]: _gone, ...rest } = record;
  return rest;
}
