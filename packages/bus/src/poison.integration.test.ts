/** What a message that can never be processed does to those behind it, in every consumer there is. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type ConsumerDef, consumers, type EventDef, subjectFor } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { test } from "@loraline/testkit";
import { jetstreamManager } from "@nats-io/jetstream";
import { headers } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { describe, expect } from "vitest";
import { createBus, ensureStreams } from "./index.ts";

const samples = join(import.meta.dirname, "../../contracts/samples");
const sampleOf = ({ type }: EventDef): string => readFileSync(join(samples, `${type}.json`), "utf8");
const idFor = ({ noun }: EventDef): string => {
  if (noun === "chunk") return createHash("sha256").update(ulid()).digest("hex");
  return noun === "adapter" ? `a${ulid().toLowerCase()}` : ulid();
};
const unreadable = Object.assign(headers(), { encode: () => Buffer.from("NATS/1.0\r\ntwo words: x\r\n\r\n") });

describe.for(Object.values<ConsumerDef>(consumers))("$durable", (consumer) => {
  test("what fails for one entity ends as a failed message, and others go on meanwhile", { timeout: 30_000 }, async ({ nc, tenant }) => {
    await ensureStreams(nc);
    const log = createLog({ service: "test", level: "silent" });
    const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "test" }), source: "test", longestWaitMs: 300 });
    const event = consumer.events[0]!;
    const body = sampleOf(event);
    /** @returns the sequence of the message. */
    const say = async (id: string, data: string | Uint8Array, options: object = {}): Promise<number> => {
      const subject = subjectFor(event, { tenant, id: idFor(event) })
        .split(".")
        .with(3, id)
        .join(".");
      const ack = await nc.request(subject, data, { timeout: 60_000, ...options });
      return ack.json<{ seq: number }>().seq;
    };
    const failing = idFor(event);
    const fails = await say(failing, body);
    const afterIt = await say(failing, body);
    const never: [string, number][] = [
      ["CONTRACT_VIOLATION", await say(idFor(event), Uint8Array.of(0xff, 0xfe, 0x00))],
      ["CONTRACT_VIOLATION", await say(idFor(event), "[]")],
      ["EVENT_TOO_LARGE", await say(idFor(event), new Uint8Array(600 * 1024))],
      ["CONTRACT_VIOLATION", await say(idFor(event), "[]", { headers: unreadable })],
      ["CONTRACT_VIOLATION", await say("nobodys+id", body)],
    ];
    const goods = [await say(idFor(event), body), await say(idFor(event), body, { headers: unreadable })];

    const tried: number[] = [];
    await using _consuming = await bus.consume({
      consumer,
      handlers: async ({ seq, at }) => {
        if (at.tenant !== tenant) return;
        tried.push(seq);
        if (seq === fails) throw new TypeError("a fault of ours");
      },
    });
    const letterOf = (seq: number) => bus.deadLetters.of(consumer, tenant, seq);
    await expect
      .poll(() => letterOf(fails), { timeout: 60_000 })
      .toMatchObject({
        code: "MAX_DELIVERIES",
        message: "a fault of ours",
        deliveries: consumer.maxDeliver,
        subject: subjectFor(event, { tenant, id: failing }),
      });
    for (const [code, seq] of never) await expect.poll(() => letterOf(seq), { timeout: 60_000 }).toMatchObject({ code });
    await expect.poll(() => tried).toContain(afterIt);
    expect(tried.filter((seq) => seq === fails)).toHaveLength(consumer.maxDeliver);
    for (const good of goods) {
      expect(tried.indexOf(good), "handled").not.toBe(-1);
      expect(tried.indexOf(good), "before the last try").toBeLessThan(tried.lastIndexOf(fails));
    }
    if (consumer.ordered === true) expect(tried.indexOf(afterIt), "in order").toBeGreaterThan(tried.lastIndexOf(fails));
    const jsm = await jetstreamManager(nc);
    const inHand = async () => (await jsm.consumers.info(consumer.stream.name, consumer.durable)).num_ack_pending;
    await expect.poll(inHand).toBe(0);
  });
});
