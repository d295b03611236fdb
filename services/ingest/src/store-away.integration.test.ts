/** The object store is away, or refuses our credentials, while datasets are processed: they wait and say so, and none is rejected for it. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createBus, ensureStreams } from "@loraline/bus";
import {
  buckets,
  consumers,
  datasetDeleted,
  datasetImportRequested,
  datasetIngested,
  datasetReceived,
  datasetRejected,
  datasetWaiting,
} from "@loraline/contracts";
import { createJetStreamObjects, createS3Objects, type Objects, watchedObjects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { type ProxyFixture, startProxy, test as base } from "@loraline/testkit";
import { ulid } from "ulid";
import { expect } from "vitest";
import { createIngestService } from "./service.ts";

const log = createLog({ service: "ingest", level: "silent" });
const telemetry = createTelemetry({ service: "ingest" });
const within = { timeout: 40_000, interval: 50 };
const rows = Array.from({ length: 30 }, (_, n) => `${JSON.stringify({ question: `question ${n}`, answer: `answer ${n}` })}\n`).join("");

const test = base
  .extend("bus", async ({ nc }) => {
    await ensureStreams(nc);
    return createBus({ nc, log, telemetry, source: "test", longestWaitMs: 100 });
  })
  .extend("proxy", async ({ s3 }, { onCleanup }): Promise<ProxyFixture> => {
    const proxy = await startProxy(s3.endpoint);
    onCleanup(() => proxy[Symbol.asyncDispose]());
    return proxy;
  })
  .extend("openStore", async ({ s3, proxy }, { onCleanup }) => {
    const opened = new DisposableStack();
    onCleanup(() => opened.dispose());
    return (secretAccessKey = s3.credentials.secretAccessKey) => {
      const patience = { connect: 300, answer: 300, part: 1000 };
      const credentials = { ...s3.credentials, secretAccessKey };
      const store = opened.use(createS3Objects({ ...s3, endpoint: proxy.url, credentials, patience }));
      return opened.use(watchedObjects(store, { log, askMs: 50 }));
    };
  })
  .extend("line", ({ bus, tenant }) => {
    const at = { tenant, id: ulid() };
    return {
      at,
      upload: async (objects: Objects) =>
        bus.publish(datasetReceived, at, { blob: await objects.put(tenant, "raw", rows), filename: "data.jsonl" }),
      reason: async () => (await bus.last(datasetWaiting, at))?.data.reason,
      ingested: () => bus.last(datasetIngested, at),
      waitedOften: async (consumer: { durable: string; maxDeliver: number }, seq: number) => {
        const waited = await bus.bucket(buckets.waited);
        const count = async () => (await waited.get(`${consumer.durable}.${seq}`))?.value.away ?? 0;
        await expect.poll(count, within).toBeGreaterThan(consumer.maxDeliver * 2 + 1);
      },
    };
  });

test(
  "a dataset waits for as long as it takes, over a restart of ingest, and says why",
  { timeout: 90_000 },
  async ({ bus, line, openStore, proxy, tenant }) => {
    const objects = openStore();
    const { seq } = await line.upload(objects);
    await proxy.cut("refused");
    {
      await using _service = await createIngestService({ bus, objects, telemetry });
      const reason = { code: "STORE_UNAVAILABLE", message: expect.stringMatching(/^the object store does not answer .*ECONNREFUSED/) };
      await expect.poll(line.reason, within).toEqual(reason);
      expect(objects.problem()).toMatch(/ECONNREFUSED/);
    }
    await using _next = await createIngestService({ bus, objects, telemetry });
    await line.waitedOften(consumers.ingestDatasetReceived, seq);
    await proxy.cut("silent");
    await expect.poll(() => objects.problem(), within).toMatch(/requestTimeout/);

    await proxy.restore();
    await expect.poll(line.ingested, within).toMatchObject({ data: { records: 30, rejections: 0 } });
    expect(await bus.last(datasetRejected, line.at)).toBeUndefined();
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
  },
);

test("an import waits, too, with its tries for the web server kept", { timeout: 90_000 }, async ({ bus, line, openStore, proxy }) => {
  const objects = openStore();
  const server = createServer((_request, response) => response.end(rows));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await using _service = await createIngestService({ bus, objects, telemetry, imports: { allow: [`127.0.0.1:${port}`] } });
  await proxy.cut(503);
  const { seq } = await bus.publish(datasetImportRequested, line.at, { source: { url: `http://127.0.0.1:${port}/data.jsonl` } });
  await expect.poll(line.reason, within).toMatchObject({ code: "STORE_UNAVAILABLE", message: expect.stringContaining("HTTP 503") });
  await line.waitedOften(consumers.ingestDatasetImportRequested, seq);
  await proxy.restore();
  await expect.poll(line.ingested, within).toMatchObject({ data: { records: 30 } });
  expect(await bus.last(datasetRejected, line.at)).toBeUndefined();
  server.closeAllConnections();
  server.close();
});

test("a dataset that is deleted while it waits is waited for no more", { timeout: 60_000 }, async ({ bus, line, nc, openStore, proxy }) => {
  const objects = openStore();
  const { seq } = await line.upload(objects);
  await proxy.cut("refused");
  await using _service = await createIngestService({ bus, objects, telemetry });
  await expect.poll(line.reason, within).toMatchObject({ code: "STORE_UNAVAILABLE" });
  await bus.publish(datasetDeleted, line.at, {});
  // The store is still away, so the message was given up because of the deletion.
  const consumer = consumers.ingestDatasetReceived;
  await expect
    .poll(async () => {
      const asked = await nc.request(`$JS.API.CONSUMER.INFO.${consumer.stream.name}.${consumer.durable}`);
      const info = asked.json<{ ack_floor: { stream_seq: number } }>();
      return info.ack_floor.stream_seq;
    }, within)
    .toBeGreaterThanOrEqual(seq);
  expect(await line.ingested()).toBeUndefined();
});

test(
  "a store that refuses the line is told apart; once that is mended, the dataset goes on",
  { timeout: 60_000 },
  async ({ bus, line, openStore }) => {
    const { seq } = await line.upload(openStore());
    {
      const stranger = openStore("wrong");
      await using _service = await createIngestService({ bus, objects: stranger, telemetry });
      const reason = { code: "STORE_REFUSED", message: expect.stringMatching(/refuses this server .*HTTP 403.*mend credentials/) };
      await expect.poll(line.reason, within).toEqual(reason);
      await line.waitedOften(consumers.ingestDatasetReceived, seq);
      expect(stranger.problem()).toMatch(/HTTP 403/);
    }
    await using _service = await createIngestService({ bus, objects: openStore(), telemetry });
    await expect.poll(line.ingested, within).toMatchObject({ data: { records: 30 } });
  },
);

test("a store that is full is waited for until there is room, and says so", { timeout: 60_000 }, async ({ bus, line, nc, tenant }) => {
  const store = await createJetStreamObjects(nc, { bucket: "small" });
  using objects = watchedObjects(store, { log, askMs: 50 });
  const { seq } = await line.upload(objects);
  const api = async (verb: string, body: object = {}) =>
    (await nc.request(`$JS.API.STREAM.${verb}.OBJ_small`, JSON.stringify(body))).json<{ config: object; state: { bytes: number } }>();
  const { config, state } = await api("INFO");
  await api("UPDATE", { ...config, max_bytes: state.bytes + 100 });
  await using _service = await createIngestService({ bus, objects, telemetry });
  const reason = { code: "STORE_FULL", message: expect.stringMatching(/^the object store is full .*make room in it/) };
  await expect.poll(line.reason, within).toEqual(reason);
  await line.waitedOften(consumers.ingestDatasetReceived, seq);
  expect(objects.problem()).toMatch(/is full/);
  await api("UPDATE", { ...config, max_bytes: -1 });
  await expect.poll(line.ingested, within).toMatchObject({ data: { records: 30 } });
  expect(await bus.deadLetters.list(tenant)).toEqual([]);
  expect(await bus.history([datasetWaiting], line.at), "told once").toHaveLength(1);
});
