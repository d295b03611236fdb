import { setImmediate as settled } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { quietLog } from "../gateway-under-test.ts";
import { createVersionAsker } from "./ask-for-versions.ts";

const minute = 60_000;

/** What two gateways with one clock publish; `fails`: the bus is away. */
function gateways() {
  const clock = { now: Date.parse("2026-01-01T00:00:00.000Z") };
  const published: { name: string; key: string | undefined }[] = [];
  const bus = { fails: false };
  const gateway = () =>
    createVersionAsker({
      bus: {
        async publish(_event, at, data, options) {
          if (bus.fails) throw new Error("away");
          published.push({ name: `${at.tenant}/${at.id}@${(data as { version: number }).version}`, key: options?.key });
          return { seq: 1, duplicate: false };
        },
      },
      log: quietLog,
      now: () => clock.now,
    });
  return { clock, published, bus, ask: gateway(), other: gateway() };
}
const named = (version: number, wanted: { at: string; until: string } | null = null) => ({ adapter: "pirate", version, wanted });

describe("createVersionAsker", () => {
  it("asks once in five seconds for each version, whoever asks; and all gateways say the same, which the stream stores once", () => {
    const { clock, published, ask, other } = gateways();
    for (let i = 0; i < 1000; i++) {
      ask("acme", named(1));
      other("acme", named(1));
    }
    expect(published).toHaveLength(2);
    expect(new Set(published.map(({ key }) => key)).size).toBe(1);
    ask("acme", named(2));
    ask("globex", named(1));
    expect(published.map(({ name }) => name).slice(2)).toEqual(["acme/pirate@2", "globex/pirate@1"]);
    clock.now += 5000;
    ask("acme", named(1));
    expect(published).toHaveLength(5);
    expect(published[4]?.key).not.toBe(published[0]?.key);
  });
  it("asks for a version that is loaded for it when half of its time is over, and not before", () => {
    const { clock, published, ask } = gateways();
    const wanted = { at: new Date(clock.now).toISOString(), until: new Date(clock.now + 15 * minute).toISOString() };
    clock.now += 7 * minute;
    ask("acme", named(1, wanted));
    expect(published).toEqual([]);
    clock.now += minute;
    ask("acme", named(1, wanted));
    expect(published).toHaveLength(1);
  });
  it("asks again at the next request when the bus was away", async () => {
    const { published, bus, ask } = gateways();
    bus.fails = true;
    ask("acme", named(1));
    await settled();
    bus.fails = false;
    ask("acme", named(1));
    expect(published).toHaveLength(1);
  });
});
