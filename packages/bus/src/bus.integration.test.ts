import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { buckets, consumers, type EngineRecord, type EventDef, events, subjectFor } from "@loraline/contracts";
import { createLog, createTelemetry, PermanentError, RetryLaterError, traceIdOf, UnavailableError } from "@loraline/runtime";
import { spawnNatsServer, test } from "@loraline/testkit";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { headers, type NatsConnection } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { describe, expect, vi } from "vitest";
import { z } from "zod";
import { connectBus, createBus, ensureStreams, tellWaiting } from "./index.ts";

const blob = { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 3 } as const;
const silent = createLog({ service: "test", level: "silent" });
const telemetry = createTelemetry({ service: "test" });
const busOver = async (nc: NatsConnection) => {
  await ensureStreams(nc);
  return createBus({ nc, log: silent, telemetry, source: "test" });
};
const newDataset = (tenant: string) => ({ tenant, id: ulid() });

describe("publish", () => {
  test("says the same thing once", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const first = await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    const again = await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    expect([first.duplicate, again.duplicate]).toEqual([false, true]);
    expect(again.seq).toBe(first.seq);
    expect(await bus.history([events.datasetReceived, events.datasetIngested], at)).toHaveLength(1);
  });

  test("an event that is wanted for a while only is gone after that, and takes no room for ever", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const stored = async (event: EventDef) =>
      (await (await jetstreamManager(nc)).streams.getMessage("DATASETS", { last_by_subj: subjectFor(event, at) }))?.header.get("Nats-TTL");
    await bus.publish(events.datasetDeleted, at, { by: "me" });
    expect(await stored(events.datasetDeleted)).toBe("7776000s");
    await bus.publish({ ...events.datasetDeleted, lastsMs: 1000 }, at, { by: "me" }, { key: "soon" });
    await bus.publish(events.datasetReceived, at, { blob, filename: "stays" });
    await expect.poll(() => stored(events.datasetDeleted), { timeout: 60_000 }).toBe("7776000s");
    expect(await stored(events.datasetReceived)).toBe("");
  });

  test("reading a history leaves nothing behind on the server", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const consumersOf = async () => (await (await jetstreamManager(nc)).streams.info("DATASETS")).state.consumer_count;
    const before = await consumersOf();
    expect(await bus.history([events.datasetReceived], at)).toEqual([]);
    await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    expect(await bus.history([events.datasetReceived], at)).toHaveLength(1);
    expect(await consumersOf()).toBe(before);
  });

  test("a history leaves out what breaks the contract; the first of two requests counts", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    await nc.request(`loraline.${tenant}.dataset.${at.id}.received.v1`, "{}");
    await bus.publish(events.datasetReceived, at, { blob, filename: "first" });
    await bus.publish(events.datasetReceived, at, { blob, filename: "second" }, { key: "again" });
    const filenames = (await bus.history([events.datasetReceived], at)).map(({ data }) => (data as { filename: string }).filename);
    expect(filenames).toEqual(["first", "second"]);
    expect((await bus.first(events.datasetReceived, at))?.data.filename).toBe("first");
    expect((await bus.last(events.datasetReceived, at))?.data.filename).toBe("second");
  });

  test("what was said many times is not read for its first time, and of all of it no more than is taken up", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const mapping = { system: "s".repeat(60_000) };
    for (let n = 0; n < 200; n += 20) {
      const some = Array.from({ length: 20 }, (_, m) => String(n + m));
      await Promise.all(some.map((key) => bus.publish(events.datasetReceived, at, { blob, filename: "a", mapping }, { key })));
    }
    let arrived = nc.stats().inBytes;
    expect((await bus.first(events.datasetReceived, at))?.data.filename).toBe("a");
    expect(nc.stats().inBytes - arrived).toBeLessThan(500_000);
    arrived = nc.stats().inBytes;
    for await (const { data } of bus.replay([events.datasetReceived], at)) {
      expect(data.filename).toBe("a");
      // Whoever is slow does not get the rest meanwhile.
      await sleep(500);
      expect(nc.stats().inBytes - arrived).toBeLessThan(6_000_000);
      break;
    }
    expect(await Array.fromAsync(bus.replay([events.datasetReceived, events.datasetIngested], at))).toHaveLength(200);
    arrived = nc.stats().inBytes;
    const afterEach: number[] = [];
    const kept = await bus.newest([events.datasetReceived], at, { limit: 500 }, ({ seq }) => {
      afterEach.push(nc.stats().inBytes - arrived);
      return seq;
    });
    expect(kept).toEqual(kept.toSorted((a, b) => b - a));
    expect(new Set(kept).size).toBe(200);
    // What is kept is taken from a part of them before the next part comes.
    expect(afterEach[0]).toBeLessThan(6_000_000);
    expect(afterEach.at(-1)).toBeLessThan(15_000_000);
  });

  test("the newest are read from the end, whatever lies between", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const [at, other] = [newDataset(tenant), newDataset(tenant)];
    const namesOf = async (range: Parameters<typeof bus.newest>[2]) =>
      (await bus.newest([events.datasetReceived], at, range)).map(({ data }) => data.filename);
    expect(await namesOf({ limit: 3 })).toEqual([]);
    const seqs: number[] = [];
    for (let n = 0; n < 30; n++) {
      const { seq } = await bus.publish(events.datasetReceived, at, { blob, filename: String(n) }, { key: String(n) });
      seqs.push(seq);
      if (n === 15) await nc.request(`loraline.${tenant}.dataset.${at.id}.received.v1`, "{}");
      if (n % 10 === 0)
        for (let m = 0; m < 20; m++) await bus.publish(events.datasetReceived, other, { blob, filename: "o" }, { key: `${n} ${m}` });
    }
    const names = Array.from({ length: 30 }, (_, index) => String(29 - index));
    for (const limit of [1, 3, 29, 30, 500]) expect(await namesOf({ limit })).toEqual(names.slice(0, limit));
    expect(await namesOf({ before: seqs[20] ?? 0, limit: 4 })).toEqual(["19", "18", "17", "16"]);
    expect(await namesOf({ before: seqs[0] ?? 0, limit: 4 })).toEqual([]);
    expect(await namesOf({ until: new Date(), limit: 2 })).toEqual(["29", "28"]);
    expect(await namesOf({ until: new Date(Date.now() - 60_000), limit: 2 })).toEqual([]);
  });

  test("refuses what the contract does not allow, naming the field", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const publishing = bus.publish(events.datasetReceived, newDataset(tenant), { blob, filename: "" });
    await expect(publishing).rejects.toMatchObject({ code: "CONTRACT_VIOLATION", param: "filename" });
  });
});

describe("consume", () => {
  test("one tenant's messages that take long do not hold up those of another, however many they are", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const other = `${tenant}-other`;
    for (let n = 0; n < 20; n++) await bus.publish(events.datasetReceived, newDataset(tenant), { blob, filename: "a" });
    const at = newDataset(other);
    await bus.publish(events.datasetReceived, at, { blob, filename: "b" });
    const done = Promise.withResolvers<string>();
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async ({ at: { tenant: whose, id } }) => {
          if (whose === other) done.resolve(id);
          if (whose === tenant) await done.promise;
        },
      },
    });
    expect(await done.promise).toBe(at.id);
  });

  test("carries the trace, and a handler's publish continues it", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    let seen: string | null = null;
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async (received) => {
          if (received.at.id !== at.id) return;
          seen = received.trace;
          await bus.publish(events.datasetDeleted, at, {});
        },
      },
    });
    let published: string | undefined;
    await telemetry.span("upload", { parent: null }, async () => {
      published = telemetry.traceparent();
      await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    });
    await expect.poll(() => bus.last(events.datasetDeleted, at)).toBeDefined();
    expect(seen).toBe(published);
    const answer = await bus.last(events.datasetDeleted, at);
    expect(traceIdOf(answer?.trace)).toBe(traceIdOf(published));
    expect(answer?.trace).not.toBe(published);
  });

  test("retries, and does not block the next message meanwhile", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const [slow, quick] = [newDataset(tenant), newDataset(tenant)];
    const order: string[] = [];
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async ({ at }, { deliveries }) => {
          if (at.tenant !== tenant) return;
          order.push(`${at.id === slow.id ? "slow" : "quick"} ${deliveries}`);
          if (at.id === slow.id && deliveries === 1) throw new RetryLaterError("BUSY", 300, "wait");
          if (at.id === slow.id && deliveries === 2) throw new Error("unknown");
        },
      },
    });
    await bus.publish(events.datasetReceived, slow, { blob, filename: "slow" });
    await bus.publish(events.datasetReceived, quick, { blob, filename: "quick" });
    await expect.poll(() => order, { timeout: 60_000 }).toEqual(["slow 1", "quick 1", "slow 2", "slow 3"]);
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
  });

  test("a message may be put off as often as its dependency wants; only failures are counted", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const { maxDeliver } = consumers.ingestDatasetReceived;
    const seen: number[] = [];
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async (received, { deliveries }) => {
          if (received.at.id !== at.id) return;
          seen.push(deliveries);
          if (deliveries <= maxDeliver * 2 + 2) throw new RetryLaterError("STORE_FULL", 1, "wait");
          if (deliveries === maxDeliver * 2 + 3) throw new Error("unknown");
        },
      },
    });
    await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    await expect.poll(() => seen.length, { timeout: 60_000 }).toBe(maxDeliver * 2 + 4);
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
  });

  test("a server that is away is waited for, however often; only other failures count, and the reason is told", async ({ nc, tenant }) => {
    await ensureStreams(nc);
    const bus = createBus({ nc, log: silent, telemetry, source: "test", longestWaitMs: 20 });
    const at = newDataset(tenant);
    const { maxDeliver } = consumers.ingestDatasetReceived;
    const away = maxDeliver * 3;
    const tries: number[] = [];
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async (received, context) => {
          if (received.at.id !== at.id) return;
          tries.push(context.tries);
          if (context.deliveries <= away) throw new UnavailableError("STORE_UNAVAILABLE", "the object store does not answer (gone)");
          if (context.deliveries < away + maxDeliver) throw new Error("something else");
        },
      },
      onWait: async (received, reason) => tellWaiting(bus, events.datasetWaiting, received.at, { stage: "ingest", reason }),
    });
    await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    await expect
      .poll(() => bus.last(events.datasetWaiting, at), { timeout: 60_000 })
      .toMatchObject({ data: { reason: { code: "STORE_UNAVAILABLE", message: "the object store does not answer (gone)" } } });
    await expect.poll(() => tries.length, { timeout: 40_000 }).toBe(away + maxDeliver);
    expect(tries.slice(away)).toEqual(Array.from({ length: maxDeliver }, (_, index) => index + 1));
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
    await expect.poll(() => bus.last(events.datasetWaiting, at)).toMatchObject({ data: { reason: null } });
    expect(await bus.history([events.datasetWaiting], at), "told once each").toHaveLength(2);
  });

  test("a stream or bucket that does not answer makes the message wait, too", async ({ nc, tenant }) => {
    await ensureStreams(nc);
    const bus = createBus({ nc, log: silent, telemetry, source: "test", longestWaitMs: 20 });
    const at = newDataset(tenant);
    const { maxDeliver } = consumers.ingestDatasetReceived;
    const reasons = new Set<string>();
    nc.subscribe(`silent.${tenant}`);
    let deliveries = 0;
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async (received, context) => {
          if (received.at.id !== at.id) return;
          ({ deliveries } = context);
          if (deliveries > maxDeliver * 3) return;
          // Nobody listens there.
          if (deliveries % 2 === 0) await nc.request("nobody.listens", "", { timeout: 100 });
          // Somebody listens there and says nothing.
          await nc.request(`silent.${tenant}`, "", { timeout: 50 });
        },
      },
      onWait: async (_received, reason) => void reasons.add(reason === null ? "goes on" : reason.code),
    });
    await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    await expect.poll(() => deliveries, { timeout: 40_000 }).toBe(maxDeliver * 3 + 1);
    await expect.poll(() => [...reasons].sort()).toEqual(["BUS_UNAVAILABLE", "goes on"]);
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
  });

  test.for([
    ["another server is away", "STORE_UNAVAILABLE"],
    ["the handler cannot write either", "STORE_FULL"],
  ] as const)(
    "a wait that NATS has no room to count is not taken for a crash: %s",
    { timeout: 30_000 },
    async ([, code], { nc, tenant }) => {
      await ensureStreams(nc);
      const bus = createBus({ nc, log: silent, telemetry, source: "test", longestWaitMs: 20 });
      const at = newDataset(tenant);
      const { durable } = consumers.ingestDatasetReceived;
      const jsm = await jetstreamManager(nc);
      const waited = await bus.bucket(buckets.waited);
      const room = (bytes: number) => jsm.streams.update(`KV_${buckets.waited.name}`, { max_bytes: bytes });
      await room(1);
      let full = true;
      const reasons: (string | undefined)[] = [];
      await using _consuming = await bus.consume({
        consumer: consumers.ingestDatasetReceived,
        handlers: {
          "dataset.received.v1": async (received) => {
            if (received.at.id !== at.id || !full) return;
            if (code === "STORE_FULL") await waited.put("some.1", { deliveries: 1, away: 0 });
            throw new UnavailableError(code, "the object store does not answer (gone)");
          },
        },
        onWait: async (_received, reason) => void reasons.push(reason?.code),
      });
      const { seq } = await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
      await expect.poll(() => reasons[0], { timeout: 60_000 }).toBe(code);
      await sleep(2000);
      await room(-1);
      // It is counted now, and waits on.
      await expect.poll(async () => (await waited.get(`${durable}.${seq}`))?.value.away, { timeout: 60_000 }).toBeGreaterThan(0);
      full = false;
      await expect.poll(() => reasons.at(-1), { timeout: 60_000 }).toBeUndefined();
      expect(await bus.deadLetters.list(tenant)).toEqual([]);
    },
  );

  test("a message that takes its process down each time is still buried, also when it had waited before", async ({ nc, tenant }) => {
    await ensureStreams(nc);
    const bus = createBus({ nc, log: silent, telemetry, source: "test", longestWaitMs: 20 });
    const at = newDataset(tenant);
    const { durable, stream, maxDeliver } = consumers.ingestDatasetReceived;
    const { seq } = await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    // What such processes leave behind: deliveries that nothing was said to. Three of them had put it off before they died.
    await (await bus.bucket(buckets.waited)).put(`${durable}.${seq}`, { deliveries: 3, away: 3 });
    const consumer = await jetstream(nc).consumers.get(stream.name, durable);
    for (let deliveries = 0; deliveries < maxDeliver * 2 + 3;) {
      const message = await consumer.next({ expires: 2000 });
      if (message?.seq === seq) deliveries = message.info.deliveryCount;
      if (message?.seq === seq) message.nak();
      else message?.ack();
    }
    let handled = 0;
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: { "dataset.received.v1": async (received) => void (handled += received.at.id === at.id ? 1 : 0) },
    });
    await expect.poll(() => bus.deadLetters.list(tenant), { timeout: 60_000 }).toMatchObject([{ code: "MAX_DELIVERIES" }]);
    expect(handled).toBe(0);
  });

  test("buries what can never work, tells who waits for it, and redrives it on request", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const told: string[] = [];
    let broken = true;
    let handled = 0;
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async (received) => {
          if (received.at.id !== at.id) return;
          if (broken) throw new PermanentError("BAD_ROW", "line 3: ünïcode\nand a newline", { param: "a.jsonl" });
          handled++;
        },
      },
      onDeadLetter: async (letter) => void told.push(`${letter.tenant} ${letter.code} ${letter.param}`),
    });
    await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    await expect.poll(() => bus.deadLetters.list(tenant)).toHaveLength(1);
    const [letter] = await bus.deadLetters.list(tenant);
    expect(letter).toMatchObject({
      stream: "DATASETS",
      durable: "ingest-dataset-received",
      code: "BAD_ROW",
      message: "line 3: ünïcode\nand a newline",
      deliveries: 1,
      data: { filename: "a.jsonl" },
    });
    expect(told).toEqual([`${tenant} BAD_ROW a.jsonl`]);
    expect(await bus.deadLetters.get(letter!.seq)).toEqual(letter);

    broken = false;
    await bus.deadLetters.redrive(letter!.seq);
    await expect.poll(() => handled).toBe(1);
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
    await expect(bus.deadLetters.redrive(letter!.seq)).rejects.toMatchObject({ code: "LETTER_UNKNOWN" });
  });

  test.for([
    ["{", /not JSON/],
    ["[]", /expected object/],
    ['{"filename":"x"}', /blob/],
    ["\xff\xfe", /not JSON in UTF-8|not valid/],
  ] as const)("a plain client's broken body %j becomes a dead letter that says why", async ([body, why], { nc, tenant }) => {
    const bus = await busOver(nc);
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: { "dataset.received.v1": async () => {} },
    });
    nc.publish(`loraline.${tenant}.dataset.${ulid()}.received.v1`, Buffer.from(body, "latin1"));
    await expect
      .poll(() => bus.deadLetters.list(tenant))
      .toEqual([expect.objectContaining({ code: "CONTRACT_VIOLATION", message: expect.stringMatching(why) })]);
  });

  test("a reason with half a character, and nobody who can be told: the message is buried all the same", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async (received) => {
          if (received.at.id === at.id) throw new PermanentError("BAD_ROW", `half: \ud83d ${"x".repeat(100_000)}`);
        },
      },
      onDeadLetter: async () => {
        throw new PermanentError("CONTRACT_VIOLATION", "cannot be told");
      },
    });
    await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    await expect
      .poll(() => bus.deadLetters.list(tenant))
      .toEqual([expect.objectContaining({ code: "BAD_ROW", message: expect.stringMatching(/^half: \ufffd x+$/) })]);
  });

  test("a message that is larger than any may be is buried at once, as a reference, and the next one is read", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const large = newDataset(tenant);
    const next = newDataset(tenant);
    const bytes = 600 * 1024;
    await nc.request(`loraline.${tenant}.dataset.${large.id}.received.v1`, new Uint8Array(bytes));
    await bus.publish(events.datasetReceived, next, { blob, filename: "next" });
    const seen: string[] = [];
    await using _consumer = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: { "dataset.received.v1": async ({ at }) => void seen.push(at.id) },
    });
    await expect.poll(() => seen).toEqual([next.id]);
    await expect.poll(async () => (await bus.deadLetters.list(tenant)).length).toBe(1);
    const [letter] = await bus.deadLetters.list(tenant);
    expect(letter).toMatchObject({ code: "EVENT_TOO_LARGE", omittedBytes: bytes, data: null });
    expect(letter?.subject).toContain(large.id);
    await expect(bus.deadLetters.redrive(letter?.seq ?? 0)).rejects.toMatchObject({ code: "LETTER_TOO_LARGE" });
  });

  test("a letter fits, also when its message came with all the headers that NATS takes", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const many = headers();
    for (let n = 0; n < 12; n++) many.append("more", "x".repeat(5000));
    await nc.request(`loraline.${tenant}.dataset.${at.id}.received.v1`, new Uint8Array(400 * 1024), { headers: many, timeout: 60_000 });
    await using _consumer = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: { "dataset.received.v1": async () => {} },
    });
    await expect
      .poll(async () => (await bus.deadLetters.list(tenant)).map(({ code }) => code), { timeout: 60_000 })
      .toEqual(["CONTRACT_VIOLATION"]);
  });

  test.for([
    ["expect what holds for its own stream only", "Nats-Expected-Stream: DATASETS\r\n"],
    ["cannot be read", "two words: x\r\n"],
  ] as const)("a message whose headers %s is buried, and holds up nobody", async ([, lines], { nc, tenant }) => {
    const bus = await busOver(nc);
    const next = newDataset(tenant);
    const given = Object.assign(headers(), { encode: () => Buffer.from(`NATS/1.0\r\n${lines}\r\n`) });
    await nc.request(`loraline.${tenant}.dataset.${ulid()}.received.v1`, "{}", { headers: given, timeout: 60_000 });
    await bus.publish(events.datasetReceived, next, { blob, filename: "next" });
    const seen: string[] = [];
    await using _consumer = await bus.consume({
      // One message at a time, for all tenants.
      consumer: consumers.projectorDatasets,
      handlers: async ({ at }) => void seen.push(at.id),
    });
    await expect.poll(() => seen, { timeout: 60_000 }).toContain(next.id);
    expect((await bus.deadLetters.list(tenant)).map(({ code, deliveries }) => [code, deliveries])).toEqual([["CONTRACT_VIOLATION", 1]]);
  });

  test("an event whose headers cannot be read is an event all the same", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const given = Object.assign(headers(), { encode: () => Buffer.from("NATS/1.0\r\ntwo words: x\r\n\r\n") });
    const body = JSON.stringify({ blob, filename: "a.jsonl" });
    await nc.request(`loraline.${tenant}.dataset.${at.id}.received.v1`, body, { headers: given, timeout: 60_000 });
    expect(await bus.history([events.datasetReceived], at)).toHaveLength(1);
    expect(await bus.last(events.datasetReceived, at)).toMatchObject({ data: { filename: "a.jsonl" } });
    expect(await bus.newest([events.datasetReceived], at, { limit: 5 })).toMatchObject([{ data: { filename: "a.jsonl" } }]);
  });

  test("a list of letters reads nothing of other tenants' data, and of the own no more than fits", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const other = `${tenant}-other`;
    await using _consumer = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: { "dataset.received.v1": async () => {} },
    });
    const bytes = 32_000;
    const each = 150;
    for (const owner of [...Array<string>(each).fill(tenant), ...Array<string>(each).fill(other)])
      await nc.request(`loraline.${owner}.dataset.${ulid()}.received.v1`, new Uint8Array(bytes), { timeout: 60_000 });
    await nc.request(`loraline.${tenant}.dataset.${ulid()}.received.v1`, '"small"', { timeout: 60_000 });
    const sizes = async (of: string) => (await bus.deadLetters.list(of)).map(({ omittedBytes }) => omittedBytes);
    await expect.poll(async () => (await sizes(tenant)).length + (await sizes(other)).length, { timeout: 60_000 }).toBe(2 * each + 1);
    const fits = Math.floor((4 * 1024 ** 2) / bytes);
    const before = nc.stats().inBytes;
    expect(await sizes(tenant)).toEqual([...Array<undefined>(fits + 1).fill(undefined), ...Array<number>(each - fits).fill(bytes)]);
    // Bytes come as base64 where one message is asked for.
    expect(nc.stats().inBytes - before).toBeLessThan(fits * bytes * 1.6);
    const last = (await bus.deadLetters.list(tenant)).at(-1);
    expect(await bus.deadLetters.get(last!.seq)).not.toHaveProperty("omittedBytes");
    const read = nc.stats().inBytes;
    expect(await bus.deadLetters.list(`${tenant}-none`)).toEqual([]);
    // Not even the headers of others' letters, which are 300 bytes and more each.
    expect(nc.stats().inBytes - read).toBeLessThan(10_000);
  });

  test("data that is too long for a letter is shown, and redriven, from the message itself", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const at = newDataset(tenant);
    const filename = "a.jsonl";
    const parts = Array.from({ length: 400 }, (_, n) => ({ blob, filename: `${n}.jsonl` }));
    let broken = true;
    let handled = 0;
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async (received) => {
          if (received.at.id !== at.id) return;
          if (broken) throw new PermanentError("BAD_ROW", "no");
          handled += received.data.parts?.length ?? 0;
        },
      },
    });
    await bus.publish(events.datasetReceived, at, { blob, filename, parts });
    await expect.poll(() => bus.deadLetters.list(tenant)).toMatchObject([{ data: null, omittedBytes: expect.any(Number) }]);
    const { seq } = (await bus.deadLetters.list(tenant))[0]!;
    expect(await bus.deadLetters.get(seq)).toMatchObject({ code: "BAD_ROW", data: { filename, parts } });
    broken = false;
    await bus.deadLetters.redrive(seq);
    await expect.poll(() => handled).toBe(parts.length);
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
  });

  test(
    "a tenant with any number of failed messages keeps its newest 500, and other tenants theirs",
    { timeout: 30_000 },
    async ({ nc, tenant }) => {
      const bus = await busOver(nc);
      const other = `${tenant}-other`;
      await using _consuming = await bus.consume({
        consumer: consumers.ingestDatasetReceived,
        handlers: { "dataset.received.v1": async () => {} },
      });
      const say = (owner: string, body: string) => nc.request(`loraline.${owner}.dataset.${ulid()}.received.v1`, body, { timeout: 60_000 });
      await say(other, "theirs");
      const bodies = Array.from({ length: 650 }, (_, n) => `number ${n}`);
      for (const body of bodies) await say(tenant, body);
      const kept = async () => (await bus.deadLetters.list(tenant)).map(({ data }) => data);
      await expect.poll(async () => (await kept())[0], { timeout: 60_000 }).toBe(bodies.at(-1));
      await expect.poll(async () => (await kept()).length).toBeLessThanOrEqual(550);
      expect(await kept()).toEqual(expect.arrayContaining(bodies.slice(-500)));
      expect(await bus.deadLetters.list(other)).toMatchObject([{ data: "theirs" }]);
    },
  );

  test("a redriven message is not taken for one that somebody else gave the id which it would have", async ({ nc, tenant }) => {
    await ensureStreams(nc);
    const bus = createBus({ nc, log: silent, telemetry, source: "test", secret: "unknown to others" });
    const at = newDataset(tenant);
    let handled = 0;
    await using _consumer = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: {
        "dataset.received.v1": async (received) => {
          if (received.at.id === at.id && ++handled === 1) throw new PermanentError("BAD_ROW", "no");
        },
      },
    });
    const { seq } = await bus.publish(events.datasetReceived, at, { blob, filename: "a.jsonl" });
    await expect.poll(() => bus.deadLetters.list(tenant)).toHaveLength(1);
    const given = headers();
    given.set("Nats-Msg-Id", `redrive.dlq.DATASETS.ingest-dataset-received.${seq}`);
    await nc.request(`loraline.${tenant}-other.dataset.${ulid()}.received.v1`, "{}", { headers: given, timeout: 60_000 });
    const [letter] = await bus.deadLetters.list(tenant);
    await bus.deadLetters.redrive(letter!.seq);
    await expect.poll(() => handled).toBe(2);
  });

  test("an event or an entry that is too large is refused where it is made, not tried again", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const bucket = await bus.bucket(buckets.keys);
    const key = { tenant, name: "k".repeat(Number(nc.info?.max_payload)), createdAt: new Date().toISOString() };
    await expect(bucket.put("x", key)).rejects.toMatchObject({ code: "STATE_TOO_LARGE" });
    const message = "m".repeat(600 * 1024);
    await expect(bus.publish(events.runFailed, newDataset(tenant), { code: "X", message })).rejects.toMatchObject({
      code: "EVENT_TOO_LARGE",
    });
  });

  test("a subject whose id can be nobody's is buried, and nobody is told", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const told: string[] = [];
    await using _consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: { "dataset.received.v1": async ({ at }) => void told.push(at.id) },
      onDeadLetter: async ({ id }) => void told.push(id),
    });
    nc.publish(`loraline.${tenant}.dataset.not-a-ulid.received.v1`, JSON.stringify({ blob, filename: "a" }));
    await expect.poll(() => bus.deadLetters.list(tenant)).toEqual([expect.objectContaining({ code: "CONTRACT_VIOLATION" })]);
    expect(told).not.toContain("not-a-ulid");
  });

  test("a handler longer than the ack wait is not run twice", { timeout: 40_000 }, async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    // A shorter wait than the real one, which the server knows, too: what keeps the message in hand is the same.
    const consumer = { ...consumers.ingestDatasetReceived, concurrency: 2, ackWaitMs: 3000 };
    const jsm = await jetstreamManager(nc);
    const ackWait = (ms: number) => jsm.consumers.update(consumer.stream.name, consumer.durable, { ack_wait: ms * 1_000_000 });
    await ackWait(consumer.ackWaitMs);
    const at = newDataset(tenant);
    let runs = 0;
    let ended = false;
    await using _consuming = await bus.consume({
      consumer,
      handlers: {
        "dataset.received.v1": async (received) => {
          if (received.at.id !== at.id) return;
          runs++;
          await sleep(consumer.ackWaitMs * 2);
          ended = true;
        },
      },
    });
    await bus.publish(events.datasetReceived, at, { blob, filename: "long" });
    await expect.poll(() => ended).toBe(true);
    await sleep(1000);
    expect(runs).toBe(1);
    await ackWait(consumers.ingestDatasetReceived.ackWaitMs);
  });

  test("names the remedy when the streams are not there", async () => {
    await using server = await spawnNatsServer();
    const nc = await connectBus({ servers: server.url, name: "test" });
    const bus = createBus({ nc, log: silent, telemetry, source: "test" });
    const consuming = bus.consume({ consumer: consumers.ingestDatasetReceived, handlers: { "dataset.received.v1": async () => {} } });
    await expect(consuming).rejects.toMatchObject({ code: "STREAMS_MISSING", message: expect.stringContaining("ensure-streams") });
    await expect(bus.bucket(buckets.engines)).rejects.toMatchObject({ code: "BUCKET_MISSING" });
    await nc.close();
  });
});

const engine = (maxLoras: number): EngineRecord => ({
  engine: "e",
  base: { name: "b", revision: "1", digest: blob.digest },
  maxLoraRank: 8,
  maxLoras,
  maxCpuLoras: 8,
  maxModelLen: 1024,
  updatedAt: "2026-11-24T00:00:00.000Z",
});

describe("kv", () => {
  test("concurrent changes are all kept; a deleted key can be written again", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const kv = await bus.bucket(buckets.engines);
    await Promise.all(Array.from({ length: 12 }, () => kv.change(tenant, (current) => engine((current?.maxLoras ?? 0) + 1))));
    expect((await kv.get(tenant))?.value.maxLoras).toBe(12);
    await kv.delete(tenant);
    expect(await kv.get(tenant)).toBeUndefined();
    await kv.change(tenant, (current) => (current === undefined ? engine(1) : undefined));
    expect((await kv.get(tenant))?.value.maxLoras).toBe(1);
  });

  test("the server's time comes with one question, so that it is of the middle between asking and answer", async ({ nc }) => {
    const kv = await (await busOver(nc)).bucket(buckets.engines);
    const asked = vi.spyOn(nc, "request");
    const before = Date.now();
    const time = await kv.serverTime();
    expect(asked).toHaveBeenCalledOnce();
    asked.mockRestore();
    // The test's server has this machine's clock, or a container's.
    expect(Math.abs(time - before)).toBeLessThan(60_000);
  });

  test("an entry that cannot be read stops who has to know all, and not who can do without it", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const kv = await bus.bucket(buckets.engines);
    const [good, bad] = [`${tenant}-good`, `${tenant}-bad`];
    await kv.put(good, engine(1));
    await jetstream(nc).publish(`$KV.engines.${bad}`, "{ no entry");
    await expect(kv.entries(bad)).rejects.toThrow(/JSON/);
    await expect(kv.many([good, bad])).rejects.toThrow(/JSON/);
    expect((await kv.entries(">", { skipUnreadable: true })).map(({ key }) => key)).toContain(good);
    expect((await kv.many([good, bad], { skipUnreadable: true })).map(({ key }) => key)).toEqual([good]);
    await kv.delete(bad);
  });

  test("entries that change while all are read are among them", async ({ nc, tenant, nats }) => {
    const kv = await (await busOver(nc)).bucket(buckets.engines);
    const keys = Array.from({ length: 30 }, (_, n) => `${tenant}.k${n}`);
    for (const key of keys) await kv.put(key, engine(1));
    const writing = await nats.connect();
    const others = await (await busOver(writing)).bucket(buckets.engines);
    let go = true;
    const writers = keys.slice(0, 8).map(async (key) => {
      while (go) await others.put(key, engine(2));
    });
    try {
      for (let n = 0; n < 300; n++) {
        expect((await kv.entries(`${tenant}.*`)).map(({ key }) => key).toSorted()).toEqual(keys.toSorted());
        if (n % 10 === 0) expect((await kv.sizes(`${tenant}.*`)).map(({ key }) => key).toSorted()).toEqual(keys.toSorted());
      }
    } finally {
      go = false;
      await Promise.all(writers);
      await writing.close();
    }
  });

  test("many large entries are all read, in rounds that leave the server little to keep for a slow reader", async () => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-bus-"));
    const config = join(dir, "nats.conf");
    // As the default of 64 MB with eight times as many entries.
    await writeFile(config, "max_pending: 8MB\n");
    await using server = await spawnNatsServer({ args: ["-c", config] });
    const nc = await server.connect();
    let cutOff = 0;
    const watching = (async () => {
      for await (const { type } of nc.status()) if (type === "disconnect") cutOff++;
    })();
    const bus = await busOver(nc);
    let parsed = 0;
    const large = z.object({ text: z.string() }).transform(({ text }) => {
      // A reader that is slower than the server.
      for (const end = performance.now() + 10; performance.now() < end;);
      parsed++;
      return { length: text.length };
    });
    const kv = await bus.bucket({ ...buckets.engines, value: large });
    const keys = Array.from({ length: 60 }, (_, n) => `e${n}`);
    for (const key of keys) await jetstream(nc).publish(`$KV.engines.${key}`, JSON.stringify({ text: "t".repeat(400_000) }));
    const keysOf = (entries: readonly { key: string; value: { length: number } }[]) =>
      entries.filter(({ value }) => value.length === 400_000).map(({ key }) => key);
    expect(keysOf(await kv.many([...keys, "none"]))).toEqual(keys);
    expect(keysOf(await kv.entries())).toEqual(keys);
    expect(parsed).toBe(120);
    expect(await kv.sizes(["e3", "e59", "none"])).toEqual(["e3", "e59"].map((key) => ({ key, bytes: 400_011 })));
    expect(cutOff).toBe(0);
    await nc.close();
    await watching;
    await rm(dir, { recursive: true });
  });

  test("a watch gives what is there, says when it has, and follows changes", async ({ nc, tenant }) => {
    const bus = await busOver(nc);
    const kv = await bus.bucket(buckets.engines);
    const stop = new AbortController();
    await kv.put(`${tenant}.a`, engine(1));
    for (const [filter, expected] of [
      [`${tenant}.>`, ["a 1", "ready", "b 2", "a gone"]],
      [`${tenant}.none.>`, ["ready"]],
    ] as const) {
      const seen: string[] = [];
      await kv.watch({
        filter,
        signal: stop.signal,
        onChange: (key, value) => void seen.push(`${key.split(".")[1]} ${value?.maxLoras ?? "gone"}`),
        onReady: () => void seen.push("ready"),
      });
      await expect.poll(() => seen.includes("ready")).toBe(true);
      if (expected.length > 1) {
        await kv.put(`${tenant}.b`, engine(2));
        await kv.delete(`${tenant}.a`);
      }
      await expect.poll(() => seen).toEqual(expected);
    }
    stop.abort();
  });
});

describe("when nats-server is killed", () => {
  test("what was acknowledged is still there, consumers and watches go on", { timeout: 60_000 }, async () => {
    await using server = await spawnNatsServer();
    const nc = await connectBus({ servers: server.url, name: "test" });
    const bus = await busOver(nc);
    const kv = await bus.bucket(buckets.engines);
    const stop = new AbortController();
    const watched: number[] = [];
    await kv.watch({ signal: stop.signal, onChange: (_key, value) => void watched.push(value?.maxLoras ?? 0) });
    const handled: string[] = [];
    const consuming = await bus.consume({
      consumer: consumers.ingestDatasetReceived,
      handlers: { "dataset.received.v1": async ({ data }) => void handled.push(data.filename) },
    });
    await bus.publish(events.datasetReceived, newDataset("acme"), { blob, filename: "before" });
    await kv.put("other", engine(7));
    await kv.put("e", engine(1));
    await expect.poll(() => watched).toEqual([7, 1]);
    await expect.poll(() => handled).toEqual(["before"]);

    await server.kill();
    await sleep(1500);
    await server.start();

    await expect
      .poll(
        () =>
          bus.publish(events.datasetReceived, newDataset("acme"), { blob, filename: "after" }).then(
            () => true,
            () => false,
          ),
        { timeout: 60_000 },
      )
      .toBe(true);
    await expect.poll(() => handled, { timeout: 60_000 }).toEqual(["before", "after"]);
    await kv.put("e", engine(2));
    // It goes on where it was: a hundred thousand entries that everybody has already would be parsed again by everybody at once.
    await expect.poll(() => watched, { timeout: 60_000 }).toEqual([7, 1, 2]);
    stop.abort();
    await consuming[Symbol.asyncDispose]();
    await nc.close();
  });

  test("consumers stop while it is away", async () => {
    await using server = await spawnNatsServer();
    const nc = await connectBus({ servers: server.url, name: "test" });
    const bus = await busOver(nc);
    const consuming = await bus.consume({ consumer: consumers.ingestDatasetReceived, handlers: { "dataset.received.v1": async () => {} } });
    await server.kill();
    await sleep(1500);
    const stopped = Promise.resolve(consuming[Symbol.asyncDispose]()).then(() => "stopped");
    expect(await Promise.race([stopped, sleep(10_000)])).toBe("stopped");
    await nc.close();
  });

  test("a first connection that fails says where and what to check", async () => {
    await expect(connectBus({ servers: "nats://127.0.0.1:1", name: "test" })).rejects.toMatchObject({
      code: "NATS_UNREACHABLE",
      message: expect.stringMatching(/127\.0\.0\.1:1.*NATS_URL/),
    });
  });
});
