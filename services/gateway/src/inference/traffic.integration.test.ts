/** What a gateway tells of its traffic, as those who need it read it. */
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, trafficKeys } from "@loraline/contracts";
import { createTelemetry } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { expect } from "vitest";
import { engineRecord, quietLog } from "../gateway-under-test.ts";
import { createTraffic } from "./traffic.ts";

const test = testWithNats.extend("line", async ({ nc }) => {
  await ensureStreams(nc);
  const bus = createBus({ nc, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
  /** Where requests go, as the routing table would say. */
  const table = {
    out: new Set<string>(),
    compared: new Set<string>(),
    draining: false,
    isRouted: ({ engineModel, replica }: { engineModel: string; replica: string }) => !table.out.has(`${engineModel} ${replica}`),
    isAnyDraining: () => table.draining,
    comparedNames: () => table.compared,
    engine: (name: string) => (name === "sleepy" ? engineRecord({ engine: name, wake: { waitSeconds: 60, replicas: 1 } }) : undefined),
  };
  const clock = { time: 0 };
  const traffic = await createTraffic({ bus, log: quietLog, table, everyMs: 20, atLeastEveryMs: 5000, now: () => clock.time });
  const bucket = await bus.bucket(buckets.traffic);
  const keys = trafficKeys(traffic.gateway);
  const read = async (key: string) => (await bucket.get(key))?.value;
  return { table, traffic, clock, keys, read, revision: async () => (await bucket.get(keys.inFlight))?.revision };
});
const name = "t.pirate.v1.abc";
const at = { engineModel: name, engine: "local" };

test("a request is told to agents while it is in flight where no more are sent, and not where they are", async ({ line }) => {
  const { table, traffic, clock, keys, read, revision } = line;
  const told = async () => (await read(keys.inFlight))?.engines;
  expect(await told()).toEqual([]);
  const first = await revision();
  const requests = [
    traffic.begin({ ...at, replica: "r1" }),
    traffic.begin({ ...at, replica: "r1" }),
    traffic.begin({ ...at, replica: "r2" }),
  ];
  clock.time += 1000;
  await new Promise((resolve) => setTimeout(resolve, 200));
  // Nobody needs to know, and nobody is told.
  expect(await revision()).toBe(first);

  table.out.add(`${name} r1`);
  await expect.poll(told).toMatchObject([{ engineName: name, engine: "local", inFlight: { r1: 2 } }]);
  requests[0]?.end("served");
  await expect.poll(told).toMatchObject([{ inFlight: { r1: 1 } }]);
  requests[1]?.end("ignored");
  await expect.poll(told).toEqual([]);

  // A replica that drains wants to hear again and again that there is none; and every gateway shows that it lives.
  const quiet = await revision();
  table.draining = true;
  clock.time += 2000;
  await expect.poll(revision).not.toBe(quiet);
  table.draining = false;
  await new Promise((resolve) => setTimeout(resolve, 200));
  const rested = await revision();
  clock.time += 5000;
  await expect.poll(revision).not.toBe(rested);
  await traffic[Symbol.asyncDispose]();
  for (const key of Object.values(keys)) expect(await read(key)).toBeUndefined();
});

test("what came of requests is told of the names that a canary compares, with totals from before", async ({ line }) => {
  const { table, traffic, clock, keys, read } = line;
  const told = async () => (await read(keys.canary))?.engines;
  const [first, second, third, wrong] = Array.from({ length: 4 }, () => traffic.begin({ ...at, replica: "r1" }));
  clock.time += 100;
  first?.firstByte();
  wrong?.firstByte();
  clock.time += 200;
  first?.firstByte();
  first?.end("served", { prompt: 7, completion: 5 });
  first?.end("failed");
  wrong?.end("ignored");
  second?.end("failed");
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(await told()).toBeUndefined();

  table.compared.add(name).add("t.pirate.v2.abc");
  await expect.poll(told).toMatchObject([
    {
      engineName: name,
      inFlight: {},
      total: { requests: 2, errors: 1, firstByteMs: 400, promptTokens: 7, completionTokens: 5 },
      window: { requests: 2, firstByteP50Ms: 100, firstByteP95Ms: 300 },
    },
  ]);
  third?.end("served");
  await expect.poll(told).toMatchObject([{ total: { requests: 3 } }]);
  clock.time += 60_001;
  await expect.poll(told).toMatchObject([{ total: { requests: 3 }, window: { requests: 0, firstByteP95Ms: null } }]);
  table.compared.clear();
  await expect.poll(told).toEqual([]);
  await traffic[Symbol.asyncDispose]();
});

test("names that were asked for are told once for each pause, which grows with their number", async ({ line }) => {
  const { traffic, clock, keys, read } = line;
  const told = async () => (await read(keys.asked))?.asked;
  traffic.begin({ ...at, replica: "r1" }).end("served");
  await expect.poll(told).toEqual({ local: [name] });
  for (let n = 0; n < 1000; n++) traffic.begin({ engineModel: `t.a${n}.v1.abc`, engine: "local", replica: "r1" }).end("served");
  clock.time += 49_000;
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect(await told()).toEqual({ local: [name] });
  clock.time += 1000;
  await expect.poll(async () => (await told())?.["local"]?.length).toBe(1000);
  await traffic[Symbol.asyncDispose]();
});

test("an engine that may be scaled to zero is told of when it is asked, again and again while it answers or is waited for, and then no more", async ({
  line,
}) => {
  const { traffic, clock, keys, read } = line;
  const bucket = async () => (await read(keys.demand))?.demand ?? null;
  const tick = () => new Promise((resolve) => setTimeout(resolve, 100));
  traffic.begin({ ...at, replica: "r1" }).end("served");
  await tick();
  expect(await bucket()).toBeNull();

  const asked = traffic.begin({ engineModel: "sleepy-base", engine: "sleepy", replica: "r1" });
  await expect.poll(bucket).toEqual({ sleepy: 0 });
  const first = (await read(keys.demand))?.at;
  // It goes on for long.
  clock.time += 5000;
  await expect.poll(async () => (await read(keys.demand))?.at).not.toBe(first);
  asked.end("served");
  const waits = [traffic.wait("sleepy"), traffic.wait("sleepy")];
  await expect.poll(bucket).toEqual({ sleepy: 2 });
  waits[0]?.[Symbol.dispose]();
  waits[0]?.[Symbol.dispose]();
  await expect.poll(bucket).toEqual({ sleepy: 1 });
  waits[1]?.[Symbol.dispose]();
  await expect.poll(bucket).toEqual({});
  const last = (await read(keys.demand))?.at;
  clock.time += 60_000;
  await tick();
  expect((await read(keys.demand))?.at).toBe(last);
});
