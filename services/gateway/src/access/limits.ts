/**
 * Limits on requests, tokens and concurrency, of a tenant and of each adapter, kept by all gateways together.
 *
 *   KV limits   what is allowed                       watched
 *   KV budgets  what gateways have taken of it        by slices: budget-slices.ts
 *
 * The limits are exact: what all gateways together admit in one minute never exceeds a limit, because each request reserves the most that
 * it can use, and gets back what it did not use. Minutes are those of NATS' clock (server-clock.ts), so the end of one minute and the start
 * of the next can together make a burst of twice the limit. While NATS does not answer, limited tenants get 503 once the slices are spent.
 */
import type { Bus } from "@loraline/bus";
import { buckets, limitKey, type LimitState, parseLimitKey } from "@loraline/contracts";
import { type Log, PermanentError } from "@loraline/runtime";
import { RateLimitError } from "../errors.ts";
import { createBudgetSlices, type Grant, type Refusal } from "./budget-slices.ts";
import { type Amounts, minuteMs } from "./decide-slice.ts";

export interface Admission {
  /** OpenAI's `x-ratelimit-*`, as far as this gateway knows: others may have taken more since. */
  headers: Record<string, string>;
  /**
   * To be called when the request is over; later calls do nothing.
   * @param tokens - the tokens that it used. If they are more than it reserved, the rest is taken before the next request is admitted.
   * Infinity: unknown, so it counts as what it reserved.
   */
  end(tokens: number): void;
}

interface LimitedRequest {
  tenant: string;
  /** null: the base itself. */
  adapter: string | null;
  /** The most tokens that the request can use, prompt and answer together. Called only if tokens are limited. */
  mostTokens(): number;
}

export interface Limits extends AsyncDisposable {
  /**
   * Admits a request, which is counted until the admission is ended. undefined: nothing limits the request.
   * @throws RateLimitError, PermanentError 400 `request_exceeds_limit`.
   */
  admit(request: LimitedRequest): Promise<Admission> | undefined;
  /** The present limits, by key `<tenant>` or `<tenant>.<adapter>`. */
  all(): ReadonlyMap<string, LimitState>;
}

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
  const limits = new Map<string, LimitState>();
  const mostAt = (key: string): Amounts | undefined => {
    const limit = limits.get(key);
    return limit && mostOf(limit);
  };
  const [budgets, watched] = await Promise.all([bus.bucket(buckets.budgets), bus.bucket(buckets.limits)]);
  const slices = createBudgetSlices({ budgets, mostOf: mostAt, log, gateway, tickMs, now });
  await new Promise<void>((resolve, reject) => {
    const onChange = (key: string, limit: LimitState | undefined): void => {
      if (limit === undefined) limits.delete(key);
      else limits.set(key, limit);
      slices.limitChanged(key);
    };
    watched.watch({ signal, onChange, onReady: resolve }).catch(reject);
  });

  const admitAll = async (keys: readonly string[], { mostTokens }: LimitedRequest): Promise<Admission> => {
    const grants: Grant[] = [];
    try {
      for (const key of keys) {
        const most = mostAt(key);
        if (most === undefined) continue;
        const tokens = Number.isFinite(most.tokens) ? mostTokens() : 0;
        if (tokens > most.tokens) throw exceeds(key, tokens, most.tokens);
        const taken = await slices.take(key, {
          requests: Number.isFinite(most.requests) ? 1 : 0,
          tokens,
          concurrency: Number.isFinite(most.concurrency) ? 1 : 0,
        });
        if (taken.refused !== undefined) throw rateLimitError(taken, now());
        grants.push(taken);
      }
    } catch (error) {
      // The first limit has counted the request; undoing that keeps refused requests from using it up.
      for (const grant of grants) grant.undo();
      throw error;
    }
    let over = false;
    return {
      headers: headersOf(
        grants.flatMap(({ key, left }) => {
          const most = mostAt(key);
          return most === undefined ? [] : [{ most, left }];
        }),
        now(),
      ),
      end(tokens) {
        if (over) return;
        over = true;
        for (const grant of grants) grant.end(tokens);
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
    [Symbol.asyncDispose]: () => slices[Symbol.asyncDispose](),
  };
}

const mostOf = ({ requestsPerMinute, tokensPerMinute, concurrency }: LimitState): Amounts => ({
  requests: requestsPerMinute ?? Number.POSITIVE_INFINITY,
  tokens: tokensPerMinute ?? Number.POSITIVE_INFINITY,
  concurrency: concurrency ?? Number.POSITIVE_INFINITY,
});

const secondsLeft = (now: number): number => Math.max(1, Math.ceil((minuteMs - (now % minuteMs)) / 1000));

/** The headers of the limit with the least left, if several limits apply. */
function headersOf(limited: readonly Pick<Refusal, "most" | "left">[], now: number): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const kind of ["requests", "tokens"] as const) {
    const rows = limited
      .filter(({ most }) => Number.isFinite(most[kind]))
      .map(({ most, left }) => ({ most: most[kind], left: left(kind, most[kind]) }));
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

function rateLimitError(refusal: Refusal, now: number): RateLimitError {
  const { key, refused, most } = refusal;
  const words = {
    requests: `${most.requests} requests per minute`,
    tokens: `${most.tokens} tokens per minute; each request reserves its prompt and max_tokens`,
    concurrency: `${most.concurrency} requests at once`,
  }[refused];
  return new RateLimitError(refused, `Rate limit reached for ${whose(key)}: ${words}. Try again later.`, {
    retryAfter: refused === "concurrency" ? 1 : secondsLeft(now),
    headers: headersOf([refusal], now),
  });
}

const exceeds = (key: string, tokens: number, most: number): PermanentError =>
  new PermanentError(
    "request_exceeds_limit",
    `This request may use up to ${tokens} tokens, and the limit of ${whose(key)} is ${most} per minute, so it can never be admitted. Set max_tokens, or shorten the prompt.`,
    { status: 400, param: "max_tokens" },
  );
