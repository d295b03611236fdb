/** The door on a real server: what a tenant's client says is said once, in order, and waits or is refused when it cannot be. */
import {
  adapterCommandRefused,
  adapterKeepRequested,
  doorConsumer,
  doorStream,
  doorSubject,
  runCancelRequested,
  runCommandRefused,
  runRequested,
  subjectFor,
} from "@loraline/contracts";
import { createLog, createTelemetry, PermanentError } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { afterAll, beforeAll, expect, it } from "vitest";
import { createBus, ensureStreams } from "./index.ts";

const stack = new AsyncDisposableStack();
const tenant = "acme";
let nc: NatsConnection;

beforeAll(async () => {
  const server = stack.use(await spawnNatsServer());
  nc = await server.connect();
  stack.defer(() => nc.close());
  await ensureStreams(nc, { tenants: [tenant] });
});
afterAll(() => stack.disposeAsync());

const log = createLog({ service: "test", level: "silent" });
const gateway = () =>
  createBus({ nc, log, telemetry: stack.use(createTelemetry({ service: "test" })), source: "gateway", longestWaitMs: 100 });
/** As the server stores what the tenant's client says. */
const say = (subject: string, body: object | string = {}) =>
  jetstream(nc).publish(doorSubject(subject), typeof body === "string" ? body : JSON.stringify(body));
const cancelled = (id = ulid()) => subjectFor(runCancelRequested, { tenant, id });
const storedOf = async (subject: string) =>
  (await (await jetstreamManager(nc)).streams.info("RUNS", { subjects_filter: subject })).state.subjects?.[subject] ?? 0;
const waiting = async () => (await (await jetstreamManager(nc)).streams.info(doorStream(tenant).name)).state.messages;

it("what is taken again, because a gateway died before it could say so, is said once; what is said twice, twice", async () => {
  const subject = cancelled();
  await say(subject);
  await say(subject);
  const { stream, durable } = doorConsumer(tenant);
  // The one that dies: it has published, and acknowledges nothing.
  const dying = await (await jetstream(nc).consumers.get(stream.name, durable)).next({ expires: 2000 });
  await gateway().publish(runCancelRequested, { tenant, id: subject.split(".")[3] ?? "" }, {}, { key: `door-${dying?.seq}` });
  dying?.nak();
  await using _door = gateway().takeCommands({ tenant, admit: async () => {} });
  await expect.poll(waiting, { timeout: 60_000 }).toBe(0);
  expect(await storedOf(subject)).toBe(2);
});

it("while streams are full a command waits at the door, with those behind it, and goes on when there is room", async () => {
  const bus = gateway();
  const mib = 1024 ** 2;
  await ensureStreams(nc, { tenants: [tenant], limits: { RUNS: mib } });
  const fill = () =>
    Promise.allSettled(Array.from({ length: 500 }, () => bus.publish(runCancelRequested, { tenant: "umbrella", id: ulid() }, {})));
  while (!(await fill()).every(({ status }) => status === "rejected"));
  const [first, second] = [cancelled(), cancelled()];
  await using _door = bus.takeCommands({ tenant, admit: async () => {} });
  await say(first);
  await say(second);
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect([await waiting(), await storedOf(first), await storedOf(second)]).toEqual([2, 0, 0]);
  await ensureStreams(nc, { tenants: [tenant], limits: { RUNS: 8 * mib } });
  await expect.poll(waiting, { timeout: 60_000 }).toBe(0);
  expect([await storedOf(first), await storedOf(second)]).toEqual([1, 1]);
  await ensureStreams(nc, { tenants: [tenant] });
});

it("what is refused is a failed message, and is judged again when it is sent again", async () => {
  const bus = gateway();
  let isFull = true;
  const admit = async (): Promise<void> => {
    if (isFull) throw new PermanentError("QUOTA_HISTORY", "no more room");
  };
  await using _door = bus.takeCommands({ tenant, admit });
  const subject = cancelled();
  await say(subject, "");
  await say(subject);
  await expect
    .poll(async () => (await bus.deadLetters.list(tenant)).map(({ code }) => code))
    .toEqual(["QUOTA_HISTORY", "CONTRACT_VIOLATION"]);
  expect(await storedOf(subject)).toBe(0);
  const again = async (): Promise<void> => {
    const [letter] = (await bus.deadLetters.list(tenant)).filter(({ code }) => code === "QUOTA_HISTORY");
    expect(letter?.subject).toBe(subject);
    await bus.deadLetters.redrive(letter?.seq ?? 0);
    await expect.poll(waiting).toBe(0);
  };
  await again();
  expect(await storedOf(subject)).toBe(0);
  isFull = false;
  await again();
  expect(await storedOf(subject)).toBe(1);
});

it("counts what streams keep of a tenant, also after some of it was erased", async () => {
  const bus = gateway();
  const of = "counted";
  expect(await bus.eventBytes(of)).toBe(0);
  const spec = { base: "none", adapter: "a", dataset: ulid(), metadata: { note: "n".repeat(500) } };
  const said = await Promise.all(Array.from({ length: 10 }, () => bus.publish(runRequested, { tenant: of, id: ulid() }, { spec })));
  const ten = await bus.eventBytes(of);
  expect(ten).toBeGreaterThan(10 * 500);
  expect(ten).toBeLessThan(10 * 2000);
  expect(await bus.eventBytes(of)).toBe(ten);
  await (await jetstreamManager(nc)).streams.deleteMessage("RUNS", said[0]?.seq ?? 0);
  expect(await bus.eventBytes(of, { anew: true })).toBe(ten * 0.9);
});

it("what is refused is answered by an event about its run or adapter", async () => {
  const bus = gateway();
  const id = ulid();
  await using _door = bus.takeCommands({ tenant, admit: async () => {} });
  await say(subjectFor(adapterKeepRequested, { tenant, id: "pirate" }), { keep: -1 });
  await say(cancelled(id), "no JSON");
  const told = async () =>
    [
      ...(await bus.history([adapterCommandRefused], { tenant, id: "pirate" })),
      ...(await bus.history([runCommandRefused], { tenant, id })),
    ].map(({ data: { command, code, message } }) => ({ command, code, message }));
  await expect.poll(told).toEqual([
    { command: "adapter.keep-requested.v1", code: "CONTRACT_VIOLATION", message: expect.stringContaining("keep") as string },
    { command: "run.cancel-requested.v1", code: "CONTRACT_VIOLATION", message: expect.stringContaining("JSON") as string },
  ]);
});

it("a run that is requested again is one run: the same request is taken as done, another one is refused", async () => {
  const bus = gateway();
  const id = ulid();
  const subject = subjectFor(runRequested, { tenant, id });
  const spec = { base: "none", adapter: "a", dataset: ulid() };
  let admitted = 0;
  await using _door = bus.takeCommands({ tenant, admit: async () => void admitted++ });
  await say(subject, { spec });
  // What is left out is its default.
  for (let n = 0; n < 3; n++) await say(subject, { spec: { ...spec, holdout: 0.1 } });
  await say(subject, { spec: { ...spec, adapter: "b" } });
  await expect.poll(waiting, { timeout: 60_000 }).toBe(0);
  expect([await storedOf(subject), admitted]).toEqual([1, 1]);
  expect((await bus.history([runCommandRefused], { tenant, id })).map(({ data }) => data)).toEqual([
    { command: "run.requested.v1", code: "RUN_EXISTS", message: expect.stringContaining("new ULID") as string, param: "spec" },
  ]);
  expect((await bus.deadLetters.list(tenant)).filter((letter) => letter.subject === subject).map(({ code }) => code)).toEqual([
    "RUN_EXISTS",
  ]);
});
