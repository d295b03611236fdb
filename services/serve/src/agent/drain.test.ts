import { createLog } from "@loraline/runtime";
import { describe, expect, it } from "vitest";
import { createTestClock } from "./agent-under-test.ts";
import { createDrain } from "./drain.ts";

function leaving() {
  const clock = createTestClock();
  const at = {
    engine: { ready: true, incarnation: "one" },
    announced: true,
    requests: "some" as "none" | "some" | "unknown",
    announcements: 0,
    askedSince: [] as number[],
  };
  const drain = createDrain({
    engine: at.engine,
    async announce() {
      at.announcements += 1;
      return at.announced;
    },
    anyRequests(since) {
      at.askedSince.push(since);
      return at.requests;
    },
    now: clock.now,
    wait: (ms) => new Promise<void>((resolve) => void clock.after(ms, resolve)),
    log: createLog({ service: "test", level: "silent" }),
    limits: { mostMs: 10_000, unknownMs: 3000, pollMs: 100 },
  });
  return { at, clock, drain };
}

describe("a replica that leaves", () => {
  it("waits until no request is in flight, and tells the gateways once", async () => {
    const { at, clock, drain } = leaving();
    expect(drain.isLeaving()).toBe(false);
    const answer = drain.drain();
    await clock.pass(1000);
    expect(drain.isLeaving()).toBe(true);
    at.requests = "none";
    await clock.pass(100);
    expect(await answer).toBe("no request is in flight after 1100 ms");
    expect(at.announcements).toBe(1);
  });

  it("counts only what gateways say after they could know of it", async () => {
    const { at, clock, drain } = leaving();
    at.announced = false;
    at.requests = "none";
    const answer = drain.drain();
    await clock.pass(1000);
    expect(at.askedSince).toEqual([]);
    const before = clock.now();
    at.announced = true;
    await clock.pass(200);
    await answer;
    expect(at.askedSince[0]).toBeGreaterThanOrEqual(before);
  });

  it("gives up on a gateway that says nothing sooner than on requests in flight", async () => {
    for (const [requests, ms, what] of [
      ["unknown", 3000, /a gateway says nothing/],
      ["some", 10_000, /still in flight/],
    ] as const) {
      const { at, clock, drain } = leaving();
      at.requests = requests;
      let answer: string | undefined;
      void drain.drain().then((result) => (answer = result));
      await clock.pass(ms);
      expect(answer).toBeUndefined();
      await clock.pass(200);
      expect(answer).toMatch(what);
    }
  });

  it("does not wait for an engine that does not answer, or ends meanwhile; the next one is served from", async () => {
    const { at, clock, drain } = leaving();
    at.engine.ready = false;
    expect(await drain.drain()).toBe("the engine does not answer");
    at.engine.ready = true;
    const answer = drain.drain();
    expect(drain.drain()).toBe(answer);
    await clock.pass(100);
    at.engine.incarnation = "two";
    await clock.pass(100);
    expect(await answer).toBe("the engine has ended");
    expect(drain.isLeaving()).toBe(false);
  });
});
