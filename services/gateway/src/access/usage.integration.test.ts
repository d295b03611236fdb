/** Tokens as they are counted, kept over restarts, and shown: in the API and as metrics. */
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, everyTraffic, type UsageRow } from "@loraline/contracts";
import { createMetrics, createTelemetry } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { describe, expect } from "vitest";
import {
  adapterOf,
  base,
  chunkOf,
  type Engine,
  type GatewayUnderTest,
  heldBy,
  putAdapter,
  putReplica,
  quietLog,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../gateway-under-test.ts";
import { createGatewayMetrics } from "../metrics.ts";
import { createUsage, dayOf, type Used } from "./usage.ts";

interface Serving {
  line: GatewayUnderTest;
  engine: Engine;
  alias: string;
  usage(line?: GatewayUnderTest): Promise<UsageRow[]>;
}

const test = testWithNats.extend("serving", async ({ nc, tenant }, { onCleanup }): Promise<Serving> => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const line = owned.use(await startGateway({ nc, tenant, projector: false }));
  const version = versionOf(tenant, "pirate", 1);
  const adapter = adapterOf(tenant, "pirate", [version]);
  const engine = owned.use(await startEngine(base, version.engineName));
  await registerEngine(line.bus);
  await putAdapter(line.bus, adapter);
  await putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(adapter, version)]));
  owned.defer(async () => (await line.bus.bucket(buckets.replicas)).delete("local.r1"));
  const alias = `${tenant}/pirate`;
  await expect.poll(async () => (await line.openai.models.list()).data.map(({ id }) => id)).toContain(alias);
  return {
    line,
    engine,
    alias,
    async usage(of = line) {
      const response = await of.fetch("/v1/loraline/usage");
      expect(response.status).toBe(200);
      return ((await response.json()) as { data: UsageRow[] }).data;
    },
  };
});

const messages = [{ role: "user" as const, content: "ahoy" }];

describe("usage", () => {
  test("is the engine's count, of answers at once and of streams, by model and day", async ({ serving: { line, alias, usage } }) => {
    await line.openai.chat.completions.create({ model: alias, messages });
    await line.openai.chat.completions.create({ model: base, messages });
    await Array.fromAsync(await line.openai.chat.completions.create({ model: `${alias}@1`, messages, stream: true }));
    expect(await usage()).toEqual([
      {
        day: dayOf(Date.now()),
        model: base,
        base,
        adapter: null,
        version: null,
        requests: 1,
        failed: 0,
        promptTokens: 3,
        completionTokens: 3,
        estimated: 0,
      },
      {
        day: dayOf(Date.now()),
        model: `${alias}@1`,
        base,
        adapter: "pirate",
        version: 1,
        requests: 2,
        failed: 0,
        promptTokens: 6,
        completionTokens: 6,
        estimated: 0,
      },
    ]);
  });

  test("asks the engine for its count, and hides it from who did not ask", async ({ serving: { line, engine, alias } }) => {
    const quiet = await Array.fromAsync(await line.openai.chat.completions.create({ model: alias, messages, stream: true }));
    expect(engine.requests.at(-1)?.body["stream_options"]).toEqual({ include_usage: true });
    expect(quiet.every(({ choices }) => choices.length === 1)).toBe(true);
    const options = { include_usage: true, continuous_usage_stats: false };
    const asked = await Array.fromAsync(
      await line.openai.chat.completions.create({ model: alias, messages, stream: true, stream_options: options }),
    );
    expect(engine.requests.at(-1)?.body["stream_options"]).toEqual(options);
    expect(asked.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 3 } });
    expect(asked.length).toBe(quiet.length + 1);
    await line.openai.chat.completions.create({ model: alias, messages });
    expect(engine.requests.at(-1)?.body).not.toHaveProperty("stream_options");
  });

  test("is an estimate, and says so, where the answer broke off; what was wrong costs nothing", async ({
    serving: { line, engine, alias, usage },
  }) => {
    engine.answer = (body, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(chunkOf(String(body["model"]), "Arr") + chunkOf(String(body["model"]), "!"), () => response.destroy());
    };
    await expect(line.openai.chat.completions.create({ model: alias, messages, stream: true }).then(Array.fromAsync)).rejects.toThrow(
      /broke off/,
    );
    engine.answer = undefined;
    await expect(line.openai.chat.completions.create({ model: alias, messages, max_tokens: -1 })).rejects.toThrow(/400/);
    engine.answer = (_body, response) => void response.writeHead(500, { "content-type": "application/json" }).end("{}");
    await expect(line.openai.chat.completions.create({ model: alias, messages })).rejects.toThrow(/500/);
    const [row] = await usage();
    expect(row).toMatchObject({ requests: 2, failed: 2, estimated: 1, completionTokens: 2 });
    expect(row?.promptTokens).toBeGreaterThan(5);

    // vLLM ends a stream in order, under status 200, also when it fails in the middle.
    engine.answer = (body, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      const failure = { error: { message: "CUDA error", type: "InternalServerError", param: null, code: 500 } };
      response.end(`${chunkOf(String(body["model"]), "Arr")}data: ${JSON.stringify(failure)}\n\ndata: [DONE]\n\n`);
    };
    await expect(line.openai.chat.completions.create({ model: alias, messages, stream: true }).then(Array.fromAsync)).rejects.toThrow(
      /CUDA/,
    );
    expect((await usage())[0]).toMatchObject({ requests: 3, failed: 3, estimated: 2 });

    engine.answer = undefined;
    engine.words = Array.from({ length: 10_000 }, () => "la ");
    const leaving = new AbortController();
    const endless = await line.openai.chat.completions.create({ model: alias, messages, stream: true }, { signal: leaving.signal });
    await endless[Symbol.asyncIterator]().next();
    leaving.abort();
    await expect.poll(async () => (await usage())[0]).toMatchObject({ requests: 4, failed: 3, estimated: 3 });
    const traffic = await line.bus.bucket(buckets.traffic);
    await expect
      .poll(async () =>
        (await traffic.entries(everyTraffic.asked))
          .flatMap(({ value }) => Object.values(value.asked ?? {}).flat())
          .some((name) => name.startsWith(line.tenant)),
      )
      .toBe(true);
  });

  test("outlives gateways, and is only its own tenant's", async ({ serving: { line, alias, usage }, nats }) => {
    await line.openai.chat.completions.create({ model: alias, messages });
    const nc = await nats.connect();
    {
      await using second = await startGateway({ nc, tenant: line.tenant, projector: false });
      await expect
        .poll(() => second.openai.chat.completions.create({ model: alias, messages }).then(({ model }) => model, String))
        .toBe(`${alias}@1`);
    }
    expect(await usage()).toMatchObject([{ model: `${alias}@1`, requests: 2 }]);
    {
      await using third = await startGateway({ nc, tenant: line.tenant, projector: false });
      await expect.poll(() => usage(third)).toMatchObject([{ requests: 2, promptTokens: 6 }]);
      const stranger = await third.keyFor(`${line.tenant}-other`);
      const response = await third.fetch("/v1/loraline/usage", { headers: { authorization: `Bearer ${stranger}` } });
      expect(((await response.json()) as { data: unknown[] }).data).toEqual([]);
    }
    await nc.close();
  });

  test.for(["from=yesterday", "from=2026-13-01", "from=2026-02-02&to=2026-02-01", "from=2020-01-01"])(
    "%s is refused",
    async (query, { serving: { line } }) => {
      expect((await line.fetch(`/v1/loraline/usage?${query}`)).status).toBe(400);
    },
  );
});

testWithNats("days that are over are added up once, whoever does it and dies meanwhile", async ({ nc, tenant }) => {
  await ensureStreams(nc);
  const bus = createBus({ nc, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
  const bucket = await bus.bucket(buckets.usage);
  const used: Used = {
    tenant,
    model: `${tenant}/pirate@1`,
    base,
    adapter: "pirate",
    version: 1,
    promptTokens: 2,
    completionTokens: 1,
    failed: false,
    estimated: false,
  };
  let time = Date.parse("2026-01-01T12:00:00Z");
  for (const gateway of ["g1", "g2", "g3"]) {
    await using counting = await createUsage({ bus, log: quietLog, gateway, now: () => time });
    counting.count(used);
  }
  const from = { from: "2026-01-01", to: "2026-01-31" };
  const expected = [{ day: "2026-01-01", requests: 3, promptTokens: 6 }];
  time = Date.parse("2026-01-03T00:00:01Z");
  // One died after it wrote the total and before it removed what is in it.
  const day = "2026-01-01";
  const rows = [
    { model: used.model, base, adapter: "pirate", version: 1, requests: 1, failed: 0, promptTokens: 2, completionTokens: 1, estimated: 0 },
  ];
  await bucket.put(`${tenant}.${day}.pirate.total`, { tenant, day, at: new Date(time).toISOString(), rows, merged: ["g2"] });
  const usages = await Promise.all(["g4", "g5"].map((gateway) => createUsage({ bus, log: quietLog, gateway, now: () => time })));
  for (const usage of usages) expect(await usage.read(tenant, from)).toMatchObject(expected);
  // Nothing is left of the others, not even the mark of what was deleted.
  await expect.poll(() => bucket.keys(`${tenant}.>`)).toEqual([`${tenant}.${day}.pirate.total`]);
  for (const usage of usages) {
    expect(await usage.read(tenant, from)).toMatchObject(expected);
    await usage[Symbol.asyncDispose]();
  }
});

testWithNats("a start reads no entries of days that are added up, however many there are", async ({ nc, tenant }) => {
  await ensureStreams(nc);
  const bus = createBus({ nc, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
  const bucket = await bus.bucket(buckets.usage);
  const at = new Date().toISOString();
  const put = (day: string, holder: string) => bucket.put(`${tenant}.${day}.-.${holder}`, { tenant, day, at, rows: [] });
  for (let day = 1; day <= 28; day++) await put(`2024-01-${String(day).padStart(2, "0")}`, "total");
  await put("2024-01-28", "killed");
  await put("2024-01-29", "running");
  const read: string[] = [];
  const watched: Pick<typeof bus, "bucket"> = {
    async bucket(def) {
      const opened = await bus.bucket(def);
      return {
        ...opened,
        entries: () => Promise.reject(new Error("the whole bucket is read")),
        many: (keys) => (read.push(...keys), opened.many(keys)),
      };
    },
  };
  const now = () => Date.parse("2024-01-30T12:00:00Z");
  await using _usage = await createUsage({ bus: watched, log: quietLog, gateway: "new", now });
  await expect.poll(() => bucket.keys(`${tenant}.2024-01-28.>`)).toEqual([`${tenant}.2024-01-28.-.total`]);
  expect(read).toEqual([`${tenant}.2024-01-28.-.killed`]);
});

describe("metrics", () => {
  test("count requests, tokens and times by tenant, adapter and version, apart from the API", async ({
    serving: { line, engine, alias },
  }) => {
    await line.openai.chat.completions.create({ model: alias, messages });
    await line.openai.chat.completions.create({ model: base, messages });
    engine.models.delete(base);
    await expect(line.openai.chat.completions.create({ model: base, messages })).rejects.toThrow(/503/);
    await expect(line.openai.chat.completions.create({ model: alias, messages, max_tokens: -1 })).rejects.toThrow(/400/);
    const text = await (await fetch(line.metricsUrl)).text();
    const labels = `tenant="${line.tenant}",base="${base}",adapter="pirate",version="1"`;
    expect(text).toContain(`loraline_gateway_requests_total{${labels},outcome="served"} 1`);
    expect(text).toContain(`loraline_gateway_requests_total{${labels},outcome="ignored"} 1`);
    expect(text).toContain(`loraline_gateway_tokens_total{${labels},kind="completion"} 3`);
    expect(text).toContain(`loraline_gateway_in_flight{${labels}} 0`);
    expect(text).toMatch(new RegExp(`loraline_gateway_first_byte_seconds_count\\{${labels}\\} 2`));
    // A single replica is asked twice.
    expect(text).toContain("loraline_gateway_retries_total 1\n");
    expect(text).toContain("process_resident_memory_bytes");
    expect((await line.fetch("/metrics")).status).toBe(404);
    expect((await line.fetch("/v1/metrics")).status).toBe(404);
    expect((await fetch(line.metricsUrl.replace("/metrics", "/"))).status).toBe(404);
  });

  testWithNats("never have more series than they may, however many models there are", async () => {
    let time = 0;
    const registry = createMetrics();
    const metrics = createGatewayMetrics(registry, { cap: 10, now: () => time });
    const ask = (n: number) => {
      const model = metrics.model({ tenant: "t", base, adapter: `a${n}`, version: 1, engineModel: `t.a${n}.v1` });
      model.begin();
      model.firstByte(5);
      model.tokens(1, 1);
      model.end("served", 10);
    };
    for (let n = 0; n < 500; n++) ask(n);
    const series = async (name: string) => (await registry.text()).split("\n").filter((text) => text.startsWith(`${name}{`)).length;
    expect(await series("loraline_gateway_in_flight")).toBe(11);
    expect(await registry.text()).toMatch(/requests_total\{tenant="other".*outcome="served"\} 490/);
    // Idle ones give their place to others.
    time += 2 * 60 * 60_000;
    for (let n = 500; n < 520; n++) ask(n);
    expect(await series("loraline_gateway_in_flight")).toBe(11);
    expect(await registry.text()).toContain('adapter="a505"');
    expect(await registry.text()).not.toContain('adapter="a5"');
  });
});
