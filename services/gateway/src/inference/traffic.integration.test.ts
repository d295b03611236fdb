/** What a gateway says about its traffic, as others read it. */
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets } from "@loraline/contracts";
import { createTelemetry } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { expect } from "vitest";
import { quietLog } from "../gateway-under-test.ts";
import { createTraffic } from "./traffic.ts";

const test = testWithNats.extend("bus", async ({ nc }) => {
  await ensureStreams(nc);
  return createBus({ nc, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
});

test("traffic is told while it is in flight, with what came of it, and no longer than it matters", async ({ bus }) => {
  let time = 0;
  const traffic = await createTraffic({ bus, log: quietLog, everyMs: 20, atLeastEveryMs: 40, now: () => time });
  const bucket = await bus.bucket(buckets.traffic);
  const told = async () => (await bucket.get(traffic.gateway))?.value.engines;
  expect(await told()).toEqual([]);

  const at = { engineModel: "t.pirate.v1.abc", engine: "local" };
  const first = traffic.begin({ ...at, replica: "r1" });
  const second = traffic.begin({ ...at, replica: "r1" });
  const third = traffic.begin({ ...at, replica: "r2" });
  const wrong = traffic.begin({ ...at, replica: "r2" });
  time += 100; // also makes a report due
  await expect
    .poll(told)
    .toMatchObject([
      { engineName: at.engineModel, engine: at.engine, inFlight: { r1: 2, r2: 2 }, total: { requests: 0 }, window: { requests: 0 } },
    ]);

  first.firstByte();
  wrong.firstByte();
  time += 200;
  first.firstByte();
  first.end("served", { prompt: 7, completion: 5 });
  first.end("failed");
  wrong.end("ignored");
  second.end("failed");
  await expect.poll(told).toMatchObject([
    {
      inFlight: { r2: 1 },
      total: { requests: 2, errors: 1, firstByteMs: 400, promptTokens: 7, completionTokens: 5 },
      window: { requests: 2, firstByteP50Ms: 100, firstByteP95Ms: 300 },
    },
  ]);
  third.end("served");
  await expect.poll(told).toMatchObject([{ inFlight: {}, total: { requests: 3 } }]);

  time += 60_001;
  await expect.poll(told).toEqual([]);
  // Totals go on where they were.
  const again = traffic.begin({ ...at, replica: "r1" });
  again.end("served");
  time += 100;
  await expect.poll(told).toMatchObject([{ total: { requests: 4 }, window: { requests: 1 } }]);

  await traffic[Symbol.asyncDispose]();
  expect(await bucket.get(traffic.gateway)).toBeUndefined();
});
