/** Messages in the hand of processes that die, and behind those of others. */
import { setTimeout as sleep } from "node:timers/promises";
import { buckets, consumers, events, waitedKey } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { ulid } from "ulid";
import { expect, test } from "vitest";
import { connectBus, createBus, ensureStreams } from "../index.ts";

const deps = { log: createLog({ service: "test", level: "silent" }), telemetry: createTelemetry({ service: "test" }), source: "test" };
const blob = { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 3 } as const;
const { durable, stream } = consumers.ingestDatasetReceived;

/** @param ackWaitMs - after which the messages of a process that died are given to the next one. */
async function startServer(ackWaitMs: number) {
  await using starting = new AsyncDisposableStack();
  const server = starting.use(await spawnNatsServer());
  const nc = await connectBus({ servers: server.url, name: "test" });
  starting.defer(() => nc.close());
  await ensureStreams(nc);
  await (await jetstreamManager(nc)).consumers.update(stream.name, durable, { ack_wait: ackWaitMs * 1_000_000 });
  const running = starting.move();
  return Object.assign(running, { nc, url: server.url, bus: createBus({ nc, ...deps }) });
}

test(
  "a message that takes its process down is buried, and nothing that was worked on or waited beside it",
  { timeout: 60_000 },
  async () => {
    await using server = await startServer(400);
    const poison = ulid();
    const sound = Array.from({ length: 8 }, () => ulid());
    for (const id of [sound[0], poison, ...sound.slice(1)]) {
      await server.bus.publish(events.datasetReceived, { tenant: "acme", id: id as string }, { blob, filename: "a.jsonl" });
    }
    const done = new Set<string>();
    const letters = () => server.bus.deadLetters.list("acme");
    const isOver = async () => (await letters()).length > 0 && done.size === sound.length;
    for (let processes = 0; !(await isOver()); processes++) {
      expect(processes).toBeLessThan(60);
      const own = await connectBus({ servers: server.url, name: "a process" });
      const died = Promise.withResolvers<void>();
      const consuming = await createBus({ nc: own, ...deps }).consume({
        consumer: consumers.ingestDatasetReceived,
        handlers: {
          "dataset.received.v1": async ({ at }) => {
            if (at.id === poison) setTimeout(died.resolve, 20);
            // Longer than the poison lets a process live.
            await sleep(100);
            if (at.id === poison) await new Promise(() => {});
            if (!own.isClosed()) done.add(at.id);
          },
        },
      });
      const over = new AbortController();
      const whenOver = async (): Promise<void> => {
        while (!over.signal.aborted && !(await isOver())) await sleep(50);
      };
      await Promise.race([died.promise.then(() => own.close()), whenOver().then(() => consuming[Symbol.asyncDispose]())]);
      over.abort();
      await own.close();
    }
    expect((await letters()).map(({ code, subject }) => [code, subject.split(".")[3]])).toEqual([["MAX_DELIVERIES", poison]]);
    expect([...done].sort()).toEqual(sound.sort());
  },
);

test("what only waited in the hand of processes that died is worked on as if it were new", { timeout: 60_000 }, async () => {
  await using server = await startServer(400);
  const jsm = await jetstreamManager(server.nc);
  await server.bus.publish(events.datasetReceived, { tenant: "acme", id: ulid() }, { blob, filename: "a.jsonl" });
  const pulled = await jetstream(server.nc).consumers.get(stream.name, durable);
  for (let n = 0; n < 30; n++) (await pulled.next({ expires: 2000 }))?.nak();
  const tries: number[] = [];
  await using _consuming = await server.bus.consume({
    consumer: consumers.ingestDatasetReceived,
    handlers: { "dataset.received.v1": async (_, context) => void tries.push(context.tries) },
  });
  // The first delivery may have been begun: of that nothing is written.
  await expect.poll(() => tries, { timeout: 60_000 }).toEqual([2]);
  expect(await server.bus.deadLetters.list("acme")).toEqual([]);
  await expect.poll(async () => (await jsm.consumers.info(stream.name, durable)).num_ack_pending).toBe(0);
});

test("a message whose count cannot be read is worked on, and counted from there", { timeout: 30_000 }, async () => {
  await using server = await startServer(400);
  const { seq } = await server.bus.publish(events.datasetReceived, { tenant: "acme", id: ulid() }, { blob, filename: "a.jsonl" });
  const key = waitedKey({ durable, seq });
  await (await new Kvm(server.nc).open(buckets.waited.name)).put(key, "{");
  const pulled = await jetstream(server.nc).consumers.get(stream.name, durable);
  (await pulled.next({ expires: 2000 }))?.nak();
  const tries: number[] = [];
  await using _consuming = await server.bus.consume({
    consumer: consumers.ingestDatasetReceived,
    handlers: { "dataset.received.v1": async (_, context) => void tries.push(context.tries) },
  });
  await expect.poll(() => tries, { timeout: 60_000 }).toEqual([2]);
  expect((await (await server.bus.bucket(buckets.waited)).get(key))?.value).toEqual({ deliveries: 0, away: 0, begun: 2 });
});

test("a tenant's message behind hundreds of another's is next but a few", { timeout: 30_000 }, async () => {
  await using server = await startServer(15_000);
  const at = (tenant: string) => ({ tenant, id: ulid() });
  const order: string[] = [];
  const loud = Array.from({ length: 150 }, () => server.bus.publish(events.datasetReceived, at("loud"), { blob, filename: "a.jsonl" }));
  await Promise.all(loud);
  await server.bus.publish(events.datasetReceived, at("quiet"), { blob, filename: "a.jsonl" });
  await using _consuming = await server.bus.consume({
    consumer: consumers.ingestDatasetReceived,
    handlers: {
      "dataset.received.v1": async (received) => {
        order.push(received.at.tenant);
        // As long as files take; the messages behind are pulled meanwhile.
        await sleep(received.at.tenant === "loud" && order.length < 5 ? 1000 : 5);
      },
    },
  });
  await expect.poll(() => order.length, { timeout: 60_000 }).toBe(151);
  expect(order.indexOf("quiet")).toBeLessThan(10);
});
