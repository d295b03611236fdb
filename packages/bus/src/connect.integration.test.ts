import { createHealth, createLog } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { expect, it } from "vitest";
import { connectService, ensureStreams, streamsInPlace } from "./index.ts";

const log = createLog({ service: "test", level: "silent" });

it("a service waits for NATS, then for its streams, says so, and follows the connection", async () => {
  await using server = await spawnNatsServer();
  const { url } = server;
  await server.kill();
  await using health = await createHealth();
  health.started();
  const connecting = connectService({ NATS_URL: url }, "test", { log, health, stopping: new AbortController().signal });
  await expect.poll(() => health.problems()).toEqual([expect.stringContaining(`cannot reach NATS at ${url}`)]);
  await server.start();
  await expect.poll(() => health.problems(), { timeout: 5000 }).toEqual([expect.stringContaining("there are no streams on")]);
  const other = await server.connect();
  await ensureStreams(other);
  const nc = await connecting;
  expect(health.problems()).toEqual([]);
  expect(await streamsInPlace(nc)).toBeUndefined();

  await server.kill();
  await expect.poll(() => health.problems()).toEqual([expect.stringContaining("is lost; connecting again")]);
  await server.start();
  await expect.poll(() => health.problems(), { timeout: 5000 }).toEqual([]);
  await Promise.all([nc.close(), other.close()]);
});

it("a stop ends the wait", async () => {
  await using server = await spawnNatsServer();
  await using health = await createHealth();
  const stopping = new AbortController();
  const env = { NATS_URL: server.url };
  const waiting = connectService(env, "test", { log, health, stopping: stopping.signal });
  await expect.poll(() => health.problems()).toContainEqual(expect.stringContaining("there are no streams"));
  stopping.abort();
  await expect(waiting).rejects.toMatchObject({ code: "STOPPED", message: expect.stringContaining("there are no streams") });
});
