/** The object store is away while runs are tokenized, on however many replicas: they wait and say so, and nothing is judged by it. */
import { createBus, tellWaiting } from "@loraline/bus";
import { buckets, consumers, datasetWaiting, foldRun, runCancelRequested, runRequested, runWaiting } from "@loraline/contracts";
import { createS3Objects, watchedObjects } from "@loraline/objects";
import { startProxy } from "@loraline/testkit";
import { basesDir } from "@loraline/testkit";
import { expect } from "vitest";
import { dataset, log, outcome, receive, request, someRecords, specOf, telemetry, test as base } from "./service-under-test.ts";
import { createTokenizeService } from "./service.ts";

const within = { timeout: 40_000, interval: 50 };

const test = base
  .extend("proxy", async ({ s3 }, { onCleanup }) => {
    const proxy = await startProxy(s3.endpoint);
    onCleanup(() => proxy[Symbol.asyncDispose]());
    return proxy;
  })
  .extend("line", async ({ bus: first, nc, s3, proxy, tenant }, { onCleanup }) => {
    expect(first).toBeDefined();
    const opened = new DisposableStack();
    onCleanup(() => opened.dispose());
    const bus = createBus({ nc, log, telemetry, source: "test", longestWaitMs: 100 });
    const patience = { connect: 300, answer: 300, part: 1000 };
    const store = opened.use(createS3Objects({ ...s3, endpoint: proxy.url, patience }));
    return { bus, objects: opened.use(watchedObjects(store, { log, askMs: 50 })), tenant };
  })
  .extend(
    "reasonOf",
    ({ line: { bus, tenant } }) =>
      async (id: string) =>
        (await bus.last(runWaiting, { tenant, id }))?.data.reason,
  )
  .extend("waitedOften", ({ line: { bus } }) => async ({ durable, maxDeliver }: { durable: string; maxDeliver: number }) => {
    const waited = await bus.bucket(buckets.waited);
    const most = async () => Math.max(0, ...(await waited.entries(`${durable}.*`)).map(({ value }) => value.away));
    await expect.poll(most, within).toBeGreaterThan(maxDeliver * 2 + 1);
  });

const away = { code: "STORE_UNAVAILABLE", message: expect.stringMatching(/^the object store does not answer .*ECONNREFUSED/) };

test("a run waits, and then has its tokens", { timeout: 90_000 }, async ({ line, proxy, reasonOf, waitedOften }) => {
  const id = await dataset(line, someRecords(30));
  await proxy.cut("refused");
  await using _service = await createTokenizeService({ ...line, telemetry, basesDir, threads: 1 });
  const run = await request(line, specOf(id));
  await expect.poll(() => reasonOf(run), within).toEqual(away);
  await waitedOften(consumers.tokenizeRunRequested);
  await proxy.restore();
  expect(await outcome(line, run)).toMatchObject({ tokenized: { cacheHit: false } });
  expect(await line.bus.deadLetters.list(line.tenant)).toEqual([]);
  // What is shown of it now: that it has its tokens.
  const told = await line.bus.history(
    [runRequested, runWaiting, ...consumers.projectorRuns.events.filter(({ type }) => type === "run.tokenized.v1")],
    {
      tenant: line.tenant,
      id: run,
    },
  );
  let state: ReturnType<typeof foldRun>;
  for (const event of told) state = foldRun(state, event);
  expect(state).toMatchObject({ phase: "tokenized", queue: null });
});

test(
  "chunks in the hands of several replicas wait, and the run says why",
  { timeout: 120_000 },
  async ({ line, proxy, reasonOf, waitedOften }) => {
    const id = await dataset(line, someRecords(6000), 250);
    await using stack = new AsyncDisposableStack();
    for (let replica = 0; replica < 2; replica++) {
      stack.use(await createTokenizeService({ ...line, telemetry, basesDir, threads: 1 }));
    }
    const cache = await line.bus.bucket(buckets.cache);
    const run = await request(line, specOf(id));
    await expect
      .poll(async () => (await cache.entries(`chunk.${line.tenant}.*`)).length, { timeout: 30_000, interval: 5 })
      .toBeGreaterThan(1);
    await proxy.cut("refused");
    await expect.poll(() => reasonOf(run), within).toEqual(away);
    await waitedOften(consumers.tokenizeChunkRequested);
    const told = await line.bus.history([runWaiting], { tenant: line.tenant, id: run });
    expect(told.length, "not once for each chunk and try").toBeLessThan(4);
    await proxy.restore();
    expect(await outcome(line, run)).toMatchObject({ tokenized: { totals: { dropped: 0 } } });
    expect(await line.bus.deadLetters.list(line.tenant)).toEqual([]);
  },
);

test(
  "a run whose dataset waits says so; one that is cancelled meanwhile is let go",
  { timeout: 60_000 },
  async ({ line, reasonOf, nc }) => {
    const { bus, tenant } = line;
    const id = await receive(line);
    const at = { tenant, id };
    await using _service = await createTokenizeService({ ...line, telemetry, basesDir, threads: 1 });
    await tellWaiting(bus, datasetWaiting, at, { stage: "ingest", reason: { code: "STORE_REFUSED", message: "Access Denied" } });
    const run = await request(line, specOf(id));
    await expect
      .poll(() => reasonOf(run), within)
      .toEqual({ code: "STORE_REFUSED", message: `dataset ${id} is not read yet: Access Denied` });
    await tellWaiting(bus, datasetWaiting, at, { stage: "ingest", reason: null });
    await expect.poll(() => reasonOf(run), within).toBeNull();

    await bus.publish(runCancelRequested, { tenant, id: run }, {});
    const runs = await bus.bucket(buckets.runs);
    const events = await bus.history([runRequested, runWaiting, runCancelRequested], { tenant, id: run });
    let state: ReturnType<typeof foldRun>;
    for (const event of events) state = foldRun(state, event);
    if (state !== undefined) await runs.put(`${tenant}.${run}`, state);
    const { durable, stream } = consumers.tokenizeRunRequested;
    await expect
      .poll(async () => {
        const asked = await nc.request(`$JS.API.CONSUMER.INFO.${stream.name}.${durable}`);
        return asked.json<{ num_ack_pending: number }>().num_ack_pending;
      }, within)
      .toBe(0);
  },
);
