/** Requests to an engine that is scaled to zero: they wait, are told of, and are answered by the replica that comes. */
import { buckets, everyTraffic } from "@loraline/contracts";
import { test as testWithNats } from "@loraline/testkit";
import { expect } from "vitest";
import {
  adapterOf,
  base,
  heldBy,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../../gateway-under-test.ts";

const messages = [{ role: "user" as const, content: "ahoy" }];

const test = testWithNats.extend("asleep", async ({ nc, tenant }, { onCleanup }) => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const line = owned.use(await startGateway({ nc, tenant, projector: false, drainMs: 10_000 }));
  const version = versionOf(tenant, "pirate", 1);
  const adapter = adapterOf(tenant, "pirate", [version]);
  await putAdapter(line.bus, adapter);
  const replicas = await line.bus.bucket(buckets.replicas);
  owned.defer(() => replicas.delete("local.r1"));
  /** Numbers of waiting requests, as the operator is told. */
  const told: (number | undefined)[] = [];
  const ending = new AbortController();
  owned.defer(() => ending.abort());
  await (
    await line.bus.bucket(buckets.traffic)
  ).watch({
    filter: everyTraffic.demand,
    signal: ending.signal,
    onChange: (_key, entry) => void told.push(entry?.demand?.["local"]),
  });
  const sleepFor = async (waitSeconds: number): Promise<void> => {
    await registerEngine(line.bus, { wake: { waitSeconds, idleAfterSeconds: 60, replicas: 1 } });
    await expect
      .poll(async () => (await line.fetch("/v1/loraline/engines")).json())
      .toMatchObject({ data: [{ wake: { waitSeconds }, advice: [{ level: "info", code: "ASLEEP" }] }] });
  };
  const metric = async (name: string) =>
    (await (await fetch(line.metricsUrl)).text())
      .split("\n")
      .find((one) => one.startsWith(`${name}{`))
      ?.split(" ")
      .at(-1);
  const wakeUp = async () => {
    const engine = owned.use(await startEngine(base, version.engineName));
    // It is there and is not ready: nothing is proven yet.
    await putReplica(line.bus, { ...replicaOf("r1", engine.url, []), ready: false });
    return {
      engine,
      prove: () => putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(adapter, version)])),
    };
  };
  return { line, told, sleepFor, metric, wakeUp, alias: `${tenant}/pirate` };
});

test("chats with an adapter and with the base wait, the operator is told how many, and a replica answers once it has proven", async ({
  asleep,
}) => {
  const { line, told, sleepFor, metric, wakeUp, alias } = asleep;
  await sleepFor(60);
  let answered = 0;
  const ask = (model: string) =>
    line.openai.chat.completions.create({ model, messages }).then((answer) => {
      answered += 1;
      return answer.model;
    });
  const chats = [ask(alias), ask(base)];
  await expect.poll(() => told.at(-1)).toBe(2);
  expect(await metric("loraline_gateway_waiting_for_engine")).toBe("2");
  expect(await metric("loraline_engine_asleep")).toBe("1");
  const { engine, prove } = await wakeUp();
  await new Promise((resolve) => setTimeout(resolve, 400));
  expect([answered, engine.requests.length]).toEqual([0, 0]);
  await prove();
  expect(await Promise.all(chats)).toEqual([`${alias}@1`, base]);
  await expect.poll(() => told.at(-1) ?? 0).toBe(0);
  expect(await metric("loraline_gateway_waiting_for_engine")).toBeUndefined();
});

test("a wait that was in vain is a 503 that says when to ask again; whoever leaves waits no more; other engines refuse at once", async ({
  asleep,
}) => {
  const { line, told, sleepFor, metric, alias } = asleep;
  await sleepFor(60);
  const leaving = new AbortController();
  const left = line.openai.chat.completions.create({ model: alias, messages }, { signal: leaving.signal });
  await expect.poll(() => told.at(-1)).toBe(1);
  leaving.abort();
  await expect(left).rejects.toThrow("aborted");
  await expect.poll(() => told.at(-1) ?? 0).toBe(0);
  expect(await metric("loraline_engine_asleep")).toBe("1");

  await sleepFor(1);
  const body = JSON.stringify({ model: alias, messages });
  const ask = () => line.fetch("/v1/chat/completions", { method: "POST", headers: { "content-type": "application/json" }, body });
  const refused = await ask();
  expect(refused.status).toBe(503);
  // What is still expected of the half minute that a start takes until one was seen.
  expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(5);
  expect(Number(refused.headers.get("retry-after"))).toBeLessThan(30);
  const { error } = (await refused.json()) as { error: { code: string; message: string } };
  expect(error).toMatchObject({ code: "model_not_ready" });
  expect(error.message).toContain("The request has waited for it for 1 s.");
  // Somebody has missed it: an outage from now on.
  expect(await metric("loraline_engine_asleep")).toBe("0");

  await registerEngine(line.bus, {});
  await expect.poll(async () => ((await (await ask()).json()) as { error: { message: string } }).error.message).not.toContain("has waited");
});

test("a gateway that shuts down lets nobody wait", async ({ asleep }) => {
  const { line, told, sleepFor, alias } = asleep;
  await sleepFor(60);
  const chat = line.openai.chat.completions.create({ model: alias, messages });
  await expect.poll(() => told.at(-1)).toBe(1);
  const [refused] = await Promise.allSettled([chat, line[Symbol.asyncDispose]()]);
  expect(refused).toMatchObject({ status: "rejected", reason: { status: 503, code: "model_not_ready" } });
});
