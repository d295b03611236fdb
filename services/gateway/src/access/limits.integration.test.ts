/** Limits, kept by several gateways on one NATS. */
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, type LimitState } from "@loraline/contracts";
import { createTelemetry } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { RateLimitError } from "../errors.ts";
import {
  base,
  type Engine,
  type GatewayUnderTest,
  putReplica,
  quietLog,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
} from "../gateway-under-test.ts";
import { createServerClock } from "./server-clock.ts";
import { type Admission, createLimits, type Limits } from "./limits.ts";

const limitOf = (over: Partial<LimitState>): LimitState => ({ by: "test", at: new Date().toISOString(), ...over });

interface Gateways extends AsyncDisposable {
  limits: Limits[];
  /** Compare-and-sets of all of them. */
  asked(): number;
  /** The clock of all of them, milliseconds. */
  clock: { now: number };
  set(key: string, limit: LimitState): Promise<void>;
}

const test = testWithNats.extend("gateways", async ({ nats }, { onCleanup }): Promise<Gateways> => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const stop = new AbortController();
  owned.defer(() => stop.abort());
  const clock = { now: Math.floor(Date.now() / 60_000) * 60_000 + 10_000 };
  let asked = 0;
  const made = await Promise.all(
    ["a", "b", "c"].map(async (gateway) => {
      const nc = await nats.connect();
      owned.defer(() => nc.close());
      await ensureStreams(nc);
      const bus = createBus({ nc, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
      const bucket: typeof bus.bucket = async (def) => {
        const opened = await bus.bucket(def);
        const change: typeof opened.change = (key, how) => opened.change(key, (current) => ((asked += 1), how(current)));
        return { ...opened, change };
      };
      const limits = await createLimits({ bus: { bucket }, log: quietLog, gateway, signal: stop.signal, tickMs: 20, now: () => clock.now });
      owned.use(limits);
      return { limits, bus };
    }),
  );
  const [first] = made;
  if (first === undefined) throw new Error("no gateway");
  const limits = made.map((one) => one.limits);
  return {
    limits,
    clock,
    asked: () => asked,
    async set(key, limit) {
      await (await first.bus.bucket(buckets.limits)).put(key, limit);
      await expect.poll(() => limits.every((one) => one.all().get(key)?.at === limit.at)).toBe(true);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
});

test("gateways whose own clocks are minutes apart hold one limit together", async ({ nats, nc: first, tenant }) => {
  await ensureStreams(first);
  await using owned = new AsyncDisposableStack();
  const stop = new AbortController();
  owned.defer(() => stop.abort());
  const limits = await Promise.all(
    [-125_000, 0, 125_000].map(async (aheadMs) => {
      const nc = await nats.connect();
      owned.defer(() => nc.close());
      const bus = createBus({ nc, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
      await (await bus.bucket(buckets.limits)).put(tenant, limitOf({ requestsPerMinute: 10 }));
      const bucket = await bus.bucket(buckets.budgets);
      const clock = owned.use(await createServerClock({ bucket, log: quietLog, elapsed: () => performance.now() + aheadMs }));
      return owned.use(await createLimits({ bus, log: quietLog, gateway: `g${aheadMs}`, signal: stop.signal, tickMs: 20, now: clock.now }));
    }),
  );
  if (Date.now() % 60_000 > 50_000) await new Promise((resolve) => setTimeout(resolve, 60_500 - (Date.now() % 60_000)));
  let admitted = 0;
  for (let round = 0; round < 60; round++) {
    for (const one of limits) {
      try {
        const admission = await one.admit({ tenant, adapter: null, mostTokens: () => 0 });
        if (admission === undefined) throw new Error("not limited");
        admitted += 1;
      } catch (error) {
        if (!(error instanceof RateLimitError)) throw error;
      }
    }
  }
  expect(admitted).toBeLessThanOrEqual(10);
  expect(admitted).toBeGreaterThan(5);
});

interface Outcome {
  admitted: Admission[];
  refused: RateLimitError[];
}

/** Asks all gateways in turn, `count` times, all at once. */
async function flood(
  { limits }: Gateways,
  count: number,
  request: { tenant: string; adapter?: string; tokens?: number },
): Promise<Outcome> {
  const outcome: Outcome = { admitted: [], refused: [] };
  await Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const gateway = limits[index % limits.length];
      try {
        const admission = await gateway?.admit({
          tenant: request.tenant,
          adapter: request.adapter ?? null,
          mostTokens: () => request.tokens ?? 0,
        });
        if (admission === undefined) throw new Error("not limited");
        outcome.admitted.push(admission);
      } catch (error) {
        if (!(error instanceof RateLimitError)) throw error;
        outcome.refused.push(error);
      }
    }),
  );
  return outcome;
}

describe("three gateways together", () => {
  test.for([1, 5, 37, 400])("admit %i requests of a minute: all of them, and not one more", async (most, { gateways, tenant }) => {
    expect(gateways.limits[0]?.admit({ tenant, adapter: "x", mostTokens: () => 0 })).toBeUndefined();
    await gateways.set(tenant, limitOf({ requestsPerMinute: most }));
    const { admitted, refused } = await flood(gateways, most * 3 + 10, { tenant });
    expect(admitted.length).toBeLessThanOrEqual(most);
    // What one took and did not need comes back, so in the end nothing of the minute is lost.
    let total = admitted.length;
    await expect
      .poll(
        async () => {
          const more = await flood(gateways, 3, { tenant });
          total += more.admitted.length;
          return total;
        },
        { timeout: 60_000, interval: 50 },
      )
      .toBe(most);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect((await flood(gateways, 9, { tenant })).admitted).toEqual([]);
    expect(refused[0]).toMatchObject({
      status: 429,
      kind: "requests",
      retryAfter: 50,
      headers: { "x-ratelimit-limit-requests": String(most) },
    });

    gateways.clock.now += 60_000;
    expect((await flood(gateways, 1, { tenant })).admitted).toHaveLength(1);
  });

  test("need few round trips for many requests, and none for those they refuse", async ({ gateways, tenant }) => {
    await gateways.set(tenant, limitOf({ requestsPerMinute: 30_000 }));
    const before = gateways.asked();
    for (let round = 0; round < 20; round++) expect((await flood(gateways, 600, { tenant })).refused).toEqual([]);
    expect(gateways.asked() - before).toBeLessThan(600); // for 12,000 requests, with what is given back every 20 ms here
    await gateways.set(`${tenant}-small`, limitOf({ requestsPerMinute: 1 }));
    await flood(gateways, 30, { tenant: `${tenant}-small` });
    const refusing = gateways.asked();
    for (let round = 0; round < 20; round++) await flood(gateways, 600, { tenant: `${tenant}-small` });
    expect(gateways.asked() - refusing).toBeLessThan(600);
  });

  test("never reserve more tokens than there are, and use again what was not needed", async ({ gateways, tenant }) => {
    await gateways.set(tenant, limitOf({ tokensPerMinute: 1000 }));
    const { admitted, refused } = await flood(gateways, 60, { tenant, tokens: 100 });
    expect(admitted.length).toBeLessThanOrEqual(10);
    expect(admitted.length).toBeGreaterThanOrEqual(7);
    expect(refused[0]).toMatchObject({ kind: "tokens" });
    for (const admission of admitted) admission.end(10);
    let used = admitted.length * 10;
    // Each of the later ones really uses all it reserved.
    await expect
      .poll(
        async () => {
          const more = await flood(gateways, 3, { tenant, tokens: 50 });
          for (const admission of more.admitted) admission.end(50);
          used += more.admitted.length * 50;
          return used;
        },
        { timeout: 60_000, interval: 50 },
      )
      .toBeGreaterThan(950);
    expect(used).toBeLessThanOrEqual(1000);
    await expect(gateways.limits[0]?.admit({ tenant, adapter: null, mostTokens: () => 1001 })).rejects.toMatchObject({
      status: 400,
      code: "request_exceeds_limit",
      param: "max_tokens",
    });
  });

  test("refuse nothing while there is plenty, whoever takes what another one has asked for", async ({
    gateways: { limits, ...gateways },
    tenant,
  }) => {
    await gateways.set(tenant, limitOf({ requestsPerMinute: 100_000, tokensPerMinute: 1_000_000 }));
    for (let round = 0; round < 60; round++) {
      const needs = [300, 1, 900, 1, 1, 2000, 1];
      const asked = needs.map(async (tokens) => limits[0]?.admit({ tenant, adapter: null, mostTokens: () => tokens }));
      for (const admission of await Promise.all(asked)) admission?.end(Number.POSITIVE_INFINITY);
    }
  });

  test("charge what a request used beyond what it reserved", async ({ gateways: { limits, ...gateways }, tenant }) => {
    await gateways.set(tenant, limitOf({ tokensPerMinute: 1000 }));
    const admit = (tokens: number) => limits[0]?.admit({ tenant, adapter: null, mostTokens: () => tokens });
    (await admit(10))?.end(300);
    let used = 300;
    await expect(
      (async () => {
        for (;;) {
          (await admit(100))?.end(100);
          used += 100;
        }
      })(),
    ).rejects.toThrow(RateLimitError);
    expect(used).toBe(1000);
  });

  test("share slots: so many at once, wherever they are asked", async ({ gateways, tenant }) => {
    await gateways.set(tenant, limitOf({ concurrency: 6 }));
    const { admitted, refused } = await flood(gateways, 30, { tenant });
    expect(admitted.length).toBeLessThanOrEqual(6);
    expect(refused[0]).toMatchObject({ kind: "concurrency", retryAfter: 1 });
    const held = [...admitted];
    await expect
      .poll(
        async () => {
          gateways.clock.now += 250; // a gateway that was refused asks again after a moment of this clock
          held.push(...(await flood(gateways, 3, { tenant })).admitted);
          return held.length;
        },
        { timeout: 60_000, interval: 50 },
      )
      .toBe(6);
    expect((await flood(gateways, 9, { tenant })).admitted).toEqual([]);
    held.pop()?.end(0);
    held.pop()?.end(0);
    await expect
      .poll(
        async () => {
          gateways.clock.now += 250; // a gateway that was refused asks again after a moment of this clock
          held.push(...(await flood(gateways, 3, { tenant })).admitted);
          return held.length;
        },
        { timeout: 60_000, interval: 50 },
      )
      .toBe(6);
  });

  test("apply the tenant's limit and the adapter's; what one refuses does not use up the other", async ({ gateways, tenant }) => {
    await gateways.set(tenant, limitOf({ requestsPerMinute: 12 }));
    await gateways.set(`${tenant}.pirate`, limitOf({ requestsPerMinute: 4 }));
    const pirate = await flood(gateways, 30, { tenant, adapter: "pirate" });
    expect(pirate.admitted.length).toBeLessThanOrEqual(4);
    expect(pirate.refused[0]?.message).toContain(`adapter ${tenant}/pirate`);
    let others = 0;
    await expect
      .poll(
        async () => {
          others += (await flood(gateways, 3, { tenant, adapter: "parrot" })).admitted.length;
          return others;
        },
        { timeout: 60_000, interval: 50 },
      )
      .toBe(12 - pirate.admitted.length);
  });
});

describe("through HTTP", () => {
  interface Two {
    lines: GatewayUnderTest[];
    engine: Engine;
  }
  const httpTest = testWithNats.extend("two", async ({ nc, nats, tenant }, { onCleanup }): Promise<Two> => {
    const owned = new AsyncDisposableStack();
    onCleanup(() => owned.disposeAsync());
    const other = await nats.connect();
    owned.defer(() => other.close());
    const lines = [await startGateway({ nc, tenant, projector: false }), await startGateway({ nc: other, tenant, projector: false })];
    for (const line of lines) owned.use(line);
    const engine = owned.use(await startEngine(base));
    const [line] = lines;
    if (line === undefined) throw new Error("no gateway");
    await registerEngine(line.bus);
    await putReplica(line.bus, replicaOf("r1", engine.url));
    owned.defer(async () => (await line.bus.bucket(buckets.replicas)).delete("local.r1"));
    return { lines, engine };
  });

  httpTest("429 with Retry-After and OpenAI's headers; what an admin sets holds everywhere at once", async ({ two: { lines, engine } }) => {
    const [first, second] = lines;
    if (first === undefined || second === undefined) throw new Error("no gateways");
    const put = (body: object) =>
      first.fetch("/v1/loraline/limits", { method: "PUT", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
    const chat = (line: GatewayUnderTest, over: object = {}) =>
      line.fetch("/v1/chat/completions", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: base, messages: [{ role: "user", content: "ahoy" }], max_tokens: 5, ...over }),
      });
    await expect.poll(async () => (await chat(second)).status).toBe(200);
    expect((await chat(first)).headers.get("x-ratelimit-limit-requests")).toBeNull();

    expect(await (await put({ requests_per_minute: 6, tokens_per_minute: 10_000 })).json()).toMatchObject({
      requestsPerMinute: 6,
      adapter: null,
      by: "test",
    });
    await expect.poll(async () => ((await (await second.fetch("/v1/loraline/limits")).json()) as { data: unknown[] }).data.length).toBe(1);
    // A new minute in the middle would admit more.
    if (Date.now() % 60_000 > 55_000) await new Promise((resolve) => setTimeout(resolve, 60_000 - (Date.now() % 60_000)));
    const asked = engine.requests.length;
    const answers = await Promise.all(Array.from({ length: 24 }, (_, index) => chat(lines[index % 2] ?? first)));
    const admitted = answers.filter(({ status }) => status === 200);
    expect(admitted.length).toBeLessThanOrEqual(6);
    expect(admitted.length).toBeGreaterThan(0);
    expect(engine.requests.length - asked).toBe(admitted.length);
    expect(admitted[0]?.headers.get("x-ratelimit-limit-requests")).toBe("6");
    expect(Number(admitted[0]?.headers.get("x-ratelimit-remaining-tokens"))).toBeLessThan(10_000);
    const refused = answers.find(({ status }) => status === 429);
    expect(Number(refused?.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(refused?.headers.get("x-ratelimit-reset-requests")).toMatch(/^\d+s$/);
    expect(await refused?.json()).toMatchObject({ error: { type: "requests", code: "rate_limit_exceeded", param: null } });

    await put({ tokens_per_minute: 500 });
    await expect.poll(async () => (await chat(second, { max_tokens: 400 })).status).toBe(400);
    expect(await (await chat(second, { max_tokens: 1000 })).json()).toMatchObject({ error: { code: "request_exceeds_limit" } });
    expect((await first.fetch("/v1/loraline/limits", { method: "DELETE" })).status).toBe(200);
    await expect.poll(async () => (await chat(second, { max_tokens: 1000 })).status).toBe(200);

    // Set by the operator: no door for the tenant's own admins.
    await (await first.bus.bucket(buckets.limits)).put(first.tenant, limitOf({ concurrency: 1, fixed: true }));
    expect((await put({ concurrency: 100 })).status).toBe(403);
  });
});
