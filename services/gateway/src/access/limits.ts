/**
 * Limits on requests, tokens and concurrency, of a tenant and of each adapter, kept by all gateways together.
 *
 *   KV limits   what is allowed                       watched
 *   KV budgets  what gateways have taken of it        compare-and-set, a slice at a time
 *
 * A slice is at most an eighth of what is left and grows with demand, so a busy limit costs a round trip for hundreds of
 * requests, and the last requests of a small one are found by whichever gateway is asked. What a gateway took and does not
 * need goes back within a second or two; what a gateway that died had taken is free with the next minute (slots: after 15 s).
 *
 * Exact: the sum of what all gateways admit into one minute never exceeds the limit, in requests and in tokens, because a request
 * reserves the most it can use, and gets back what the engine did not count. A minute is one of NATS' clock (server-clock.ts), so two
 * neighbouring ones can meet in a burst of twice the limit. With the bus away, limited tenants get 503 once the
 * slices are spent.
 */
import type { Bus } from "@loraline/bus";
import { buckets, type BudgetState, limitKey, type LimitState, parseLimitKey } from "@loraline/contracts";
import { type Log, PermanentError } from "@loraline/runtime";
import { RateLimitError } from "../errors.ts";

const minuteMs = 60_000;
/** How long slots last without renewal. */
const slotMs = 15_000;
const renewAfterMs = slotMs / 3;
/** After a refusal the budget is not asked again for this long: a flood of refused requests costs no round trips. */
const refusedForMs = 200;

const kinds = ["requests", "tokens", "concurrency"] as const;
type Kind = (typeof kinds)[number];
type Amounts = Record<Kind, number>;

export interface Admission {
  /** OpenAI's `x-ratelimit-*`, as far as this gateway knows: others may have taken more since. */
  headers: Record<string, string>;
  /**
   * The request is over; later calls do nothing.
   * @param tokens - what it used; more than it reserved is owed, and taken from the minute before the next request is admitted.
   * Infinity: nobody knows, so it is what it reserved.
   */
  end(tokens: number): void;
}

interface LimitedRequest {
  tenant: string;
  /** null: the base itself. */
  adapter: string | null;
  /** The most that it can use, prompt and answer together. Asked only when tokens are limited. */
  mostTokens(): number;
}

export interface Limits extends AsyncDisposable {
  /**
   * undefined when nothing limits the request; else it is counted until the admission is ended.
   * @throws RateLimitError, PermanentError 400 `request_exceeds_limit`.
   */
  admit(request: LimitedRequest): Promise<Admission> | undefined;
  /** As they are now, by key `<tenant>` or `<tenant>.<adapter>`. */
  all(): ReadonlyMap<string, LimitState>;
}

/** This gateway's part of one budget. */
interface Lease {
  key: string;
  window: number;
  /** Taken and not spent; below zero: spent and not taken yet. */
  left: Amounts;
  slice: Amounts;
  /** Requests in flight. */
  held: number;
  /** Taken by all, as last seen. */
  taken: Amounts;
  refusedUntil: Amounts;
  /** What was refused; less may still be there. */
  refusedNeed: Amounts;
  spentSinceTick: Amounts;
  slotsUntil: number;
  asking: Promise<void> | undefined;
}

const none = (): Amounts => ({ requests: 0, tokens: 0, concurrency: 0 });

export async function createLimits({
  bus,
  log,
  gateway,
  signal,
  tickMs = 1000,
  now = () => Date.now(),
}: {
  bus: Pick<Bus, "bucket">;
  log: Log;
  /** Names the holder of slots; new with each start. */
  gateway: string;
  signal: AbortSignal;
  tickMs?: number;
  /** A clock that all gateways share, in milliseconds since the epoch. */
  now?: () => number;
}): Promise<Limits> {
  const budgets = await bus.bucket(buckets.budgets);
  const limits = new Map<string, LimitState>();
  const leases = new Map<string, Lease>();
  const watched = await bus.bucket(buckets.limits);
  await new Promise<void>((resolve, reject) => {
    const onChange = (key: string, limit: LimitState | undefined): void => {
      if (limit === undefined) limits.delete(key);
      else limits.set(key, limit);
      // What was taken under the old limit is not spent under the new one.
      const lease = leases.get(key);
      if (lease !== undefined) Object.assign(lease, { left: none(), refusedUntil: none() });
    };
    watched.watch({ signal, onChange, onReady: resolve }).catch(reject);
  });

  const leaseOf = (key: string): Lease => {
    let lease = leases.get(key);
    if (lease === undefined) {
      lease = {
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
      };
      leases.set(key, lease);
    }
    return lease;
  };
  /** A new minute: what is left of the old one is worth nothing. Slots are not of a minute. */
  const roll = (lease: Lease, window: number): void => {
    if (window === lease.window) return;
    lease.window = window;
    for (const kind of ["requests", "tokens"] as const) {
      lease.left[kind] = 0;
      lease.taken[kind] = 0;
      lease.refusedUntil[kind] = 0;
    }
  };
  const windowNow = (): number => Math.floor(now() / minuteMs);

  /** One compare-and-set: takes what is needed, and a slice more if there is plenty. */
  const ask = async (lease: Lease, limit: LimitState, need: Amounts): Promise<void> => {
    const most = mostOf(limit);
    const short = { ...need };
    for (const kind of kinds) short[kind] = Math.max(0, need[kind] - lease.left[kind]);
    let needed = short;
    let granted = none();
    let taken = none();
    let window = lease.window;
    await budgets.change(lease.key, (current) => {
      granted = none();
      const entry = currentEntry(current, { window: windowNow(), now: now() });
      window = entry.window;
      // A new minute, and nothing of the old one counts any more.
      needed = window === lease.window ? short : { ...need, concurrency: short.concurrency };
      // Its own slots by its own account: the entry's may have run out while the bus was away.
      const others = Object.values(without(entry.slots, gateway)).reduce((sum, { count }) => sum + count, 0);
      taken = { requests: entry.requests, tokens: entry.tokens, concurrency: others + lease.held + lease.left.concurrency };
      for (const kind of kinds) {
        const room = most[kind] - taken[kind];
        if (needed[kind] === 0 || room < needed[kind]) continue;
        granted[kind] = Math.min(room, Math.max(needed[kind], Math.min(lease.slice[kind], Math.floor(room / 8))));
      }
      const { slots } = entry;
      const mine = lease.held + lease.left.concurrency + granted.concurrency;
      return {
        window,
        requests: entry.requests + granted.requests,
        tokens: entry.tokens + granted.tokens,
        slots:
          mine === 0 ? without(slots, gateway) : { ...slots, [gateway]: { count: mine, until: new Date(now() + slotMs).toISOString() } },
      };
    });
    roll(lease, window);
    lease.slotsUntil = now() + slotMs;
    for (const kind of kinds) {
      lease.left[kind] += granted[kind];
      lease.taken[kind] = taken[kind] + granted[kind];
      if (granted[kind] > 0) lease.slice[kind] = Math.max(1, granted[kind] * 2);
      // What was not asked for, because there was enough, others may have spent meanwhile: that is no refusal.
      else if (needed[kind] > 0 && lease.left[kind] < need[kind]) {
        lease.refusedUntil[kind] = now() + refusedForMs;
        lease.refusedNeed[kind] = need[kind];
      }
    }
  };

  /** @returns the minute it was taken from. */
  const take = async (lease: Lease, need: Amounts): Promise<number> => {
    for (;;) {
      const limit = limits.get(lease.key);
      if (limit === undefined) {
        lease.held += need.concurrency; // lifted meanwhile
        return lease.window;
      }
      // Never back: another gateway's clock may be ahead.
      if (windowNow() > lease.window) roll(lease, windowNow());
      const missing = kinds.find((kind) => need[kind] > lease.left[kind]);
      if (missing === undefined) {
        for (const kind of kinds) {
          lease.left[kind] -= need[kind];
          lease.spentSinceTick[kind] += need[kind];
        }
        lease.held += need.concurrency;
        return lease.window;
      }
      if (now() < lease.refusedUntil[missing] && need[missing] >= lease.refusedNeed[missing]) throw refusal(lease, limit, missing, now());
      if (lease.asking !== undefined) {
        await lease.asking; // it may have brought enough for this one too
        continue;
      }
      lease.asking = ask(lease, limit, need).finally(() => {
        lease.asking = undefined;
      });
      await lease.asking;
    }
  };

  const giveBack = (lease: Lease, spent: Amounts, window: number, tokens: number): void => {
    lease.held -= spent.concurrency;
    lease.left.concurrency += spent.concurrency;
    // Nothing was reserved where tokens are not limited.
    if (lease.window !== window || spent.tokens === 0 || tokens === Number.POSITIVE_INFINITY) return;
    lease.left.tokens += spent.tokens - tokens;
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
    // Not spent while it is on its way back.
    for (const kind of kinds) lease.left[kind] -= excess[kind];
    const { window } = lease;
    const keep = mine - excess.concurrency;
    await budgets.change(lease.key, (current) => {
      const entry = currentEntry(current, { window: windowNow(), now: now() });
      const same = entry.window === window;
      const slots =
        keep === 0
          ? without(entry.slots, gateway)
          : { ...entry.slots, [gateway]: { count: keep, until: new Date(now() + slotMs).toISOString() } };
      const back = (kind: "requests" | "tokens"): number => Math.max(0, entry[kind] - (same ? excess[kind] : 0));
      return { window: entry.window, requests: back("requests"), tokens: back("tokens"), slots };
    });
    lease.slotsUntil = now() + slotMs;
    for (const kind of kinds) lease.taken[kind] = Math.max(0, lease.taken[kind] - excess[kind]);
  };
  const tidyAll = async (): Promise<void> => {
    for (const [key, lease] of leases) {
      if (windowNow() > lease.window) roll(lease, windowNow());
      if (!limits.has(key) && lease.held === 0) {
        leases.delete(key);
        continue;
      }
      // One at a time with `ask`, whose sums would be wrong otherwise.
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

  const admitAll = async (keys: readonly string[], { mostTokens }: LimitedRequest): Promise<Admission> => {
    const taken: { lease: Lease; spent: Amounts; window: number }[] = [];
    const undo = (tokens: number): void => {
      for (const { lease, spent, window } of taken) giveBack(lease, spent, window, tokens);
    };
    try {
      for (const key of keys) {
        const limit = limits.get(key);
        if (limit === undefined) continue;
        const most = mostOf(limit);
        const tokens = Number.isFinite(most.tokens) ? mostTokens() : 0;
        if (tokens > most.tokens) throw exceeds(key, tokens, most.tokens);
        const need: Amounts = {
          requests: Number.isFinite(most.requests) ? 1 : 0,
          tokens,
          concurrency: Number.isFinite(most.concurrency) ? 1 : 0,
        };
        const lease = leaseOf(key);
        const window = await take(lease, need);
        taken.push({ lease, spent: need, window });
      }
    } catch (error) {
      // The request itself was counted by the first limit; giving it back keeps the refused ones from using it up.
      for (const { lease, spent, window } of taken) if (lease.window === window) lease.left.requests += spent.requests;
      undo(0);
      throw error;
    }
    let over = false;
    return {
      headers: headersOf(
        taken.flatMap(({ lease }) => {
          const limit = limits.get(lease.key);
          return limit === undefined ? [] : [{ lease, limit }];
        }),
        now(),
      ),
      end(tokens) {
        if (over) return;
        over = true;
        undo(tokens);
      },
    };
  };

  return {
    admit(request) {
      if (limits.size === 0) return undefined;
      const { tenant, adapter } = request;
      const keys = [limitKey({ tenant }), ...(adapter === null ? [] : [limitKey({ tenant, adapter })])].filter((key) => limits.has(key));
      return keys.length === 0 ? undefined : admitAll(keys, request);
    },
    all: () => limits,
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await tidying;
      for (const lease of leases.values()) lease.spentSinceTick = none();
      await tidyAll();
    },
  };
}

const mostOf = ({ requestsPerMinute, tokensPerMinute, concurrency }: LimitState): Amounts => ({
  requests: requestsPerMinute ?? Number.POSITIVE_INFINITY,
  tokens: tokensPerMinute ?? Number.POSITIVE_INFINITY,
  concurrency: concurrency ?? Number.POSITIVE_INFINITY,
});

/**
 * The entry as of now: of this minute, and without the slots of gateways that are gone. A minute further ahead than clocks drift
 * apart is a mistake, and would hold everybody up until it comes.
 */
function currentEntry(entry: BudgetState | undefined, { window, now }: { window: number; now: number }): BudgetState {
  if (entry === undefined) return { window, requests: 0, tokens: 0, slots: {} };
  const slots = Object.fromEntries(Object.entries(entry.slots).filter(([, { until }]) => Date.parse(until) > now));
  const known = entry.window >= window && entry.window <= window + 1;
  return known ? { ...entry, slots } : { window, requests: 0, tokens: 0, slots };
}

function without<T>(record: Record<string, T>, key: string): Record<string, T> {
  const { [key]: _gone, ...rest } = record;
  return rest;
}

const secondsLeft = (now: number): number => Math.max(1, Math.ceil((minuteMs - (now % minuteMs)) / 1000));

/** Of several limits the one with the least left counts. */
function headersOf(limited: readonly { lease: Lease; limit: LimitState }[], now: number): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const kind of ["requests", "tokens"] as const) {
    const rows = limited.flatMap(({ lease, limit }) => {
      const most = mostOf(limit)[kind];
      return Number.isFinite(most) ? [{ most, left: Math.max(0, most - lease.taken[kind] + lease.left[kind]) }] : [];
    });
    const [tightest] = rows.toSorted((a, b) => a.left - b.left);
    if (tightest === undefined) continue;
    headers[`x-ratelimit-limit-${kind}`] = String(tightest.most);
    headers[`x-ratelimit-remaining-${kind}`] = String(tightest.left);
    headers[`x-ratelimit-reset-${kind}`] = `${secondsLeft(now)}s`;
  }
  return headers;
}

const whose = (key: string): string => {
  const { tenant, adapter } = parseLimitKey(key);
  return adapter === null ? `tenant ${tenant}` : `adapter ${tenant}/${adapter}`;
};

function refusal(lease: Lease, limit: LimitState, kind: Kind, now: number): RateLimitError {
  const words = {
    requests: `${limit.requestsPerMinute} requests per minute`,
    tokens: `${limit.tokensPerMinute} tokens per minute; each request reserves its prompt and max_tokens`,
    concurrency: `${limit.concurrency} requests at once`,
  }[kind];
  return new RateLimitError(kind, `Rate limit reached for ${whose(lease.key)}: ${words}. Try again later.`, {
    retryAfter: kind === "concurrency" ? 1 : secondsLeft(now),
    headers: headersOf([{ lease, limit }], now),
  });
}

const exceeds = (key: string, tokens: number, most: number): PermanentError =>
  new PermanentError(
    "request_exceeds_limit",
    `This request may use up to ${tokens} tokens, and the limit of ${whose(key)} is ${most} per minute, so it can never be admitted. Set max_tokens, or shorten the prompt.`,
    { status: 400, param: "max_tokens" },
  );
